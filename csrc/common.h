/* common.h - what every isa_*.c needs before it includes kernels.h. */
#include "rnnkernel.h"

#if !defined(__GNUC__)
#error "the kernels are written in vector extensions that GCC and Clang have"
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define RK_INLINE static inline __attribute__((always_inline, unused))
/* A loop with a constant count, unrolled whole: what it indexes lies in registers then. Clang has a
 * word of its own for that. */
#if defined(__clang__)
#define RK_UNROLL _Pragma("clang loop unroll(full)")
#else
#define RK_UNROLL _Pragma("GCC unroll 16")
#endif
#define RK_FOR(i, count) RK_UNROLL for (int i = 0; i < (count); i++)

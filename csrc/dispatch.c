/* dispatch.c - which instruction sets are compiled in, and which this machine runs. */
#include "rnnkernel.h"

typedef struct {
    const char *name;
    int (*usable)(void);
    const rk_kernels *const *kernels;
} isa;

#define RK_DECLARE(name) extern const rk_kernels *const rk_kernels_##name[RK_DTYPES];

static int always(void) { return 1; }
RK_DECLARE(baseline)

/* __builtin_cpu_supports asks the operating system too whether it saves the registers. Not every
 * compiler's knows F16C, which has no registers of its own. */
#if defined(RK_HAVE_AVX2) || defined(RK_HAVE_AVX512)
#include <cpuid.h>
static int has_fma_and_f16c(void)
{
    unsigned eax, ebx, ecx, edx;
    return __builtin_cpu_supports("fma") && __get_cpuid(1, &eax, &ebx, &ecx, &edx) &&
           (ecx & bit_F16C);
}
#endif
#ifdef RK_HAVE_AVX2
static int has_avx2(void) { return __builtin_cpu_supports("avx2") && has_fma_and_f16c(); }
RK_DECLARE(avx2)
#endif
#ifdef RK_HAVE_AVX512
static int has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && has_fma_and_f16c();
}
RK_DECLARE(avx512)
#endif
#ifdef RK_HAVE_NEON
RK_DECLARE(neon) /* a part of every AArch64 */
#endif

static const isa isas[] = {
    {"baseline", always, rk_kernels_baseline},
#ifdef RK_HAVE_AVX2
    {"avx2", has_avx2, rk_kernels_avx2},
#endif
#ifdef RK_HAVE_AVX512
    {"avx512", has_avx512, rk_kernels_avx512},
#endif
#ifdef RK_HAVE_NEON
    {"neon", always, rk_kernels_neon},
#endif
};

enum { ISAS = sizeof isas / sizeof isas[0] };

const char *rk_isa_name(int index) { return index < ISAS ? isas[index].name : NULL; }
int rk_isa_usable(int index) { return isas[index].usable(); }
const rk_kernels *rk_isa_kernels(int index, int dtype) { return isas[index].kernels[dtype]; }

int rk_reads_fast(void)
{
#if defined(__x86_64__) || defined(__i386__)
    return __builtin_cpu_is("amd") != 0;
#else
    return 0;
#endif
}

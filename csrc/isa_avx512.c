#define RK_ISA "avx512"
#define RK_VECTOR_BYTES 64
#define RK_REGISTERS 32

#include "common.h"

#define RK_DOUBLE 0
#include "kernels.h"
#undef RK_DOUBLE
#define RK_DOUBLE 1
#include "kernels.h"

const rk_kernels *const rk_kernels_avx512[RK_DTYPES] = {&rk_kernels_f32, &rk_kernels_f64};

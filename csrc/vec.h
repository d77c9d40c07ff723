/* vec.h - the vector vocabulary: one type and a dozen operations, for the dtype `real`
 * and RK_VECTOR_BYTES that are set where it is included. Algorithms use these words only.
 *
 * Fused multiply-add is always asked for by name (files are compiled without contraction),
 * so an expression has the same bits wherever it is inlined. An instruction set without
 * FMA rounds twice, everywhere alike.
 */
enum { RK(LANES) = RK_VECTOR_BYTES / sizeof(real) };
#define LANES ((ptrdiff_t)RK(LANES))

typedef real RK(vec) __attribute__((vector_size(RK_VECTOR_BYTES)));
typedef integer RK(ivec) __attribute__((vector_size(RK_VECTOR_BYTES)));
#define vec RK(vec)
#define ivec RK(ivec)

RK_INLINE vec RK(vload)(const real *p)
{
    vec v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}
RK_INLINE void RK(vstore)(real *p, vec v) { __builtin_memcpy(p, &v, sizeof v); }

/* a - 0 is a for every a, -0 and NaN too, so this costs the broadcast and nothing else. */
RK_INLINE vec RK(vset)(real a) { return a - (vec){0}; }

/* The first n lanes; those past them are zero. */
RK_INLINE vec RK(vload_part)(const real *p, ptrdiff_t n)
{
    if (n >= LANES) return RK(vload)(p);
    vec v = {0};
    __builtin_memcpy(&v, p, (size_t)n * sizeof(real));
    return v;
}
RK_INLINE void RK(vstore_part)(real *p, vec v, ptrdiff_t n)
{
    if (n >= LANES)
        RK(vstore)(p, v);
    else
        __builtin_memcpy(p, &v, (size_t)n * sizeof(real));
}

/* where mask (all ones or all zeros in each lane) is set a, elsewhere b */
RK_INLINE vec RK(vselect)(ivec mask, vec a, vec b)
{
    return (vec)((mask & (ivec)a) | (~mask & (ivec)b));
}

/* vfma(a, b, c) = a*b + c. vfnma(a, b, c) = c - a*b. vmax(low, x), vmin(high, x): x where x is
 * NaN. */
#if RK_VECTOR_BYTES == 16 && defined(__aarch64__)
#if RK_DOUBLE
#define RK_NEON(op) v##op##q_f64
#else
#define RK_NEON(op) v##op##q_f32
#endif
#elif RK_VECTOR_BYTES == 64 && defined(__AVX512F__)
#if RK_DOUBLE
#define RK_X86(op) _mm512_##op##_pd
#else
#define RK_X86(op) _mm512_##op##_ps
#endif
#elif RK_VECTOR_BYTES == 32 && defined(__FMA__)
#if RK_DOUBLE
#define RK_X86(op) _mm256_##op##_pd
#else
#define RK_X86(op) _mm256_##op##_ps
#endif
#elif RK_VECTOR_BYTES != 16
#error "the compiler's flags do not match this file's vector width"
#endif

#if defined(RK_X86)
RK_INLINE vec RK(vfma)(vec a, vec b, vec c) { return RK_X86(fmadd)(a, b, c); }
RK_INLINE vec RK(vfnma)(vec a, vec b, vec c) { return RK_X86(fnmadd)(a, b, c); }
RK_INLINE vec RK(vmax)(vec low, vec x) { return RK_X86(max)(low, x); }
RK_INLINE vec RK(vmin)(vec high, vec x) { return RK_X86(min)(high, x); }
#elif defined(RK_NEON)
RK_INLINE vec RK(vfma)(vec a, vec b, vec c) { return (vec)RK_NEON(fma)(c, a, b); }
RK_INLINE vec RK(vfnma)(vec a, vec b, vec c) { return (vec)RK_NEON(fms)(c, a, b); }
RK_INLINE vec RK(vmax)(vec low, vec x) { return (vec)RK_NEON(max)(low, x); }
RK_INLINE vec RK(vmin)(vec high, vec x) { return (vec)RK_NEON(min)(high, x); }
#else
RK_INLINE vec RK(vfma)(vec a, vec b, vec c) { return a * b + c; }
RK_INLINE vec RK(vfnma)(vec a, vec b, vec c) { return c - a * b; }
RK_INLINE vec RK(vmax)(vec low, vec x) { return RK(vselect)(low > x, low, x); }
RK_INLINE vec RK(vmin)(vec high, vec x) { return RK(vselect)(high < x, high, x); }
#endif

RK_INLINE vec RK(vsqrt)(vec a)
{
#if defined(RK_X86)
    return RK_X86(sqrt)(a);
#elif defined(RK_NEON)
    return (vec)RK_NEON(sqrt)(a);
#else
    for (int i = 0; i < LANES; i++)
        a[i] = RK_DOUBLE ? (real)__builtin_sqrt(a[i]) : (real)__builtin_sqrtf((float)a[i]);
    return a;
#endif
}
#undef RK_X86
#undef RK_NEON

/* 1 / a to 1 ulp, for what nobody computes with in forward: an approximation made better by
 * Newton's iteration is faster than vdivps where the divider is busy. */
RK_INLINE vec RK(vreciprocal)(vec a)
{
#if RK_VECTOR_BYTES == 64
    const vec one = RK(vset)(1);
#if RK_DOUBLE
    vec x = (vec)_mm512_rcp14_pd(a);
    x = RK(vfma)(x, RK(vfnma)(a, x, one), x);
#else
    vec x = (vec)_mm512_rcp14_ps(a);
#endif
    return RK(vfma)(x, RK(vfnma)(a, x, one), x);
#else
    return 1 / a;
#endif
}

/* |x|; and of a magnitude >= 0 that with the sign of x */
RK_INLINE vec RK(vabs)(vec x) { return (vec)((ivec)x & ~(ivec)RK(vset)((real)-0.0)); }
RK_INLINE vec RK(vsigned)(vec magnitude, vec x)
{
#if RK_VECTOR_BYTES == 64
    /* one instruction: bit by bit, where the first has it that of the second, else the third */
    const __m512i sign = (__m512i)RK(vset)((real)-0.0);
    return (vec)_mm512_ternarylogic_epi32(sign, (__m512i)x, (__m512i)magnitude, 0xca);
#else
    return (vec)(((ivec)x & (ivec)RK(vset)((real)-0.0)) | (ivec)magnitude);
#endif
}

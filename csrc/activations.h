/* activations.h - tanh and sigmoid.
 *
 * Both rest on e^x = 2^n * e^r with n = round(x / ln 2), |r| <= ln 2 / 2, and the minimax
 * polynomial q of e^r - 1 = r + r^2 q(r), fitted by Remez' exchange to a relative error of
 * e^r below 3.2e-9 (float) and 5.4e-20 (double). ln 2 is split in a high part, whose
 * product with n is exact, and a low part.
 *
 * Bounds, held by tests/test_activations.py:
 *     float:  tanh 4 ulp, sigmoid 3 ulp, in the tails too
 *     double: tanh 4 ulp, sigmoid 4 ulp
 * NaN passes through. tanh is exactly +-1 where it is saturated and keeps the sign of zero.
 */
#if RK_DOUBLE
#define RK_EXP_LIMIT 708.0      /* e^x and 2^n stay normal on both sides */
#define RK_TANH_LIMIT 22.0      /* tanh rounds to 1 from 19.1 on */
#define RK_ROUND 0x1.8p52       /* adding it rounds to an integer, whose bits lie lowest */
#define RK_MANTISSA 52
#define RK_BIAS 1023
#define RK_LN2_HIGH 0x1.62e42fefa3800p-1
#define RK_LN2_LOW 5.4979230187083711747e-14
#else
#define RK_EXP_LIMIT 87.0f
#define RK_TANH_LIMIT 10.0f
#define RK_ROUND 0x1.8p23f
#define RK_MANTISSA 23
#define RK_BIAS 127
#define RK_LN2_HIGH 0x1.62e4p-1f
#define RK_LN2_LOW 1.4286068203094172e-6f
#endif

/* *scale = 2^n and e^r - 1, for |x| <= RK_EXP_LIMIT */
RK_INLINE vec RK(vexp_parts)(vec x, vec *scale)
{
    vec shifted = RK(vfma)(x, RK(vset)((real)1.442695040888963407359925), RK(vset)(RK_ROUND));
    vec n = shifted - RK_ROUND;
    *scale = (vec)((((ivec)shifted) + (ivec)(RK_BIAS - (ivec){0})) << RK_MANTISSA);
    vec r = RK(vfma)(n, RK(vset)(-RK_LN2_HIGH), x);
    r = RK(vfma)(n, RK(vset)(-RK_LN2_LOW), r);
#if RK_DOUBLE
    vec q = RK(vset)(2.0926894773110787528e-9);
    q = RK(vfma)(q, r, RK(vset)(2.511224023723966207e-8));
    q = RK(vfma)(q, r, RK(vset)(2.7557233523463228355e-7));
    q = RK(vfma)(q, r, RK(vset)(2.7557234235535262677e-6));
    q = RK(vfma)(q, r, RK(vset)(2.4801587373539681506e-5));
    q = RK(vfma)(q, r, RK(vset)(1.9841269897060359054e-4));
    q = RK(vfma)(q, r, RK(vset)(1.3888888888858550354e-3));
    q = RK(vfma)(q, r, RK(vset)(8.3333333333167379635e-3));
    q = RK(vfma)(q, r, RK(vset)(4.1666666666666724271e-2));
    q = RK(vfma)(q, r, RK(vset)(1.6666666666666683845e-1));
    q = RK(vfma)(q, r, RK(vset)(0.5));
#else
    vec q = RK(vset)(1.3950491828471214928e-3f);
    q = RK(vfma)(q, r, RK(vset)(8.3688893524349748782e-3f));
    q = RK(vfma)(q, r, RK(vset)(4.1666205791351815232e-2f));
    q = RK(vfma)(q, r, RK(vset)(1.6666518839692637125e-1f));
    q = RK(vfma)(q, r, RK(vset)(0.5f));
#endif
    return RK(vfma)(q, r * r, r);
}

/* 1 / (1 + e^-x) */
RK_INLINE vec RK(vsigmoid)(vec x)
{
    x = RK(vmin)(RK(vset)(RK_EXP_LIMIT), RK(vmax)(RK(vset)(-RK_EXP_LIMIT), x));
    vec scale, e = RK(vexp_parts)(-x, &scale);
    return 1 / (1 + RK(vfma)(e, scale, scale));
}

/* (e^2a - 1) / (e^2a + 1) of a = |x|, where e^2a - 1 = 2^n (e^r - 1) + (2^n - 1) loses nothing near 0 */
RK_INLINE vec RK(vtanh)(vec x)
{
    ivec sign = (ivec)RK(vset)((real)-0.0) & (ivec)x;
    vec a = (vec)(sign ^ (ivec)x);
    a = RK(vmin)(RK(vset)(RK_TANH_LIMIT), a);
    vec scale, e = RK(vexp_parts)(a + a, &scale);
    e = RK(vfma)(e, scale, scale - 1);
    return (vec)((ivec)(e / (e + 2)) | sign);
}

#undef RK_EXP_LIMIT
#undef RK_TANH_LIMIT
#undef RK_ROUND
#undef RK_MANTISSA
#undef RK_BIAS
#undef RK_LN2_HIGH
#undef RK_LN2_LOW

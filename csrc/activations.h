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
#define RK_EXP_LIMIT 709.0      /* 2^n stays finite; below, e^x is 0 from some point on */
#define RK_TANH_LIMIT 22.0      /* tanh rounds to 1 from 19.1 on */
#define RK_ROUND 0x1.8p52       /* adding it rounds to an integer, whose bits lie lowest */
#define RK_MANTISSA 52
#define RK_BIAS 1023
#define RK_LN2_HIGH 0x1.62e42fefa3800p-1
#define RK_LN2_LOW 5.4979230187083711747e-14
#else
#define RK_EXP_LIMIT 88.0f
#define RK_TANH_LIMIT 10.0f
#define RK_ROUND 0x1.8p23f
#define RK_MANTISSA 23
#define RK_BIAS 127
#define RK_LN2_HIGH 0x1.62e4p-1f
#define RK_LN2_LOW 1.4286068203094172e-6f
#endif

/* In lockstep over `count` vectors, stage by stage: the chain of one is 70 cycles long, and a
 * core looks ahead too little to find the next one behind it by itself.
 *
 * scale = 2^n and x = e^r - 1, for |x| <= RK_EXP_LIMIT */
RK_INLINE void RK(vexp_parts)(const int count, vec *x, vec *scale)
{
#define RK_HORNER(coefficient)                                                                     \
    RK_FOR (j, count)                                                                              \
    q[j] = RK(vfma)(q[j], x[j], RK(vset)(coefficient))
    vec n[4], q[4];
    RK_FOR (j, count)
        scale[j] = RK(vfma)(x[j], RK(vset)((real)1.442695040888963407359925), RK(vset)(RK_ROUND));
    RK_FOR (j, count)
        n[j] = scale[j] - RK_ROUND;
    RK_FOR (j, count)
        scale[j] = (vec)((((ivec)scale[j]) + (ivec)(RK_BIAS - (ivec){0})) << RK_MANTISSA);
    RK_FOR (j, count)
        x[j] = RK(vfma)(n[j], RK(vset)(-RK_LN2_HIGH), x[j]);
    RK_FOR (j, count)
        x[j] = RK(vfma)(n[j], RK(vset)(-RK_LN2_LOW), x[j]);
#if RK_DOUBLE
    RK_FOR (j, count)
        q[j] = RK(vset)(2.0926894773110787528e-9);
    RK_HORNER(2.511224023723966207e-8);
    RK_HORNER(2.7557233523463228355e-7);
    RK_HORNER(2.7557234235535262677e-6);
    RK_HORNER(2.4801587373539681506e-5);
    RK_HORNER(1.9841269897060359054e-4);
    RK_HORNER(1.3888888888858550354e-3);
    RK_HORNER(8.3333333333167379635e-3);
    RK_HORNER(4.1666666666666724271e-2);
    RK_HORNER(1.6666666666666683845e-1);
    RK_HORNER(0.5);
#else
    RK_FOR (j, count)
        q[j] = RK(vset)(1.3950491828471214928e-3f);
    RK_HORNER(8.3688893524349748782e-3f);
    RK_HORNER(4.1666205791351815232e-2f);
    RK_HORNER(1.6666518839692637125e-1f);
    RK_HORNER(0.5f);
#endif
    RK_FOR (j, count)
        x[j] = RK(vfma)(q[j], x[j] * x[j], x[j]);
#undef RK_HORNER
}

/* Each of `count` vectors (at most four) through its activation: tanh where its bit of `tanhs` is
 * set, else the sigmoid.
 *
 *     sigmoid: 1 / (1 + e^-x)
 *     tanh:    (e^2a - 1) / (e^2a + 1) of a = |x|, where e^2a - 1 = 2^n (e^r - 1) + (2^n - 1)
 *              loses nothing near 0 */
RK_INLINE void RK(vactivate)(const int count, const unsigned tanhs, vec *x)
{
#define RK_TANH (tanhs >> j & 1)
    const ivec sign_bit = (ivec)RK(vset)((real)-0.0);
    ivec sign[4];
    vec scale[4];
    RK_FOR (j, count)
        sign[j] = sign_bit & (ivec)x[j];
    RK_FOR (j, count)
        x[j] = RK_TANH ? (vec)(sign[j] ^ (ivec)x[j]) : RK(vmax)(RK(vset)(-RK_EXP_LIMIT), x[j]);
    RK_FOR (j, count)
        x[j] = RK(vmin)(RK(vset)(RK_TANH ? RK_TANH_LIMIT : RK_EXP_LIMIT), x[j]);
    RK_FOR (j, count)
        x[j] = RK_TANH ? x[j] + x[j] : (vec)(sign_bit ^ (ivec)x[j]);
    RK(vexp_parts)(count, x, scale);
    RK_FOR (j, count)
        x[j] = RK(vfma)(x[j], scale[j], RK_TANH ? scale[j] - 1 : scale[j]);
    RK_FOR (j, count)
        x[j] = RK_TANH ? x[j] / (x[j] + 2) : 1 / (1 + x[j]);
    RK_FOR (j, count)
        x[j] = RK_TANH ? (vec)((ivec)x[j] | sign[j]) : x[j];
#undef RK_TANH
}

RK_INLINE vec RK(vsigmoid)(vec x)
{
    RK(vactivate)(1, 0, &x);
    return x;
}

RK_INLINE vec RK(vtanh)(vec x)
{
    RK(vactivate)(1, 1, &x);
    return x;
}

#undef RK_EXP_LIMIT
#undef RK_TANH_LIMIT
#undef RK_ROUND
#undef RK_MANTISSA
#undef RK_BIAS
#undef RK_LN2_HIGH
#undef RK_LN2_LOW

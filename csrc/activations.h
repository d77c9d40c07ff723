/* activations.h - tanh and sigmoid, and the exponential.
 *
 * All rest on e^-r = 1 - r + r^2 q(-r) for |r| <= ln 2 / 2, where q was fitted by Remez' exchange
 * to a relative error of e^r below 3.2e-9 (float) and 5.4e-20 (double):
 *
 *     sigmoid: 1 / (1 + 2^n e^-r)
 *              with n = round(-x / ln 2) and r = x + n ln 2. ln 2 is split in a high part, whose
 *              product with n is exact, and a low part
 *     tanh:    m / (2 - m), where m = 1 - e^-2a = 2^n (1 - e^-2r) + (1 - 2^n) of a = |x|
 *              loses nothing near 0; n = round(-2a / ln 2) and r = a + n ln 2 / 2, whose error
 *              vanishes with 2^n, so ln 2 needs no low part. (1 - e^-2r) / r = 2 - 4 r q(-2r)
 *
 * Bounds, held by tests/test_activations.py:
 *     float:  tanh 4 ulp, sigmoid 3 ulp, in the tails too
 *     double: tanh 4 ulp, sigmoid 4 ulp
 * and of e^-x by tests/test_readout.py: the less likely of two classes has 6 epsilons.
 * NaN passes through. tanh is exactly +-1 where it is saturated and keeps the sign of zero.
 */
#if RK_DOUBLE
#define RK_EXP_LIMIT 709.0 /* 2^n stays finite; below, e^x is 0 from some point on */
#define RK_TANH_LIMIT 22.0 /* tanh rounds to 1 from 19.1 on */
#define RK_MANTISSA 52
#define RK_BIAS 1023
#define RK_INTEGER 0x1.8p52 /* adding it rounds to an integer, whose bits lie lowest */
#define RK_LN2 0.693147180559945309417
#define RK_LN2_HIGH 0x1.62e42fefa3800p-1
#define RK_LN2_LOW 5.4979230187083711747e-14
#else
#define RK_EXP_LIMIT 88.0f
#define RK_TANH_LIMIT 10.0f
#define RK_MANTISSA 23
#define RK_BIAS 127
#define RK_INTEGER 0x1.8p23f
#define RK_LN2 0.693147180559945309417f
#define RK_LN2_HIGH 0x1.62e4p-1f
#define RK_LN2_LOW 1.4286068203094172e-6f
#endif
#define RK_ROUND                                                                                   \
    (RK_INTEGER + RK_BIAS) /* the same, and lowest lie the bits of a power's exponent */

/* The activations of `count` vectors (at most eight) as fractions: of tanh where the bit of `tanhs`
 * is set, else of the sigmoid, whose top is 1. Products of activations then take one division:
 * bottoms are at least 1, and those of a sigmoid and a tanh multiply without overflow. In lockstep,
 * stage by stage: the chain of one is 80 cycles long, and a core looks ahead too little to find the
 * next one behind it by itself. A bare bottom is e^-x. */
RK_INLINE void RK(vstages)(const int count, const unsigned tanhs, const int bare, const vec *x,
                           vec *top, vec *bottom)
{
#define RK_TANH (tanhs >> j & 1)
#define RK_EACH(result, of_tanh, of_sigmoid)                                                       \
    RK_FOR (j, count)                                                                              \
    result = RK_TANH ? (of_tanh) : (of_sigmoid)
/* of q's coefficient of a power: what stands for it in -4 q(-2r) and in q(-r) */
#define RK_COEFFICIENT(power, q)                                                                   \
    RK(vset)(((power) % 2 ? -1 : 1) * (RK_TANH ? -(4 << (power)) : 1) * (q))
#define RK_HORNER(power, q)                                                                        \
    RK_FOR (j, count)                                                                              \
    p[j] = RK(vfma)(p[j], r[j], RK_COEFFICIENT(power, q))
    const vec one = RK(vset)(1), two = RK(vset)(2);
    vec a[8], n[8], scale[8], r[8], p[8];
    RK_EACH(a[j], RK(vabs)(x[j]), RK(vmax)(RK(vset)(-RK_EXP_LIMIT), x[j]));
    RK_FOR (j, count)
        a[j] = RK(vmin)(RK(vset)(RK_TANH ? RK_TANH_LIMIT : RK_EXP_LIMIT), a[j]);
    RK_FOR (j, count)
        n[j] = RK(vfma)(a[j], RK(vset)((RK_TANH ? -2 : -1) / RK_LN2), RK(vset)(RK_ROUND));
    RK_FOR (j, count)
        scale[j] = (vec)((ivec)n[j] << RK_MANTISSA); /* 2^n; 0 for the least n */
    RK_FOR (j, count)
        n[j] = n[j] - RK_ROUND;
    RK_FOR (j, count)
        r[j] = RK(vfma)(n[j], RK(vset)(RK_TANH ? RK_LN2 / 2 : RK_LN2_HIGH), a[j]);
    RK_EACH(r[j], r[j], RK(vfma)(n[j], RK(vset)(RK_LN2_LOW), r[j]));
#if RK_DOUBLE
    RK_FOR (j, count)
        p[j] = RK_COEFFICIENT(10, 2.0926894773110787528e-9);
    RK_HORNER(9, 2.511224023723966207e-8);
    RK_HORNER(8, 2.7557233523463228355e-7);
    RK_HORNER(7, 2.7557234235535262677e-6);
    RK_HORNER(6, 2.4801587373539681506e-5);
    RK_HORNER(5, 1.9841269897060359054e-4);
    RK_HORNER(4, 1.3888888888858550354e-3);
    RK_HORNER(3, 8.3333333333167379635e-3);
    RK_HORNER(2, 4.1666666666666724271e-2);
    RK_HORNER(1, 1.6666666666666683845e-1);
#else
    RK_FOR (j, count)
        p[j] = RK_COEFFICIENT(4, 1.3950491848471214928e-3f);
    RK_HORNER(3, 8.3688893524349748782e-3f);
    RK_HORNER(2, 4.1666205791351815232e-2f);
    RK_HORNER(1, 1.6666518839692637125e-1f);
#endif
    RK_HORNER(0, (real)0.5);
    RK_EACH(p[j], RK(vfma)(p[j], r[j], two), RK(vfma)(p[j], r[j], -one));
    RK_EACH(r[j], r[j] * scale[j], RK(vfma)(p[j], r[j], one));
    RK_EACH(r[j], RK(vfma)(p[j], r[j], one - scale[j]),
            bare ? r[j] * scale[j] : RK(vfma)(r[j], scale[j], one));
    RK_EACH(bottom[j], two - r[j], r[j]);
    RK_EACH(top[j], RK(vsigned)(r[j], x[j]), one);
#undef RK_HORNER
#undef RK_COEFFICIENT
#undef RK_EACH
#undef RK_TANH
}

RK_INLINE void RK(vfractions)(const int count, const unsigned tanhs, const vec *x, vec *top,
                              vec *bottom)
{
    RK(vstages)(count, tanhs, 0, x, top, bottom);
}

/* e^-x, of x >= 0; 0 from RK_EXP_LIMIT on. */
RK_INLINE void RK(vexp_minus)(const int count, vec *x)
{
    vec top[8], bottom[8];
    RK(vstages)(count, 0, 1, x, top, bottom);
    RK_FOR (j, count)
        x[j] = bottom[j];
}

/* Fractions as numbers. */
RK_INLINE void RK(vactivate)(const int count, const unsigned tanhs, vec *x)
{
    vec top[8], bottom[8];
    RK(vfractions)(count, tanhs, x, top, bottom);
    RK_FOR (j, count)
        x[j] = top[j] / bottom[j];
}

RK_INLINE vec RK(vtanh)(vec x)
{
    RK(vactivate)(1, 1, &x);
    return x;
}

#undef RK_EXP_LIMIT
#undef RK_TANH_LIMIT
#undef RK_ROUND
#undef RK_INTEGER
#undef RK_MANTISSA
#undef RK_BIAS
#undef RK_LN2
#undef RK_LN2_HIGH
#undef RK_LN2_LOW

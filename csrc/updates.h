/* updates.h - what training does with gradients: Adam's step, sums of squares and of rows. */

enum { RK(SQUARE_LANES) = 16 };

/* Adam (Kingma & Ba, 2015), with decoupled weight decay (Loshchilov & Hutter, 2019):
 *
 *     m = b1 m + (1 - b1) g
 *     v = b2 v + (1 - b2) g^2
 *     p = decay p - rate m / (sqrt(v) + eps)
 *
 * rate and eps have the corrections of the bias in them. Where there is nothing to divide by, which
 * takes an eps of 0 and a gradient that never was another, p stays.
 */
static void RK(adam)(const rk_adam *p)
{
    const vec beta1 = RK(vset)((real)p->beta1), rest1 = RK(vset)((real)(1 - p->beta1));
    const vec beta2 = RK(vset)((real)p->beta2), rest2 = RK(vset)((real)(1 - p->beta2));
    const vec rate = RK(vset)((real)p->rate), eps = RK(vset)((real)p->eps);
    const vec decay = RK(vset)((real)p->decay);
    real *parameter = p->parameter, *mean = p->mean, *square = p->square;
    const real *gradient = p->gradient;
    for (ptrdiff_t i = 0; i < p->count; i += LANES) {
        const ptrdiff_t n = p->count - i;
        const vec g = RK(vload_part)(gradient + i, n);
        const vec m = RK(vfma)(rest1, g, beta1 * RK(vload_part)(mean + i, n));
        const vec v = RK(vfma)(rest2, g * g, beta2 * RK(vload_part)(square + i, n));
        const vec divisor = RK(vsqrt)(v) + eps;
        const vec step = RK(vselect)(divisor == 0, (vec){0}, rate * m / divisor);
        RK(vstore_part)(mean + i, m, n);
        RK(vstore_part)(square + i, v, n);
        RK(vstore_part)(parameter + i, decay * RK(vload_part)(parameter + i, n) - step, n);
    }
}

/* In double, in an order that no instruction set changes. */
static double RK(sum_of_squares)(const void *numbers, ptrdiff_t count)
{
    const real *a = numbers;
    double sums[RK(SQUARE_LANES)] = {0};
    ptrdiff_t i = 0;
    for (; i + RK(SQUARE_LANES) <= count; i += RK(SQUARE_LANES))
        RK_FOR (j, RK(SQUARE_LANES))
            sums[j] += (double)a[i + j] * (double)a[i + j];
    for (int j = 0; i < count; i++, j++)
        sums[j] += (double)a[i] * (double)a[i];
    for (int half = RK(SQUARE_LANES) / 2; half > 0; half /= 2)
        for (int j = 0; j < half; j++)
            sums[j] += sums[j + half];
    return sums[0];
}

/* In double, where a factor may be that float has no number for. */
static void RK(scale)(void *numbers, ptrdiff_t count, double factor)
{
    real *a = numbers;
    for (ptrdiff_t i = 0; i < count; i++)
        a[i] = (real)(a[i] * factor);
}

/* sums[c] += rows of so many columns, one after another, in double. */
static void RK(sum_of_rows)(const void *rows, ptrdiff_t count, ptrdiff_t columns, double *sums)
{
    const real *row = rows;
    for (; count > 0; count--, row += columns)
        for (ptrdiff_t c = 0; c < columns; c++)
            sums[c] += (double)row[c];
}

/* arrival.h - between the steps of BPTT: dy joins what came from the step after, the norms
 * are recorded, clipping acts; and the sums over rows that are the bias gradients. */

/* Euclidean norm without overflow or underflow on the way; NaN if an element is. */
static double RK(row_norm)(const real *row, ptrdiff_t n)
{
    double largest = 0, sum = 0;
    for (ptrdiff_t j = 0; j < n; j++) {
        const double size = __builtin_fabs((double)row[j]);
        largest = size > largest ? size : largest;
        sum += size * size;
    }
    if (__builtin_isnan(sum)) return sum;
    if (!(sum < 1e-280 || sum > 1e280) || largest == 0 || __builtin_isinf(largest))
        return __builtin_isinf(largest) ? largest : __builtin_sqrt(sum);
    sum = 0;
    for (ptrdiff_t j = 0; j < n; j++) {
        const double share = row[j] / largest;
        sum += share * share;
    }
    return largest * __builtin_sqrt(sum);
}

/* Returns whether anything changed. */
static int RK(clip_row)(real *row, ptrdiff_t n, double limit, double norm_limit)
{
    const real most = (real)limit;
    int changed = 0;
    for (ptrdiff_t j = 0; j < n; j++) {
        const real clipped = row[j] > most ? most : row[j] < -most ? -most : row[j];
        changed |= clipped != row[j] && row[j] == row[j];
        row[j] = clipped;
    }
    if (__builtin_isinf(norm_limit)) return changed;
    const double norm = RK(row_norm)(row, n);
    if (!(norm > norm_limit)) return changed;
    const double scale = norm_limit / norm;
    for (ptrdiff_t j = 0; j < n; j++)
        row[j] = (real)(row[j] * scale);
    return 1;
}

static void RK(arrive)(const rk_arrival *p)
{
    const int clips = !(__builtin_isinf(p->limit) && __builtin_isinf(p->norm_limit));
    const ptrdiff_t count = p->order ? p->ordered : p->rows;
    for (ptrdiff_t k = 0; k < count; k++) {
        const ptrdiff_t row = p->order ? p->order[k] - p->first : k;
        if (row < 0 || row >= p->rows) continue;
        real *dh = (real *)p->dh + row * p->pitch;
        real *dc = p->dc ? (real *)p->dc + row * p->pitch : NULL;
        if (p->dy) {
            const real *dy = (const real *)p->dy + p->dy_row[row];
            if (p->dy_unit == 1)
                for (ptrdiff_t j = 0; j < p->projected; j++)
                    dh[j] += dy[j];
            else
                for (ptrdiff_t j = 0; j < p->projected; j++)
                    dh[j] += dy[j * p->dy_unit];
        }
        if (p->dh_norm) p->dh_norm[row] = RK(row_norm)(dh, p->projected);
        if (p->dc_norm) p->dc_norm[row] = RK(row_norm)(dc, p->hidden);
        if (p->dh_kept)
            __builtin_memcpy((real *)p->dh_kept + row * p->projected, dh,
                             p->projected * sizeof(real));
        if (p->dc_kept)
            __builtin_memcpy((real *)p->dc_kept + row * p->hidden, dc, p->hidden * sizeof(real));
        if (!clips) continue;
        int changed = RK(clip_row)(dh, p->projected, p->limit, p->norm_limit);
        if (dc) changed |= RK(clip_row)(dc, p->hidden, p->limit, p->norm_limit);
        if (p->clipped) p->clipped[row] = (unsigned char)changed;
    }
}

/* Vectors of doubles that one of reals becomes. */
enum { RK(WIDENED) = sizeof(double) / sizeof(real) };
typedef real RK(narrow) __attribute__((vector_size(RK_VECTOR_BYTES / RK(WIDENED))));
typedef double RK(wide) __attribute__((vector_size(RK_VECTOR_BYTES)));

/* In double: of a long input single rows would vanish in what has been summed. n is a constant: as
 * a variable, the sums would be in memory. */
RK_INLINE void RK(add_rows)(const int n, ptrdiff_t rows, ptrdiff_t row_stride, const real *from,
                            double *to)
{
    RK(wide) sum[4 * RK(WIDENED)];
    RK_FOR (j, n * RK(WIDENED))
        __builtin_memcpy(&sum[j], to + j * (LANES / RK(WIDENED)), sizeof sum[j]);
    for (; rows > 0; rows--, from += row_stride) {
        RK_FOR (j, n * RK(WIDENED)) {
            RK(narrow) some;
            __builtin_memcpy(&some, from + j * (LANES / RK(WIDENED)), sizeof some);
            sum[j] += __builtin_convertvector(some, RK(wide));
        }
    }
    RK_FOR (j, n * RK(WIDENED))
        __builtin_memcpy(to + j * (LANES / RK(WIDENED)), &sum[j], sizeof sum[j]);
}

static void RK(row_sums)(const rk_row_sums *p)
{
    for (ptrdiff_t v = 0; v < p->vectors; v += 4) {
        const real *from = (const real *)p->dgates + v * LANES;
        double *to = p->sums + v * LANES;
        switch (p->vectors - v) {
        case 1: RK(add_rows)(1, p->rows, p->row_stride, from, to); break;
        case 2: RK(add_rows)(2, p->rows, p->row_stride, from, to); break;
        case 3: RK(add_rows)(3, p->rows, p->row_stride, from, to); break;
        default: RK(add_rows)(4, p->rows, p->row_stride, from, to);
        }
    }
}

/* loss.h - the cross-entropy of a softmax, and its gradient.
 *
 *     p_c = e^(x_c - max x) / sum        dx_c = share (p_c - [c is the target])
 *
 * and the loss is log(sum) + max x - x_target, of which the logarithm is left to the caller.
 */

/* The next of n elements; past them nothing that e^ leaves. Where `room` is a whole vector it is
 * read as one, since a part takes as long as a short row. */
RK_INLINE vec RK(vload_logits)(const real *x, ptrdiff_t n, ptrdiff_t room)
{
    if (n >= LANES) return RK(vload)(x);
    vec v = RK(vset)((real)-__builtin_inf());
    if (room < LANES) {
        __builtin_memcpy(&v, x, (size_t)n * sizeof(real));
        return v;
    }
    ivec lane;
    RK_FOR (j, RK(LANES))
        lane[j] = j;
    return RK(vselect)(lane < (integer)n, RK(vload)(x), v);
}

/* Also writes what is between n and `room`, which is yet to be written. */
RK_INLINE void RK(vstore_logits)(real *x, vec v, ptrdiff_t n, ptrdiff_t room)
{
    if (room >= LANES)
        RK(vstore)(x, v);
    else
        RK(vstore_part)(x, v, n);
}

static void RK(cross_entropy)(const rk_cross_entropy *p)
{
    const ptrdiff_t C = p->classes;
    for (ptrdiff_t row = 0; row < p->positions; row++) {
        const real *x = (const real *)p->logits + row * C;
        real *dx = (real *)p->dlogits + row * C;
        const ptrdiff_t room = (p->positions - row) * C; /* rows come one after another */
        vec most = RK(vset)((real)-__builtin_inf()), sum = {0};
        for (ptrdiff_t c = 0; c < C; c += LANES)
            most = RK(vmax)(most, RK(vload_logits)(x + c, C - c, room - c));
        real highest = most[0], total = 0;
        for (ptrdiff_t j = 1; j < LANES; j++)
            highest = most[j] > highest ? most[j] : highest;

        const vec top = RK(vset)(highest);
        ptrdiff_t c = 0;
        for (; c + 4 * LANES <= C; c += 4 * LANES) {
            vec e[4];
            RK_FOR (j, 4)
                e[j] = top - RK(vload)(x + c + j * LANES);
            RK(vexp_minus)(4, e);
            RK_FOR (j, 4)
                RK(vstore)(dx + c + j * LANES, e[j]);
            sum += (e[0] + e[1]) + (e[2] + e[3]);
        }
        for (; c < C; c += LANES) {
            vec e = top - RK(vload_logits)(x + c, C - c, room - c);
            RK(vexp_minus)(1, &e);
            RK(vstore_logits)(dx + c, e, C - c, room - c);
            sum += e;
        }
        for (ptrdiff_t j = 0; j < LANES; j++)
            total += sum[j];
        p->totals[row] = total;
        p->below[row] = (double)highest - (double)x[p->targets[row]];

        const vec scale = RK(vset)((real)p->share / total);
        for (c = 0; c < C; c += LANES) {
            const ptrdiff_t n = room - c < LANES ? C - c : LANES;
            RK(vstore_logits)(dx + c, scale * RK(vload_part)(dx + c, n), C - c, room - c);
        }
        /* in this form the gradient of a position sums to zero up to rounding */
        dx[p->targets[row]] -= (real)p->share;
    }
}

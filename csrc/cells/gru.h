/* cells/gru.h - GRU (Cho et al. 2014), with the reset gate after or before the matrix.
 *
 *     r_t, z_t = sigmoid(W_i. x_t + b_i. + W_h. h_{t-1} + b_h.)
 *     reset after (cuDNN, PyTorch):
 *         m_t = W_hn h_{t-1} + b_hn;  n_t = tanh(W_in x_t + b_in + r_t m_t)    slots n r z m
 *     reset before (the paper, ONNX):
 *         n_t = tanh(W_in x_t + b_in + W_hn (r_t h_{t-1}) + b_hn)              slots n r z
 *     h_t = (1 - z_t) n_t + z_t h_{t-1}
 *
 *     dz_t = dh_t (h_{t-1} - n_t)      dn_t = dh_t (1 - z_t)      dh_{t-1} = dh_t z_t + ...
 *     da_t = dn_t (1 - n_t^2)                                     of n's pre-activation
 *     reset after:  dr_t = da_t m_t, dm_t = da_t r_t
 *     reset before: d(r h)_t = W_hn' da_t, dr_t = d(r h)_t h_{t-1}, dh_{t-1} += d(r h)_t r_t
 *     times s (1 - s) for the arguments of r and z; x (1 - s) is x - x s, rounded once
 *
 * Slots are ordered so that what W_ih fills and what W_hh fills are each one window: with
 * reset after W_ih fills n r z and W_hh fills r z m. Reset before takes two phases, r and z
 * of all units before any n, and two vectors to a slot, to fill the tile of either.
 */
enum { RK(GRU_SLOTS) = 4, RK(GRU_BEFORE_SLOTS) = 3, RK(GRU_BEFORE_VECTORS) = 2 };

/* h_t in one division, of z as 1 / z and n as a fraction: ((z - 1) n + h_{t-1}) / z. */
RK_INLINE vec RK(gru_h)(vec z, vec n_top, vec n_bottom, vec h_prev)
{
    return RK(vfma)(h_prev, n_bottom, (z - 1) * n_top) / (z * n_bottom);
}

/* One or two rows of one block. */
RK_INLINE void RK(gru_after_rows)(const rk_step *s, ptrdiff_t block, ptrdiff_t row, const int rows)
{
    const ptrdiff_t unit = block * LANES;
    real *gate[2];
    vec rz[4], rz_top[4], rz_bottom[4], r[2], n[2], n_top[2], n_bottom[2];
    RK_FOR (m, rows) {
        gate[m] = (real *)s->gates + block * s->gates_block + s->gates_row[row + m];
        rz[2 * m] = RK(vload)(gate[m] + LANES);
        rz[2 * m + 1] = RK(vload)(gate[m] + 2 * LANES);
    }
    RK(vfractions)(2 * rows, 0, rz, rz_top, rz_bottom);
    RK_FOR (m, rows) {
        r[m] = 1 / rz_bottom[2 * m];
        n[m] = RK(vfma)(r[m], RK(vload)(gate[m] + 3 * LANES), RK(vload)(gate[m]));
    }
    RK(vfractions)(rows, ~0u, n, n_top, n_bottom);
    RK_FOR (m, rows) {
        const vec z = rz_bottom[2 * m + 1];
        const vec h_prev = RK(vload)((const real *)s->h_prev + (row + m) * s->h_pitch + unit);
        if (s->keeps) {
            RK(vstore)(gate[m], n_top[m] * RK(vreciprocal)(n_bottom[m]));
            RK(vstore)(gate[m] + LANES, r[m]);
            RK(vstore)(gate[m] + 2 * LANES, RK(vreciprocal)(z));
        }
        RK(store_h)(s, row + m, unit, s->hidden - unit,
                    RK(gru_h)(z, n_top[m], n_bottom[m], h_prev));
    }
}

static void RK(gru_after_epilogue)(const void *context, ptrdiff_t block0, ptrdiff_t blocks,
                                   ptrdiff_t row0, ptrdiff_t rows)
{
    const rk_step *s = context;
    block0 += s->block_begin;
    RK_BY_FEW_ROWS(2, block0, block0 + blocks, row0, rows, RK(gru_after_rows)(s, block, row, count))
}

static void RK(gru_after_forward)(const rk_step *s)
{
    RK(forward_step)(s, 1, 1, 3, RK(gru_after_epilogue));
}

static void RK(gru_after_backward)(const rk_step_backward *s)
{
    RK_FOR_UNITS (1, s->hidden, s->block_begin, s->block_end, 0, s->rows) {
        const real *gate = (const real *)s->gates + block * s->gates_block + s->gates_row[row];
        real *dgate = (real *)s->dgates + block * s->dgates_block + s->dgates_row[row];
        real *dh_at = (real *)s->dh + row * s->dh_pitch + unit;
        vec n = RK(vload)(gate), r = RK(vload)(gate + LANES);
        vec z = RK(vload)(gate + 2 * LANES), m = RK(vload)(gate + 3 * LANES);
        vec h_prev = RK(vload_part)((const real *)s->h_prev + s->h_prev_row[row] + unit, valid);
        vec dh = RK(vload)(dh_at);
        vec dn = RK(vfnma)(dh, z, dh);
        vec da = dn * RK(vfnma)(n, n, RK(vset)(1)), dm = da * r;
        RK(vstore)(dgate, da);
        RK(vstore)(dgate + LANES, dm * RK(vfnma)(m, r, m));
        RK(vstore)(dgate + 2 * LANES, dn * z * (h_prev - n));
        RK(vstore)(dgate + 3 * LANES, dm);
        RK(vstore)(dh_at, dh * z);
    }
}

/* First phase, one or two rows of one block: r, z as 1 / z, and r * h_{t-1} as the operand of the
 * second. */
RK_INLINE void RK(gru_before_reset_rows)(const rk_step *s, ptrdiff_t block, ptrdiff_t row,
                                         const int rows)
{
    const ptrdiff_t slot = RK(GRU_BEFORE_VECTORS) * LANES;
    for (ptrdiff_t at = 0; at < slot && block * slot + at < s->hidden; at += LANES) {
        real *gate[2];
        vec rz[4], top[4], bottom[4];
        RK_FOR (m, rows) {
            gate[m] = (real *)s->gates + block * s->gates_block + s->gates_row[row + m] + at;
            rz[2 * m] = RK(vload)(gate[m] + slot);
            rz[2 * m + 1] = RK(vload)(gate[m] + 2 * slot);
        }
        RK(vfractions)(2 * rows, 0, rz, top, bottom);
        RK_FOR (m, rows) {
            const ptrdiff_t place = (row + m) * s->h_pitch + block * slot + at;
            const vec r = 1 / bottom[2 * m];
            if (s->keeps) RK(vstore)(gate[m] + slot, r);
            RK(vstore)(gate[m] + 2 * slot, bottom[2 * m + 1]);
            RK(vstore)((real *)s->h + place, r * RK(vload)((const real *)s->h_prev + place));
        }
    }
}

static void RK(gru_before_reset_epilogue)(const void *context, ptrdiff_t block0, ptrdiff_t blocks,
                                          ptrdiff_t row0, ptrdiff_t rows)
{
    const rk_step *s = context;
    block0 += s->block_begin;
    RK_BY_FEW_ROWS(2, block0, block0 + blocks, row0, rows,
                   RK(gru_before_reset_rows)(s, block, row, count))
}

/* Second phase: n and h. */
RK_INLINE void RK(gru_before_rows)(const rk_step *s, ptrdiff_t block, ptrdiff_t row, const int rows)
{
    const ptrdiff_t slot = RK(GRU_BEFORE_VECTORS) * LANES;
    for (ptrdiff_t at = 0; at < slot && block * slot + at < s->hidden; at += LANES) {
        const ptrdiff_t unit = block * slot + at;
        real *gate[2];
        vec n[2], top[2], bottom[2];
        RK_FOR (m, rows) {
            gate[m] = (real *)s->gates + block * s->gates_block + s->gates_row[row + m] + at;
            n[m] = RK(vload)(gate[m]);
        }
        RK(vfractions)(rows, ~0u, n, top, bottom);
        RK_FOR (m, rows) {
            const vec z = RK(vload)(gate[m] + 2 * slot);
            const vec h_prev = RK(vload)((const real *)s->h_prev + (row + m) * s->h_pitch + unit);
            if (s->keeps) {
                RK(vstore)(gate[m], top[m] * RK(vreciprocal)(bottom[m]));
                RK(vstore)(gate[m] + 2 * slot, RK(vreciprocal)(z));
            }
            RK(store_h)(s, row + m, unit, s->hidden - unit,
                        RK(gru_h)(z, top[m], bottom[m], h_prev));
        }
    }
}

static void RK(gru_before_epilogue)(const void *context, ptrdiff_t block0, ptrdiff_t blocks,
                                    ptrdiff_t row0, ptrdiff_t rows)
{
    const rk_step *s = context;
    block0 += s->block_begin;
    RK_BY_FEW_ROWS(2, block0, block0 + blocks, row0, rows,
                   RK(gru_before_rows)(s, block, row, count))
}

static void RK(gru_before_reset_forward)(const rk_step *s)
{
    RK(forward_step)(s, RK(GRU_BEFORE_VECTORS), 1, 2, RK(gru_before_reset_epilogue));
}

static void RK(gru_before_forward)(const rk_step *s)
{
    RK(forward_step)(s, RK(GRU_BEFORE_VECTORS), 0, 1, RK(gru_before_epilogue));
}

/* Of the second phase: dn, dz and the direct part of dh_{t-1}; r * h_{t-1} again, for dW_hn. */
static void RK(gru_before_backward)(const rk_step_backward *s)
{
    RK_FOR_UNITS (RK(GRU_BEFORE_VECTORS), s->hidden, s->block_begin, s->block_end, 0, s->rows) {
        const ptrdiff_t slot = RK(GRU_BEFORE_VECTORS) * LANES;
        const ptrdiff_t at = s->gates_row[row] + v * LANES;
        const real *gate = (const real *)s->gates + block * s->gates_block + at;
        real *dgate = (real *)s->dgates + block * s->dgates_block + s->dgates_row[row] + v * LANES;
        real *dh_at = (real *)s->dh + row * s->dh_pitch + unit;
        vec n = RK(vload)(gate), r = RK(vload)(gate + slot), z = RK(vload)(gate + 2 * slot);
        vec h_prev = RK(vload_part)((const real *)s->h_prev + s->h_prev_row[row] + unit, valid);
        vec dh = RK(vload)(dh_at);
        vec dn = RK(vfnma)(dh, z, dh);
        RK(vstore)(dgate, dn * RK(vfnma)(n, n, RK(vset)(1)));
        RK(vstore)(dgate + 2 * slot, dn * z * (h_prev - n));
        RK(vstore)(dh_at, dh * z);
        RK(vstore)((real *)s->early + s->early_row[row] + unit, r * h_prev);
    }
}

/* Of the first phase: dr, and what reaches h_{t-1} through r * h_{t-1}. */
static void RK(gru_before_reset_backward)(const rk_step_backward *s)
{
    RK_FOR_UNITS (RK(GRU_BEFORE_VECTORS), s->hidden, s->block_begin, s->block_end, 0, s->rows) {
        const ptrdiff_t slot = RK(GRU_BEFORE_VECTORS) * LANES;
        const ptrdiff_t at = s->gates_row[row] + v * LANES;
        const real *gate = (const real *)s->gates + block * s->gates_block + at;
        real *dgate = (real *)s->dgates + block * s->dgates_block + s->dgates_row[row] + v * LANES;
        real *dh_at = (real *)s->dh + row * s->dh_pitch + unit;
        vec r = RK(vload)(gate + slot);
        vec h_prev = RK(vload_part)((const real *)s->h_prev + s->h_prev_row[row] + unit, valid);
        vec dreset_h = RK(vload)((const real *)s->dearly + row * s->dh_pitch + unit);
        RK(vstore)(dgate + slot, dreset_h * r * RK(vfnma)(h_prev, r, h_prev));
        RK(vstore)(dh_at, RK(vfma)(dreset_h, r, RK(vload)(dh_at)));
    }
}

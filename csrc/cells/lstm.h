/* cells/lstm.h - LSTM with a forget gate (Hochreiter & Schmidhuber 1997; Gers et al. 2000).
 *
 *     i_t, f_t, o_t = sigmoid(W_i. x_t + b_i. + W_h. h_{t-1} + b_h.)        slots i f g o
 *     g_t           = tanh   (W_ig x_t + b_ig + W_hg h_{t-1} + b_hg)
 *     c_t = f_t c_{t-1} + i_t g_t                                           kept in slot c
 *     h_t = o_t tanh(c_t)
 *
 *     do_t = dh_t tanh(c_t)
 *     dc_t = dc_t (from step t+1) + dh_t o_t (1 - tanh(c_t)^2)
 *     di_t = dc_t g_t      df_t = dc_t c_{t-1}      dg_t = dc_t i_t
 *     dc_{t-1} = dc_t f_t
 *     and of a pre-activation: d(sigmoid) = s (1 - s), d(tanh) = 1 - tanh^2, where x (1 - s)
 *     is x - x s, rounded once
 *
 * tanh(c_t) is computed again in backward: cheaper than a sixth number to keep.
 */
enum { RK(LSTM_SLOTS) = 4, RK(LSTM_MEMORY_SLOTS) = 5 };

/* The gates and c of one or two rows of one block. The divider is what they wait for: i and g meet
 * as fractions, in one division, and o is handed on as the bottom of one. What backward reads of
 * them is kept beside that. */
RK_INLINE void RK(lstm_cell)(const rk_step *s, ptrdiff_t block, ptrdiff_t row, const int rows)
{
    vec x[8], top[8], bottom[8];
    real *gate[2];
    RK_FOR (m, rows) {
        gate[m] = (real *)s->gates + block * s->gates_block + s->gates_row[row + m];
        RK_FOR (j, 4)
            x[4 * m + j] = RK(vload)(gate[m] + j * LANES);
    }
    RK(vfractions)(4 * rows, 0x44, x, top, bottom);
    RK_FOR (m, rows) {
        const vec i = bottom[4 * m], g = bottom[4 * m + 2];
        const vec f = 1 / bottom[4 * m + 1], i_g = top[4 * m + 2] / (i * g);
        const vec c_prev = RK(vload)((const real *)s->c_prev + block * s->c_prev_block +
                                     (row + m) * s->c_prev_row);
        if (s->keeps) {
            RK(vstore)(gate[m], RK(vreciprocal)(i));
            RK(vstore)(gate[m] + LANES, f);
            RK(vstore)(gate[m] + 2 * LANES, top[4 * m + 2] * RK(vreciprocal)(g));
        }
        RK(vstore)(gate[m] + 3 * LANES, bottom[4 * m + 3]);
        RK(vstore)(gate[m] + 4 * LANES, RK(vfma)(f, c_prev, i_g));
    }
}

/* h of a few rows of one block: o and tanh(c) in one division. */
RK_INLINE void RK(lstm_output)(const rk_step *s, ptrdiff_t block, ptrdiff_t row, const int rows)
{
    vec o[3], c[3], top[3], bottom[3];
    real *gate[3];
    RK_FOR (m, rows) {
        gate[m] = (real *)s->gates + block * s->gates_block + s->gates_row[row + m];
        o[m] = RK(vload)(gate[m] + 3 * LANES);
        c[m] = RK(vload)(gate[m] + 4 * LANES);
    }
    RK(vfractions)(rows, ~0u, c, top, bottom);
    RK_FOR (m, rows) {
        RK(store_h)(s, row + m, block * LANES, s->hidden - block * LANES,
                    top[m] / (o[m] * bottom[m]));
        if (s->keeps) RK(vstore)(gate[m] + 3 * LANES, RK(vreciprocal)(o[m]));
    }
}

static void RK(lstm_epilogue)(const void *context, ptrdiff_t block0, ptrdiff_t blocks,
                              ptrdiff_t row0, ptrdiff_t rows)
{
    const rk_step *s = context;
    block0 += s->block_begin;
    RK_BY_FEW_ROWS(2, block0, block0 + blocks, row0, rows, RK(lstm_cell)(s, block, row, count))
    /* a pass of its own: in one, each row would wait for the chain from f over c to tanh(c) */
    RK_BY_FEW_ROWS(3, block0, block0 + blocks, row0, rows, RK(lstm_output)(s, block, row, count))
}

static void RK(lstm_forward)(const rk_step *s)
{
    RK(forward_step)(s, 1, 0, RK(LSTM_SLOTS), RK(lstm_epilogue));
}

static void RK(lstm_backward)(const rk_step_backward *s)
{
    RK_FOR_UNITS (1, s->hidden, s->block_begin, s->block_end, 0, s->rows) {
        const real *gate =
            (const real *)s->gates + block * s->gates_block + row * RK(LSTM_MEMORY_SLOTS) * LANES;
        const real *c_prev =
            (const real *)s->c_prev + block * s->c_prev_block + row * s->c_prev_row;
        real *dgate = (real *)s->dgates + block * s->dgates_block + s->dgates_row[row];
        real *dc_at = (real *)s->dc + row * s->dh_pitch + unit;
        vec i = RK(vload)(gate), f = RK(vload)(gate + LANES);
        vec g = RK(vload)(gate + 2 * LANES), o = RK(vload)(gate + 3 * LANES);
        vec tanh_c = RK(vtanh)(RK(vload)(gate + 4 * LANES));
        vec dh = RK(vload)((const real *)s->dh + row * s->dh_pitch + unit);
        const vec one = RK(vset)(1), c = RK(vload)(c_prev);
        vec dh_o = dh * o;
        vec dc = RK(vfma)(dh_o, RK(vfnma)(tanh_c, tanh_c, one), RK(vload)(dc_at));
        vec dc_i = dc * i, dc_f = dc * f;
        RK(vstore)(dgate, dc_i * RK(vfnma)(g, i, g));
        RK(vstore)(dgate + LANES, dc_f * RK(vfnma)(c, f, c));
        RK(vstore)(dgate + 2 * LANES, dc_i * RK(vfnma)(g, g, one));
        RK(vstore)(dgate + 3 * LANES, dh_o * RK(vfnma)(tanh_c, o, tanh_c));
        RK(vstore)(dc_at, dc_f);
    }
}

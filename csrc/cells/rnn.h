/* cells/rnn.h - the vanilla RNN (Elman 1990).
 *
 *     a_t = W_ih x_t + b_ih + W_hh h_{t-1} + b_hh          pre-activation, one slot
 *     h_t = tanh(a_t)  or  max(a_t, 0)
 *
 *     da_t = dh_t (1 - h_t^2)  or  dh_t where h_t > 0
 *
 * Backward needs h_t alone, which is the output.
 */
enum { RK(RNN_VECTORS) = 4 };

RK_INLINE void RK(rnn_epilogue)(const void *context, ptrdiff_t block0, ptrdiff_t blocks,
                                ptrdiff_t row0, ptrdiff_t rows, const int relu)
{
    const rk_step *s = context;
    block0 += s->block_begin;
    RK_FOR_UNITS (RK(RNN_VECTORS), s->hidden, block0, block0 + blocks, row0, row0 + rows) {
        const real *gate = (const real *)s->gates + block * s->gates_block + s->gates_row[row];
        vec a = RK(vload)(gate + v * LANES);
        /* vmax passes NaN on */
        RK(store_h)(s, row, unit, valid, relu ? RK(vmax)((vec){0}, a) : RK(vtanh)(a));
    }
}

static void RK(rnn_tanh_epilogue)(const void *s, ptrdiff_t block, ptrdiff_t blocks, ptrdiff_t row,
                                  ptrdiff_t rows)
{
    RK(rnn_epilogue)(s, block, blocks, row, rows, 0);
}

static void RK(rnn_relu_epilogue)(const void *s, ptrdiff_t block, ptrdiff_t blocks, ptrdiff_t row,
                                  ptrdiff_t rows)
{
    RK(rnn_epilogue)(s, block, blocks, row, rows, 1);
}

static void RK(rnn_tanh_forward)(const rk_step *s)
{
    RK(forward_step)(s, RK(RNN_VECTORS), 0, 1, RK(rnn_tanh_epilogue));
}

static void RK(rnn_relu_forward)(const rk_step *s)
{
    RK(forward_step)(s, RK(RNN_VECTORS), 0, 1, RK(rnn_relu_epilogue));
}

RK_INLINE void RK(rnn_backward)(const rk_step_backward *s, const int relu)
{
    RK_FOR_UNITS (RK(RNN_VECTORS), s->hidden, s->block_begin, s->block_end, 0, s->rows) {
        real *dgate = (real *)s->dgates + block * s->dgates_block + s->dgates_row[row] + v * LANES;
        vec h = RK(vload_part)((const real *)s->h + s->h_row[row] + unit, valid);
        vec dh = RK(vload)((const real *)s->dh + row * s->dh_pitch + unit);
        vec da =
            relu ? RK(vselect)(h <= (vec){0}, (vec){0}, dh) : dh * RK(vfnma)(h, h, RK(vset)(1));
        RK(vstore)(dgate, da);
    }
}

static void RK(rnn_tanh_backward)(const rk_step_backward *s) { RK(rnn_backward)(s, 0); }
static void RK(rnn_relu_backward)(const rk_step_backward *s) { RK(rnn_backward)(s, 1); }

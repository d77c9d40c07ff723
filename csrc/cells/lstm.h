/* cells/lstm.h - LSTM with a forget gate (Hochreiter & Schmidhuber 1997; Gers et al. 2000), and
 * with options, in any combination.
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
 * With options:
 *
 *     peepholes (Gers & Schmidhuber 2000): the arguments of i_t, f_t and o_t have another term,
 *         p_i c_{t-1}, p_f c_{t-1} and p_o c_t
 *         dp_i = sum di'_t c_{t-1}     dp_f = sum df'_t c_{t-1}     dp_o = sum do'_t c_t
 *         dc_t += p_o do'_t            dc_{t-1} += p_i di'_t + p_f df'_t
 *         where ' marks the gradient of the argument
 *     clipped cell: c_t = what it was, limited to +-cell_clip; dc_t = 0 where that acted
 *     coupled gates (Greff et al. 2017): f_t = 1 - i_t, slots i g o; di_t = dc_t (g_t - c_{t-1})
 *     projection (Sak et al. 2014): m_t = o_t tanh(c_t) goes to the second phase, h_t = W_hr m_t;
 *         dm_t = W_hr' dh_t stands for dh_t above, and dW_hr = sum dh_t m_t'
 *
 * tanh(c_t) is computed again in backward: cheaper than a sixth number to keep. The terms of the
 * sums over p stand behind the slots of a row of dgates, for the bias sums to add up on their way.
 * Options are compile-time constants: what is off is not there.
 */
RK_INLINE vec RK(lstm_clip)(vec c, real limit)
{
    return RK(vmin)(RK(vset)(limit), RK(vmax)(RK(vset)(-limit), c));
}

/* o and h of a few rows of one block, whose c is there: o and tanh(c) in one division. With
 * peepholes o has waited for c. */
RK_INLINE void RK(lstm_output)(const rk_step *s, ptrdiff_t block, ptrdiff_t row, const int rows,
                               const int options)
{
    const int slots = options & RK_LSTM_COUPLED ? 3 : 4;
    const int waiting = options & RK_LSTM_PEEPHOLE ? rows : 0;
    vec o[3], x[4], top[4], bottom[4]; /* x: the arguments of o if they wait, then c */
    real *gate[3];
    RK_FOR (m, rows) {
        gate[m] = (real *)s->gates + block * s->gates_block + s->gates_row[row + m];
        x[waiting + m] = RK(vload)(gate[m] + slots * LANES);
        o[m] = RK(vload)(gate[m] + (slots - 1) * LANES);
    }
    if (waiting) {
        const vec p = RK(vload)((const real *)s->peepholes + (3 * block + 2) * LANES);
        RK_FOR (m, rows)
            x[m] = RK(vfma)(p, x[rows + m], o[m]);
    }
    RK(vfractions)(waiting + rows, ~0u << waiting, x, top, bottom);
    RK_FOR (m, rows) {
        if (waiting) o[m] = bottom[m];
        const vec h = top[waiting + m] / (o[m] * bottom[waiting + m]);
        if (options & RK_LSTM_PROJECTED)
            RK(vstore)((real *)s->h + (row + m) * s->h_pitch + block * LANES, h);
        else
            RK(store_h)(s, row + m, block * LANES, s->hidden - block * LANES, h);
        if (s->keeps) RK(vstore)(gate[m] + (slots - 1) * LANES, RK(vreciprocal)(o[m]));
    }
}

/* The gates and c of one or two rows of one block. The divider is what they wait for: i and g meet
 * as fractions, in one division, and o is handed on as the bottom of one. What backward reads of
 * them is kept beside that. */
RK_INLINE void RK(lstm_cell)(const rk_step *s, ptrdiff_t block, ptrdiff_t row, const int rows,
                             const int options)
{
    const int coupled = options & RK_LSTM_COUPLED, peephole = options & RK_LSTM_PEEPHOLE;
    const int slots = coupled ? 3 : 4, g = slots - 2;
    const int now = peephole ? slots - 1 : slots; /* gates that need not wait for c */
    vec x[8], c_prev[2], top[8], bottom[8];
    real *gate[2];
    RK_FOR (m, rows) {
        gate[m] = (real *)s->gates + block * s->gates_block + s->gates_row[row + m];
        c_prev[m] = RK(vload)((const real *)s->c_prev + block * s->c_prev_block +
                              (row + m) * s->c_prev_row);
        vec *a = x + now * m;
        RK_FOR (j, now)
            a[j] = RK(vload)(gate[m] + j * LANES);
        if (peephole) {
            const real *p = (const real *)s->peepholes + 3 * block * LANES;
            a[0] = RK(vfma)(RK(vload)(p), c_prev[m], a[0]);
            if (!coupled) a[1] = RK(vfma)(RK(vload)(p + LANES), c_prev[m], a[1]);
        }
    }
    RK(vfractions)(now * rows, 1u << g | 1u << (now + g), x, top, bottom);
    RK_FOR (m, rows) {
        const vec *const a = bottom + now * m;
        const vec g_top = top[now * m + g], f = coupled ? 1 - 1 / a[0] : 1 / a[1];
        vec c = RK(vfma)(f, c_prev[m], g_top / (a[0] * a[g]));
        if (options & RK_LSTM_CELL_CLIP) c = RK(lstm_clip)(c, (real)s->cell_clip);
        if (s->keeps) {
            RK(vstore)(gate[m], RK(vreciprocal)(a[0]));
            if (!coupled) RK(vstore)(gate[m] + LANES, f);
            RK(vstore)(gate[m] + g * LANES, g_top * RK(vreciprocal)(a[g]));
        }
        if (!peephole) RK(vstore)(gate[m] + (slots - 1) * LANES, a[slots - 1]);
        RK(vstore)(gate[m] + slots * LANES, c);
    }
}

RK_INLINE void RK(lstm_epilogue)(const rk_step *s, ptrdiff_t block0, ptrdiff_t blocks,
                                 ptrdiff_t row0, ptrdiff_t rows, const int options)
{
    const int most = options & RK_LSTM_PEEPHOLE ? 2 : 3;
    block0 += s->block_begin;
    RK_BY_FEW_ROWS(2, block0, block0 + blocks, row0, rows,
                   RK(lstm_cell)(s, block, row, count, options))
    /* a pass of its own: in one, each row would wait for the chain from f over c to tanh(c) */
    RK_BY_FEW_ROWS(most, block0, block0 + blocks, row0, rows,
                   RK(lstm_output)(s, block, row, count, options))
}

RK_INLINE void RK(lstm_backward)(const rk_step_backward *s, const int options)
{
    const int coupled = options & RK_LSTM_COUPLED, peephole = options & RK_LSTM_PEEPHOLE;
    const int slots = coupled ? 3 : 4, terms = peephole ? slots - 1 : 0;
    RK_FOR_UNITS (1, s->hidden, s->block_begin, s->block_end, 0, s->rows) {
        const real *gate = (const real *)s->gates + block * s->gates_block + s->gates_row[row];
        const vec c_prev =
            RK(vload)((const real *)s->c_prev + block * s->c_prev_block + s->c_prev_row[row]);
        real *dgate = (real *)s->dgates + block * s->dgates_block + s->dgates_row[row];
        real *dc_at = (real *)s->dc + row * s->dh_pitch + unit;
        const real *p = (const real *)s->peepholes + 3 * block * LANES;
        const vec i = RK(vload)(gate), f = coupled ? 1 - i : RK(vload)(gate + LANES);
        const vec g = RK(vload)(gate + (slots - 2) * LANES);
        const vec o = RK(vload)(gate + (slots - 1) * LANES);
        const vec c = RK(vload)(gate + slots * LANES), tanh_c = RK(vtanh)(c);
        const real *dh_at = options & RK_LSTM_PROJECTED ? s->dearly : s->dh;
        const vec dh = RK(vload)(dh_at + row * s->dh_pitch + unit);
        if (options & RK_LSTM_PROJECTED)
            RK(vstore)((real *)s->early + s->early_row[row] + unit, o * tanh_c);
        const vec one = RK(vset)(1), dh_o = dh * o;
        const vec da_o = dh_o * RK(vfnma)(tanh_c, o, tanh_c);
        vec dc = RK(vfma)(dh_o, RK(vfnma)(tanh_c, tanh_c, one), RK(vload)(dc_at));
        if (peephole) dc = RK(vfma)(RK(vload)(p + 2 * LANES), da_o, dc);
        if (options & RK_LSTM_CELL_CLIP) {
            /* c as it was before; NaN was not clipped */
            const vec before = RK(vfma)(f, c_prev, i * g);
            const vec limit = RK(vset)((real)s->cell_clip);
            dc = RK(vselect)((before > limit) | (before < -limit), (vec){0}, dc);
        }
        const vec of_i = coupled ? g - c_prev : g, dc_i = dc * i, dc_f = dc * f;
        const vec da_i = dc_i * RK(vfnma)(of_i, i, of_i);
        vec dc_prev = dc_f;
        RK(vstore)(dgate, da_i);
        RK(vstore)(dgate + (slots - 2) * LANES, dc_i * RK(vfnma)(g, g, one));
        RK(vstore)(dgate + (slots - 1) * LANES, da_o);
        if (peephole) {
            RK(vstore)(dgate + slots * LANES, da_i * c_prev);
            RK(vstore)(dgate + (slots + terms - 1) * LANES, da_o * c);
            dc_prev = RK(vfma)(RK(vload)(p), da_i, dc_prev);
        }
        if (!coupled) {
            const vec da_f = dc_f * RK(vfnma)(c_prev, f, c_prev);
            RK(vstore)(dgate + LANES, da_f);
            if (peephole) {
                RK(vstore)(dgate + 5 * LANES, da_f * c_prev);
                dc_prev = RK(vfma)(RK(vload)(p + LANES), da_f, dc_prev);
            }
        }
        RK(vstore)(dc_at, dc_prev);
    }
}

/* The product is the same for all options: it calls its epilogue through a pointer. */
static __attribute__((noinline)) void RK(lstm_step)(const rk_step *s, int slots,
                                                    RK(epilogue) * epilogue)
{
    if (slots == 3)
        RK(forward_step)(s, 1, 0, 3, epilogue);
    else
        RK(forward_step)(s, 1, 0, 4, epilogue);
}

/* The phase of the projection: h = W_hr m, into the tile and the caller's output. Blocks here are
 * column blocks of P. */
static void RK(lstm_project)(const rk_step *s)
{
    static const real zeros[RK_TRANSPOSED_VECTORS * RK(LANES)];
    const ptrdiff_t columns = RK_TRANSPOSED_VECTORS * LANES;
    const ptrdiff_t first = s->block_begin * columns;
    const ptrdiff_t end = s->block_end * columns;
    const ptrdiff_t units = (end < s->projected ? end : s->projected) - first;
    const ptrdiff_t blocks = s->block_end - s->block_begin;
    const rk_product p = {
        .rows = s->rows,
        .blocks = blocks,
        .vectors = RK_TRANSPOSED_VECTORS,
        .last_vectors = (units - (blocks - 1) * columns + LANES - 1) / LANES,
        .outer = 1,
        .inner = s->hidden,
        .a = s->operand,
        .a_row = s->operand_row,
        .a_inner = 1,
        .b = (const real *)s->weights + s->hidden * first,
        .b_block = s->hidden * columns,
        .b_inner = columns,
        .c = (real *)s->h + first,
        .c_row = s->operand_row,
        .c_block = columns,
        .init = zeros,
    };
    RK(product)(&p);
    for (ptrdiff_t row = 0; row < s->rows; row++)
        __builtin_memcpy((real *)s->y + s->y_row[row] + first,
                         (const real *)s->h + s->operand_row[row] + first,
                         (size_t)units * sizeof(real));
}

#define RK_LSTM_WITH(options)                                                                      \
    static void RK(lstm_epilogue_##options)(const void *s, ptrdiff_t block, ptrdiff_t blocks,      \
                                            ptrdiff_t row, ptrdiff_t rows)                         \
    {                                                                                              \
        RK(lstm_epilogue)(s, block, blocks, row, rows, options);                                   \
    }                                                                                              \
    static void RK(lstm_forward_##options)(const rk_step *s)                                       \
    {                                                                                              \
        if (options)                                                                               \
            RK(lstm_step)(s, options & RK_LSTM_COUPLED ? 3 : 4, RK(lstm_epilogue_##options));      \
        else                                                                                       \
            RK(forward_step)(s, 1, 0, 4, RK(lstm_epilogue_##options));                             \
    }                                                                                              \
    static void RK(lstm_backward_##options)(const rk_step_backward *s)                             \
    {                                                                                              \
        RK(lstm_backward)(s, options);                                                             \
    }
RK_LSTM_WITH(0)
RK_LSTM_WITH(1)
RK_LSTM_WITH(2)
RK_LSTM_WITH(3)
RK_LSTM_WITH(4)
RK_LSTM_WITH(5)
RK_LSTM_WITH(6)
RK_LSTM_WITH(7)
RK_LSTM_WITH(8)
RK_LSTM_WITH(9)
RK_LSTM_WITH(10)
RK_LSTM_WITH(11)
RK_LSTM_WITH(12)
RK_LSTM_WITH(13)
RK_LSTM_WITH(14)
RK_LSTM_WITH(15)
#undef RK_LSTM_WITH

/* step.h - what all cells share: where a unit's numbers lie, and the frame of one step.
 *
 * A cell is the pointwise mathematics of one step. It knows nothing of time, batch tiles,
 * threads or matrices; it sees some rows of some unit blocks whose sums are complete.
 */

/* Calls body with `row`, and `v` the vector within the block, `unit` its first unit and
 * `valid` the units of it that exist, for all rows and units of the blocks. */
#define RK_FOR_UNITS(vectors, hidden, block_begin, block_end, row_begin, row_end)                  \
    for (ptrdiff_t block = (block_begin); block < (block_end); block++)                            \
        for (ptrdiff_t row = (row_begin); row < (row_end); row++)                                  \
            for (ptrdiff_t v = 0, unit = block * (vectors) * LANES, valid = (hidden) - unit;       \
                 v < (vectors) && valid > 0; v++, unit += LANES, valid -= LANES)

/* Calls with `block`, `row` and how many rows, `count`, for all rows of the blocks: `most` (two or
 * three) at a time. The count is a constant, for what is inlined there to take them in lockstep. */
#define RK_BY_FEW_ROWS(most, block_begin, block_end, row_begin, rows, call)                        \
    for (ptrdiff_t block = (block_begin); block < (block_end); block++)                            \
        for (ptrdiff_t row = (row_begin), left = (rows); left > 0;                                 \
             row += (most), left -= (most)) {                                                      \
            if (left >= (most)) {                                                                  \
                const int count = (most);                                                          \
                call;                                                                              \
            } else if (left == 2) {                                                                \
                const int count = 2;                                                               \
                call;                                                                              \
            } else {                                                                               \
                const int count = 1;                                                               \
                call;                                                                              \
            }                                                                                      \
        }

/* The product into a window of the gates of some blocks, `nc` vectors of each, then the epilogue.
 */
RK_INLINE void RK(forward_blocks)(const rk_step *s, const int unit_vectors, const int slot,
                                  const int slots, const int nc, int half, RK(epilogue) * epilogue)
{
    const ptrdiff_t width = slots * unit_vectors * LANES;
    const ptrdiff_t b_block = rk_panel_rows(s->projected, s->storage) * width;
    const rk_product p = {
        .rows = s->rows,
        .blocks = s->block_end - s->block_begin,
        .vectors = nc,
        .last_vectors = nc,
        .outer = 1,
        .inner = s->projected,
        .a = s->operand,
        .a_row = s->operand_row,
        .a_inner = 1,
        .b = (const real *)s->weights + s->block_begin * b_block,
        .b_block = b_block,
        .b_inner = width,
        .c = (real *)s->gates + s->block_begin * s->gates_block + slot * unit_vectors * LANES,
        .c_row = s->gates_row,
        .c_block = s->gates_block,
        .ahead = s->ahead,
    };
#if !RK_DOUBLE
    if (s->storage != RK_WHOLE) {
        rk_small_product small = {.product = p, .storage = s->storage, .scale_block = width};
        small.product.b =
            (const char *)s->weights + s->block_begin * b_block * (s->storage == RK_HALF ? 2 : 1);
        if (s->scale) small.scale = (const real *)s->scale + s->block_begin * width;
        RK(small_group)(&small, nc, 0, p.blocks, epilogue, s);
        return;
    }
#endif
    RK(product_group)(&p, nc, 0, p.blocks, s->last_first, half, epilogue, s);
}

/* One phase of a step. */
RK_INLINE void RK(forward_step)(const rk_step *s, const int unit_vectors, const int slot,
                                const int slots, RK(epilogue) * epilogue)
{
    const int nc = slots * unit_vectors;
    const ptrdiff_t units = unit_vectors * LANES;
    /* vectors of the last block that hold units; a single slot leaves the others out */
    const ptrdiff_t needed = (s->hidden - (s->block_end - 1) * units + LANES - 1) / LANES;
    const int half = RK_HALVES && s->half_of_last && slots > 2 && s->storage == RK_WHOLE;
    if (!half && (slots > 1 || needed >= unit_vectors)) {
        RK(forward_blocks)(s, unit_vectors, slot, slots, nc, 0, epilogue);
        return;
    }
    rk_step part = *s;
    part.block_end = s->block_end - 1;
    if (part.block_begin < part.block_end)
        RK(forward_blocks)(&part, unit_vectors, slot, slots, nc, 0, epilogue);
    part.block_begin = s->block_end - 1;
    part.block_end = s->block_end;
    if (slots > 1) {
        RK(forward_blocks)(&part, unit_vectors, slot, slots, nc, 1, epilogue);
        return;
    }
    switch (needed) {
    case 1: RK(forward_blocks)(&part, unit_vectors, slot, slots, 1, 0, epilogue); break;
    case 2: RK(forward_blocks)(&part, unit_vectors, slot, slots, 2, 0, epilogue); break;
    case 3: RK(forward_blocks)(&part, unit_vectors, slot, slots, 3, 0, epilogue); break;
    default: __builtin_unreachable();
    }
}

/* h_t of one vector of units: to the private tile, and to the caller's output. */
RK_INLINE void RK(store_h)(const rk_step *s, ptrdiff_t row, ptrdiff_t unit, ptrdiff_t valid, vec h)
{
    RK(vstore)((real *)s->h + row * s->h_pitch + unit, h);
    RK(vstore_part)((real *)s->y + s->y_row[row] + unit, h, valid);
}

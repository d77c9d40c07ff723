/* lookup.h - rows of a table: what W_ih makes of token ids, and the gradient back to them. */

RK_INLINE ptrdiff_t RK(lookup_vectors)(const rk_lookup *p, ptrdiff_t block)
{
    return block == p->blocks - 1 ? p->last_vectors : p->vectors;
}

/* Where a block has a row of the table, or the quad that it is in. */
RK_INLINE const char *RK(table_at)(const rk_lookup *p, ptrdiff_t block, ptrdiff_t row,
                                   const int storage, const ptrdiff_t size)
{
    ptrdiff_t at = p->table_row[row];
    if (rk_in_quads(storage)) {
        const ptrdiff_t k = at / p->scale_block;
        at = 4 * (k / 4 + 1 + k / RK_QUAD_PIECE) * p->scale_block;
    }
    return (const char *)p->table + (block * p->table_block + at) * size;
}

/* From a column's entry to the next one's, there. */
RK_INLINE ptrdiff_t RK(entry_bytes)(const int storage, const ptrdiff_t size)
{
    return rk_in_quads(storage) ? 4 : size;
}

/* Asks for a row of the table. */
RK_INLINE void RK(ask)(const rk_lookup *p, ptrdiff_t row, const int storage, const ptrdiff_t size)
{
    const ptrdiff_t bytes = p->vectors * LANES * RK(entry_bytes)(storage, size);
    for (ptrdiff_t block = 0; block < p->blocks; block++) {
        const char *from = RK(table_at)(p, block, row, storage, size);
        for (ptrdiff_t at = 0; at < bytes; at += 64)
            __builtin_prefetch(from + at, 0, 2);
    }
}

/* LANES elements of a table as it is stored; in quads, of which of their rows. */
RK_INLINE vec RK(entry)(const int storage, const char *from, int of_quad)
{
#if !RK_DOUBLE
    if (rk_in_quads(storage)) {
        ivec four;
        __builtin_memcpy(&four, from, sizeof four);
        return __builtin_convertvector((four << (24 - 8 * of_quad)) >> 24, vec);
    }
    if (storage == RK_HALF) return RK(widen_half)((const unsigned short *)from);
    if (storage == RK_INT8) return RK(widen_int8)((const signed char *)from);
#endif
    return RK(vload)((const real *)from);
}

RK_INLINE void RK(gather_row)(const rk_lookup *p, ptrdiff_t row, const int storage,
                              const ptrdiff_t size)
{
    int of_quad = 0;
    if (rk_in_quads(storage)) of_quad = (int)(p->table_row[row] / p->scale_block % 4);
    for (ptrdiff_t block = 0; block < p->blocks; block++) {
        const char *from = RK(table_at)(p, block, row, storage, size);
        const real *init = p->init ? (const real *)p->init + block * p->init_block : NULL;
        real *to = (real *)p->c + block * p->c_block + p->c_row[row];
        for (ptrdiff_t v = 0; v < RK(lookup_vectors)(p, block); v++) {
            const ptrdiff_t at = v * LANES * RK(entry_bytes)(storage, size);
            vec entry = RK(entry)(storage, from + at, of_quad);
            if (storage == RK_INT8 || rk_in_quads(storage)) {
                const real *scale = (const real *)p->scale + block * p->scale_block + v * LANES;
                entry = RK(vfma)(RK(vload)(scale), entry, RK(vload)(init + v * LANES));
            } else if (init) {
                entry = RK(vload)(init + v * LANES) + entry;
            }
            RK(vstore)(to + v * LANES, entry);
        }
    }
}
RK_INLINE void RK(scatter_row)(const rk_lookup *p, ptrdiff_t row)
{
    for (ptrdiff_t block = 0; block < p->blocks; block++) {
        real *to = (real *)p->table + block * p->table_block + p->table_row[row];
        const real *from = (const real *)p->c + block * p->c_block + p->c_row[row];
        for (ptrdiff_t v = 0; v < RK(lookup_vectors)(p, block); v++)
            RK(vstore)(to + v * LANES, RK(vload)(to + v * LANES) + RK(vload)(from + v * LANES));
    }
}

RK_INLINE void RK(gather_from)(const rk_lookup *p, const int storage, const ptrdiff_t size)
{
    ptrdiff_t row = 0;
    if (p->ahead) {
        for (; row + p->ahead < p->rows; row++) {
            RK(ask)(p, row + p->ahead, storage, size);
            RK(gather_row)(p, row, storage, size);
        }
    }
    for (; row < p->rows; row++)
        RK(gather_row)(p, row, storage, size);
}

static void RK(gather)(const rk_lookup *p)
{
#if !RK_DOUBLE
    if (p->storage == RK_HALF) {
        RK(gather_from)(p, RK_HALF, 2);
        return;
    }
    if (p->storage == RK_INT8) {
        RK(gather_from)(p, RK_INT8, 1);
        return;
    }
#ifdef RK_QUADS
    if (rk_in_quads(p->storage)) {
        RK(gather_from)(p, RK_INT8_BYTES, 1);
        return;
    }
#endif
#endif
    RK(gather_from)(p, RK_WHOLE, sizeof(real));
}

static void RK(scatter)(const rk_lookup *p)
{
    ptrdiff_t row = p->rows - 1;
    if (p->ahead) {
        for (; row >= p->ahead; row--) {
            RK(ask)(p, row - p->ahead, RK_WHOLE, sizeof(real));
            RK(scatter_row)(p, row);
        }
    }
    for (; row >= 0; row--)
        RK(scatter_row)(p, row);
}

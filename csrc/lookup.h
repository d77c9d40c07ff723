/* lookup.h - rows of a table: what W_ih makes of token ids, and the gradient back to them. */

RK_INLINE ptrdiff_t RK(lookup_vectors)(const rk_lookup *p, ptrdiff_t block)
{
    return block == p->blocks - 1 ? p->last_vectors : p->vectors;
}

static void RK(gather)(const rk_lookup *p)
{
    for (ptrdiff_t row = 0; row < p->rows; row++) {
        for (ptrdiff_t block = 0; block < p->blocks; block++) {
            const real *from = (const real *)p->table + block * p->table_block + p->table_row[row];
            const real *init = p->init ? (const real *)p->init + block * p->init_block : NULL;
            real *to = (real *)p->c + block * p->c_block + p->c_row[row];
            for (ptrdiff_t v = 0; v < RK(lookup_vectors)(p, block); v++) {
                const vec entry = RK(vload)(from + v * LANES);
                RK(vstore)(to + v * LANES, init ? RK(vload)(init + v * LANES) + entry : entry);
            }
        }
    }
}

static void RK(scatter)(const rk_lookup *p)
{
    for (ptrdiff_t row = p->rows - 1; row >= 0; row--) {
        for (ptrdiff_t block = 0; block < p->blocks; block++) {
            real *to = (real *)p->table + block * p->table_block + p->table_row[row];
            const real *from = (const real *)p->c + block * p->c_block + p->c_row[row];
            for (ptrdiff_t v = 0; v < RK(lookup_vectors)(p, block); v++)
                RK(vstore)(to + v * LANES, RK(vload)(to + v * LANES) + RK(vload)(from + v * LANES));
        }
    }
}

/* product.h - the matrix product of rnnkernel.h, on register tiles.
 *
 * A tile holds mr rows x nb blocks x nc vectors of C in registers over a stretch of k.
 * The stretch is so short that the tile's panel of B stays in L1 while all rows pass over
 * it; between stretches the accumulators are parked in C. Full tiles use all registers but
 * those for B and the broadcast; with one or two rows several blocks at once keep the FMA
 * pipes busy. Loops have constant counts and are unrolled whole, so that the compiler
 * keeps the accumulators in registers; look at the assembly when it does not.
 */
#define RK_ACCUMULATORS (RK_REGISTERS == 16 ? 12 : 24)
#define RK_PANEL_BYTES 18432 /* of 32 KiB L1, which C and A share */

/* Rows of the largest tile with nc vectors. */
#define RK_FULL_ROWS(nc) \
    (RK_ACCUMULATORS / (nc) < RK_MAX_ROWS ? RK_ACCUMULATORS / (nc) : RK_MAX_ROWS)
/* Blocks at once with mr rows of nc vectors. */
#define RK_TILE_BLOCKS(mr, nc)                             \
    ((mr) > 2                               ? 1            \
     : RK_ACCUMULATORS / ((mr) * (nc)) >= 4 ? 4            \
     : RK_ACCUMULATORS / ((mr) * (nc)) < 1  ? 1            \
                                            : RK_ACCUMULATORS / ((mr) * (nc)))
#define RK_MAX_ROWS 8

/* One stretch of k for a tile: outer x inner steps from a[m] and b on. */
typedef struct {
    ptrdiff_t outer, inner;
    ptrdiff_t a_outer, a_inner, b_outer, b_inner, b_block, c_block, init_block;
} RK(stretch);

RK_INLINE void RK(tile)(const int mr, const int nb, const int nc, const RK(stretch) * s,
                        const real *const *a, const real *b, real *const *c, const real *init)
{
    vec acc[24];
    const real *pa[RK_MAX_ROWS];
    RK_UNROLL for (int m = 0; m < mr; m++)
    {
        pa[m] = a[m];
        RK_UNROLL for (int w = 0; w < nb; w++)
        {
            const real *from = init ? init + w * s->init_block : c[m] + w * s->c_block;
            RK_UNROLL for (int v = 0; v < nc; v++)
                acc[(m * nb + w) * nc + v] = RK(vload)(from + v * LANES);
        }
    }
    const ptrdiff_t a_inner = s->a_inner, b_inner = s->b_inner, b_block = s->b_block;
    const ptrdiff_t inner = s->inner;
    for (ptrdiff_t o = 0; o < s->outer; o++) {
        const real *pb = b;
        ptrdiff_t ia = 0;
#pragma GCC unroll 2
        for (ptrdiff_t k = 0; k < inner; k++) {
            /* hold the shorter side of the tile in registers, stream the longer */
            if (mr < nb * nc) {
                vec row[RK_MAX_ROWS];
                RK_UNROLL for (int m = 0; m < mr; m++) row[m] = RK(vset)(pa[m][ia]);
                RK_UNROLL for (int w = 0; w < nb; w++)
                {
                    RK_UNROLL for (int v = 0; v < nc; v++)
                    {
                        const vec column = RK(vload)(pb + w * b_block + v * LANES);
                        RK_UNROLL for (int m = 0; m < mr; m++)
                        {
                            const int j = (m * nb + w) * nc + v;
                            acc[j] = RK(vfma)(row[m], column, acc[j]);
                        }
                    }
                }
            } else {
                vec column[4];
                RK_UNROLL for (int v = 0; v < nc; v++) column[v] = RK(vload)(pb + v * LANES);
                RK_UNROLL for (int m = 0; m < mr; m++)
                {
                    const vec row = RK(vset)(pa[m][ia]);
                    RK_UNROLL for (int v = 0; v < nc; v++)
                        acc[m * nc + v] = RK(vfma)(row, column[v], acc[m * nc + v]);
                }
            }
            pb += b_inner;
            ia += a_inner;
        }
        b += s->b_outer;
        RK_UNROLL for (int m = 0; m < mr; m++)
            pa[m] += s->a_outer;
    }
    RK_UNROLL for (int m = 0; m < mr; m++)
    {
        RK_UNROLL for (int w = 0; w < nb; w++)
        {
            RK_UNROLL for (int v = 0; v < nc; v++)
                RK(vstore)(c[m] + w * s->c_block + v * LANES, acc[(m * nb + w) * nc + v]);
        }
    }
}

/* A tile of any number of rows up to the full one. */
RK_INLINE void RK(rows_tile)(const int nc, ptrdiff_t mr, const RK(stretch) * s,
                             const real *const *a, const real *b, real *const *c,
                             const real *init)
{
    switch (mr) {
    case 1: RK(tile)(1, 1, nc, s, a, b, c, init); break;
    case 2: RK(tile)(2, 1, nc, s, a, b, c, init); break;
#define RK_CASE(rows)                                                      \
    case rows:                                                             \
        if (rows <= RK_FULL_ROWS(nc)) RK(tile)(rows, 1, nc, s, a, b, c, init); \
        break;
        RK_CASE(3)
        RK_CASE(4)
        RK_CASE(5)
        RK_CASE(6)
        RK_CASE(7)
        RK_CASE(8)
#undef RK_CASE
    default: __builtin_unreachable();
    }
}

/* Called when the sums of some rows of some blocks are complete and still in L1. */
typedef void RK(epilogue)(const void *context, ptrdiff_t block, ptrdiff_t blocks, ptrdiff_t row,
                          ptrdiff_t rows);

/* How k is cut: pieces of whole inner loops, or pieces of one inner loop. */
typedef struct {
    ptrdiff_t outer, inner;
} RK(cut);

RK_INLINE RK(cut) RK(cut_k)(const rk_product *p, const int nc)
{
    ptrdiff_t most = RK_PANEL_BYTES / (nc * RK_VECTOR_BYTES);
    RK(cut) cut = {1, p->inner};
    if (p->inner > most) {
        ptrdiff_t pieces = (p->inner + most - 1) / most;
        cut.inner = (p->inner + pieces - 1) / pieces;
    } else if (p->outer > 1 && p->inner > 0) {
        cut.outer = most / p->inner;
    }
    return cut;
}

/* Columns first..first+nc of every block; `last` says whether the last block has them. */
RK_INLINE void RK(product_group)(const rk_product *p, const int nc, ptrdiff_t first,
                                 ptrdiff_t blocks, RK(epilogue) * done, const void *context)
{
    const RK(cut) cut = RK(cut_k)(p, nc);
    const ptrdiff_t full = RK_FULL_ROWS(nc);
    const ptrdiff_t tiles = (p->rows + full - 1) / full;
    const ptrdiff_t base = tiles ? p->rows / tiles : 0, extra = p->rows - base * tiles;
    const ptrdiff_t at_once =
        p->rows == 1 ? RK_TILE_BLOCKS(1, nc) : p->rows == 2 ? RK_TILE_BLOCKS(2, nc) : 1;
    RK(stretch) s = {.a_outer = p->a_outer, .a_inner = p->a_inner,
                     .b_outer = p->b_outer, .b_inner = p->b_inner,
                     .b_block = p->b_block, .c_block = p->c_block, .init_block = p->init_block};

    for (ptrdiff_t block = 0, step; block < blocks; block += step) {
        step = blocks - block >= at_once ? at_once : 1;
        ptrdiff_t o = 0, i = 0;
        do {
            s.outer = p->outer - o < cut.outer ? p->outer - o : cut.outer;
            s.inner = p->inner - i < cut.inner ? p->inner - i : cut.inner;
            const real *a = (const real *)p->a + o * p->a_outer + i * p->a_inner;
            const real *b = (const real *)p->b + block * p->b_block + o * p->b_outer +
                            i * p->b_inner + first * LANES;
            real *c = (real *)p->c + block * p->c_block + first * LANES;
            const real *init = p->init && !o && !i ? (const real *)p->init +
                                                         block * p->init_block + first * LANES
                                                   : NULL;
            i += s.inner;
            if (i >= p->inner) {
                i = 0;
                o += s.outer;
            }
            const int complete = o >= p->outer;
            for (ptrdiff_t tile = 0, row = 0, mr; tile < tiles; tile++, row += mr) {
                mr = base + (tile < extra);
                const real *pa[RK_MAX_ROWS];
                real *pc[RK_MAX_ROWS];
                for (ptrdiff_t m = 0; m < mr; m++) {
                    pa[m] = a + p->a_row[row + m];
                    pc[m] = c + p->c_row[row + m];
                }
                if (step == 1)
                    RK(rows_tile)(nc, mr, &s, pa, b, pc, init);
                else if (mr == 1)
                    RK(tile)(1, RK_TILE_BLOCKS(1, nc), nc, &s, pa, b, pc, init);
                else
                    RK(tile)(2, RK_TILE_BLOCKS(2, nc), nc, &s, pa, b, pc, init);
                if (complete && done) done(context, block, step, row, mr);
            }
        } while (o < p->outer);
    }
}

static void RK(product_any)(const rk_product *p, ptrdiff_t nc, ptrdiff_t first, ptrdiff_t blocks)
{
    if (blocks <= 0) return;
    switch (nc) {
    case 1: RK(product_group)(p, 1, first, blocks, NULL, NULL); break;
    case 2: RK(product_group)(p, 2, first, blocks, NULL, NULL); break;
    case 3: RK(product_group)(p, 3, first, blocks, NULL, NULL); break;
    case 4: RK(product_group)(p, 4, first, blocks, NULL, NULL); break;
    default: __builtin_unreachable();
    }
}

/* Vectors in groups of at most four, as even as can be; the last block apart where it has
 * fewer. */
static void RK(product_columns)(const rk_product *p, ptrdiff_t vectors, ptrdiff_t blocks)
{
    const ptrdiff_t groups = (vectors + 3) / 4;
    for (ptrdiff_t g = 0, first = 0, nc; g < groups; g++, first += nc) {
        nc = (vectors - first + groups - g - 1) / (groups - g);
        RK(product_any)(p, nc, first, blocks);
    }
}

static void RK(product)(const rk_product *p)
{
    const ptrdiff_t whole = p->blocks - (p->last_vectors < p->vectors);
    RK(product_columns)(p, p->vectors, whole);
    if (whole == p->blocks) return;
    rk_product last = *p;
    last.b = (const real *)p->b + whole * p->b_block;
    last.c = (real *)p->c + whole * p->c_block;
    if (p->init) last.init = (const real *)p->init + whole * p->init_block;
    RK(product_columns)(&last, p->last_vectors, 1);
}

static void RK(fill)(const rk_product *p)
{
    for (ptrdiff_t row = 0; row < p->rows; row++) {
        for (ptrdiff_t block = 0; block < p->blocks; block++) {
            const real *from = (const real *)p->init + block * p->init_block;
            real *to = (real *)p->c + p->c_row[row] + block * p->c_block;
            for (ptrdiff_t v = 0; v < p->vectors; v++)
                RK(vstore)(to + v * LANES, RK(vload)(from + v * LANES));
        }
    }
}

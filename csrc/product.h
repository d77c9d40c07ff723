/* product.h - the matrix product of rnnkernel.h, on register tiles.
 *
 * A tile holds mr rows x nb blocks x nc vectors of C in registers over a stretch of k.
 * The stretch is so short that its panel of B stays in cache while all rows pass over
 * it; between stretches the accumulators are parked in C. Full tiles use all registers but
 * those for B and the broadcast; with one or two rows several blocks at once keep the FMA
 * pipes busy. Loops have constant counts and are unrolled whole, and those over k run at least
 * once, so that the compiler keeps the accumulators in registers; look at the assembly when it
 * does not.
 */
#define RK_ACCUMULATORS (RK_REGISTERS == 16 ? 12 : 24)
/* Whether tiles ask for the next panel, a line a step: with 16 registers they have no instruction
 * to spare but on AMD's cores. */
#define RK_TILES_ASK (RK_REGISTERS == 32 || rk_reads_fast())
/* A stretch's panel. It streams from L2 there, since every cut of k costs a tile 100 cycles, else
 * it shares L1 with the rows. */
#define RK_PANEL_BYTES (RK_TILES_ASK ? 132000 : 25600)
#define RK_FEWEST_TILES (RK_TILES_ASK ? 2 : 4) /* with time to ask for the next panel */
#define RK_STREAMS 8 /* loops of k in a stretch where there are more rows than */
#define RK_FEW_STREAMS 32
/* Caches of a usual core; hints, nothing depends on them. */
#define RK_L1_BYTES (48 << 10)
#define RK_L2_BYTES (1 << 20)

/* Keeps the compiler from loading it again for each use, as an operand of FMAs. */
#if defined(__x86_64__) && RK_REGISTERS == 32
#define RK_IN_REGISTER(vector) __asm__("" : "+v"(vector))
#elif defined(__x86_64__)
#define RK_IN_REGISTER(vector) __asm__("" : "+x"(vector))
#elif defined(__aarch64__)
#define RK_IN_REGISTER(vector) __asm__("" : "+w"(vector))
#else
#define RK_IN_REGISTER(vector)
#endif

/* Rows of the largest tile with nc vectors. */
#define RK_FULL_ROWS(nc)                                                                           \
    (RK_ACCUMULATORS / (nc) < RK_MAX_ROWS ? RK_ACCUMULATORS / (nc) : RK_MAX_ROWS)
#define RK_MAX_ROWS 8

/* One stretch of k for a tile: outer x inner steps, at least one, from a and b on. */
typedef struct {
    ptrdiff_t outer, inner;
    ptrdiff_t a_outer, a_inner, b_outer, b_inner, b_block, c_block, init_block;
    const char *ahead;    /* what to ask L2 for meanwhile, one cache line a step */
    ptrdiff_t ahead_step; /* bytes: one line, two, or 0 */
} RK(stretch);

RK_INLINE void RK(tile)(const int asks, const int mr, const int nb, const int nc,
                        const RK(stretch) * s, const real *a, const ptrdiff_t *a_row, const real *b,
                        real *c, const ptrdiff_t *c_row, const real *init)
{
    vec acc[24];
    const real *pa[RK_MAX_ROWS];
    RK_FOR (m, mr) {
        pa[m] = a + a_row[m];
        RK_FOR (w, nb) {
            const real *from = init ? init + w * s->init_block : c + c_row[m] + w * s->c_block;
            RK_FOR (v, nc)
                acc[(m * nb + w) * nc + v] = RK(vload)(from + v * LANES);
        }
    }
    const ptrdiff_t a_inner = s->a_inner, b_inner = s->b_inner, b_block = s->b_block;
    const ptrdiff_t inner = s->inner, ahead_step = s->ahead_step;
    const char *ahead = s->ahead;
    ptrdiff_t left = s->outer;
    do {
        const real *pb[4], *const past = b + inner * b_inner;
        ptrdiff_t ia = 0;
        RK_FOR (w, nb)
            pb[w] = b + w * b_block;
        do {
            /* hold the shorter side of the tile in registers, stream the longer; of one or two rows
             * and several blocks that is always B */
            if (mr < nb * nc || (mr <= 2 && nb > 1)) {
                vec row[RK_MAX_ROWS];
                RK_FOR (m, mr)
                    row[m] = RK(vset)(pa[m][ia]);
                RK_FOR (w, nb) {
                    RK_FOR (v, nc) {
                        vec column = RK(vload)(pb[w] + v * LANES);
                        if (mr > 1) RK_IN_REGISTER(column);
                        RK_FOR (m, mr) {
                            const int j = (m * nb + w) * nc + v;
                            acc[j] = RK(vfma)(row[m], column, acc[j]);
                        }
                    }
                }
            } else {
                vec column[4];
                RK_FOR (w, nb) {
                    RK_FOR (v, nc) {
                        column[w * nc + v] = RK(vload)(pb[w] + v * LANES);
                        if (mr > 1) RK_IN_REGISTER(column[w * nc + v]);
                    }
                }
                RK_FOR (m, mr) {
                    const vec row = RK(vset)(pa[m][ia]);
                    RK_FOR (j, nb * nc)
                        acc[m * nb * nc + j] = RK(vfma)(row, column[j], acc[m * nb * nc + j]);
                }
            }
            if (asks) {
                __builtin_prefetch(ahead, 0, 2);
                ahead += ahead_step;
            }
            /* One index for all rows and a pointer for each block: kept from the compiler, which
             * would take a pointer for each row, and an offset for each vector of a block. */
            ia += a_inner;
            __asm__("" : "+r"(ia));
            RK_FOR (w, nb) {
                pb[w] += b_inner;
                __asm__("" : "+r"(pb[w]));
            }
        } while (pb[0] != past);
        b += s->b_outer;
        RK_FOR (m, mr)
            pa[m] += s->a_outer;
    } while (--left > 0);
    RK_FOR (m, mr) {
        RK_FOR (w, nb) {
            real *to = c + c_row[m] + w * s->c_block;
            RK_FOR (v, nc)
                RK(vstore)(to + v * LANES, acc[(m * nb + w) * nc + v]);
        }
    }
}

/* Each tile is a function of its own: inlined beside others, the compiler spills accumulators. */
typedef void RK(tile_function)(const RK(stretch) *, const real *a, const ptrdiff_t *a_row,
                               const real *b, real *c, const ptrdiff_t *c_row, const real *init);
#define RK_TILE_OF(name, asks, mr, nb, nc)                                                         \
    static __attribute__((noinline)) void RK(name##_##mr##_##nb##_##nc)(                           \
        const RK(stretch) * s, const real *a, const ptrdiff_t *a_row, const real *b, real *c,      \
        const ptrdiff_t *c_row, const real *init)                                                  \
    {                                                                                              \
        RK(tile)(asks, mr, nb, nc, s, a, a_row, b, c, c_row, init);                                \
    }
#define RK_TILE(mr, nb, nc) RK_TILE_OF(tile, RK_REGISTERS == 32, mr, nb, nc)
#define RK_TILES(nc)                                                                               \
    RK_TILE(1, 1, nc)                                                                              \
    RK_TILE(2, 1, nc)                                                                              \
    RK_TILE(3, 1, nc)                                                                              \
    RK_TILE(1, 2, nc)                                                                              \
    RK_TILE(1, 3, nc)                                                                              \
    RK_TILE(1, 4, nc)
RK_TILES(1)
RK_TILES(2)
RK_TILES(3)
RK_TILES(4)
RK_TILE(4, 1, 1)
RK_TILE(5, 1, 1)
RK_TILE(6, 1, 1)
RK_TILE(7, 1, 1)
RK_TILE(8, 1, 1)
RK_TILE(4, 1, 2)
RK_TILE(5, 1, 2)
RK_TILE(6, 1, 2)
RK_TILE(4, 1, 3)
#if RK_REGISTERS == 32
RK_TILE(7, 1, 2)
RK_TILE(8, 1, 2)
RK_TILE(5, 1, 3)
RK_TILE(6, 1, 3)
RK_TILE(7, 1, 3)
RK_TILE(8, 1, 3)
RK_TILE(4, 1, 4)
RK_TILE(5, 1, 4)
RK_TILE(6, 1, 4)
RK_TILE(2, 2, 1)
RK_TILE(2, 2, 2)
RK_TILE(2, 2, 3)
RK_TILE(2, 2, 4)
#endif

/* [vectors - 1][rows - 1], one block */
static RK(tile_function) *const RK(tiles)[4][RK_MAX_ROWS] = {
    {RK(tile_1_1_1), RK(tile_2_1_1), RK(tile_3_1_1), RK(tile_4_1_1), RK(tile_5_1_1), RK(tile_6_1_1),
     RK(tile_7_1_1), RK(tile_8_1_1)},
#if RK_REGISTERS == 32
    {RK(tile_1_1_2), RK(tile_2_1_2), RK(tile_3_1_2), RK(tile_4_1_2), RK(tile_5_1_2), RK(tile_6_1_2),
     RK(tile_7_1_2), RK(tile_8_1_2)},
    {RK(tile_1_1_3), RK(tile_2_1_3), RK(tile_3_1_3), RK(tile_4_1_3), RK(tile_5_1_3), RK(tile_6_1_3),
     RK(tile_7_1_3), RK(tile_8_1_3)},
    {RK(tile_1_1_4), RK(tile_2_1_4), RK(tile_3_1_4), RK(tile_4_1_4), RK(tile_5_1_4),
     RK(tile_6_1_4)},
#else
    {RK(tile_1_1_2), RK(tile_2_1_2), RK(tile_3_1_2), RK(tile_4_1_2), RK(tile_5_1_2),
     RK(tile_6_1_2)},
    {RK(tile_1_1_3), RK(tile_2_1_3), RK(tile_3_1_3), RK(tile_4_1_3)},
    {RK(tile_1_1_4), RK(tile_2_1_4), RK(tile_3_1_4)},
#endif
};

#if RK_REGISTERS == 16
/* Clang would keep an accumulator of this one in memory, and take three times as long. */
#if defined(__clang__)
#define RK_LARGEST_ASKS 0
#else
#define RK_LARGEST_ASKS 1
#endif
RK_TILE_OF(asking_tile, 1, 2, 1, 3)
RK_TILE_OF(asking_tile, 1, 3, 1, 3)
RK_TILE_OF(asking_tile, RK_LARGEST_ASKS, 4, 1, 3)
RK_TILE_OF(asking_tile, 1, 2, 1, 4)
RK_TILE_OF(asking_tile, 1, 3, 1, 4)
/* [vectors - 3][rows - 2] */
static RK(tile_function) *const RK(asking_tiles)[2][3] = {
    {RK(asking_tile_2_1_3), RK(asking_tile_3_1_3), RK(asking_tile_4_1_3)},
    {RK(asking_tile_2_1_4), RK(asking_tile_3_1_4)}, /* more rows are no more than one tile */
};
#endif

/* Whether two vectors of 32 bytes take as long as one of 64: AMD's cores have two multiply-adds of
 * the former in a cycle, and some no more than one of the latter. */
#if RK_VECTOR_BYTES == 64
#define RK_HALVES __builtin_cpu_is("amd")
#else
#define RK_HALVES 0
#endif

static int RK(fma_vectors)(void) { return RK_HALVES ? 1 : 2; }

/* There a block of which at most half of the units exist, in vectors of half the length, takes half
 * the time. */
#if RK_VECTOR_BYTES == 64
#if RK_DOUBLE
#define RK_HALF_OF(op) _mm256_##op##_pd
#define RK_HALF_VECTOR __m256d
#else
#define RK_HALF_OF(op) _mm256_##op##_ps
#define RK_HALF_VECTOR __m256
#endif
RK_INLINE void RK(half_tile)(const int mr, const int nc, const RK(stretch) * s, const real *a,
                             const ptrdiff_t *a_row, const real *b, real *c, const ptrdiff_t *c_row,
                             const real *init)
{
    RK_HALF_VECTOR acc[24], column[4];
    const real *pa[RK_MAX_ROWS], *const past = b + s->inner * s->b_inner;
    const ptrdiff_t a_inner = s->a_inner, b_inner = s->b_inner;
    ptrdiff_t ia = 0;
    RK_FOR (m, mr) {
        const real *from = init ? init : c + c_row[m];
        pa[m] = a + a_row[m];
        RK_FOR (v, nc)
            acc[m * nc + v] = RK_HALF_OF(loadu)(from + v * LANES);
    }
    do {
        RK_FOR (v, nc) {
            column[v] = RK_HALF_OF(loadu)(b + v * LANES);
            if (mr > 1) RK_IN_REGISTER(column[v]);
        }
        RK_FOR (m, mr) {
            const RK_HALF_VECTOR row = RK_HALF_OF(set1)(pa[m][ia]);
            RK_FOR (v, nc)
                acc[m * nc + v] = RK_HALF_OF(fmadd)(row, column[v], acc[m * nc + v]);
        }
        ia += a_inner;
        __asm__("" : "+r"(ia));
        b += b_inner;
        __asm__("" : "+r"(b));
    } while (b != past);
    RK_FOR (m, mr) {
        RK_FOR (v, nc)
            RK_HALF_OF(storeu)(c + c_row[m] + v * LANES, acc[m * nc + v]);
    }
}
#define RK_HALF_TILE(mr, nc)                                                                       \
    static __attribute__((noinline)) void RK(half_tile_##mr##_##nc)(                               \
        const RK(stretch) * s, const real *a, const ptrdiff_t *a_row, const real *b, real *c,      \
        const ptrdiff_t *c_row, const real *init)                                                  \
    {                                                                                              \
        RK(half_tile)(mr, nc, s, a, a_row, b, c, c_row, init);                                     \
    }
#define RK_HALF_TILES(nc)                                                                          \
    RK_HALF_TILE(1, nc)                                                                            \
    RK_HALF_TILE(2, nc)                                                                            \
    RK_HALF_TILE(3, nc)                                                                            \
    RK_HALF_TILE(4, nc) RK_HALF_TILE(5, nc) RK_HALF_TILE(6, nc)
RK_HALF_TILES(3)
RK_HALF_TILE(7, 3)
RK_HALF_TILE(8, 3)
RK_HALF_TILES(4)
/* [vectors - 3][rows - 1]: cells with several gates and a vector for each */
static RK(tile_function) *const RK(half_tiles)[2][RK_MAX_ROWS] = {
    {RK(half_tile_1_3), RK(half_tile_2_3), RK(half_tile_3_3), RK(half_tile_4_3), RK(half_tile_5_3),
     RK(half_tile_6_3), RK(half_tile_7_3), RK(half_tile_8_3)},
    {RK(half_tile_1_4), RK(half_tile_2_4), RK(half_tile_3_4), RK(half_tile_4_4), RK(half_tile_5_4),
     RK(half_tile_6_4)},
};
#endif

/* Tiles of one or two rows over several blocks, [vectors - 1][blocks - 1]. */
static RK(tile_function) *const RK(one_row_tiles)[4][4] = {
    {RK(tile_1_1_1), RK(tile_1_2_1), RK(tile_1_3_1), RK(tile_1_4_1)},
    {RK(tile_1_1_2), RK(tile_1_2_2), RK(tile_1_3_2), RK(tile_1_4_2)},
    {RK(tile_1_1_3), RK(tile_1_2_3), RK(tile_1_3_3), RK(tile_1_4_3)},
    {RK(tile_1_1_4), RK(tile_1_2_4), RK(tile_1_3_4), RK(tile_1_4_4)},
};
#if RK_REGISTERS == 32
static RK(tile_function) *const RK(two_row_tiles)[4][2] = {
    {RK(tile_2_1_1), RK(tile_2_2_1)},
    {RK(tile_2_1_2), RK(tile_2_2_2)},
    {RK(tile_2_1_3), RK(tile_2_2_3)},
    {RK(tile_2_1_4), RK(tile_2_2_4)},
};
#endif

#if RK_REGISTERS == 16
/* Few rows, whose tiles would leave accumulators free, take two blocks at once: of each all vectors
 * but the last, `whole`, then the last one of both. A single block goes by two parts of the rows.
 */
#define RK_BY_TWO(mr, nc, whole, first_rows, other_rows)                                           \
    RK_TILE(mr, 2, 1)                                                                              \
    static void RK(two_blocks_##mr##_##nc)(const RK(stretch) * s, const real *a,                   \
                                           const ptrdiff_t *a_row, const real *b, real *c,         \
                                           const ptrdiff_t *c_row, const real *init)               \
    {                                                                                              \
        RK(tile_##mr##_1_##whole)(s, a, a_row, b, c, c_row, init);                                 \
        RK(tile_##mr##_1_##whole)(s, a, a_row, b + s->b_block, c + s->c_block, c_row,              \
                                  init ? init + s->init_block : NULL);                             \
        RK(tile_##mr##_2_1)(s, a, a_row, b + whole * LANES, c + whole * LANES, c_row,              \
                            init ? init + whole * LANES : NULL);                                   \
    }                                                                                              \
    static void RK(two_parts_##mr##_##nc)(const RK(stretch) * s, const real *a,                    \
                                          const ptrdiff_t *a_row, const real *b, real *c,          \
                                          const ptrdiff_t *c_row, const real *init)                \
    {                                                                                              \
        RK(tile_##first_rows##_1_##nc)(s, a, a_row, b, c, c_row, init);                            \
        RK(tile_##other_rows##_1_##nc)(s, a, a_row + first_rows, b, c, c_row + first_rows, init);  \
    }
RK_BY_TWO(4, 4, 3, 2, 2)
RK_BY_TWO(5, 3, 2, 3, 2)
RK_BY_TWO(6, 3, 2, 3, 3)
#endif

/* Whether some rows with nc vectors are such. */
RK_INLINE int RK(go_by_two)(ptrdiff_t rows, ptrdiff_t nc)
{
    return RK_REGISTERS == 16 && (nc == 4 ? rows == 4 : nc == 3 && (rows == 5 || rows == 6));
}

/* The tile for some rows, and how many blocks it takes at once of those that are left. A row takes
 * `most` if it can. */
RK_INLINE RK(tile_function) *
    RK(choose_tile)(ptrdiff_t rows, ptrdiff_t nc, ptrdiff_t left, ptrdiff_t most, ptrdiff_t *blocks)
{
    if (rows == 1) {
        /* as even as can be: 4 blocks are 2 + 2 where 3 fit, not 3 + 1; by a constant where it can
         * be, and not at all by 1, since a short step waits for a division */
        const ptrdiff_t fit = nc == 4 && RK_REGISTERS == 16 ? 3 : 4;
        const ptrdiff_t groups = most < fit ? (left + most - 1) / most : (left + fit - 1) / fit;
        *blocks = groups == 1 ? left : (left + groups - 1) / groups;
        return RK(one_row_tiles)[nc - 1][*blocks - 1];
    }
#if RK_REGISTERS == 32
    if (rows == 2 && left > 1) {
        *blocks = 2;
        return RK(two_row_tiles)[nc - 1][1];
    }
#else
    if (RK(go_by_two)(rows, nc)) {
        *blocks = left > 1 ? 2 : 1;
        switch (rows) {
        case 4: return left > 1 ? RK(two_blocks_4_4) : RK(two_parts_4_4);
        case 5: return left > 1 ? RK(two_blocks_5_3) : RK(two_parts_5_3);
        case 6: return left > 1 ? RK(two_blocks_6_3) : RK(two_parts_6_3);
        default: __builtin_unreachable();
        }
    }
#endif
    *blocks = 1;
    return NULL;
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
        /* of many rows, those of more loops are more streams than a core sees coming */
        if (p->rows > RK_FEW_STREAMS && cut.outer > RK_STREAMS) cut.outer = RK_STREAMS;
    }
    return cut;
}

/* Has a tile ask L2 for so many bytes, some at each step. */
RK_INLINE void RK(tile_asks)(RK(stretch) * s, const char *from, ptrdiff_t bytes)
{
    const ptrdiff_t steps = s->outer * s->inner;
    s->ahead = from;
    s->ahead_step = (bytes + steps - 1) / steps;
}

/* How far the regions are that a product asks for. */
typedef struct {
    const rk_region *region;
    ptrdiff_t count, piece, at; /* of regions that are left, and where in the first of them */
    ptrdiff_t bytes;            /* for a tile */
} RK(later);

/* The same for a tile's share of them. */
RK_INLINE void RK(tile_asks_later)(RK(stretch) * s, RK(later) * l)
{
    const rk_region *const region = l->region;
    const ptrdiff_t rest = region->bytes - l->at, bytes = rest < l->bytes ? rest : l->bytes;
    RK(tile_asks)(s, (const char *)region->from + l->piece * region->piece + l->at, bytes);
    l->at += bytes;
    if (l->at < region->bytes) return;
    l->at = 0;
    if (++l->piece < region->pieces) return;
    l->piece = 0;
    l->region++;
    l->count--;
}

/* How much of the regions each of so many tiles asks for, none of two pieces: in whole lines, and
 * at most so much. */
static ptrdiff_t RK(bytes_of_tile)(const rk_product *p, ptrdiff_t all, ptrdiff_t tiles,
                                   ptrdiff_t most)
{
    ptrdiff_t bytes = (all / tiles + 64) / 64 * 64;
    for (; bytes < most; bytes += (bytes / 8 + 63) / 64 * 64) {
        ptrdiff_t wanted = 0;
        for (ptrdiff_t i = 0; i < p->later_count; i++)
            wanted += (p->later[i].bytes + bytes - 1) / bytes * p->later[i].pieces;
        if (wanted <= tiles) return bytes;
    }
    return most;
}

/* Columns first..first+nc of every block. A single tile of rows reads B once, and may take the last
 * block first: what one step used last the next one finds in L1. */
RK_INLINE void RK(product_group)(const rk_product *p, const int nc, ptrdiff_t first,
                                 ptrdiff_t blocks, int last_first, int half, RK(epilogue) * done,
                                 const void *context)
{
    const RK(cut) cut = RK(cut_k)(p, nc);
    const ptrdiff_t full = RK(go_by_two)(p->rows, nc) ? p->rows : RK_FULL_ROWS(nc);
    const ptrdiff_t tiles = (p->rows + full - 1) / full;
    const ptrdiff_t base = tiles ? p->rows / tiles : 0, extra = p->rows - base * tiles;
    const ptrdiff_t b_bytes = blocks * p->outer * p->inner * nc * RK_VECTOR_BYTES;
    RK(later) later = {p->later, RK_TILES_ASK ? p->later_count : 0, 0, 0, 0};
    ptrdiff_t later_bytes = 0;
    for (ptrdiff_t i = 0; i < later.count; i++)
        later_bytes += p->later[i].bytes * p->later[i].pieces;
    /* tiles that ask take longer where there are 16 registers: not worth it for a little of what a
     * product reads */
    if (RK_REGISTERS == 16 && p->rows * blocks * nc * p->outer * p->inner >= 2 * later_bytes)
        later.count = later_bytes = 0;
    /* what is swept to and fro goes by as many blocks as L1 holds: two, or it is not worth it */
    ptrdiff_t most = 4;
    if (tiles == 1 && b_bytes > RK_L1_BYTES && 2 * b_bytes <= blocks * RK_L1_BYTES)
        most = blocks * RK_L1_BYTES / b_bytes;
    else
        last_first = 0;
    RK(stretch)
    s = {.a_outer = p->a_outer,
         .a_inner = p->a_inner,
         .b_outer = p->b_outer,
         .b_inner = p->b_inner,
         .b_block = p->b_block,
         .c_block = p->c_block,
         .init_block = p->init_block};

    for (ptrdiff_t taken = 0, step; taken < blocks; taken += step) {
        RK(tile_function) *const few = RK(choose_tile)(p->rows, nc, blocks - taken, most, &step);
        const ptrdiff_t block = last_first ? blocks - taken - step : taken;
        ptrdiff_t o = 0, i = 0;
        do {
            s.outer = p->outer - o < cut.outer ? p->outer - o : cut.outer;
            s.inner = p->inner - i < cut.inner ? p->inner - i : cut.inner;
            const real *a = (const real *)p->a + o * p->a_outer + i * p->a_inner;
            const real *b = (const real *)p->b + block * p->b_block + o * p->b_outer +
                            i * p->b_inner + first * LANES;
            real *c = (real *)p->c + block * p->c_block + first * LANES;
            const real *init = p->init && !o && !i
                                   ? (const real *)p->init + block * p->init_block + first * LANES
                                   : NULL;
            i += s.inner;
            if (i >= p->inner) {
                i = 0;
                o += s.outer;
            }
            const int complete = o >= p->outer;
            /* The next panel comes from beyond L2 where B is large, so L2 is asked for it, by the
             * tiles: in a burst it blocks their own loads. Few tiles have no time for all lines:
             * they ask for every second, where processors bring lines in pairs, or for the first
             * ones. Where tiles do not ask, a few lines follow each. */
            const ptrdiff_t steps = s.outer * s.inner;
            ptrdiff_t lines = steps * nc * RK_VECTOR_BYTES / 64;
            if ((b_bytes < RK_L2_BYTES / 2 && !p->ahead) || p->b_inner != nc * LANES ||
                tiles < RK_FEWEST_TILES)
                lines = 0;
            const ptrdiff_t pace = tiles < 4 && !rk_reads_fast() ? 2 : 1;
            const ptrdiff_t share = tiles ? (lines + tiles - 1) / tiles : 0;
            later.bytes = 0;
            if (later_bytes) { /* for the tiles that no panel wants, of all stretches and blocks */
                const ptrdiff_t idle = tiles - (lines + steps * pace - 1) / (steps * pace);
                const ptrdiff_t stretches = (p->outer * p->inner + steps - 1) / steps;
                if (idle > 0) /* a line a step */
                    later.bytes =
                        RK(bytes_of_tile)(p, later_bytes, idle * stretches * blocks, steps * 64);
            }
            const char *const next = p->ahead && complete && block + step >= blocks
                                         ? p->ahead
                                         : (const char *)(b + steps * nc * LANES);
            for (ptrdiff_t tile = 0, row = 0, mr; tile < tiles; tile++, row += mr) {
                mr = base + (tile < extra);
                RK(tile_function) *tile_of = few ? few : RK(tiles)[nc - 1][mr - 1];
#if RK_VECTOR_BYTES == 64
                if (half) tile_of = RK(half_tiles)[nc - 3][mr - 1];
#endif
                /* or for C of the next tile: sums of a gradient, or a reserve that nobody has yet
                 * written to, lie beyond L2; other numbers may lie between its rows */
                ptrdiff_t sums = tile + 1 == tiles ? 0 : mr * nc * RK_VECTOR_BYTES;
                const char *const next_c = (const char *)(sums ? c + p->c_row[row + mr] : c);
                const ptrdiff_t apart = next_c - (const char *)(c + p->c_row[row]);
                if (sums < apart && apart <= 2 * sums) sums = apart;
                if (RK_REGISTERS == 16 && !lines)
                    for (ptrdiff_t j = 0; j < sums; j += 64)
                        __builtin_prefetch(next_c + j, 1, 2);
                int asks = RK_REGISTERS == 32 || (RK_TILES_ASK && !few && nc > 2 && mr > 1);
                if (asks) {
                    const ptrdiff_t asked = tile * steps * pace;
                    if (asked < lines)
                        RK(tile_asks)(&s, next + asked * 64, steps * pace * 64);
                    else if (later.count > 0 && later.bytes > 0)
                        RK(tile_asks_later)(&s, &later);
                    else if (RK_REGISTERS == 32)
                        RK(tile_asks)(&s, next_c, sums);
                    else
                        asks = 0;
                }
#if RK_REGISTERS == 16
                if (asks) tile_of = RK(asking_tiles)[nc - 3][mr - 2];
#endif
                tile_of(&s, a, p->a_row + row, b, c, p->c_row + row, init);
                if (!RK_TILES_ASK)
                    for (ptrdiff_t j = tile * share; j < lines && j < tile * share + share; j++)
                        __builtin_prefetch(next + j * 64, 0, 2);
            }
            if (complete && done) done(context, block, step, 0, p->rows);
        } while (o < p->outer);
    }
}

static void RK(product_any)(const rk_product *p, ptrdiff_t nc, ptrdiff_t first, ptrdiff_t blocks,
                            int half)
{
    if (blocks <= 0) return;
    switch (nc) {
    case 1: RK(product_group)(p, 1, first, blocks, 0, 0, NULL, NULL); break;
    case 2: RK(product_group)(p, 2, first, blocks, 0, 0, NULL, NULL); break;
    case 3: RK(product_group)(p, 3, first, blocks, 0, half, NULL, NULL); break;
    case 4: RK(product_group)(p, 4, first, blocks, 0, half, NULL, NULL); break;
    default: __builtin_unreachable();
    }
}

/* Vectors in groups of at most four, as even as can be; the last block apart where it has
 * fewer. */
static void RK(product_columns)(const rk_product *p, ptrdiff_t vectors, ptrdiff_t blocks, int half)
{
    const ptrdiff_t groups = (vectors + 3) / 4;
    for (ptrdiff_t g = 0, first = 0, nc; g < groups; g++, first += nc) {
        nc = (vectors - first + groups - g - 1) / (groups - g);
        RK(product_any)(p, nc, first, blocks, half);
    }
}

/* C = init. */
static void RK(fill)(const rk_product *p)
{
    for (ptrdiff_t row = 0; row < p->rows; row++) {
        for (ptrdiff_t block = 0; block < p->blocks; block++) {
            const ptrdiff_t vectors = block + 1 < p->blocks ? p->vectors : p->last_vectors;
            const real *from = (const real *)p->init + block * p->init_block;
            real *to = (real *)p->c + p->c_row[row] + block * p->c_block;
            for (ptrdiff_t v = 0; v < vectors; v++)
                RK(vstore)(to + v * LANES, RK(vload)(from + v * LANES));
        }
    }
}

static void RK(product)(const rk_product *p)
{
    if (p->outer * p->inner == 0) {
        if (p->init) RK(fill)(p);
        return;
    }
    const int half = RK_HALVES && p->half_of_last && p->outer == 1 && p->last_vectors >= 3 &&
                     p->last_vectors <= 4;
    const ptrdiff_t whole = p->blocks - (half || p->last_vectors < p->vectors);
    RK(product_columns)(p, p->vectors, whole, 0);
    if (whole == p->blocks) return;
    rk_product last = *p;
    last.b = (const real *)p->b + whole * p->b_block;
    last.c = (real *)p->c + whole * p->c_block;
    if (p->init) last.init = (const real *)p->init + whole * p->init_block;
    if (whole) last.later_count = 0;
    RK(product_columns)(&last, p->last_vectors, 1, half);
}

/* small_weights.h - the product of rnnkernel.h with a B that is stored smaller, for inference
 * that is bound by streaming weights. Float only.
 *
 * Half (IEEE binary16): every element widens exactly, and is summed as a float would be. The
 * result has the bits of the product with the widened weights.
 *
 * Int8: B[k][j] = scale[j] * q[k][j], and the scale stays out of the sum:
 *
 *     C[r][j] = fma(scale[j], sum over k of A[r][k] * q[k][j], init[j] or C[r][j])
 *
 * where the sum starts at 0 and is one chain of fused multiply-adds, k ascending. It adds to what
 * is there last, not first; beside that the rule of bits holds: a column's result depends on its
 * operands alone. Where int8 lies in quads, quads.h has another rule.
 */
#if !RK_DOUBLE

#define RK_SMALL_ROWS (RK_REGISTERS == 16 ? 3 : 4)

/* LANES elements as floats. */
RK_INLINE vec RK(widen_half)(const unsigned short *p)
{
#if RK_VECTOR_BYTES == 64
    return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif RK_VECTOR_BYTES == 32
    return (vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#elif defined(__aarch64__)
    return (vec)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
#else
    ivec h;
    RK_FOR (i, RK(LANES))
        h[i] = p[i];
    const ivec magnitude = h & 0x7fff, exponent = magnitude >> 10;
    /* the exponent's bias grows from 15 to 127, and its largest value stays the largest */
    const ivec rebased = (magnitude << 13) + ((127 - 15) << 23);
    const ivec special = rebased + ((127 - 15) << 23);
    /* denormals are integers times 2^-24, and normal as floats */
    const vec tiny = __builtin_convertvector(magnitude, vec) * 0x1p-24f;
    vec w = RK(vselect)(exponent == 31, (vec)special, (vec)rebased);
    w = RK(vselect)(exponent == 0, tiny, w);
    return (vec)((ivec)w | (h >> 15) << 31);
#endif
}

RK_INLINE vec RK(widen_int8)(const signed char *p)
{
#if RK_VECTOR_BYTES == 64
    return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
#elif RK_VECTOR_BYTES == 32
    return (vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
#elif defined(__aarch64__)
    int four;
    __builtin_memcpy(&four, p, sizeof four);
    const int16x8_t wide = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)));
    return (vec)vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
#else
    ivec q;
    RK_FOR (i, RK(LANES))
        q[i] = p[i];
    return __builtin_convertvector(q, vec);
#endif
}

/* One tile over all of k: mr rows x nb blocks x nc vectors. */
RK_INLINE void RK(small_tile)(const int int8, const int mr, const int nb, const int nc,
                              const rk_small_product *q, const real *const *a, const char *b,
                              real *const *c, const real *init, const real *scale)
{
    const rk_product *p = &q->product;
    const ptrdiff_t size = int8 ? 1 : 2, b_block = p->b_block * size;
    const ptrdiff_t a_inner = p->a_inner, b_inner = p->b_inner * size;
    vec acc[16];
    RK_FOR (m, mr) {
        RK_FOR (w, nb) {
            const real *from = init ? init + w * p->init_block : c[m] + w * p->c_block;
            RK_FOR (v, nc)
                acc[(m * nb + w) * nc + v] = int8 ? (vec){0} : RK(vload)(from + v * LANES);
        }
    }
    for (ptrdiff_t k = 0; k < p->inner; k++) {
        vec row[4];
        RK_FOR (m, mr)
            row[m] = RK(vset)(a[m][k * a_inner]);
        RK_FOR (w, nb) {
            RK_FOR (v, nc) {
                const char *at = b + w * b_block + v * LANES * size;
                const vec column = int8 ? RK(widen_int8)((const signed char *)at)
                                        : RK(widen_half)((const unsigned short *)at);
                RK_FOR (m, mr) {
                    const int j = (m * nb + w) * nc + v;
                    acc[j] = RK(vfma)(row[m], column, acc[j]);
                }
            }
        }
        b += b_inner;
    }
    RK_FOR (m, mr) {
        RK_FOR (w, nb) {
            const real *from = init ? init + w * p->init_block : c[m] + w * p->c_block;
            RK_FOR (v, nc) {
                vec sum = acc[(m * nb + w) * nc + v];
                if (int8)
                    sum = RK(vfma)(RK(vload)(scale + w * q->scale_block + v * LANES), sum,
                                   RK(vload)(from + v * LANES));
                RK(vstore)(c[m] + w * p->c_block + v * LANES, sum);
            }
        }
    }
}

/* Functions of their own, for the reason that product.h gives. */
typedef void RK(small_function)(const rk_small_product *, const real *const *a, const char *b,
                                real *const *c, const real *init, const real *scale);
#define RK_SMALL_TILE(int8, mr, nb, nc)                                                            \
    static __attribute__((noinline)) void RK(small_tile_##int8##_##mr##_##nb##_##nc)(              \
        const rk_small_product *q, const real *const *a, const char *b, real *const *c,            \
        const real *init, const real *scale)                                                       \
    {                                                                                              \
        RK(small_tile)(int8, mr, nb, nc, q, a, b, c, init, scale);                                 \
    }
#if RK_REGISTERS == 32
#define RK_SMALL_LARGEST(int8, nc) RK_SMALL_TILE(int8, 4, 1, nc)
#define RK_SMALL_FOUR(int8, nc) RK(small_tile_##int8##_4_1_##nc)
#else
#define RK_SMALL_LARGEST(int8, nc)
#define RK_SMALL_FOUR(int8, nc) NULL
#endif
#define RK_SMALL_TILES(int8, nc)                                                                   \
    RK_SMALL_TILE(int8, 1, 1, nc)                                                                  \
    RK_SMALL_TILE(int8, 1, 2, nc)                                                                  \
    RK_SMALL_TILE(int8, 1, 3, nc)                                                                  \
    RK_SMALL_TILE(int8, 1, 4, nc)                                                                  \
    RK_SMALL_TILE(int8, 2, 1, nc)                                                                  \
    RK_SMALL_TILE(int8, 3, 1, nc)                                                                  \
    RK_SMALL_LARGEST(int8, nc)
RK_SMALL_TILES(0, 1)
RK_SMALL_TILES(0, 2)
RK_SMALL_TILES(0, 3)
RK_SMALL_TILES(0, 4)
RK_SMALL_TILES(1, 1)
RK_SMALL_TILES(1, 2)
RK_SMALL_TILES(1, 3)
RK_SMALL_TILES(1, 4)

/* [int8][vectors - 1]: blocks of one row, then rows of one block */
#define RK_SMALL_ROW(int8, nc)                                                                     \
    {RK(small_tile_##int8##_1_1_##nc), RK(small_tile_##int8##_1_2_##nc),                           \
     RK(small_tile_##int8##_1_3_##nc), RK(small_tile_##int8##_1_4_##nc)}
#define RK_SMALL_BLOCK(int8, nc)                                                                   \
    {RK(small_tile_##int8##_1_1_##nc), RK(small_tile_##int8##_2_1_##nc),                           \
     RK(small_tile_##int8##_3_1_##nc), RK_SMALL_FOUR(int8, nc)}
static RK(small_function) *const RK(small_row_tiles)[2][4][4] = {
    {RK_SMALL_ROW(0, 1), RK_SMALL_ROW(0, 2), RK_SMALL_ROW(0, 3), RK_SMALL_ROW(0, 4)},
    {RK_SMALL_ROW(1, 1), RK_SMALL_ROW(1, 2), RK_SMALL_ROW(1, 3), RK_SMALL_ROW(1, 4)},
};
static RK(small_function) *const RK(small_block_tiles)[2][4][4] = {
    {RK_SMALL_BLOCK(0, 1), RK_SMALL_BLOCK(0, 2), RK_SMALL_BLOCK(0, 3), RK_SMALL_BLOCK(0, 4)},
    {RK_SMALL_BLOCK(1, 1), RK_SMALL_BLOCK(1, 2), RK_SMALL_BLOCK(1, 3), RK_SMALL_BLOCK(1, 4)},
};

/* One row of half weights in vectors of 32 bytes where RK_HALVES: AMD's processors widen two of
 * these a cycle, and one of 64 in two cycles. Twice as many accumulators, so at most three blocks.
 */
#if RK_VECTOR_BYTES == 64
RK_INLINE void RK(narrow_tile)(const int nb, const int nc, const rk_small_product *q,
                               const real *const *a, const char *b, real *const *c,
                               const real *init)
{
    const rk_product *p = &q->product;
    const ptrdiff_t b_block = p->b_block * 2, a_inner = p->a_inner, b_inner = p->b_inner * 2;
    __m256 acc[24];
    RK_FOR (w, nb) {
        const real *from = init ? init + w * p->init_block : c[0] + w * p->c_block;
        RK_FOR (v, 2 * nc)
            acc[w * 2 * nc + v] = _mm256_loadu_ps(from + v * 8);
    }
    for (ptrdiff_t k = 0; k < p->inner; k++) {
        const __m256 row = _mm256_set1_ps(a[0][k * a_inner]);
        RK_FOR (w, nb) {
            RK_FOR (v, 2 * nc) {
                const __m128i *at = (const __m128i *)(b + w * b_block + v * 16);
                const int j = w * 2 * nc + v;
                acc[j] = _mm256_fmadd_ps(row, _mm256_cvtph_ps(_mm_loadu_si128(at)), acc[j]);
            }
        }
        b += b_inner;
    }
    RK_FOR (w, nb) {
        RK_FOR (v, 2 * nc)
            _mm256_storeu_ps(c[0] + w * p->c_block + v * 8, acc[w * 2 * nc + v]);
    }
}
#define RK_NARROW_TILE(nb, nc)                                                                     \
    static __attribute__((noinline)) void RK(narrow_tile_##nb##_##nc)(                             \
        const rk_small_product *q, const real *const *a, const char *b, real *const *c,            \
        const real *init, const real *scale)                                                       \
    {                                                                                              \
        (void)scale;                                                                               \
        RK(narrow_tile)(nb, nc, q, a, b, c, init);                                                 \
    }
#define RK_NARROW_TILES(nc) RK_NARROW_TILE(1, nc) RK_NARROW_TILE(2, nc) RK_NARROW_TILE(3, nc)
RK_NARROW_TILES(1)
RK_NARROW_TILES(2)
RK_NARROW_TILES(3)
RK_NARROW_TILES(4)
/* [vectors - 1][blocks - 1] */
static RK(small_function) *const RK(narrow_tiles)[4][3] = {
    {RK(narrow_tile_1_1), RK(narrow_tile_2_1), RK(narrow_tile_3_1)},
    {RK(narrow_tile_1_2), RK(narrow_tile_2_2), RK(narrow_tile_3_2)},
    {RK(narrow_tile_1_3), RK(narrow_tile_2_3), RK(narrow_tile_3_3)},
    {RK(narrow_tile_1_4), RK(narrow_tile_2_4), RK(narrow_tile_3_4)},
};
#endif

/* The tile for some rows of some blocks. */
RK_INLINE RK(small_function) *
    RK(choose_small_tile)(int int8, int narrow, ptrdiff_t nc, ptrdiff_t rows, ptrdiff_t blocks)
{
#if RK_VECTOR_BYTES == 64
    if (narrow) return RK(narrow_tiles)[nc - 1][blocks - 1];
#else
    (void)narrow;
#endif
    return rows == 1 ? RK(small_row_tiles)[int8][nc - 1][blocks - 1]
                     : RK(small_block_tiles)[int8][nc - 1][rows - 1];
}

/* nc columns of every block, from vector `first` on. */
static void RK(small_group)(const rk_small_product *q, ptrdiff_t nc, ptrdiff_t first,
                            ptrdiff_t blocks, RK(epilogue) * done, const void *context)
{
    const rk_product *p = &q->product;
    const int int8 = q->storage == RK_INT8;
#ifdef RK_QUADS
    if (rk_in_quads(q->storage)) {
        RK(quad_group)(q, nc, first, blocks, done, context);
        return;
    }
#endif
    const ptrdiff_t size = int8 ? 1 : 2;
    const int narrow = !int8 && p->rows == 1 && RK_HALVES;
    const ptrdiff_t most = p->rows > 1 ? 1 : narrow || (nc == 4 && RK_REGISTERS == 16) ? 3 : 4;
    const ptrdiff_t tiles = (p->rows + RK_SMALL_ROWS - 1) / RK_SMALL_ROWS;
    for (ptrdiff_t block = 0, step; block < blocks; block += step) {
        const ptrdiff_t left = blocks - block, groups = (left + most - 1) / most;
        step = (left + groups - 1) / groups;
        const char *b = (const char *)p->b + (block * p->b_block + first * LANES) * size;
        real *to = (real *)p->c + block * p->c_block + first * LANES;
        const real *init =
            p->init ? (const real *)p->init + block * p->init_block + first * LANES : NULL;
        const real *scale =
            int8 ? (const real *)q->scale + block * q->scale_block + first * LANES : NULL;
        for (ptrdiff_t tile = 0, row = 0, mr; tile < tiles; tile++, row += mr) {
            mr = (p->rows - row + tiles - tile - 1) / (tiles - tile);
            const real *a[4];
            real *c[4];
            for (ptrdiff_t m = 0; m < mr; m++) {
                a[m] = (const real *)p->a + p->a_row[row + m];
                c[m] = to + p->c_row[row + m];
            }
            RK(choose_small_tile)(int8, narrow, nc, mr, step)(q, a, b, c, init, scale);
        }
        if (done) done(context, block, step, 0, p->rows);
    }
}

/* As RK(product): groups of at most four vectors, the last block apart where it has fewer. */
static void RK(small_product)(const rk_small_product *q)
{
    const rk_product *p = &q->product;
    const ptrdiff_t whole = p->blocks - (p->last_vectors < p->vectors);
    rk_small_product last = *q;
    ptrdiff_t first = 0, nc;
    for (ptrdiff_t groups = (p->vectors + 3) / 4; groups > 0; groups--, first += nc) {
        nc = (p->vectors - first + groups - 1) / groups;
        RK(small_group)(q, nc, first, whole, NULL, NULL);
    }
    if (whole == p->blocks) return;
    const ptrdiff_t size = q->storage == RK_HALF ? 2 : 1;
    last.product.b = (const char *)p->b + whole * p->b_block * size;
    last.product.c = (real *)p->c + whole * p->c_block;
    if (p->init) last.product.init = (const real *)p->init + whole * p->init_block;
    if (q->scale) last.scale = (const real *)q->scale + whole * q->scale_block;
    RK(small_group)(&last, p->last_vectors, 0, 1, NULL, NULL);
}

#undef RK_SMALL_ROWS
#undef RK_SMALL_TILE
#undef RK_SMALL_LARGEST
#undef RK_SMALL_FOUR
#undef RK_SMALL_TILES
#undef RK_NARROW_TILE
#undef RK_NARROW_TILES
#undef RK_SMALL_ROW
#undef RK_SMALL_BLOCK
#endif

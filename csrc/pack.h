/* pack.h - weights into the panels that the products stream, and weight gradients back.
 *
 * Panel of the forward products and of weight gradients: [block][K][gates][U].
 * Panel of the transposed products (dh, dx): [column block][unit block][gates][U][4 vectors],
 * whose k runs over (unit block, gate, unit), the order in which dgates lie in memory.
 * Units and columns past the end are zero, so that no tile needs a special case.
 *
 * The first is a transpose, made of tiles of LANES x LANES in registers: a vector of each of LANES
 * rows in, a vector of each of LANES columns out. A tile at the end of K covers columns of the one
 * before once more. An index may choose columns: then tiles are those of all columns that have
 * some of the chosen, of which these alone are packed, and between which zeros are unpacked.
 */

enum {
    RK(PACK_STRIP) = 128, /* columns that are packed of all gates of a block before the next: what
                             is read and written lies in L2, and whole cache lines at a time */
    RK(PACK_BLOCKS) = 8,  /* column blocks that share one pass over the rows */
    /* columns to one chosen, from which on those chosen are moved one by one; from beyond L2 */
    RK(FEW_CHOSEN) = 4,
    RK(FEW_FAR) = 64,
};

/* Element j of the two vectors that a pair of a transpose's stage becomes: where bit s of j is set
 * they come from the second. */
#define RK_LOW(j, s) ((j) & (s) ? RK(LANES) + (j) - (s) : (j))
#define RK_HIGH(j, s) ((j) & (s) ? RK(LANES) + (j) : (j) + (s))
#define RK_EACH_2(f, j, s) f((j), s), f((j) + 1, s)
#define RK_EACH_4(f, j, s) RK_EACH_2(f, j, s), RK_EACH_2(f, (j) + 2, s)
#define RK_EACH_8(f, j, s) RK_EACH_4(f, j, s), RK_EACH_4(f, (j) + 4, s)
#define RK_EACH_16(f, j, s) RK_EACH_8(f, j, s), RK_EACH_8(f, (j) + 8, s)
#if defined(__clang__)
#define RK_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define RK_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif
#define RK_LANES (RK_VECTOR_BYTES / (RK_DOUBLE ? 8 : 4))
#if RK_LANES == 2
#define RK_EACH(f, s) RK_EACH_2(f, 0, s)
#elif RK_LANES == 4
#define RK_EACH(f, s) RK_EACH_4(f, 0, s)
#elif RK_LANES == 8
#define RK_EACH(f, s) RK_EACH_8(f, 0, s)
#else
#define RK_EACH(f, s) RK_EACH_16(f, 0, s)
#endif

/* Exchanges, in pairs of rows s apart, the elements that lie s off the diagonal. */
#define RK_STAGE(s)                                                                                \
    RK_FOR (i, LANES) {                                                                            \
        if (i & (s)) continue;                                                                     \
        const vec a = m[i], b = m[i + (s)];                                                        \
        m[i] = RK_SHUFFLE(a, b, RK_EACH(RK_LOW, s));                                               \
        m[i + (s)] = RK_SHUFFLE(a, b, RK_EACH(RK_HIGH, s));                                        \
    }

RK_INLINE void RK(transpose)(vec m[RK_LANES])
{
#if RK_LANES > 8
    RK_STAGE(8)
#endif
#if RK_LANES > 4
    RK_STAGE(4)
#endif
#if RK_LANES > 2
    RK_STAGE(2)
#endif
    RK_STAGE(1)
}

/* A tile of the canonical rows: LANES columns; rows past `valid` are zero. */
RK_INLINE void RK(load_tile)(vec m[RK_LANES], const real *from, ptrdiff_t row, ptrdiff_t valid)
{
    RK_FOR (i, LANES) {
        m[i] = (vec){0};
        if (i >= valid) continue;
        m[i] = RK(vload)(from);
        from += row;
    }
}
RK_INLINE void RK(store_tile)(const vec m[RK_LANES], real *to, ptrdiff_t row, ptrdiff_t valid)
{
    RK_FOR (i, LANES) {
        if (i >= valid) continue;
        RK(vstore)(to, m[i]);
        to += row;
    }
}

/* The same columns of the rows that come next. */
#define RK_ASK(next, row, writes)                                                                  \
    RK_FOR (i, LANES)                                                                              \
        __builtin_prefetch((next) + i * (row), writes, 2);

/* Columns k0..k1 of a vector of units of one gate, both ways. */
RK_INLINE void RK(pack_units)(const rk_packing *p, const real *canonical, ptrdiff_t valid,
                              real *packed, ptrdiff_t width, ptrdiff_t k0, ptrdiff_t k1,
                              const real *next)
{
    const ptrdiff_t row = p->canonical_row;
    if (k1 - k0 < LANES) {
        for (ptrdiff_t k = k0; k < k1; k++)
            for (ptrdiff_t u = 0; u < LANES; u++)
                packed[k * width + u] = u < valid ? canonical[u * row + k] : 0;
        return;
    }
    for (ptrdiff_t k = k0; k < k1; k += LANES) {
        if (k > k1 - LANES) k = k1 - LANES;
        vec m[RK_LANES];
        RK(load_tile)(m, canonical + k, row, valid);
        if (next) RK_ASK(next + k, row, 0)
        RK(transpose)(m);
        real *to = packed + k * width;
        RK_FOR (j, LANES) {
            RK(vstore)(to, m[j]);
            to += width;
        }
    }
}
RK_INLINE void RK(unpack_units)(const rk_packing *p, real *canonical, ptrdiff_t valid,
                                const real *packed, ptrdiff_t width, ptrdiff_t k0, ptrdiff_t k1,
                                const real *next)
{
    const ptrdiff_t row = p->canonical_row;
    if (k1 - k0 < LANES) {
        for (ptrdiff_t u = 0; u < valid; u++)
            for (ptrdiff_t k = k0; k < k1; k++)
                canonical[u * row + k] = packed[k * width + u];
        return;
    }
    for (ptrdiff_t k = k0; k < k1; k += LANES) {
        if (k > k1 - LANES) k = k1 - LANES;
        vec m[RK_LANES];
        const real *from = packed + k * width;
        RK_FOR (j, LANES) {
            m[j] = RK(vload)(from);
            from += width;
        }
        if (next) RK_ASK(next + k, row, 1)
        RK(transpose)(m);
        RK(store_tile)(m, canonical + k, row, valid);
    }
}

/* The canonical column where the panel's k begins; what lies between the chosen is the k before's,
 * and the first's. */
RK_INLINE ptrdiff_t RK(column)(const rk_packing *p, ptrdiff_t k)
{
    if (!p->columns) return k;
    return k == 0 ? 0 : k < p->k ? p->columns[k] : p->all;
}

/* The same of columns that the index chose. */
RK_INLINE void RK(pack_chosen)(const rk_packing *p, const real *canonical, ptrdiff_t valid,
                               real *packed, ptrdiff_t width, ptrdiff_t k0, ptrdiff_t k1,
                               const real *next)
{
    const ptrdiff_t row = p->canonical_row, *columns = p->columns;
    const ptrdiff_t few = (next ? RK(FEW_FAR) : RK(FEW_CHOSEN)) * (k1 - k0);
    if (p->all < LANES || columns[k1 - 1] - columns[k0] > few) {
        for (ptrdiff_t k = k0; k < k1; k++)
            for (ptrdiff_t u = 0; u < LANES; u++)
                packed[k * width + u] = u < valid ? canonical[u * row + columns[k]] : 0;
        return;
    }
    for (ptrdiff_t k = k0; k < k1;) {
        const ptrdiff_t begin = columns[k] < p->all - LANES ? columns[k] : p->all - LANES;
        vec m[RK_LANES];
        RK(load_tile)(m, canonical + begin, row, valid);
        if (next) RK_ASK(next + begin, row, 0)
        RK(transpose)(m);
        for (; k < k1 && columns[k] < begin + LANES; k++)
            RK(vstore)(packed + k * width, m[columns[k] - begin]);
    }
}
RK_INLINE void RK(unpack_chosen)(const rk_packing *p, real *canonical, ptrdiff_t valid,
                                 const real *packed, ptrdiff_t width, ptrdiff_t k0, ptrdiff_t k1,
                                 const real *next)
{
    const ptrdiff_t row = p->canonical_row, *columns = p->columns;
    ptrdiff_t begin = RK(column)(p, k0), past = RK(column)(p, k1);
    const ptrdiff_t few = (next ? RK(FEW_FAR) : RK(FEW_CHOSEN)) * (k1 - k0);
    if (past - begin < LANES || past - begin > few) {
        for (ptrdiff_t u = 0; u < valid; u++) {
            __builtin_memset(canonical + u * row + begin, 0, (size_t)(past - begin) * sizeof(real));
            for (ptrdiff_t k = k0; k < k1; k++)
                canonical[u * row + columns[k]] = packed[k * width + u];
        }
        return;
    }
    for (ptrdiff_t k = k0; begin < past; begin += LANES) {
        if (begin > past - LANES) {
            begin = past - LANES;
            while (k > k0 && columns[k - 1] >= begin)
                k--;
        }
        vec m[RK_LANES];
        RK_FOR (j, LANES)
            m[j] = (vec){0};
        for (; k < k1 && columns[k] < begin + LANES; k++)
            m[columns[k] - begin] = RK(vload)(packed + k * width);
        if (next) RK_ASK(next + begin, row, 1)
        RK(transpose)(m);
        RK(store_tile)(m, canonical + begin, row, valid);
    }
}

/* The canonical rows that become vector v of a block. */
RK_INLINE real *RK(rows_of)(const rk_packing *p, ptrdiff_t block, ptrdiff_t v)
{
    const ptrdiff_t unit = (block * p->unit_vectors + v % p->unit_vectors) * LANES;
    return (real *)p->canonical +
           (p->order[v / p->unit_vectors] * p->hidden + unit) * p->canonical_row;
}

/* Packs or unpacks every vector of units of the blocks, strip by strip of the columns, with where
 * the canonical rows of the next begin: those that come from beyond L2 are asked for meanwhile. The
 * case of whole tiles is compiled apart. */
#define RK_FOR_PANEL(p, how)                                                                       \
    const ptrdiff_t vectors = p->gates * p->unit_vectors, width = vectors * LANES;                 \
    const ptrdiff_t begin = RK(column)(p, p->k_begin);                                             \
    const int far = p->gates * p->hidden * p->all > RK_L2_BYTES / 2 / (int)sizeof(real);           \
    for (ptrdiff_t block = p->block_begin; block < p->block_end; block++) {                        \
        real *panel = (real *)p->packed + block * p->k * width;                                    \
        for (ptrdiff_t k0 = p->k_begin; k0 < p->k_end; k0 += RK(PACK_STRIP)) {                     \
            const ptrdiff_t k1 =                                                                   \
                p->k_end - k0 < 2 * RK(PACK_STRIP) ? p->k_end : k0 + RK(PACK_STRIP);               \
            const ptrdiff_t first = RK(column)(p, k0), past = RK(column)(p, k1);                   \
            for (ptrdiff_t v = 0; v < vectors; v++) {                                              \
                const ptrdiff_t unit = (block * p->unit_vectors + v % p->unit_vectors) * LANES;    \
                const ptrdiff_t valid = p->hidden - unit < LANES ? p->hidden - unit : LANES;       \
                const real *next = NULL;                                                           \
                if (far)                                                                           \
                    next = v + 1 < vectors ? RK(rows_of)(p, block, v + 1)                          \
                           : k1 < p->k_end ? RK(rows_of)(p, block, 0) + past - first               \
                                           : RK(rows_of)(p, block + 1, 0) + begin - first;         \
                real *rows = RK(rows_of)(p, block, v), *packed = panel + v * LANES;                \
                if (p->columns)                                                                    \
                    RK(how##_chosen)(p, rows, valid, packed, width, k0, k1, next);                 \
                else if (valid == LANES)                                                           \
                    RK(how##_units)(p, rows, LANES, packed, width, k0, k1, next);                  \
                else                                                                               \
                    RK(how##_units)(p, rows, valid, packed, width, k0, k1, next);                  \
            }                                                                                      \
            if (k1 == p->k_end) break;                                                             \
        }                                                                                          \
    }

static void RK(pack)(const rk_packing *p) { RK_FOR_PANEL(p, pack) }
static void RK(unpack)(const rk_packing *p){RK_FOR_PANEL(p, unpack)}

/* The columns of one row that a block has; zeros past `valid`. */
RK_INLINE void RK(copy_columns)(real *to, const real *from, ptrdiff_t valid)
{
    RK_FOR (v, RK_TRANSPOSED_VECTORS) {
        if (valid >= LANES) {
            RK(vstore)(to, RK(vload)(from));
        } else {
            for (ptrdiff_t j = 0; j < LANES; j++)
                to[j] = j < valid ? from[j] : 0;
        }
        to += LANES, from += LANES, valid -= LANES;
    }
}

/* Here blocks are column blocks. Some at once: a row is read for more than a few cache lines. */
static void RK(pack_transposed)(const rk_packing *p)
{
    const ptrdiff_t units = p->unit_vectors * LANES, columns = RK_TRANSPOSED_VECTORS * LANES;
    const ptrdiff_t unit_blocks = (p->hidden + units - 1) / units;
    const ptrdiff_t panel = unit_blocks * p->gates * units * columns;
    for (ptrdiff_t begin = p->block_begin; begin < p->block_end; begin += RK(PACK_BLOCKS)) {
        const ptrdiff_t end =
            p->block_end - begin < RK(PACK_BLOCKS) ? p->block_end : begin + RK(PACK_BLOCKS);
        real *to = (real *)p->packed + begin * panel;
        for (ptrdiff_t ub = 0; ub < unit_blocks; ub++) {
            for (ptrdiff_t g = 0; g < p->gates; g++) {
                for (ptrdiff_t u = 0; u < units; u++, to += columns) {
                    const ptrdiff_t unit = ub * units + u;
                    const real *from = (const real *)p->canonical +
                                       (p->order[g] * p->hidden + unit) * p->canonical_row;
                    for (ptrdiff_t block = begin; block < end; block++) {
                        const ptrdiff_t valid = unit < p->hidden ? p->k - block * columns : 0;
                        RK(copy_columns)(to + (block - begin) * panel, from + block * columns,
                                         valid);
                    }
                }
            }
        }
    }
}

#undef RK_LOW
#undef RK_HIGH
#undef RK_EACH_2
#undef RK_EACH_4
#undef RK_EACH_8
#undef RK_EACH_16
#undef RK_EACH
#undef RK_SHUFFLE
#undef RK_STAGE
#undef RK_LANES
#undef RK_FOR_PANEL
#undef RK_ASK

/* pack.h - weights into the panels that the products stream, and weight gradients back.
 *
 * Panel of the forward products and of weight gradients: [block][K][gates][U].
 * Panel of the transposed products (dh, dx): [column block][unit block][gates][U][4 vectors],
 * whose k runs over (unit block, gate, unit), the order in which dgates lie in memory.
 * Units and columns past the end are zero, so that no tile needs a special case.
 */
#define RK_PACK_STRIP 16 /* columns at once: a cache line of a row of floats */

static void RK(pack)(const rk_packing *p)
{
    const ptrdiff_t units = p->unit_vectors * LANES, width = p->gates * units;
    for (ptrdiff_t block = p->block_begin; block < p->block_end; block++) {
        real *panel = (real *)p->packed + block * p->k * width;
        for (ptrdiff_t k0 = 0; k0 < p->k; k0 += RK_PACK_STRIP) {
            const ptrdiff_t k1 = p->k - k0 < RK_PACK_STRIP ? p->k : k0 + RK_PACK_STRIP;
            for (ptrdiff_t g = 0; g < p->gates; g++) {
                for (ptrdiff_t u = 0; u < units; u++) {
                    const ptrdiff_t unit = block * units + u;
                    real *to = panel + g * units + u;
                    if (unit >= p->hidden) {
                        for (ptrdiff_t k = k0; k < k1; k++)
                            to[k * width] = 0;
                        continue;
                    }
                    const real *from = (const real *)p->canonical +
                                       (p->order[g] * p->hidden + unit) * p->canonical_row;
                    for (ptrdiff_t k = k0; k < k1; k++)
                        to[k * width] = from[k];
                }
            }
        }
    }
}

static void RK(unpack)(const rk_packing *p)
{
    const ptrdiff_t units = p->unit_vectors * LANES, width = p->gates * units;
    for (ptrdiff_t block = p->block_begin; block < p->block_end; block++) {
        const real *panel = (const real *)p->packed + block * p->k * width;
        const ptrdiff_t valid =
            p->hidden - block * units < units ? p->hidden - block * units : units;
        for (ptrdiff_t k0 = 0; k0 < p->k; k0 += RK_PACK_STRIP) {
            const ptrdiff_t k1 = p->k - k0 < RK_PACK_STRIP ? p->k : k0 + RK_PACK_STRIP;
            for (ptrdiff_t g = 0; g < p->gates; g++) {
                for (ptrdiff_t u = 0; u < valid; u++) {
                    const real *from = panel + g * units + u;
                    real *to = (real *)p->canonical +
                               (p->order[g] * p->hidden + block * units + u) * p->canonical_row;
                    for (ptrdiff_t k = k0; k < k1; k++)
                        to[k] = from[k * width];
                }
            }
        }
    }
}

/* Here blocks are column blocks. */
static void RK(pack_transposed)(const rk_packing *p)
{
    const ptrdiff_t units = p->unit_vectors * LANES, columns = RK_TRANSPOSED_VECTORS * LANES;
    const ptrdiff_t unit_blocks = (p->hidden + units - 1) / units;
    for (ptrdiff_t block = p->block_begin; block < p->block_end; block++) {
        const ptrdiff_t first = block * columns;
        const ptrdiff_t valid = p->k - first < columns ? p->k - first : columns;
        real *to = (real *)p->packed + block * unit_blocks * p->gates * units * columns;
        for (ptrdiff_t ub = 0; ub < unit_blocks; ub++) {
            for (ptrdiff_t g = 0; g < p->gates; g++) {
                for (ptrdiff_t u = 0; u < units; u++, to += columns) {
                    const ptrdiff_t unit = ub * units + u;
                    const ptrdiff_t some = unit < p->hidden ? valid : 0;
                    const real *from = (const real *)p->canonical +
                                       (p->order[g] * p->hidden + unit) * p->canonical_row + first;
                    for (ptrdiff_t j = 0; j < some; j++)
                        to[j] = from[j];
                    for (ptrdiff_t j = some; j < columns; j++)
                        to[j] = 0;
                }
            }
        }
    }
}

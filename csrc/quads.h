/* quads.h - the product with int8 weights by sums of integers, where the processor multiplies and
 * adds four bytes at a time (VNNI): three instructions for 64 weights, where floats take twelve.
 *
 * B[k][j] = scale[j] * q[k][j], with q in bytes, four k's of a column side by side. The row of A is
 * made of integers too. k goes in pieces of RK_QUAD_PIECE; in each
 *
 *     n[k] = A[r][k] / 2^u, to the nearest integer, |n| <= 2^22
 *     n[k] = digit[0][k] + 2^8 digit[1][k] + 2^16 (digit[2][k] - 2^6), unsigned bytes
 *     S[d] = sum over k of digit[d][k] * q[k][j]; of d = 2, (digit - 2^6) * q
 *     C[r][j] = fma(scale[j], 2^u fma(2^8, fma(2^8, S[2], S[1]), S[0]), init[j] or C[r][j])
 *
 * where 2^(u + 22) is the least power of two above all |A[r][k]| of the piece, or 2^-104. A piece
 * with a NaN or an infinity gives NaN. What A loses is at most 2^-23 of its largest element, as
 * much as a float loses there. Integers have no order: any cut gives these bits.
 *
 * A block's panel is, of each piece, the row of -2^6 times the sum of q over k, where S[2] starts,
 * as integers; then its quads.
 */
#if !RK_DOUBLE && RK_VECTOR_BYTES == 64
enum { RK_QUAD_BYTES = 32768, RK_QUAD_ROWS = 64 };

/* In each of 16 lanes four unsigned bytes of `digits` times four signed ones of `weights`, added to
 * the sum. Said in assembly, since GCC moves its intrinsic's accumulators to and fro. */
#define RK_ADD_QUADS(sum, digits, weights)                                                         \
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(digits), "v"(weights))

/* Bits of the largest magnitude; a NaN's are above those of infinity. */
RK_INLINE int RK(largest_bits)(const real *a, ptrdiff_t count)
{
    __m512i most = _mm512_setzero_si512();
    for (ptrdiff_t k = 0; k < count; k += LANES)
        most = _mm512_max_epi32(most, (__m512i)RK(vabs)(RK(vload_part)(a + k, count - k)));
    return _mm512_reduce_max_epi32(most);
}

/* Some elements of a row: of each quad [digit][k], and 4 bytes that nobody reads. Returns 2^u. */
static real RK(quantise)(const real *a, ptrdiff_t count, char *digits)
{
    const int largest = RK(largest_bits)(a, count);
    const int exponent = largest >> 23 > 22 ? largest >> 23 : 22;
    /* From 1.5 * 2^23 on floats are integers, and the bits below those of 2^23 count from 2^22. */
    const vec per_unit = (vec)_mm512_set1_epi32((275 - exponent) << 23);
    const vec zero = RK(vset)(12582912.0f);
    const __m512i by_digit =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    for (ptrdiff_t k = 0; k < count; k += LANES) {
        __m512i quads = (__m512i)RK(vfma)(RK(vload_part)(a + k, count - k), per_unit, zero);
        __asm__("vpshufb %1, %0, %0" : "+v"(quads) : "v"(by_digit));
        _mm512_store_si512(digits + 4 * k, quads);
    }
    const int unit = largest < 0x7f800000 ? (exponent - 21) << 23 : 0x7fc00000;
    real as_float;
    __builtin_memcpy(&as_float, &unit, sizeof unit);
    return as_float;
}

/* mr rows x nc vectors of one block over a piece. */
RK_INLINE void RK(quad_tile)(const int mr, const int nc, ptrdiff_t quads, ptrdiff_t pitch,
                             ptrdiff_t b_quad, const char *digits, const real *units, const char *b,
                             real *const *c, const real *init, const real *scale)
{
    __m512i acc[8][3];
    RK_FOR (m, mr) {
        RK_FOR (v, nc) {
            acc[m * nc + v][0] = acc[m * nc + v][1] = _mm512_setzero_si512();
            acc[m * nc + v][2] = _mm512_loadu_si512(b + v * 64);
        }
    }
    for (ptrdiff_t k = 0; k < quads; k++) {
        b += b_quad;
        __m512i weights[4];
        RK_FOR (v, nc) {
            weights[v] = _mm512_loadu_si512(b + v * 64);
            RK_IN_REGISTER(weights[v]);
        }
        RK_FOR (m, mr) {
            RK_FOR (d, 3) {
                int four;
                __builtin_memcpy(&four, digits + m * pitch + 16 * k + 4 * d, sizeof four);
                const __m512i digit = _mm512_set1_epi32(four);
                RK_FOR (v, nc)
                    RK_ADD_QUADS(acc[m * nc + v][d], digit, weights[v]);
            }
        }
    }
    const vec base = RK(vset)(256.0f);
    RK_FOR (m, mr) {
        const vec unit = RK(vset)(units[m]);
        RK_FOR (v, nc) {
            const __m512i *s = acc[m * nc + v];
            vec sum = (vec)_mm512_cvtepi32_ps(s[2]);
            sum = RK(vfma)(sum, base, (vec)_mm512_cvtepi32_ps(s[1]));
            sum = RK(vfma)(sum, base, (vec)_mm512_cvtepi32_ps(s[0])) * unit;
            const vec from = RK(vload)((init ? init : c[m]) + v * LANES);
            RK(vstore)(c[m] + v * LANES, RK(vfma)(RK(vload)(scale + v * LANES), sum, from));
        }
    }
}

typedef void RK(quad_function)(ptrdiff_t quads, ptrdiff_t pitch, ptrdiff_t b_quad,
                               const char *digits, const real *units, const char *b, real *const *c,
                               const real *init, const real *scale);
#define RK_QUAD_TILE(mr, nc)                                                                       \
    static __attribute__((noinline)) void RK(quad_tile_##mr##_##nc)(                               \
        ptrdiff_t quads, ptrdiff_t pitch, ptrdiff_t b_quad, const char *digits, const real *units, \
        const char *b, real *const *c, const real *init, const real *scale)                        \
    {                                                                                              \
        RK(quad_tile)(mr, nc, quads, pitch, b_quad, digits, units, b, c, init, scale);             \
    }
RK_QUAD_TILE(1, 1)
RK_QUAD_TILE(1, 2)
RK_QUAD_TILE(1, 3)
RK_QUAD_TILE(1, 4)
RK_QUAD_TILE(2, 1)
RK_QUAD_TILE(2, 2)
RK_QUAD_TILE(2, 3)
RK_QUAD_TILE(2, 4)
/* [rows - 1][vectors - 1] */
static RK(quad_function) *const RK(quad_tiles)[2][4] = {
    {RK(quad_tile_1_1), RK(quad_tile_1_2), RK(quad_tile_1_3), RK(quad_tile_1_4)},
    {RK(quad_tile_2_1), RK(quad_tile_2_2), RK(quad_tile_2_3), RK(quad_tile_2_4)},
};

/* As RK(small_group). Rows go in as many as their digits have room for, since every block reads
 * them again. */
static void RK(quad_group)(const rk_small_product *q, ptrdiff_t nc, ptrdiff_t first,
                           ptrdiff_t blocks, RK(epilogue) * done, const void *context)
{
    const rk_product *p = &q->product;
    _Alignas(64) char digits[RK_QUAD_BYTES];
    real units[RK_QUAD_ROWS], gathered[RK_QUAD_PIECE];
    const ptrdiff_t b_quad = 4 * p->b_inner;
    const ptrdiff_t piece = p->inner < RK_QUAD_PIECE ? p->inner : RK_QUAD_PIECE;
    const ptrdiff_t pitch = 4 * ((piece + LANES - 1) / LANES * LANES);
    const ptrdiff_t fit = RK_QUAD_BYTES / pitch, most = fit < RK_QUAD_ROWS ? fit : RK_QUAD_ROWS;
    for (ptrdiff_t row = 0; row < p->rows; row += most) {
        const ptrdiff_t some = p->rows - row < most ? p->rows - row : most;
        const char *b = (const char *)p->b + first * 64;
        for (ptrdiff_t k = 0; k < p->inner; k += piece) {
            const ptrdiff_t count = p->inner - k < piece ? p->inner - k : piece;
            const ptrdiff_t quads = (count + 3) / 4;
            for (ptrdiff_t m = 0; m < some; m++) {
                const real *a = (const real *)p->a + p->a_row[row + m] + k * p->a_inner;
                if (p->a_inner != 1) {
                    for (ptrdiff_t i = 0; i < count; i++)
                        gathered[i] = a[i * p->a_inner];
                    a = gathered;
                }
                units[m] = RK(quantise)(a, count, digits + m * pitch);
            }
            for (ptrdiff_t block = 0; block < blocks; block++) {
                const ptrdiff_t column = first * LANES;
                const real *init =
                    p->init ? (const real *)p->init + block * p->init_block + column : NULL;
                const real *scale = (const real *)q->scale + block * q->scale_block + column;
                for (ptrdiff_t m = 0, mr; m < some; m += mr) {
                    real *c[2];
                    mr = some - m < 2 ? 1 : 2;
                    for (ptrdiff_t i = 0; i < mr; i++)
                        c[i] = (real *)p->c + block * p->c_block + p->c_row[row + m + i] + column;
                    RK(quad_function) *const tile = RK(quad_tiles)[mr - 1][nc - 1];
                    tile(quads, pitch, b_quad, digits + m * pitch, units + m,
                         b + block * p->b_block, c, k ? NULL : init, scale);
                }
                if (done && k + count == p->inner) done(context, block, 1, row, some);
            }
            b += (1 + quads) * b_quad;
        }
    }
}

static int RK(has_quads)(void)
{
    return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw");
}

#undef RK_ADD_QUADS
#undef RK_QUAD_TILE
#endif

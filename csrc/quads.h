/* quads.h - the product with int8 weights by sums of integers: RK_INT8_BYTES where the processor
 * multiplies and adds four bytes at a time (VNNI, or AArch64's dot product), three instructions for
 * a vector of weights where floats take twelve, and RK_INT8_WORDS where it does so with two words
 * of 16 bits (any with AVX2), six.
 *
 * B[k][j] = scale[j] * q[k][j], with q in bytes, four k's of a column side by side. The row of A is
 * made of integers too. k goes in pieces of RK_QUAD_PIECE; in each
 *
 *     n[k] = A[r][k] / 2^u, to the nearest integer, |n| <= 2^b
 *     C[r][j] = fma(scale[j], 2^u sum over k of n[k] * q[k][j], init[j] or C[r][j])
 *
 * where 2^(u + b) is the least power of two above all |A[r][k]| of the piece, or 2^-104. A piece
 * with a NaN or an infinity gives NaN. Integers have no order: any cut gives the same bits.
 *
 * By words b = 14, and the sum fits 32 bits. What A loses is at most 2^-14 of its largest element,
 * when q has lost 2^-8 of each column's. By bytes b = 22, A loses 2^-22, as much as a float loses
 * there, and
 *
 *     n[k] = digit[0][k] + 2^8 digit[1][k] + 2^16 (digit[2][k] - 2^6), unsigned bytes
 *     S[d] = sum over k of digit[d][k] * q[k][j]; of d = 2, (digit - 2^6) * q
 *     the sum is fma(2^8, fma(2^8, S[2], S[1]), S[0])
 *
 * A block's panel is, of each piece, the row of -2^6 times the sum of q over k, where S[2] starts,
 * as integers; then its quads. AArch64 multiplies signed bytes alone: its digits are less by 2^7,
 * and each S starts at 2^7 times the sum of q more.
 */
#if !RK_DOUBLE && (RK_VECTOR_BYTES >= 32 || (defined(RK_HAVE_DOT_PRODUCT) && RK_REGISTERS == 32))
#define RK_QUADS 1
enum { RK_QUAD_BYTES = 32768, RK_QUAD_ROWS = 64 };

/* -- The processor's words --------------------------------------------------------------------- */

/* RK_ADD_QUADS: in each lane four bytes of `digits` times four of `weights`, added to the sum.
 * Said in assembly, as what follows, since GCC moves its intrinsic's accumulators to and fro, and
 * AVX-512 has some in extensions of their own.
 *
 * vpdpbusd of 32 bytes has two encodings: AVX-VNNI's, of processors without AVX-512, which not
 * every assembler knows, and AVX-512's. Which one this processor runs, has_quads finds out, which
 * everyone asks first. */
enum { RK_OF_BYTES, RK_OF_AVX_BYTES, RK_OF_WORDS };
static int RK(how_of_bytes);

#if RK_VECTOR_BYTES == 16
#if defined(__linux__)
#include <sys/auxv.h>
#endif
#define RK_ADD_QUADS(of_avx, sum, digits, weights)                                                 \
    __asm__(".arch armv8.2-a+dotprod\n\tsdot %0.4s, %1.16b, %2.16b"                                \
            : "+w"(sum)                                                                            \
            : "w"(digits), "w"(weights))
#define RK_DIGIT_SIGN ((int)0x80808080)

static int RK(has_quads)(int storage)
{
    if (storage != RK_INT8_BYTES) return 0;
#if defined(__linux__)
    return getauxval(AT_HWCAP) >> 20 & 1; /* HWCAP_ASIMDDP */
#elif defined(__APPLE__)
    return 1;
#else
    return 0;
#endif
}

RK_INLINE ivec RK(larger)(ivec a, ivec b) { return (ivec)vmaxq_s32((int32x4_t)a, (int32x4_t)b); }
RK_INLINE int RK(largest_lane)(ivec a) { return vmaxvq_s32((int32x4_t)a); }
RK_INLINE ivec RK(shuffle_bytes)(ivec a, ivec places)
{
    return (ivec)vqtbl1q_u8((uint8x16_t)a, (uint8x16_t)places);
}
#else
#define RK_VPDPBUSD(prefix, sum, digits, weights)                                                  \
    __asm__(prefix "vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(digits), "v"(weights))
#define RK_DIGIT_SIGN 0
#define RK_WORDS 1

/* In each lane two words times two, summed. */
RK_INLINE ivec RK(multiply_words)(ivec a, ivec b)
{
    ivec sums;
    __asm__("vpmaddwd %1, %2, %0" : "=v"(sums) : "v"(a), "v"(b));
    return sums;
}
/* Bytes 0 and 2 of each lane as words, and bytes 1 and 3. */
RK_INLINE ivec RK(even_bytes)(ivec weights)
{
    const ivec of_even = (ivec){0} + 0x00010001;
    ivec words;
    __asm__("vpmaddubsw %1, %2, %0" : "=v"(words) : "v"(weights), "v"(of_even));
    return words;
}
RK_INLINE ivec RK(odd_bytes)(ivec weights)
{
    ivec words;
    __asm__("vpsraw $8, %1, %0" : "=v"(words) : "v"(weights));
    return words;
}

#if RK_VECTOR_BYTES == 32 && defined(RK_HAVE_AVX_VNNI)
#include <cpuid.h>
#define RK_ADD_QUADS(of_avx, sum, digits, weights)                                                 \
    do {                                                                                           \
        if (of_avx)                                                                                \
            RK_VPDPBUSD("%{vex%} ", sum, digits, weights);                                         \
        else                                                                                       \
            RK_VPDPBUSD("", sum, digits, weights);                                                 \
    } while (0)
static int RK(has_avx_vnni)(void)
{
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & 1 << 4);
}
#else
#define RK_ADD_QUADS(of_avx, sum, digits, weights) RK_VPDPBUSD("", sum, digits, weights)
static int RK(has_avx_vnni)(void) { return 0; }
#endif

static int RK(has_quads)(int storage)
{
    const int of_avx = RK(has_avx_vnni)();
    if (storage == RK_INT8_WORDS)
        return RK_VECTOR_BYTES == 32 || __builtin_cpu_supports("avx512bw");
    __atomic_store_n(&RK(how_of_bytes), of_avx ? RK_OF_AVX_BYTES : RK_OF_BYTES, __ATOMIC_RELAXED);
    return of_avx || (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl"));
}

#if RK_VECTOR_BYTES == 64
RK_INLINE ivec RK(larger)(ivec a, ivec b) { return (ivec)_mm512_max_epi32((__m512i)a, (__m512i)b); }
RK_INLINE int RK(largest_lane)(ivec a) { return _mm512_reduce_max_epi32((__m512i)a); }
#else
RK_INLINE ivec RK(larger)(ivec a, ivec b) { return (ivec)_mm256_max_epi32((__m256i)a, (__m256i)b); }
RK_INLINE int RK(largest_lane)(ivec a)
{
    const __m256i all = (__m256i)a;
    __m128i four = _mm_max_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1));
    return _mm_cvtsi128_si32(four);
}
#endif

/* Within each 16 bytes. In assembly, since AVX-512's has an extension of its own. */
RK_INLINE ivec RK(shuffle_bytes)(ivec a, ivec places)
{
    __asm__("vpshufb %1, %0, %0" : "+v"(a) : "v"(places));
    return a;
}
#endif

/* -- The product ------------------------------------------------------------------------------- */

/* Bits of the largest magnitude; a NaN's are above those of infinity. */
RK_INLINE int RK(largest_bits)(const real *a, ptrdiff_t count)
{
    ivec most = {0};
    for (ptrdiff_t k = 0; k < count; k += LANES)
        most = RK(larger)(most, (ivec)RK(vabs)(RK(vload_part)(a + k, count - k)));
    return RK(largest_lane)(most);
}

/* Some elements of a row: of each quad [digit][k], and 4 bytes that nobody reads; or words of k =
 * 0, 2, 1 and 3, and 8 such bytes. Returns 2^u. */
static real RK(quantise)(int words, const real *a, ptrdiff_t count, char *digits)
{
    const int bits = words ? 14 : 22;
    const int largest = RK(largest_bits)(a, count);
    const int exponent = largest >> 23 > 22 ? largest >> 23 : 22;
    /* From 1.5 * 2^23 on floats are integers, and the bits below those of 2^23 count from 2^22. */
    const vec per_unit = (vec)((ivec){0} + ((253 + bits - exponent) << 23));
    const vec zero = RK(vset)(12582912.0f);
    /* the places of digit 0 in four floats, those of digit 1, of 2 and of what is left */
    const int bytes[4] = {0x0c080400, 0x0d090501, 0x0e0a0602, 0x0f0b0703};
    /* the lower halves of floats 0 and 2, of 1 and 3 */
    const int halves[4] = {0x09080100, 0x0d0c0504, 0x09080100, 0x0d0c0504};
    ivec places;
    for (ptrdiff_t i = 0; i < LANES; i += 4)
        __builtin_memcpy((char *)&places + 4 * i, words ? halves : bytes, sizeof bytes);
    for (ptrdiff_t k = 0; k < count; k += LANES) {
        ivec quads = (ivec)RK(vfma)(RK(vload_part)(a + k, count - k), per_unit, zero);
        quads = RK(shuffle_bytes)(quads, places) ^ RK_DIGIT_SIGN;
        __builtin_memcpy(digits + 4 * k, &quads, sizeof quads);
    }
    const int unit = largest < 0x7f800000 ? (exponent - bits + 1) << 23 : 0x7fc00000;
    real as_float;
    __builtin_memcpy(&as_float, &unit, sizeof unit);
    return as_float;
}

/* Four bytes to all lanes. */
RK_INLINE ivec RK(broadcast)(const char *from)
{
    int four;
    __builtin_memcpy(&four, from, sizeof four);
    return (ivec){0} + four;
}

/* Vector v of C = init or C, and a sum times its scale. */
RK_INLINE void RK(add_scaled)(real *c, const real *init, const real *scale, int v, vec sum)
{
    const vec from = RK(vload)((init ? init : c) + v * LANES);
    RK(vstore)(c + v * LANES, RK(vfma)(RK(vload)(scale + v * LANES), sum, from));
}

/* A tile of one block over a piece: mr rows x nc vectors. Of 32 registers some have the weights, of
 * 16 the digits of a row. */
RK_INLINE void RK(tile_of_bytes)(const int of_avx, const int mr, const int nc, ptrdiff_t quads,
                                 ptrdiff_t pitch, ptrdiff_t b_quad, const char *digits,
                                 const real *units, const char *b, real *const *c, const real *init,
                                 const real *scale)
{
    ivec acc[8][3];
    RK_FOR (m, mr) {
        RK_FOR (v, nc) {
            ivec start;
            __builtin_memcpy(&start, b + v * RK_VECTOR_BYTES, RK_VECTOR_BYTES);
            const ivec more = RK_DIGIT_SIGN ? start * -2 : (ivec){0};
            acc[m * nc + v][0] = acc[m * nc + v][1] = more;
            acc[m * nc + v][2] = start + more;
        }
    }
    for (ptrdiff_t k = 0; k < quads; k++) {
        b += b_quad;
        ivec weights[4];
        RK_FOR (v, nc) {
            __builtin_memcpy(&weights[v], b + v * RK_VECTOR_BYTES, RK_VECTOR_BYTES);
            if (RK_REGISTERS == 32) RK_IN_REGISTER(weights[v]);
        }
        RK_FOR (m, mr) {
            ivec digit[3];
            RK_FOR (d, 3)
                digit[d] = RK(broadcast)(digits + m * pitch + 16 * k + 4 * d);
            RK_FOR (v, nc) {
                RK_FOR (d, 3)
                    RK_ADD_QUADS(of_avx, acc[m * nc + v][d], digit[d], weights[v]);
            }
        }
    }
    const vec base = RK(vset)(256.0f);
    RK_FOR (m, mr) {
        RK_FOR (v, nc) {
            const ivec *s = acc[m * nc + v];
            vec sum = __builtin_convertvector(s[2], vec);
            sum = RK(vfma)(sum, base, __builtin_convertvector(s[1], vec));
            sum = RK(vfma)(sum, base, __builtin_convertvector(s[0], vec)) * RK(vset)(units[m]);
            RK(add_scaled)(c[m], init, scale, v, sum);
        }
    }
}

#ifdef RK_WORDS
RK_INLINE void RK(tile_of_words)(const int mr, const int nc, ptrdiff_t quads, ptrdiff_t pitch,
                                 ptrdiff_t b_quad, const char *digits, const real *units,
                                 const char *b, real *const *c, const real *init, const real *scale)
{
    ivec acc[8] = {{0}};
    for (ptrdiff_t k = 0; k < quads; k++) {
        b += b_quad;
        ivec even[2], odd[2];
        RK_FOR (m, mr) {
            const char *at = digits + m * pitch + 16 * k;
            even[m] = RK(broadcast)(at);
            odd[m] = RK(broadcast)(at + 4);
        }
        RK_FOR (v, nc) {
            ivec weights;
            __builtin_memcpy(&weights, b + v * RK_VECTOR_BYTES, RK_VECTOR_BYTES);
            RK_IN_REGISTER(weights);
            const ivec evens = RK(even_bytes)(weights), odds = RK(odd_bytes)(weights);
            RK_FOR (m, mr)
                acc[m * nc + v] +=
                    RK(multiply_words)(evens, even[m]) + RK(multiply_words)(odds, odd[m]);
        }
    }
    RK_FOR (m, mr) {
        RK_FOR (v, nc) {
            const vec sum = __builtin_convertvector(acc[m * nc + v], vec) * RK(vset)(units[m]);
            RK(add_scaled)(c[m], init, scale, v, sum);
        }
    }
}
#endif

RK_INLINE void RK(quad_tile)(const int how, const int mr, const int nc, ptrdiff_t quads,
                             ptrdiff_t pitch, ptrdiff_t b_quad, const char *digits,
                             const real *units, const char *b, real *const *c, const real *init,
                             const real *scale)
{
#ifdef RK_WORDS
    if (how == RK_OF_WORDS) {
        RK(tile_of_words)(mr, nc, quads, pitch, b_quad, digits, units, b, c, init, scale);
        return;
    }
#endif
    /* 16 registers have no room for three sums of more vectors */
    const int rows = RK_REGISTERS == 16 && nc > 2 ? 1 : mr;
    for (int m = 0; m < mr; m += rows)
        RK(tile_of_bytes)(how == RK_OF_AVX_BYTES, rows, nc, quads, pitch, b_quad,
                          digits + m * pitch, units + m, b, c + m, init, scale);
}

typedef void RK(quad_function)(ptrdiff_t quads, ptrdiff_t pitch, ptrdiff_t b_quad,
                               const char *digits, const real *units, const char *b, real *const *c,
                               const real *init, const real *scale);
#define RK_QUAD_TILE(how, mr, nc)                                                                  \
    static __attribute__((noinline)) void RK(quad_tile_##how##_##mr##_##nc)(                       \
        ptrdiff_t quads, ptrdiff_t pitch, ptrdiff_t b_quad, const char *digits, const real *units, \
        const char *b, real *const *c, const real *init, const real *scale)                        \
    {                                                                                              \
        RK(quad_tile)(RK_OF_##how, mr, nc, quads, pitch, b_quad, digits, units, b, c, init,        \
                      scale);                                                                      \
    }
#define RK_QUAD_TILES(how)                                                                         \
    RK_QUAD_TILE(how, 1, 1)                                                                        \
    RK_QUAD_TILE(how, 1, 2)                                                                        \
    RK_QUAD_TILE(how, 1, 3)                                                                        \
    RK_QUAD_TILE(how, 1, 4)                                                                        \
    RK_QUAD_TILE(how, 2, 1)                                                                        \
    RK_QUAD_TILE(how, 2, 2)                                                                        \
    RK_QUAD_TILE(how, 2, 3)                                                                        \
    RK_QUAD_TILE(how, 2, 4)
#define RK_QUAD_ROW(how, mr)                                                                       \
    {RK(quad_tile_##how##_##mr##_1), RK(quad_tile_##how##_##mr##_2),                               \
     RK(quad_tile_##how##_##mr##_3), RK(quad_tile_##how##_##mr##_4)}
#define RK_QUAD_TABLE(how) [RK_OF_##how] = {RK_QUAD_ROW(how, 1), RK_QUAD_ROW(how, 2)}

RK_QUAD_TILES(BYTES)
#if RK_VECTOR_BYTES == 32
RK_QUAD_TILES(AVX_BYTES)
#endif
#ifdef RK_WORDS
RK_QUAD_TILES(WORDS)
#endif
/* [how][rows - 1][vectors - 1] */
static RK(quad_function) *const RK(quad_tiles)[3][2][4] = {
    RK_QUAD_TABLE(BYTES),
#if RK_VECTOR_BYTES == 32
    RK_QUAD_TABLE(AVX_BYTES),
#endif
#ifdef RK_WORDS
    RK_QUAD_TABLE(WORDS),
#endif
};

/* As RK(small_group). Rows go in as many as their digits have room for, since every block reads
 * them again. */
static void RK(quad_group)(const rk_small_product *q, ptrdiff_t nc, ptrdiff_t first,
                           ptrdiff_t blocks, RK(epilogue) * done, const void *context)
{
    const rk_product *p = &q->product;
    const int words = q->storage == RK_INT8_WORDS;
    const int how = words ? RK_OF_WORDS : __atomic_load_n(&RK(how_of_bytes), __ATOMIC_RELAXED);
    RK(quad_function) *const(*const tiles)[4] = RK(quad_tiles)[how];
    _Alignas(64) char digits[RK_QUAD_BYTES];
    real units[RK_QUAD_ROWS], gathered[RK_QUAD_PIECE];
    const ptrdiff_t b_quad = 4 * p->b_inner;
    const ptrdiff_t piece = p->inner < RK_QUAD_PIECE ? p->inner : RK_QUAD_PIECE;
    const ptrdiff_t pitch = 4 * ((piece + LANES - 1) / LANES * LANES);
    const ptrdiff_t fit = RK_QUAD_BYTES / pitch, most = fit < RK_QUAD_ROWS ? fit : RK_QUAD_ROWS;
    for (ptrdiff_t row = 0; row < p->rows; row += most) {
        const ptrdiff_t some = p->rows - row < most ? p->rows - row : most;
        const char *b = (const char *)p->b + first * RK_VECTOR_BYTES;
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
                units[m] = RK(quantise)(words, a, count, digits + m * pitch);
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
                    tiles[mr - 1][nc - 1](quads, pitch, b_quad, digits + m * pitch, units + m,
                                          b + block * p->b_block, c, k ? NULL : init, scale);
                }
                if (done && k + count == p->inner) done(context, block, 1, row, some);
            }
            b += (1 + quads) * b_quad;
        }
    }
}

#undef RK_ADD_QUADS
#undef RK_VPDPBUSD
#undef RK_DIGIT_SIGN
#undef RK_WORDS
#undef RK_QUAD_TILE
#undef RK_QUAD_TILES
#undef RK_QUAD_ROW
#undef RK_QUAD_TABLE
#endif

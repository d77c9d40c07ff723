/* dropout.h - what a layer hands to the next with some elements dropped (Srivastava et al. 2014).
 *
 *     out = 0 where the element is dropped, in / (1 - p) elsewhere
 *
 * Whether it is, is a function of its place: the words of Philox4x32-7 (Salmon et al., "Parallel
 * random numbers: as easy as 1, 2, 3", 2011; seven rounds pass its tests) with the seed as key and
 *
 *     counter = (u, row, low word of the step, high half word of the step + 65536 layer)
 *
 * so that it depends on no tile, thread, cut or instruction set, and backward draws it again.
 * The counters u = 16 g + lane make the four words of the units 64 g + 16 word + lane.
 */
enum { RK(DROP_LANES) = 16, RK(DROP_WORDS) = 4, RK(DROP_BITS) = 24 };

/* Seven rounds on 16 counters side by side; word[j][lane]. */
RK_INLINE void RK(philox)(unsigned word[4][RK(DROP_LANES)], unsigned key0, unsigned key1)
{
    for (int round = 0; round < 7; round++) {
        for (int lane = 0; lane < RK(DROP_LANES); lane++) {
            const unsigned long long product0 = 0xd2511f53ull * word[0][lane];
            const unsigned long long product1 = 0xcd9e8d57ull * word[2][lane];
            word[0][lane] = (unsigned)(product1 >> 32) ^ word[1][lane] ^ key0;
            word[1][lane] = (unsigned)product1;
            word[2][lane] = (unsigned)(product0 >> 32) ^ word[3][lane] ^ key1;
            word[3][lane] = (unsigned)product0;
        }
        key0 += 0x9e3779b9u;
        key1 += 0xbb67ae85u;
    }
}

static void RK(dropout)(const rk_dropout *p)
{
    const real scale = (real)p->scale;
    for (ptrdiff_t row = 0; row < p->rows; row++) {
        const real *in = (const real *)p->in + row * p->in_row;
        real *out = (real *)p->out + row * p->out_row;
        for (ptrdiff_t unit = 0; unit < p->width; unit += RK(DROP_WORDS) * RK(DROP_LANES)) {
            unsigned word[RK(DROP_WORDS)][RK(DROP_LANES)];
            for (int lane = 0; lane < RK(DROP_LANES); lane++) {
                word[0][lane] = (unsigned)(unit / RK(DROP_WORDS)) + (unsigned)lane;
                word[1][lane] = (unsigned)(p->first_row + row);
                word[2][lane] = (unsigned)p->step;
                word[3][lane] = (unsigned)(p->step >> 32) + ((unsigned)p->layer << 16);
            }
            RK(philox)(word, (unsigned)p->seed, (unsigned)(p->seed >> 32));
            const unsigned *drawn = &word[0][0];
            const ptrdiff_t left = p->width - unit, all = RK(DROP_WORDS) * RK(DROP_LANES);
            for (ptrdiff_t j = 0; j < (left < all ? left : all); j++) {
                const real kept = in[unit + j] * scale;
                const int number = (int)(drawn[j] >> (32 - RK(DROP_BITS)));
                out[unit + j] = number < p->threshold ? 0 : kept;
            }
        }
    }
}

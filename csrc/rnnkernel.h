/* rnnkernel.h - the whole C interface of the kernels.
 *
 * Functions here are total: no errors, no allocation, no threads, no Python. Every
 * argument has been checked before they are called. Each takes one struct with named
 * fields, because positional pointers of one type get swapped.
 *
 * Letters: T time steps, N batch rows, I inputs, H hidden units, P units of h (H without
 * projection), K length of a sum, S gate slots, U units in a block. All sizes and strides are in
 * elements. `void *` points to float or double, as the table says that the function was taken from.
 *
 * README.md beside this file draws the packed layouts.
 */
#ifndef RNNKERNEL_H
#define RNNKERNEL_H

#include <stddef.h>

/* -- What lies beyond L2 and is wanted there soon: pieces of so many bytes --------------------- */
typedef struct {
    const void *from;
    ptrdiff_t bytes;  /* of a piece */
    ptrdiff_t pieces; /* at least one */
    ptrdiff_t piece;  /* bytes from one to the next */
} rk_region;

/* -- Matrix product: C[r][j] = init[j] or C[r][j], then += sum over k of A[r][k] * B[k][j] ----
 *
 * k ascends as (outer, inner); every element is one chain of fused multiply-adds in that
 * order, whatever tile computes it: that rule alone makes results independent of batch
 * size, position and threads.
 *
 * Columns j lie in blocks of `vectors` vectors. A block's row of C is contiguous.
 * Strides may be negative or zero, but b_inner is not zero. C overlaps neither A nor B. */
typedef struct {
    ptrdiff_t rows;         /* R */
    ptrdiff_t blocks;       /* column blocks */
    ptrdiff_t vectors;      /* vectors of columns in a block */
    ptrdiff_t last_vectors; /* how many of them to compute in the last block (1..vectors) */
    int half_of_last;       /* whether nobody reads the second halves of its vectors: a hint */
    ptrdiff_t outer, inner; /* K = outer * inner */

    const void *a;                 /* broadcast operand */
    const ptrdiff_t *a_row;        /* (R) offset of each row of A */
    ptrdiff_t a_outer, a_inner;    /* strides along k */
    const void *b;                 /* vector operand */
    ptrdiff_t b_block;             /* stride between column blocks */
    ptrdiff_t b_outer, b_inner;    /* strides along k */
    void *c;                       /* result */
    const ptrdiff_t *c_row;        /* (R) offset of each row of C */
    ptrdiff_t c_block;             /* stride between column blocks */
    const void *init;              /* one row of starting values, or NULL: start from C */
    ptrdiff_t init_block;          /* its stride between column blocks */
    const void *ahead;             /* a panel as those of B, used next, from beyond L2; or NULL */
    const rk_region *later;        /* what else to ask for meanwhile */
    ptrdiff_t later_count;
} rk_product;

/* -- The same with a smaller B: small_weights.h and quads.h have its rules of summation ------- */
/* How the elements of packed weights are stored. The last two are in quads (quads.h), four k's of a
 * column side by side: a panel is [block][piece of k][1 row of integers, K / 4 rounded up][..][U][4
 * bytes]. They differ in what is multiplied with them: integers of bytes, or of 16 bits. */
enum { RK_WHOLE, RK_HALF, RK_INT8, RK_INT8_BYTES, RK_INT8_WORDS };
enum { RK_QUAD_PIECE = 1024 };

static inline int rk_in_quads(int storage) { return storage >= RK_INT8_BYTES; }

/* How many k's as long a block's panel is. */
static inline ptrdiff_t rk_panel_rows(ptrdiff_t k, int storage)
{
    if (!rk_in_quads(storage)) return k;
    return 4 * ((k + 3) / 4 + (k + RK_QUAD_PIECE - 1) / RK_QUAD_PIECE);
}

typedef struct {
    rk_product product; /* outer = 1; strides of B in its own elements */
    int storage;        /* of B: not RK_WHOLE */
    const void *scale;  /* of int8: of each column, laid out as a row of init */
    ptrdiff_t scale_block;
} rk_small_product;

/* -- Rows of a table: gather C[r] = init + table[r]; scatter table[r] += C[r], last r first -------
 * A table that is gathered may be stored smaller: it gives what the product of rk_small_product
 * with the row's one-hot vector gives. */
typedef struct {
    ptrdiff_t rows;
    ptrdiff_t blocks;
    ptrdiff_t vectors;          /* vectors of columns in a block */
    ptrdiff_t last_vectors;     /* how many of them to do in the last block */
    void *table;                /* [block][..][vectors] */
    const ptrdiff_t *table_row; /* (rows) offset of the table's row that belongs to each, were it
                                   not in quads */
    ptrdiff_t ahead;            /* rows by which they are asked for before their turn, or 0 */
    ptrdiff_t table_block;
    void *c;
    const ptrdiff_t *c_row; /* (rows) offsets */
    ptrdiff_t c_block;
    const void *init; /* gather: one row to add, or NULL */
    ptrdiff_t init_block;
    int storage;        /* gather: of the table, its strides in its own elements */
    const void *scale;  /* of int8: of each column, laid out as a row of init */
    ptrdiff_t scale_block;
} rk_lookup;

/* -- Packing: canonical weights (G*H, K) <-> panels [block][K][gates][U] ----------------------- */
typedef struct {
    ptrdiff_t hidden;                  /* H: units; those of the last block past H are zero */
    ptrdiff_t k;                       /* K: columns of the canonical matrix */
    ptrdiff_t gates;                   /* gates in the panel */
    const int *order;                  /* (gates) canonical gate of each gate in the panel */
    ptrdiff_t unit_vectors;            /* U in vectors */
    void *canonical;                   /* (G*H, K), read by pack and written by unpack */
    ptrdiff_t canonical_row;           /* stride of its rows; columns are contiguous */
    const ptrdiff_t *columns;          /* (K) which of them, ascending; NULL: the first K. Not of
                                          pack_transposed; unpack writes zeros to the others */
    ptrdiff_t all;                     /* how many there are, where some are chosen */
    void *packed;                      /* [block][K][gates][U], aligned to 64 bytes */
    ptrdiff_t block_begin, block_end;  /* which blocks to do */
    ptrdiff_t k_begin, k_end;          /* and which of the K columns. Not of pack_transposed */
} rk_packing;

/* -- One time step forward, one phase of a cell: product, then the cell's mathematics ---------- */
typedef struct {
    ptrdiff_t rows;   /* batch rows */
    ptrdiff_t hidden; /* H */
    ptrdiff_t projected; /* P */
    ptrdiff_t block_begin, block_end; /* unit blocks to compute; of `project` column blocks of P */
    int last_first; /* whether of few rows the last block is computed first */
    int half_of_last; /* as in rk_product */

    const void *operand; /* (rows, K=P) broadcast operand: h_prev, or r * h_prev; of `project`
                            (rows, K=H) o * tanh(c) */
    const ptrdiff_t *operand_row; /* (rows) offsets; of `project` those of h, too */
    const void *weights; /* packed recurrent weights of this phase, or W_hr */

    int storage; /* of weights */
    const void *scale; /* [block][slots][U] of int8 */
    const void *ahead; /* as in rk_product */

    void *gates; /* [block][rows][slots of memory][U]: in x-projection, out gates (and c) */
    const ptrdiff_t *gates_row; /* (rows) offsets: row * slots * U */
    ptrdiff_t gates_block;
    int keeps; /* whether backward will read them: else they may be left as anything but c */
    const void *c_prev; /* [block][rows][..U]; LSTM only */
    ptrdiff_t c_prev_row, c_prev_block;
    const void *peepholes; /* [block][3][U] of i, f, o; where the cell has them */
    double cell_clip; /* where the cell clips c */

    const void *h_prev; /* (rows, pitch) zero past P */
    void *h; /* (rows, pitch) new hidden state; for an early phase, its result */
    ptrdiff_t h_pitch;
    void *y; /* where h goes in the caller's output, units contiguous */
    const ptrdiff_t *y_row; /* (rows) offsets */
} rk_step;

/* -- One time step backward, one phase of a cell: the mathematics only ------------------------- */
typedef struct {
    ptrdiff_t rows;
    ptrdiff_t hidden;
    ptrdiff_t block_begin, block_end;

    const void *gates; /* as forward left them at this step */
    const ptrdiff_t *gates_row; /* (rows) offsets */
    ptrdiff_t gates_block;
    const void *c_prev;
    const ptrdiff_t *c_prev_row; /* (rows) offsets */
    ptrdiff_t c_prev_block;
    const void *peepholes; /* as in rk_step */
    double cell_clip;
    const void *h; /* h_t in the caller's output */
    const ptrdiff_t *h_row;
    const void *h_prev; /* h_{t-1}, there or in the initial state */
    const ptrdiff_t *h_prev_row;

    void *dh; /* (rows, pitch) in: all of dL/dh_t; out: dL/dh_{t-1} beside the product */
    void *dc; /* (rows, pitch) in: dL/dc_t from step t+1; out: dL/dc_{t-1}; LSTM only */
    ptrdiff_t dh_pitch;
    void *dgates; /* [block][rows][slots and peephole terms][U] out: dL/d(pre-activations) */
    const ptrdiff_t *dgates_row; /* (rows) offsets */
    ptrdiff_t dgates_block;
    void *early; /* (rows, H) out: what the first of two phases made, r * h_prev of GRU with reset
                    before, o * tanh(c) of LSTM with projection */
    const ptrdiff_t *early_row; /* (rows) offsets */
    const void *dearly; /* (rows, pitch) in: its gradient */
} rk_step_backward;

/* -- What arrives at h_t and c_t, before the cell's backward: dy joins, clipping acts ---------- */
typedef struct {
    ptrdiff_t rows;
    ptrdiff_t hidden, projected; /* units of dc, of dh and dy */
    void *dh; /* (rows, pitch) */
    void *dc; /* (rows, pitch) or NULL */
    ptrdiff_t pitch;
    const void *dy; /* dL/dy_t, or NULL */
    const ptrdiff_t *dy_row; /* (rows) offsets */
    ptrdiff_t dy_unit; /* stride between units */
    const ptrdiff_t *order; /* (ordered) the rows, counted from -first, in the order that dy has
                               them in memory, others among them; or NULL */
    ptrdiff_t ordered, first;
    double limit, norm_limit; /* of elements and of a row's norm; infinite: no clipping */
    double *dh_norm, *dc_norm; /* (rows) out: norm of each row before clipping, or NULL */
    void *dh_kept, *dc_kept; /* (rows, units) out: the rows themselves before clipping, or NULL */
    unsigned char *clipped; /* (rows) out: whether the row was changed, or NULL */
} rk_arrival;

/* -- sums[S][U] += rows of one block of dgates, in the order of the stride --------------------- */
typedef struct {
    ptrdiff_t rows;
    ptrdiff_t vectors; /* vectors in a row */
    const void *dgates;
    ptrdiff_t row_stride;
    double *sums;
} rk_row_sums;

/* -- Dropout between layers, of some rows of one step: csrc/dropout.h says what is drawn ------- */
typedef struct {
    ptrdiff_t rows, width;
    const void *in; /* units contiguous */
    ptrdiff_t in_row;
    void *out; /* likewise; may be `in` */
    ptrdiff_t out_row;
    ptrdiff_t first_row; /* the batch row of the first */
    unsigned long long seed, step;
    int layer;
    int threshold; /* p * 2^24: how many of so many numbers are dropped */
    double scale; /* of what is kept */
} rk_dropout;

/* -- The cross-entropy of a softmax: csrc/loss.h has the equations ----------------------------- */
typedef struct {
    ptrdiff_t positions, classes;
    const void *logits; /* [position][class] */
    const ptrdiff_t *targets; /* the right class */
    double share; /* of a position in the loss */
    void *dlogits; /* out: like logits */
    double *totals, *below; /* out: the loss is share * (log(total) + below) */
} rk_cross_entropy;

/* -- A step of Adam: csrc/updates.h has the equations ------------------------------------------ */
typedef struct {
    ptrdiff_t count;
    void *parameter, *mean, *square; /* each updated in place */
    const void *gradient;
    double beta1, beta2, rate, eps, decay;
} rk_adam;

/* -- The cells --------------------------------------------------------------------------------- */
/* The LSTM's options: any combination, added to RK_LSTM, is a cell. */
enum {
    RK_LSTM_PEEPHOLE = 1,
    RK_LSTM_CELL_CLIP = 2,
    RK_LSTM_COUPLED = 4,
    RK_LSTM_PROJECTED = 8,
    RK_LSTM_VARIANTS = 16
};
enum {
    RK_RNN_TANH,
    RK_RNN_RELU,
    RK_GRU_RESET_AFTER,
    RK_GRU_RESET_BEFORE,
    RK_LSTM,
    RK_CELLS = RK_LSTM + RK_LSTM_VARIANTS
};
enum { RK_MAX_GATES = 4, RK_MAX_SLOTS = 4, RK_MAX_PHASES = 2 };

/* A window is a run of neighbouring slots that one product fills. */
typedef struct {
    int slot; /* first slot */
    int slots; /* how many */
    int order[RK_MAX_GATES]; /* canonical gate of each */
} rk_window;

typedef struct {
    int gates; /* G: gates in the canonical weights */
    int slots; /* S: pre-activations kept apart */
    int memory_slots; /* slots of a row of the gate buffer: S, and one for c if there is a cell
                         state */
    int states; /* 1: h; 2: h and c */
    int unit_vectors; /* U in vectors */
    int keeps_gates; /* whether backward needs the gate buffer of every step */
    int carries; /* whether backward writes a part of dL/dh_{t-1} itself */
    int phases;
    rk_window input; /* filled by W_ih x */
    rk_window recurrent[RK_MAX_PHASES]; /* filled by W_hh, phase by phase */
    rk_window peephole; /* behind the S slots of a row of dgates, for the sums over rows: the terms
                           of the gradient of each block of the peepholes (i f o); often none */
    void (*forward[RK_MAX_PHASES])(const rk_step *);
    void (*project)(const rk_step *); /* a phase after those: h = W_hr of the last one's result; or
                                         NULL */
    void (*backward[RK_MAX_PHASES])(const rk_step_backward *); /* first the last forward phase's */
} rk_cell;

/* -- All kernels of one dtype and instruction set ---------------------------------------------- */
typedef struct {
    const char *isa;
    ptrdiff_t lanes; /* elements in a vector */
    ptrdiff_t full_rows; /* rows of the largest tile of four vectors */
    int (*fma_vectors)(void); /* vectors of multiply-adds that a core does in a cycle, about */
    rk_cell cells[RK_CELLS];
    void (*product)(const rk_product *);
    void (*fill)(const rk_product *); /* C[r][j] = init[j] and no more */
    void (*small_product)(const rk_small_product *); /* NULL for double */
    int (*has_quads)(int storage); /* whether it runs these; NULL where it has none */
    void (*gather)(const rk_lookup *);
    void (*scatter)(const rk_lookup *);
    void (*pack)(const rk_packing *);
    void (*unpack)(const rk_packing *);
    /* transposed panels [column block][unit block][gates][U][4 vectors of columns] */
    void (*pack_transposed)(const rk_packing *);
    void (*arrive)(const rk_arrival *);
    void (*row_sums)(const rk_row_sums *);
    void (*dropout)(const rk_dropout *);
    void (*adam)(const rk_adam *);
    double (*sum_of_squares)(const void *numbers, ptrdiff_t count);
    void (*scale)(void *numbers, ptrdiff_t count, double factor); /* in place */
    void (*sum_of_rows)(const void *rows, ptrdiff_t count, ptrdiff_t columns, double *sums);
    void (*cross_entropy)(const rk_cross_entropy *);
} rk_kernels;

enum { RK_FLOAT32, RK_FLOAT64, RK_DTYPES };
enum { RK_ALIGNMENT = 64, RK_TRANSPOSED_VECTORS = 4 };

/* Instruction sets compiled in, best last; NULL past the end. */
const char *rk_isa_name(int index);
/* Whether this processor and operating system run it. */
int rk_isa_usable(int index);
const rk_kernels *rk_isa_kernels(int index, int dtype);

/* Whether a core reads its L2, and L3, in less time than two rows take to be multiplied with what
 * it reads, and sees neighbouring lines coming: AMD's, whose L3 is that of a few cores. */
int rk_reads_fast(void);

/* Denormals are flushed to zero between the two; leave restores what enter returned. */
unsigned long long rk_fp_enter(void);
void rk_fp_leave(unsigned long long saved);

#endif

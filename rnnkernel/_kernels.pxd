# Mirror of csrc/rnnkernel.h, and the only place in the package that names C.
# The meaning of every field stands there. Py_ssize_t is its ptrdiff_t.

cdef extern from *:
    # NumPy's headers bring it, and its I is not the input size
    """
    #include <complex.h>
    #undef I
    """

cdef extern from "rnnkernel.h" nogil:
    ctypedef struct rk_region:
        const void *from_ "from"
        Py_ssize_t bytes, pieces, piece

    ctypedef struct rk_product:
        Py_ssize_t rows, blocks, vectors, last_vectors, outer, inner
        const void *a
        const Py_ssize_t *a_row
        Py_ssize_t a_outer, a_inner
        const void *b
        Py_ssize_t b_block, b_outer, b_inner
        void *c
        const Py_ssize_t *c_row
        Py_ssize_t c_block
        const void *init
        Py_ssize_t init_block
        const void *ahead
        const rk_region *later
        Py_ssize_t later_count
        bint half_of_last

    ctypedef struct rk_small_product:
        rk_product product
        int storage
        const void *scale
        Py_ssize_t scale_block

    ctypedef struct rk_lookup:
        Py_ssize_t rows, blocks, vectors, last_vectors
        void *table
        const Py_ssize_t *table_row
        Py_ssize_t ahead, table_block
        void *c
        const Py_ssize_t *c_row
        Py_ssize_t c_block
        const void *init
        Py_ssize_t init_block
        int storage
        const void *scale
        Py_ssize_t scale_block

    ctypedef struct rk_packing:
        Py_ssize_t hidden, k, gates
        const int *order
        Py_ssize_t unit_vectors
        void *canonical
        Py_ssize_t canonical_row
        const Py_ssize_t *columns
        Py_ssize_t all
        void *packed
        Py_ssize_t block_begin, block_end, k_begin, k_end

    ctypedef struct rk_step:
        Py_ssize_t rows, hidden, projected, block_begin, block_end
        int last_first
        bint half_of_last
        const void *operand
        const Py_ssize_t *operand_row
        const void *weights
        int storage
        const void *scale
        const void *ahead
        void *gates
        const Py_ssize_t *gates_row
        Py_ssize_t gates_block
        int keeps
        const void *c_prev
        Py_ssize_t c_prev_row, c_prev_block
        const void *peepholes
        double cell_clip
        const void *h_prev
        void *h
        Py_ssize_t h_pitch
        void *y
        const Py_ssize_t *y_row

    ctypedef struct rk_step_backward:
        Py_ssize_t rows, hidden, block_begin, block_end
        const void *gates
        const Py_ssize_t *gates_row
        Py_ssize_t gates_block
        const void *c_prev
        const Py_ssize_t *c_prev_row
        Py_ssize_t c_prev_block
        const void *peepholes
        double cell_clip
        const void *h
        const Py_ssize_t *h_row
        const void *h_prev
        const Py_ssize_t *h_prev_row
        void *dh
        void *dc
        Py_ssize_t dh_pitch
        void *dgates
        const Py_ssize_t *dgates_row
        Py_ssize_t dgates_block
        void *early
        const Py_ssize_t *early_row
        const void *dearly

    ctypedef struct rk_arrival:
        Py_ssize_t rows, hidden, projected
        void *dh
        void *dc
        Py_ssize_t pitch
        const void *dy
        const Py_ssize_t *dy_row
        Py_ssize_t dy_unit
        const Py_ssize_t *order
        Py_ssize_t ordered, first
        double limit, norm_limit
        double *dh_norm
        double *dc_norm
        void *dh_kept
        void *dc_kept
        unsigned char *clipped

    ctypedef struct rk_row_sums:
        Py_ssize_t rows, vectors
        const void *dgates
        Py_ssize_t row_stride
        double *sums

    ctypedef struct rk_dropout:
        Py_ssize_t rows, width
        const void *in_ "in"
        Py_ssize_t in_row
        void *out
        Py_ssize_t out_row, first_row
        unsigned long long seed, step
        int layer, threshold
        double scale

    ctypedef struct rk_cross_entropy:
        Py_ssize_t positions, classes
        const void *logits
        const Py_ssize_t *targets
        double share
        void *dlogits
        double *totals
        double *below

    ctypedef struct rk_adam:
        Py_ssize_t count
        void *parameter
        void *mean
        void *square
        const void *gradient
        double beta1, beta2, rate, eps, decay

    enum:
        RK_WHOLE
        RK_HALF
        RK_INT8
        RK_INT8_BYTES
        RK_INT8_WORDS
        RK_QUAD_PIECE
        RK_FLOAT32
        RK_FLOAT64
        RK_DTYPES
        RK_ALIGNMENT
        RK_TRANSPOSED_VECTORS

    ctypedef struct rk_window:
        int slot
        int slots
        const int *order

    ctypedef struct rk_cell:
        int gates, slots, memory_slots, states, unit_vectors, keeps_gates, carries, phases
        rk_window input
        const rk_window *recurrent
        rk_window peephole
        void (**forward)(const rk_step *) noexcept nogil
        void (*project)(const rk_step *) noexcept nogil
        void (**backward)(const rk_step_backward *) noexcept nogil

    ctypedef struct rk_kernels:
        const char *isa
        Py_ssize_t lanes, full_rows
        int (*fma_vectors)() noexcept nogil
        rk_cell *cells
        void (*product)(const rk_product *) noexcept nogil
        void (*fill)(const rk_product *) noexcept nogil
        void (*small_product)(const rk_small_product *) noexcept nogil
        bint (*has_quads)(int storage) noexcept nogil
        void (*gather)(const rk_lookup *) noexcept nogil
        void (*scatter)(const rk_lookup *) noexcept nogil
        void (*pack)(const rk_packing *) noexcept nogil
        void (*unpack)(const rk_packing *) noexcept nogil
        void (*pack_transposed)(const rk_packing *) noexcept nogil
        void (*arrive)(const rk_arrival *) noexcept nogil
        void (*row_sums)(const rk_row_sums *) noexcept nogil
        void (*dropout)(const rk_dropout *) noexcept nogil
        void (*adam)(const rk_adam *) noexcept nogil
        double (*sum_of_squares)(const void *numbers, Py_ssize_t count) noexcept nogil
        void (*scale)(void *numbers, Py_ssize_t count, double factor) noexcept nogil
        void (*sum_of_rows)(
            const void *rows, Py_ssize_t count, Py_ssize_t columns, double *sums
        ) noexcept nogil
        void (*cross_entropy)(const rk_cross_entropy *) noexcept nogil

    bint rk_in_quads(int storage) noexcept
    Py_ssize_t rk_panel_rows(Py_ssize_t k, int storage) noexcept
    const char *rk_isa_name(int index) noexcept
    bint rk_isa_usable(int index) noexcept
    const rk_kernels *rk_isa_kernels(int index, int dtype) noexcept
    bint rk_reads_fast() noexcept nogil
    unsigned long long rk_fp_enter() noexcept
    void rk_fp_leave(unsigned long long saved) noexcept


# The kernels in use; and the C functions above for the other modules, which are not linked
# to them.
cdef const rk_kernels *kernels(int dtype) noexcept nogil
cdef unsigned long long fp_enter() noexcept nogil
cdef void fp_leave(unsigned long long saved) noexcept nogil
cdef bint reads_fast() noexcept nogil
# How many threads may be opened: `wanted`, or 1 where a parallel region would hang.
cdef int usable_threads(int wanted) noexcept nogil

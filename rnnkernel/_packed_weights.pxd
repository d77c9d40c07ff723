from rnnkernel._kernels cimport rk_cell, rk_kernels, rk_packing, rk_window
from rnnkernel._memory cimport Layout
from rnnkernel._panels cimport Panel


cdef class PackedWeights:
    cdef const rk_kernels *kernels
    cdef const rk_cell *cell
    cdef readonly Py_ssize_t input_size, hidden_size, projected_size
    cdef readonly object dtype
    cdef Py_ssize_t item, units, blocks       # bytes; units in a block; unit blocks
    cdef int gradient_slots                   # of a row of dgates
    cdef double cell_clip
    # what the pointers below point into
    cdef object memory
    cdef char *bias                           # [block][S][U]
    cdef char *input                          # [block][I][G][U]
    cdef char *recurrent[2]                   # [block][P][slots][U], by phase
    cdef int storage                          # of input and recurrent
    cdef char *input_scale                    # [block][G][U] of int8, or NULL
    cdef char *recurrent_scale[2]             # [block][slots][U], by phase
    cdef char *peepholes                      # [block][3][U], or NULL
    cdef char *projection                     # [columns of P][H][4 vectors], or NULL
    cdef char *input_transposed               # [columns of I][block][G][U][4 vectors], or NULL
    cdef char *recurrent_transposed[2]        # [columns of P][block][slots][U][4 vectors]
    cdef char *projection_transposed          # [columns of H][P padded][4 vectors], or NULL
    # how the panels are packed: W_ih's, W_hh's of each phase, all others; and from which arrays
    cdef Panel panels[8]
    cdef int panel_count
    cdef object sources

    cdef int prepare(
        self, int cell, weight_ih, weight_hh, bias_ih, bias_hh, bint transposed, weight_ch,
        cell_clip, weight_hr, bint through_input, columns,
    ) except -1
    cdef int lay_out(
        self, bint peepholes, bint projection, bint transposed, bint through_input
    ) except -1
    cdef void place_parts(
        self, Layout *m, bint peepholes, bint projection, bint transposed, bint through_input
    ) noexcept
    cdef Panel *add_panel(
        self, bint transposed, weight, const rk_window *window, char *packed
    ) except NULL
    cdef void add_projection(self, bint transposed, Panel *panel) noexcept
    cdef int fill_job(
        self, rk_packing *job, weight, const rk_window *window, char *packed
    ) except -1
    cdef int pack_vectors(self, bias_ih, bias_hh, weight_ch) except -1
    cdef int pack(self, int first, int threads) except -1
    cdef bint is_packed(self) noexcept
    cdef int pack_rest(self, int first, int threads) except -1
    cdef char *moved(self, list parts, char *part, Py_ssize_t count, dtype) except NULL
    cdef char *shrunk(self, list parts, char *part, Py_ssize_t rows, int slots) except NULL
    cdef char *scale(self, list parts, scale, const rk_window *window) except NULL
    cdef bint for_training(self) noexcept
    cdef int type_number(self) noexcept
    cdef Py_ssize_t projected_rows(self) noexcept nogil
    cdef Py_ssize_t input_last_vectors(self) noexcept nogil
    cdef Py_ssize_t column_blocks(self, Py_ssize_t columns) noexcept nogil


cdef PackedWeights pack_weights(
    int cell, weight_ih, weight_hh, bias_ih, bias_hh, bint transposed, int threads, weight_ch,
    cell_clip, weight_hr, bint through_input, columns,
)
cdef PackedWeights prepare_weights(
    int cell, weight_ih, weight_hh, bias_ih, bias_hh, bint transposed, weight_ch, cell_clip,
    weight_hr,
)

from rnnkernel._kernels cimport rk_cell, rk_kernels, rk_packing, rk_window


cdef class PackedWeights:
    cdef const rk_kernels *kernels
    cdef const rk_cell *cell
    cdef readonly int cell_index
    cdef readonly Py_ssize_t input_size, hidden_size, projected_size
    cdef readonly object dtype
    cdef Py_ssize_t item, units, blocks       # bytes; units in a block; unit blocks
    cdef int gradient_slots                   # of a row of dgates
    cdef double cell_clip
    # what the pointers below point into
    cdef object arrays
    cdef char *bias                           # [block][S][U]
    cdef char *input                          # [block][I][G][U]
    cdef char *recurrent[2]                   # [block][P][slots][U], by phase
    cdef int storage                          # of input and recurrent
    cdef char *input_scale                    # [block][G][U] with RK_INT8
    cdef char *recurrent_scale[2]             # [block][slots][U], by phase
    cdef char *peepholes                      # [block][3][U], or NULL
    cdef char *projection                     # [columns of P][H][4 vectors], or NULL
    cdef char *input_transposed               # [columns of I][block][G][U][4 vectors], or NULL
    cdef char *recurrent_transposed[2]        # [columns of P][block][slots][U][4 vectors]
    cdef char *projection_transposed          # [columns of H][P padded][4 vectors], or NULL

    cdef char *keep(self, array) except NULL
    cdef char *pack_bias(self, bias_ih, bias_hh) except NULL
    cdef char *pack_rows(self, rows) except NULL
    cdef char *shrink_panel(self, char *panel, smaller) except NULL
    cdef char *pack_scale(self, scale, const rk_window *window) except NULL
    cdef rk_packing job(self, weight, const rk_window *window)
    cdef char *pack(self, weight, const rk_window *window, int threads) except NULL
    cdef char *pack_transposed(self, weight, const rk_window *window, int threads) except NULL
    cdef int pack_projection(self, weight_hr, bint transposed, int threads) except -1
    cdef Py_ssize_t projected_rows(self) noexcept nogil
    cdef Py_ssize_t input_last_vectors(self) noexcept nogil
    cdef Py_ssize_t column_blocks(self, Py_ssize_t columns) noexcept nogil
    cdef Py_ssize_t column_last_vectors(self, Py_ssize_t columns) noexcept nogil


cdef Py_ssize_t address(object array) except? -1


cdef class PackedGradients:
    cdef PackedWeights weights
    cdef object arrays, bias_array
    cdef char *bias                           # [block][S and peepholes][U]
    cdef char *input                          # [block][I][G][U]
    cdef char *recurrent[2]                   # [block][P][slots][U]
    cdef object projection_array
    cdef char *projection                     # [columns of H][P][4 vectors]

    cdef char *zeros(self, Py_ssize_t count) except NULL
    cdef int unpack_weight(
        self, weight, const rk_window *window, char *packed, int threads
    ) except -1

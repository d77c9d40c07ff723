from libc.string cimport memcpy

from rnnkernel._run cimport Matrix, Run


cdef inline void copy_row(
    char *to, Py_ssize_t to_stride, const char *row, Py_ssize_t stride, Py_ssize_t count,
    Py_ssize_t item,
) noexcept nogil:
    """Numbers one by one where they do not lie side by side; strides in bytes."""
    cdef Py_ssize_t i
    if stride == item and to_stride == item:
        if count * item == 64:  # units of most blocks: the compiler makes that a few moves
            memcpy(to, row, 64)
        else:
            memcpy(to, row, count * item)
        return
    for i in range(count):
        memcpy(to + i * to_stride, row + i * stride, item)


# The states of some rows: from h0 into the tiles of h, and after their last steps into h_n and c_n.
cdef void put_states(const Run *r, Py_ssize_t begin, Py_ssize_t end) noexcept nogil
cdef void take_states(const Run *r, Py_ssize_t begin, Py_ssize_t end) noexcept nogil
# The final cell state at a position without steps.
cdef void take_first_cell(const Run *r, Py_ssize_t n) noexcept nogil
# (N, H) as [block][N][U], zero past H; `order` has the row at each position, or is NULL.
cdef void pack_cell_states(
    Py_ssize_t blocks, Py_ssize_t units, Py_ssize_t item, Py_ssize_t H, const Matrix *c,
    Py_ssize_t N, const Py_ssize_t *order, char *packed,
) noexcept nogil

"""States between the caller's rows and the loops' memory: tiles of h, packed cell states."""

from libc.string cimport memcpy, memset

# (N, units) of anybody's; strides in bytes.
cdef struct Matrix:
    char *data
    Py_ssize_t row, unit


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


cdef inline void pack_cell_states(
    Py_ssize_t blocks, Py_ssize_t units, Py_ssize_t item, Py_ssize_t H, const Matrix *c,
    Py_ssize_t N, const Py_ssize_t *order, char *packed,
) noexcept nogil:
    """(N, H) as [block][N][U], zero past H; `order` has the row at each position, or is NULL."""
    cdef Py_ssize_t n, block, valid, width = units * item
    cdef const char *row
    cdef char *to
    for n in range(N):
        row = c.data + (n if order == NULL else order[n]) * c.row
        for block in range(blocks):
            to = packed + (block * N + n) * width
            valid = min(units, H - block * units)
            copy_row(to, item, row + block * units * c.unit, c.unit, valid, item)
            if valid < units:
                memset(to + valid * item, 0, width - valid * item)

"""States between the caller's rows and the loops' memory: tiles of h, packed cell states."""

from libc.string cimport memcpy, memset

from rnnkernel._packed_weights cimport PackedWeights


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
    PackedWeights w, const Matrix *c, Py_ssize_t N, const Py_ssize_t *order, char *packed
) noexcept:
    """(N, H) as [block][N][U], zero past H; `order` has the row at each position, or is NULL."""
    cdef Py_ssize_t n, block, units, width = w.units * w.item
    cdef const char *row
    cdef char *to
    for n in range(N):
        row = c.data + (n if order == NULL else order[n]) * c.row
        for block in range(w.blocks):
            to = packed + (block * N + n) * width
            units = min(w.units, w.hidden_size - block * w.units)
            copy_row(to, w.item, row + block * w.units * c.unit, c.unit, units, w.item)
            if units < w.units:
                memset(to + units * w.item, 0, width - units * w.item)


cdef inline void unpack_cell_state(
    PackedWeights w, const char *packed, Py_ssize_t block_bytes, const Matrix *c, Py_ssize_t n
) noexcept:
    """Row n of (N, H) from its units in each block."""
    cdef Py_ssize_t block
    cdef char *row = c.data + n * c.row
    for block in range(w.blocks):
        copy_row(
            row + block * w.units * c.unit, c.unit, packed + block * block_bytes, w.item,
            min(w.units, w.hidden_size - block * w.units), w.item,
        )

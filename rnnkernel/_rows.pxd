"""What both time loops do to batch rows of unequal lengths and with resets inside.

Rows stand by position, the longest first, and steps count from a row's own first one; see
rnnkernel/_sequence.py.
"""

from libc.string cimport memcpy, memset


cdef inline bint any_set(const unsigned char *flags, Py_ssize_t rows) noexcept nogil:
    cdef Py_ssize_t row
    for row in range(rows):
        if flags[row]:
            return True
    return False


cdef inline void clear_rows(
    const unsigned char *flags, char *tile, Py_ssize_t bytes_of_row, Py_ssize_t rows
) noexcept nogil:
    """Zero in the flagged rows of a tile: selected, since a product would keep NaN."""
    cdef Py_ssize_t row
    for row in range(rows):
        if flags[row]:
            memset(tile + row * bytes_of_row, 0, bytes_of_row)


cdef inline void clear_ends(
    char *first, Py_ssize_t time, Py_ssize_t bytes_of_row, Py_ssize_t start, Py_ssize_t length,
    Py_ssize_t T,
) noexcept nogil:
    """Zero in the steps of one row before and after its own; `first` is its first own step, `time`
    in bytes."""
    cdef Py_ssize_t t
    for t in range(-start, 0):
        memset(first + t * time, 0, bytes_of_row)
    for t in range(length, T - start):
        memset(first + t * time, 0, bytes_of_row)


cdef inline void cells_after_reset(
    const unsigned char *flags, const char *c, Py_ssize_t c_row, Py_ssize_t c_block, char *out,
    Py_ssize_t out_block, Py_ssize_t bytes_of_row, Py_ssize_t rows, Py_ssize_t blocks,
) noexcept nogil:
    """The cell states of some rows into [block][row][U], zero in the flagged ones; strides in
    bytes."""
    cdef Py_ssize_t row, block
    for block in range(blocks):
        for row in range(rows):
            if flags[row]:
                memset(out + block * out_block + row * bytes_of_row, 0, bytes_of_row)
            else:
                memcpy(
                    out + block * out_block + row * bytes_of_row,
                    c + block * c_block + row * c_row,
                    bytes_of_row,
                )

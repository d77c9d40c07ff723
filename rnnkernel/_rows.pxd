"""What both time loops do to batch rows of unequal lengths and with resets inside.

Rows stand by position, the longest of a section first, and steps count from a row's own first one;
see rnnkernel/_sequence.py.
"""

from libc.string cimport memcpy, memset


cdef extern from *:
    """
    /* Rows by position lie anywhere: no processor guesses where the next one is. */
    static inline void rk_ask_to_read(const char *row, ptrdiff_t bytes)
    {
        for (ptrdiff_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + at, 0, 2);
    }
    static inline void rk_ask_to_write(const char *row, ptrdiff_t bytes)
    {
        for (ptrdiff_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + at, 1, 2);
    }
    """
    void rk_ask_to_read(const char *row, Py_ssize_t bytes) noexcept nogil
    void rk_ask_to_write(const char *row, Py_ssize_t bytes) noexcept nogil


cdef enum:
    SECTIONS = 2  # at most
    FAR_TABLE = 1 << 20  # bytes from which on a table's rows are asked for
    ROWS_AHEAD = 8


cdef inline Py_ssize_t rows_ahead(Py_ssize_t table_bytes) noexcept nogil:
    """By how many rows to ask for those of a table, which lie anywhere as well."""
    return ROWS_AHEAD if table_bytes > FAR_TABLE else 0


cdef class Rows:
    cdef readonly Py_ssize_t T
    cdef readonly object order, lengths, start, alive, section, reset, resets
    cdef readonly Py_ssize_t longest
    cdef readonly bint whole


cdef inline Py_ssize_t part(Py_ssize_t whole, Py_ssize_t i, Py_ssize_t parts) noexcept nogil:
    """Where part `i` of so many begins."""
    return whole * i // parts


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


cdef inline void clear_step(
    char *array, Py_ssize_t time, const Py_ssize_t *row, Py_ssize_t item, Py_ssize_t width,
    const Py_ssize_t *start, const Py_ssize_t *length, Py_ssize_t t, Py_ssize_t begin,
    Py_ssize_t end, int members, int member,
) noexcept nogil:
    """One member's share of the zeros in one step of rows begin..end, which have no step t: beside
    what those write that have it. Row n's first own step lies at row[n]; strides are in elements.
    """
    cdef Py_ssize_t n = begin + member, own
    while n < end:
        # where time is reversed a row begins late, and what it lacks lies before that
        own = t if start[n] == 0 else length[n] - 1 - t
        memset(array + (row[n] + own * time) * item, 0, width * item)
        n += members


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


# Bounds of parts of the rows, of one section each, with nearly equal sums of the steps before
# `past`; whether none is more than twice another.
cdef bint bound_by_length(
    const Py_ssize_t *lengths, const Py_ssize_t *section, int sections, Py_ssize_t past,
    Py_ssize_t parts, Py_ssize_t *bounds,
) noexcept nogil

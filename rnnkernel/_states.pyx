"""States between the caller's rows and the loop's memory: tiles of h, packed cell states."""

from libc.string cimport memset

from rnnkernel._run cimport Matrix, Run, gates_at, h_at


cdef void put_states(const Run *r, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """What lies past the last unit meets none that exists."""
    cdef Py_ssize_t n, row
    for n in range(begin, end):
        row = n if r.order == NULL else r.order[n]
        copy_row(
            r.h + r.h_row[n] * r.item, r.item, r.h0.data + row * r.h0.row, r.h0.unit, r.P, r.item
        )


cdef void take_states(const Run *r, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """Nothing writes to a row's states after its last step."""
    cdef Py_ssize_t n, row, steps
    cdef const char *c
    for n in range(begin, end):
        row, steps = n, r.T
        if r.order != NULL:
            row, steps = r.order[n], r.length[n]
        copy_row(
            r.h_n.data + row * r.h_n.row, r.h_n.unit, h_at(r, steps) + r.h_row[n] * r.item, r.item,
            r.P, r.item,
        )
        if r.c_n.data == NULL:
            continue
        if steps == 0:
            take_first_cell(r, n)
            continue
        c = gates_at(r, steps - 1) + (r.gates_row[n] + r.cell.slots * r.units) * r.item
        take_cell(r, c, r.gates_block * r.item, row)


cdef void take_first_cell(const Run *r, Py_ssize_t n) noexcept nogil:
    take_cell(
        r, r.c0 + n * r.c0_row * r.item, r.c0_block * r.item, n if r.order == NULL else r.order[n]
    )


cdef void take_cell(
    const Run *r, const char *packed, Py_ssize_t block_bytes, Py_ssize_t row
) noexcept nogil:
    """A row of c_n from its units in each block."""
    cdef Py_ssize_t block
    cdef char *to = r.c_n.data + row * r.c_n.row
    for block in range(r.blocks):
        copy_row(
            to + block * r.units * r.c_n.unit, r.c_n.unit, packed + block * block_bytes, r.item,
            min(r.units, r.H - block * r.units), r.item,
        )


cdef void pack_cell_states(
    Py_ssize_t blocks, Py_ssize_t units, Py_ssize_t item, Py_ssize_t H, const Matrix *c,
    Py_ssize_t N, const Py_ssize_t *order, char *packed,
) noexcept nogil:
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

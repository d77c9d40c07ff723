from rnnkernel._part cimport Part
from rnnkernel._run cimport Run


cdef inline bint half_is_enough(const Run *r, Py_ssize_t past) noexcept nogil:
    """Whether of the block before `past` nobody reads more than the first halves of its vectors: no
    more of its units exist, and sums of backward over units end with the last."""
    return (
        past == r.blocks and r.cell.unit_vectors == 1
        and 2 * (r.blocks * r.units - r.H) >= r.units
    )


# Where the rows of any chunk lie, in x and the gates, for some that all have all steps; else each
# chunk has a list of its own.
cdef void list_chunk(const Run *r, Py_ssize_t begin, Py_ssize_t end) noexcept nogil
# bias + W_ih x of some rows of the table.
cdef void project_table(const Run *r, Py_ssize_t begin) noexcept nogil
# bias + W_ih x into the gates of some steps; whether this member stays.
cdef bint project(const Run *r, Part *part, Py_ssize_t t, Py_ssize_t steps) noexcept nogil
# Packs some blocks of a passing panel; returns where its block 0 would be.
cdef const char *pass_panel(
    const Run *r, const Part *part, int which, Py_ssize_t begin, Py_ssize_t end
) noexcept nogil

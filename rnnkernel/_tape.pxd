from rnnkernel._packed_gradients cimport PackedGradients
from rnnkernel._packed_weights cimport PackedWeights


cdef class Pass:
    cdef readonly PackedWeights weights
    cdef readonly object x, h0, c0, y, reserve, rows, checkpoints, index
    cdef public int groups


# The rows of a reserve stand in one or several groups, [group][t][block][row][memory slots][U],
# each the rows that one thread had in forward: equal numbers of them, or those of a section. Side
# by side in every step, threads would write next to one another, and a core's prefetcher takes the
# lines that another is about to write.


cdef inline Py_ssize_t rows_of_group(
    Py_ssize_t N, int groups, const Py_ssize_t *section
) noexcept nogil:
    """How many rows a group has room for; `section` is their bounds, or NULL for rows alike."""
    cdef Py_ssize_t most = (N + groups - 1) // groups
    cdef int i
    if groups > 1 and section != NULL:
        for i in range(groups):
            most = max(most, section[i + 1] - section[i])
    return most


cdef inline void place_in_groups(
    Py_ssize_t *place, Py_ssize_t N, int groups, const Py_ssize_t *section, Py_ssize_t group_size,
    Py_ssize_t row_size,
) noexcept nogil:
    """Offsets of the rows in a step of a reserve."""
    cdef Py_ssize_t n, group = 0, first = 0, rows = rows_of_group(N, groups, section)
    for n in range(N):
        while group + 1 < groups and n >= (first + rows if section == NULL else section[group + 1]):
            group += 1
            first = first + rows if section == NULL else section[group]
        place[n] = group * group_size + (n - first) * row_size


cdef class Tape:
    cdef readonly object layer, layout, dropped, table, vocabulary
    cdef readonly list passes
    cdef readonly tuple shape


cdef class BackwardPass:
    cdef readonly Pass of
    cdef readonly PackedGradients gradients
    cdef readonly object dy, dh_n, dc_n, flow, dx, dh0, dc0, dtable, dtable_rows, sums
    cdef readonly bint finish, adds

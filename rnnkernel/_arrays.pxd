cimport numpy as cnp

from rnnkernel._sizes cimport Sizes


# The steps of a plain x.
cdef struct Steps:
    Py_ssize_t T, N
    bint batched
    int time_axis, batch_axis


# Whether the loops can read an array as it is: of this type and number of axes.
cdef bint is_plain(object array, int type_number, int dimensions) noexcept
# Whether its sizes are these, as many as it has dimensions.
cdef bint has_shape(cnp.ndarray a, shape) except -1
# Whether x is plain and has steps of its own, not one for all times; then what they are.
cdef bint plain_steps(Sizes sizes, x, bint batch_first, Steps *steps) noexcept
# Lengths (N,) as contiguous intp, and the Rows of each direction, or (None, None) where all rows
# have all steps; None where they are not plain.
cdef tuple plain_rows(lengths, const Steps *steps, int directions, int sections)
# What a caller gives for states, or their gradients, as a list by state of arrays (L*D, N, units),
# without N where there is no batch, or None; None where they are not plain.
cdef list plain_states(Sizes sizes, state, Py_ssize_t N, bint batched)
# The caller's array as (T, N, ...).
cdef time_first(layout, array)
# And an array (T, N, ...) as the caller has it.
cdef caller_view(layout, array)
# The part of a layer's y, or of its gradient, that belongs to a direction, in its time.
cdef half(y, Py_ssize_t d, Py_ssize_t D, Py_ssize_t P)
# One layer and direction of states, or None where there are none.
cdef of(states, Py_ssize_t index)
# New arrays, uninitialised, as a caller has them: (T, N, width) in the layout's order, and
# (L*D, N, width). `name` says what does not fit in memory.
cdef cnp.ndarray of_steps(
    str name, Py_ssize_t T, Py_ssize_t N, Py_ssize_t width, int type_number, bint batched,
    bint batch_first,
)
cdef cnp.ndarray of_states(
    str name, Py_ssize_t count, Py_ssize_t N, Py_ssize_t width, int type_number, bint batched
)
cdef cnp.ndarray named_array(str name, int dimensions, cnp.npy_intp *shape, int type_number)

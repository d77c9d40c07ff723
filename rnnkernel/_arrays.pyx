"""The arrays of a call, looked at and made in C.

For a small layer the Python of a call costs more than its arithmetic, and where the loops have just
filled the caches several times what it costs alone: what most calls are given is known here at
once, and rnnkernel/_arguments.py has the words for what is wrong with the rest.
"""

cimport numpy as cnp

from rnnkernel._memory cimport new_array
from rnnkernel._sizes cimport Sizes

from rnnkernel import _check
from rnnkernel._rows import all_have, plain_lengths, rows_of

cnp.import_array()


cdef bint is_plain(object array, int type_number, int dimensions) noexcept:
    cdef cnp.ndarray a
    cdef int axis
    if type(array) is not cnp.ndarray:
        return False
    a = <cnp.ndarray>array
    if (
        cnp.PyArray_TYPE(a) != type_number
        or cnp.PyArray_NDIM(a) != dimensions
        or not cnp.PyArray_ISBEHAVED_RO(a)
    ):
        return False
    for axis in range(dimensions):
        if cnp.PyArray_STRIDE(a, axis) % cnp.PyArray_ITEMSIZE(a) != 0:
            return False
    return True


cdef bint has_shape(cnp.ndarray a, shape) except -1:
    cdef int axis
    for axis in range(cnp.PyArray_NDIM(a)):
        if cnp.PyArray_DIM(a, axis) != <Py_ssize_t>shape[axis]:
            return False
    return True


cdef bint plain_steps(Sizes sizes, x, bint batch_first, Steps *steps) noexcept:
    cdef cnp.ndarray a
    if type(x) is not cnp.ndarray:
        return False
    a = <cnp.ndarray>x
    steps.batched = cnp.PyArray_NDIM(a) == 3
    if not is_plain(x, sizes.type_number, 3 if steps.batched else 2):
        return False
    steps.time_axis, steps.batch_axis = 0, 1
    if steps.batched and batch_first:
        steps.time_axis, steps.batch_axis = 1, 0
    steps.T = cnp.PyArray_DIM(a, steps.time_axis)
    steps.N = cnp.PyArray_DIM(a, steps.batch_axis) if steps.batched else 1
    return (
        steps.T > 0
        and steps.N > 0
        and (steps.T == 1 or cnp.PyArray_STRIDE(a, steps.time_axis) != 0)  # else projected once
        and cnp.PyArray_DIM(a, 2 if steps.batched else 1) == sizes.input_size
    )


cdef tuple plain_rows(lengths, const Steps *steps, int directions, int sections):
    if lengths is None:
        return None, None
    if steps.batched:
        lengths = plain_lengths(lengths, steps.T, steps.N)
        if lengths is not None and all_have(lengths, steps.T):
            return None, None
        rows = None if lengths is None else rows_of(lengths, steps.T, directions, sections)
        if rows is not None:
            return lengths, rows
    return None


cdef list plain_states(Sizes sizes, state, Py_ssize_t N, bint batched):
    cdef cnp.ndarray a
    cdef list given
    cdef int i, axis = 2 if batched else 1
    if state is None:
        return [None] * sizes.states
    if sizes.states == 1:
        given = [state]
    elif type(state) is tuple and len(<tuple>state) == sizes.states:
        given = list(state)
    else:
        return None
    for i in range(sizes.states):
        if not is_plain(given[i], sizes.type_number, axis + 1):
            return None
        a = <cnp.ndarray>given[i]
        if (
            cnp.PyArray_DIM(a, 0) != sizes.layers * sizes.directions
            or batched and cnp.PyArray_DIM(a, 1) != N
            or cnp.PyArray_DIM(a, axis) != (sizes.projected_size if i == 0 else sizes.hidden_size)
        ):
            return None
    return given


cdef time_first(layout, array):
    return layout.time_first(array) if layout.batch_first or not layout.batched else array


cdef caller_view(layout, array):
    return layout.caller_view(array) if layout.batch_first or not layout.batched else array


cdef half(y, Py_ssize_t d, Py_ssize_t D, Py_ssize_t P):
    if y is None or D == 1:
        return y
    return y[::-1, :, P:] if d else y[:, :, :P]


cdef of(states, Py_ssize_t index):
    return None if states is None else states[index]


cdef cnp.ndarray of_steps(
    str name, Py_ssize_t T, Py_ssize_t N, Py_ssize_t width, int type_number, bint batched,
    bint batch_first,
):
    cdef cnp.npy_intp[3] shape
    shape[0], shape[1], shape[2] = T, N, width
    if not batched:
        shape[1] = width
    elif batch_first:
        shape[0], shape[1] = N, T
    return named_array(name, 3 if batched else 2, shape, type_number)


cdef cnp.ndarray of_states(
    str name, Py_ssize_t count, Py_ssize_t N, Py_ssize_t width, int type_number, bint batched
):
    cdef cnp.npy_intp[3] shape
    shape[0], shape[1], shape[2] = count, N, width
    if not batched:
        shape[1] = width
    return named_array(name, 3 if batched else 2, shape, type_number)


cdef cnp.ndarray named_array(str name, int dimensions, cnp.npy_intp *shape, int type_number):
    cdef int axis
    try:
        return new_array(dimensions, shape, type_number)
    except (MemoryError, ValueError):
        sizes = tuple([shape[axis] for axis in range(dimensions)])
        item = 4 if type_number == cnp.NPY_FLOAT32 else 8
        raise _check.does_not_fit(name, sizes, item) from None

"""Inference over plain arrays, the call that most make: a stack in one go.

`forward` of a layer makes arrays and objects for each of its steps; for a single step of a small
layer they cost more than the arithmetic, and where the loops have just filled the caches several
times what they cost alone. Here the arrays are looked at in C, and nothing is made
but the results. What is not plain is left to `forward`, which also has the words for what is wrong.
"""

cimport numpy as cnp

cdef extern from *:
    # NumPy's headers bring <complex.h>, whose I is not the input size
    """
    #undef I
    """

import numpy as np

from rnnkernel._forward cimport Pass, set_rows, set_weights
from rnnkernel._kept cimport Kept
from rnnkernel._packing cimport PackedWeights, prepare_weights
from rnnkernel._recurrence cimport Run
from rnnkernel._scratch cimport Scratch
from rnnkernel._stack cimport run_stack
from rnnkernel._states cimport Matrix, pack_cell_states

from rnnkernel._rows import all_have, plain_lengths
from rnnkernel._sequence import Sequence

cnp.import_array()

# Results of more bytes are allocated by `forward`, which tells what does not fit.
cdef Py_ssize_t LARGE = 1 << 30


cdef bint is_plain(object array, int type_number, int dimensions) noexcept:
    """Whether the loops can read it as it is."""
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
    """Whether its sizes are these, as many as it has dimensions."""
    cdef int axis
    for axis in range(cnp.PyArray_NDIM(a)):
        if cnp.PyArray_DIM(a, axis) != <Py_ssize_t>shape[axis]:
            return False
    return True


cdef bint are_plain(list arrays, list shapes, int type_number) except -1:
    """Whether parameters have their shapes, and rows without gaps."""
    cdef Py_ssize_t i
    cdef int axis
    cdef cnp.ndarray a
    for i in range(len(arrays)):
        shape = shapes[i]
        axis = len(shape) - 1
        if not is_plain(arrays[i], type_number, axis + 1):
            return False
        a = <cnp.ndarray>arrays[i]
        if not has_shape(a, shape) or cnp.PyArray_STRIDE(a, axis) != cnp.PyArray_ITEMSIZE(a):
            return False
    return True


def infer(called, x, state, int threads, lengths=None):
    """y and the final states as a call returns them, or None where arguments or parameters are
    not plain.

    `called` is a layer, whose parameters are packed unless it keeps them so, or a Frozen.
    """
    cdef list packed = called._packed
    cdef object layer = called if packed is None else called._layer
    cdef Kept kept = None
    cdef long long ticket = -1  # to keep what is packed here, or -1
    cdef int type_number = cnp.NPY_FLOAT32
    cdef bint batched, batch_first = layer.batch_first
    cdef Py_ssize_t D = layer._directions, L = layer.num_layers
    cdef Py_ssize_t T, N, P, H = layer.hidden_size, item, k, d, index, width
    cdef Py_ssize_t time_axis = 0, batch_axis = 1
    cdef object cell = layer._cell
    cdef int states = len(cell.states)
    cdef cnp.npy_intp[3] shape
    cdef cnp.ndarray x_array, y, h_n, c_n = None
    cdef PackedWeights w
    cdef Scratch scratch
    cdef Pass *passes
    cdef Pass *one
    cdef Run *r
    cdef Matrix first_c
    cdef list weights = []
    cdef object rows = None
    cdef const Py_ssize_t *order = NULL
    cdef char *layer_x
    cdef char *layer_y
    cdef char *between[2]
    cdef Py_ssize_t x_time, x_batch, x_unit, y_time, y_batch
    if layer.dtype != np.float32:
        type_number = cnp.NPY_FLOAT64

    # arguments
    if type(x) is not cnp.ndarray:
        return None
    x_array = <cnp.ndarray>x
    batched = cnp.PyArray_NDIM(x_array) == 3
    if not is_plain(x, type_number, 3 if batched else 2):
        return None
    if batched and batch_first:
        time_axis, batch_axis = 1, 0
    item = cnp.PyArray_ITEMSIZE(x_array)
    T = cnp.PyArray_DIM(x_array, time_axis)
    N = cnp.PyArray_DIM(x_array, batch_axis) if batched else 1
    x_time = cnp.PyArray_STRIDE(x_array, time_axis) // item
    x_batch = cnp.PyArray_STRIDE(x_array, batch_axis) // item if batched else 0
    x_unit = cnp.PyArray_STRIDE(x_array, 2 if batched else 1) // item
    if (
        T == 0
        or N == 0
        or (T > 1 and x_time == 0)  # projected once
        or cnp.PyArray_DIM(x_array, 2 if batched else 1) != <Py_ssize_t>layer.input_size
    ):
        return None
    P = layer._widths[0]
    if <double>T * N * max(D * P, H) * L * item > LARGE:
        return None
    initial = [None, None]
    if state is not None:
        initial = [state] if states == 1 else state
        if states == 2 and (type(state) is not tuple or len(state) != 2):
            return None
        for k in range(states):
            if not is_plain(initial[k], type_number, 3 if batched else 2):
                return None
            width = P if k == 0 else H
            wanted = [L * D, N, width] if batched else [L * D, width]
            if not has_shape(initial[k], wanted):
                return None

    if lengths is not None:
        lengths = plain_lengths(lengths, T, N) if batched else None
        if lengths is None:
            return None
        if not all_have(lengths, T):
            sequence = Sequence(T, N, lengths, None)
            if len(sequence.alive) == 0:
                return None
            rows = [sequence.rows(d == 1) for d in range(D)]

    # weights
    scratch = Scratch()
    if packed is None:
        kept = layer._kept
        packed = kept.weights
    if packed is None:
        ticket = kept.begin(layer)
        parameters = layer._parameters
        names = layer._parameter_shapes
        if type(parameters) is not dict or len(parameters) != len(names):
            return None
        arrays = [parameters.get(name) for name in names]
        if not are_plain(arrays, list(names.values()), type_number):
            return None

    # results
    shape[time_axis], shape[batch_axis], shape[2] = T, N, D * P
    if not batched:
        shape[1] = D * P
    y = cnp.PyArray_EMPTY(3 if batched else 2, shape, type_number, 0)
    shape[0], shape[1], shape[2] = L * D, N, P
    if not batched:
        shape[1] = P
    h_n = cnp.PyArray_EMPTY(3 if batched else 2, shape, type_number, 0)
    if states == 2:
        shape[2 if batched else 1] = H
        c_n = cnp.PyArray_EMPTY(3 if batched else 2, shape, type_number, 0)

    between[0] = between[1] = NULL
    passes = <Pass *>scratch.take(L * D * sizeof(Pass))
    layer_x = <char *>cnp.PyArray_DATA(x_array)
    for k in range(L):
        y_time, y_batch = N * D * P, D * P
        if k == L - 1:
            layer_y = <char *>cnp.PyArray_DATA(y)
            if batched and batch_first:
                y_time, y_batch = D * P, T * D * P
        else:
            # whoever reads a step is done with it before the next layer but one writes there
            layer_y = between[k & 1]
            if layer_y == NULL:
                layer_y = between[k & 1] = scratch.take(T * N * D * P * item)
        for d in range(D):
            index = k * D + d
            if packed is None:
                w = prepare(layer, cell, arrays, index, L * D)
                if ticket >= 0:
                    w.pack_all(threads)
            else:
                w = packed[index]
            weights.append(w)
            one = &passes[index]
            r = &one.run
            set_weights(r, w, N)
            if packed is None and ticket < 0:
                r.panels, r.panel_count = w.panels, 1 + w.cell.phases
            r.T, r.first, r.count = T, 0, T * N
            r.x, r.x_time, r.x_batch, r.x_unit = layer_x, x_time, x_batch, x_unit
            r.y, r.y_time, r.y_batch = layer_y + d * P * item, y_time, y_batch
            if d == 1:
                r.x, r.x_time = r.x + (T - 1) * x_time * item, -x_time
                r.y, r.y_time = r.y + (T - 1) * y_time * item, -y_time
            set_first(&one.h0, scratch, initial[0], index, N, P, item, batched)
            last_row(&one.h_n, h_n, index, N, P, item)
            if rows is not None:
                set_rows(r, rows[d])
                order = r.order
            one.c_n.data = one.reserve = NULL
            if states == 2:
                set_first(&first_c, scratch, initial[1], index, N, H, item, batched)
                r.c0 = scratch.take(w.blocks * N * w.units * item)
                pack_cell_states(w, &first_c, N, order, <char *>r.c0)
                last_row(&one.c_n, c_n, index, N, H, item)
        layer_x, x_time, x_batch, x_unit = layer_y, y_time, y_batch, 1
    run_stack(passes, L, D, weights, scratch, rows, None, threads)
    if ticket >= 0:
        kept.keep(weights, ticket)
    return y, (h_n if states == 1 else (h_n, c_n))


cdef PackedWeights prepare(layer, cell, list arrays, Py_ssize_t index, Py_ssize_t passes):
    """The weights of one layer and direction, from the parameters in their order."""
    cdef Py_ssize_t count = len(arrays) // passes, at = index * count
    cdef Py_ssize_t biases = 2 if layer.bias else 0
    cdef object b_ih = None, b_hh = None, w_hr = None, w_ch = None
    if layer.bias:
        b_ih, b_hh = arrays[at + 2], arrays[at + 3]
    if cell.projects:
        w_hr = arrays[at + 2 + biases]
    if cell.peepholes:
        w_ch = arrays[at + count - 1]
    return prepare_weights(
        cell.index, arrays[at], arrays[at + 1], b_ih, b_hh, w_ch, layer.options.get("cell_clip"),
        w_hr, None,
    )


cdef int set_first(
    Matrix *m, Scratch scratch, state, Py_ssize_t index, Py_ssize_t N, Py_ssize_t width,
    Py_ssize_t item, bint batched,
) except -1:
    """The initial state (N, width) of one layer and direction; None is zeros."""
    cdef cnp.ndarray a
    if state is None:
        m.data, m.row, m.unit = scratch.take_zeros(width * item), 0, item
        return 0
    a = <cnp.ndarray>state
    m.data = <char *>cnp.PyArray_DATA(a) + index * cnp.PyArray_STRIDE(a, 0)
    m.row = cnp.PyArray_STRIDE(a, 1) if batched else 0
    m.unit = cnp.PyArray_STRIDE(a, 2 if batched else 1)
    return 0


cdef void last_row(
    Matrix *m, cnp.ndarray states, Py_ssize_t index, Py_ssize_t N, Py_ssize_t width,
    Py_ssize_t item,
) noexcept:
    """Where the final state of one layer and direction goes."""
    m.data = <char *>cnp.PyArray_DATA(states) + index * N * width * item
    m.row, m.unit = width * item, item

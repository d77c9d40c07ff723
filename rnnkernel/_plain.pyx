"""Forward over plain arrays, as most calls are: a stack in one go.

The arrays are looked at in C (rnnkernel/_arrays.pyx says why), and nothing is made but the results
and what training keeps. What is not plain is left to rnnkernel/_passes.py, which also has the words
for what is wrong; backward is rnnkernel/_differentiate.pyx, whatever the arrays.
"""

cimport numpy as cnp

cdef extern from *:
    # NumPy's headers bring <complex.h>, whose I is not the input size
    """
    #undef I
    """

import numpy as np

from rnnkernel cimport _tape
from rnnkernel._arrays cimport has_shape, is_plain, of_states, of_steps, plain_states, time_first
from rnnkernel._forward cimport Pass, set_rows, set_weights
from rnnkernel._kept cimport Kept
from rnnkernel._packing cimport PackedWeights, pack_weights, prepare_weights
from rnnkernel._recurrence cimport Run
from rnnkernel._scratch cimport Scratch
from rnnkernel._stack cimport run_stack
from rnnkernel._states cimport Matrix, copy_row, pack_cell_states

from rnnkernel._arguments import Layout
from rnnkernel._forward import allocate_reserve
from rnnkernel._memory import aligned_empty
from rnnkernel._rows import all_have, kept_x, plain_lengths, rows_of
from rnnkernel.results import Output

cnp.import_array()

# [batch_first][batched]
cdef list LAYOUTS = [
    [Layout(batch_first, batched) for batched in (False, True)] for batch_first in (False, True)
]


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
    made = forward(called, x, state, threads, lengths, False)
    return None if made is None else (made[0], made[1])


def train(layer, x, state, int threads, lengths=None):
    """The Output of a training forward, or None where arguments or parameters are not plain or
    dropout acts."""
    if layer.dropout and layer.num_layers > 1:
        return None
    made = forward(layer, x, state, threads, lengths, True)
    return None if made is None else Output(made[0], made[1], None, made[2])


cdef forward(called, x, state, int threads, lengths, bint training):
    """y, the final states and training's tape, or None."""
    cdef list packed = called._packed
    cdef object layer = called if packed is None else called._layer
    cdef Kept kept = None
    cdef long long ticket = -1  # to keep what is packed here, or -1
    cdef int type_number = cnp.NPY_FLOAT32
    cdef bint batched, batch_first = layer.batch_first
    cdef Py_ssize_t D = layer._directions, L = layer.num_layers
    cdef Py_ssize_t T, N, P, H = layer.hidden_size, item, k, d, index
    cdef Py_ssize_t time_axis = 0, batch_axis = 1
    cdef object cell = layer._cell
    cdef int states = len(cell.states)
    cdef cnp.ndarray x_array, y, h_n, c_n = None
    cdef PackedWeights w
    cdef Scratch scratch
    cdef Pass *passes
    cdef Pass *one
    cdef Run *r
    cdef Matrix first_c = Matrix(NULL, 0, 0)
    cdef list weights = [], tape = []
    cdef object rows = None, layer_rows
    cdef const Py_ssize_t *order = NULL
    # of training; the last two are what a layer reads and writes, time first
    cdef object layout = None, seen = None, given = None
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
    if (
        T == 0
        or N == 0
        or (T > 1 and cnp.PyArray_STRIDE(x_array, time_axis) == 0)  # projected once
        or cnp.PyArray_DIM(x_array, 2 if batched else 1) != <Py_ssize_t>layer.input_size
    ):
        return None
    P = layer._widths[0]
    initial = plain_states(layer, state, N, batched, type_number)
    if initial is None:
        return None

    if lengths is not None:
        lengths = plain_lengths(lengths, T, N) if batched else None
        if lengths is None:
            return None
        if all_have(lengths, T):
            lengths = None
        else:
            rows = rows_of(lengths, T, <int>D)
            if rows is None:
                return None

    # weights
    scratch = Scratch()
    if packed is None and not training:
        kept = layer._kept
        packed = kept.weights
    if packed is None:
        if not training:
            ticket = kept.begin(layer)
        parameters = layer._parameters
        names = layer._parameter_shapes
        if type(parameters) is not dict or len(parameters) != len(names):
            return None
        arrays = [parameters.get(name) for name in names]
        if not are_plain(arrays, list(names.values()), type_number):
            return None

    # results
    y = of_steps("y", T, N, D * P, type_number, batched, batch_first)
    h_n = of_states("state", L * D, N, P, type_number, batched)
    if states == 2:
        c_n = of_states("state", L * D, N, H, type_number, batched)
    if training:
        layout = LAYOUTS[batch_first][batched]
        seen = kept_x(time_first(layout, x), lengths, threads)
        x_array, time_axis, batch_axis = seen, 0, 1

    between[0] = between[1] = NULL
    passes = <Pass *>scratch.take(L * D * sizeof(Pass))
    layer_x = <char *>cnp.PyArray_DATA(x_array)
    x_time = cnp.PyArray_STRIDE(x_array, time_axis) // item
    x_batch = cnp.PyArray_STRIDE(x_array, batch_axis) // item if batched else 0
    x_unit = cnp.PyArray_STRIDE(x_array, cnp.PyArray_NDIM(x_array) - 1) // item
    for k in range(L):
        y_time, y_batch = N * D * P, D * P
        if k == L - 1:
            layer_y = <char *>cnp.PyArray_DATA(y)
            if batched and batch_first:
                y_time, y_batch = D * P, T * D * P
            if training:
                given = time_first(layout, y)
        elif training:
            given = of_steps("y", T, N, D * P, type_number, True, False)
            layer_y = <char *>cnp.PyArray_DATA(<cnp.ndarray>given)
        else:
            # whoever reads a step is done with it before the next layer but one writes there
            layer_y = between[k & 1]
            if layer_y == NULL:
                layer_y = between[k & 1] = scratch.take(T * N * D * P * item)
        for d in range(D):
            index = k * D + d
            if packed is None:
                w = prepare(layer, cell, arrays, index, L * D, training, threads)
                if ticket >= 0:
                    w.pack_all(threads)
            else:
                w = packed[index]
            weights.append(w)
            one = &passes[index]
            r = &one.run
            set_weights(r, w, N)
            if packed is None and ticket < 0 and not training:
                r.panels, r.panel_count = w.panels, 1 + w.cell.phases
            r.T, r.first, r.count = T, 0, T * N
            r.x, r.x_time, r.x_batch, r.x_unit = layer_x, x_time, x_batch, x_unit
            r.y, r.y_time, r.y_batch = layer_y + d * P * item, y_time, y_batch
            if d == 1:
                r.x, r.x_time = r.x + (T - 1) * x_time * item, -x_time
                r.y, r.y_time = r.y + (T - 1) * y_time * item, -y_time
            set_first(&one.h0, scratch, initial[0], index, N, P, item, batched)
            last_row(&one.h_n, h_n, index, N, P, item)
            layer_rows = None
            if rows is not None:
                layer_rows = rows[d]
                set_rows(r, layer_rows)
                order = r.order
            one.c_n.data = one.reserve = NULL
            if states == 2:
                set_first(&first_c, scratch, initial[1], index, N, H, item, batched)
                last_row(&one.c_n, c_n, index, N, H, item)
            if training:
                tape.append(record(one, w, seen, given, d, D, layer_rows))
            elif states == 2:
                r.c0 = scratch.take(w.blocks * N * w.units * item)
            if states == 2:
                pack_cell_states(w, &first_c, N, order, <char *>r.c0)
        layer_x, x_time, x_batch, x_unit = layer_y, y_time, y_batch, 1
        seen = given
    run_stack(passes, L, D, weights, scratch, rows, None, threads)
    if ticket >= 0:
        kept.keep(weights, ticket)
    last = h_n if states == 1 else (h_n, c_n)
    if not training:
        return y, last, None
    y.flags.writeable = False
    if given is not y:
        given.flags.writeable = False
    return y, last, _tape.Tape(layer, tape, layout, (T, N))


cdef _tape.Pass record(
    Pass *one, PackedWeights w, x, y, Py_ssize_t d, Py_ssize_t D, rows
):
    """A pass with memory of its own for what its backward needs, where the loop leaves it; c0 is
    yet to be packed."""
    cdef Run *r = &one.run
    cdef Py_ssize_t n
    cdef cnp.npy_intp[2] shape
    cdef cnp.ndarray h0
    c0 = reserve = None
    shape[0], shape[1] = r.N, r.P
    h0 = cnp.PyArray_EMPTY(2, shape, cnp.PyArray_TYPE(<cnp.ndarray>x), 0)
    for n in range(r.N):
        copy_row(
            <char *>cnp.PyArray_DATA(h0) + n * r.P * r.item, r.item,
            one.h0.data + n * one.h0.row, one.h0.unit, r.P, r.item,
        )
    if r.cell.states == 2:
        c0 = aligned_empty(r.blocks * r.N * r.units, w.dtype)
        r.c0 = <const char *>cnp.PyArray_DATA(<cnp.ndarray>c0)
    if r.cell.keeps_gates:
        reserve = allocate_reserve(w, r.T if rows is None else len(x), r.N)
        one.reserve = <char *>cnp.PyArray_DATA(<cnp.ndarray>reserve)
    if D == 2:
        x, y = (x[::-1], y[::-1, :, r.P :]) if d else (x, y[:, :, : r.P])
    return _tape.Pass(w, x, h0, c0, y, reserve, rows)


cdef PackedWeights prepare(
    layer, cell, list arrays, Py_ssize_t index, Py_ssize_t passes, bint training, int threads
):
    """The weights of one layer and direction, from the parameters in their order; training's are
    packed whole."""
    cdef Py_ssize_t count = len(arrays) // passes, at = index * count
    cdef Py_ssize_t biases = 2 if layer.bias else 0
    cdef object b_ih = None, b_hh = None, w_hr = None, w_ch = None
    if layer.bias:
        b_ih, b_hh = arrays[at + 2], arrays[at + 3]
    if cell.projects:
        w_hr = arrays[at + 2 + biases]
    if cell.peepholes:
        w_ch = arrays[at + count - 1]
    clip = layer.options.get("cell_clip")
    if training:
        return pack_weights(
            cell.index, arrays[at], arrays[at + 1], b_ih, b_hh, True, threads, w_ch, clip, w_hr,
            True, None,
        )
    return prepare_weights(
        cell.index, arrays[at], arrays[at + 1], b_ih, b_hh, w_ch, clip, w_hr, None
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

"""Calls over plain arrays, those that most make: a stack in one go.

`forward` and `backward` of a layer make arrays and objects for each of their steps; for a small
layer they cost more than the arithmetic, and where the loops have just filled the caches several
times what they cost alone. Here the arrays are looked at in C, and nothing is made but the results
and what training keeps. What is not plain is left to rnnkernel/_passes.py, which also has the words
for what is wrong.
"""

cimport numpy as cnp

cdef extern from *:
    # NumPy's headers bring <complex.h>, whose I is not the input size
    """
    #undef I
    """

import numpy as np

from rnnkernel cimport _tape
from rnnkernel._forward cimport Pass, set_rows, set_weights
from rnnkernel._kept cimport Kept
from rnnkernel._packing cimport PackedGradients, PackedWeights, pack_weights, prepare_weights
from rnnkernel._recurrence cimport Run
from rnnkernel._scratch cimport Scratch
from rnnkernel._stack cimport run_stack
from rnnkernel._states cimport Matrix, copy_row, pack_cell_states

from rnnkernel import _backward
from rnnkernel._arguments import Layout
from rnnkernel._forward import allocate_reserve
from rnnkernel._memory import aligned_empty
from rnnkernel._rows import all_have, kept_x, plain_lengths
from rnnkernel._sequence import Sequence
from rnnkernel.results import Gradients, Output

cnp.import_array()

# Results of more bytes are allocated by rnnkernel/_passes.py, which tells what does not fit.
cdef Py_ssize_t LARGE = 1 << 30

# What training keeps is so many times its outputs at most.
cdef double KEPT = 8

# [batch_first][batched]
cdef list LAYOUTS = [
    [Layout(batch_first, batched) for batched in (False, True)] for batch_first in (False, True)
]


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


# -- forward -----------------------------------------------------------------------------------


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
    cdef Py_ssize_t T, N, P, H = layer.hidden_size, item, k, d, index, width
    cdef Py_ssize_t time_axis = 0, batch_axis = 1
    cdef object cell = layer._cell
    cdef int states = len(cell.states)
    cdef cnp.ndarray x_array, y, h_n, c_n = None
    cdef PackedWeights w
    cdef Scratch scratch
    cdef Pass *passes
    cdef Pass *one
    cdef Run *r
    cdef Matrix first_c
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
    if <double>T * N * max(D * P, H) * L * item * (KEPT if training else 1) > LARGE:
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
        if all_have(lengths, T):
            lengths = None
        else:
            sequence = Sequence(T, N, lengths, None)
            if len(sequence.alive) == 0:
                return None
            rows = [sequence.rows(d == 1) for d in range(D)]

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
    y = of_steps(T, N, D * P, type_number, batched, batch_first)
    h_n = of_states(L * D, N, P, type_number, batched)
    if states == 2:
        c_n = of_states(L * D, N, H, type_number, batched)
    if training:
        layout = LAYOUTS[batch_first][batched]
        seen = kept_x(time_first(layout, x, batched, batch_first), lengths, threads)
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
                given = time_first(layout, y, batched, batch_first)
        elif training:
            given = of_steps(T, N, D * P, type_number, True, False)
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


cdef inline time_first(layout, array, bint batched, bint batch_first):
    """The caller's array as (T, N, ...)."""
    return array if batched and not batch_first else layout.time_first(array)


cdef cnp.ndarray of_steps(
    Py_ssize_t T, Py_ssize_t N, Py_ssize_t width, int type_number, bint batched, bint batch_first
):
    """(T, N, width), uninitialised, as the caller has it."""
    cdef cnp.npy_intp[3] shape
    shape[0], shape[1], shape[2] = T, N, width
    if not batched:
        shape[1] = width
    elif batch_first:
        shape[0], shape[1] = N, T
    return cnp.PyArray_EMPTY(3 if batched else 2, shape, type_number, 0)


cdef cnp.ndarray of_states(
    Py_ssize_t count, Py_ssize_t N, Py_ssize_t width, int type_number, bint batched
):
    """(L*D, N, width) likewise."""
    cdef cnp.npy_intp[3] shape
    shape[0], shape[1], shape[2] = count, N, width
    if not batched:
        shape[1] = width
    return cnp.PyArray_EMPTY(3 if batched else 2, shape, type_number, 0)


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


# -- backward ----------------------------------------------------------------------------------


def differentiate(
    _tape.Tape tape, dy, dstate, double limit, double norm_limit, bint input_grad, int threads
):
    """The Gradients of a training forward, or None where arguments are not plain, x was a table or
    what was kept is not all of it; the limits are those of clipping."""
    cdef object layer = tape.layer, layout = tape.layout, cell = layer._cell, dlayer, dx, dpart
    cdef _tape.Pass one
    cdef PackedGradients gradients
    cdef bint batched = layout.batched, batch_first = layout.batch_first
    cdef Py_ssize_t D = layer._directions, L = layer.num_layers, P = layer._widths[0]
    cdef Py_ssize_t H = layer.hidden_size, inputs = layer.input_size, T, N, k, d, index, at
    cdef int states = len(cell.states), type_number = cnp.NPY_FLOAT32
    cdef Py_ssize_t count, biases = 2 if layer.bias else 0
    cdef cnp.ndarray dh0, dc0 = None
    cdef list arrays
    cdef cnp.npy_intp[2] shape
    T, N = tape.shape
    if layer.dtype != np.float32:
        type_number = cnp.NPY_FLOAT64
    if tape.dropped is not None or tape.table is not None or T == 0 or N == 0:
        return None
    for one in tape.passes:
        if one.checkpoints is not None:
            return None
    if dy is not None:
        wanted = [T, N, D * P]
        if not batched:
            wanted = [T, D * P]
        elif batch_first:
            wanted = [N, T, D * P]
        if not is_plain(dy, type_number, 3 if batched else 2) or not has_shape(dy, wanted):
            return None
        dy = time_first(layout, dy, batched, batch_first)
    dfinal = [None, None]
    if dstate is not None:
        if states == 2 and (type(dstate) is not tuple or len(dstate) != 2):
            return None
        dfinal = [dstate] if states == 1 else list(dstate)
        for k in range(states):
            width = P if k == 0 else H
            wanted = [L * D, N, width] if batched else [L * D, width]
            if not is_plain(dfinal[k], type_number, len(wanted)):
                return None
            if not has_shape(dfinal[k], wanted):
                return None
            if not batched:
                dfinal[k] = dfinal[k][:, None]
    if <double>T * N * max(inputs, D * P) * L * layer.dtype.itemsize > LARGE:
        return None

    dh0 = of_states(L * D, N, P, type_number, True)
    if states == 2:
        dc0 = of_states(L * D, N, H, type_number, True)
    names = layer._parameter_shapes
    parameters = {}
    arrays = []
    for name, sizes in names.items():
        shape[0] = sizes[0]
        if len(sizes) == 2:
            shape[1] = sizes[1]
        array = cnp.PyArray_EMPTY(<int>len(sizes), shape, type_number, 0)
        parameters[name] = array
        arrays.append(array)
    count = len(arrays) // (L * D)
    dx = dy
    for k in range(L - 1, -1, -1):
        dlayer, dx = dx, None
        for d in range(D):
            index = k * D + d
            one = tape.passes[index]
            dpart = None
            if k > 0:
                dpart = of_steps(T, N, D * P, type_number, True, False)
            elif input_grad:
                dpart = of_steps(T, N, inputs, type_number, batched, batch_first)
                dpart = time_first(layout, dpart, batched, batch_first)
            gradients = PackedGradients(one.weights)
            _backward.backward(
                one.weights, gradients, one.x, one.h0, one.c0, one.y, one.reserve,
                half(dlayer, d, D, P),
                None if dfinal[0] is None else dfinal[0][index],
                None if states == 1 or dfinal[1] is None else dfinal[1][index],
                limit, norm_limit, None,
                dpart if dpart is None or d == 0 else dpart[::-1],
                dh0[index], None if states == 1 else dc0[index], threads, one.rows,
            )
            at = index * count
            gradients.unpack(
                arrays[at], arrays[at + 1],
                arrays[at + 2] if biases else None, arrays[at + 3] if biases else None, threads,
                arrays[at + count - 1] if cell.peepholes else None,
                arrays[at + 2 + biases] if cell.projects else None,
            )
            if dpart is not None:
                dx = dpart if dx is None else np.add(dx, dpart, out=dx)
    if not batched:
        dh0, dc0 = dh0[:, 0], None if dc0 is None else dc0[:, 0]
    return Gradients(
        None if not input_grad else dx if batched and not batch_first else layout.caller_view(dx),
        dh0 if states == 1 else (dh0, dc0),
        parameters,
    )


cdef half(dlayer, Py_ssize_t d, Py_ssize_t D, Py_ssize_t P):
    """The part of dL/dy of a layer that belongs to a direction, in its time."""
    if dlayer is None or D == 1:
        return dlayer
    return dlayer[::-1, :, P:] if d else dlayer[:, :, :P]

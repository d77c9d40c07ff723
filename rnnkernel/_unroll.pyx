"""Forward of a call whose backward or trace needs more than its results, or whose arguments are not
plain: its layers from the first to the last, and what each hands to the one above.

rnnkernel/_stack.pyx takes the layers through time, or rnnkernel/_checkpoints.py each of them in
segments. A plain call for inference keeps nothing, and is rnnkernel/_plain.pyx.
"""

from libc.string cimport memset

cimport numpy as cnp

import numpy as np

from rnnkernel._arrays cimport (
    Steps,
    caller_view,
    half,
    of,
    of_states,
    of_steps,
    plain_rows,
    plain_states,
    plain_steps,
    time_first,
)
from rnnkernel._packed_weights cimport PackedWeights
from rnnkernel._parameters cimport plain_parameters, prepare_one
from rnnkernel._sizes cimport Sizes, sizes_of
from rnnkernel._states cimport copy_row
from rnnkernel._tape cimport Pass, Tape

from rnnkernel import _checkpoints
from rnnkernel._arguments import Layout, as_state
from rnnkernel._forward import allocate_reserve, pack_cells
from rnnkernel._plan import sections_of
from rnnkernel._rows import kept_x
from rnnkernel.results import Output

cnp.import_array()

# [batch_first][batched]
cdef list LAYOUTS = [
    [Layout(batch_first, batched) for batched in (False, True)] for batch_first in (False, True)
]


def train(layer, x, state, int threads, lengths=None):
    """The Output of a training forward, or None where arguments or parameters are not plain or
    dropout acts."""
    cdef Sizes sizes = sizes_of(layer)
    cdef Steps steps
    cdef list initial, arrays, weights
    cdef Py_ssize_t index, count = sizes.layers * sizes.directions
    cdef bint batch_first = layer.batch_first
    if sizes.layers > 1 and layer.dropout or not plain_steps(sizes, x, batch_first, &steps):
        return None
    initial = plain_states(sizes, state, steps.N, steps.batched)
    if initial is None:
        return None
    found = plain_rows(
        lengths, &steps, <int>sizes.directions, sections_of(layer, steps.N, threads, True)
    )
    if found is None:
        return None
    lengths, rows = found
    arrays = plain_parameters(layer, sizes)
    if arrays is None:
        return None
    if not steps.batched and state is not None:
        initial = [array[:, None] for array in initial]
    layout = LAYOUTS[batch_first][steps.batched]
    weights = [prepare_one(layer, arrays, index, True) for index in range(count)]
    x = kept_x(time_first(layout, x), lengths, threads)
    shape = steps.T, steps.N
    y, finals, passes = unroll(
        layer, layout, shape, x, initial, rows, None, None, weights, True, False, None, None,
        threads,
    )
    tape = Tape(layer, passes, layout, shape)
    state = layout.caller_state(finals) if not steps.batched else as_state(finals)
    # not the array that the tape has: the caller may set the shape of this one
    return Output(caller_view(layout, y.view()), state, None, tape)


def unroll(
    layer,
    layout,
    tuple shape,
    x,
    list initial,
    list rows,
    index,
    y,
    list weights,
    bint keeps,
    bint traced,
    checkpoint_every,
    dropped,
    int threads,
):
    """y (T, N, D*P), the final states, (L*D, N, units) each, and the passes of a call.

    Parameters
    ----------
    shape : (T, N)
    x : (T, N, I), or a table (R, 1, I)
    initial : list of (L*D, N, units) or None
    rows : Rows of each direction, or None
    index : (T, N) intp, or None
        Where x is a table.
    y : (T, N, D*P), or None
        Where to write, if not to a new array; units contiguous.
    weights : PackedWeights of each layer and direction
        Not yet packed ones are of this call alone, which packs what backward or a later step needs.
    keeps : bool
        Whether the passes are to have reserves, and nothing of them is used twice.
    traced : bool
        Whether a reserve's rows are to stand in one group, for views of them.
    checkpoint_every : int, or None
        With it they have checkpoints instead, where the cell keeps more than y.
    dropped : Dropped, or None
    """
    cdef bint has_cells = len(initial) == 2
    cdef Sizes sizes = sizes_of(layer)
    cdef int type_number = sizes.type_number
    cdef Py_ssize_t D = sizes.directions, L = sizes.layers, P = sizes.projected_size
    cdef Py_ssize_t T, N, k, d, at
    cdef Pass one
    cdef PackedWeights w
    cdef list passes = [], finals, directions
    cdef list ready = []  # layers that are yet to be run
    cdef list between = [None, None]
    cdef object own, c0, c_n, checkpoints, reserve, order, layer_y = None, last = y
    T, N = shape
    finals = [of_states("state", L * D, N, P, type_number, True)]
    if has_cells:
        finals.append(of_states("state", L * D, N, sizes.hidden_size, type_number, True))
    for k in range(L):
        if k == L - 1:
            layer_y = last
            if layer_y is None:
                layer_y = time_first(layout, of_steps(
                    "y", T, N, D * P, type_number, layout.batched, layout.batch_first
                ))
        elif k > 1 and not keeps:
            # whoever reads a step is done with it before the next layer but one writes there
            layer_y = between[k % 2]
        else:
            layer_y = of_steps("y", T, N, D * P, type_number, True, False)
            between[k % 2] = layer_y
        directions = []
        for d in range(D):
            at = k * D + d
            w = weights[at]
            own = None if rows is None else rows[d]
            order = None if own is None else own.order
            c0 = c_n = reserve = checkpoints = None
            if has_cells:
                c0 = pack_cells(w, of(initial[1], at), N, order)
                c_n = finals[1][at]
            if checkpoint_every is not None and checkpoint_every < T and w.keeps_gates():
                checkpoints = _checkpoints.Checkpoints(checkpoint_every)
            elif keeps:
                reserve = allocate_reserve(w, T, N, own)
            one = Pass(
                w,
                x[::-1] if d and (index is None or k > 0) else x,
                first_state(of(initial[0], at), N, P, type_number),
                c0,
                half(layer_y, d, D, P),
                reserve,
                own,
                checkpoints,
                None if index is None or k > 0 else index[::-1] if d else index,
                1 if traced else 0,
            )
            directions.append((one, finals[0][at], c_n))
            passes.append(one)
        ready.append(directions)
        x = layer_y
        if dropped is not None or k == L - 1:
            _checkpoints.forward(ready, threads)
            ready = []
        if dropped is not None and k < L - 1:
            x = of_steps("y", T, N, D * P, type_number, True, False)
            dropped(k, layer_y, x, threads)
    if keeps:
        for at in range(len(passes)):
            freeze((<Pass>passes[at]).y)
        freeze(layer_y)
    return layer_y, finals, passes


cdef freeze(array):
    """Nobody writes to an array, nor to what it is a view of: backward reads them again."""
    while isinstance(array, np.ndarray):
        cnp.PyArray_CLEARFLAGS(<cnp.ndarray>array, cnp.NPY_ARRAY_WRITEABLE)
        array = array.base


cdef cnp.ndarray first_state(state, Py_ssize_t N, Py_ssize_t P, int type_number):
    """A contiguous copy of h_0 (N, P); None is zeros."""
    cdef cnp.npy_intp[2] shape
    cdef cnp.ndarray h0, given
    cdef Py_ssize_t n, item
    shape[0], shape[1] = N, P
    h0 = cnp.PyArray_EMPTY(2, shape, type_number, 0)
    item = cnp.PyArray_ITEMSIZE(h0)
    if state is None:
        memset(cnp.PyArray_DATA(h0), 0, N * P * item)
        return h0
    given = state
    for n in range(N):
        copy_row(
            <char *>cnp.PyArray_DATA(h0) + n * P * item, item,
            <char *>cnp.PyArray_DATA(given) + n * cnp.PyArray_STRIDE(given, 0),
            cnp.PyArray_STRIDE(given, 1), P, item,
        )
    return h0

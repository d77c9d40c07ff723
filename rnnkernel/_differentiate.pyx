"""Backward of a call: its layers from the last to the first, and what each hands to the one below.

rnnkernel/_backward.pyx takes the directions of a layer through time, or rnnkernel/_checkpoints.py
each of them in segments.
"""

cimport numpy as cnp

import numpy as np

from rnnkernel._arrays cimport (
    caller_view,
    half,
    has_shape,
    is_plain,
    named_array,
    of,
    of_states,
    of_steps,
    plain_states,
    time_first,
)
from rnnkernel._packed_gradients cimport PackedGradients
from rnnkernel._sizes cimport Sizes, sizes_of
from rnnkernel._tape cimport BackwardPass, Pass, Tape

from rnnkernel import _backward, _checkpoints
from rnnkernel._memory import zeros
from rnnkernel.results import Flow, Gradients

cnp.import_array()


def plain_arrivals(Tape tape, dy, dstate):
    """What `check_arrivals` of rnnkernel/_arguments.py returns, or None where arguments are not
    plain."""
    cdef object layer = tape.layer, layout = tape.layout
    cdef bint batched = layout.batched, batch_first = layout.batch_first
    cdef Sizes sizes = sizes_of(layer)
    T, N = tape.shape
    if dy is not None:
        width = sizes.directions * sizes.projected_size
        wanted = (T, width) if not batched else (N, T, width) if batch_first else (T, N, width)
        if not is_plain(dy, sizes.type_number, 3 if batched else 2) or not has_shape(dy, wanted):
            return None
        dy = time_first(layout, dy)
    dfinal = plain_states(sizes, dstate, N, batched)
    if dfinal is None:
        return None
    if not batched and dstate is not None:
        dfinal = [array[:, None] for array in dfinal]
    return dy, dfinal


def differentiate(
    Tape tape,
    dy,
    list dfinal,
    double limit,
    double norm_limit,
    flow,
    bint input_grad,
    int threads,
):
    """The Gradients of a training forward: `dy` is (T, N, D*P) or None, `dfinal` are the gradients
    of the final states, (L*D, N, units) or None each, the limits are those of clipping, and `flow`
    is True, False or "states"."""
    cdef object layer = tape.layer, layout = tape.layout, table = tape.table
    cdef bint batched = layout.batched, batch_first = layout.batch_first
    cdef bint tokens = table is not None and table.ids is not None
    cdef bint has_cells = len(dfinal) == 2
    cdef Sizes sizes = sizes_of(layer)
    cdef int type_number = sizes.type_number
    cdef Py_ssize_t D = sizes.directions, L = sizes.layers, P = sizes.projected_size
    cdef Py_ssize_t T, N, k, d, index
    cdef Pass one
    cdef BackwardPass back
    cdef cnp.ndarray dh0, dc0 = None
    cdef dict parameters = {}
    cdef list passes, records = []
    cdef object dlayer, dx = dy, dembedding = None
    T, N = tape.shape
    dh0 = of_states("grads.state", L * D, N, P, type_number, True)
    if has_cells:
        dc0 = of_states("grads.state", L * D, N, sizes.hidden_size, type_number, True)
    for name, shape in sizes.parameters:
        parameters[name] = like(name, shape, type_number)
    if tokens:
        input_grad = False
        if table.rows is not None:
            shape = tape.vocabulary, sizes.input_size
            dembedding = zeros(shape, layer.dtype, len(table.ids))

    for k in range(L - 1, -1, -1):
        dlayer, dx = dx, None
        if k > 0:
            dx = of_steps("grads.x", T, N, D * P, type_number, True, False)
        elif input_grad:
            dx = time_first(layout, of_steps(
                "grads.x", T, N, sizes.input_size, type_number, batched, batch_first
            ))
        columns = table.ids if k == 0 and tokens and table.rows is None else None
        passes = []
        for d in range(D):
            index = k * D + d
            one = tape.passes[index]
            dtable = dtable_rows = record = None
            if dembedding is not None and k == 0 and d == 0:
                dtable, dtable_rows = dembedding, table.ids
            elif dembedding is not None and k == 0:
                dtable = like("grads.embedding", table.rows.shape, type_number)
            if flow:
                record = (
                    np.zeros((T, N)), np.zeros((T, N)), np.zeros((T, N), np.uint8),
                    *states_of_flow(layer, flow, T, N, has_cells),
                )
            suffix = layer._suffixes[index]
            gradients = PackedGradients(
                one.weights, _backward.shards_of(one.weights, T, N),
                parameters["weight_ih" + suffix], parameters["weight_hh" + suffix], columns,
                one.checkpoints is None and _backward.is_one_chunk(one.weights, T, N),
            )
            passes.append(BackwardPass(
                one, gradients, half(dlayer, d, D, P),
                of(dfinal[0], index), of(dfinal[1], index) if has_cells else None, record,
                dx if dx is None or d == 0 else dx[::-1], dh0[index], of(dc0, index), dtable,
                dtable_rows, None, True, d > 0,
            ))
        if one.checkpoints is None:
            _backward.backward(passes, limit, norm_limit, threads)
        else:
            for back in passes:
                _checkpoints.backward(back, limit, norm_limit, threads)
        for d in range(D):
            back = passes[d]
            unpack(back.gradients, parameters, layer._suffixes[k * D + d], threads)
            if back.dtable is not None and back.dtable_rows is None:
                dembedding[table.ids] += back.dtable
        if flow:
            records = [in_time_of_x(passes[d], d) for d in range(D)] + records
        if k > 0 and tape.dropped is not None:
            tape.dropped(k - 1, dx, dx, threads)

    if not batched:
        dh0, dc0 = dh0[:, 0], None if dc0 is None else dc0[:, 0]
    return Gradients(
        None if not input_grad else caller_view(layout, dx),
        dh0 if dc0 is None else (dh0, dc0),
        parameters,
        dembedding,
        Flow._of_records(records, has_cells, batched) if flow else None,
    )


cdef like(str name, tuple shape, int type_number):
    """A new array, uninitialised."""
    cdef cnp.npy_intp[2] sizes
    cdef int axis
    for axis in range(len(shape)):
        sizes[axis] = shape[axis]
    return named_array(name, <int>len(shape), sizes, type_number)


cdef unpack(PackedGradients gradients, dict parameters, suffix, int threads):
    gradients.unpack(
        parameters.get("bias_ih" + suffix),
        parameters.get("bias_hh" + suffix),
        parameters.get("weight_ch" + suffix),
        parameters.get("weight_hr" + suffix),
        threads,
    )


cdef list states_of_flow(layer, flow, T, N, bint has_cells):
    """Zeros for dh and dc of all steps, each None where it is not wanted."""
    if flow != "states":
        return [None, None]
    dh = zeros((T, N, layer._widths[0]), layer.dtype, T)
    return [dh, zeros((T, N, layer.hidden_size), layer.dtype, T) if has_cells else None]


cdef list in_time_of_x(BackwardPass back, Py_ssize_t d):
    """What a direction recorded, by step and row of x."""
    cdef object rows = back.of.rows
    return [
        record if record is None
        else (record if rows is None else rows.restore(record))[:: -1 if d else 1]
        for record in back.flow
    ]

"""Inference over plain arrays, as most calls are: a stack in one go.

The arrays are looked at in C (rnnkernel/_arrays.pyx says why), and nothing is made but the results.
What is not plain is left to rnnkernel/_passes.py, which also has the words for what is wrong.
"""

cimport numpy as cnp

from rnnkernel._arrays cimport (
    Steps,
    of_states,
    of_steps,
    plain_rows,
    plain_states,
    plain_steps,
)
from rnnkernel._clock cimport anybody_records
from rnnkernel._forward cimport Pass, set_rows, set_weights
from rnnkernel._kept cimport Kept
from rnnkernel._packed_weights cimport PackedWeights
from rnnkernel._parameters cimport plain_parameters, prepare_one
from rnnkernel._run cimport Matrix, Run
from rnnkernel._scratch cimport Scratch
from rnnkernel._sizes cimport Sizes, sizes_of
from rnnkernel._stack cimport run_stack
from rnnkernel._states cimport pack_cell_states

from rnnkernel._plan import sections_of
from rnnkernel._threads import resolve
from rnnkernel.profiling import begin

cnp.import_array()


def infer(called, x, state, num_threads, lengths=None):
    """y and the final states as a call returns them, or None where arguments or parameters are
    not plain.

    `called` is a layer, whose parameters are packed unless it keeps them so, or a Frozen.
    """
    cdef object call = begin(called, "forward()") if anybody_records() else None
    cdef int threads = resolve(num_threads)
    cdef list packed = called._packed
    cdef object layer = called if packed is None else called._layer
    cdef Kept kept = None
    cdef long long ticket = -1  # to keep what is packed here, or -1
    cdef Sizes sizes = sizes_of(layer)
    cdef int type_number = sizes.type_number
    cdef Py_ssize_t D = sizes.directions, L = sizes.layers
    cdef Py_ssize_t P = sizes.projected_size, H = sizes.hidden_size
    cdef Py_ssize_t T, N, item, k, d, index, width
    cdef bint batch_first = layer.batch_first
    cdef cnp.ndarray x_array, y, h_n, c_n = None
    cdef PackedWeights w
    cdef Scratch scratch
    cdef Steps steps
    cdef Pass *passes
    cdef Pass *one
    cdef Run *r
    cdef Matrix first_c = Matrix(NULL, 0, 0)
    cdef list arrays = None, weights = []
    cdef object rows
    cdef char *layer_x
    cdef char *layer_y
    cdef char *between[2]
    cdef Py_ssize_t x_time, x_batch, x_unit, y_time, y_batch

    # arguments
    if not plain_steps(sizes, x, batch_first, &steps):
        return None
    x_array, T, N = <cnp.ndarray>x, steps.T, steps.N
    item = cnp.PyArray_ITEMSIZE(x_array)
    initial = plain_states(sizes, state, N, steps.batched)
    if initial is None:
        return None
    sections = 1 if lengths is None else sections_of(layer, N, threads, False)
    found = plain_rows(lengths, &steps, <int>D, sections)
    if found is None:
        return None
    rows = found[1]

    # weights
    scratch = Scratch()
    if packed is None:
        kept = layer._kept
        packed = kept.present()
    if packed is None:
        ticket = kept.begin(layer)
        arrays = plain_parameters(layer, sizes)
        if arrays is None:
            return None

    # results
    y = of_steps("y", T, N, D * P, type_number, steps.batched, batch_first)
    h_n = of_states("state", L * D, N, P, type_number, steps.batched)
    if sizes.states == 2:
        c_n = of_states("state", L * D, N, H, type_number, steps.batched)

    between[0] = between[1] = NULL
    passes = <Pass *>scratch.take(L * D * sizeof(Pass))
    layer_x = <char *>cnp.PyArray_DATA(x_array)
    x_time = cnp.PyArray_STRIDE(x_array, steps.time_axis) // item
    x_batch = cnp.PyArray_STRIDE(x_array, steps.batch_axis) // item if steps.batched else 0
    x_unit = cnp.PyArray_STRIDE(x_array, cnp.PyArray_NDIM(x_array) - 1) // item
    for k in range(L):
        y_time, y_batch = N * D * P, D * P
        if k == L - 1:
            layer_y = <char *>cnp.PyArray_DATA(y)
            if steps.batched and batch_first:
                y_time, y_batch = D * P, T * D * P
        else:
            # whoever reads a step is done with it before the next layer but one writes there
            layer_y = between[k & 1]
            if layer_y == NULL:
                layer_y = between[k & 1] = scratch.take(T * N * D * P * item)
        for d in range(D):
            index = k * D + d
            if packed is None:
                w = prepare_one(layer, arrays, index, False)
                if ticket >= 0:
                    w.pack_rest(0, threads)
                else:  # the pass packs W_ih and W_hh itself
                    w.pack(1 + w.cell.phases, 1)
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
            set_first(&r.h0, scratch, initial[0], index, N, P, item, steps.batched)
            last_row(&r.h_n, h_n, index, N, P, item)
            if rows is not None:
                set_rows(r, rows[d])
            r.c_n.data = one.reserve = NULL
            one.groups = 1
            if sizes.states == 2:
                width = w.blocks * w.units  # whole blocks are read
                set_first(&first_c, scratch, initial[1], index, N, width, item, steps.batched)
                last_row(&r.c_n, c_n, index, N, H, item)
                set_first_cells(r, w, scratch, &first_c, initial[1] is None)
        layer_x, x_time, x_batch, x_unit = layer_y, y_time, y_batch, 1
    run_stack(passes, L, D, weights, scratch, None, threads)
    if ticket >= 0:
        kept.keep(weights, ticket)
    if call is not None:
        call.end()
    return y, (h_n if sizes.states == 1 else (h_n, c_n))


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


cdef int set_first_cells(
    Run *r, PackedWeights w, Scratch scratch, const Matrix *c, bint zeros
) except -1:
    """The initial cell states: where they lie, if their rows are as the loop reads them."""
    if zeros or (
        r.order == NULL and c.unit == w.item and c.row % w.item == 0
        and w.hidden_size == w.blocks * w.units
    ):
        r.c0, r.c0_row, r.c0_block = c.data, c.row // w.item, w.units
    else:
        r.c0 = scratch.take(w.blocks * r.N * w.units * w.item)
        pack_cell_states(r.blocks, r.units, r.item, r.H, c, r.N, r.order, <char *>r.c0)
    return 0


cdef void last_row(
    Matrix *m, cnp.ndarray states, Py_ssize_t index, Py_ssize_t N, Py_ssize_t width,
    Py_ssize_t item,
) noexcept:
    """Where the final state of one layer and direction goes."""
    m.data = <char *>cnp.PyArray_DATA(states) + index * N * width * item
    m.row, m.unit = width * item, item

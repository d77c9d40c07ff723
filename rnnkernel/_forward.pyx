"""One layer and direction forward in time: from arrays to the loop and back.

rnnkernel/_recurrence.pyx has the loop, and rnnkernel/_plan.pyx how threads share it. A pass is
pointed at its weights, arrays and rows; once it is divided it gets its memory, and after its last
step the final states are taken from it.
"""

from libc.string cimport memcpy

cimport numpy as cnp

import numpy as np

from rnnkernel cimport _tape
from rnnkernel._kernels cimport RK_HALF, RK_WHOLE, rk_panel_rows
from rnnkernel._memory cimport address, aligned_empty, aligned_zeros, tile_pitch
from rnnkernel._packed_weights cimport PackedWeights
from rnnkernel._projection cimport list_chunk
from rnnkernel._run cimport Matrix, Plan, Run
from rnnkernel._scratch cimport Scratch
from rnnkernel._states cimport copy_row, pack_cell_states, put_states, take_first_cell
from rnnkernel._tape cimport place_in_groups, rows_of_group

cnp.import_array()


# -- what the arrays are -------------------------------------------------------------------------


cdef void set_weights(Run *r, PackedWeights w, Py_ssize_t N) noexcept:
    """What follows from the weights and the size of the batch."""
    r.kernels, r.cell = w.kernels, w.cell
    r.N, r.I, r.H, r.P = N, w.input_size, w.hidden_size, w.projected_size
    r.item, r.units, r.blocks = w.item, w.units, w.blocks
    r.bias, r.input = w.bias, w.input
    r.recurrent = <const char **>w.recurrent
    r.storage, r.input_scale = w.storage, w.input_scale
    r.weight_item = w.item if w.storage == RK_WHOLE else 2 if w.storage == RK_HALF else 1
    r.input_rows = rk_panel_rows(r.I, r.storage)
    r.recurrent_rows = rk_panel_rows(r.P, r.storage)
    r.recurrent_scale = <const char **>w.recurrent_scale
    r.projection, r.peepholes, r.cell_clip = w.projection, w.peepholes, w.cell_clip
    r.projection_columns = w.column_blocks(r.P)
    r.input_last_vectors = w.input_last_vectors()
    r.gates_block = N * r.cell.memory_slots * r.units
    r.gates_time = r.blocks * r.gates_block
    r.pitch = tile_pitch(r.blocks * r.units, r.item)
    # rows are alike; forward changes it
    r.alive = r.order = NULL
    r.sections, r.section[0], r.section[1] = 1, 0, N
    r.clears = False
    r.reset = r.resets = NULL
    r.index = NULL
    r.begins = r.ends = False
    r.c0, r.c0_row, r.c0_block = NULL, r.units, N * r.units
    r.keeps = False
    r.panels = NULL
    r.panel_count = r.passing = 0
    r.passing_panels, r.passing_bytes = NULL, 0
    r.back = False
    r.spent = NULL


cdef Matrix matrix(cnp.ndarray array) noexcept:
    """(N, units) where it lies."""
    cdef Matrix m
    m.data = <char *>cnp.PyArray_DATA(array)
    m.row, m.unit = cnp.PyArray_STRIDE(array, 0), cnp.PyArray_STRIDE(array, 1)
    return m


cdef int set_rows(Run *r, rows) except -1:
    """Which rows have which of its steps."""
    cdef Py_ssize_t n
    r.y_steps, r.T = r.T, rows.longest
    r.longest, r.sections = r.T, len(rows.section) - 1
    memcpy(r.section, cnp.PyArray_DATA(rows.section), (r.sections + 1) * sizeof(Py_ssize_t))
    r.clears = rows.whole
    r.alive = <Py_ssize_t *>address(rows.alive)
    r.order = <Py_ssize_t *>address(rows.order)
    r.start = <Py_ssize_t *>address(rows.start)
    r.length = <Py_ssize_t *>address(rows.lengths)
    r.count = 0
    for n in range(r.N):
        r.count += r.length[n]
    if rows.reset is not None:
        r.reset = <unsigned char *>address(rows.reset)
        r.resets = <unsigned char *>address(rows.resets)
    return 0


cdef int set_arrays(Pass *one, _tape.Pass of, h_n, c_n) except -1:
    """Points a pass at its arrays."""
    cdef Run *r = &one.run
    cdef cnp.ndarray seen = of.x, made = of.y
    set_weights(r, of.weights, made.shape[1])
    r.h0, r.h_n = matrix(of.h0), matrix(h_n)
    r.c_n.data = NULL
    if c_n is not None:
        r.c_n = matrix(c_n)
    if of.c0 is not None:
        r.c0 = <const char *>cnp.PyArray_DATA(of.c0)
    r.T, r.first = made.shape[0], 0
    r.count = r.T * r.N
    r.x = <const char *>cnp.PyArray_DATA(seen)
    r.x_time = cnp.PyArray_STRIDE(seen, 0) // r.item
    r.x_batch = cnp.PyArray_STRIDE(seen, 1) // r.item
    r.x_unit = cnp.PyArray_STRIDE(seen, 2) // r.item
    r.y = <char *>cnp.PyArray_DATA(made)
    r.y_time = cnp.PyArray_STRIDE(made, 0) // r.item
    r.y_batch = cnp.PyArray_STRIDE(made, 1) // r.item
    if of.rows is not None:
        set_rows(r, of.rows)
    if of.index is not None:
        r.index = <Py_ssize_t *>cnp.PyArray_DATA(of.index)
        r.one_hot = seen.shape[0] == 0
        r.table_rows = r.I if r.one_hot else seen.shape[0]
    one.reserve, one.groups = NULL, of.groups
    if of.reserve is not None and r.cell.keeps_gates:
        one.reserve = <char *>cnp.PyArray_DATA(of.reserve)
        one.reserve_rows = r.N
        if r.T > 0 and r.N > 0:
            one.reserve_rows = cnp.PyArray_SIZE(of.reserve) // (r.T * r.gates_time // r.N)
        r.keeps = True
    return 0


# -- memory --------------------------------------------------------------------------------------


cdef int lay_out(Pass *one, Scratch scratch, index) except -1:
    """Gives a pass that is divided its memory."""
    cdef Run *r = &one.run
    cdef Plan *plan = &one.plan
    cdef Py_ssize_t tile, tile_rows = 0
    if one.reserve != NULL:
        stand_in_groups(one)
    for tile in range(plan.tiles):
        tile_rows = max(tile_rows, plan.bounds[tile + 1] - plan.bounds[tile])
    r.h_time = tile_rows * r.pitch
    r.gates_steps = r.chunk
    r.gates = one.reserve
    if r.gates != NULL:
        r.gates_steps = r.T
    else:
        r.gates_block = tile_rows * r.cell.memory_slots * r.units
        r.gates_time = r.blocks * r.gates_block
        r.gates = scratch.take(plan.tiles * r.chunk * r.gates_time * r.item)
    find_rows(one, scratch)
    lay_out_states(r, plan, scratch)
    if r.index != NULL:
        find_table(r, scratch, index)
    return 0


cdef int lay_out_states(Run *r, const Plan *plan, Scratch scratch) except -1:
    """The tiles of h, with h0 in the first where no thread begins with its own rows."""
    r.h = scratch.take(plan.tiles * 3 * r.h_time * r.item)
    r.early = r.h + 2 * r.h_time * r.item
    if plan.by_units:
        put_states(r, 0, r.N)
    if r.reset != NULL and r.cell.states == 2:
        r.c_reset = scratch.take(r.blocks * r.N * r.units * r.item)
    return 0


cdef const Py_ssize_t *sections_in(const Run *r) noexcept:
    """Their bounds, where rows differ."""
    if r.alive == NULL:
        return NULL
    return r.section


cdef void stand_in_groups(Pass *one) noexcept:
    """Chooses the groups of the reserve, those of the threads' rows if there is room."""
    cdef Run *r = &one.run
    cdef Plan *plan = &one.plan
    cdef Py_ssize_t rows, i
    if one.groups == 0:
        one.groups = 1
        if not plan.by_units and plan.tiles > 1 and (
            r.alive == NULL or plan.tiles >= r.sections
        ):
            one.groups = <int>plan.tiles if r.alive == NULL else r.sections
            rows = rows_of_group(r.N, one.groups, sections_in(r))
            if one.groups * rows > one.reserve_rows:
                one.groups = 1
    rows = rows_of_group(r.N, one.groups, sections_in(r))
    if one.groups > 1 and r.alive == NULL:
        for i in range(plan.tiles):
            plan.bounds[i] = min(r.N, i * rows)
    r.gates_block = rows * r.cell.memory_slots * r.units
    r.gates_time = r.blocks * r.gates_block


cdef int find_rows(Pass *one, Scratch scratch) except -1:
    """The offsets of all rows, those of a tile beside one another. Tiles of h lie apart, and of
    gates, too: a processor reads ahead, and takes from another core the lines that this one is
    about to write."""
    cdef Run *r = &one.run
    cdef const Plan *plan = &one.plan
    cdef Py_ssize_t n, tile, row, lists = r.N * r.chunk
    cdef Py_ssize_t row_gates = r.cell.memory_slots * r.units
    cdef Py_ssize_t *offsets = <Py_ssize_t *>scratch.take(4 * r.N * sizeof(Py_ssize_t))
    cdef Py_ssize_t *y_row = offsets
    cdef Py_ssize_t *gates_row = offsets + r.N
    cdef Py_ssize_t *h_row = offsets + 2 * r.N
    cdef Py_ssize_t *x_row = offsets + 3 * r.N
    cdef const Py_ssize_t *order = r.order
    r.y_row, r.gates_row, r.h_row, r.x_row = y_row, gates_row, h_row, x_row
    if r.alive != NULL and plan.by_units:
        lists *= plan.team
    for n in range(r.N):
        row = n if order == NULL else order[n]
        y_row[n] = row * r.y_batch
        x_row[n] = row * r.x_batch
        if order != NULL:
            y_row[n] += r.start[n] * r.y_time
            x_row[n] += r.start[n] * r.x_time
    if one.reserve != NULL:
        place_in_groups(
            gates_row, r.N, one.groups, sections_in(r), r.T * r.gates_time, row_gates
        )
    for tile in range(plan.tiles):
        for n in range(plan.bounds[tile], plan.bounds[tile + 1]):
            row = n - plan.bounds[tile]
            h_row[n] = tile * 3 * r.h_time + row * r.pitch
            if one.reserve == NULL:
                gates_row[n] = tile * r.chunk * r.gates_time + row * row_gates
    r.chunk_x = <Py_ssize_t *>scratch.take(2 * lists * sizeof(Py_ssize_t))
    r.chunk_gates = r.chunk_x + lists
    for tile in range(plan.tiles):
        list_chunk(r, plan.bounds[tile], plan.bounds[tile + 1])
    return 0


cdef int find_table(Run *r, Scratch scratch, index) except -1:
    """The offsets of the table's rows, and of each row's steps in the index."""
    cdef Py_ssize_t n, k, width = r.cell.input.slots * r.units
    cdef Py_ssize_t batch = index.strides[1] // sizeof(Py_ssize_t)
    cdef Py_ssize_t *index_row = <Py_ssize_t *>scratch.take(r.N * sizeof(Py_ssize_t))
    cdef Py_ssize_t *table_x
    cdef Py_ssize_t *table_row
    r.index_time = index.strides[0] // sizeof(Py_ssize_t)
    for n in range(r.N):
        index_row[n] = r.order[n] * batch + r.start[n] * r.index_time
    r.index_row = index_row
    r.table = <char *>r.input
    if r.one_hot:
        return 0
    r.table = scratch.take(r.blocks * r.table_rows * width * r.item)
    table_x = <Py_ssize_t *>scratch.take(2 * r.table_rows * sizeof(Py_ssize_t))
    table_row = table_x + r.table_rows
    for k in range(r.table_rows):
        table_x[k] = k * r.x_time
        table_row[k] = k * width
    r.table_x, r.table_row = table_x, table_row
    return 0


# -- states and the reserve ----------------------------------------------------------------------


def pack_cells(PackedWeights w, c, Py_ssize_t N, order):
    """Cell states (N, H), or None for zeros, as [block][N][U], zero past H; with `order` by
    position."""
    cdef const Py_ssize_t *rows = NULL
    cdef Matrix cells
    cdef Py_ssize_t count = w.blocks * N * w.units
    if c is None:
        return aligned_zeros(count, w.type_number())
    packed = aligned_empty(count, w.type_number())
    if order is not None:
        rows = <Py_ssize_t *>cnp.PyArray_DATA(<cnp.ndarray>order)
    cells = matrix(c)
    pack_cell_states(
        w.blocks, w.units, w.item, w.hidden_size, &cells, N, rows,
        <char *>cnp.PyArray_DATA(<cnp.ndarray>packed),
    )
    return packed


def allocate_reserve(PackedWeights w, Py_ssize_t T, Py_ssize_t N, rows=None):
    """What training keeps from forward to backward beside y, flat; None where that is enough.
    Sections of unequal rows (`rows`) may stand in groups: what is past a row's end is not touched,
    so there may be some more."""
    if not w.cell.keeps_gates:
        return None
    if rows is not None and len(rows.section) > 2:
        most = (len(rows.section) - 1) * int(np.diff(rows.section).max())
        if most <= 1.25 * N:
            N = most
    return aligned_empty(T * w.blocks * N * w.cell.memory_slots * w.units, w.type_number())


def kept(PackedWeights w, reserve, Py_ssize_t T, Py_ssize_t N, gate):
    """What a reserve holds of one gate (its place in the canonical weights), or of the cell state
    (None), as (T, N, H): a view where there is one unit block, else a copy. Its rows stand in one
    group."""
    cdef int i, slot = w.cell.slots
    if gate is not None:
        slot = -1
        for i in range(w.cell.input.slots):
            if w.cell.input.order[i] == gate:
                slot = w.cell.input.slot + i
        if slot < 0:  # the forget gate of coupled gates is no more than 1 - i
            with np.errstate(invalid="ignore"):  # past a row's end nothing was written
                return 1 - kept(w, reserve, T, N, 0)
    by_block = reserve[: T * w.blocks * N * w.cell.memory_slots * w.units]
    by_block = by_block.reshape(T, w.blocks, N, w.cell.memory_slots, w.units)[:, :, :, slot]
    return by_block.transpose(0, 2, 1, 3).reshape(T, N, w.blocks * w.units)[:, :, : w.hidden_size]


cdef void keep_states(const Run *r) noexcept:
    """Where there are no steps the final states are the initial ones."""
    cdef Py_ssize_t n
    for n in range(r.N):
        copy_row(
            r.h_n.data + n * r.h_n.row, r.h_n.unit, r.h0.data + n * r.h0.row, r.h0.unit, r.P,
            r.item,
        )
        if r.c_n.data != NULL:
            take_first_cell(r, n)

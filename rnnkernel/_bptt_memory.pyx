"""What a loop of BPTT reads and writes: a layer's arrays, and memory of its own in one piece.

rnnkernel/_bptt.pxd says what each pointer is.
"""

from libc.string cimport memcpy, memset

cimport numpy as cnp

from rnnkernel._bptt cimport CHUNK_ROWS, DX_ROWS, GROUP, LARGE_WEIGHTS, ROOMS, Bptt
from rnnkernel._chunks cimport SHARDS, all_by_units, list_all_rows
from rnnkernel._kernels cimport RK_TRANSPOSED_VECTORS
from rnnkernel._memory cimport Layout, address, place, tile_pitch
from rnnkernel._packed_gradients cimport PackedGradients
from rnnkernel._packed_weights cimport PackedWeights
from rnnkernel._scratch cimport Scratch
from rnnkernel._tape cimport BackwardPass, Pass, place_in_groups, rows_of_group
from rnnkernel._team cimport rk_flag
from rnnkernel._teamwork cimport teamwork

cnp.import_array()


# -- what the arrays are -------------------------------------------------------------------------


cdef inline Py_ssize_t stride(const Bptt *r, array, int axis) noexcept:
    return cnp.PyArray_STRIDE(<cnp.ndarray>array, axis) // r.item


cdef int set_weights(Bptt *r, PackedWeights w, PackedGradients gradients) except -1:
    cdef int phase
    r.kernels, r.cell = w.kernels, w.cell
    r.I, r.H, r.P = w.input_size, w.hidden_size, w.projected_size
    r.item, r.units, r.blocks = w.item, w.units, w.blocks
    r.recurrent_transposed = <const char **>w.recurrent_transposed
    r.input_transposed = w.input_transposed
    r.peepholes, r.cell_clip = w.peepholes, w.cell_clip
    r.gradient_slots = w.gradient_slots
    r.pitch = tile_pitch(r.blocks * r.units, r.item)
    r.shards, r.shard_bytes = gradients.shards, gradients.shard_bytes
    r.bias_gradient, r.input_gradient = gradients.bias, gradients.input
    r.recurrent_gradient = gradients.recurrent
    r.projection_transposed, r.projection_gradient = w.projection_transposed, gradients.projection
    r.unpacked = gradients.panels if gradients.direct else NULL
    r.sums_of_block = 0
    if gradients.direct:
        r.sums_of_block = r.I * r.cell.input.slots
        for phase in range(r.cell.phases):
            r.sums_of_block = max(r.sums_of_block, r.P * r.cell.recurrent[phase].slots)
        r.sums_of_block *= r.units * r.item
    r.projection_rows = r.cell_columns = 0
    if r.projection_transposed != NULL:
        r.projection_rows, r.cell_columns = w.projected_rows(), w.column_blocks(r.H)
    return 0


cdef int set_inputs(Bptt *r, x, h0, c0, y, reserve, int groups) except -1:
    """What forward read and left."""
    r.T, r.N = cnp.PyArray_DIM(y, 0), cnp.PyArray_DIM(y, 1)
    r.x, r.x_time, r.x_batch = address(x), stride(r, x, 0), stride(r, x, 1)
    r.y, r.y_time, r.y_batch = address(y), stride(r, y, 0), stride(r, y, 1)
    r.h0 = address(h0)
    r.c0 = address(c0) if c0 is not None else NULL
    r.gates = address(reserve) if r.cell.keeps_gates else NULL
    r.groups = groups
    return 0


cdef int set_arrivals(Bptt *r, dy, double limit, double norm_limit, flow) except -1:
    r.dy = NULL
    r.dy_time = r.dy_batch = r.dy_unit = 0
    if dy is not None:
        r.dy, r.dy_unit = address(dy), stride(r, dy, 2)
        r.dy_time, r.dy_batch = stride(r, dy, 0), stride(r, dy, 1)
    r.limit, r.norm_limit = limit, norm_limit
    r.dh_norm = r.dc_norm = NULL
    r.dh_kept = r.dc_kept = NULL
    r.clipped = NULL
    if flow is not None:
        dh_norm, dc_norm, clipped, dh, dc = flow
        r.dh_norm, r.dc_norm = <double *>address(dh_norm), <double *>address(dc_norm)
        r.clipped = <unsigned char *>address(clipped)
        r.dh_kept = address(dh) if dh is not None else NULL
        r.dc_kept = address(dc) if dc is not None else NULL
    return 0


cdef int set_dx(Bptt *r, dx) except -1:
    cdef Py_ssize_t columns = RK_TRANSPOSED_VECTORS * r.kernels.lanes
    r.dx = NULL
    r.dx_time = r.dx_batch = 0
    r.dx_pitch = tile_pitch((r.I + columns - 1) // columns * columns, r.item)
    if dx is not None:
        r.dx, r.dx_time, r.dx_batch = address(dx), stride(r, dx, 0), stride(r, dx, 1)
    return 0


cdef int set_rows(Bptt *r, rows) except -1:
    """Which rows have which steps; `rows` is a Rows or None."""
    cdef Py_ssize_t n
    r.alive, r.sections = NULL, 1
    r.section[0], r.section[1] = 0, r.N
    r.reset = r.resets = NULL
    r.steps_of_x, r.clears = r.T, False
    r.count = r.T * r.N
    if rows is None:
        return 0
    r.T, r.sections, r.clears = rows.longest, len(rows.section) - 1, rows.whole
    memcpy(r.section, address(rows.section), (r.sections + 1) * sizeof(Py_ssize_t))
    r.alive = <Py_ssize_t *>address(rows.alive)
    r.order, r.start = <Py_ssize_t *>address(rows.order), <Py_ssize_t *>address(rows.start)
    r.length = <Py_ssize_t *>address(rows.lengths)
    if rows.reset is not None:
        r.reset = <unsigned char *>address(rows.reset)
        r.resets = <unsigned char *>address(rows.resets)
    r.count, r.aligned = 0, True
    for n in range(r.N):
        r.count += r.length[n]
        r.aligned = r.aligned and r.start[n] == r.start[0]
    return 0


cdef int set_table(Bptt *r, x, index, dtable, dtable_rows, sums, bint finish) except -1:
    """x as a table; without rows that of the one-hot vectors, whose sums of dgates are dW_ih."""
    r.index = NULL
    r.table_gradient = r.dtable = NULL
    r.dtable_at = NULL
    r.table_rows, r.one_hot, r.constant, r.finish = 0, False, False, finish
    if index is None:
        return 0
    r.index = <Py_ssize_t *>address(index)
    r.index_time = cnp.PyArray_STRIDE(index, 0) // <Py_ssize_t>sizeof(Py_ssize_t)
    r.index_batch = cnp.PyArray_STRIDE(index, 1) // <Py_ssize_t>sizeof(Py_ssize_t)
    r.table_rows = x.shape[0]
    if r.table_rows == 0:
        r.table_rows, r.one_hot, r.table_gradient = r.I, True, r.input_gradient
        return 0
    r.constant = r.index_time == 0
    if sums is not None:
        r.table_gradient = address(sums)
    if dtable is not None:
        r.dtable, r.dtable_row = address(dtable), stride(r, dtable, 0)
        if dtable_rows is not None:
            r.dtable_at = <Py_ssize_t *>address(dtable_rows)
    return 0


# -- memory --------------------------------------------------------------------------------------


cdef inline Py_ssize_t *place_offsets(Layout *m, Py_ssize_t count) noexcept:
    return <Py_ssize_t *>place(m, count * sizeof(Py_ssize_t))


cdef void place_room(Bptt *r, Layout *m) noexcept:
    """For what a chunk keeps."""
    cdef Py_ssize_t most = r.chunk_rows
    r.early = r.projected_dh = r.x_groups = NULL
    if r.cell.phases > 1 or r.projection_transposed != NULL:
        r.early = place(m, most * r.pitch * r.item)
    if r.projection_transposed != NULL:
        r.projected_dh = place(m, most * r.pitch * r.item)
    r.dgates = place(m, r.blocks * r.dgates_block * r.item)
    if not r.one_hot and not r.constant:
        r.x_groups = place(m, (r.I + GROUP - 1) // GROUP * r.group * r.item)
    r.h_groups = place(m, (r.P + GROUP - 1) // GROUP * r.group * r.item)
    r.first, r.dgates_row = place_offsets(m, most * r.sections), place_offsets(m, most)
    r.tile_chunk_row, r.group_row = place_offsets(m, most), place_offsets(m, most)
    r.dx_at, r.in_memory = place_offsets(m, most), place_offsets(m, most)
    r.table_at, r.table_dgates = place_offsets(m, most), place_offsets(m, most)


cdef inline int rooms_of(const Bptt *r) noexcept:
    """How many chunks are under way at most."""
    return 0 if not r.apart else 1 if r.chunk_rows == r.count else ROOMS


cdef const Py_ssize_t *sections_in(const Bptt *r) noexcept:
    """Their bounds, where rows differ."""
    if r.alive == NULL:
        return NULL
    return r.section


cdef Py_ssize_t lay_out(Bptt *r, char *base, Py_ssize_t sums, int team) except -1:
    """Points the loop at its memory and returns how much that is; `sums` elements are for sums of
    dgates."""
    cdef Layout m
    cdef Bptt other
    cdef int phase, room
    cdef Py_ssize_t most = r.chunk_rows, dx_rows = 0
    m.base, m.used = base, 0
    r.gates_block = rows_of_group(r.N, r.groups, sections_in(r)) * r.cell.memory_slots * r.units
    r.gates_time = r.blocks * r.gates_block
    r.flags = <rk_flag *>place(&m, (2 * team + 2 + SHARDS) * sizeof(rk_flag))
    r.parts, r.begun = r.flags + team, r.flags + 2 * team
    r.done, r.listed = r.begun + SHARDS, r.begun + SHARDS + 1
    r.zeros = place(
        &m, max(RK_TRANSPOSED_VECTORS * r.kernels.lanes, r.gradient_slots * r.units) * r.item
    )
    r.dh = place(&m, r.N * r.pitch * r.item)
    r.dc = place(&m, r.N * r.pitch * r.item if r.cell.states == 2 else 0)
    # up to here zeros
    r.dearly = NULL
    r.sums_bytes = sums * r.item
    if sums > 0:
        r.table_gradient = place(&m, r.sums_bytes)
    if r.cell.phases > 1 or r.projection_transposed != NULL:
        r.dearly = place(&m, r.N * r.pitch * r.item)
    r.dgates_block = tile_pitch(most * r.gradient_slots * r.units, r.item)
    # a pitch that spreads a row's places over the sets of L1
    r.group = tile_pitch(most * GROUP, r.item)
    place_room(r, &m)
    if r.dx != NULL or r.dtable != NULL:
        dx_rows = max(r.dx_rows, DX_ROWS)
    r.dx_tile = place(&m, team * dx_rows * r.dx_pitch * r.item)
    r.block_sums = place(&m, team * r.sums_of_block)
    r.c_reset = r.h_reset = NULL
    if r.resets != NULL:
        r.h_reset = place(&m, r.N * r.pitch * r.item)
        r.c_reset = place(&m, r.blocks * r.N * r.units * r.item if r.cell.states == 2 else 0)

    r.flat_row = place_offsets(&m, most)
    r.x_row, r.y_row = place_offsets(&m, r.N), place_offsets(&m, r.N)
    r.h0_row, r.dy_row = place_offsets(&m, r.N), place_offsets(&m, r.N)
    r.gates_row, r.cell_row = place_offsets(&m, r.N), place_offsets(&m, r.N)
    r.tile_row, r.dx_from = place_offsets(&m, r.N), place_offsets(&m, r.N)
    r.position, r.index_row = place_offsets(&m, r.N), place_offsets(&m, r.N)
    r.dx_row = place_offsets(&m, dx_rows)
    r.group_a = place_offsets(&m, max(r.I, r.P))
    r.flat_a = place_offsets(&m, max(r.I, r.P))
    r.input_c = place_offsets(&m, r.I)
    for phase in range(r.cell.phases):
        r.hidden_c[phase] = place_offsets(&m, r.P)
    r.projection_c = place_offsets(&m, r.P)
    r.table_row = place_offsets(&m, r.table_rows)
    r.bounds = place_offsets(&m, team * (team + 1))
    if r.apart:
        r.rooms = <Bptt *>place(&m, ROOMS * sizeof(Bptt))
        other = r[0]
        for room in range(rooms_of(r)):
            if room > 0:
                place_room(&other, &m)
            if base != NULL:
                r.rooms[room] = other
    return m.used


cdef void set_offsets(Bptt *r) noexcept:
    """Where rows and columns lie."""
    cdef Py_ssize_t i, n, begin = 0
    cdef Py_ssize_t row_gates = r.cell.memory_slots * r.units
    cdef int phase
    place_in_groups(
        r.gates_row, r.N, r.groups, sections_in(r), r.T * r.gates_time, row_gates
    )
    for i in range(r.N):
        n = i
        r.x_row[i] = r.y_row[i] = r.dy_row[i] = r.dx_from[i] = r.index_row[i] = 0
        if r.alive != NULL:
            n, begin = r.order[i], r.start[i]
            r.position[n] = i
        r.x_row[i] = n * r.x_batch + begin * r.x_time
        r.y_row[i] = n * r.y_batch + begin * r.y_time
        r.dy_row[i] = n * r.dy_batch + begin * r.dy_time
        r.dx_from[i] = n * r.dx_batch + begin * r.dx_time
        r.h0_row[i] = n * r.P
        r.cell_row[i] = i * r.units
        r.tile_row[i] = i * r.pitch
        if r.index != NULL:
            r.index_row[i] = n * r.index_batch + begin * r.index_time
    for i in range(r.chunk_rows):
        r.flat_row[i] = i * r.gradient_slots * r.units
    if r.dx != NULL or r.dtable != NULL:
        for i in range(max(r.dx_rows, DX_ROWS)):
            r.dx_row[i] = i * r.dx_pitch
    for i in range(max(r.I, r.P)):
        r.group_a[i] = i // GROUP * r.group + i % GROUP
        r.flat_a[i] = i
    for i in range(r.I):
        r.input_c[i] = i * r.cell.input.slots * r.units
    for i in range(r.P):
        r.projection_c[i] = i * RK_TRANSPOSED_VECTORS * r.kernels.lanes
        for phase in range(r.cell.phases):
            r.hidden_c[phase][i] = i * r.cell.recurrent[phase].slots * r.units
    for i in range(r.table_rows):
        r.table_row[i] = i * r.cell.input.slots * r.units


cdef void clear_memory(Bptt *r) noexcept:
    """What is read before it is written."""
    cdef char *zeros = <char *>r.flags
    cdef Py_ssize_t bytes = r.dgates_block * r.item, before = (r.blocks - 1) * bytes
    cdef int room
    memset(zeros, 0, r.dc + (r.N * r.pitch * r.item if r.cell.states == 2 else 0) - zeros)
    # the cell leaves out the last block's vectors past H, and products do not
    if r.blocks * r.units - r.H >= r.kernels.lanes:
        memset(r.dgates + before, 0, bytes)
        for room in range(1, rooms_of(r)):
            memset(r.rooms[room].dgates + before, 0, bytes)


# -- states --------------------------------------------------------------------------------------


cdef int into_tile(const Bptt *r, state, char *tile, Py_ssize_t width) except -1:
    """A gradient (N, width) of the final states, or None, into a tile by position."""
    cdef Py_ssize_t i, j, row, unit
    cdef const char *source
    if state is None:
        return 0
    source = address(state)
    row, unit = stride(r, state, 0), stride(r, state, 1)
    for i in range(r.N):
        source = address(state) + (r.order[i] if r.alive != NULL else i) * row * r.item
        if unit == 1:
            memcpy(tile + i * r.pitch * r.item, source, width * r.item)
            continue
        for j in range(width):
            memcpy(tile + (i * r.pitch + j) * r.item, source + j * unit * r.item, r.item)
    return 0


cdef int hand_on_states(const Bptt *r, BackwardPass of) except -1:
    """After the loop: gradients of the initial states, to their arrays."""
    from_tile(r, r.dh, of.dh0, r.P)
    if r.cell.states == 2:
        from_tile(r, r.dc, of.dc0, r.H)
    return 0


cdef int from_tile(const Bptt *r, const char *tile, state, Py_ssize_t width) except -1:
    """A tile into a gradient (N, width) of the initial states; contiguous rows."""
    cdef Py_ssize_t i, row = stride(r, state, 0)
    cdef char *to = address(state)
    for i in range(r.N):
        memcpy(
            to + (r.order[i] if r.alive != NULL else i) * row * r.item,
            tile + i * r.pitch * r.item,
            width * r.item,
        )
    return 0


# ------------------------------------------------------------------------------------------------


cdef int point(Bptt *r, BackwardPass of, double limit, double norm_limit) except -1:
    """Points a loop at its weights and arrays."""
    cdef Pass one = of.of
    set_weights(r, one.weights, of.gradients)
    set_inputs(r, one.x, one.h0, one.c0, one.y, one.reserve, max(1, one.groups))
    r.fresh = of.gradients.begin(one.index is not None and one.index.strides[0] == 0)
    set_arrivals(r, of.dy, limit, norm_limit, of.flow)
    set_dx(r, of.dx)
    set_rows(r, one.rows)
    r.adds, r.clears = of.adds, r.clears and not of.adds
    set_table(r, one.x, one.index, of.dtable, of.dtable_rows, of.sums, of.finish)
    return 0


cdef int prepare(Bptt *r, BackwardPass of, Scratch scratch, int team) except -1:
    """Gives a loop that is pointed at its arrays the memory that `team` threads need."""
    cdef int i
    cdef Py_ssize_t sums_size = 0
    if r.table_gradient == NULL and (r.dtable != NULL or r.constant):
        sums_size = r.blocks * r.table_rows * r.cell.input.slots * r.units
    r.chunk_rows = r.count
    if r.unpacked == NULL:
        r.chunk_rows = min(r.count, max(CHUNK_ROWS * (r.shards if team > 1 else 1), r.N))
    r.dx_rows = DX_ROWS
    if r.cell.gates * r.H * r.I * r.item > LARGE_WEIGHTS:
        r.dx_rows = max(DX_ROWS, (r.chunk_rows + team - 1) // team)
    r.teamwork = teamwork(team)
    r.apart = team > 1 and not all_by_units(r, team)
    lay_out(r, scratch.take(lay_out(r, NULL, sums_size, team)), sums_size, team)
    clear_memory(r)
    set_offsets(r)
    if of.of.rows is None:
        for i in range(max(1, rooms_of(r))):
            list_all_rows(&r.rooms[i] if r.apart else r)
    into_tile(r, of.dh_n, r.dh, r.P)
    if r.cell.states == 2:
        into_tile(r, of.dc_n, r.dc, r.H)
    return 0

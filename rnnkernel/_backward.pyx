"""Backpropagation through time of a layer's directions: from arrays to the loop and back.

rnnkernel/_bptt.pyx has the loop. A pass lays out its memory in one piece and lists where rows lie.
All threads go through one direction and then the other, or each direction has half of them.
"""

from cython.parallel cimport parallel, prange
from libc.string cimport memcpy, memset

cimport numpy as cnp

cdef extern from *:
    # NumPy's headers bring <complex.h>, whose I is not the input size
    """
    #undef I
    """

from rnnkernel._bptt cimport (
    BY_COST,
    BY_ROWS,
    BY_UNITS,
    CHUNK_ROWS,
    DX_ROWS,
    GROUP,
    ROOMS,
    Bptt,
    run_member,
)
from rnnkernel._chunks cimport SHARDS, all_by_units, list_all_rows
from rnnkernel._clock cimport PHASES, current_call, nanoseconds
from rnnkernel._crowd cimport is_crowded, report
from rnnkernel._gradients cimport add_to_rows
from rnnkernel._kernels cimport RK_TRANSPOSED_VECTORS, fp_enter, fp_leave
from rnnkernel._memory cimport aligned_zeros, tile_pitch
from rnnkernel._packing cimport PackedGradients, PackedWeights
from rnnkernel._plan cimport team_size, training_pays_off
from rnnkernel._rows cimport part
from rnnkernel._scratch cimport Scratch
from rnnkernel._tape cimport BackwardPass, Pass, place_in_groups, rows_of_group
from rnnkernel._team cimport rk_expel, rk_flag, rk_gone, rk_lost, rk_member, rk_members
from rnnkernel._teamwork cimport teamwork

from rnnkernel._memory import empty

cnp.import_array()

# "rows" or "units" shares the steps between threads so, and 1 or 2 are the teams of two directions;
# None lets their cost decide. Results are the same, as tests show by setting them.
SPLIT = None
TEAMS = None

# Members 1, 2, .. come too late for meeting LATE, LATE + 1, .. of a pass; None lets time tell.
# Results are the same, as tests show by setting it.
LATE = None

cdef Py_ssize_t ALIGNMENT = 64
# Half of a usual L2. W_ih of more bytes than this is read from beyond it for every piece of dx, so
# these are large.
cdef Py_ssize_t LARGE_WEIGHTS = 1 << 19

# What all steps may keep, at most, to be one chunk: a part of an L3.
cdef double ONE_CHUNK_BYTES = 8 << 20

# Batches of so many rows, with so many in all steps, are in shards, where weights take no more than
# so many bytes: with larger ones a thread does much with what it reads of another, and sums are
# dear. The bits of gradients depend on it, so it depends on sizes alone, and not on the threads.
# Tests set the first two.
SHARDED_ROWS = 8
SHARDED_STEPS = 256
cdef Py_ssize_t SHARDED_BYTES = 1 << 20


# -- what the arrays are -------------------------------------------------------------------------


cdef inline char *start(array) except? NULL:
    return <char *>cnp.PyArray_DATA(<cnp.ndarray?>array)


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
    r.x, r.x_time, r.x_batch = start(x), stride(r, x, 0), stride(r, x, 1)
    r.y, r.y_time, r.y_batch = start(y), stride(r, y, 0), stride(r, y, 1)
    r.h0 = start(h0)
    r.c0 = start(c0) if c0 is not None else NULL
    r.gates = start(reserve) if r.cell.keeps_gates else NULL
    r.groups = groups
    return 0


cdef int set_arrivals(Bptt *r, dy, double limit, double norm_limit, flow) except -1:
    r.dy = NULL
    r.dy_time = r.dy_batch = r.dy_unit = 0
    if dy is not None:
        r.dy, r.dy_unit = start(dy), stride(r, dy, 2)
        r.dy_time, r.dy_batch = stride(r, dy, 0), stride(r, dy, 1)
    r.limit, r.norm_limit = limit, norm_limit
    r.dh_norm = r.dc_norm = NULL
    r.clipped = NULL
    if flow is not None:
        dh_norm, dc_norm, clipped = flow
        r.dh_norm, r.dc_norm = <double *>start(dh_norm), <double *>start(dc_norm)
        r.clipped = <unsigned char *>start(clipped)
    return 0


cdef int set_dx(Bptt *r, dx) except -1:
    cdef Py_ssize_t columns = RK_TRANSPOSED_VECTORS * r.kernels.lanes
    r.dx = NULL
    r.dx_time = r.dx_batch = 0
    r.dx_pitch = tile_pitch((r.I + columns - 1) // columns * columns, r.item)
    if dx is not None:
        r.dx, r.dx_time, r.dx_batch = start(dx), stride(r, dx, 0), stride(r, dx, 1)
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
    memcpy(r.section, start(rows.section), (r.sections + 1) * sizeof(Py_ssize_t))
    r.alive = <Py_ssize_t *>start(rows.alive)
    r.order, r.start = <Py_ssize_t *>start(rows.order), <Py_ssize_t *>start(rows.start)
    r.length = <Py_ssize_t *>start(rows.lengths)
    if rows.reset is not None:
        r.reset, r.resets = <unsigned char *>start(rows.reset), <unsigned char *>start(rows.resets)
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
    r.index = <Py_ssize_t *>start(index)
    r.index_time = cnp.PyArray_STRIDE(index, 0) // <Py_ssize_t>sizeof(Py_ssize_t)
    r.index_batch = cnp.PyArray_STRIDE(index, 1) // <Py_ssize_t>sizeof(Py_ssize_t)
    r.table_rows = x.shape[0]
    if r.table_rows == 0:
        r.table_rows, r.one_hot, r.table_gradient = r.I, True, r.input_gradient
        return 0
    r.constant = r.index_time == 0
    if sums is not None:
        r.table_gradient = start(sums)
    if dtable is not None:
        r.dtable, r.dtable_row = start(dtable), stride(r, dtable, 0)
        if dtable_rows is not None:
            r.dtable_at = <Py_ssize_t *>start(dtable_rows)
    return 0


# -- memory --------------------------------------------------------------------------------------


cdef struct Memory:
    char *base
    Py_ssize_t used


cdef char *take(Memory *m, Py_ssize_t size) noexcept:
    """The next so many bytes, aligned; without a base they are counted only."""
    cdef char *taken = m.base + m.used if m.base != NULL else NULL
    m.used += (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
    return taken


cdef inline Py_ssize_t *take_offsets(Memory *m, Py_ssize_t count) noexcept:
    return <Py_ssize_t *>take(m, count * sizeof(Py_ssize_t))


cdef void take_room(Bptt *r, Memory *m) noexcept:
    """For what a chunk keeps."""
    cdef Py_ssize_t most = r.chunk_rows
    r.early = r.projected_dh = r.x_groups = NULL
    if r.cell.phases > 1 or r.projection_transposed != NULL:
        r.early = take(m, most * r.pitch * r.item)
    if r.projection_transposed != NULL:
        r.projected_dh = take(m, most * r.pitch * r.item)
    r.dgates = take(m, r.blocks * r.dgates_block * r.item)
    if not r.one_hot and not r.constant:
        r.x_groups = take(m, (r.I + GROUP - 1) // GROUP * r.group * r.item)
    r.h_groups = take(m, (r.P + GROUP - 1) // GROUP * r.group * r.item)
    r.first, r.dgates_row = take_offsets(m, most * r.sections), take_offsets(m, most)
    r.tile_chunk_row, r.group_row = take_offsets(m, most), take_offsets(m, most)
    r.dx_at, r.in_memory = take_offsets(m, most), take_offsets(m, most)
    r.table_at, r.table_dgates = take_offsets(m, most), take_offsets(m, most)


cdef inline int rooms_of(const Bptt *r) noexcept:
    """How many chunks are under way at most."""
    return 0 if not r.apart else 1 if r.chunk_rows == r.count else ROOMS


cdef const Py_ssize_t *sections_in(const Bptt *r) noexcept:
    """Their bounds, where rows differ."""
    return r.section if r.alive != NULL else NULL


cdef Py_ssize_t lay_out(Bptt *r, char *base, Py_ssize_t sums, int team) except -1:
    """Points the loop at its memory and returns how much that is; `sums` elements are for sums of
    dgates."""
    cdef Memory m
    cdef Bptt other
    cdef int phase, room
    cdef Py_ssize_t most = r.chunk_rows, dx_rows = 0
    m.base, m.used = base, 0
    r.gates_block = rows_of_group(r.N, r.groups, sections_in(r)) * r.cell.memory_slots * r.units
    r.gates_time = r.blocks * r.gates_block
    r.flags = <rk_flag *>take(&m, (2 * team + 2 + SHARDS) * sizeof(rk_flag))
    r.parts, r.begun = r.flags + team, r.flags + 2 * team
    r.done, r.listed = r.begun + SHARDS, r.begun + SHARDS + 1
    r.zeros = take(
        &m, max(RK_TRANSPOSED_VECTORS * r.kernels.lanes, r.gradient_slots * r.units) * r.item
    )
    r.dh = take(&m, r.N * r.pitch * r.item)
    r.dc = take(&m, r.N * r.pitch * r.item if r.cell.states == 2 else 0)
    # up to here zeros
    r.dearly = NULL
    r.sums_bytes = sums * r.item
    if sums > 0:
        r.table_gradient = take(&m, r.sums_bytes)
    if r.cell.phases > 1 or r.projection_transposed != NULL:
        r.dearly = take(&m, r.N * r.pitch * r.item)
    r.dgates_block = tile_pitch(most * r.gradient_slots * r.units, r.item)
    # a pitch that spreads a row's places over the sets of L1
    r.group = tile_pitch(most * GROUP, r.item)
    take_room(r, &m)
    if r.dx != NULL or r.dtable != NULL:
        dx_rows = max(r.dx_rows, DX_ROWS)
    r.dx_tile = take(&m, team * dx_rows * r.dx_pitch * r.item)
    r.block_sums = take(&m, team * r.sums_of_block)
    r.c_reset = r.h_reset = NULL
    if r.resets != NULL:
        r.h_reset = take(&m, r.N * r.pitch * r.item)
        r.c_reset = take(&m, r.blocks * r.N * r.units * r.item if r.cell.states == 2 else 0)

    r.flat_row = take_offsets(&m, most)
    r.x_row, r.y_row = take_offsets(&m, r.N), take_offsets(&m, r.N)
    r.h0_row, r.dy_row = take_offsets(&m, r.N), take_offsets(&m, r.N)
    r.gates_row, r.cell_row = take_offsets(&m, r.N), take_offsets(&m, r.N)
    r.tile_row, r.dx_from = take_offsets(&m, r.N), take_offsets(&m, r.N)
    r.position, r.index_row = take_offsets(&m, r.N), take_offsets(&m, r.N)
    r.dx_row = take_offsets(&m, dx_rows)
    r.group_a = take_offsets(&m, max(r.I, r.P))
    r.flat_a = take_offsets(&m, max(r.I, r.P))
    r.input_c = take_offsets(&m, r.I)
    for phase in range(r.cell.phases):
        r.hidden_c[phase] = take_offsets(&m, r.P)
    r.projection_c = take_offsets(&m, r.P)
    r.table_row = take_offsets(&m, r.table_rows)
    r.bounds = take_offsets(&m, team * (team + 1))
    if r.apart:
        r.rooms = <Bptt *>take(&m, ROOMS * sizeof(Bptt))
        other = r[0]
        for room in range(rooms_of(r)):
            if room > 0:
                take_room(&other, &m)
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
    cdef int room
    memset(zeros, 0, r.dc + (r.N * r.pitch * r.item if r.cell.states == 2 else 0) - zeros)
    # where a block is several vectors the cell leaves out those past H, and products do not
    if r.cell.unit_vectors > 1:
        memset(r.dgates, 0, r.blocks * r.dgates_block * r.item)
        for room in range(1, rooms_of(r)):
            memset(r.rooms[room].dgates, 0, r.blocks * r.dgates_block * r.item)


# -- states --------------------------------------------------------------------------------------


cdef int into_tile(const Bptt *r, state, char *tile, Py_ssize_t width) except -1:
    """A gradient (N, width) of the final states, or None, into a tile by position."""
    cdef Py_ssize_t i, j, row, unit
    cdef const char *source
    if state is None:
        return 0
    source = start(state)
    row, unit = stride(r, state, 0), stride(r, state, 1)
    for i in range(r.N):
        source = start(state) + (r.order[i] if r.alive != NULL else i) * row * r.item
        if unit == 1:
            memcpy(tile + i * r.pitch * r.item, source, width * r.item)
            continue
        for j in range(width):
            memcpy(tile + (i * r.pitch + j) * r.item, source + j * unit * r.item, r.item)
    return 0


cdef int from_tile(const Bptt *r, const char *tile, state, Py_ssize_t width) except -1:
    """A tile into a gradient (N, width) of the initial states; contiguous rows."""
    cdef Py_ssize_t i, row = stride(r, state, 0)
    cdef char *to = start(state)
    for i in range(r.N):
        memcpy(
            to + (r.order[i] if r.alive != NULL else i) * row * r.item,
            tile + i * r.pitch * r.item,
            width * r.item,
        )
    return 0


# ------------------------------------------------------------------------------------------------


def shards_of(PackedWeights w, Py_ssize_t T, Py_ssize_t N):
    """How many shards the gradients of T steps of N rows are summed in."""
    weights = w.cell.gates * w.hidden_size * (w.input_size + w.projected_size)
    if N < SHARDED_ROWS or T * N < SHARDED_STEPS or weights * w.item > SHARDED_BYTES:
        return 1
    return SHARDS


def is_one_chunk(PackedWeights w, Py_ssize_t T, Py_ssize_t N):
    """Whether T steps of N rows are one, whose gradients are in one shard: they are few, or what is
    kept of them takes no more than these gradients would, packed, and stays in cache."""
    cdef Py_ssize_t inputs = w.input_size + w.projected_size
    cdef double kept = <double>T * N * (w.gradient_slots * w.hidden_size + inputs) * w.item
    cdef double packed = w.cell.gates * w.hidden_size * inputs * w.item
    few = T * N <= max(CHUNK_ROWS, N) or kept <= min(packed, ONE_CHUNK_BYTES)
    return few and shards_of(w, T, N) == 1


def sums_of_dgates(PackedWeights w, Py_ssize_t table_rows):
    """Zeros for the sum of dgates of each row of a table, flat."""
    return aligned_zeros(w.blocks * table_rows * w.cell.input.slots * w.units, w.type_number())


cdef int point(
    Bptt *r, BackwardPass of, double limit, double norm_limit
) except -1:
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
    r.sharing = BY_COST if SPLIT is None else BY_ROWS if SPLIT == "rows" else BY_UNITS
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
    if LATE is not None:
        for i in range(1, team):
            rk_expel(&r.flags[i], LATE + i - 1)
    if of.of.rows is None:
        for i in range(max(1, rooms_of(r))):
            list_all_rows(&r.rooms[i] if r.apart else r)
    into_tile(r, of.dh_n, r.dh, r.P)
    if r.cell.states == 2:
        into_tile(r, of.dc_n, r.dc, r.H)
    return 0


cdef void run_members(
    Bptt *loops, int teams, int size, int members, int member
) noexcept nogil:
    """What a thread does of loops with a team each; there may be fewer than were asked for."""
    cdef int i, count = teams
    size = min(size, members)
    teams = min(teams, members // size)
    if member >= teams * size:
        return
    for i in range(count):
        if i % teams == member // size:
            run_member(&loops[i], size, member % size)
    if member == 0:
        loops[0].end = nanoseconds()


cdef int run(Bptt *loops, list passes, int teams, int size) except -1:
    """Loops at once, a team of `size` threads for each of the passes."""
    cdef Scratch scratch = Scratch()
    cdef BackwardPass of
    cdef Bptt *r
    cdef int i, threads = teams * size
    cdef long long begin, end
    call = current_call()
    spent = None if call is None else call.enter(threads)
    for i in range(teams):
        prepare(&loops[i], passes[i], scratch, size)
        loops[i].spent = NULL
        loops[i].even = False
        if spent is not None:
            loops[i].spent = <long long *>start(spent) + i * size * PHASES
    with nogil:
        if threads == 1:
            run_member(loops, 1, 0)
        else:
            begin = nanoseconds()
            with parallel(num_threads=threads):
                run_members(loops, teams, size, rk_members(), rk_member())
            end = nanoseconds()
            if teams > 1 or loops[0].even:
                report(end - begin, rk_lost(loops[0].flags, size) + end - loops[0].end)
    if call is not None:
        call.leave(threads)
        for i in range(teams):
            call.left += rk_gone(loops[i].flags, size)
    for i in range(teams):
        r, of = &loops[i], passes[i]
        from_tile(r, r.dh, of.dh0, r.P)
        if r.cell.states == 2:
            from_tile(r, r.dc, of.dc0, r.H)
    return 0


cdef bint goes_at_once(const Bptt *r, int threads) except -1:
    """Whether two passes have a team each, of half the threads, instead of all one after another.

    Two teams meet half as often, or never. But of weights that one L2 does not hold beside what
    else a step touches, each of more threads takes a part.
    """
    if TEAMS is not None or threads % 2:
        return TEAMS == 2 and threads > 1
    return r.cell.gates * r.H * r.P * r.item <= LARGE_WEIGHTS


cdef void add_part(
    const Bptt *r, char *to, const char *other, Py_ssize_t begin, Py_ssize_t end
) noexcept nogil:
    """One thread's part of a sum of two arrays. Denormals count as zero there, too, as where the
    second direction adds for itself."""
    cdef unsigned long long saved = fp_enter()
    cdef Py_ssize_t start = 0
    add_to_rows(
        r.kernels, to + begin * r.item, 0, 1, end - begin, other + begin * r.item, &start
    )
    fp_leave(saved)


cdef int run_at_once(Bptt *loops, list passes, int threads) except -1:
    """Two directions, each with half of the threads. Only when both are done can their dx be added.
    """
    cdef BackwardPass first = passes[0], second = passes[1]
    cdef Py_ssize_t size
    cdef char *to
    cdef const char *other
    cdef int i
    own = None
    if second.adds and first.dx is not None:
        # lies in memory as the first one's
        if first.dx.strides[0] < first.dx.strides[1]:
            own = empty(first.dx.swapaxes(0, 1).shape, first.dx.dtype).swapaxes(0, 1)
        else:
            own = empty(first.dx.shape, first.dx.dtype)
        set_dx(&loops[1], own[::-1])
        loops[1].adds, loops[1].clears = False, loops[0].clears
    run(loops, passes, 2, threads // 2)
    if own is None:
        return 0
    to, other, size = start(first.dx), start(own), own.size
    for i in prange(threads, num_threads=threads, schedule="static", chunksize=1, nogil=True):
        add_part(loops, to, other, part(size, i, threads), part(size, i + 1, threads))
    return 0


def backward(list passes, double limit, double norm_limit, int threads):
    """BPTT of the one or two directions of a layer, each a BackwardPass over what forward left in
    `y` and `reserve`; the limits are those of clipping, of an element and of a norm.

    Where x is a table, W_ih's gradient is summed over the steps as for the x that the table stands
    for, with its bits; for one-hot vectors these sums are rows of dgates. Where the index does not
    change with time, dgates are summed over the steps first and meet x once.
    """
    cdef Bptt[2] loops
    cdef BackwardPass of
    cdef int i, team, count = len(passes)
    cdef double flops = 0, weights = 0, rows = 0
    cdef Py_ssize_t pieces = 0, item = 0
    for i in range(count):
        of = passes[i]
        if has_no_steps(of.of):
            no_steps(of)
            continue
        point(&loops[i], of, limit, norm_limit)
        flops += flops_of(&loops[i])
        weights += flops_of(&loops[i]) / (6.0 * loops[i].count) * loops[i].item
        rows, item = <double>loops[i].count / loops[i].T, loops[i].item
        pieces += max(loops[i].N, loops[i].blocks)
    if flops == 0:
        return
    team = team_size(flops, pieces, threads)
    if is_crowded(flops) or team > 1 and not training_pays_off(
        flops, weights, rows, item, team
    ):
        team = threads = 1
    if count == 2 and goes_at_once(&loops[0], team):
        run_at_once(loops, passes, team)
        return
    for i in range(count):
        team = team_size(flops_of(&loops[i]), max(loops[i].N, loops[i].blocks), threads)
        run(&loops[i], passes[i:i + 1], 1, team)


cdef inline double flops_of(const Bptt *r) noexcept:
    return 6.0 * r.cell.gates * r.H * (r.I + r.P) * r.count


cdef bint has_no_steps(Pass one) except -1:
    cdef cnp.ndarray y = one.y
    if cnp.PyArray_DIM(y, 0) == 0 or cnp.PyArray_DIM(y, 1) == 0:
        return True
    return one.rows is not None and one.rows.longest == 0


cdef no_steps(BackwardPass of):
    """Where nothing is to do, gradients of the final states are those of the initial ones."""
    if of.dx is not None and not of.adds:
        of.dx[...] = 0
    of.dh0[...] = 0 if of.dh_n is None else of.dh_n
    if of.dc0 is not None:
        of.dc0[...] = 0 if of.dc_n is None else of.dc_n
    if of.dtable is not None:
        of.dtable[... if of.dtable_rows is None else of.dtable_rows] = 0

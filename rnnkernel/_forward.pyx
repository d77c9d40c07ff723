"""The forward time loop: the steps of one layer and direction.

The loop knows time, rows, unit blocks and threads, and nothing of gates: a cell is a row of the C
table. A team of threads either splits the batch, and each takes its rows through all steps without
waiting for another, or it splits the units: then each streams only its part of the weights, and all
meet at every step, since the next one reads all of h. Who comes early takes over blocks of units
that the others have not begun: cores are not equally fast, and seldom without other work.

Where rows differ in length or have resets they go by position and own step
(rnnkernel/_sequence.py), and a step takes those that are alive.
"""

cimport numpy as cnp

cdef extern from *:
    # NumPy's headers bring <complex.h>, whose I is not the input size
    """
    #undef I
    """

import numpy as np

from rnnkernel._clock cimport LOOP, PACK, PROJECTION, WAITING, Clock, charge, start_clock
from rnnkernel._kernels cimport (
    RK_INT8,
    RK_WHOLE,
    fp_enter,
    fp_leave,
    rk_lookup,
    rk_packing,
    rk_product,
    rk_small_product,
    rk_step,
    usable_threads,
)
from rnnkernel._packing cimport PackedWeights, Panel, address, pack_share, run_blocks
from rnnkernel._rows cimport any_set, cells_after_reset, clear_ends, clear_rows
from rnnkernel._scratch cimport Scratch
from rnnkernel._states cimport Matrix, copy_row, pack_cell_states, unpack_cell_state
from rnnkernel._team cimport rk_flag, rk_meet, rk_offer, rk_range, rk_take

from rnnkernel._memory import aligned_empty, tile_pitch

cnp.import_array()

# Rows (t, n) that are projected at once: enough to use a panel of W_ih well, few enough that
# the gates of inference stay in L2.
cdef Py_ssize_t PROJECTED_ROWS = 128

# Rows of a table that are projected in one piece of work.
cdef Py_ssize_t TABLE_ROWS = 64

# Below this much arithmetic a call stays on one thread: opening a team costs more.
SERIAL_FLOPS = 400e3

# Packing a weight takes as long as so much.
cdef double PACKING = 10

# Packed blocks that a thread holds at a time where weights pass, in its L2; with 0 none do.
PASSING_BYTES = 131072

cdef enum:
    BOTH = 2  # W_ih and W_hh pass

# "rows" or "units" splits every call between threads so; None lets `splits_units` choose. Results
# are the same, as tests show by setting it.
SPLIT = None


# Whether members take blocks of one another, and sweep them to and fro: None lets the weights
# decide; "all" gives all to the first one. Results are the same, as tests show by setting it.
TAKING = None

# Weights that a core goes through again and again, of more bytes than these, leave its L2 before it
# comes back to them.
cdef double L2_BYTES = 768e3


# What one thread does: some batch rows (by position where they differ) of some unit blocks.
cdef struct Part:
    Py_ssize_t begin, end
    Py_ssize_t block_begin, block_end
    Py_ssize_t *chunk_x           # [t][n]: rows of a chunk, in x or its table
    Py_ssize_t *chunk_gates       # and in the gates
    rk_flag *flags                # of those that share the rows, or NULL
    int members, member
    rk_range *ranges              # [in turn][member]: what is left of each one's blocks, or NULL
    int turn
    bint back
    Py_ssize_t grain              # of a sweep to and fro: blocks at once; 0 where nobody sweeps
    char *panel                   # for a block of a passing panel
    Clock *clock


cdef inline Py_ssize_t panel_bytes(const Run *r, int which) noexcept nogil:
    """Of a block of W_ih (0) or of what W_hh's first phase has (1)."""
    cdef const rk_packing *job = &r.panels[which].job
    return job.k * job.gates * r.units * r.item


cdef inline char *gates_at(const Run *r, Py_ssize_t t) noexcept nogil:
    return r.gates + (t % r.gates_steps) * r.gates_time * r.item


cdef void meet(const Part *part) noexcept nogil:
    """Waits for the other units of the same rows."""
    if part.members > 1:
        charge(part.clock, LOOP)
        rk_meet(part.flags, part.members, part.member)
        charge(part.clock, WAITING)


# Work on all blocks, shared by the members, is a round: each takes blocks until none is left, and
# then they meet. Ranges of the next round are offered in this one, when all have left the last.
#
# Weights larger than L2 are swept to and fro: in one round from the first block to the last, in the
# next from the last to the first, which finds those that were used last still in L2.


cdef Py_ssize_t begin_round(const Part *part) noexcept nogil:
    """Where the blocks begin."""
    if part.ranges != NULL:
        rk_offer(
            &part.ranges[(1 - part.turn) * part.members + part.member], part.block_begin,
            part.block_end,
        )
    return part.block_begin


cdef bint take_blocks(
    const Part *part, Py_ssize_t *first, Py_ssize_t *past, Py_ssize_t *ahead
) noexcept nogil:
    """The next blocks that this member is to do, after `past` where nobody takes them of another;
    whether there are any. `ahead` is the block after those, or -1."""
    cdef int i, left
    cdef rk_range *ranges
    ahead[0] = -1
    if part.ranges == NULL:
        first[0], past[0] = past[0], part.block_end
        return first[0] < past[0]
    ranges = part.ranges + part.turn * part.members
    left = rk_take(&ranges[part.member], part.back, part.grain, first, past)
    if left == 2:
        ahead[0] = first[0] - 1 if part.back else past[0]
    if left > 0:
        return True
    for i in range(1, part.members):
        if rk_take(
            &ranges[(part.member + i) % part.members], not part.back, 1, first, past
        ) > 0:
            return True
    return False


cdef void end_round(Part *part) noexcept nogil:
    meet(part)
    part.turn = 1 - part.turn
    if part.grain > 0:
        part.back = not part.back


cdef Py_ssize_t list_rows(
    const Run *r, const Part *part, Py_ssize_t t0, Py_ssize_t steps
) noexcept nogil:
    """Where the rows lie that are alive in some steps, in x or its table, and in the gates; how
    many."""
    cdef Py_ssize_t t, n, row, k = 0, row_gates = r.cell.memory_slots * r.units
    for t in range(steps):
        for n in range(part.begin, min(part.end, r.alive[t0 + t])):
            if r.index != NULL:
                row = r.index[(t0 + t) * r.index_time + r.index_row[n]]
                part.chunk_x[k] = row * r.cell.input.slots * r.units
            else:
                part.chunk_x[k] = t * r.x_time + r.x_row[n]
            part.chunk_gates[k] = t * r.gates_time + n * row_gates
            k += 1
    return k


cdef void input_product(
    const Run *r, const rk_product *p, Py_ssize_t from_block
) noexcept nogil:
    """A product with W_ih, however it is stored."""
    cdef rk_small_product small
    if r.storage == RK_WHOLE:
        r.kernels.product(p)
        return
    small.product = p[0]
    small.storage = r.storage
    small.scale = r.input_scale + from_block * p.b_inner * r.item
    small.scale_block = p.b_inner
    r.kernels.small_product(&small)


cdef void look_up(const Run *r, const rk_product *p, Py_ssize_t from_block) noexcept nogil:
    """What this product would give, from the table."""
    cdef rk_lookup look
    look.rows, look.blocks = p.rows, p.blocks
    look.vectors, look.last_vectors = p.vectors, p.last_vectors
    look.table_block = r.table_rows * r.cell.input.slots * r.units
    look.table = r.table + from_block * look.table_block * r.item
    look.table_row = p.a_row
    look.c, look.c_row, look.c_block = p.c, p.c_row, p.c_block
    look.init = NULL
    if r.one_hot:
        look.init = p.init
    look.init_block = p.init_block
    r.kernels.gather(&look)


cdef void project_table(const Run *r, Py_ssize_t begin) noexcept nogil:
    """bias + W_ih x of some rows of the table."""
    cdef rk_product p
    cdef unsigned long long saved = fp_enter()
    p.rows = min(TABLE_ROWS, r.table_rows - begin)
    p.blocks = r.blocks
    p.vectors = r.cell.input.slots * r.cell.unit_vectors
    p.last_vectors = r.input_last_vectors
    p.outer = 1
    p.inner = r.I
    p.ahead = NULL
    p.a = r.x
    p.a_row = r.table_x + begin
    p.a_outer = 0
    p.a_inner = r.x_unit
    p.b = r.input
    p.b_inner = r.cell.input.slots * r.units
    p.b_block = r.I * p.b_inner
    p.b_outer = 0
    p.c = r.table
    p.c_row = r.table_row + begin
    p.c_block = r.table_rows * p.b_inner
    p.init = r.bias + r.cell.input.slot * r.units * r.item
    p.init_block = r.cell.slots * r.units
    input_product(r, &p, 0)
    fp_leave(saved)


cdef const char *pass_panel(
    const Run *r, const Part *part, int which, Py_ssize_t begin, Py_ssize_t end
) noexcept nogil:
    """Packs some blocks of a passing panel; returns where its block 0 would be."""
    cdef Panel panel = r.panels[which]
    panel.job.packed = part.panel - begin * panel_bytes(r, which)
    charge(part.clock, LOOP if which else PROJECTION)
    run_blocks(&panel, begin, end)
    charge(part.clock, PACK)
    return <const char *>panel.job.packed


cdef void project(const Run *r, Part *part, Py_ssize_t t, Py_ssize_t steps) noexcept nogil:
    """bias + W_ih x into the gates of some steps."""
    cdef Py_ssize_t begin = 0, end, ahead, past = begin_round(part)
    cdef Py_ssize_t rows = steps * (part.end - part.begin)
    if r.alive != NULL:
        rows = list_rows(r, part, t, steps)
    while take_blocks(part, &begin, &past, &ahead):
        if r.passing == 0:
            project_blocks(r, part, t, rows, begin, past, r.input, ahead)
            continue
        while begin < past:
            end = min(begin + r.passing_blocks, past)
            project_blocks(r, part, t, rows, begin, end, pass_panel(r, part, 0, begin, end), -1)
            begin = end
    charge(part.clock, PROJECTION)
    if part.ranges != NULL:  # who takes a block wants it projected
        end_round(part)


cdef void project_blocks(
    const Run *r, const Part *part, Py_ssize_t t, Py_ssize_t rows, Py_ssize_t begin,
    Py_ssize_t end, const char *weights, Py_ssize_t ahead,
) noexcept nogil:
    """The same of some blocks, for as many rows as the part's chunk has; then comes block `ahead`,
    unless it is -1."""
    cdef rk_product p
    cdef int first = r.cell.input.slot, past = first + r.cell.input.slots
    cdef char *gates = gates_at(r, t) + begin * r.gates_block * r.item
    cdef const char *bias = r.bias + begin * r.cell.slots * r.units * r.item
    p.rows = rows
    p.blocks = end - begin
    p.vectors = p.last_vectors = r.cell.input.slots * r.cell.unit_vectors
    if end == r.blocks:
        p.last_vectors = r.input_last_vectors
    p.outer = 1
    p.inner = r.I
    p.a = r.x + t * r.x_time * r.item
    p.a_row = part.chunk_x
    p.a_outer = 0
    p.a_inner = r.x_unit
    p.b_inner = r.cell.input.slots * r.units
    p.b_block = r.I * p.b_inner
    p.b_outer = 0
    p.b = weights + begin * p.b_block * r.weight_item
    p.ahead = weights + ahead * p.b_block * r.weight_item if ahead >= 0 else NULL
    p.c = gates + first * r.units * r.item
    p.c_row = part.chunk_gates
    p.c_block = r.gates_block
    p.init = bias + first * r.units * r.item
    p.init_block = r.cell.slots * r.units
    if r.index != NULL:
        look_up(r, &p, begin)
    else:
        input_product(r, &p, begin)
    if past < r.cell.slots:
        # slots that only the recurrent product adds to
        p.vectors = (r.cell.slots - past) * r.cell.unit_vectors
        p.c = gates + past * r.units * r.item
        p.init = bias + past * r.units * r.item
        r.kernels.fill(&p)


cdef void enter_segments(
    const Run *r, const Part *part, Py_ssize_t t, rk_step *s
) noexcept nogil:
    """Before a step: zero states for the rows that begin a new segment there."""
    cdef const unsigned char *flags = r.reset + t * r.N + part.begin
    cdef Py_ssize_t bytes_of_row = r.units * r.item, bytes_of_block = r.N * bytes_of_row
    cdef Py_ssize_t from_block = part.block_begin
    cdef char *c = r.c_reset + part.begin * bytes_of_row
    if not any_set(flags, s.rows):
        return
    if part.member == 0:
        clear_rows(flags, <char *>s.h_prev, r.pitch * r.item, s.rows)
    meet(part)
    if r.cell.states == 2:
        cells_after_reset(
            flags, <const char *>s.c_prev + from_block * s.c_prev_block * r.item,
            s.c_prev_row * r.item, s.c_prev_block * r.item, c + from_block * bytes_of_block,
            bytes_of_block, bytes_of_row, s.rows, part.block_end - from_block,
        )
        s.c_prev = c
        s.c_prev_row = r.units
        s.c_prev_block = r.N * r.units
        if part.ranges != NULL:
            meet(part)


cdef void step_passing(const Run *r, const Part *part, rk_step *s) noexcept nogil:
    """Some blocks of a step whose weights pass."""
    cdef Py_ssize_t past = s.block_end
    while s.block_begin < past:
        s.block_end = min(s.block_begin + r.passing_blocks, past)
        s.weights = pass_panel(r, part, 1, s.block_begin, s.block_end)
        r.cell.forward[0](s)
        s.block_begin = s.block_end


cdef void run_part(const Run *r, Part *part) noexcept nogil:
    """Steps first..T of some rows and unit blocks. After the last nobody waits for the others."""
    cdef Py_ssize_t t, t0, steps, row_gates = r.cell.memory_slots * r.units
    cdef Py_ssize_t begin = part.begin, end = part.end
    cdef Py_ssize_t tile = r.N * r.pitch * r.item
    cdef Py_ssize_t ahead, block_bytes
    cdef int phase
    cdef rk_step s
    cdef unsigned long long saved = fp_enter()
    part.turn, part.back = 0, part.grain > 0 and r.back
    if part.ranges != NULL:
        rk_offer(&part.ranges[part.member], part.block_begin, part.block_end)
    s.rows = end - begin
    s.hidden, s.projected = r.H, r.P
    s.operand_row = r.h_row
    s.gates_row = r.gates_row
    s.gates_block = r.gates_block
    s.h_pitch = r.pitch
    s.y_row = r.y_row + begin
    s.c_prev = NULL
    s.c_prev_row = s.c_prev_block = 0
    s.peepholes = r.peepholes
    s.cell_clip = r.cell_clip
    s.storage = r.storage
    t0 = r.first
    while t0 < r.T and (r.alive == NULL or r.alive[t0] > begin):
        steps = min(r.chunk, r.T - t0)
        project(r, part, t0, steps)
        for t in range(t0, t0 + steps):
            if r.alive != NULL:
                s.rows = min(end, r.alive[t]) - begin
                if s.rows <= 0:
                    break
            s.gates = gates_at(r, t) + begin * row_gates * r.item
            if r.cell.states == 2:
                if t == 0:
                    s.c_prev = r.c0 + begin * r.units * r.item
                    s.c_prev_row = r.units
                    s.c_prev_block = r.N * r.units
                else:
                    s.c_prev = gates_at(r, t - 1) + (
                        begin * row_gates + r.cell.slots * r.units
                    ) * r.item
                    s.c_prev_row = row_gates
                    s.c_prev_block = r.gates_block
            s.h_prev = r.h + (t & 1) * tile + begin * r.pitch * r.item
            s.y = r.y + t * r.y_time * r.item
            if r.resets != NULL and r.resets[t]:
                enter_segments(r, part, t, &s)
            s.operand = s.h_prev
            for phase in range(r.cell.phases):
                s.weights = r.recurrent[phase]
                s.scale = r.recurrent_scale[phase]
                if phase + 1 < r.cell.phases or r.projection != NULL:
                    s.h = r.early + begin * r.pitch * r.item
                else:
                    s.h = r.h + ((t + 1) & 1) * tile + begin * r.pitch * r.item
                block_bytes = r.cell.recurrent[phase].slots * r.units * r.P * r.weight_item
                s.block_end = begin_round(part)
                while take_blocks(part, &s.block_begin, &s.block_end, &ahead):
                    s.ahead = NULL
                    if ahead >= 0:
                        s.ahead = r.recurrent[phase] + ahead * block_bytes
                    if r.passing == BOTH:
                        step_passing(r, part, &s)
                    else:
                        r.cell.forward[phase](&s)
                if t + 1 < r.T or phase + 1 < r.cell.phases or r.projection != NULL:
                    end_round(part)
                s.operand = s.h
            if r.projection != NULL:
                s.weights, s.ahead = r.projection, NULL
                s.h = r.h + ((t + 1) & 1) * tile + begin * r.pitch * r.item
                s.block_begin = r.projection_columns * part.member // part.members
                s.block_end = r.projection_columns * (part.member + 1) // part.members
                if s.block_begin < s.block_end:
                    r.cell.project(&s)
                meet(part)
        charge(part.clock, LOOP)
        t0 += steps
    if part.ranges != NULL:  # what was offered for a round that does not come
        rk_offer(&part.ranges[(1 - part.turn) * part.members + part.member], 0, 0)
        rk_offer(&part.ranges[part.turn * part.members + part.member], 0, 0)
    if r.clears:
        clear_ends(
            r.y, r.y_time, r.y_batch, r.y_row, r.item, r.P, r.start, r.length, begin, end,
            r.y_steps, part.members, part.member,
        )
    fp_leave(saved)
    charge(part.clock, LOOP)


cdef void prepare_weights_of(
    const Run *r, const Plan *plan, int members, int member
) noexcept nogil:
    """What one member of a team does before the first step: its share of panels and table."""
    cdef Py_ssize_t i = member
    cdef Clock clock = start_clock(r.spent, member)
    if r.panels != NULL:
        pack_share(&r.panels[r.passing], r.panel_count - r.passing, member, members)
        charge(&clock, PACK)
        # of units each uses what it has packed, where nobody takes them
        if members > 1 and (not plan.by_units or plan.ranges != NULL):
            rk_meet(plan.flags, members, member)
            charge(&clock, WAITING)
    while i < plan.pieces:
        project_table(r, i * TABLE_ROWS)
        i += members
    charge(&clock, PROJECTION)
    if plan.pieces > 0 and members > 1:
        rk_meet(plan.flags, members, member)
        charge(&clock, WAITING)


cdef void run_team(const Run *r, const Plan *plan, int members, int member) noexcept nogil:
    """What it does of the steps."""
    cdef Py_ssize_t i
    cdef Clock clock = start_clock(r.spent, member)
    cdef Part part
    part.clock = &clock
    part.panel = r.passing_panels + member * r.passing_bytes
    part.flags = plan.flags
    part.members, part.member, part.ranges, part.grain = 1, 0, NULL, 0
    part.block_begin, part.block_end = 0, r.blocks
    if plan.by_units:
        part.begin, part.end = 0, r.N
        part.members, part.member = members, member
        part.block_begin = r.blocks * member // members
        part.block_end = r.blocks * (member + 1) // members
        if plan.to_first:
            part.block_begin = 0 if member == 0 else r.blocks
            part.block_end = r.blocks
        part.ranges, part.grain = plan.ranges, plan.grain
        part.chunk_x, part.chunk_gates = r.chunk_x, r.chunk_gates
        if r.alive != NULL:  # each lists them as it goes
            part.chunk_x += member * r.N * r.chunk
            part.chunk_gates += member * r.N * r.chunk
        run_part(r, &part)
        return
    i = member
    while i < plan.tiles:
        part.begin, part.end = plan.bounds[i], plan.bounds[i + 1]
        part.chunk_x = r.chunk_x + part.begin * r.chunk
        part.chunk_gates = r.chunk_gates + part.begin * r.chunk
        run_part(r, &part)
        i += members


cdef void bound_tiles(
    Py_ssize_t N, Py_ssize_t full_rows, Py_ssize_t tiles, Py_ssize_t *bounds
) noexcept nogil:
    """Bounds of nearly equal tiles of rows, of whole row tiles where there are enough."""
    cdef Py_ssize_t i, unit = 1, units
    if N >= tiles * full_rows * 2:
        unit = full_rows
    units = (N + unit - 1) // unit
    for i in range(tiles + 1):
        bounds[i] = min(N, unit * (units * i // tiles))


cdef void bound_ragged_tiles(
    const Py_ssize_t *lengths, Py_ssize_t N, Py_ssize_t tiles, Py_ssize_t *bounds
) noexcept nogil:
    """Bounds of tiles of rows with nearly equal sums of lengths."""
    cdef Py_ssize_t n, tile = 1
    cdef double count = 0, steps = 0
    for n in range(N):
        count += lengths[n]
    bounds[0] = 0
    for n in range(N):
        # a row goes to the tile that has more of it
        while tile < tiles and (steps + 0.5 * lengths[n]) * tiles >= count * tile:
            bounds[tile] = n
            tile += 1
        steps += lengths[n]
    while tile <= tiles:
        bounds[tile] = N
        tile += 1


def team_size(double flops, Py_ssize_t tiles, int threads):
    """How many threads are worth opening for so much arithmetic in so many pieces."""
    if flops < SERIAL_FLOPS:
        return 1
    return max(1, min(usable_threads(threads), tiles))


cdef double step_time(
    Py_ssize_t rows, Py_ssize_t blocks, Py_ssize_t weight_bytes
) noexcept:
    """Microseconds that a thread takes for a step of some rows of some blocks, roughly.

    It takes 0.3 us by itself. The products of a row take 5 ns a KiB of weights; these come once,
    at 60 GB/s where a core's L2 holds those of all its blocks and at 20 GB/s from beyond.
    """
    cdef double weights = <double>blocks * weight_bytes
    return 0.3 + rows * weights * 5e-6 + weights / (60e3 if weights < 768e3 else 20e3)


cdef double shared_step(const Run *r, Py_ssize_t rows, int team, bint units) noexcept:
    """Microseconds that a team takes for a step of so many rows, shared by units or by rows.

    Of units each thread streams only its own weights, which several threads' L2 may hold together;
    for that all meet, in 0.4 us, and read what the others have written of h.
    """
    cdef int phase
    cdef Py_ssize_t slots = 0, weight_bytes
    for phase in range(r.cell.phases):
        slots += r.cell.recurrent[phase].slots
    weight_bytes = slots * r.units * r.P * r.item
    if not units:
        return step_time((rows + team - 1) // team, r.blocks, weight_bytes)
    return step_time(rows, (r.blocks + team - 1) // team, weight_bytes) + (
        r.cell.phases * (0.4 + rows * r.P * r.item * 50e-6)
    )


cdef bint splits_units(const Run *r, Py_ssize_t rows, int team) except -1:
    """Whether threads share a step of so many rows by its units rather than by its rows."""
    if SPLIT is not None:
        return SPLIT == "units"
    return shared_step(r, rows, team, True) < shared_step(r, rows, team, False)


cdef bint overflows(const Run *r, Py_ssize_t steps, int team) noexcept:
    """Whether the weights that a thread goes through leave its L2 until it comes back to them."""
    cdef int phase
    cdef double weights = 0
    for phase in range(r.cell.phases):
        weights += <double>r.cell.recurrent[phase].slots * r.P * r.units * r.blocks * r.weight_item
    return steps > 1 and L2_BYTES * team < weights and weights < 4 * L2_BYTES * team


cdef double team_step(const Run *r, Py_ssize_t rows, int team) except -1:
    """Microseconds that a team takes for a step, shared as it would share it."""
    return shared_step(r, rows, team, team > 1 and splits_units(r, rows, team))


cdef int plan_team(
    Plan *plan, const Run *r, Scratch scratch, Py_ssize_t steps, Py_ssize_t rows, int team
) except -1:
    """How up to `team` threads share so many steps of `rows` rows on average."""
    plan.team = max(1, min(team, max(r.N, r.blocks, plan.pieces)))
    plan.by_units = plan.team == 1 or splits_units(r, rows, plan.team)
    plan.tiles = 1 if plan.by_units else min(plan.team, r.N)
    plan.team = min(plan.team, max(r.blocks if plan.by_units else plan.tiles, plan.pieces))
    plan.bounds = <Py_ssize_t *>scratch.take((plan.tiles + 1) * sizeof(Py_ssize_t))
    bound_tiles(r.N, r.kernels.full_rows, plan.tiles, plan.bounds)
    plan.flags = <rk_flag *>scratch.take_zeros(plan.team * sizeof(rk_flag))
    # Who takes a block reads its weights from another core or from beyond: that is worth it where
    # they come from there in any case, or where there is more to do with them.
    sweeps = overflows(r, steps, plan.team) if TAKING is None else TAKING
    plan.grain = 0 if not sweeps else 2 if rows <= 2 else 1
    plan.ranges, plan.to_first = NULL, TAKING == "all"
    if plan.by_units and (sweeps or TAKING is None and rows >= 12):
        plan.ranges = <rk_range *>scratch.take_zeros(2 * plan.team * sizeof(rk_range))
    return 0


cdef void set_weights(Run *r, PackedWeights w, Py_ssize_t N) noexcept:
    """What follows from the weights and the size of the batch."""
    r.kernels, r.cell = w.kernels, w.cell
    r.N, r.I, r.H, r.P = N, w.input_size, w.hidden_size, w.projected_size
    r.item, r.units, r.blocks = w.item, w.units, w.blocks
    r.bias, r.input = w.bias, w.input
    r.recurrent = <const char **>w.recurrent
    r.storage, r.input_scale = w.storage, w.input_scale
    r.weight_item = w.item if w.storage == RK_WHOLE else 1 if w.storage == RK_INT8 else 2
    r.recurrent_scale = <const char **>w.recurrent_scale
    r.projection, r.peepholes, r.cell_clip = w.projection, w.peepholes, w.cell_clip
    r.projection_columns = w.column_blocks(r.P)
    r.input_last_vectors = w.input_last_vectors()
    r.gates_block = N * r.cell.memory_slots * r.units
    r.gates_time = r.blocks * r.gates_block
    r.pitch = tile_pitch(r.blocks * r.units, r.item)
    # rows are alike; forward changes it
    r.alive = r.order = NULL
    r.clears = False
    r.reset = r.resets = NULL
    r.index = NULL
    r.c0 = NULL
    r.panels = NULL
    r.passing = 0
    r.passing_panels, r.passing_bytes = NULL, 0
    r.back = False
    r.spent = NULL


# -- a call ------------------------------------------------------------------------------------

cdef Matrix matrix(cnp.ndarray array) noexcept:
    """(N, units) where it lies."""
    cdef Matrix m
    m.data = <char *>cnp.PyArray_DATA(array)
    m.row, m.unit = cnp.PyArray_STRIDE(array, 0), cnp.PyArray_STRIDE(array, 1)
    return m


def pack_cells(PackedWeights w, cnp.ndarray c, order=None):
    """(N, H) cell states as [block][N][U], zero past H; with `order` by position."""
    packed = aligned_empty(w.blocks * c.shape[0] * w.units, w.dtype)
    cdef const Py_ssize_t *rows = NULL
    if order is not None:
        rows = <Py_ssize_t *><Py_ssize_t>address(order)
    cdef Matrix cells = matrix(c)
    pack_cell_states(w, &cells, c.shape[0], rows, <char *><Py_ssize_t>address(packed))
    return packed


def allocate_reserve(PackedWeights w, Py_ssize_t T, Py_ssize_t N):
    """What training keeps from forward to backward beside y, flat; None where that is enough."""
    if not w.cell.keeps_gates:
        return None
    return aligned_empty(T * w.blocks * N * w.cell.memory_slots * w.units, w.dtype)


def kept(PackedWeights w, reserve, Py_ssize_t T, Py_ssize_t N, gate):
    """What a reserve holds of one gate (its place in the canonical weights), or of the cell state
    (None), as (T, N, H): a view where there is one unit block, else a copy."""
    cdef int i, slot = w.cell.slots
    if gate is not None:
        slot = -1
        for i in range(w.cell.input.slots):
            if w.cell.input.order[i] == gate:
                slot = w.cell.input.slot + i
        if slot < 0:  # the forget gate of coupled gates is no more than 1 - i
            with np.errstate(invalid="ignore"):  # past a row's end nothing was written
                return 1 - kept(w, reserve, T, N, 0)
    by_block = reserve.reshape(T, w.blocks, N, w.cell.memory_slots, w.units)[:, :, :, slot]
    return by_block.transpose(0, 2, 1, 3).reshape(T, N, w.blocks * w.units)[:, :, : w.hidden_size]


cdef int set_rows(Run *r, rows) except -1:
    """Which rows have which of its steps."""
    cdef Py_ssize_t t
    r.y_steps, r.T = r.T, len(rows.alive)
    r.clears = rows.whole
    r.alive = <Py_ssize_t *><Py_ssize_t>address(rows.alive)
    r.count = 0
    for t in range(r.T):
        r.count += r.alive[t]
    r.order = <Py_ssize_t *><Py_ssize_t>address(rows.order)
    if rows.reset is not None:
        r.reset = <unsigned char *><Py_ssize_t>address(rows.reset)
        r.resets = <unsigned char *><Py_ssize_t>address(rows.resets)
    return 0


cdef int set_arrays(
    Pass *one, PackedWeights w, x, h0, c0, y, h_n, c_n, reserve, rows, index
) except -1:
    """Points a pass at its arrays, as `forward` of rnnkernel/_stack.pyx has them."""
    cdef Run *r = &one.run
    cdef cnp.ndarray seen = x, made = y
    set_weights(r, w, made.shape[1])
    one.h0, one.h_n = matrix(h0), matrix(h_n)
    one.c_n.data = NULL
    if c_n is not None:
        one.c_n = matrix(c_n)
    if c0 is not None:
        r.c0 = <const char *><Py_ssize_t>address(c0)
    r.T, r.first = made.shape[0], 0
    r.count = r.T * r.N
    r.x = <const char *>cnp.PyArray_DATA(seen)
    r.x_time = cnp.PyArray_STRIDE(seen, 0) // r.item
    r.x_batch = cnp.PyArray_STRIDE(seen, 1) // r.item
    r.x_unit = cnp.PyArray_STRIDE(seen, 2) // r.item
    r.y = <char *>cnp.PyArray_DATA(made)
    r.y_time = cnp.PyArray_STRIDE(made, 0) // r.item
    r.y_batch = cnp.PyArray_STRIDE(made, 1) // r.item
    if rows is not None:
        set_rows(r, rows)
    if index is not None:
        r.index = <Py_ssize_t *><Py_ssize_t>address(index)
        r.one_hot = seen.shape[0] == 0
        r.table_rows = r.I if r.one_hot else seen.shape[0]
    one.reserve = NULL
    if reserve is not None and r.cell.keeps_gates:
        one.reserve = <char *><Py_ssize_t>address(reserve)
    return 0


cdef double flops_of(const Run *r) noexcept:
    """The arithmetic of a pass, with its packing."""
    cdef Py_ssize_t projected = r.count
    cdef double flops
    if r.index != NULL:
        projected = 0 if r.one_hot else r.table_rows
    flops = 2.0 * r.cell.gates * r.H * (<double>r.I * projected + <double>r.P * r.count)
    if r.panels != NULL:
        flops += PACKING * r.cell.gates * r.H * (r.I + r.P)
    return flops


cdef int divide(
    Run *r, Plan *plan, Scratch scratch, rows, int team, Py_ssize_t piece
) except -1:
    """How up to `team` threads share a pass whose weights and arrays are set; they project up to
    `piece` steps at once."""
    plan.pieces = 0
    if r.index != NULL and not r.one_hot:
        plan.pieces = (r.table_rows + TABLE_ROWS - 1) // TABLE_ROWS
    plan_team(plan, r, scratch, r.T, r.count // r.T, team)
    if rows is not None:
        bound_ragged_tiles(
            <Py_ssize_t *><Py_ssize_t>address(rows.lengths), r.N, plan.tiles, plan.bounds
        )
    r.chunk = PROJECTED_ROWS * (plan.team if plan.by_units else plan.tiles) * r.T // r.count
    r.chunk = min(piece, max(1, r.chunk))
    if r.panels != NULL and r.chunk == r.T and (plan.by_units or plan.tiles == 1):
        let_pass(r, plan, scratch)
    return 0


cdef int let_pass(Run *r, const Plan *plan, Scratch scratch) except -1:
    """Weights that a call uses once need no panels: those of a few blocks at a time, in L2, do."""
    cdef Py_ssize_t largest = panel_bytes(r, 0), most = PASSING_BYTES
    if largest > most:
        return 0
    r.passing = 1
    if r.T == 1 and r.cell.phases == 1 and panel_bytes(r, 1) <= most:
        r.passing = BOTH
        largest = max(largest, panel_bytes(r, 1))
    r.passing_blocks = min(r.blocks, most // largest)
    r.passing_bytes = r.passing_blocks * largest
    r.passing_panels = scratch.take(plan.team * r.passing_bytes)
    return 0


cdef int lay_out(Pass *one, Scratch scratch, rows, index) except -1:
    """Gives a pass that is divided its memory."""
    cdef Run *r = &one.run
    r.gates_steps = r.chunk
    r.gates = one.reserve
    if r.gates != NULL:
        r.gates_steps = r.T
    else:
        r.gates = scratch.take(r.chunk * r.gates_time * r.item)
    lay_out_states(r, scratch, &one.h0)
    find_rows(r, &one.plan, scratch, rows)
    if r.index != NULL:
        find_table(r, scratch, index)
    return 0


cdef int lay_out_states(Run *r, Scratch scratch, const Matrix *h0) except -1:
    """The tiles of h, with h0 in the first."""
    cdef Py_ssize_t n, tile = r.N * r.pitch * r.item
    r.h = scratch.take_zeros(3 * tile)
    r.early = r.h + 2 * tile
    for n in range(r.N):
        copy_row(
            r.h + n * r.pitch * r.item, r.item,
            h0.data + (n if r.order == NULL else r.order[n]) * h0.row, h0.unit, r.P, r.item,
        )
    if r.reset != NULL and r.cell.states == 2:
        r.c_reset = scratch.take(r.blocks * r.N * r.units * r.item)
    return 0


cdef int find_rows(Run *r, const Plan *plan, Scratch scratch, rows) except -1:
    """The offsets of all rows."""
    cdef Py_ssize_t n, t, tile, row, lists = r.N * r.chunk
    cdef Py_ssize_t row_gates = r.cell.memory_slots * r.units
    cdef Py_ssize_t *offsets = <Py_ssize_t *>scratch.take(4 * r.N * sizeof(Py_ssize_t))
    cdef Py_ssize_t *y_row = offsets
    cdef Py_ssize_t *gates_row = offsets + r.N
    cdef Py_ssize_t *h_row = offsets + 2 * r.N
    cdef Py_ssize_t *x_row = offsets + 3 * r.N
    cdef const Py_ssize_t *order = r.order
    r.y_row, r.gates_row, r.h_row, r.x_row = y_row, gates_row, h_row, x_row
    if rows is not None:
        r.start = <Py_ssize_t *><Py_ssize_t>address(rows.start)
        r.length = <Py_ssize_t *><Py_ssize_t>address(rows.lengths)
        if plan.by_units:
            lists *= plan.team
    for n in range(r.N):
        gates_row[n] = n * row_gates
        h_row[n] = n * r.pitch
        row = n if order == NULL else order[n]
        y_row[n] = row * r.y_batch
        x_row[n] = row * r.x_batch
        if order != NULL:
            y_row[n] += r.start[n] * r.y_time
            x_row[n] += r.start[n] * r.x_time
    r.chunk_x = <Py_ssize_t *>scratch.take(2 * lists * sizeof(Py_ssize_t))
    r.chunk_gates = r.chunk_x + lists
    if order != NULL:
        return 0
    row = 0
    for tile in range(plan.tiles):
        for t in range(r.chunk):
            for n in range(plan.bounds[tile], plan.bounds[tile + 1]):
                r.chunk_x[row] = t * r.x_time + x_row[n]
                r.chunk_gates[row] = t * r.gates_time + gates_row[n]
                row += 1
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


cdef void take_states(const Pass *one, PackedWeights w) noexcept:
    """The state after each row's last step: nothing writes there after it."""
    cdef const Run *r = &one.run
    cdef Py_ssize_t n, row, steps, row_gates = r.cell.memory_slots * r.units * r.item
    cdef Py_ssize_t tile = r.N * r.pitch * r.item
    for n in range(r.N):
        row, steps = n, r.T
        if r.order != NULL:
            row, steps = r.order[n], r.length[n]
        copy_row(
            one.h_n.data + row * one.h_n.row, one.h_n.unit,
            r.h + (steps & 1) * tile + n * r.pitch * r.item, r.item, r.P, r.item,
        )
        if one.c_n.data == NULL:
            continue
        if steps == 0:
            take_first_cell(one, w, n)
            continue
        unpack_cell_state(
            w, gates_at(r, steps - 1) + n * row_gates + r.cell.slots * r.units * r.item,
            r.gates_block * r.item, &one.c_n, row,
        )


cdef void take_first_cell(const Pass *one, PackedWeights w, Py_ssize_t n) noexcept:
    """The final cell state at a position without steps."""
    cdef const Run *r = &one.run
    unpack_cell_state(
        w, r.c0 + n * r.units * r.item, r.N * r.units * r.item, &one.c_n,
        n if r.order == NULL else r.order[n],
    )


cdef void keep_states(const Pass *one, PackedWeights w) noexcept:
    """Where there are no steps the final states are the initial ones."""
    cdef const Run *r = &one.run
    cdef Py_ssize_t n
    for n in range(r.N):
        copy_row(
            one.h_n.data + n * one.h_n.row, one.h_n.unit, one.h0.data + n * one.h0.row,
            one.h0.unit, r.P, r.item,
        )
        if one.c_n.data != NULL:
            take_first_cell(one, w, n)

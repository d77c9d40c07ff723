"""How threads share a pass: by batch rows or by units, and how much of it they do at a time.

A way is chosen by the time that it would take, roughly, from a few measured figures; results are
the same with any.
"""

from rnnkernel._cores cimport Cores, Level, cores
from rnnkernel._kernels cimport usable_threads
from rnnkernel._rows cimport bound_by_length, part
from rnnkernel._run cimport BOTH, TABLE_ROWS, Plan, Run, panel_bytes
from rnnkernel._scratch cimport Scratch
from rnnkernel._team cimport rk_begin_parts, rk_expel, rk_flag, rk_handover, rk_range
from rnnkernel._teamwork cimport WAKING, are_asleep, note_call, teamwork

# Rows (t, n) that are projected at once for each thread: enough to use a panel of W_ih well, few
# enough that the gates of inference stay in L2, beside the weights that pass through it: half as
# many where a thread's gates are more bytes than these.
cdef Py_ssize_t PROJECTED_ROWS = 128
cdef Py_ssize_t PROJECTED_BYTES = 768 << 10

# Below this much arithmetic a call stays on one thread, whatever it reads.
SERIAL_FLOPS = 180e3

# True opens a team for any call of more, whatever it costs. Results are the same, as tests show by
# setting it.
TEAMS_ARE_FREE = False

# Packing a weight takes as long as so much.
cdef double PACKING = 10

# Packed blocks that a thread holds at a time where weights pass, in its L2; with 0 none do.
PASSING_BYTES = 131072

# Rows for each thread, and bytes of W_hh, from and up to which steps are shared by rows for sure.
# No result depends on it. Tests set SECTIONED_ROWS.
SECTIONED_ROWS = 16
cdef Py_ssize_t SECTIONED_BYTES = 1 << 20

# "rows" or "units" splits every call between threads so; None lets `splits_units` choose. Results
# are the same, as tests show by setting it.
SPLIT = None

# Whether members take blocks of one another, and sweep them to and fro: None lets the weights
# decide; "all" gives all to the first one, and all rows, of which others take over some. Results
# are the same, as tests show by setting it.
TAKING = None

# Members 1, 2, .. come too late for meeting LATE, LATE + 1, .. of a pass; None lets time tell.
# Results are the same, as tests show by setting it.
LATE = None

# Weights that a core goes through again and again, of more bytes than these, leave its L2 before it
# comes back to them: what else a step touches is there too.
cdef double L2_BYTES = 768e3


# -- the time that it takes ----------------------------------------------------------------------


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


cdef int team_size(double flops, Py_ssize_t tiles, int threads) except -1:
    if flops < <double>SERIAL_FLOPS:
        return 1
    return max(1, <int>min(usable_threads(threads), tiles))


cdef double gain(double alone, double shared, double opening, int team) except? -1:
    return alone - shared - (cores().crowding * shared + opening) * teamwork(team)


cdef bint pays_off(double gained) except -1:
    cdef bint asleep = are_asleep()
    note_call()
    return TEAMS_ARE_FREE or gained > (WAKING if asleep else 0)


cdef bint training_pays_off(
    double flops, double weight_bytes, double rows, Py_ssize_t item, int team
) except -1:
    cdef const Cores *core = cores()
    cdef double products = flops * item / (4e3 * core.gigaflops)
    cdef double passing = core.passing * weight_bytes
    # what a step does beside its products counts as three more rows, fewer than one for units
    cdef double share = max(rows / team, 0.7)
    cdef double slower = (1 + 3 / share) / (1 + 3 / rows)
    return pays_off(gain(
        products + passing, products / team * slower + passing / ((1 + core.crowding) * team),
        core.opening + core.opening_byte * min(weight_bytes, 600e3), team,
    ))


cdef Py_ssize_t weights_of_block(const Run *r) noexcept:
    """How many of W_hh a block has, and of W_ih, where a single step reads both."""
    cdef int phase
    cdef Py_ssize_t weights = 0
    if r.T == 1 and r.index == NULL:
        weights += r.cell.input.slots * r.I
    for phase in range(r.cell.phases):
        weights += r.cell.recurrent[phase].slots * r.P
    return weights * r.units


cdef double step_time(const Run *r, Py_ssize_t rows, Py_ssize_t blocks) noexcept:
    """Microseconds that a thread takes for a step of some rows of some blocks, roughly.

    The products of a row take 5 ns for 256 weights in float32; what their arrival adds depends on
    the core, and on where those of all its blocks are.
    """
    cdef double weights = <double>blocks * weights_of_block(r), size = weights * r.weight_item
    cdef const Cores *core = cores()
    cdef const Level *level = &core.l2
    cdef double products = rows * weights * r.item * 5e-6, arrival
    if size >= 0.75 * core.l2_bytes:
        level = &core.beyond if size > core.beyond_bytes else &core.l3
    arrival = size / (1e3 * level.gigabytes)
    if level.hides:
        products = max(products, arrival)
    return core.step + products + (level.delay_once if r.T == 1 else level.delay) * arrival


cdef double shared_step(const Run *r, Py_ssize_t rows, int team, bint units) except -1:
    """Microseconds that a team takes for a step of so many rows, shared by units or by rows.

    Of units each thread streams only its own weights, which several threads' L2 may hold together;
    for that all wait for the last one, meet, and read what the others have written of h.
    """
    cdef double apart = teamwork(team) if team > 1 else 0
    cdef const Cores *core = cores()
    cdef double byte = core.byte + core.byte_apart * apart, waiting
    if not units:
        waiting = core.rows_apart + rows * r.P * r.item * core.rows_byte_apart
        waiting = min(waiting, core.rows_most_apart) * apart
        return step_time(r, (rows + team - 1) // team, r.blocks) + waiting
    return 1.01 * step_time(r, rows, (r.blocks + team - 1) // team) + r.cell.phases * (
        core.meeting + core.meeting_apart * apart + rows * r.P * r.item * byte
    )


cdef bint splits_units(const Run *r, Py_ssize_t rows, int team) except -1:
    if SPLIT is not None:
        return SPLIT == "units"
    return shared_step(r, rows, team, True) < shared_step(r, rows, team, False)


cdef bint overflows(const Run *r, Py_ssize_t steps, int team) noexcept:
    """Whether the weights that a thread goes through leave its L2 until it comes back to them."""
    cdef double weights = <double>weights_of_block(r) * r.blocks * r.weight_item
    return steps > 1 and L2_BYTES * team < weights and weights < 4 * L2_BYTES * team


cdef double team_step(const Run *r, Py_ssize_t rows, int team) except -1:
    return shared_step(r, rows, team, team > 1 and splits_units(r, rows, team))


def sections_of(layer, Py_ssize_t N, int threads, bint training):
    """How many sections the rows of a call are to stand in, where they differ: two where threads
    will share its steps by rows, in halves or parts of them."""
    cdef Py_ssize_t weights = len(layer._cell.gates) * layer.hidden_size * layer._widths[0]
    if threads > 1 and N >= SECTIONED_ROWS * threads and (
        weights * layer.dtype.itemsize <= (SECTIONED_BYTES if training else SECTIONED_BYTES // 2)
    ):
        return 2
    return 1


# -- who takes what ------------------------------------------------------------------------------


cdef int plan_team(
    Plan *plan, const Run *r, Scratch scratch, Py_ssize_t steps, Py_ssize_t rows, int team
) except -1:
    """How up to `team` threads share so many steps of `rows` rows on average."""
    cdef int i
    plan.team = max(1, min(team, max(r.N, r.blocks, plan.pieces)))
    plan.by_units = plan.team == 1 or splits_units(r, rows, plan.team)
    plan.tiles = 1 if plan.by_units else min(plan.team, r.N)
    plan.team = min(plan.team, max(r.blocks if plan.by_units else plan.tiles, plan.pieces))
    plan.bounds = <Py_ssize_t *>scratch.take((plan.tiles + 1) * sizeof(Py_ssize_t))
    for i in range(plan.tiles + 1):
        plan.bounds[i] = part(r.N, i, <int>plan.tiles)
    plan.flags = <rk_flag *>scratch.take_zeros(plan.team * sizeof(rk_flag))
    # Who takes a block reads its weights from another core or from beyond: that is worth it where
    # they come from there in any case, or where there is more to do with them.
    sweeps = overflows(r, steps, plan.team) if TAKING is None else TAKING
    plan.grain = 0 if not sweeps else 2 if rows <= 6 else 1
    plan.ranges, plan.handover, plan.to_first = NULL, NULL, TAKING == "all"
    plan.even, plan.leaves = plan.by_units or plan.tiles == plan.team, False
    if LATE is not None:
        for i in range(1, plan.team):
            rk_expel(&plan.flags[i], LATE + i - 1)
    if plan.by_units and (sweeps or TAKING is None and rows >= 12):
        plan.ranges = <rk_range *>scratch.take_zeros(2 * plan.team * sizeof(rk_range))
    return 0


cdef int divide(Run *r, Plan *plan, Scratch scratch, int team, Py_ssize_t piece) except -1:
    """How up to `team` threads share a pass whose weights and arrays are set; they project up to
    `piece` steps at once."""
    cdef Py_ssize_t i, rows
    plan.pieces = 0
    if r.index != NULL and not r.one_hot:
        plan.pieces = (r.table_rows + TABLE_ROWS - 1) // TABLE_ROWS
    plan_team(plan, r, scratch, r.T, r.count // r.T, team)
    if r.alive != NULL:
        plan.even = plan.even and bound_by_length(
            r.length, r.section, r.sections, r.T, plan.tiles, plan.bounds
        )
    if plan.to_first:
        for i in range(1, plan.tiles):
            plan.bounds[i] = r.section[min(i, r.sections)]
    rows = PROJECTED_ROWS
    if not r.keeps and rows * r.cell.memory_slots * r.H * r.item > PROJECTED_BYTES:
        rows //= 2
    r.chunk = rows * (plan.team if plan.by_units else plan.tiles) * r.T // r.count
    r.chunk = min(piece, max(1, r.chunk))
    if r.panels != NULL and r.chunk == r.T and (plan.by_units or plan.tiles == 1):
        let_pass(r, plan, scratch)
    return 0


cdef int let_hand_over(Plan *plan, Scratch scratch) except -1:
    """Rows may change hands between chunks."""
    plan.handover = <rk_handover *>scratch.take_zeros(sizeof(rk_handover))
    rk_begin_parts(plan.handover, <int>plan.tiles)
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

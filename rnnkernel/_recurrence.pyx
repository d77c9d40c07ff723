"""The recurrence, forward in time: what each thread of a team does of one layer and direction.

The loop knows time, rows, unit blocks and threads, and nothing of gates: a cell is a row of the C
table. A team of threads either splits the batch, and each takes its rows through all steps without
waiting for another, or it splits the units: then each streams only its part of the weights, and all
meet at every step, since the next one reads all of h. Who comes early takes over blocks of units
that the others have not begun: cores are not equally fast, and seldom without other work.

Where rows differ in length or have resets they go by position and own step
(rnnkernel/_sequence.py), and a step takes those that are alive.
"""

from rnnkernel._clock cimport LOOP, PACK, PROJECTION, WAITING, Clock, charge, start_clock
from rnnkernel._kernels cimport fp_enter, fp_leave, rk_step
from rnnkernel._panels cimport pack_share
from rnnkernel._part cimport (
    Part,
    begin_round,
    end_round,
    meet,
    set_bounds,
    share_blocks,
    take_blocks,
    withdraw,
)
from rnnkernel._projection cimport half_is_enough, list_chunk, pass_panel, project, project_table
from rnnkernel._rows cimport any_set, cells_after_reset, clear_rows, clear_step
from rnnkernel._run cimport BOTH, TABLE_ROWS, Plan, Run, gates_at, h_at
from rnnkernel._states cimport put_states, take_states
from rnnkernel._team cimport (
    rk_end_part,
    rk_hand_over,
    rk_join,
    rk_meet,
    rk_offer,
    rk_take_over,
    rk_wanted,
)


cdef Py_ssize_t half_of_rows(const Run *r, const Part *part, Py_ssize_t t) noexcept nogil:
    """Where the rows begin that have half of all steps from t on."""
    cdef Py_ssize_t n, middle = part.begin, steps = 0, half = 0
    if r.alive == NULL:
        return (part.begin + part.end + 1) // 2
    for n in range(part.begin, min(part.end, part.alive[t])):
        steps += r.length[n] - t
    while 2 * half < steps:
        half += r.length[middle] - t
        middle += 1
    return middle


cdef void hand_over(const Run *r, Part *part, Py_ssize_t t) noexcept nogil:
    """Leaves half of the rows to who has done its own, from step t on, if that is worth it."""
    cdef Py_ssize_t rows = part.end - part.begin, middle
    if r.alive != NULL:
        rows = min(part.end, part.alive[t]) - part.begin
    if rows < 2 * r.kernels.full_rows or r.T - t < 2 * r.chunk:
        return
    middle = half_of_rows(r, part, t)
    if rk_hand_over(part.handover, middle, part.end, t):
        part.end = middle
        list_chunk(r, part.begin, part.end)


cdef bint enter_segments(
    const Run *r, Part *part, Py_ssize_t t, rk_step *s
) noexcept nogil:
    """Before a step: zero states for the rows that begin a new segment there; whether this member
    stays."""
    cdef const unsigned char *flags = r.reset + t * r.N + part.begin
    cdef Py_ssize_t bytes_of_row = r.units * r.item, bytes_of_block = r.N * bytes_of_row
    cdef Py_ssize_t from_block
    cdef char *c
    if not any_set(flags, s.rows):
        return True
    if part.team.member == 0:
        clear_rows(flags, <char *>s.h_prev, r.pitch * r.item, s.rows)
    if not meet(r, part, t):
        return False
    from_block = part.block_begin
    if r.cell.states == 2:
        c = r.c_reset + part.begin * bytes_of_row
        cells_after_reset(
            flags, <const char *>s.c_prev + from_block * s.c_prev_block * r.item,
            s.c_prev_row * r.item, s.c_prev_block * r.item, c + from_block * bytes_of_block,
            bytes_of_block, bytes_of_row, s.rows, part.block_end - from_block,
        )
        s.c_prev = c
        s.c_prev_row = r.units
        s.c_prev_block = r.N * r.units
        if part.ranges != NULL:
            return meet(r, part, t)
    return True


cdef void clear(const Run *r, const Part *part, Py_ssize_t t) noexcept nogil:
    """y at a step, of the rows that do not have it."""
    cdef Py_ssize_t begin = part.begin
    if t < r.longest:
        begin = max(begin, part.alive[t])
    clear_step(
        r.y, r.y_time, r.y_row, r.item, r.P, r.start, r.length, t, begin, part.end,
        part.team.members, part.team.member,
    )


cdef void step_passing(const Run *r, const Part *part, rk_step *s) noexcept nogil:
    """Some blocks of a step whose weights pass."""
    cdef Py_ssize_t past = s.block_end
    while s.block_begin < past:
        s.block_end = min(s.block_begin + r.passing_blocks, past)
        s.weights = pass_panel(r, part, 1, s.block_begin, s.block_end)
        s.half_of_last = half_is_enough(r, s.block_end)
        r.cell.forward[0](s)
        s.block_begin = s.block_end


cdef bint run_steps(const Run *r, Part *part) noexcept nogil:
    """Steps up to T of some rows and unit blocks; whether this member stays. After the last nobody
    waits for the others."""
    cdef Py_ssize_t t, t0, steps
    cdef Py_ssize_t begin = part.begin, from_begin = r.h_row[begin] * r.item
    cdef char *made
    cdef Py_ssize_t ahead, block_bytes, cleared = part.step
    cdef int phase
    cdef rk_step s
    part.turn, part.back = 0, part.grain > 0 and r.back
    if part.ranges != NULL:
        rk_offer(&part.ranges[part.team.mate], part.block_begin, part.block_end)
    s.hidden, s.projected = r.H, r.P
    s.operand_row = r.h_row + begin
    s.gates_row = r.gates_row + begin
    s.gates_block = r.gates_block
    s.h_pitch = r.pitch
    s.y_row = r.y_row + begin
    s.c_prev = NULL
    s.c_prev_row = s.c_prev_block = 0
    s.peepholes = r.peepholes
    s.cell_clip = r.cell_clip
    s.storage = r.storage
    s.keeps = r.keeps
    t0 = part.step
    while t0 < r.T and (r.alive == NULL or part.alive[t0] > begin):
        if part.handover != NULL and rk_wanted(part.handover):
            hand_over(r, part, t0)
        s.rows = part.end - begin
        steps = min(r.chunk, r.T - t0)
        if not project(r, part, t0, steps):
            return False
        for t in range(t0, t0 + steps):
            if r.alive != NULL:
                s.rows = min(part.end, part.alive[t]) - begin
                if s.rows <= 0:
                    break
                if r.clears:
                    clear(r, part, t)
                    cleared = t + 1
            s.gates = gates_at(r, t)
            s.last_first = t & 1
            if r.cell.states == 2:
                if t == 0:
                    s.c_prev = r.c0 + begin * r.c0_row * r.item
                    s.c_prev_row = r.c0_row
                    s.c_prev_block = r.c0_block
                else:
                    s.c_prev = gates_at(r, t - 1) + (
                        r.gates_row[begin] + r.cell.slots * r.units
                    ) * r.item
                    s.c_prev_row = r.cell.memory_slots * r.units
                    s.c_prev_block = r.gates_block
            s.operand = h_at(r, t)
            s.h_prev = h_at(r, t) + from_begin
            s.y = r.y + t * r.y_time * r.item
            if r.resets != NULL and r.resets[t]:
                if not enter_segments(r, part, t, &s):
                    return False
            for phase in range(r.cell.phases):
                s.weights = r.recurrent[phase]
                s.scale = r.recurrent_scale[phase]
                if phase + 1 < r.cell.phases or r.projection != NULL:
                    made = r.early
                else:
                    made = h_at(r, t + 1)
                s.h = made + from_begin
                block_bytes = r.cell.recurrent[phase].slots * r.units * r.recurrent_rows
                block_bytes *= r.weight_item
                s.block_end = begin_round(part)
                while take_blocks(part, &s.block_begin, &s.block_end, &ahead):
                    s.ahead = NULL
                    if ahead >= 0:
                        s.ahead = r.recurrent[phase] + ahead * block_bytes
                    s.half_of_last = half_is_enough(r, s.block_end)
                    if r.passing == BOTH:
                        step_passing(r, part, &s)
                    else:
                        r.cell.forward[phase](&s)
                if t + 1 < r.T or phase + 1 < r.cell.phases or r.projection != NULL:
                    if not end_round(r, part, t):
                        return False
                s.operand = made
            if r.projection != NULL:
                s.weights, s.ahead, s.half_of_last = r.projection, NULL, False
                s.h = h_at(r, t + 1)
                s.block_begin = r.projection_columns * part.team.member // part.team.members
                s.block_end = (
                    r.projection_columns * (part.team.member + 1) // part.team.members
                )
                if s.block_begin < s.block_end:
                    r.cell.project(&s)
                if not meet(r, part, t):
                    return False
        charge(part.clock, LOOP)
        t0 += steps
    withdraw(part)
    for t in range(cleared, r.y_steps if r.clears else 0):
        clear(r, part, t)
    return True


cdef bint run_part(const Run *r, Part *part) noexcept nogil:
    cdef unsigned long long saved = fp_enter()
    cdef bint stays = run_steps(r, part)
    fp_leave(saved)
    charge(part.clock, LOOP)
    return stays


cdef void run_units(const Run *r, Part *part) noexcept nogil:
    """Some blocks of all rows, section by section."""
    cdef int section
    for section in range(r.sections):
        part.step = r.first
        set_bounds(r, part, r.section[section], r.section[section + 1])
        # nobody takes blocks of one section while others are at the one before
        if section > 0 and not meet(r, part, r.T):
            return
        if not run_part(r, part):
            return


cdef void run_rows(const Run *r, Part *part) noexcept nogil:
    """All blocks of some rows, of which others may take over some."""
    part.chunk_x = r.chunk_x + part.begin * r.chunk
    part.chunk_gates = r.chunk_gates + part.begin * r.chunk
    if part.begin < part.end:
        run_part(r, part)
    if r.ends:
        take_states(r, part.begin, part.end)
    if part.handover != NULL:
        rk_end_part(part.handover)


cdef void prepare_weights_of(
    const Run *r, const Plan *plan, int members, int member
) noexcept nogil:
    """What one member of a team does before the first step: its share of panels and table."""
    cdef Py_ssize_t i = member
    cdef Clock clock = start_clock(r.spent, member)
    if r.panel_count > r.passing:
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
    part.team = rk_join(plan.flags, members, member) if plan.by_units else rk_join(NULL, 1, 0)
    part.leaves, part.ranges, part.grain = plan.leaves, NULL, 0
    part.step, part.handover = r.first, plan.handover
    part.block_begin, part.block_end = 0, r.blocks
    if plan.by_units:
        share_blocks(r, &part)
        if plan.to_first:
            part.block_begin = 0 if member == 0 else r.blocks
            part.block_end = r.blocks
        part.ranges, part.grain = plan.ranges, plan.grain
        part.chunk_x, part.chunk_gates = r.chunk_x, r.chunk_gates
        if r.alive != NULL:  # each lists them as it goes
            part.chunk_x += member * r.N * r.chunk
            part.chunk_gates += member * r.N * r.chunk
        run_units(r, &part)
        return
    i = member
    while i < plan.tiles:
        set_bounds(r, &part, plan.bounds[i], plan.bounds[i + 1])
        if r.begins:
            put_states(r, part.begin, part.end)
        run_rows(r, &part)
        i += members
    while part.handover != NULL and rk_take_over(
        part.handover, &plan.flags[member], &part.begin, &part.end, &part.step
    ):
        charge(&clock, WAITING)
        set_bounds(r, &part, part.begin, part.end)
        list_chunk(r, part.begin, part.end)
        run_rows(r, &part)
    charge(&clock, WAITING)

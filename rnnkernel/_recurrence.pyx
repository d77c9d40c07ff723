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
from rnnkernel._kernels cimport (
    RK_WHOLE,
    fp_enter,
    fp_leave,
    rk_lookup,
    rk_product,
    rk_small_product,
    rk_step,
)
from rnnkernel._panels cimport Panel, pack_share, run_blocks
from rnnkernel._products cimport ends_with_units
from rnnkernel._rows cimport (
    any_set,
    cells_after_reset,
    clear_rows,
    clear_step,
    rk_ask_to_read,
    rk_ask_to_write,
    rows_ahead,
)
from rnnkernel._states cimport copy_row
from rnnkernel._team cimport (
    rk_end_part,
    rk_hand_over,
    rk_handover,
    rk_join,
    rk_meet,
    rk_meet_or_leave,
    rk_offer,
    rk_range,
    rk_take,
    rk_take_over,
    rk_team,
    rk_wanted,
)


# What one thread does: some batch rows (by position where they differ, of one section) of some unit
# blocks.
cdef struct Part:
    Py_ssize_t begin, end
    const Py_ssize_t *alive       # of its section, or NULL
    Py_ssize_t block_begin, block_end
    Py_ssize_t *chunk_x           # [t][n]: rows of a chunk, in x or its table
    Py_ssize_t *chunk_gates       # and in the gates
    Py_ssize_t step               # the first that is to be done
    rk_handover *handover         # for rows, or NULL
    rk_team team                  # of those that share the rows
    bint leaves                   # whether who comes too late leaves it
    rk_range *ranges              # [in turn][member]: what is left of each one's blocks, or NULL
    int turn
    bint back
    Py_ssize_t grain              # of a sweep to and fro: blocks at once; 0 where nobody sweeps
    char *panel                   # for a block of a passing panel
    Clock *clock


cdef void set_bounds(
    const Run *r, Part *part, Py_ssize_t begin, Py_ssize_t end
) noexcept nogil:
    """Which rows it has."""
    cdef int section = 0
    part.begin, part.end, part.alive = begin, end, NULL
    if r.alive != NULL:
        while section + 1 < r.sections and begin >= r.section[section + 1]:
            section += 1
        part.alive = r.alive + section * r.longest


cdef void share_blocks(const Run *r, Part *part) noexcept nogil:
    """Unit blocks, shared by the members that are there."""
    part.block_begin = r.blocks * part.team.member // part.team.members
    part.block_end = r.blocks * (part.team.member + 1) // part.team.members


cdef bint meet(const Run *r, Part *part, Py_ssize_t t) noexcept nogil:
    """Waits for the other units of the same rows, at step t; whether this member stays. Where
    others have left, their blocks are shared anew."""
    cdef int members = part.team.members
    cdef bint stays
    if members == 1:
        return True
    charge(part.clock, LOOP)
    stays = rk_meet_or_leave(&part.team, t - r.first, r.T - t if part.leaves else -1)
    charge(part.clock, WAITING)
    if stays and part.team.members < members:
        share_blocks(r, part)
    return stays


# Work on all blocks, shared by the members, is a round: each takes blocks until none is left, and
# then they meet. Ranges of the next round are offered in this one, when all have left the last.
#
# Weights larger than L2 are swept to and fro: in one round from the first block to the last, in the
# next from the last to the first, which finds those that were used last still in L2.


cdef Py_ssize_t begin_round(const Part *part) noexcept nogil:
    """Where the blocks begin."""
    if part.ranges != NULL:
        rk_offer(
            &part.ranges[(1 - part.turn) * part.team.size + part.team.mate], part.block_begin,
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
    ranges = part.ranges + part.turn * part.team.size
    left = rk_take(&ranges[part.team.mate], part.back, part.grain, first, past)
    if left == 2:
        ahead[0] = first[0] - 1 if part.back else past[0]
    if left > 0:
        return True
    for i in range(1, part.team.size):
        if rk_take(
            &ranges[(part.team.mate + i) % part.team.size], not part.back, 1, first, past
        ) > 0:
            return True
    return False


cdef bint end_round(const Run *r, Part *part, Py_ssize_t t) noexcept nogil:
    """Whether this member stays for the next."""
    part.turn = 1 - part.turn
    if part.grain > 0:
        part.back = not part.back
    return meet(r, part, t)


cdef void list_chunk(const Run *r, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef Py_ssize_t t, n, k = begin * r.chunk
    if r.alive != NULL:  # each chunk has its own
        return
    for t in range(r.chunk):
        for n in range(begin, end):
            r.chunk_x[k] = t * r.x_time + r.x_row[n]
            r.chunk_gates[k] = t * r.gates_time + r.gates_row[n]
            k += 1


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


cdef Py_ssize_t list_rows(
    const Run *r, const Part *part, Py_ssize_t t0, Py_ssize_t steps
) noexcept nogil:
    """Where the rows lie that are alive in some steps, in x or its table, and in the gates; how
    many. Those of x and y are asked for if they are in the order of unequal lengths."""
    cdef Py_ssize_t t, n, row, k = 0
    cdef bint unequal = part.alive[r.T - 1] < part.end
    cdef const char *x
    cdef const char *y
    for t in range(steps):
        x = r.x + (t0 + t) * r.x_time * r.item
        y = r.y + (t0 + t) * r.y_time * r.item
        for n in range(part.begin, min(part.end, part.alive[t0 + t])):
            if r.index != NULL:
                row = r.index[(t0 + t) * r.index_time + r.index_row[n]]
                part.chunk_x[k] = row * r.cell.input.slots * r.units
            else:
                part.chunk_x[k] = t * r.x_time + r.x_row[n]
                if unequal:
                    rk_ask_to_read(x + r.x_row[n] * r.item, r.I * r.item)
            if unequal and part.team.members == 1:
                rk_ask_to_write(y + r.y_row[n] * r.item, r.P * r.item)
            part.chunk_gates[k] = t * r.gates_time + r.gates_row[n]
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
    small.scale = NULL
    if r.input_scale != NULL:
        small.scale = r.input_scale + from_block * p.b_inner * r.item
    small.scale_block = p.b_inner
    r.kernels.small_product(&small)


cdef void look_up(const Run *r, const rk_product *p, Py_ssize_t from_block) noexcept nogil:
    """What this product would give, from the table."""
    cdef rk_lookup look
    cdef int item = r.weight_item if r.one_hot else r.item
    look.rows, look.blocks = p.rows, p.blocks
    look.vectors, look.last_vectors = p.vectors, p.last_vectors
    look.table_block = (r.input_rows if r.one_hot else r.table_rows) * p.b_inner
    look.table = r.table + from_block * look.table_block * item
    look.table_row = p.a_row
    look.ahead = rows_ahead(r.blocks * look.table_block * item)
    look.c, look.c_row, look.c_block = p.c, p.c_row, p.c_block
    look.init, look.storage, look.scale = NULL, RK_WHOLE, NULL
    if r.one_hot:
        look.init, look.storage = p.init, r.storage
        if r.input_scale != NULL:
            look.scale = r.input_scale + from_block * p.b_inner * r.item
    look.init_block = p.init_block
    look.scale_block = p.b_inner
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
    p.ahead, p.later_count, p.half_of_last = NULL, 0, False
    p.a = r.x
    p.a_row = r.table_x + begin
    p.a_outer = 0
    p.a_inner = r.x_unit
    p.b = r.input
    p.b_inner = r.cell.input.slots * r.units
    p.b_block = r.input_rows * p.b_inner
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


cdef bint project(const Run *r, Part *part, Py_ssize_t t, Py_ssize_t steps) noexcept nogil:
    """bias + W_ih x into the gates of some steps; whether this member stays."""
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
    # who takes a block wants it projected
    return part.ranges == NULL or end_round(r, part, t)


cdef inline bint half_is_enough(const Run *r, Py_ssize_t past) noexcept nogil:
    """Whether of the block before `past` nobody reads more than the first halves of its vectors: no
    more of its units exist, and where backward follows its sums over units end with the last."""
    cdef Py_ssize_t padding = r.blocks * r.units - r.H
    return (
        past == r.blocks and r.cell.unit_vectors == 1 and 2 * padding >= r.units
        and (not r.keeps or ends_with_units(r.cell.input.slots, r.blocks, padding))
    )


cdef void project_blocks(
    const Run *r, const Part *part, Py_ssize_t t, Py_ssize_t rows, Py_ssize_t begin,
    Py_ssize_t end, const char *weights, Py_ssize_t ahead,
) noexcept nogil:
    """bias + W_ih x of some blocks, for as many rows as the part's chunk has; then comes block
    `ahead`, unless it is -1."""
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
    p.b_block = r.input_rows * p.b_inner
    p.b_outer = 0
    p.b = weights + begin * p.b_block * r.weight_item
    p.ahead = weights + ahead * p.b_block * r.weight_item if ahead >= 0 else NULL
    p.later_count = 0
    p.half_of_last = half_is_enough(r, end)
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
        p.vectors = p.last_vectors = (r.cell.slots - past) * r.cell.unit_vectors
        p.c = gates + past * r.units * r.item
        p.init = bias + past * r.units * r.item
        r.kernels.fill(&p)


cdef void put_states(const Run *r, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """What lies past the last unit meets none that exists."""
    cdef Py_ssize_t n, row
    for n in range(begin, end):
        row = n if r.order == NULL else r.order[n]
        copy_row(
            r.h + r.h_row[n] * r.item, r.item, r.h0.data + row * r.h0.row, r.h0.unit, r.P, r.item
        )


cdef void take_states(const Run *r, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """Nothing writes to a row's states after its last step."""
    cdef Py_ssize_t n, row, steps
    cdef const char *c
    for n in range(begin, end):
        row, steps = n, r.T
        if r.order != NULL:
            row, steps = r.order[n], r.length[n]
        copy_row(
            r.h_n.data + row * r.h_n.row, r.h_n.unit, h_at(r, steps) + r.h_row[n] * r.item, r.item,
            r.P, r.item,
        )
        if r.c_n.data == NULL:
            continue
        if steps == 0:
            take_first_cell(r, n)
            continue
        c = gates_at(r, steps - 1) + (r.gates_row[n] + r.cell.slots * r.units) * r.item
        take_cell(r, c, r.gates_block * r.item, row)


cdef void take_first_cell(const Run *r, Py_ssize_t n) noexcept nogil:
    take_cell(
        r, r.c0 + n * r.c0_row * r.item, r.c0_block * r.item, n if r.order == NULL else r.order[n]
    )


cdef void take_cell(
    const Run *r, const char *packed, Py_ssize_t block_bytes, Py_ssize_t row
) noexcept nogil:
    """A row of c_n from its units in each block."""
    cdef Py_ssize_t block
    cdef char *to = r.c_n.data + row * r.c_n.row
    for block in range(r.blocks):
        copy_row(
            to + block * r.units * r.c_n.unit, r.c_n.unit, packed + block * block_bytes, r.item,
            min(r.units, r.H - block * r.units), r.item,
        )


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
    if part.ranges != NULL:  # what was offered for a round that does not come
        rk_offer(&part.ranges[(1 - part.turn) * part.team.size + part.team.mate], 0, 0)
        rk_offer(&part.ranges[part.turn * part.team.size + part.team.mate], 0, 0)
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

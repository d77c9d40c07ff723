"""Backpropagation through time: the steps of a chunk (rnnkernel/_chunks.pyx).

They go back: what arrives at h_t is completed and clipped, the cell turns it into the gradients of
its pre-activations, and one product carries those to h_{t-1}. Where rows differ in length or have
resets (rnnkernel/_sequence.py), a step takes those that are alive. Which chunk it is, and whose,
rnnkernel/_bptt.pyx knows.
"""

from libc.string cimport memcpy, memset

from rnnkernel._bptt cimport GROUP, Bptt, alive_in, clear_dx
from rnnkernel._chunks cimport Chunk, Share, share_units
from rnnkernel._clock cimport LOOP, WAITING, charge
from rnnkernel._kernels cimport (
    RK_TRANSPOSED_VECTORS,
    rk_arrival,
    rk_product,
    rk_region,
    rk_step_backward,
    rk_window,
)
from rnnkernel._products cimport product_over, through, through_columns
from rnnkernel._rows cimport any_set, cells_after_reset, part
from rnnkernel._team cimport rk_meet_or_leave


# -- one step ------------------------------------------------------------------------------------


cdef bint meet(const Bptt *r, Share *s, Py_ssize_t t) noexcept nogil:
    """Waits for those that share the rows, at step t; whether this member stays. Where others have
    left, their units are shared anew."""
    cdef int members = s.members
    if members == 1:
        return True
    charge(s.clock, LOOP)
    if not rk_meet_or_leave(s.team, r.T - t, t):
        return False
    charge(s.clock, WAITING)
    if s.team.members < members:
        share_units(r, s, s.team.members, s.team.member)
    return True


cdef bint arrive(
    const Bptt *r, Share *s, Py_ssize_t t, Py_ssize_t rows, const Py_ssize_t *order
) noexcept nogil:
    """dy joins what comes from the step after, norms are recorded, clipping acts. Whether this
    member stays."""
    cdef rk_arrival a
    cdef Py_ssize_t begin = s.begin, lanes = r.kernels.lanes, column, unit
    cdef bint norms = r.dh_norm != NULL or r.norm_limit < 1e300
    if norms and not meet(r, s, t):
        return False
    column, unit = s.first * lanes, s.first_unit * lanes
    a.rows = rows
    a.projected = min(r.P, s.past * lanes) - column
    a.hidden = min(r.H, s.past_unit * lanes) - unit
    if norms and s.members > 1:  # of whole rows
        begin += part(rows, s.member, s.members)
        a.rows = s.begin + part(rows, s.member + 1, s.members) - begin
        column, unit = 0, 0
        a.projected, a.hidden = r.P, r.H
    a.dh = r.dh + (begin * r.pitch + column) * r.item
    a.dc = r.dc + (begin * r.pitch + unit) * r.item if r.cell.states == 2 else NULL
    a.pitch = r.pitch
    a.dy = NULL
    if r.dy != NULL:
        a.dy = r.dy + (t * r.dy_time + column * r.dy_unit) * r.item
    a.dy_row = r.dy_row + begin
    a.dy_unit = r.dy_unit
    a.order, a.ordered, a.first = order, 0, begin
    if order != NULL:
        a.ordered = alive_in(r, s.section, t)
    a.limit, a.norm_limit = r.limit, r.norm_limit
    a.dh_norm = a.dc_norm = NULL
    a.dh_kept = a.dc_kept = NULL
    a.clipped = NULL
    if r.dh_norm != NULL:
        a.dh_norm = r.dh_norm + t * r.N + begin
        if r.cell.states == 2:
            a.dc_norm = r.dc_norm + t * r.N + begin
        a.clipped = r.clipped + t * r.N + begin
    if r.dh_kept != NULL:
        a.dh_kept = r.dh_kept + (t * r.N + begin) * r.P * r.item
    if r.dc_kept != NULL:
        a.dc_kept = r.dc_kept + (t * r.N + begin) * r.H * r.item
    r.kernels.arrive(&a)
    return not norms or meet(r, s, t)


cdef void into_groups(
    const Bptt *r, const char *row, Py_ssize_t columns, Py_ssize_t first, Py_ssize_t past,
    char *groups,
) noexcept nogil:
    """One row of x or h into its place in some groups."""
    cdef Py_ssize_t g, whole = min(past, columns // GROUP), step = r.group * r.item
    # lengths that the compiler knows
    if r.item == 4:
        for g in range(first, whole):
            memcpy(groups + g * step, row + g * (4 * GROUP), 4 * GROUP)
    else:
        for g in range(first, whole):
            memcpy(groups + g * step, row + g * (8 * GROUP), 8 * GROUP)
    if whole < past:
        g = whole * GROUP
        memcpy(groups + whole * step, row + g * r.item, (columns - g) * r.item)


cdef void keep_operands(
    const Bptt *r, const Share *s, Py_ssize_t t, Py_ssize_t at, const rk_step_backward *step,
    const unsigned char *reset, const Py_ssize_t *order,
) noexcept nogil:
    """x and h_{t-1} of the rows of a step into the chunk's groups: in x and y themselves the rows
    that a tile of the weight gradients goes through would compete for a few sets of L1."""
    cdef Py_ssize_t i, n, g, k, x
    for i in range(step.rows if order == NULL else alive_in(r, s.section, t)):
        n = i
        if order != NULL:
            n = order[i] - s.begin
            if n < 0 or n >= step.rows:
                continue
        k = r.group_row[at + n] * r.item
        if r.x_groups != NULL:
            x = t * r.x_time + r.x_row[s.begin + n]
            if r.index != NULL:
                x = r.index[t * r.index_time + r.index_row[s.begin + n]] * r.x_time
            into_groups(r, r.x + x * r.item, r.I, s.x_first, s.x_past, r.x_groups + k)
        if reset != NULL and reset[n]:
            for g in range(s.h_first, s.h_past):
                memset(r.h_groups + k + g * r.group * r.item, 0, GROUP * r.item)
        else:
            into_groups(
                r, <const char *>step.h_prev + step.h_prev_row[n] * r.item, r.P, s.h_first,
                s.h_past, r.h_groups + k,
            )


cdef void begin_segments(
    const Bptt *r, const Share *s, const unsigned char *reset, rk_step_backward *step
) noexcept nogil:
    """States before a step's rows, zero for those that begin a new segment there."""
    cdef Py_ssize_t n, tile, cells = r.units * r.item, block = s.block_begin
    cdef Py_ssize_t column = s.first * r.kernels.lanes * r.item
    cdef Py_ssize_t width = min(r.P, s.past * r.kernels.lanes) * r.item - column
    for n in range(step.rows):
        tile = (s.begin + n) * r.pitch * r.item + column
        if reset[n] or width <= 0:
            memset(r.h_reset + tile, 0, max(width, 0))
        else:
            memcpy(
                r.h_reset + tile,
                <const char *>step.h_prev + step.h_prev_row[n] * r.item + column,
                width,
            )
    step.h_prev = r.h_reset
    step.h_prev_row = r.tile_row + s.begin
    if r.cell.states == 1:
        return
    for n in range(step.rows):
        cells_after_reset(
            reset + n,
            <const char *>step.c_prev
            + (block * step.c_prev_block + step.c_prev_row[n]) * r.item,
            0, step.c_prev_block * r.item,
            r.c_reset + (block * r.N + s.begin + n) * cells, r.N * cells, cells, 1,
            s.block_end - block,
        )
    step.c_prev = r.c_reset
    step.c_prev_row = r.cell_row + s.begin
    step.c_prev_block = r.N * r.units


cdef void clear_columns(
    const Bptt *r, const unsigned char *reset, char *tile, Py_ssize_t rows, Py_ssize_t first,
    Py_ssize_t past,
) noexcept nogil:
    """Zero in the vectors first..past of flagged rows: selected, since a product would keep NaN."""
    cdef Py_ssize_t n, vector = r.kernels.lanes * r.item
    for n in range(rows):
        if reset[n]:
            memset(tile + n * r.pitch * r.item + first * vector, 0, (past - first) * vector)


cdef bint through_projection(
    const Bptt *r, Share *s, Py_ssize_t t, rk_step_backward *step
) noexcept nogil:
    """dL/d(o * tanh(c)) = dh W_hr; dh is kept for dW_hr. Whether this member stays."""
    cdef rk_product p
    cdef Py_ssize_t n, tile = s.begin * r.pitch * r.item
    cdef Py_ssize_t column = s.first * r.kernels.lanes * r.item
    cdef Py_ssize_t width = min(r.P, s.past * r.kernels.lanes) * r.item - column
    if width > 0:
        for n in range(step.rows):
            memcpy(
                r.projected_dh + step.early_row[n] * r.item + column,
                r.dh + tile + n * r.pitch * r.item + column,
                width,
            )
    if not meet(r, s, t):
        return False
    p.rows = step.rows
    p.vectors = RK_TRANSPOSED_VECTORS
    p.outer, p.inner = 1, r.P
    p.ahead, p.later_count, p.half_of_last = NULL, 0, False
    p.a = r.dh + tile
    p.a_row = r.tile_row
    p.a_outer, p.a_inner = 0, 1
    p.b = r.projection_transposed
    p.b_inner = RK_TRANSPOSED_VECTORS * r.kernels.lanes
    p.b_outer = 0
    p.b_block = r.projection_rows * p.b_inner
    p.c = r.dearly + tile
    p.c_row = r.tile_row
    p.c_block = p.b_inner
    p.init, p.init_block = r.zeros, 0
    product_over(r, &p, s.first_unit, s.past_unit)
    return True


cdef Py_ssize_t add_rows(
    rk_region *regions, Py_ssize_t count, const char *start, Py_ssize_t rows, Py_ssize_t row,
    Py_ssize_t width,
) noexcept nogil:
    """Adds rows that lie beside one another, or halves of them, and the others come too; sizes
    in bytes. How many regions there are then."""
    if start == NULL or row > 2 * width or row < width:
        return count
    regions[count].from_, regions[count].bytes, regions[count].pieces = start, rows * row, 1
    return count + 1


cdef Py_ssize_t next_reads(
    const Bptt *r, const Share *s, Py_ssize_t t, Py_ssize_t rows, const Py_ssize_t *order,
    rk_region *regions,
) noexcept nogil:
    """What the step before t will read, which memory has; how many regions. Of rows that differ,
    all from the first to the last of the section, unless most of these have ended."""
    cdef Py_ssize_t row_gates = r.cell.memory_slots * r.units, count = 0, first = s.begin, past, at
    cdef const char *x = NULL
    cdef const char *dy = NULL
    cdef const char *y = NULL
    if t == 0:
        return 0
    if r.gates != NULL:
        regions[0].from_ = r.gates + (
            (t - 1) * r.gates_time + s.block_begin * r.gates_block + r.gates_row[s.begin]
        ) * r.item
        # of rows that stand in one group, as they do where threads share them as in forward
        regions[0].bytes = min(rows * row_gates, r.gates_block) * r.item
        regions[0].pieces = s.block_end - s.block_begin
        regions[0].piece = r.gates_block * r.item
        count = regions[0].pieces > 0
    if s.members > 1:
        return count
    at = t - 1
    if r.alive != NULL:
        first = r.order[order[0]]
        past = r.order[order[alive_in(r, s.section, t) - 1]] + 1
        if not r.aligned or past - first > 2 * rows:
            return count
        rows = past - first
        at += r.start[0]
    if r.dy != NULL and r.dy_unit == 1:
        dy = r.dy + (at * r.dy_time + first * r.dy_batch) * r.item
    if r.x_groups != NULL and r.index == NULL:
        x = r.x + (at * r.x_time + first * r.x_batch) * r.item
    if t > 1:
        y = r.y + ((at - 1) * r.y_time + first * r.y_batch) * r.item
    count = add_rows(regions, count, dy, rows, r.dy_batch * r.item, r.P * r.item)
    count = add_rows(regions, count, x, rows, r.x_batch * r.item, r.I * r.item)
    return add_rows(regions, count, y, rows, r.y_batch * r.item, r.P * r.item)


cdef void carry_back(
    const Bptt *r, const Share *s, int phase, Py_ssize_t t, const rk_step_backward *step,
    const Py_ssize_t *order,
) noexcept nogil:
    """Through W_hh of one phase: dL/dh_{t-1}, or the gradient of what an earlier phase made."""
    cdef const rk_window *window = &r.cell.recurrent[phase]
    cdef rk_region[4] regions
    cdef rk_product p = through(r, window, r.recurrent_transposed[phase])
    p.rows = step.rows
    p.a_row = step.dgates_row
    p.c = (r.dearly if phase > 0 else r.dh) + s.begin * r.pitch * r.item
    p.c_row = r.tile_row
    if phase == 0:
        p.later, p.later_count = regions, next_reads(r, s, t, step.rows, order, regions)
        if r.cell.carries:
            p.init = NULL
    through_columns(r, window, &p, s.first, s.past)


cdef bint step_back(
    const Bptt *r, Share *s, const Chunk *c, Py_ssize_t t, Py_ssize_t rows
) noexcept nogil:
    """One step of some rows, the first of a thread's, over its units. Whether this member stays."""
    cdef Py_ssize_t begin = s.begin
    cdef Py_ssize_t first = r.first[(t - c.t0) * r.sections + s.section]
    cdef Py_ssize_t tile = begin * r.pitch * r.item, at = first + begin
    cdef const unsigned char *reset = NULL
    cdef const Py_ssize_t *order = NULL  # that dy, x and y have in memory, which is read ahead
    cdef rk_step_backward step
    cdef int i
    if r.alive != NULL:
        order = r.in_memory + first + r.section[s.section]
    if not arrive(r, s, t, rows, order):
        return False

    step.rows, step.hidden = rows, r.H
    step.gates = NULL
    if r.gates != NULL:
        step.gates = r.gates + t * r.gates_time * r.item
    step.gates_row = r.gates_row + begin
    step.gates_block = r.gates_block
    step.c_prev = NULL
    step.c_prev_row = NULL
    step.c_prev_block = 0
    if r.cell.states == 2 and t == 0:
        step.c_prev = r.c0
        step.c_prev_row, step.c_prev_block = r.cell_row + begin, r.N * r.units
    elif r.cell.states == 2:
        step.c_prev = r.gates + (
            (t - 1) * r.gates_time + r.cell.slots * r.units
        ) * r.item
        step.c_prev_row, step.c_prev_block = step.gates_row, r.gates_block
    step.peepholes, step.cell_clip = r.peepholes, r.cell_clip
    step.h = r.y + t * r.y_time * r.item
    step.h_row = r.y_row + begin
    if t == 0:
        step.h_prev = r.h0
        step.h_prev_row = r.h0_row + begin
    else:
        step.h_prev = r.y + (t - 1) * r.y_time * r.item
        step.h_prev_row = r.y_row + begin
    step.dh = r.dh + tile
    step.dc = r.dc + tile if r.cell.states == 2 else NULL
    step.dh_pitch = r.pitch
    step.dgates, step.dgates_row = r.dgates, r.dgates_row + at
    step.dgates_block = r.dgates_block
    step.early, step.early_row = r.early, r.tile_chunk_row + at
    step.dearly = r.dearly + tile

    if r.resets != NULL and r.resets[t] and any_set(r.reset + t * r.N + begin, rows):
        reset = r.reset + t * r.N + begin
    keep_operands(r, s, t, at, &step, reset, order)
    if reset != NULL:
        begin_segments(r, s, reset, &step)
    if r.projection_transposed != NULL:
        if not through_projection(r, s, t, &step):
            return False
    for i in range(r.cell.phases):
        step.block_begin, step.block_end = s.block_begin, s.block_end
        r.cell.backward[i](&step)
        if not meet(r, s, t):
            return False
        carry_back(r, s, r.cell.phases - 1 - i, t, &step, order)
    if reset != NULL:
        clear_columns(r, reset, <char *>step.dh, rows, s.first, s.past)
        if r.cell.states == 2:
            clear_columns(r, reset, <char *>step.dc, rows, s.first_unit, s.past_unit)
    return True


# -- the steps of a chunk ------------------------------------------------------------------------


cdef bint steps_of_section(const Bptt *r, Share *s, const Chunk *c) noexcept nogil:
    """Steps of rows of one section. Whether this member stays."""
    cdef Py_ssize_t t, rows, alive
    for t in range(c.t0 + c.steps - 1, c.t0 - 1, -1):
        rows = s.end - s.begin
        if r.alive != NULL:
            alive = r.alive[s.section * r.T + t]
            rows = min(s.end, alive) - s.begin
            if r.clears and r.dx != NULL:
                clear_dx(r, t, max(s.begin, alive), s.end, s.members, s.member)
        if rows > 0 and not step_back(r, s, c, t, rows):
            return False
    return True


cdef bint steps_back(const Bptt *r, Share *s, const Chunk *c) noexcept nogil:
    cdef Py_ssize_t begin = s.begin, end = s.end
    for s.section in range(r.sections):
        s.begin, s.end = max(begin, r.section[s.section]), min(end, r.section[s.section + 1])
        if s.begin < s.end and not steps_of_section(r, s, c):
            return False
    s.begin, s.end = begin, end
    return True

"""Backpropagation through time: what each thread of a team does.

Time goes in chunks. Within one, the steps go back: what arrives at h_t is completed and clipped,
the cell turns it into the gradients of its pre-activations, and one product carries those to
h_{t-1}. While the chunk's dgates are in cache, the weight gradients are long products over all its
rows, shared between threads by what they write, so that no sum depends on the number of threads.
Rows are summed from the last step and row to the first, so that none depends on the length of a
chunk. Where rows differ in length or have resets (rnnkernel/_sequence.py), a step takes those that
are alive.

The steps of a chunk are shared by batch rows: each thread takes some through all of them, and meets
nobody. Or by units: each takes some units of all rows, reads only its part of the weights, and
meets the others before the product, which is over all units. `by_units` decides.
"""

from libc.string cimport memcpy, memset

from rnnkernel._clock cimport (
    INPUT_GRADIENT,
    LOOP,
    WAITING,
    WEIGHT_GRADIENTS,
    Clock,
    charge,
    start_clock,
)
from rnnkernel._kernels cimport (
    RK_TRANSPOSED_VECTORS,
    fp_enter,
    fp_leave,
    rk_arrival,
    rk_lookup,
    rk_product,
    rk_row_sums,
    rk_step_backward,
    rk_window,
)
from rnnkernel._rows cimport any_set, cells_after_reset, clear_ends
from rnnkernel._team cimport rk_meet, rk_next

cdef double L2_BYTES = 1 << 20          # of a usual core; a hint, no result depends on it


cdef struct Chunk:
    Py_ssize_t t0, steps, rows
    bint first                          # whose sums nothing was added to yet


# What one thread takes of every step of a chunk. Columns and units count in vectors.
cdef struct Share:
    int members, member                 # of those that meet within a step
    Py_ssize_t begin, end               # batch rows
    Py_ssize_t first, past              # columns of h
    Py_ssize_t first_unit, past_unit    # units of the cell: as many, but for a projection
    Py_ssize_t block_begin, block_end   # the same in blocks
    Py_ssize_t x_first, x_past          # groups of x and h to keep
    Py_ssize_t h_first, h_past
    Clock *clock


# -- products ------------------------------------------------------------------------------------


cdef void product_over(
    const Bptt *r, const rk_product *whole, Py_ssize_t first, Py_ssize_t past
) noexcept nogil:
    """The vectors first..past of the columns of C, counted through its blocks."""
    cdef rk_product p
    cdef Py_ssize_t block, skipped
    while first < past:
        p = whole[0]
        block, skipped = first // p.vectors, first % p.vectors * r.kernels.lanes
        p.b = <const char *>p.b + (block * p.b_block + skipped) * r.item
        p.c = <char *>p.c + (block * p.c_block + skipped) * r.item
        if p.init != NULL:
            p.init = <const char *>p.init + (block * p.init_block + skipped) * r.item
        if skipped > 0:
            p.blocks = 1
            p.vectors = p.last_vectors = min(p.vectors - first % p.vectors, past - first)
            first += p.vectors
        else:
            p.blocks = (past - first + p.vectors - 1) // p.vectors
            p.last_vectors = past - first - (p.blocks - 1) * p.vectors
            first = past
        r.kernels.product(&p)


cdef rk_product through(const Bptt *r, const rk_window *window, const char *weights) noexcept nogil:
    """C = dgates W over one window but for the rows of A and C; `weights` are transposed panels."""
    cdef rk_product p
    p.ahead = NULL
    p.vectors = RK_TRANSPOSED_VECTORS
    p.outer, p.inner = r.blocks, window.slots * r.units
    p.a = r.dgates + window.slot * r.units * r.item
    p.a_outer, p.a_inner = r.dgates_block, 1
    p.b = weights
    p.b_inner = RK_TRANSPOSED_VECTORS * r.kernels.lanes
    p.b_outer = p.inner * p.b_inner
    p.b_block = p.outer * p.b_outer
    p.c_block = p.b_inner
    p.init, p.init_block = r.zeros, 0
    return p


cdef void through_columns(
    const Bptt *r, const rk_window *window, rk_product *p, Py_ssize_t first, Py_ssize_t past
) noexcept nogil:
    """Some columns, in vectors, of what `through` began."""
    if window.slots > 1:
        product_over(r, p, first, past)
        return
    # a single slot: the sum ends with the last unit, not with its block
    p.outer = r.blocks - 1
    if p.outer > 0:
        product_over(r, p, first, past)
        p.init = NULL
    p.a = <const char *>p.a + p.outer * p.a_outer * r.item
    p.b = <const char *>p.b + p.outer * p.b_outer * r.item
    p.inner = r.H - p.outer * r.units
    p.outer = 1
    product_over(r, p, first, past)


cdef inline Py_ssize_t vectors_of(const Bptt *r, Py_ssize_t columns) noexcept nogil:
    return (columns + r.kernels.lanes - 1) // r.kernels.lanes


# -- chunks and shares ---------------------------------------------------------------------------


cdef void list_rows(const Bptt *r, const Chunk *c) noexcept nogil:
    """Where the rows of a chunk lie, in the order that the weight gradients sum them in: by step
    and batch row, so that a ragged batch sums as the padded one does."""
    cdef Py_ssize_t t, n, p, at, row, k = 0
    for t in range(c.steps):
        r.first[t] = k
        at = k
        for n in range(r.N):
            p = n
            if r.alive != NULL:
                p = r.position[n]
                if p >= r.alive[c.t0 + t]:
                    continue
                r.in_memory[k] = p
            r.dgates_row[at + p] = r.flat_row[k]
            r.tile_chunk_row[at + p] = k * r.pitch
            r.group_row[at + p] = k * GROUP
            r.dx_at[k] = t * r.dx_time
            r.dx_at[k] += n * r.dx_batch if r.alive == NULL else r.dx_from[p]
            if r.index != NULL:
                row = r.index[(c.t0 + t) * r.index_time + r.index_row[p]]
                r.table_at[k] = row * r.cell.input.slots * r.units
            k += 1


cdef void list_all_rows(Bptt *r) noexcept nogil:
    cdef Chunk c
    c.t0, c.steps = 0, r.chunk_rows // r.N
    list_rows(r, &c)


cdef Chunk chunk_before(const Bptt *r, Py_ssize_t past) noexcept nogil:
    """The chunk that ends with the step before `past`."""
    cdef Chunk c
    c.t0 = past - 1
    if r.alive == NULL:
        c.t0 = max(0, past - r.chunk_rows // r.N)
        c.rows = (past - c.t0) * r.N
    else:
        c.rows = r.alive[c.t0]
        while c.t0 > 0 and c.rows + r.alive[c.t0 - 1] <= r.chunk_rows:
            c.t0 -= 1
            c.rows += r.alive[c.t0]
    c.steps = past - c.t0
    c.first = r.fresh and past == r.T
    return c


cdef inline Py_ssize_t part(Py_ssize_t whole, int i, int parts) noexcept nogil:
    """Where part `i` of so many begins."""
    return whole * i // parts


cdef inline Py_ssize_t vector_part(
    const Bptt *r, Py_ssize_t whole, int i, int parts
) noexcept nogil:
    """The same of vectors of units: at whole blocks, and at even numbers where there are many,
    since a product with a single vector of columns is slow."""
    cdef Py_ssize_t grain = r.cell.unit_vectors
    if i == parts:
        return whole
    if whole >= 4 * parts:
        grain = max(grain, 2)
    return min(whole, (2 * whole * i + parts * grain) // (2 * parts * grain) * grain)


cdef Py_ssize_t row_part(const Bptt *r, const Chunk *c, int i, int parts) noexcept nogil:
    """The same of batch rows, by how many steps of the chunk they have."""
    cdef Py_ssize_t n = 0, past = c.t0 + c.steps, rows = 0
    if r.alive == NULL:
        return part(r.N, i, parts)
    if i == parts:
        return r.alive[c.t0]
    while True:
        while r.alive[past - 1] <= n:
            past -= 1
            if past == c.t0:
                return n
        # a row goes to the part that has more of it
        if (rows + 0.5 * (past - c.t0)) * parts > <double>c.rows * i:
            return n
        rows += past - c.t0
        n += 1


cdef double step_cycles(const Bptt *r, Py_ssize_t rows, Py_ssize_t vectors) noexcept nogil:
    """About what a core takes for the product with so many columns of W_hh."""
    cdef Py_ssize_t vector_bytes = r.kernels.lanes * r.item
    cdef double lines = vectors * r.cell.gates * r.H * vector_bytes / 64.0
    cdef Py_ssize_t tiles = (rows + r.kernels.full_rows - 1) // r.kernels.full_rows
    # of a line of weights: two vectors of multiply-adds a cycle, but no tile of rows is faster
    # than the line comes from L2
    cdef double cycles = max(32.0 / vector_bytes * rows, 2.5 * tiles)
    # and from L3 so much of the time as is not hidden behind these
    if lines * 64 > L2_BYTES:
        cycles += 6
    return lines * cycles


cdef bint by_units(const Bptt *r, const Chunk *c, int members) noexcept nogil:
    """Whether to share the steps of a chunk by units instead of rows.

    By rows every thread reads all of W_hh at every step. That is dear for few rows and where it
    does not fit into L2, which the part of it for some of the units may. But those who share units
    meet in every step, which costs some 1000 cycles in each phase, and more where other programs
    want the cores: what saves little is not worth it.
    """
    cdef Py_ssize_t rows = (c.rows + c.steps - 1) // c.steps  # on average
    cdef Py_ssize_t vectors = vectors_of(r, r.P), most = 0
    cdef int i
    if members == 1 or r.sharing != BY_COST:
        return r.sharing == BY_UNITS
    for i in range(members):
        most = max(
            most, vector_part(r, vectors, i + 1, members) - vector_part(r, vectors, i, members)
        )
    return (
        step_cycles(r, rows, most) + 1000 * r.cell.phases
        < 0.95 * step_cycles(r, (rows + members - 1) // members, vectors)
    )


cdef Share share_of(
    const Bptt *r, const Chunk *c, int members, int member, Clock *clock
) noexcept nogil:
    cdef Share s
    cdef Py_ssize_t vectors = vectors_of(r, r.P), units = vectors_of(r, r.H)
    cdef Py_ssize_t x_groups = (r.I + GROUP - 1) // GROUP, h_groups = (r.P + GROUP - 1) // GROUP
    s.members, s.member, s.clock = members, member, clock
    if not by_units(r, c, members):
        s.begin = row_part(r, c, member, members)
        s.end = row_part(r, c, member + 1, members)
        s.members, s.member = 1, 0
    else:
        s.begin, s.end = 0, r.N
    s.first = vector_part(r, vectors, s.member, s.members)
    s.past = vector_part(r, vectors, s.member + 1, s.members)
    s.first_unit = vector_part(r, units, s.member, s.members)
    s.past_unit = vector_part(r, units, s.member + 1, s.members)
    s.block_begin = s.first_unit // r.cell.unit_vectors
    s.block_end = (s.past_unit + r.cell.unit_vectors - 1) // r.cell.unit_vectors
    if s.block_begin * r.cell.unit_vectors < s.first_unit:  # nothing is left for this one
        s.block_begin = s.block_end
    s.x_first = part(x_groups, s.member, s.members)
    s.x_past = part(x_groups, s.member + 1, s.members)
    s.h_first = part(h_groups, s.member, s.members)
    s.h_past = part(h_groups, s.member + 1, s.members)
    return s


cdef inline void meet(const Bptt *r, const Share *s) noexcept nogil:
    if s.members > 1:
        charge(s.clock, LOOP)
        rk_meet(r.flags, s.members, s.member)
        charge(s.clock, WAITING)


# -- one step ------------------------------------------------------------------------------------


cdef void arrive(
    const Bptt *r, const Share *s, Py_ssize_t t, Py_ssize_t rows, const Py_ssize_t *order
) noexcept nogil:
    """dy joins what comes from the step after, norms are recorded, clipping acts."""
    cdef rk_arrival a
    cdef Py_ssize_t begin = s.begin, lanes = r.kernels.lanes
    cdef Py_ssize_t column = s.first * lanes, unit = s.first_unit * lanes
    cdef bint norms = r.dh_norm != NULL or r.norm_limit < 1e300
    a.rows = rows
    a.projected = min(r.P, s.past * lanes) - column
    a.hidden = min(r.H, s.past_unit * lanes) - unit
    if norms and s.members > 1:  # of whole rows
        meet(r, s)
        begin = part(rows, s.member, s.members)
        a.rows = part(rows, s.member + 1, s.members) - begin
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
        a.ordered = r.alive[t]
    a.limit, a.norm_limit = r.limit, r.norm_limit
    a.dh_norm = a.dc_norm = NULL
    a.clipped = NULL
    if r.dh_norm != NULL:
        a.dh_norm = r.dh_norm + t * r.N + begin
        if r.cell.states == 2:
            a.dc_norm = r.dc_norm + t * r.N + begin
        a.clipped = r.clipped + t * r.N + begin
    r.kernels.arrive(&a)
    if norms:
        meet(r, s)


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
    for i in range(step.rows if order == NULL else r.alive[t]):
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
    cells_after_reset(
        reset, <const char *>step.c_prev + block * step.c_prev_block * r.item,
        step.c_prev_row * r.item, step.c_prev_block * r.item,
        r.c_reset + (block * r.N + s.begin) * cells, r.N * cells, cells, step.rows,
        s.block_end - block,
    )
    step.c_prev = r.c_reset + s.begin * cells
    step.c_prev_row = r.units
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


cdef void through_projection(
    const Bptt *r, const Share *s, const rk_step_backward *step
) noexcept nogil:
    """dL/d(o * tanh(c)) = dh W_hr; dh is kept for dW_hr."""
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
    meet(r, s)
    p.rows = step.rows
    p.vectors = RK_TRANSPOSED_VECTORS
    p.outer, p.inner = 1, r.P
    p.ahead = NULL
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


cdef void carry_back(
    const Bptt *r, const Share *s, int phase, const rk_step_backward *step
) noexcept nogil:
    """Through W_hh of one phase: dL/dh_{t-1}, or the gradient of what an earlier phase made."""
    cdef const rk_window *window = &r.cell.recurrent[phase]
    cdef rk_product p = through(r, window, r.recurrent_transposed[phase])
    p.rows = step.rows
    p.a_row = step.dgates_row
    p.c = (r.dearly if phase > 0 else r.dh) + s.begin * r.pitch * r.item
    p.c_row = r.tile_row
    if phase == 0 and r.cell.carries:
        p.init = NULL
    through_columns(r, window, &p, s.first, s.past)


cdef void step_back(
    const Bptt *r, const Share *s, const Chunk *c, Py_ssize_t t, Py_ssize_t rows
) noexcept nogil:
    """One step of some rows, the first of a thread's, over its units."""
    cdef Py_ssize_t row_gates = r.cell.memory_slots * r.units, begin = s.begin
    cdef Py_ssize_t tile = begin * r.pitch * r.item, at = r.first[t - c.t0] + begin
    cdef const unsigned char *reset = NULL
    cdef const Py_ssize_t *order = NULL  # that dy, x and y have in memory, which is read ahead
    cdef rk_step_backward step
    cdef int i
    if r.alive != NULL:
        order = r.in_memory + r.first[t - c.t0]
    arrive(r, s, t, rows, order)

    step.rows, step.hidden = rows, r.H
    step.block_begin, step.block_end = s.block_begin, s.block_end
    step.gates = NULL
    if r.gates != NULL:
        step.gates = r.gates + (t * r.gates_time + begin * row_gates) * r.item
    step.gates_block = r.gates_block
    step.c_prev = NULL
    step.c_prev_row = step.c_prev_block = 0
    if r.cell.states == 2 and t == 0:
        step.c_prev = r.c0 + begin * r.units * r.item
        step.c_prev_row, step.c_prev_block = r.units, r.N * r.units
    elif r.cell.states == 2:
        step.c_prev = r.gates + (
            (t - 1) * r.gates_time + begin * row_gates + r.cell.slots * r.units
        ) * r.item
        step.c_prev_row, step.c_prev_block = row_gates, r.gates_block
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
        through_projection(r, s, &step)
    for i in range(r.cell.phases):
        r.cell.backward[i](&step)
        meet(r, s)
        carry_back(r, s, r.cell.phases - 1 - i, &step)
    if reset != NULL:
        clear_columns(r, reset, <char *>step.dh, rows, s.first, s.past)
        if r.cell.states == 2:
            clear_columns(r, reset, <char *>step.dc, rows, s.first_unit, s.past_unit)


cdef void steps_back(const Bptt *r, const Share *s, const Chunk *c) noexcept nogil:
    """A thread's share of the steps of a chunk."""
    cdef Py_ssize_t t, rows
    for t in range(c.t0 + c.steps - 1, c.t0 - 1, -1):
        rows = s.end - s.begin
        if r.alive != NULL:
            rows = min(s.end, r.alive[t]) - s.begin
        if rows > 0:
            step_back(r, s, c, t, rows)


# -- gradients of a chunk ------------------------------------------------------------------------


cdef void add_outer(
    const Bptt *r, const Chunk *c, rk_product *p, const char *a, Py_ssize_t a_row, const char *b
) noexcept nogil:
    """C += A' B over all rows of the chunk, last first; A's lie `a_row` apart. The first chunk
    begins with zeros."""
    cdef Py_ssize_t b_row = r.gradient_slots * r.units
    p.a = a + (c.rows - 1) * a_row * r.item
    p.b = b + (c.rows - 1) * b_row * r.item
    p.outer, p.inner = 1, c.rows
    p.a_outer = p.b_outer = 0
    p.a_inner, p.b_inner = -a_row, -b_row
    p.init, p.init_block = r.zeros if c.first else NULL, 0
    r.kernels.product(p)


cdef rk_product block_gradient(
    const Bptt *r, const rk_window *window, char *gradient, Py_ssize_t block, Py_ssize_t rows
) noexcept nogil:
    """A sum over time that goes to one unit block of a weight gradient with so many rows."""
    cdef rk_product p
    p.rows, p.blocks = rows, 1
    p.ahead = NULL
    p.vectors = p.last_vectors = window.slots * r.cell.unit_vectors
    p.b_block = p.c_block = 0
    p.c = gradient + block * rows * window.slots * r.units * r.item
    return p


cdef void add_recurrent_gradient(
    const Bptt *r, const Chunk *c, int phase, Py_ssize_t block
) noexcept nogil:
    """A chunk's share of dW_hh of one phase and unit block."""
    cdef const rk_window *window = &r.cell.recurrent[phase]
    cdef rk_product p = block_gradient(r, window, r.recurrent_gradient[phase], block, r.P)
    cdef const char *dgates = r.dgates + (block * r.dgates_block + window.slot * r.units) * r.item
    p.c_row = r.hidden_c[phase]
    if phase > 0:
        p.a_row = r.flat_a
        add_outer(r, c, &p, r.early, r.pitch, dgates)
    else:
        p.a_row = r.group_a
        add_outer(r, c, &p, r.h_groups, GROUP, dgates)


cdef void add_input_gradients(const Bptt *r, const Chunk *c, Py_ssize_t block) noexcept nogil:
    """A chunk's share of one unit block of dW_ih, or of the sums by rows of a table, and of the
    bias gradients."""
    cdef const rk_window *window = &r.cell.input
    cdef rk_product p = block_gradient(r, window, r.input_gradient, block, r.I)
    cdef rk_lookup look
    cdef rk_row_sums sums
    cdef Py_ssize_t width = window.slots * r.units, b_row = r.gradient_slots * r.units
    cdef char *dgates = r.dgates + block * r.dgates_block * r.item
    if r.x_groups != NULL:
        p.a_row, p.c_row = r.group_a, r.input_c
        add_outer(r, c, &p, r.x_groups, GROUP, dgates + window.slot * r.units * r.item)

    if r.table_gradient != NULL:
        look.rows, look.blocks = c.rows, 1
        look.vectors = look.last_vectors = p.vectors
        look.table = r.table_gradient + block * r.table_rows * width * r.item
        look.table_row = r.table_at
        look.c = dgates + window.slot * r.units * r.item
        look.c_row = r.flat_row
        look.table_block = look.c_block = look.init_block = 0
        look.init = NULL
        r.kernels.scatter(&look)

    sums.rows = c.rows
    sums.vectors = r.gradient_slots * r.cell.unit_vectors
    sums.block_begin, sums.block_end = 0, 1
    sums.dgates = dgates + (c.rows - 1) * b_row * r.item
    sums.row_stride, sums.dgates_block = -b_row, 0
    sums.sums = r.bias_gradient + block * b_row * r.item
    r.kernels.row_sums(&sums)


cdef void add_projection_gradient(
    const Bptt *r, const Chunk *c, Py_ssize_t column
) noexcept nogil:
    """A chunk's share of one column block of dW_hr."""
    cdef rk_product p
    cdef Py_ssize_t width = RK_TRANSPOSED_VECTORS * r.kernels.lanes, last = (c.rows - 1) * r.pitch
    p.rows, p.blocks = r.P, 1
    p.ahead = NULL
    p.vectors = min(RK_TRANSPOSED_VECTORS, vectors_of(r, r.H) - column * RK_TRANSPOSED_VECTORS)
    p.last_vectors = p.vectors
    p.outer, p.inner = 1, c.rows
    p.a = r.projected_dh + last * r.item
    p.a_row = r.flat_a
    p.b = r.early + (last + column * width) * r.item
    p.a_outer = p.b_outer = p.b_block = p.c_block = 0
    p.a_inner = p.b_inner = -r.pitch
    p.c = r.projection_gradient + column * r.P * width * r.item
    p.c_row = r.projection_c
    p.init, p.init_block = r.zeros if c.first else NULL, 0
    r.kernels.product(&p)


cdef void input_gradient(
    const Bptt *r, const Chunk *c, Py_ssize_t begin, int member
) noexcept nogil:
    """dx of some rows of a chunk."""
    cdef char *tile = r.dx_tile + member * max(r.dx_rows, DX_ROWS) * r.dx_pitch * r.item
    cdef rk_product p = through(r, &r.cell.input, r.input_transposed)
    cdef Py_ssize_t row
    p.rows = min(r.dx_rows, c.rows - begin)
    p.a_row = r.flat_row + begin
    p.c, p.c_row = tile, r.dx_row
    through_columns(r, &r.cell.input, &p, 0, vectors_of(r, r.I))
    for row in range(min(r.dx_rows, c.rows - begin)):
        memcpy(
            r.dx + (c.t0 * r.dx_time + r.dx_at[begin + row]) * r.item,
            tile + row * r.dx_pitch * r.item,
            r.I * r.item,
        )


cdef Py_ssize_t share_gradients(
    const Bptt *r, const Chunk *c, Py_ssize_t counted, int members, int member, Clock *clock
) noexcept nogil:
    """Piece by piece what follows the steps of a chunk; what the next count begins with.

    The same operand stays in cache from one unit block to the next.
    """
    cdef Py_ssize_t task, begin, pieces = 0, blocks = r.blocks * (1 + r.cell.phases), tasks
    if r.dx != NULL:
        pieces = (c.rows + r.dx_rows - 1) // r.dx_rows
    tasks = pieces + blocks + r.cell_columns
    while True:
        task = rk_next(r.flags + members) - counted
        if task >= tasks:
            break
        if task < pieces:
            begin = task * r.dx_rows
            input_gradient(r, c, begin, member)
            charge(clock, INPUT_GRADIENT)
            continue
        if task < pieces + r.blocks:
            add_input_gradients(r, c, task - pieces)
        elif task < pieces + blocks:
            task -= pieces + r.blocks
            add_recurrent_gradient(r, c, task // r.blocks, task % r.blocks)
        else:
            add_projection_gradient(r, c, task - pieces - blocks)
        charge(clock, WEIGHT_GRADIENTS)
    return counted + tasks + members  # each found once that nothing was left


# -- gradients of all steps ----------------------------------------------------------------------


cdef void table_gradient(const Bptt *r, Py_ssize_t begin, int member) noexcept nogil:
    """The gradient of some rows of the table."""
    cdef const rk_window *window = &r.cell.input
    cdef char *tile = r.dx_tile + member * max(r.dx_rows, DX_ROWS) * r.dx_pitch * r.item
    cdef rk_product p = through(r, window, r.input_transposed)
    cdef Py_ssize_t row, rows = min(DX_ROWS, r.table_rows - begin)
    p.rows = rows
    p.a, p.a_row = r.table_gradient, r.table_row + begin
    p.a_outer = r.table_rows * window.slots * r.units
    p.c, p.c_row = tile, r.dx_row
    through_columns(r, window, &p, 0, vectors_of(r, r.I))
    for row in range(rows):
        memcpy(
            r.dtable + (
                begin + row if r.dtable_at == NULL else r.dtable_at[begin + row]
            ) * r.dtable_row * r.item,
            tile + row * r.dx_pitch * r.item,
            r.I * r.item,
        )


cdef void add_constant_gradient(const Bptt *r, Py_ssize_t block) noexcept nogil:
    """One unit block of dW_ih where x does not change: its rows with the sums over their steps."""
    cdef const rk_window *window = &r.cell.input
    cdef rk_product p = block_gradient(r, window, r.input_gradient, block, r.I)
    cdef Py_ssize_t width = window.slots * r.units, last = r.table_rows - 1
    p.outer, p.inner = 1, r.table_rows
    p.a = r.x + last * r.x_time * r.item
    p.b = r.table_gradient + (block * r.table_rows + last) * width * r.item
    p.a_outer = p.b_outer = 0
    p.a_inner, p.b_inner = -r.x_time, -width
    p.a_row, p.c_row = r.flat_a, r.input_c
    p.init, p.init_block = r.zeros, 0
    r.kernels.product(&p)


cdef void finish_gradients(
    const Bptt *r, Py_ssize_t counted, int members, int member, Clock *clock
) noexcept nogil:
    cdef Py_ssize_t task, tasks = 0
    if r.finish and r.dtable != NULL:
        tasks = (r.table_rows + DX_ROWS - 1) // DX_ROWS
    elif r.finish and r.constant:
        tasks = r.blocks
    while True:
        task = rk_next(r.flags + members) - counted
        if task >= tasks:
            break
        if r.constant:
            add_constant_gradient(r, task)
            charge(clock, WEIGHT_GRADIENTS)
        else:
            table_gradient(r, task * DX_ROWS, member)
            charge(clock, INPUT_GRADIENT)
    if r.dx != NULL and r.clears:
        clear_ends(
            r.dx, r.dx_time, r.dx_batch, r.dx_from, r.item, r.I, r.start, r.length, 0, r.N,
            r.steps_of_x, members, member,
        )
        charge(clock, INPUT_GRADIENT)


cdef inline void meet_all(const Bptt *r, int members, int member, Clock *clock) noexcept nogil:
    if members > 1:
        rk_meet(r.flags, members, member)
        charge(clock, WAITING)


cdef void run_member(const Bptt *r, int members, int member) noexcept nogil:
    cdef unsigned long long saved = fp_enter()
    cdef Py_ssize_t past = r.T, counted = 0, begin
    cdef Clock clock = start_clock(r.spent, member)
    cdef Chunk c
    cdef Share s
    if r.sums_bytes > 0:  # read when all have done some steps, and met
        begin = part(r.sums_bytes, member, members)
        memset(r.table_gradient + begin, 0, part(r.sums_bytes, member + 1, members) - begin)
    while past > 0:
        c = chunk_before(r, past)
        if r.alive != NULL:
            if member == 0:
                list_rows(r, &c)
            meet_all(r, members, member, &clock)
        s = share_of(r, &c, members, member, &clock)
        steps_back(r, &s, &c)
        charge(&clock, LOOP)
        meet_all(r, members, member, &clock)
        counted = share_gradients(r, &c, counted, members, member, &clock)
        # the next chunk's dgates go where these are
        meet_all(r, members, member, &clock)
        past = c.t0
    finish_gradients(r, counted, members, member, &clock)
    fp_leave(saved)

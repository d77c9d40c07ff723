"""Backpropagation through time: every step of one layer and direction, from the last.

Time goes in chunks. Within one, a thread takes a tile of batch rows back through the steps:
what arrives at h_t is completed and clipped, the cell turns it into the gradients of its
pre-activations, and one product carries those to h_{t-1}. While the chunk's dgates are in
cache, the weight gradients are long products over all its rows, shared between threads by
what they write, so that no sum depends on the number of threads. Rows are summed from the
last step and row to the first, so that none depends on the length of a chunk. Where rows differ
in length or have resets (rnnkernel/_sequence.py), a step takes those that are alive.
"""

from cython.parallel cimport prange
from libc.string cimport memcpy, memset

import numpy as np

from rnnkernel._forward cimport real
from rnnkernel._kernels cimport (
    RK_TRANSPOSED_VECTORS,
    fp_enter,
    fp_leave,
    rk_arrival,
    rk_cell,
    rk_kernels,
    rk_lookup,
    rk_product,
    rk_row_sums,
    rk_step_backward,
    rk_window,
)
from rnnkernel._packing cimport PackedGradients, PackedWeights, address
from rnnkernel._rows cimport any_set, cells_after_reset, clear_ends, clear_rows

from rnnkernel._forward import batch_tiles, ragged_tiles, team_size
from rnnkernel._memory import aligned_empty, aligned_zeros, tile_pitch

# Rows (t, n) of a chunk: a long enough sum for the weight gradients' tiles, short enough that
# its dgates stay in cache.
cdef Py_ssize_t CHUNK_ROWS = 256
# Rows of dx in one piece of work.
cdef Py_ssize_t DX_ROWS = 48
# Columns of x and h side by side in a group: what a tile of the weight gradients broadcasts.
cdef enum:
    GROUP = 8


cdef struct Run:
    const rk_kernels *kernels
    const rk_cell *cell
    Py_ssize_t T, N, I, H, P, item, units, blocks
    Py_ssize_t chunk_rows               # the most rows in a chunk
    Py_ssize_t rows                     # rows in this one: every step's, the first step's first
    Py_ssize_t *first                   # by step of the chunk: its first row
    Py_ssize_t *dgates_row              # by step and position: the row's place in dgates
    Py_ssize_t *tile_chunk_row          # likewise in tiles (rows of the chunk, pitch)
    Py_ssize_t *dx_at                   # by row: its place in dx, from the chunk's first step on
    Py_ssize_t *group_row               # by step and position: the row's place in a group
    const char *x                       # x[t, n, :] at t * x_time + x_row[n], contiguous
    Py_ssize_t x_time
    const Py_ssize_t *x_row
    const char *y                       # likewise
    Py_ssize_t y_time
    const Py_ssize_t *y_row
    const char *h0                      # (N, P) contiguous
    const Py_ssize_t *h0_row
    const char *gates                   # [t][block][N][memory slots][U], or NULL
    Py_ssize_t gates_time, gates_block
    const char *c0                      # [block][N][U]
    const char *peepholes
    double cell_clip
    Py_ssize_t gradient_slots           # of a row of dgates
    const char *dy                      # likewise, or NULL
    Py_ssize_t dy_time, dy_unit
    const Py_ssize_t *dy_row
    double limit, norm_limit
    double *dh_norm                     # (T, N) or NULL
    double *dc_norm
    unsigned char *clipped
    char *dh                            # tiles (N, pitch)
    char *dc
    char *dearly
    Py_ssize_t pitch
    const Py_ssize_t *tile_row
    char *dgates                        # [block][rows of the chunk][gradient slots][U]
    Py_ssize_t dgates_block
    const Py_ssize_t *flat_row          # by row: its place in dgates
    char *early                       # (rows of the chunk, pitch), phase 1's operand
    const char **recurrent_transposed
    const char *input_transposed
    const char *zeros                   # a block of them
    Py_ssize_t hidden_columns, hidden_last, input_columns, input_last
    const char *projection_transposed   # NULL without projection, as what follows
    Py_ssize_t projection_rows, cell_columns, cell_last
    char *projected_dh                  # (rows of the chunk, pitch): dL/dh_t of each row
    char *projection_gradient
    const Py_ssize_t *projection_c
    char *dx                            # dx[t, n, :], contiguous in the last, or NULL
    Py_ssize_t dx_time, dx_batch, dx_pitch
    char *dx_tile                       # (rows of the chunk, dx_pitch)
    const Py_ssize_t *dx_row
    char *bias_gradient                 # packed, as in PackedGradients
    char *input_gradient
    char **recurrent_gradient
    char *x_groups                      # [I / GROUP][rows of the chunk][GROUP]; NULL if one-hot
    char *h_groups                      # likewise h_{t-1}
    Py_ssize_t group                    # from one group to the next
    const Py_ssize_t *group_a           # rows of the weight gradients: inputs or units, in groups
    const Py_ssize_t *tile_a            # or in a tile
    const Py_ssize_t *input_c
    const Py_ssize_t **hidden_c         # by phase
    # rows that differ, or NULL
    const Py_ssize_t *alive             # (T): how many rows have each step, the first ones
    const Py_ssize_t *position          # by batch row
    const Py_ssize_t *dx_from           # by position
    const unsigned char *reset          # (T, N)
    const unsigned char *resets         # (T): whether any row
    char *c_reset                       # [block][N][U]
    char *h_reset                       # (N, pitch)
    # x as rows of a table, or NULL
    const Py_ssize_t *index             # row of step t: index[t * index_time + index_row[n]]
    Py_ssize_t index_time
    const Py_ssize_t *index_row
    Py_ssize_t table_rows
    char *table_gradient                # [block][table rows][gates][U]: sums of dgates
    Py_ssize_t *table_at                # by row of the chunk: its place there
    const Py_ssize_t *table_row         # by row of the table: likewise
    char *dtable                        # (table rows, dx_pitch), or NULL


cdef void through_weights(
    const Run *r, const rk_window *window, const char *weights, Py_ssize_t columns,
    Py_ssize_t last, const char *dgates, const Py_ssize_t *dgates_row, Py_ssize_t dgates_block,
    Py_ssize_t rows, char *out, const Py_ssize_t *out_row, bint add,
) noexcept nogil:
    """out (+)= dgates W over one window, for some rows, given by their offsets.

    `dgates` has the window's slots; `weights` are transposed panels, `columns` blocks with `last`
    vectors in the last.
    """
    cdef rk_product p
    p.rows = rows
    p.blocks = columns
    p.vectors = RK_TRANSPOSED_VECTORS
    p.last_vectors = last
    p.outer = r.blocks
    p.inner = window.slots * r.units
    p.a = dgates
    p.a_row = dgates_row
    p.a_outer = dgates_block
    p.a_inner = 1
    p.b = weights
    p.b_inner = RK_TRANSPOSED_VECTORS * r.kernels.lanes
    p.b_outer = p.inner * p.b_inner
    p.b_block = p.outer * p.b_outer
    p.c = out
    p.c_row = out_row
    p.c_block = p.b_inner
    p.init = NULL
    if not add:
        p.init = r.zeros
    p.init_block = 0
    if window.slots > 1:
        r.kernels.product(&p)
        return
    # a single slot: the sum ends with the last unit, not with its block
    p.outer = r.blocks - 1
    if p.outer > 0:
        r.kernels.product(&p)
        p.init = NULL
    p.a = <const char *>p.a + p.outer * dgates_block * r.item
    p.b = <const char *>p.b + p.outer * p.b_outer * r.item
    p.inner = r.H - p.outer * r.units
    p.outer = 1
    r.kernels.product(&p)


cdef void carry_back(
    const Run *r, int phase, const Py_ssize_t *dgates_row, Py_ssize_t rows, char *out, bint add
) noexcept nogil:
    """out (+)= dgates W_hh of one phase, for rows of one step and of a tile."""
    cdef const rk_window *window = &r.cell.recurrent[phase]
    through_weights(
        r, window, r.recurrent_transposed[phase], r.hidden_columns, r.hidden_last,
        r.dgates + window.slot * r.units * r.item, dgates_row, r.dgates_block, rows, out,
        r.tile_row, add,
    )


cdef void through_projection(
    const Run *r, const Py_ssize_t *kept_row, Py_ssize_t begin, Py_ssize_t rows
) noexcept nogil:
    """dL/d(o * tanh(c)) = dh W_hr for rows of one step and of a tile; dh is kept for dW_hr."""
    cdef rk_product p
    cdef Py_ssize_t n, tile = begin * r.pitch * r.item
    for n in range(rows):
        memcpy(
            r.projected_dh + kept_row[n] * r.item,
            r.dh + tile + n * r.pitch * r.item,
            r.P * r.item,
        )
    p.rows = rows
    p.blocks, p.vectors, p.last_vectors = r.cell_columns, RK_TRANSPOSED_VECTORS, r.cell_last
    p.outer, p.inner = 1, r.P
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
    r.kernels.product(&p)


cdef void list_rows(Run *r, Py_ssize_t t0, Py_ssize_t steps) noexcept nogil:
    """Where the rows of a chunk lie, in the order that the weight gradients sum them in: by step
    and batch row, so that a ragged batch sums as the padded one does."""
    cdef Py_ssize_t t, n, p, at, row, k = 0
    for t in range(steps):
        r.first[t] = k
        at = k
        for n in range(r.N):
            p = n
            if r.alive != NULL:
                p = r.position[n]
                if p >= r.alive[t0 + t]:
                    continue
            r.dgates_row[at + p] = r.flat_row[k]
            r.tile_chunk_row[at + p] = k * r.pitch
            r.group_row[at + p] = k * GROUP
            r.dx_at[k] = t * r.dx_time
            r.dx_at[k] += n * r.dx_batch if r.alive == NULL else r.dx_from[p]
            if r.index != NULL:
                row = r.index[(t0 + t) * r.index_time + r.index_row[p]]
                r.table_at[k] = row * r.cell.input.slots * r.units
            k += 1
    r.rows = k


cdef Py_ssize_t chunk_before(const Run *r, Py_ssize_t end) noexcept nogil:
    """The first step of the chunk that ends before `end`."""
    cdef Py_ssize_t t = end - 1, rows
    if r.alive == NULL:
        return max(0, end - r.chunk_rows // r.N)
    rows = r.alive[t]
    while t > 0 and rows + r.alive[t - 1] <= r.chunk_rows:
        t -= 1
        rows += r.alive[t]
    return t


cdef void into_groups(
    const Run *r, const char *row, Py_ssize_t columns, char *groups
) noexcept nogil:
    """One row of x or h into its place in every group."""
    cdef Py_ssize_t g, whole = columns // GROUP, step = r.group * r.item
    # lengths that the compiler knows
    if r.item == 4:
        for g in range(whole):
            memcpy(groups + g * step, row + g * (4 * GROUP), 4 * GROUP)
    else:
        for g in range(whole):
            memcpy(groups + g * step, row + g * (8 * GROUP), 8 * GROUP)
    if whole * GROUP < columns:
        g = whole * GROUP
        memcpy(groups + whole * step, row + g * r.item, (columns - g) * r.item)


cdef void keep_operands(
    const Run *r, Py_ssize_t t, Py_ssize_t at, Py_ssize_t begin, Py_ssize_t rows,
    const char *h_prev, const Py_ssize_t *h_prev_row,
) noexcept nogil:
    """x and h_{t-1} of some rows of a step into the chunk's groups: in x and y themselves the rows
    that a tile of the weight gradients goes through would compete for a few sets of L1."""
    cdef Py_ssize_t n, k, x
    for n in range(rows):
        k = r.group_row[at + n] * r.item
        if r.x_groups != NULL:
            x = t * r.x_time + r.x_row[begin + n]
            if r.index != NULL:
                x = r.index[t * r.index_time + r.index_row[begin + n]] * r.x_time
            into_groups(r, r.x + x * r.item, r.I, r.x_groups + k)
        into_groups(r, h_prev + h_prev_row[n] * r.item, r.P, r.h_groups + k)


cdef void states_after_reset(
    const Run *r, const unsigned char *flags, const rk_step_backward *s, char *to
) noexcept nogil:
    """h_{t-1} of a step's rows (rows, pitch), zero for those that begin a new segment."""
    cdef Py_ssize_t n
    for n in range(s.rows):
        if flags[n]:
            memset(to + n * r.pitch * r.item, 0, r.P * r.item)
        else:
            memcpy(
                to + n * r.pitch * r.item,
                <const char *>s.h_prev + s.h_prev_row[n] * r.item,
                r.P * r.item,
            )


cdef void run_rows(
    const Run *r, Py_ssize_t t0, Py_ssize_t steps, Py_ssize_t begin, Py_ssize_t end
) noexcept nogil:
    """The batch rows begin..end back through the steps of a chunk."""
    cdef Py_ssize_t t, at, row_gates = r.cell.memory_slots * r.units
    cdef Py_ssize_t tile = begin * r.pitch * r.item, cells = r.units * r.item
    cdef const unsigned char *flags
    cdef int i, phase
    cdef rk_arrival a
    cdef rk_step_backward s
    cdef unsigned long long saved = fp_enter()
    a.rows = s.rows = end - begin
    a.hidden = s.hidden = r.H
    a.projected = r.P
    a.dh = s.dh = r.dh + tile
    a.dc = s.dc = r.dc + tile if r.cell.states == 2 else NULL
    a.pitch = s.dh_pitch = r.pitch
    a.dy = NULL
    a.dy_row = r.dy_row + begin
    a.dy_unit = r.dy_unit
    a.limit = r.limit
    a.norm_limit = r.norm_limit
    a.dh_norm = a.dc_norm = NULL
    a.clipped = NULL
    s.block_begin = 0
    s.block_end = r.blocks
    s.gates = s.c_prev = NULL
    s.gates_block = r.gates_block
    s.c_prev_row = s.c_prev_block = 0
    s.peepholes = r.peepholes
    s.cell_clip = r.cell_clip
    s.h_row = r.y_row + begin
    s.dgates_block = r.dgates_block
    s.dgates = r.dgates
    s.early = r.early
    s.dearly = r.dearly + tile
    for t in range(t0 + steps - 1, t0 - 1, -1):
        if r.alive != NULL:
            a.rows = s.rows = min(end, r.alive[t]) - begin
            if s.rows <= 0:
                continue
        if r.dy != NULL:
            a.dy = r.dy + t * r.dy_time * r.item
        if r.dh_norm != NULL:
            a.dh_norm = r.dh_norm + t * r.N + begin
            if r.cell.states == 2:
                a.dc_norm = r.dc_norm + t * r.N + begin
            a.clipped = r.clipped + t * r.N + begin
        r.kernels.arrive(&a)

        at = r.first[t - t0] + begin
        s.dgates_row = r.dgates_row + at
        s.early_row = r.tile_chunk_row + at
        if r.gates != NULL:
            s.gates = r.gates + (t * r.gates_time + begin * row_gates) * r.item
        if r.cell.states == 2:
            if t == 0:
                s.c_prev = r.c0 + begin * r.units * r.item
                s.c_prev_row = r.units
                s.c_prev_block = r.N * r.units
            else:
                s.c_prev = r.gates + (
                    (t - 1) * r.gates_time + begin * row_gates + r.cell.slots * r.units
                ) * r.item
                s.c_prev_row = row_gates
                s.c_prev_block = r.gates_block
        s.h = r.y + t * r.y_time * r.item
        if t == 0:
            s.h_prev = r.h0
            s.h_prev_row = r.h0_row + begin
        else:
            s.h_prev = r.y + (t - 1) * r.y_time * r.item
            s.h_prev_row = r.y_row + begin
        flags = NULL
        if r.resets != NULL and r.resets[t] and any_set(r.reset + t * r.N + begin, s.rows):
            flags = r.reset + t * r.N + begin
            states_after_reset(r, flags, &s, r.h_reset + tile)
            s.h_prev = r.h_reset
            s.h_prev_row = r.tile_row + begin
            if r.cell.states == 2:
                cells_after_reset(
                    flags, <const char *>s.c_prev, s.c_prev_row * r.item,
                    s.c_prev_block * r.item, r.c_reset + begin * cells, r.N * cells, cells,
                    s.rows, r.blocks,
                )
                s.c_prev = r.c_reset + begin * cells
                s.c_prev_row = r.units
                s.c_prev_block = r.N * r.units
        keep_operands(r, t, at, begin, s.rows, <const char *>s.h_prev, s.h_prev_row)
        if r.projection_transposed != NULL:
            through_projection(r, s.early_row, begin, s.rows)
        for i in range(r.cell.phases):
            r.cell.backward[i](&s)
            phase = r.cell.phases - 1 - i
            if phase > 0:
                carry_back(r, phase, s.dgates_row, s.rows, r.dearly + tile, False)
            else:
                carry_back(r, phase, s.dgates_row, s.rows, r.dh + tile, r.cell.carries)
        if flags != NULL:
            clear_rows(flags, r.dh + tile, r.pitch * r.item, s.rows)
            if r.cell.states == 2:
                clear_rows(flags, r.dc + tile, r.pitch * r.item, s.rows)
    fp_leave(saved)


cdef void add_outer(
    const Run *r, rk_product *p, const char *a, Py_ssize_t a_row, const char *b
) noexcept nogil:
    """C += A' B over all rows of the chunk, last first; A's lie `a_row` apart."""
    cdef Py_ssize_t b_row = r.gradient_slots * r.units
    p.a = a + (r.rows - 1) * a_row * r.item
    p.b = b + (r.rows - 1) * b_row * r.item
    p.outer, p.inner = 1, r.rows
    p.a_outer = p.b_outer = 0
    p.a_inner, p.b_inner = -a_row, -b_row
    r.kernels.product(p)


cdef void weight_gradients(
    const Run *r, Py_ssize_t t0, Py_ssize_t steps, Py_ssize_t block
) noexcept nogil:
    """Adds a chunk's share of every weight gradient of one unit block."""
    cdef rk_product p
    cdef rk_lookup look
    cdef rk_row_sums sums
    cdef const rk_window *window
    cdef int phase
    cdef Py_ssize_t width, b_row = r.gradient_slots * r.units
    cdef const char *dgates = r.dgates + block * r.dgates_block * r.item
    cdef const char *b
    cdef unsigned long long saved = fp_enter()
    p.blocks = 1
    p.b_block = p.c_block = p.init_block = 0
    p.init = NULL

    window = &r.cell.input
    width = window.slots * r.units
    p.rows = r.I
    p.vectors = p.last_vectors = window.slots * r.cell.unit_vectors
    p.a_row, p.c_row = r.group_a, r.input_c
    p.c = r.input_gradient + block * r.I * width * r.item
    b = dgates + window.slot * r.units * r.item
    if r.x_groups != NULL:
        add_outer(r, &p, r.x_groups, GROUP, b)

    p.rows = r.P
    for phase in range(r.cell.phases):
        window = &r.cell.recurrent[phase]
        width = window.slots * r.units
        p.vectors = p.last_vectors = window.slots * r.cell.unit_vectors
        p.c_row = r.hidden_c[phase]
        p.c = r.recurrent_gradient[phase] + block * r.P * width * r.item
        b = dgates + window.slot * r.units * r.item
        if phase > 0:
            p.a_row = r.tile_a
            add_outer(r, &p, r.early, r.pitch, b)
        else:
            p.a_row = r.group_a
            add_outer(r, &p, r.h_groups, GROUP, b)

    if r.table_gradient != NULL:
        window = &r.cell.input
        width = window.slots * r.units
        look.rows = r.rows
        look.blocks = 1
        look.vectors = look.last_vectors = window.slots * r.cell.unit_vectors
        look.table = r.table_gradient + block * r.table_rows * width * r.item
        look.table_row = r.table_at
        look.c = <char *>dgates + window.slot * r.units * r.item
        look.c_row = r.flat_row
        look.table_block = look.c_block = look.init_block = 0
        look.init = NULL
        r.kernels.scatter(&look)

    sums.rows = r.rows
    sums.vectors = r.gradient_slots * r.cell.unit_vectors
    sums.block_begin, sums.block_end = 0, 1
    sums.dgates = dgates + (sums.rows - 1) * b_row * r.item
    sums.row_stride = -b_row
    sums.dgates_block = 0
    sums.sums = r.bias_gradient + block * b_row * r.item
    r.kernels.row_sums(&sums)
    fp_leave(saved)


cdef void projection_gradient(const Run *r, Py_ssize_t column) noexcept nogil:
    """Adds a chunk's share of one column block of dW_hr."""
    cdef rk_product p
    cdef Py_ssize_t width = RK_TRANSPOSED_VECTORS * r.kernels.lanes, last = (r.rows - 1) * r.pitch
    cdef unsigned long long saved = fp_enter()
    p.rows = r.P
    p.blocks = 1
    p.vectors = p.last_vectors = RK_TRANSPOSED_VECTORS
    if column == r.cell_columns - 1:
        p.vectors = p.last_vectors = r.cell_last
    p.outer, p.inner = 1, r.rows
    p.a = r.projected_dh + last * r.item
    p.a_row = r.tile_a
    p.b = r.early + (last + column * width) * r.item
    p.a_outer = p.b_outer = p.b_block = p.c_block = p.init_block = 0
    p.a_inner = p.b_inner = -r.pitch
    p.c = r.projection_gradient + column * r.P * width * r.item
    p.c_row = r.projection_c
    p.init = NULL
    r.kernels.product(&p)
    fp_leave(saved)


cdef void input_gradient(
    const Run *r, Py_ssize_t t0, Py_ssize_t begin, Py_ssize_t end
) noexcept nogil:
    """dx of the rows begin..end of a chunk."""
    cdef Py_ssize_t row
    cdef unsigned long long saved = fp_enter()
    through_weights(
        r, &r.cell.input, r.input_transposed, r.input_columns, r.input_last,
        r.dgates + r.cell.input.slot * r.units * r.item, r.flat_row + begin, r.dgates_block,
        end - begin, r.dx_tile, r.dx_row + begin, False,
    )
    for row in range(begin, end):
        memcpy(
            r.dx + (t0 * r.dx_time + r.dx_at[row]) * r.item,
            r.dx_tile + row * r.dx_pitch * r.item,
            r.I * r.item,
        )
    fp_leave(saved)


cdef void table_gradient(const Run *r, Py_ssize_t begin) noexcept nogil:
    """The gradient of some rows of the table."""
    cdef unsigned long long saved = fp_enter()
    cdef Py_ssize_t end = min(begin + DX_ROWS, r.table_rows)
    through_weights(
        r, &r.cell.input, r.input_transposed, r.input_columns, r.input_last,
        r.table_gradient, r.table_row + begin,
        r.table_rows * r.cell.input.slots * r.units, end - begin,
        r.dtable + begin * r.dx_pitch * r.item, r.dx_row, False,
    )
    fp_leave(saved)


cdef void share_gradients(
    const Run *r, Py_ssize_t t0, Py_ssize_t steps, Py_ssize_t task
) noexcept nogil:
    """One piece of what follows a chunk: a unit block's weights, a column block's of W_hr, or some
    rows of dx."""
    cdef Py_ssize_t begin
    if task < r.blocks:
        weight_gradients(r, t0, steps, task)
    elif task < r.blocks + r.cell_columns:
        projection_gradient(r, task - r.blocks)
    else:
        begin = (task - r.blocks - r.cell_columns) * DX_ROWS
        input_gradient(r, t0, begin, min(begin + DX_ROWS, r.rows))


def sums_of_dgates(PackedWeights w, Py_ssize_t table_rows):
    """Zeros for the sum of dgates of each row of a table, flat."""
    return aligned_zeros(w.blocks * table_rows * w.cell.input.slots * w.units, w.dtype)


def backward(
    PackedWeights w,
    PackedGradients gradients,
    const real[:, :, :] x,
    const real[:, ::1] h0,
    c0,
    const real[:, :, :] y,
    reserve,
    dy,
    dh_n,
    dc_n,
    double limit,
    double norm_limit,
    flow,
    dx,
    real[:, :] dh0,
    dc0,
    int threads,
    rows=None,
    index=None,
    dtable=None,
    sums=None,
    bint finish=True,
):
    """BPTT over what `forward` left in `y` and `reserve`.

    `dy` (T, N, P), `dh_n` (N, P) and `dc_n` (N, H) may be None; `flow` is None or three arrays
    (T, N): norms of dh and dc (float64) and rows clipped (uint8). Writes `dx` (T, N, I; or None),
    `dh0` and `dc0`, and adds to `gradients`. With `rows` (a Rows) the norms are by own step and
    position.

    With `index` x is a table, as forward has it. W_ih's gradient is summed over the steps as for
    the x that the table stands for, with its bits; for one-hot vectors these sums are rows of
    dgates. `dtable` (R, I), or None, receives the gradient of the table. A sequence in segments
    adds to one `sums_of_dgates`, and only the last call is to `finish`.
    """
    cdef Run r
    cdef Py_ssize_t i, t0, past, steps, tiles, tasks
    cdef int team, phase
    cdef bint one_hot = index is not None and x.shape[0] == 0
    r.T, r.N, r.I, r.H, r.P = (
        y.shape[0], y.shape[1], x.shape[2], w.hidden_size, w.projected_size
    )
    if rows is not None and len(rows.alive) == 0:
        if dx is not None:
            dx[...] = 0
        r.T = 0
    if r.T == 0 or r.N == 0:
        np.asarray(dh0)[...] = 0 if dh_n is None else dh_n
        if dc0 is not None:
            dc0[...] = 0 if dc_n is None else dc_n
        if dtable is not None:
            dtable[...] = 0
        return
    r.kernels, r.cell = w.kernels, w.cell
    r.item, r.units, r.blocks = w.item, w.units, w.blocks
    r.x = <const char *>&x[0, 0, 0]
    r.x_time = x.strides[0] // r.item
    cdef Py_ssize_t x_batch = x.strides[1] // r.item, y_batch = y.strides[1] // r.item
    r.y = <const char *>&y[0, 0, 0]
    r.y_time = y.strides[0] // r.item
    r.h0 = <const char *>&h0[0, 0]
    r.c0 = <const char *><Py_ssize_t>address(c0) if c0 is not None else NULL
    r.peepholes, r.cell_clip = w.peepholes, w.cell_clip
    r.gradient_slots = w.gradient_slots
    r.gates = <const char *><Py_ssize_t>address(reserve) if r.cell.keeps_gates else NULL
    r.gates_block = r.N * r.cell.memory_slots * r.units
    r.gates_time = r.blocks * r.gates_block
    r.recurrent_transposed = <const char **>w.recurrent_transposed
    r.input_transposed = w.input_transposed
    r.hidden_columns, r.hidden_last = w.column_blocks(r.P), w.column_last_vectors(r.P)
    r.input_columns, r.input_last = w.column_blocks(r.I), w.column_last_vectors(r.I)
    r.limit, r.norm_limit = limit, norm_limit

    cdef const real[:, :, :] dy_view
    r.dy = NULL
    r.dy_time = r.dy_unit = 0
    cdef Py_ssize_t dy_batch = 0
    if dy is not None:
        dy_view = dy
        r.dy = <const char *>&dy_view[0, 0, 0]
        r.dy_time, dy_batch, r.dy_unit = (
            dy_view.strides[0] // r.item, dy_view.strides[1] // r.item, dy_view.strides[2] // r.item
        )
    cdef double[:, ::1] dh_norm, dc_norm
    cdef unsigned char[:, ::1] clipped
    r.dh_norm = r.dc_norm = NULL
    r.clipped = NULL
    if flow is not None:
        dh_norm, dc_norm, clipped = flow
        r.dh_norm, r.dc_norm, r.clipped = &dh_norm[0, 0], &dc_norm[0, 0], &clipped[0, 0]
    cdef real[:, :, :] dx_view
    r.dx = NULL
    r.dx_time = r.dx_batch = 0
    if dx is not None:
        dx_view = dx
        r.dx = <char *>&dx_view[0, 0, 0]
        r.dx_time, r.dx_batch = dx_view.strides[0] // r.item, dx_view.strides[1] // r.item

    # rows that differ
    cdef Py_ssize_t count = r.T * r.N, steps_of_x = r.T
    r.alive = NULL
    r.resets = r.reset = NULL
    batch = np.arange(r.N)
    x_row, y_row, dy_row = batch * x_batch, batch * y_batch, batch * dy_batch
    h0_row = batch * r.P
    if rows is not None:
        r.T = len(rows.alive)
        count = rows.alive.sum()
        r.alive = <Py_ssize_t *><Py_ssize_t>address(rows.alive)
        order, start = rows.order, rows.start
        y_row = order * y_batch + start * r.y_time
        dy_row = order * dy_batch + start * r.dy_time
        h0_row = order * r.P
        x_row = order * x_batch + start * r.x_time
        dx_from = order * r.dx_batch + start * r.dx_time
        r.dx_from = <Py_ssize_t *><Py_ssize_t>address(dx_from)
        position = np.empty_like(order)
        position[order] = batch
        r.position = <Py_ssize_t *><Py_ssize_t>address(position)
        if rows.reset is not None:
            r.reset = <unsigned char *><Py_ssize_t>address(rows.reset)
            r.resets = <unsigned char *><Py_ssize_t>address(rows.resets)

    # tiles
    r.pitch = tile_pitch(r.blocks * r.units, r.item)
    dh, dc, dearly = aligned_zeros(3 * r.N * r.pitch, w.dtype).reshape(3, r.N, r.pitch)
    if dh_n is not None:
        dh[:, : r.P] = dh_n if rows is None else dh_n[order]
    if dc_n is not None:
        dc[:, : r.H] = dc_n if rows is None else dc_n[order]
    r.dh = <char *><Py_ssize_t>address(dh)
    r.dc = <char *><Py_ssize_t>address(dc)
    r.dearly = <char *><Py_ssize_t>address(dearly)

    # the chunk
    r.chunk_rows = min(count, max(CHUNK_ROWS, r.N))
    cdef Py_ssize_t most = r.chunk_rows, slot_row = r.gradient_slots * r.units
    r.dgates_block = tile_pitch(most * slot_row, r.item)
    # where a block is several vectors the cell leaves out those past H, and products do not
    allocate = aligned_zeros if r.cell.unit_vectors > 1 else aligned_empty
    dgates = allocate(r.blocks * r.dgates_block, w.dtype)
    r.dgates = <char *><Py_ssize_t>address(dgates)
    two_phases = r.cell.phases > 1 or w.projection != NULL
    early = aligned_empty(most * r.pitch, w.dtype) if two_phases else None
    r.early = <char *><Py_ssize_t>address(early) if two_phases else NULL
    r.cell_columns = 0
    r.projection_transposed = w.projection_transposed
    if w.projection != NULL:
        r.cell_columns, r.cell_last = w.column_blocks(r.H), w.column_last_vectors(r.H)
        r.projection_rows, r.projection_gradient = w.projected_rows(), gradients.projection
        projected_dh = aligned_empty(most * r.pitch, w.dtype)
        r.projected_dh = <char *><Py_ssize_t>address(projected_dh)
        projection_c = np.arange(r.P) * (RK_TRANSPOSED_VECTORS * r.kernels.lanes)
        r.projection_c = <Py_ssize_t *><Py_ssize_t>address(projection_c)
    r.dx_pitch = tile_pitch(r.input_columns * RK_TRANSPOSED_VECTORS * r.kernels.lanes, r.item)
    dx_tile = aligned_empty(most * r.dx_pitch if dx is not None else 0, w.dtype)
    r.dx_tile = <char *><Py_ssize_t>address(dx_tile)
    # a pitch that spreads a row's places over the sets of L1
    r.group = tile_pitch(most * GROUP, r.item)
    x_groups = aligned_empty((r.I + GROUP - 1) // GROUP * r.group, w.dtype)
    h_groups = aligned_empty((r.P + GROUP - 1) // GROUP * r.group, w.dtype)
    r.x_groups = <char *><Py_ssize_t>address(x_groups)
    r.h_groups = <char *><Py_ssize_t>address(h_groups)
    r.index = NULL
    r.table_gradient = r.dtable = NULL
    if index is not None:
        r.table_rows = r.I if one_hot else x.shape[0]
        width = r.cell.input.slots * r.units
        if one_hot:
            r.table_gradient = gradients.input
            r.x_groups = NULL
        if dtable is not None:
            if sums is None:
                sums = sums_of_dgates(w, r.table_rows)
            r.table_gradient = <char *><Py_ssize_t>address(sums)
            wide_dtable = aligned_empty(r.table_rows * r.dx_pitch, w.dtype)
            r.dtable = <char *><Py_ssize_t>address(wide_dtable)
        table_row = (np.arange(r.table_rows) * width).astype(np.intp)
        r.table_row = <Py_ssize_t *><Py_ssize_t>address(table_row)
        r.index = <Py_ssize_t *><Py_ssize_t>address(index)
        r.index_time = index.strides[0] // sizeof(Py_ssize_t)
        index_row = rows.order * (index.strides[1] // sizeof(Py_ssize_t))
        index_row = (index_row + rows.start * r.index_time).astype(np.intp)
        r.index_row = <Py_ssize_t *><Py_ssize_t>address(index_row)
    zeros = aligned_zeros(RK_TRANSPOSED_VECTORS * r.kernels.lanes, w.dtype)
    r.zeros = <const char *><Py_ssize_t>address(zeros)
    r.bias_gradient, r.input_gradient = gradients.bias, gradients.input
    r.recurrent_gradient = gradients.recurrent

    # where rows lie
    chunk, columns = np.arange(most), np.arange(max(r.I, r.P))
    offsets = [
        array.astype(np.intp)
        for array in (
            y_row,
            h0_row,
            dy_row,
            batch * r.pitch,
            chunk * slot_row,
            # of a chunk's rows or a table's, which may be more than a short segment has
            np.arange(max(most, DX_ROWS)) * r.dx_pitch,
            x_row,
            np.arange(r.I) * (r.cell.input.slots * r.units),
            np.arange(r.P),
            columns // GROUP * r.group + columns % GROUP,
        )
    ]
    r.y_row = <Py_ssize_t *><Py_ssize_t>address(offsets[0])
    r.h0_row = <Py_ssize_t *><Py_ssize_t>address(offsets[1])
    r.dy_row = <Py_ssize_t *><Py_ssize_t>address(offsets[2])
    r.tile_row = <Py_ssize_t *><Py_ssize_t>address(offsets[3])
    r.flat_row = <Py_ssize_t *><Py_ssize_t>address(offsets[4])
    r.dx_row = <Py_ssize_t *><Py_ssize_t>address(offsets[5])
    r.x_row = <Py_ssize_t *><Py_ssize_t>address(offsets[6])
    r.input_c = <Py_ssize_t *><Py_ssize_t>address(offsets[7])
    r.tile_a = <Py_ssize_t *><Py_ssize_t>address(offsets[8])
    r.group_a = <Py_ssize_t *><Py_ssize_t>address(offsets[9])
    cdef const Py_ssize_t *hidden_c[2]
    for phase in range(r.cell.phases):
        offsets.append((np.arange(r.P) * (r.cell.recurrent[phase].slots * r.units)).astype(np.intp))
        hidden_c[phase] = <Py_ssize_t *><Py_ssize_t>address(offsets[10 + phase])
    r.hidden_c = hidden_c
    lists = np.empty((6, most), np.intp)
    cdef Py_ssize_t[:, ::1] listed = lists
    r.first, r.dgates_row = &listed[0, 0], &listed[1, 0]
    r.tile_chunk_row, r.dx_at = &listed[2, 0], &listed[3, 0]
    r.group_row, r.table_at = &listed[4, 0], &listed[5, 0]

    if rows is None:
        bounds = batch_tiles(r.N, r.kernels.full_rows, threads)
        list_rows(&r, 0, most // r.N)
    else:
        bounds = ragged_tiles(rows.lengths, threads)
        c_reset = aligned_empty(
            r.blocks * r.N * r.units if r.resets != NULL and c0 is not None else 0, w.dtype
        )
        r.c_reset = <char *><Py_ssize_t>address(c_reset)
        h_reset = aligned_empty(r.N * r.pitch if r.resets != NULL else 0, w.dtype)
        r.h_reset = <char *><Py_ssize_t>address(h_reset)
    cdef const Py_ssize_t[::1] bound = bounds
    tiles = bound.shape[0] - 1
    team = team_size(
        6.0 * r.cell.gates * r.H * (r.I + r.P) * count, max(tiles, r.blocks), threads
    )
    t0 = r.T
    with nogil:
        while t0 > 0:
            past = t0
            t0 = chunk_before(&r, past)
            steps = past - t0
            if r.alive != NULL:
                list_rows(&r, t0, steps)
            r.rows = r.first[steps - 1] + (r.N if r.alive == NULL else r.alive[past - 1])
            tasks = r.blocks + r.cell_columns
            if r.dx != NULL:
                tasks = tasks + (r.rows + DX_ROWS - 1) // DX_ROWS
            if team == 1:
                for i in range(tiles):
                    run_rows(&r, t0, steps, bound[i], bound[i + 1])
                for i in range(tasks):
                    share_gradients(&r, t0, steps, i)
            else:
                for i in prange(tiles, num_threads=team, schedule="static", chunksize=1):
                    run_rows(&r, t0, steps, bound[i], bound[i + 1])
                for i in prange(tasks, num_threads=team, schedule="dynamic", chunksize=1):
                    share_gradients(&r, t0, steps, i)
        tasks = 0
        if finish and r.dtable != NULL:
            tasks = (r.table_rows + DX_ROWS - 1) // DX_ROWS
        if team == 1:
            for i in range(tasks):
                table_gradient(&r, i * DX_ROWS)
        else:
            for i in prange(tasks, num_threads=team, schedule="static"):
                table_gradient(&r, i * DX_ROWS)

    if dtable is not None and finish:
        dtable[...] = wide_dtable.reshape(r.table_rows, r.dx_pitch)[:, : r.I]
    if rows is None:
        np.asarray(dh0)[...] = dh[:, : r.P]
        if dc0 is not None:
            dc0[...] = dc[:, : r.H]
        return
    np.asarray(dh0)[order] = dh[:, : r.P]
    if dc0 is not None:
        dc0[order] = dc[:, : r.H]
    if r.dx != NULL and rows.whole:
        for i in range(r.N):
            clear_ends(
                r.dx + r.dx_from[i] * r.item, r.dx_time * r.item, r.I * r.item, rows.start[i],
                rows.lengths[i], steps_of_x,
            )

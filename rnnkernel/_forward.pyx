"""The forward time loop: every step of one layer and direction.

The loop knows time, batch tiles and threads, and nothing of gates: a cell is a row of the C
table. A thread takes a tile of batch rows through all steps without waiting for another. Where
rows differ in length or have resets they go by position and own step (rnnkernel/_sequence.py),
and a step takes those that are alive.
"""

from cython.parallel cimport prange

import numpy as np

from rnnkernel._kernels cimport (
    RK_WHOLE,
    fp_enter,
    fp_leave,
    rk_lookup,
    rk_product,
    rk_small_product,
    rk_step,
    usable_threads,
)
from rnnkernel._packing cimport PackedWeights, address
from rnnkernel._rows cimport any_set, cells_after_reset, clear_ends, clear_rows

from rnnkernel._memory import aligned_empty, aligned_zeros, tile_pitch


# Rows (t, n) that are projected at once: enough to use a panel of W_ih well, few enough that
# the gates of inference stay in L2.
cdef Py_ssize_t PROJECTED_ROWS = 128

# Rows of a table that are projected in one piece of work.
cdef Py_ssize_t TABLE_ROWS = 64

# Below this much arithmetic a call stays on one thread: opening a team costs more.
cdef double SERIAL_FLOPS = 400e3


cdef inline char *gates_at(const Run *r, Py_ssize_t t) noexcept nogil:
    return r.gates + (t % r.gates_steps) * r.gates_time * r.item


cdef Py_ssize_t list_rows(
    const Run *r, Py_ssize_t t0, Py_ssize_t steps, Py_ssize_t begin, Py_ssize_t end
) noexcept nogil:
    """Where the rows lie that are alive in some steps, in x or its table, and in the gates; how
    many."""
    cdef Py_ssize_t t, n, row, k = begin * r.chunk, row_gates = r.cell.memory_slots * r.units
    for t in range(steps):
        for n in range(begin, min(end, r.alive[t0 + t])):
            if r.index != NULL:
                row = r.index[(t0 + t) * r.index_time + r.index_row[n]]
                r.chunk_x[k] = row * r.cell.input.slots * r.units
            else:
                r.chunk_x[k] = t * r.x_time + r.x_row[n]
            r.chunk_gates[k] = t * r.gates_time + n * row_gates
            k += 1
    return k - begin * r.chunk


cdef void input_product(const Run *r, const rk_product *p) noexcept nogil:
    """A product with W_ih, however it is stored."""
    cdef rk_small_product small
    if r.storage == RK_WHOLE:
        r.kernels.product(p)
        return
    small.product = p[0]
    small.storage = r.storage
    small.scale = r.input_scale
    small.scale_block = p.b_inner
    r.kernels.small_product(&small)


cdef void look_up(const Run *r, const rk_product *p) noexcept nogil:
    """What this product would give, from the table."""
    cdef rk_lookup look
    look.rows, look.blocks = p.rows, p.blocks
    look.vectors, look.last_vectors = p.vectors, p.last_vectors
    look.table, look.table_row = r.table, p.a_row
    look.table_block = r.table_rows * r.cell.input.slots * r.units
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
    input_product(r, &p)
    fp_leave(saved)


cdef void project(
    const Run *r, Py_ssize_t t, Py_ssize_t steps, Py_ssize_t begin, Py_ssize_t end
) noexcept nogil:
    """bias + W_ih x into the gates of some steps and batch rows."""
    cdef rk_product p
    cdef int first = r.cell.input.slot, past = first + r.cell.input.slots
    cdef Py_ssize_t slot_width = r.units
    p.rows = steps * (end - begin)
    if r.alive != NULL:
        p.rows = list_rows(r, t, steps, begin, end)
    p.blocks = r.blocks
    p.vectors = r.cell.input.slots * r.cell.unit_vectors
    p.last_vectors = r.input_last_vectors
    p.outer = 1
    p.inner = r.I
    p.a = r.x + t * r.x_time * r.item
    p.a_row = r.chunk_x + begin * r.chunk
    p.a_outer = 0
    p.a_inner = r.x_unit
    p.b = r.input
    p.b_block = r.I * r.cell.input.slots * slot_width
    p.b_outer = 0
    p.b_inner = r.cell.input.slots * slot_width
    p.c = gates_at(r, t) + first * slot_width * r.item
    p.c_row = r.chunk_gates + begin * r.chunk
    p.c_block = r.gates_block
    p.init = r.bias + first * slot_width * r.item
    p.init_block = r.cell.slots * slot_width
    if r.index != NULL:
        look_up(r, &p)
    else:
        input_product(r, &p)
    if past < r.cell.slots:
        # slots that only the recurrent product adds to
        p.vectors = (r.cell.slots - past) * r.cell.unit_vectors
        p.c = gates_at(r, t) + past * slot_width * r.item
        p.init = r.bias + past * slot_width * r.item
        r.kernels.fill(&p)


cdef void enter_segments(
    const Run *r, Py_ssize_t t, Py_ssize_t begin, rk_step *s
) noexcept nogil:
    """Before a step: zero states for the rows that begin a new segment there."""
    cdef const unsigned char *flags = r.reset + t * r.N + begin
    cdef Py_ssize_t bytes_of_row = r.units * r.item
    if not any_set(flags, s.rows):
        return
    clear_rows(flags, <char *>s.h_prev, r.pitch * r.item, s.rows)
    if r.cell.states == 2:
        cells_after_reset(
            flags, <const char *>s.c_prev, s.c_prev_row * r.item, s.c_prev_block * r.item,
            r.c_reset + begin * bytes_of_row, r.N * bytes_of_row, bytes_of_row, s.rows, r.blocks,
        )
        s.c_prev = r.c_reset + begin * bytes_of_row
        s.c_prev_row = r.units
        s.c_prev_block = r.N * r.units


cdef void run_rows(const Run *r, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """Steps first..T of the batch rows begin..end."""
    cdef Py_ssize_t t, t0, steps, n, row_gates = r.cell.memory_slots * r.units
    cdef Py_ssize_t tile = r.N * r.pitch * r.item
    cdef int phase
    cdef rk_step s
    cdef unsigned long long saved = fp_enter()
    s.rows = end - begin
    s.hidden, s.projected = r.H, r.P
    s.block_begin = 0
    s.block_end = r.blocks
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
        project(r, t0, steps, begin, end)
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
                enter_segments(r, t, begin, &s)
            s.operand = s.h_prev
            for phase in range(r.cell.phases):
                s.weights = r.recurrent[phase]
                s.scale = r.recurrent_scale[phase]
                if phase + 1 < r.cell.phases or r.projection != NULL:
                    s.h = r.early + begin * r.pitch * r.item
                else:
                    s.h = r.h + ((t + 1) & 1) * tile + begin * r.pitch * r.item
                r.cell.forward[phase](&s)
                s.operand = s.h
            if r.projection != NULL:
                s.weights = r.projection
                s.h = r.h + ((t + 1) & 1) * tile + begin * r.pitch * r.item
                r.cell.project(&s)
        t0 += steps
    if r.clears:
        for n in range(begin, end):
            clear_ends(
                r.y + r.y_row[n] * r.item, r.y_time * r.item, r.P * r.item, r.start[n],
                r.length[n], r.y_steps,
            )
    fp_leave(saved)


def ragged_tiles(lengths, int threads):
    """Bounds of one tile of rows a thread with nearly equal sums of lengths."""
    steps = np.cumsum(lengths)
    tiles = max(1, min(threads, len(lengths)))
    shares = lengths.sum() * np.arange(1, tiles) / tiles
    # a row goes to the tile that has more of it
    inner = np.searchsorted(steps - lengths / 2, shares)
    return np.concatenate([[0], inner, [len(lengths)]]).astype(np.intp)


def batch_tiles(Py_ssize_t N, Py_ssize_t full_rows, int threads):
    """Bounds of one tile of rows a thread, of whole row tiles where there are enough."""
    cdef Py_ssize_t tiles = max(1, min(threads, N))
    if N >= tiles * full_rows * 2:
        units = (N + full_rows - 1) // full_rows
        bounds = [min(N, full_rows * (units * i // tiles)) for i in range(tiles + 1)]
    else:
        bounds = [N * i // tiles for i in range(tiles + 1)]
    return np.array(bounds, np.intp)


def team_size(double flops, Py_ssize_t tiles, int threads):
    """How many threads are worth opening for so much arithmetic in so many pieces."""
    if flops < SERIAL_FLOPS:
        return 1
    return max(1, min(usable_threads(threads), tiles))


cdef void set_weights(Run *r, PackedWeights w, Py_ssize_t N) noexcept:
    """What follows from the weights and the size of the batch."""
    r.kernels, r.cell = w.kernels, w.cell
    r.N, r.I, r.H, r.P = N, w.input_size, w.hidden_size, w.projected_size
    r.item, r.units, r.blocks = w.item, w.units, w.blocks
    r.bias, r.input = w.bias, w.input
    r.recurrent = <const char **>w.recurrent
    r.storage, r.input_scale = w.storage, w.input_scale
    r.recurrent_scale = <const char **>w.recurrent_scale
    r.projection, r.peepholes, r.cell_clip = w.projection, w.peepholes, w.cell_clip
    r.input_last_vectors = w.input_last_vectors()
    r.gates_block = N * r.cell.memory_slots * r.units
    r.gates_time = r.blocks * r.gates_block
    r.pitch = tile_pitch(r.blocks * r.units, r.item)
    # rows are alike; forward changes it
    r.alive = NULL
    r.clears = False
    r.reset = r.resets = NULL
    r.index = NULL


def pack_cells(PackedWeights w, c):
    """(N, H) cell states as [block][N][U], zero past H."""
    N, H = c.shape
    packed = aligned_zeros(w.blocks * N * w.units, w.dtype)
    padded = np.zeros((N, w.blocks * w.units), w.dtype)
    padded[:, :H] = c
    by_block = padded.reshape(N, w.blocks, w.units).transpose(1, 0, 2)
    packed.reshape(w.blocks, N, w.units)[...] = by_block
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


def forward(
    PackedWeights w,
    const real[:, :, :] x,
    const real[:, :] h0,
    c0,
    real[:, :, :] y,
    real[:, :] h_n,
    c_n,
    reserve,
    int threads,
    rows=None,
    index=None,
):
    """Runs T steps and writes y (T, N, P; units contiguous), h_n (N, P) and, for a cell with a
    cell state, c_n (N, H).

    `c0` is what `pack_cells` returns, or None. `reserve`, from `allocate_reserve`, receives
    what backward needs; with None only the gates of a few steps exist at any time. With `rows`
    (a Rows) c0 and the gates are by position.

    With `index` (T, N), and `rows`, x is a table (R, 1, I) and step t of row n sees its row
    index[t, n]; a table without rows stands for the one-hot vectors of I classes.
    """
    cdef Run r
    cdef Py_ssize_t tile, tiles, n, t, k, i, pieces = 0
    cdef int team
    r.T, r.N = y.shape[0], y.shape[1]
    if rows is not None and len(rows.alive) == 0:
        np.asarray(y)[...] = 0
        r.T = 0
    if r.T == 0 or r.N == 0:
        np.asarray(h_n)[...] = h0
        if c_n is not None:
            unpack_cells(w, c_n, c0, 0, 0)
        return
    r.first = 0
    set_weights(&r, w, r.N)
    r.x = <const char *>&x[0, 0, 0]
    r.x_time, r.x_unit = x.strides[0] // r.item, x.strides[2] // r.item
    r.y = <char *>&y[0, 0, 0]
    r.y_time = y.strides[0] // r.item

    cdef Py_ssize_t count = r.T * r.N
    if rows is None:
        bounds = batch_tiles(r.N, w.kernels.full_rows, threads)
    else:
        r.y_steps, r.T = r.T, len(rows.alive)
        r.clears = rows.whole
        r.alive = <Py_ssize_t *><Py_ssize_t>address(rows.alive)
        count = rows.alive.sum()
        bounds = ragged_tiles(rows.lengths, threads)
    cdef const Py_ssize_t[::1] bound = bounds
    tiles = bound.shape[0] - 1
    cdef Py_ssize_t projected = count
    if index is not None:
        r.one_hot = x.shape[0] == 0
        r.table_rows = r.I if r.one_hot else x.shape[0]
        projected = x.shape[0]
        pieces = (projected + TABLE_ROWS - 1) // TABLE_ROWS
    team = team_size(
        2.0 * r.cell.gates * r.H * (<double>r.I * projected + <double>r.P * count),
        max(tiles, pieces),
        threads,
    )
    if team == 1 and tiles > 1:
        bounds = np.array([0, r.N], np.intp)
        bound = bounds
        tiles = 1

    # buffers
    cdef Py_ssize_t row_gates = r.cell.memory_slots * r.units
    r.chunk = min(r.T, max(1, PROJECTED_ROWS * tiles * r.T // count))
    keeps = reserve is not None and r.cell.keeps_gates
    r.gates_steps = r.T if keeps else r.chunk
    gates = reserve if keeps else aligned_empty(r.chunk * r.gates_time, w.dtype)
    r.gates = <char *><Py_ssize_t>address(gates)
    h = aligned_zeros(3 * r.N * r.pitch, w.dtype)
    first_h = h[: r.N * r.pitch].reshape(r.N, r.pitch)[:, : r.P]
    first_h[...] = h0 if rows is None else np.asarray(h0)[rows.order]
    r.h = <char *><Py_ssize_t>address(h)
    r.early = r.h + 2 * r.N * r.pitch * r.item
    r.c0 = <const char *><Py_ssize_t>address(c0) if c0 is not None else NULL

    # where rows lie
    offsets = np.empty((3, r.N), np.intp)
    chunk_offsets = np.empty((2, r.N * r.chunk), np.intp)
    cdef Py_ssize_t[:, ::1] row = offsets
    cdef Py_ssize_t[:, ::1] chunk_row = chunk_offsets
    r.y_row, r.gates_row, r.h_row = &row[0, 0], &row[1, 0], &row[2, 0]
    r.chunk_x, r.chunk_gates = &chunk_row[0, 0], &chunk_row[1, 0]
    cdef Py_ssize_t x_batch = x.strides[1] // r.item, y_batch = y.strides[1] // r.item
    for n in range(r.N):
        row[0, n] = n * y_batch
        row[1, n] = n * row_gates
        row[2, n] = n * r.pitch
    if rows is None:
        k = 0
        for tile in range(tiles):
            for t in range(r.chunk):
                for n in range(bound[tile], bound[tile + 1]):
                    chunk_row[0, k] = t * r.x_time + n * x_batch
                    chunk_row[1, k] = t * r.gates_time + n * row_gates
                    k += 1
    else:
        x_row = rows.order * x_batch + rows.start * r.x_time
        offsets[0] = rows.order * y_batch + rows.start * r.y_time
        r.x_row = <Py_ssize_t *><Py_ssize_t>address(x_row)
        r.start = <Py_ssize_t *><Py_ssize_t>address(rows.start)
        r.length = <Py_ssize_t *><Py_ssize_t>address(rows.lengths)
        if rows.reset is not None:
            r.reset = <unsigned char *><Py_ssize_t>address(rows.reset)
            r.resets = <unsigned char *><Py_ssize_t>address(rows.resets)
            c_reset = aligned_empty(r.blocks * r.N * r.units if c0 is not None else 0, w.dtype)
            r.c_reset = <char *><Py_ssize_t>address(c_reset)
    if index is not None:
        r.index = <Py_ssize_t *><Py_ssize_t>address(index)
        r.index_time = index.strides[0] // sizeof(Py_ssize_t)
        index_row = rows.order * (index.strides[1] // sizeof(Py_ssize_t))
        index_row = (index_row + rows.start * r.index_time).astype(np.intp)
        r.index_row = <Py_ssize_t *><Py_ssize_t>address(index_row)
        r.table = <char *>r.input
        if not r.one_hot:
            width = r.cell.input.slots * r.units
            table = aligned_empty(r.blocks * r.table_rows * width, w.dtype)
            r.table = <char *><Py_ssize_t>address(table)
            table_x = (np.arange(r.table_rows) * r.x_time).astype(np.intp)
            table_row = (np.arange(r.table_rows) * width).astype(np.intp)
            r.table_x = <Py_ssize_t *><Py_ssize_t>address(table_x)
            r.table_row = <Py_ssize_t *><Py_ssize_t>address(table_row)

    with nogil:
        if team == 1:
            for i in range(pieces):
                project_table(&r, i * TABLE_ROWS)
            for i in range(tiles):
                run_rows(&r, bound[i], bound[i + 1])
        else:
            if pieces > 0:
                for i in prange(pieces, num_threads=team, schedule="static"):
                    project_table(&r, i * TABLE_ROWS)
            for i in prange(tiles, num_threads=team, schedule="static", chunksize=1):
                run_rows(&r, bound[i], bound[i + 1])

    if rows is not None:
        h = h[: 2 * r.N * r.pitch].reshape(2, r.N, r.pitch)
        np.asarray(h_n)[rows.order] = h[rows.lengths & 1, np.arange(r.N), : r.P]
        if c_n is not None:
            unpack_last_cells(w, c_n, c0, gates, r.gates_steps, rows)
        return
    last = (r.T & 1) * r.N * r.pitch
    np.asarray(h_n)[...] = h[last : last + r.N * r.pitch].reshape(r.N, r.pitch)[:, : r.P]
    if c_n is not None:
        unpack_cells(w, c_n, gates, (r.T - 1) % r.gates_steps, r.gates_time)


cdef unpack_cells(PackedWeights w, c_n, gates, Py_ssize_t step, Py_ssize_t gates_time):
    """The cell state of one step of a gate buffer, or of packed cells, as (N, H)."""
    N, H = c_n.shape
    if gates_time == 0:
        cells = gates.reshape(w.blocks, N, w.units)
    else:
        rows = gates[step * gates_time : (step + 1) * gates_time]
        cells = rows.reshape(w.blocks, N, w.cell.memory_slots, w.units)[:, :, w.cell.slots]
    c_n[...] = cells.transpose(1, 0, 2).reshape(N, w.blocks * w.units)[:, :H]


cdef unpack_last_cells(PackedWeights w, c_n, c0, gates, steps, rows):
    """The cell state of each row's last step, as (N, H): a row's stays in the gate buffer, since
    no later step writes there."""
    N, H = c_n.shape
    position = np.arange(N)
    by_step = gates.reshape(-1, w.blocks, N, w.cell.memory_slots, w.units)
    cells = by_step[(rows.lengths - 1) % steps, :, position, w.cell.slots]  # (N, block, U)
    none = rows.lengths == 0
    cells[none] = c0.reshape(w.blocks, N, w.units)[:, none].transpose(1, 0, 2)
    c_n[rows.order] = cells.reshape(N, w.blocks * w.units)[:, :H]

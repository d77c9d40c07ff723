"""Gradients of BPTT that are sums over rows: of weights, biases, x and a table of x.

While the dgates of a chunk are in cache, its share of the weight gradients are long products over
all its rows, from the last step and row to the first, and dx are products with W_ih. Threads take
these piece by piece, by what they write, so that no sum depends on their number.

A batch of many rows is in shards, some rows each, whatever the number of threads. Those of a shard
are summed by themselves, and the sums of all added at the end: so a thread can read what it has
written, and not what others have.
"""

from libc.math cimport INFINITY
from libc.string cimport memcpy, memset

from rnnkernel._bptt cimport DX_ROWS, GROUP, Bptt, clear_dx, vectors_of
from rnnkernel._chunks cimport Chunk
from rnnkernel._clock cimport INPUT_GRADIENT, UNPACK, WEIGHT_GRADIENTS, Clock, charge
from rnnkernel._kernels cimport (
    RK_TRANSPOSED_VECTORS,
    rk_arrival,
    rk_kernels,
    rk_lookup,
    rk_packing,
    rk_product,
    rk_row_sums,
    rk_window,
)
from rnnkernel._products cimport through, through_columns
from rnnkernel._rows cimport rows_ahead
from rnnkernel._team cimport rk_next_before, rk_team


# -- of a chunk ----------------------------------------------------------------------------------


cdef void add_outer(
    const Bptt *r, const Chunk *c, int shard, rk_product *p, const char *a, Py_ssize_t a_row,
    const char *b, Py_ssize_t b_row,
) noexcept nogil:
    """C += A' B over all rows of a shard, last first; A's and B's lie so far apart. The first chunk
    begins with zeros."""
    cdef Py_ssize_t last = c.place[shard] + c.shard_rows[shard] - 1
    p.a = a + last * a_row * r.item
    p.b = b + last * b_row * r.item
    p.c = <char *>p.c + shard * r.shard_bytes
    p.outer, p.inner = 1, c.shard_rows[shard]
    p.a_outer = p.b_outer = 0
    p.a_inner, p.b_inner = -a_row, -b_row
    p.init, p.init_block = r.zeros if c.first else NULL, 0
    r.kernels.product(p)


cdef rk_product block_gradient(
    const Bptt *r, const rk_window *window, char *gradient, Py_ssize_t block, Py_ssize_t rows
) noexcept nogil:
    """A sum over time that goes to one unit block of a weight gradient with so many rows."""
    cdef rk_product p
    cdef Py_ssize_t units = r.H - block * r.units  # that exist from here on
    p.rows, p.blocks = rows, 1
    p.ahead, p.later_count = NULL, 0
    p.half_of_last = r.cell.unit_vectors == 1 and 2 * units <= r.units
    p.vectors = window.slots * r.cell.unit_vectors
    if window.slots == 1:  # those past the last unit come after all others
        p.vectors = min(p.vectors, vectors_of(r, units))
    p.last_vectors = p.vectors
    p.b_block = p.c_block = 0
    p.c = gradient + block * rows * window.slots * r.units * r.item
    return p


cdef inline char *own_sums(const Bptt *r, int member, char *otherwise) noexcept nogil:
    """Where a member sums a block that it unpacks then, or what stands for it."""
    return otherwise if r.unpacked == NULL else r.block_sums + member * r.sums_of_block


cdef void unpack_block(
    const Bptt *r, int which, Py_ssize_t block, char *sums, Clock *clock
) noexcept nogil:
    """One block's sums into the canonical gradient of W_ih, or of W_hh's phase which - 1."""
    cdef rk_packing job
    if r.unpacked == NULL:
        return
    charge(clock, WEIGHT_GRADIENTS)
    job = r.unpacked[which].job
    job.packed = sums - block * job.k * job.gates * r.units * r.item
    job.block_begin, job.block_end = block, block + 1
    r.kernels.unpack(&job)
    charge(clock, UNPACK)


cdef void add_recurrent_gradient(
    const Bptt *r, const Chunk *c, int shard, int phase, Py_ssize_t block, int member, Clock *clock
) noexcept nogil:
    """A shard's part of dW_hh of one phase and unit block."""
    cdef const rk_window *window = &r.cell.recurrent[phase]
    cdef Py_ssize_t b_row = r.gradient_slots * r.units
    cdef rk_product p = block_gradient(r, window, r.recurrent_gradient[phase], block, r.P)
    cdef const char *dgates = r.dgates + (block * r.dgates_block + window.slot * r.units) * r.item
    cdef char *sums = own_sums(r, member, <char *>p.c)
    p.c, p.c_row = sums, r.hidden_c[phase]
    if phase > 0:
        p.a_row = r.flat_a
        add_outer(r, c, shard, &p, r.early, r.pitch, dgates, b_row)
    else:
        p.a_row = r.group_a
        add_outer(r, c, shard, &p, r.h_groups, GROUP, dgates, b_row)
    unpack_block(r, 1 + phase, block, sums, clock)


cdef void add_table_gradient(
    const Bptt *r, const Chunk *c, int shard, Py_ssize_t block
) noexcept nogil:
    """One unit block of the sums of dgates by rows of a table. Where they are dW_ih each shard has
    its own, else the first one's are those of all."""
    cdef const rk_window *window = &r.cell.input
    cdef rk_lookup look
    cdef Py_ssize_t size = r.table_rows * window.slots * r.units * r.item, first = 0
    if r.one_hot:
        look.rows, first = c.shard_rows[shard], c.place[shard]
        look.table = r.table_gradient + shard * r.shard_bytes
    elif r.table_gradient != NULL and shard == 0:
        look.rows, look.table = c.rows, r.table_gradient
    else:
        return
    look.table = <char *>look.table + block * size
    if c.first and r.one_hot:
        memset(look.table, 0, size)
    look.blocks = 1
    look.vectors = look.last_vectors = window.slots * r.cell.unit_vectors
    look.table_row = r.table_at + first
    look.ahead = rows_ahead(r.blocks * size)
    look.c = r.dgates + (block * r.dgates_block + window.slot * r.units) * r.item
    look.c_row = r.table_dgates + first
    look.table_block = look.c_block = look.init_block = 0
    look.init = NULL
    r.kernels.scatter(&look)


cdef void add_input_gradients(
    const Bptt *r, const Chunk *c, int shard, Py_ssize_t block, int member, Clock *clock
) noexcept nogil:
    """A shard's part of one unit block of dW_ih, of the sums by rows of a table, and of the bias
    gradients."""
    cdef const rk_window *window = &r.cell.input
    cdef rk_product p = block_gradient(r, window, r.input_gradient, block, r.I)
    cdef rk_row_sums sums
    cdef Py_ssize_t b_row = r.gradient_slots * r.units
    cdef char *dgates = r.dgates + block * r.dgates_block * r.item
    cdef char *own
    if r.x_groups != NULL:
        own = own_sums(r, member, <char *>p.c)
        p.c, p.a_row, p.c_row = own, r.group_a, r.input_c
        add_outer(
            r, c, shard, &p, r.x_groups, GROUP, dgates + window.slot * r.units * r.item, b_row
        )
        unpack_block(r, 0, block, own, clock)

    add_table_gradient(r, c, shard, block)
    sums.rows = c.shard_rows[shard]
    sums.vectors = r.gradient_slots * r.cell.unit_vectors
    if r.gradient_slots == 1:  # the last block's last vectors may have no unit
        sums.vectors = min(sums.vectors, vectors_of(r, r.H) - block * r.cell.unit_vectors)
    sums.dgates = dgates + (c.place[shard] + c.shard_rows[shard] - 1) * b_row * r.item
    sums.row_stride = -b_row
    sums.sums = <double *>(r.bias_gradient + shard * r.shard_bytes) + block * b_row
    r.kernels.row_sums(&sums)


cdef void add_projection_gradient(
    const Bptt *r, const Chunk *c, int shard, Py_ssize_t column
) noexcept nogil:
    """A shard's part of one column block of dW_hr."""
    cdef rk_product p
    cdef Py_ssize_t width = RK_TRANSPOSED_VECTORS * r.kernels.lanes
    p.rows, p.blocks = r.P, 1
    p.ahead, p.later_count, p.half_of_last = NULL, 0, False
    p.vectors = min(RK_TRANSPOSED_VECTORS, vectors_of(r, r.H) - column * RK_TRANSPOSED_VECTORS)
    p.last_vectors = p.vectors
    p.a_row = r.flat_a
    p.b_block = p.c_block = 0
    p.c = r.projection_gradient + column * r.P * width * r.item
    p.c_row = r.projection_c
    add_outer(
        r, c, shard, &p, r.projected_dh, r.pitch, r.early + column * width * r.item, r.pitch
    )


cdef void add_to_rows(
    const rk_kernels *kernels, char *to, Py_ssize_t pitch, Py_ssize_t rows, Py_ssize_t columns,
    const char *source, const Py_ssize_t *row,
) noexcept nogil:
    """Adds rows to those of a tile."""
    cdef rk_arrival a
    memset(&a, 0, sizeof(a))
    a.rows, a.projected = rows, columns
    a.dh, a.pitch = to, pitch
    a.dy, a.dy_row, a.dy_unit = source, row, 1
    a.limit = a.norm_limit = INFINITY
    kernels.arrive(&a)


cdef void input_gradient(
    const Bptt *r, const Chunk *c, int shard, Py_ssize_t begin, int member
) noexcept nogil:
    """dx of some rows of a shard, from one on."""
    cdef char *tile = r.dx_tile + member * max(r.dx_rows, DX_ROWS) * r.dx_pitch * r.item
    cdef rk_product p = through(r, &r.cell.input, r.input_transposed)
    cdef Py_ssize_t row, place = c.place[shard] + begin
    p.rows = min(r.dx_rows, c.shard_rows[shard] - begin)
    p.a_row = r.flat_row + place
    p.c, p.c_row = tile, r.dx_row
    through_columns(r, &r.cell.input, &p, 0, vectors_of(r, r.I))
    if r.adds:
        add_to_rows(
            r.kernels, tile, r.dx_pitch, p.rows, r.I, r.dx + c.t0 * r.dx_time * r.item,
            r.dx_at + place,
        )
    for row in range(p.rows):
        memcpy(
            r.dx + (c.t0 * r.dx_time + r.dx_at[place + row]) * r.item,
            tile + row * r.dx_pitch * r.item,
            r.I * r.item,
        )


cdef inline Py_ssize_t pieces_of_dx(const Bptt *r, const Chunk *c, int shard) noexcept nogil:
    return 0 if r.dx == NULL else (c.shard_rows[shard] + r.dx_rows - 1) // r.dx_rows


cdef Py_ssize_t gradient_pieces(const Bptt *r, const Chunk *c, int shard) noexcept nogil:
    return pieces_of_dx(r, c, shard) + r.blocks * (1 + r.cell.phases) + r.cell_columns


cdef void add_gradients(
    const Bptt *r, const Chunk *c, int shard, Py_ssize_t piece, int member, Clock *clock
) noexcept nogil:
    # The same operand stays in cache from one unit block to the next. Pieces of dx are the
    # smallest, so they come last: who is done with its own shard helps another with these.
    cdef Py_ssize_t of_weights = r.blocks * (1 + r.cell.phases) + r.cell_columns
    if piece >= of_weights:
        input_gradient(r, c, shard, (piece - of_weights) * r.dx_rows, member)
        charge(clock, INPUT_GRADIENT)
        return
    if piece < r.blocks:
        add_input_gradients(r, c, shard, piece, member, clock)
    elif piece < r.blocks * (1 + r.cell.phases):
        add_recurrent_gradient(
            r, c, shard, piece // r.blocks - 1, piece % r.blocks, member, clock
        )
    else:
        add_projection_gradient(r, c, shard, piece - r.blocks * (1 + r.cell.phases))
    charge(clock, WEIGHT_GRADIENTS)


# -- of all steps --------------------------------------------------------------------------------


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


cdef void add_constant_gradient(
    const Bptt *r, Py_ssize_t block, int member, Clock *clock
) noexcept nogil:
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
    p.c = own_sums(r, member, <char *>p.c)
    r.kernels.product(&p)
    unpack_block(r, 0, block, <char *>p.c, clock)


cdef void finish_gradients(
    const Bptt *r, Py_ssize_t counted, const rk_team *team, Clock *clock
) noexcept nogil:
    cdef Py_ssize_t task, tasks = 0, t
    if r.finish and r.dtable != NULL:
        tasks = (r.table_rows + DX_ROWS - 1) // DX_ROWS
    elif r.finish and r.constant:
        tasks = r.blocks
    while True:
        task = rk_next_before(&r.begun[0], counted + tasks) - counted
        if task < 0:
            break
        if r.constant:
            add_constant_gradient(r, task, team.mate, clock)
            charge(clock, WEIGHT_GRADIENTS)
        else:
            table_gradient(r, task * DX_ROWS, team.mate)
            charge(clock, INPUT_GRADIENT)
    if r.dx != NULL and r.clears:
        for t in range(r.T, r.steps_of_x):
            clear_dx(r, t, 0, r.N, team.members, team.member)
        charge(clock, INPUT_GRADIENT)

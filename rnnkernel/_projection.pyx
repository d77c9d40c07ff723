"""The input's part of a pass: bias + W_ih x of a chunk of steps into the gates, or of a table.

The loop (rnnkernel/_recurrence.pyx) asks for a chunk when it comes to it, so that its gates are
still in cache.
"""

from rnnkernel._clock cimport LOOP, PACK, PROJECTION, charge
from rnnkernel._kernels cimport (
    RK_WHOLE,
    fp_enter,
    fp_leave,
    rk_lookup,
    rk_product,
    rk_small_product,
)
from rnnkernel._panels cimport Panel, run_blocks
from rnnkernel._part cimport Part, begin_round, end_round, take_blocks
from rnnkernel._rows cimport rk_ask_to_read, rk_ask_to_write, rows_ahead
from rnnkernel._run cimport TABLE_ROWS, Run, gates_at, panel_bytes


cdef void list_chunk(const Run *r, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef Py_ssize_t t, n, k = begin * r.chunk
    if r.alive != NULL:  # each chunk has its own
        return
    for t in range(r.chunk):
        for n in range(begin, end):
            r.chunk_x[k] = t * r.x_time + r.x_row[n]
            r.chunk_gates[k] = t * r.gates_time + r.gates_row[n]
            k += 1


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
    cdef Panel panel = r.panels[which]
    panel.job.packed = part.panel - begin * panel_bytes(r, which)
    charge(part.clock, LOOP if which else PROJECTION)
    run_blocks(&panel, begin, end)
    charge(part.clock, PACK)
    return <const char *>panel.job.packed


cdef bint project(const Run *r, Part *part, Py_ssize_t t, Py_ssize_t steps) noexcept nogil:
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

"""How BPTT is shared out: chunks of time, and what of a chunk's steps each thread takes.

The steps of a chunk are shared by batch rows: each thread takes some through all of them, and meets
nobody. Or by units: each takes some units of all rows, reads only its part of the weights, and
meets the others before the product, which is over all units. `by_units` decides; no result depends
on it, nor on the length of a chunk.
"""

from libc.string cimport memset

from rnnkernel._bptt cimport BY_COST, BY_UNITS, GROUP, Bptt, alive_in, vectors_of
from rnnkernel._clock cimport Clock
from rnnkernel._rows cimport bound_by_length, part

# Of a usual core, all of it: here it only makes an estimate dearer. Forward (_plan.pyx) has less,
# since it sweeps weights that do not stay in L2 beside what else a step touches. No result depends
# on either.
cdef double L2_BYTES = 1 << 20


# -- chunks --------------------------------------------------------------------------------------


cdef void list_rows(const Bptt *r, const Chunk *c) noexcept nogil:
    """Where the rows of a chunk lie, in the order that the weight gradients sum them in: by shard,
    step and batch row, so that a ragged batch sums as the padded one does."""
    cdef Py_ssize_t t, n, p, row, k, at = 0, listed = 0
    cdef Py_ssize_t[SHARDS] place
    cdef int shard, section
    for shard in range(SHARDS):
        place[shard] = c.place[shard]
    for t in range(c.steps):
        section = -1
        for shard in range(r.shards):
            for n in range(part(r.N, shard, r.shards), part(r.N, shard + 1, r.shards)):
                while n >= r.section[section + 1]:
                    section += 1
                    at = listed - r.section[section]
                    r.first[t * r.sections + section] = at
                p = n
                if r.alive != NULL:
                    p = r.position[n]
                    if p >= r.alive[section * r.T + c.t0 + t]:
                        continue
                    r.in_memory[listed] = p
                k = place[shard]
                r.dgates_row[at + p] = r.flat_row[k]
                r.tile_chunk_row[at + p] = k * r.pitch
                r.group_row[at + p] = k * GROUP
                r.dx_at[k] = t * r.dx_time
                r.dx_at[k] += n * r.dx_batch if r.alive == NULL else r.dx_from[p]
                if r.index != NULL:
                    row = r.index[(c.t0 + t) * r.index_time + r.index_row[p]]
                    r.table_at[k if r.one_hot else listed] = row * r.cell.input.slots * r.units
                    r.table_dgates[k if r.one_hot else listed] = r.flat_row[k]
                place[shard] += 1
                listed += 1


cdef void list_all_rows(const Bptt *r) noexcept nogil:
    cdef Chunk c = chunk_before(r, min(r.T, r.chunk_rows // r.N))
    list_rows(r, &c)


cdef void find_shards(const Bptt *r, Chunk *c) noexcept nogil:
    """Where the rows of each shard are, and how many."""
    cdef Py_ssize_t i, size, place = 0
    cdef int shard
    for shard in range(r.shards):
        size = part(r.N, shard + 1, r.shards) - part(r.N, shard, r.shards)
        c.place[shard], c.shard_rows[shard] = place, c.steps * size
        place += r.chunk_rows // r.N * size  # also where a chunk has fewer steps
    if r.alive == NULL:
        return
    for shard in range(r.shards):
        c.shard_rows[shard] = 0 if r.shards > 1 else c.rows
    for i in range(r.N if r.shards > 1 else 0):
        shard = 0
        while r.order[i] >= part(r.N, shard + 1, r.shards):
            shard += 1
        c.shard_rows[shard] += max(0, min(r.length[i] - c.t0, c.steps))
    for shard in range(1, r.shards):
        c.place[shard] = c.place[shard - 1] + c.shard_rows[shard - 1]


cdef inline Py_ssize_t alive_at(const Bptt *r, Py_ssize_t t) noexcept nogil:
    cdef Py_ssize_t rows = 0
    cdef int section
    for section in range(r.sections):
        rows += alive_in(r, section, t)
    return rows


cdef Chunk chunk_before(const Bptt *r, Py_ssize_t past) noexcept nogil:
    """The chunk that ends with the step before `past`."""
    cdef Chunk c
    memset(&c, 0, sizeof(c))
    c.t0 = past - 1
    if r.alive == NULL:
        c.t0 = max(0, past - r.chunk_rows // r.N)
        c.rows = (past - c.t0) * r.N
    else:
        c.rows = alive_at(r, c.t0)
        while c.t0 > 0 and c.rows + alive_at(r, c.t0 - 1) <= r.chunk_rows:
            c.t0 -= 1
            c.rows += alive_at(r, c.t0)
    c.steps = past - c.t0
    c.first = r.fresh and past == r.T
    find_shards(r, &c)
    return c


# -- shares --------------------------------------------------------------------------------------


cdef inline Py_ssize_t vector_part(
    const Bptt *r, Py_ssize_t whole, int i, int parts
) noexcept nogil:
    """Where part i of vectors of units begins: at whole blocks, and at even numbers where there are
    many, since a product with a single vector of columns is slow."""
    cdef Py_ssize_t grain = r.cell.unit_vectors
    if i == parts:
        return whole
    if whole >= 4 * parts:
        grain = max(grain, 2)
    return min(whole, (2 * whole * i + parts * grain) // (2 * parts * grain) * grain)


cdef double step_cycles(const Bptt *r, Py_ssize_t rows, Py_ssize_t vectors) noexcept nogil:
    """About what a core takes for the product with so many columns of W_hh."""
    cdef Py_ssize_t vector_bytes = r.kernels.lanes * r.item
    cdef double lines = vectors * r.cell.gates * r.H * vector_bytes / 64.0
    cdef Py_ssize_t tiles = (rows + r.kernels.full_rows - 1) // r.kernels.full_rows
    # of a line of weights: its multiply-adds, but no tile of rows is faster than the line comes
    # from L2
    cdef double cycles = max(
        64.0 / (vector_bytes * r.kernels.fma_vectors()) * rows, 2.5 * tiles
    )
    # and from L3 so much of the time as is not hidden behind these
    if lines * 64 > L2_BYTES:
        cycles += 6
    return lines * cycles


cdef bint by_units(const Bptt *r, const Chunk *c, int members) noexcept nogil:
    """Whether to share the steps of a chunk by units instead of rows.

    By rows every thread reads all of W_hh at every step. That is dear for few rows and where it
    does not fit into L2, which the part of it for some of the units may. But those who share units
    meet in every step, which costs up to 2500 cycles in each phase (rnnkernel/_teamwork.pyx), and
    more where other programs want the cores; and of what a step reads of a row, dgates, dh and h,
    others wrote most, which costs 20 cycles a line: what saves little is not worth it.
    """
    cdef Py_ssize_t rows = (c.rows + c.steps - 1) // c.steps  # on average
    cdef Py_ssize_t vectors = vectors_of(r, r.P), most = 0
    cdef double lines = rows * (r.gradient_slots + 2) * r.H * r.item / 64.0
    cdef int i
    if members == 1 or r.sharing != BY_COST:
        return r.sharing == BY_UNITS
    for i in range(members):
        most = max(
            most, vector_part(r, vectors, i + 1, members) - vector_part(r, vectors, i, members)
        )
    return (
        step_cycles(r, rows, most) + 2500 * r.teamwork * r.cell.phases
        + 20 * lines * (members - 1) / members
        < 0.95 * step_cycles(r, (rows + members - 1) // members, vectors)
    )


cdef bint all_by_units(const Bptt *r, int members) noexcept nogil:
    # the earliest has the most rows
    cdef Chunk c = chunk_before(r, min(r.T, max(1, r.chunk_rows // r.N)))
    return by_units(r, &c, members)


cdef Share all_rows(const Bptt *r, rk_team *team, Clock *clock) noexcept nogil:
    cdef Share s
    s.team, s.clock, s.section = team, clock, 0
    s.begin, s.end = 0, r.N
    share_units(r, &s, team.members, team.member)
    return s


cdef bint bound_parts(
    const Bptt *r, Py_ssize_t past, int parts, Py_ssize_t *bounds
) noexcept nogil:
    cdef int i
    if r.alive != NULL:
        return bound_by_length(r.length, r.section, r.sections, past, parts, bounds)
    for i in range(parts + 1):
        bounds[i] = part(r.N, i, parts)
    return r.N >= parts


cdef Share share_rows(
    const Bptt *r, const Py_ssize_t *bounds, int i, rk_team *team, Clock *clock
) noexcept nogil:
    cdef Share s
    s.team, s.clock, s.section = team, clock, 0
    s.begin, s.end = bounds[i], bounds[i + 1]
    share_units(r, &s, 1, 0)
    return s


cdef void share_units(const Bptt *r, Share *s, int members, int member) noexcept nogil:
    cdef Py_ssize_t vectors = vectors_of(r, r.P), units = vectors_of(r, r.H)
    cdef Py_ssize_t x_groups = (r.I + GROUP - 1) // GROUP, h_groups = (r.P + GROUP - 1) // GROUP
    s.members, s.member = members, member
    s.first = vector_part(r, vectors, member, members)
    s.past = vector_part(r, vectors, member + 1, members)
    s.first_unit = vector_part(r, units, member, members)
    s.past_unit = vector_part(r, units, member + 1, members)
    s.block_begin = s.first_unit // r.cell.unit_vectors
    s.block_end = (s.past_unit + r.cell.unit_vectors - 1) // r.cell.unit_vectors
    if s.block_begin * r.cell.unit_vectors < s.first_unit:  # nothing is left for this one
        s.block_begin = s.block_end
    s.x_first = part(x_groups, member, members)
    s.x_past = part(x_groups, member + 1, members)
    s.h_first = part(h_groups, member, members)
    s.h_past = part(h_groups, member + 1, members)

from rnnkernel._bptt cimport Bptt
from rnnkernel._clock cimport Clock
from rnnkernel._team cimport rk_team

cdef enum:
    # Most parts of a batch whose gradients are summed each by itself, and added in the end.
    SHARDS = 2


cdef struct Chunk:
    Py_ssize_t t0, steps, rows
    Py_ssize_t[SHARDS] place            # of the first row of each shard
    Py_ssize_t[SHARDS] shard_rows       # how many it has
    bint first                          # whose sums nothing was added to yet


# What one thread takes of every step of a chunk. Columns and units count in vectors.
cdef struct Share:
    rk_team *team
    int members, member                 # of those that meet within a step
    Py_ssize_t begin, end               # batch rows
    int section                         # whose rows are at work
    Py_ssize_t first, past              # columns of h
    Py_ssize_t first_unit, past_unit    # units of the cell: as many, but for a projection
    Py_ssize_t block_begin, block_end   # the same in blocks
    Py_ssize_t x_first, x_past          # groups of x and h to keep
    Py_ssize_t h_first, h_past
    Clock *clock


# Where the rows of a chunk lie, and those of each chunk of a batch without lengths.
cdef void list_rows(const Bptt *r, const Chunk *c) noexcept nogil
cdef void list_all_rows(const Bptt *r) noexcept nogil
# The chunk that ends with the step before `past`.
cdef Chunk chunk_before(const Bptt *r, Py_ssize_t past) noexcept nogil
# Whether to share its steps by units instead of rows, and those of all chunks.
cdef bint by_units(const Bptt *r, const Chunk *c, int members) noexcept nogil
cdef bint all_by_units(const Bptt *r, int members) noexcept nogil
# What a member takes of its steps by units.
cdef Share all_rows(const Bptt *r, rk_team *team, Clock *clock) noexcept nogil
# Bounds of parts of the rows, with about as many of the steps before `past` each, whether none has
# more than twice as many as another, and what is to be done of part `i`.
cdef bint bound_parts(
    const Bptt *r, Py_ssize_t past, int parts, Py_ssize_t *bounds
) noexcept nogil
cdef Share share_rows(
    const Bptt *r, const Py_ssize_t *bounds, int i, rk_team *team, Clock *clock
) noexcept nogil
# Units and columns, of so many that share the rows.
cdef void share_units(const Bptt *r, Share *s, int members, int member) noexcept nogil

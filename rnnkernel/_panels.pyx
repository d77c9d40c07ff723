"""Panels: matrices in the layout that the kernels stream, packed and unpacked by several threads.

csrc/README.md draws the layouts.
"""

from cython.parallel cimport prange

from rnnkernel._kernels cimport rk_packing
from rnnkernel._memory cimport address

# Sums of shards that are added before they are unpacked: a part of L2, with the next shard's.
cdef Py_ssize_t ADDED_BYTES = 1 << 17

ctypedef fused real:
    float
    double


cdef int choose(rk_packing *job, Py_ssize_t count, columns) except -1:
    """Only so many columns, these, of those that the canonical weights have."""
    job.k = job.k_end = count
    job.columns = <const Py_ssize_t *>address(columns)
    return 0


cdef void add(real *sums, const real *others, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(count):
        sums[i] += others[i]


cdef void add_shards(
    char *sums, Py_ssize_t size, int shards, Py_ssize_t shard_bytes, Py_ssize_t item
) noexcept nogil:
    """So many bytes of sums, of all shards into those of the first."""
    cdef int shard
    for shard in range(1, shards):
        if item == sizeof(float):
            add(<float *>sums, <const float *>(sums + shard * shard_bytes), size // item)
        else:
            add(<double *>sums, <const double *>(sums + shard * shard_bytes), size // item)


cdef void run_blocks(const Panel *panel, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef rk_packing job = panel.job
    job.block_begin = begin
    job.block_end = end
    panel.move(&job)


cdef void run_columns(
    const Panel *panel, Py_ssize_t block, Py_ssize_t begin, Py_ssize_t end
) noexcept nogil:
    """Some columns of a block, after the sums of other shards have been added: a few at a time, so
    that these are in L2."""
    cdef rk_packing job = panel.job
    cdef Py_ssize_t step = end - begin
    job.block_begin, job.block_end = block, block + 1
    if panel.shards > 1:
        step = max(1, ADDED_BYTES // panel.row_bytes)
    while begin < end:
        job.k_begin, job.k_end = begin, min(end, begin + step)
        if panel.shards > 1:
            add_shards(
                <char *>job.packed + (block * job.k + begin) * panel.row_bytes,
                (job.k_end - begin) * panel.row_bytes, panel.shards, panel.shard_bytes, panel.item,
            )
        panel.move(&job)
        begin = job.k_end


cdef void pack_share(const Panel *panels, int count, int part, int parts) noexcept nogil:
    """A share of every panel: the unit blocks part/parts of W_ih's and W_hh's, or of the columns of
    each block, where blocks are few."""
    cdef const Panel *panel
    cdef Py_ssize_t begin, end, piece, pieces, k
    cdef int i
    for i in range(count):
        panel = &panels[i]
        pieces = 1
        if panel.by_columns and panel.blocks < parts:
            pieces = (parts + panel.blocks - 1) // panel.blocks
        begin = panel.blocks * pieces * part // parts
        end = panel.blocks * pieces * (part + 1) // parts
        if pieces == 1 and panel.shards <= 1:
            run_blocks(panel, begin, end)
            continue
        k = panel.job.k
        for piece in range(begin, end):
            run_columns(
                panel, piece // pieces, piece % pieces * k // pieces,
                (piece % pieces + 1) * k // pieces,
            )


cdef void run_panels(const Panel *panels, int count, int team) noexcept nogil:
    """Packs or unpacks weights."""
    cdef int part
    if team <= 1:
        pack_share(panels, count, 0, 1)
        return
    for part in prange(team, num_threads=team, schedule="static", chunksize=1):
        pack_share(panels, count, part, team)

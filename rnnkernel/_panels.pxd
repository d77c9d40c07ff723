from rnnkernel._kernels cimport rk_packing


# A panel, and what fills it or takes it apart.
cdef struct Panel:
    void (*move)(const rk_packing *) noexcept nogil
    rk_packing job
    Py_ssize_t blocks
    bint by_columns         # whether threads may share the columns of a block
    # of gradients in shards
    int shards
    Py_ssize_t shard_bytes  # from one's to the next one's
    Py_ssize_t item, row_bytes


cdef int choose(rk_packing *job, Py_ssize_t count, columns) except -1
cdef void run_blocks(const Panel *panel, Py_ssize_t begin, Py_ssize_t end) noexcept nogil
cdef void pack_share(const Panel *panels, int count, int part, int parts) noexcept nogil
cdef void run_panels(const Panel *panels, int count, int team) noexcept nogil
cdef void add_shards(
    char *sums, Py_ssize_t size, int shards, Py_ssize_t shard_bytes, Py_ssize_t item
) noexcept nogil

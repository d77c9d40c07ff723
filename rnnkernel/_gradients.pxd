from rnnkernel._bptt cimport Bptt
from rnnkernel._chunks cimport Chunk
from rnnkernel._clock cimport Clock
from rnnkernel._kernels cimport rk_kernels
from rnnkernel._team cimport rk_team

# Adds rows from anywhere to those of a tile; offsets in elements.
cdef void add_to_rows(
    const rk_kernels *kernels, char *to, Py_ssize_t pitch, Py_ssize_t rows, Py_ssize_t columns,
    const char *source, const Py_ssize_t *row,
) noexcept nogil
# What follows the steps of a chunk goes, for each shard, in so many pieces, in any order, after
# those of the chunk before.
cdef Py_ssize_t gradient_pieces(const Bptt *r, const Chunk *c, int shard) noexcept nogil
cdef void add_gradients(
    const Bptt *r, const Chunk *c, int shard, Py_ssize_t piece, int member, Clock *clock
) noexcept nogil
# One member's pieces of what follows the last chunk, where so many have been begun before.
cdef void finish_gradients(
    const Bptt *r, Py_ssize_t counted, const rk_team *team, Clock *clock
) noexcept nogil

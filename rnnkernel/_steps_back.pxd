from rnnkernel._bptt cimport Bptt
from rnnkernel._chunks cimport Chunk, Share

# A share of the steps of a chunk, and of the zeros in dx beside them. Whether this member stays.
cdef bint steps_back(const Bptt *r, Share *s, const Chunk *c) noexcept nogil

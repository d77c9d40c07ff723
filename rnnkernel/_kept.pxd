"""Packed weights that stay with a layer from call to call."""

cdef class Kept:
    cdef int busy               # whether a thread is at these
    cdef list held              # PackedWeights of each layer and direction, or None
    cdef bint unreachable       # nobody can have come to the parameters since the last `begin`
    cdef long long forgotten    # how often
    cdef list present(self)
    cdef long long begin(self, layer) except -2
    cdef void keep(self, list weights, long long ticket) noexcept

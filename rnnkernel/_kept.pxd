"""Packed weights that stay with a layer from call to call."""

cdef class Kept:
    cdef readonly list weights  # PackedWeights of each layer and direction, or None
    cdef bint unreachable       # nobody can have come to the parameters since the last `begin`
    cdef long long forgotten    # how often
    cdef long long begin(self, layer) except -2
    cdef int keep(self, list weights, long long ticket) except -1

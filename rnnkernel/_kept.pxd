"""Packed weights that stay with a layer from call to call."""

cdef class Kept:
    cdef readonly list weights  # PackedWeights of each layer and direction, or None
    cdef bint unreachable       # nobody can have come to the parameters since the last `begin`
    cdef bint begin(self, layer) except -1
    cdef int keep(self, list weights) except -1

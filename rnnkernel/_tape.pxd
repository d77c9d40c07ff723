from rnnkernel._packing cimport PackedWeights


cdef class Pass:
    cdef readonly PackedWeights weights
    cdef readonly object x, h0, c0, y, reserve, rows, checkpoints, index


cdef class Tape:
    cdef readonly object layer, layout, dropped, table, vocabulary
    cdef readonly list passes
    cdef readonly tuple shape

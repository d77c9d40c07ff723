from rnnkernel._packing cimport PackedGradients, PackedWeights


cdef class Pass:
    cdef readonly PackedWeights weights
    cdef readonly object x, h0, c0, y, reserve, rows, checkpoints, index


cdef class Tape:
    cdef readonly object layer, layout, dropped, table, vocabulary
    cdef readonly list passes
    cdef readonly tuple shape


cdef class BackwardPass:
    cdef readonly Pass of
    cdef readonly PackedGradients gradients
    cdef readonly object dy, dh_n, dc_n, flow, dx, dh0, dc0, dtable, dtable_rows, sums
    cdef readonly bint finish

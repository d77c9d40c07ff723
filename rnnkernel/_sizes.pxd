"""A layer's sizes, as C reads them: to ask a Python object for each would take a small call longer
than its arithmetic."""


cdef class Sizes:
    cdef readonly int type_number              # NumPy's, of the dtype
    cdef readonly int states                   # 2 with a cell state
    cdef readonly Py_ssize_t input_size, hidden_size
    cdef readonly Py_ssize_t projected_size    # units of h
    cdef readonly Py_ssize_t layers, directions
    cdef readonly tuple parameters             # name and shape of each, in their order


cdef Sizes sizes_of(layer)

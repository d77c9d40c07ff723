"""Memory that a call works in and nobody sees: aligned for the kernels, freed with its owner."""

cdef class Scratch:
    cdef void *blocks     # a list of them, each with a pointer to the next before its memory

    cdef char *take(self, Py_ssize_t bytes) except NULL
    cdef char *take_zeros(self, Py_ssize_t bytes) except NULL

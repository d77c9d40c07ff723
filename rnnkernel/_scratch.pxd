"""Memory that a call works in and nobody sees: aligned for the kernels, freed with its owner."""

cdef class Scratch:
    cdef char *arena
    cdef Py_ssize_t used  # of the arena
    cdef void *blocks     # what does not fit: a list, each with a pointer to the next before it

    cdef char *take(self, Py_ssize_t bytes) except NULL
    cdef char *take_zeros(self, Py_ssize_t bytes) except NULL

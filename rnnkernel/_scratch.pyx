"""Memory that a call works in and nobody sees.

An array for each buffer would cost a small call more than its arithmetic.
"""

from libc.stdlib cimport free
from libc.string cimport memset
from posix.stdlib cimport posix_memalign

cdef enum:
    ALIGNMENT = 64  # cache lines: no vector straddles two


cdef class Scratch:
    def __dealloc__(self):
        cdef void *block
        while self.blocks != NULL:
            block = self.blocks
            self.blocks = (<void **>block)[0]
            free(block)

    cdef char *take(self, Py_ssize_t bytes) except NULL:
        """At least one byte, uninitialised, at a multiple of 64 bytes."""
        cdef void *block = NULL
        if bytes < 0 or posix_memalign(&block, ALIGNMENT, ALIGNMENT + <size_t>bytes) != 0:
            raise MemoryError(f"{bytes} bytes do not fit in memory")
        (<void **>block)[0] = self.blocks
        self.blocks = block
        return <char *>block + ALIGNMENT

    cdef char *take_zeros(self, Py_ssize_t bytes) except NULL:
        cdef char *memory = self.take(bytes)
        memset(memory, 0, bytes)
        return memory

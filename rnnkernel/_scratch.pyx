"""Memory that a call works in and nobody sees.

An array for each buffer would cost a small call more than its arithmetic, and memory of the system
for each as much: what fits into one arena comes from there, and it goes from call to call, as
larger blocks do (rnnkernel/_pool.pyx).
"""

cimport cython

from libc.stdlib cimport free
from libc.string cimport memset
from posix.stdlib cimport posix_memalign

from rnnkernel._kernels cimport RK_ALIGNMENT
from rnnkernel._pool cimport exact, give_block, poison, take_block

cdef enum:
    ARENA = 131072

cdef extern from *:
    """
    /* The arena that no call has; others come and go with their calls. */
    static char *rk_idle_arena = NULL;

    static char *rk_exchange_arena(char *arena) {
        return __atomic_exchange_n(&rk_idle_arena, arena, __ATOMIC_ACQ_REL);
    }
    """
    char *rk_exchange_arena(char *arena) nogil


@cython.freelist(8)
cdef class Scratch:
    def __cinit__(self):
        self.arena = rk_exchange_arena(NULL)

    def __dealloc__(self):
        cdef void *block
        if self.arena != NULL:
            free(rk_exchange_arena(self.arena))
        while self.blocks != NULL:
            block = self.blocks
            self.blocks = (<void **>block)[0]
            give_block(<char *>block)

    cdef char *take(self, Py_ssize_t bytes) except NULL:
        """At least one byte, uninitialised, at a multiple of 64 bytes."""
        cdef void *block = NULL
        cdef char *here
        if self.arena == NULL and posix_memalign(<void **>&self.arena, RK_ALIGNMENT, ARENA) != 0:
            raise MemoryError(f"{ARENA} bytes do not fit in memory")
        if 0 <= bytes < ARENA - self.used and not exact:
            here = self.arena + self.used
            self.used += (bytes + RK_ALIGNMENT - 1) // RK_ALIGNMENT * RK_ALIGNMENT
            if poison:
                memset(here, 255, bytes)
            return here
        if bytes >= 0:
            block = take_block(RK_ALIGNMENT + <size_t>bytes)
        if block == NULL:
            raise MemoryError(f"{bytes} bytes do not fit in memory")
        (<void **>block)[0] = self.blocks
        self.blocks = block
        return <char *>block + RK_ALIGNMENT

    cdef char *take_zeros(self, Py_ssize_t bytes) except NULL:
        cdef char *memory = self.take(bytes)
        memset(memory, 0, bytes)
        return memory

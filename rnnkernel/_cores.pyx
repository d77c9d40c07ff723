"""What is known of this machine's cores, for choices between two ways.

csrc/README.md tells what was measured. AMD's have an L3 for a few of them each, which they read
fast, and are far from the cores that have another one. What is measured while calls come is in
rnnkernel/_teamwork.pyx, and figures of BPTT's steps, the same for all cores, in _chunks.pyx.
"""

from rnnkernel._kernels cimport reads_fast

cdef extern from *:
    """
    #include <unistd.h>
    static double rk_l2_size(void) {
    #ifdef _SC_LEVEL2_CACHE_SIZE
        const long size = sysconf(_SC_LEVEL2_CACHE_SIZE);
        if (size > 0)
            return (double)size;
    #endif
        return 1 << 20;
    }
    """
    double rk_l2_size()

cdef Cores here


cdef const Cores *cores() noexcept nogil:
    return &here


cdef void take_usual() noexcept:
    """Intel's, and whatever else was not measured."""
    here.l2 = Level(80, False, 0.5, 0.5)
    here.l3 = here.beyond = Level(20, True, 0.15, 0.15)
    here.beyond_bytes = 0
    here.step = 0.3
    here.crowding = 0.2
    here.meeting, here.meeting_apart = 0.25, 0.45
    here.byte, here.byte_apart = 0, 200e-6
    here.rows_apart = here.rows_byte_apart = here.rows_most_apart = 0
    here.piece, here.piece_byte, here.wave = 1, 17e-6, 0.95
    here.half_row, here.half_row_apart, here.below_byte_apart = 0, 0.15, 0
    here.gigaflops = 80
    here.passing = 3e-4
    here.at_once_bytes = 1 << 19
    here.opening, here.opening_byte = 100, 0
    here.serial_bytes = 1 << 20


cdef void take_amd() noexcept:
    here.l2 = Level(112, True, 0, 0.5)
    here.l3 = Level(80, True, 0, 0.2)
    here.beyond = Level(80, True, 1.2, 1.4)
    # of an L3 of 32 MiB: sysconf tells that of all of a processor together
    here.beyond_bytes = 0.3 * (32 << 20)
    here.step = 0.15
    here.crowding = 0.1
    here.meeting, here.meeting_apart = 0, 0.8
    here.byte, here.byte_apart = 100e-6, 900e-6
    here.rows_apart, here.rows_byte_apart, here.rows_most_apart = 0.2, 2.2e-4, 1.9
    here.piece, here.piece_byte, here.wave = 0.6, 9e-6, 1.01
    here.half_row, here.half_row_apart, here.below_byte_apart = 0.04, 0.3, 6e-4
    here.gigaflops = 100
    # weights pass fast, but not from a core with which there is no L3 in common
    here.passing = 1.2e-4
    here.at_once_bytes = here.beyond_bytes
    here.opening, here.opening_byte = 130, 4e-4
    here.serial_bytes = 8 << 20


if reads_fast():
    take_amd()
else:
    take_usual()
here.l2_bytes = rk_l2_size()

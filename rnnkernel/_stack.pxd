from rnnkernel._forward cimport Pass
from rnnkernel._scratch cimport Scratch
from rnnkernel._team cimport rk_flag


# Passes of some layers and directions, and how threads share them.
cdef struct Stack:
    Pass *passes                  # layer by layer, each with its directions
    int layers, directions
    int teams, size               # of threads
    bint packs                    # whether weights were packed just now
    Py_ssize_t steps              # of the longest row
    Py_ssize_t piece, pieces      # steps of a piece of time; how many there are
    rk_flag *flags                # [team][member]
    rk_flag *done                 # by pass: its pieces that are done
    long long *spent              # by thread and phase (_clock.pxd), or NULL
    long long end                 # when the caller's thread had done its part


cdef int run_stack(
    Pass *passes, int layers, int directions, list weights, Scratch scratch, indices, int threads
) except -1

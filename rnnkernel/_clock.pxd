"""A thread's clock inside the kernels' loops: what it does goes to a phase's account.

Where nobody records (rnnkernel/profiling.py) it is a test of a pointer.
"""

from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from rnnkernel._shared cimport rk_get

cdef long long profiles_in_use


# Where nobody does no call is recorded, and to ask the context would be a thirtieth of a small one.
cdef inline bint anybody_records() noexcept nogil:
    return rk_get(&profiles_in_use) > 0


# The call that is being recorded, or None.
cdef current_call()

# As in profiling.PHASES.
cdef enum:
    SET_UP
    PACK
    PROJECTION
    LOOP
    WEIGHT_GRADIENTS
    INPUT_GRADIENT
    UNPACK
    WAITING
    PHASES


cdef struct Clock:
    long long *spent   # this thread's nanoseconds by phase, or NULL
    long long since


cdef inline long long nanoseconds() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return t.tv_sec * 1000000000LL + t.tv_nsec


cdef inline Clock start_clock(long long *spent, int thread) noexcept nogil:
    """`spent` is the table of all threads, or NULL."""
    cdef Clock clock
    clock.spent, clock.since = NULL, 0
    if spent != NULL:
        clock.spent, clock.since = spent + thread * PHASES, nanoseconds()
    return clock


cdef inline void charge(Clock *clock, int phase) noexcept nogil:
    """The time since the last charge went to this phase."""
    cdef long long now
    if clock.spent == NULL:
        return
    now = nanoseconds()
    clock.spent[phase] += now - clock.since
    clock.since = now

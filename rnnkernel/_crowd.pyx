"""Whether other programs want the cores.

A small call on several threads ends when the last of them has had a core. Where there are more
programs than cores that takes a slice of the scheduler's, milliseconds, and one thread would have
been done at once. So calls whose threads have about as much to do say how long they have waited.
Where that is most of the time of the last few, small calls stay on one thread for a while: 5 ms at
first, twice as long each time that waiting goes on, and half as long each time that all is well.
"""

from rnnkernel._clock cimport nanoseconds
from rnnkernel._shared cimport rk_enter, rk_get, rk_leave, rk_set

# Calls of more arithmetic than this take longer than a slice.
cdef double SMALL = 1e9

# A call that waited for less than this had to open its team or to wake threads, no more.
cdef long long WORTH_IT = 500_000

# How much of a sum over calls the next one leaves, and of how many at least.
cdef double FADING = 0.875
cdef int ENOUGH = 3

# Of the time: where a thread has half of another's share, it waits for up to half of it.
cdef double MOST = 0.55, FEW = 0.3

cdef long long SHORTEST = 5_000_000, LONGEST = 1_280_000_000

# Of all calls. One thread at a time writes here; `until` is read at any time.
cdef int busy = 0
cdef long long until = 0, pause = 0
cdef double times = 0, losses = 0
cdef int calls = 0


cdef bint ignored = False


def set_ignored(bint ignore):
    """Whether all calls have their threads all the same, as tests want it."""
    global ignored
    ignored = ignore


def forget():
    """As if no call had reported."""
    global pause, times, losses, calls
    rk_enter(&busy)
    rk_set(&until, 0)
    pause = calls = 0
    times = losses = 0
    rk_leave(&busy)


cpdef bint is_crowded(double flops) noexcept:
    cdef long long end = rk_get(&until)
    return not ignored and end != 0 and flops < SMALL and nanoseconds() < end


cpdef void report(long long time, long long lost) noexcept:
    global pause, times, losses, calls
    rk_enter(&busy)
    times = FADING * times + time
    losses = FADING * losses + (lost if lost >= WORTH_IT else 0)
    calls += 1
    if losses < FEW * times:
        pause = pause // 2 if pause > SHORTEST else 0
        if pause == 0:
            rk_set(&until, 0)
    elif calls >= ENOUGH and losses > MOST * times:
        pause = min(max(2 * pause, SHORTEST), LONGEST)
        rk_set(&until, nanoseconds() + pause)
        times = losses = calls = 0
    rk_leave(&busy)

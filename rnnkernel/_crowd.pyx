"""Whether other programs want the cores.

A small call on several threads ends when the last of them has had a core. Where there are more
programs than cores that takes a slice of the scheduler's, milliseconds, and one thread would have
been done at once. So calls whose threads have about as much to do say how long they have waited,
and after a few that lost by it small calls stay on one thread for a while: 5 ms, and twice as long
each time that they lose again.
"""

from rnnkernel._clock cimport nanoseconds

# Calls of more arithmetic than this take longer than a slice.
cdef double SMALL = 1e9

# A call that waited for less than this had to open its team, no more; for up to half of its time,
# its share may have been half of another's; and the first call after others may have had to wake
# threads that sleep.
cdef long long WORTH_IT = 500_000
cdef int IN_A_ROW = 3

cdef long long SHORTEST = 5_000_000, LONGEST = 1_280_000_000

# Threads of several calls write here; any of their values will do.
cdef long long until = 0, pause = 0
cdef int losses = 0


cdef bint ignored = False


def set_ignored(bint ignore):
    """Whether all calls have their threads all the same, as tests want it."""
    global ignored
    ignored = ignore


cpdef bint is_crowded(double flops) noexcept nogil:
    return not ignored and until != 0 and flops < SMALL and nanoseconds() < until


cpdef void report(long long time, long long lost) noexcept nogil:
    global until, pause, losses
    if lost < WORTH_IT or 3 * lost < 2 * time:
        if losses != 0:
            until = pause = losses = 0
        return
    losses += 1
    if losses >= IN_A_ROW:
        losses = 1  # of the next row the first call is to wake threads
        pause = min(max(2 * pause, SHORTEST), LONGEST)
        until = nanoseconds() + pause

"""What it costs on this machine that threads work together.

A meeting, where each sees what the others have written, takes 0.07 us on one processor and 1 us on
another. So it is measured, once for each size of a team: where it is cheap far smaller calls gain
by one. All that goes from core to core, as the opening of a team does, is counted in proportion.

Threads of a team that has ended wait for the next one awake, for some milliseconds, and then sleep.
To wake them takes longer than a small call, so calls that come one by one, with time between them,
had better do without.
"""

from cython.parallel cimport parallel

from rnnkernel._clock cimport nanoseconds
from rnnkernel._crowd cimport is_crowded
from rnnkernel._kernels cimport usable_threads
from rnnkernel._scratch cimport Scratch
from rnnkernel._team cimport rk_flag, rk_member, rk_members, rk_time_meetings

# What `teamwork` says, for tests; None measures it.
COST = None

# Microseconds of a meeting on the processor that the estimates were fitted on.
cdef double USUAL = 0.7

# Nanoseconds that threads stay awake for: libgomp's spin for 6 to 15 ms.
cdef long long AWAKE = 5_000_000

# One thread moves fewer bytes faster, where teamwork costs the most.
cdef double SERIAL_BYTES = 1 << 20

# Nanoseconds between two measurements.
cdef long long A_WHILE = 50_000_000

cdef enum:
    MOST = 64  # sizes of teams that are told apart
    OFTEN = 5  # measurements of one, at most

cdef double[MOST + 1] measured  # of each size, or 0
cdef int[MOST + 1] times        # that it was measured
cdef long long measured_at = 0
cdef long long last_call = 0    # that could have opened a team


cdef double measure(int team) except -1:
    """Microseconds of a meeting, the shortest of some."""
    cdef Scratch scratch = Scratch()
    cdef rk_flag *flags = <rk_flag *>scratch.take_zeros((team + 1) * sizeof(rk_flag))
    cdef double shortest = 0
    cdef double *result = &shortest
    with nogil, parallel(num_threads=team):
        rk_time_meetings(flags, flags + team, rk_members(), rk_member(), result)
    return shortest / 1000


cdef double teamwork(int team) except -1:
    global measured_at
    if COST is not None:
        return COST
    if team < 2:
        return 1
    if team > MOST:
        team = MOST
    # dear ones may have been measured while the cores were wanted elsewhere
    if measured[team] == 0 or (
        measured[team] == 1 and times[team] < OFTEN and nanoseconds() > measured_at + A_WHILE
    ):
        measured[team] = min(1, max(0.02, measure(team) / USUAL))
        times[team] += 1
        measured_at = nanoseconds()
    return measured[team]


def cost(team):
    """What `teamwork` says."""
    return teamwork(team)


def set_awake(long long spell):
    """For tests: how long threads are taken to stay awake; how long they were."""
    global AWAKE
    before, AWAKE = AWAKE, spell
    return before


cdef bint are_asleep() noexcept nogil:
    return nanoseconds() - last_call > AWAKE


cdef void note_call() noexcept nogil:
    global last_call
    last_call = nanoseconds()


cdef int team_to_move(Py_ssize_t size, int threads) except -1:
    cdef int team = usable_threads(threads)
    if team < 2 or size < 0.02 * SERIAL_BYTES or is_crowded(0):
        return 1
    if size < SERIAL_BYTES and (size < SERIAL_BYTES * teamwork(team) or are_asleep()):
        return 1
    return team

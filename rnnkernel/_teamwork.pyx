"""What it costs on this machine that threads work together.

A meeting, where each sees what the others have written, takes 0.07 us on one processor and 1 us on
another. So it is measured, for each size of a team: where it is cheap far smaller calls gain by
one. All that goes from core to core, as the opening of a team does, is counted in proportion to
what it takes beyond the least. It is measured again and again while calls come: a host may move the
cores of a virtual machine, and other programs may have had them.

Threads of a team that has ended wait for the next one awake, for some milliseconds, and then sleep.
To wake them takes longer than a small call, so calls that come one by one, with time between them,
had better do without.
"""

from cython.parallel cimport parallel
from posix.unistd cimport usleep

from rnnkernel._clock cimport nanoseconds
from rnnkernel._cores cimport cores
from rnnkernel._crowd cimport is_crowded
from rnnkernel._kernels cimport usable_threads
from rnnkernel._scratch cimport Scratch
from rnnkernel._shared cimport rk_get, rk_set
from rnnkernel._team cimport (
    rk_flag,
    rk_join,
    rk_lost,
    rk_meet_or_leave,
    rk_member,
    rk_members,
    rk_team,
    rk_time_meetings,
)

# What `teamwork` says, for tests; None measures it.
COST = None

# Microseconds of a meeting between neighbours, and from which on all is as dear as on the processor
# that the estimates were fitted on.
cdef double NEAR = 0.05, FAR = 0.3

# Nanoseconds that threads stay awake for: libgomp's spin for 6 to 15 ms.
cdef long long AWAKE = 5_000_000

# One thread moves fewer bytes faster, where teamwork costs the most, and in proportion to that
# where it costs less. From NEIGHBOURS on cores have no L3 in common, where the machine has several.
cdef double SERIAL_BYTES = 1 << 20
cdef double NEIGHBOURS = 0.5

# Nanoseconds that a measurement holds for.
cdef long long A_WHILE = 200_000_000

cdef enum:
    MOST = 64  # sizes of teams that are told apart

# Any call reads and writes these, at any time.
cdef long long[MOST + 1] measured  # of each size, in millionths, or 0
cdef long long[MOST + 1] in_turn   # the turn that it was measured in, or 0
cdef long long turn = 1, turn_began = 0
cdef long long last_call = 0       # that could have opened a team


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
    cdef long long now
    cdef double share
    if COST is not None:
        return COST
    if team < 2:
        return 1
    if team > MOST:
        team = MOST
    now = rk_get(&turn)
    if rk_get(&in_turn[team]) != now:
        rk_set(&in_turn[team], now)  # other threads do with what was measured before
        share = min(1, max(0.05, (measure(team) - NEAR) / (FAR - NEAR)))
        rk_set(&measured[team], <long long>(1e6 * share))
    share = 1e-6 * rk_get(&measured[team])
    return share if share > 0 else 1


def cost(team):
    """What `teamwork` says."""
    return teamwork(team)


def set_awake(long long spell):
    """For tests: how long threads are taken to stay awake; how long they were."""
    global AWAKE
    before, AWAKE = AWAKE, spell
    return before


def measure_again():
    """For tests: what was measured holds no longer."""
    rk_set(&turn, rk_get(&turn) + 1)


cdef void work_and_meet(
    rk_flag *flags, int member, unsigned int microseconds, Py_ssize_t left, bint *stays
) noexcept nogil:
    cdef rk_team team = rk_join(flags, 2, member)
    usleep(microseconds)
    stays[member] = rk_meet_or_leave(&team, 1, left)


def meet_after(unsigned int first, unsigned int second, Py_ssize_t left):
    """For tests: two members make a step, which takes them so many microseconds, meet, and have
    so many left. Whether each stays, and the nanoseconds that one has waited for the other."""
    cdef Scratch scratch = Scratch()
    cdef rk_flag *flags = <rk_flag *>scratch.take_zeros(2 * sizeof(rk_flag))
    cdef bint[2] stays
    stays[0] = stays[1] = False
    with nogil, parallel(num_threads=2):
        if rk_members() == 2:
            work_and_meet(flags, rk_member(), first if rk_member() == 0 else second, left, stays)
    return stays[0], stays[1], rk_lost(flags, 2)


cdef long long this_turn() noexcept nogil:
    return rk_get(&turn)


cdef bint are_asleep() noexcept nogil:
    return nanoseconds() - rk_get(&last_call) > AWAKE


cdef void note_call() noexcept nogil:
    cdef long long now = nanoseconds()
    # nobody is woken for it
    if now - rk_get(&last_call) <= AWAKE and now - rk_get(&turn_began) > A_WHILE:
        rk_set(&turn, rk_get(&turn) + 1)
        rk_set(&turn_began, now)
    rk_set(&last_call, now)


cdef int team_to_move(Py_ssize_t size, int threads) except -1:
    cdef int team = usable_threads(threads)
    cdef double apart, far = cores().serial_bytes
    if team < 2 or size < 0.05 * SERIAL_BYTES or is_crowded(0):
        return 1
    if size < SERIAL_BYTES and are_asleep():
        return 1
    if size < far:
        apart = teamwork(team)
        if size < apart * (SERIAL_BYTES if apart < NEIGHBOURS else far):
            return 1
    return team

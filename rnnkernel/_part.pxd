"""What one thread does of a pass, and the rounds in which a team shares its unit blocks."""

from rnnkernel._clock cimport LOOP, WAITING, Clock, charge
from rnnkernel._run cimport Run
from rnnkernel._team cimport (
    rk_handover,
    rk_has_left,
    rk_meet_or_leave,
    rk_offer,
    rk_range,
    rk_take,
    rk_team,
)


# What one thread does: some batch rows (by position where they differ, of one section) of some unit
# blocks.
cdef struct Part:
    Py_ssize_t begin, end
    const Py_ssize_t *alive       # of its section, or NULL
    Py_ssize_t block_begin, block_end
    Py_ssize_t *chunk_x           # [t][n]: rows of a chunk, in x or its table
    Py_ssize_t *chunk_gates       # and in the gates
    Py_ssize_t step               # the first that is to be done
    rk_handover *handover         # for rows, or NULL
    rk_team team                  # of those that share the rows
    bint leaves                   # whether who comes too late leaves it
    rk_range *ranges              # [in turn][member]: what is left of each one's blocks, or NULL
    int turn
    bint back
    Py_ssize_t grain              # of a sweep to and fro: blocks at once; 0 where nobody sweeps
    char *panel                   # for a block of a passing panel
    Clock *clock


cdef inline void set_bounds(
    const Run *r, Part *part, Py_ssize_t begin, Py_ssize_t end
) noexcept nogil:
    """Which rows it has."""
    cdef int section = 0
    part.begin, part.end, part.alive = begin, end, NULL
    if r.alive != NULL:
        while section + 1 < r.sections and begin >= r.section[section + 1]:
            section += 1
        part.alive = r.alive + section * r.longest


cdef inline void share_blocks(const Run *r, Part *part) noexcept nogil:
    """Unit blocks, shared by the members that are there."""
    part.block_begin = r.blocks * part.team.member // part.team.members
    part.block_end = r.blocks * (part.team.member + 1) // part.team.members


cdef inline bint meet(const Run *r, Part *part, Py_ssize_t t) noexcept nogil:
    """Waits for the other units of the same rows, at step t; whether this member stays. Where
    others have left, their blocks are shared anew."""
    cdef int members = part.team.members
    cdef bint stays
    if members == 1:
        return True
    charge(part.clock, LOOP)
    stays = rk_meet_or_leave(&part.team, t - r.first, r.T - t if part.leaves else -1)
    charge(part.clock, WAITING)
    if stays and part.team.members < members:
        share_blocks(r, part)
    return stays


# Work on all blocks, shared by the members, is a round: each takes blocks until none is left, and
# then they meet. Ranges of the next round are offered in this one, when all have left the last.
#
# Weights larger than L2 are swept to and fro: in one round from the first block to the last, in the
# next from the last to the first, which finds those that were used last still in L2.


cdef inline Py_ssize_t begin_round(const Part *part) noexcept nogil:
    """Where the blocks begin."""
    if part.ranges != NULL:
        rk_offer(
            &part.ranges[(1 - part.turn) * part.team.size + part.team.mate], part.block_begin,
            part.block_end,
        )
    return part.block_begin


cdef inline bint take_blocks(
    const Part *part, Py_ssize_t *first, Py_ssize_t *past, Py_ssize_t *ahead
) noexcept nogil:
    """The next blocks that this member is to do, after `past` where nobody takes them of another;
    whether there are any. `ahead` is the block after those, or -1."""
    cdef int i, left
    cdef rk_range *ranges
    ahead[0] = -1
    if part.ranges == NULL:
        first[0], past[0] = past[0], part.block_end
        return first[0] < past[0]
    ranges = part.ranges + part.turn * part.team.size
    left = rk_take(&ranges[part.team.mate], part.back, part.grain, first, past)
    if left == 2:
        ahead[0] = first[0] - 1 if part.back else past[0]
    if left > 0:
        return True
    for i in range(1, part.team.size):
        if rk_take(
            &ranges[(part.team.mate + i) % part.team.size], not part.back, 1, first, past
        ) > 0:
            return True
    return False


cdef inline void withdraw(const Part *part) noexcept nogil:
    """After the last round: what was offered for one that does not come, by this member, or by one
    that left when it had ended the last."""
    cdef int mate
    if part.ranges == NULL:
        return
    for mate in range(part.team.size):
        if mate == part.team.mate or rk_has_left(&part.team.flags[mate]):
            rk_offer(&part.ranges[mate], 0, 0)
            rk_offer(&part.ranges[part.team.size + mate], 0, 0)


cdef inline bint end_round(const Run *r, Part *part, Py_ssize_t t) noexcept nogil:
    """Whether this member stays for the next."""
    part.turn = 1 - part.turn
    if part.grain > 0:
        part.back = not part.back
    return meet(r, part, t)

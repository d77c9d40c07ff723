"""Backpropagation through time, chunk by chunk: what each thread of a team does.

The steps of a chunk (rnnkernel/_steps_back.pyx) come before its gradients
(rnnkernel/_gradients.pyx), and both before those of an earlier chunk. Threads that share steps by
units are at the same one; those that share them by rows need not be.
"""

from libc.string cimport memset

from rnnkernel._bptt cimport ROOMS, Bptt
from rnnkernel._chunks cimport (
    SHARDS,
    Chunk,
    Share,
    all_rows,
    bound_parts,
    by_units,
    chunk_before,
    list_rows,
    share_rows,
)
from rnnkernel._clock cimport LOOP, WAITING, Clock, charge, start_clock
from rnnkernel._gradients cimport (
    add_gradients,
    finish_gradients,
    gradient_pieces,
)
from rnnkernel._kernels cimport fp_enter, fp_leave
from rnnkernel._rows cimport part
from rnnkernel._steps_back cimport steps_back
from rnnkernel._team cimport (
    rk_claim,
    rk_count,
    rk_has_met,
    rk_idle,
    rk_join,
    rk_meet,
    rk_meet_or_leave,
    rk_next_before,
    rk_passed,
    rk_raise,
    rk_team,
    rk_wait,
    rk_work,
)


# -- pieces of gradients -------------------------------------------------------------------------


# Those of a chunk, numbered through all chunks.
cdef struct Pieces:
    Py_ssize_t[SHARDS] first, past
    Py_ssize_t all                # of all shards, with those of the chunks before


cdef void look_at_pieces(const Bptt *r, const Chunk *c, Pieces *p) noexcept nogil:
    """Those of a chunk, after those that stand there."""
    cdef int shard
    for shard in range(r.shards):
        p.first[shard] = p.past[shard]
        p.past[shard] += gradient_pieces(r, c, shard)
        p.all += p.past[shard] - p.first[shard]


cdef bint do_piece(
    const Bptt *r, const Chunk *c, int shard, const Pieces *p, const rk_team *team, Clock *clock,
    rk_idle *idle,
) noexcept nogil:
    """One of a chunk and shard; whether any was left."""
    cdef Py_ssize_t piece = rk_next_before(&r.begun[shard], p.past[shard])
    if piece < 0:
        return False
    rk_work(idle, &r.flags[team.mate])
    charge(clock, WAITING)
    add_gradients(r, c, shard, piece - p.first[shard], team.mate, clock)
    rk_count(r.done)
    return True


cdef inline int own_shard(const Bptt *r, const rk_team *team) noexcept nogil:
    """What a member begins with: by rows, about those that it did the steps of."""
    return team.mate * r.shards // team.size


# -- together, by units --------------------------------------------------------------------------


cdef bint meet_all(const Bptt *r, rk_team *team, Py_ssize_t past, Clock *clock) noexcept nogil:
    """Whether this member stays, for the steps before `past`."""
    cdef bint stays
    if team.members == 1:
        return True
    stays = rk_meet_or_leave(team, r.T - past, past)
    charge(clock, WAITING)
    return stays


cdef void run_together(Bptt *r, rk_team *team, Clock *clock) noexcept nogil:
    """All steps and gradients, unless this member leaves: who is there takes what is next. From
    the chunk on that is shared by rows each goes at its own pace."""
    cdef Py_ssize_t past = r.T
    cdef Chunk c
    cdef Pieces pieces
    cdef int i
    cdef Share s
    cdef rk_idle idle
    idle.spins = idle.since = 0
    memset(&pieces, 0, sizeof(pieces))
    while past > 0:
        c = chunk_before(r, past)
        if r.apart and not by_units(r, &c, team.members):
            run_apart(r, &c, &pieces, team, clock)
            break
        if r.alive != NULL:
            if team.member == 0:
                list_rows(r, &c)
            if not meet_all(r, team, past, clock):
                return
        if team.mate == 0:
            r.even = True
        s = all_rows(r, team, clock)
        if not steps_back(r, &s, &c):
            return
        charge(clock, LOOP)
        if not meet_all(r, team, c.t0, clock):
            return
        look_at_pieces(r, &c, &pieces)
        for i in range(r.shards):
            while do_piece(
                r, &c, (own_shard(r, team) + i) % r.shards, &pieces, team, clock, &idle
            ):
                pass
        # the next chunk's dgates go where these are
        if not meet_all(r, team, c.t0, clock):
            return
        past = c.t0
    finish_gradients(r, pieces.past[0], team, clock)


# -- apart, by rows ------------------------------------------------------------------------------
#
# A chunk's rows are in parts, each done by its member, or by another that has nothing else to do:
# what no thread has begun waits for none. The gradients of a shard begin when all parts that have
# rows of it have done their steps, and go in pieces, after those of the chunk before. Steps may be
# ahead of them by as many chunks as there are rooms. A part is of the same rows in each chunk, and
# goes on by itself.


# What a member sees of how far all are. Chunks count from the first that is shared by rows.
cdef struct Progress:
    Py_ssize_t done               # chunks that are
    Chunk now, next               # the one after those, and the one after that, if it is not
    bint last                     # the last
    Pieces *pieces                # of its gradients
    const Py_ssize_t *bounds      # of the parts of the rows
    Py_ssize_t room               # chunks before which there is room for steps


cdef void look_at(const Bptt *r, Progress *p) noexcept nogil:
    p.last = p.now.t0 == 0
    if not p.last:
        p.next = chunk_before(r, p.now.t0)
    look_at_pieces(r, &p.now, p.pieces)
    p.room = p.done + (1 if p.last else ROOMS)


cdef inline const Chunk *chunk_of(const Progress *p, Py_ssize_t k) noexcept nogil:
    return &p.now if k == p.done else &p.next


cdef bint all_done(const Bptt *r, Progress *p) noexcept nogil:
    """Looks how far all are."""
    while rk_has_met(r.done, p.pieces.all):
        if p.last:
            return True
        p.done += 1
        p.now = p.next
        look_at(r, p)
    return False


cdef bint take_steps(
    const Bptt *r, const Progress *p, rk_team *team, int candidates, Clock *clock, rk_idle *idle
) noexcept nogil:
    """Does a part of the steps of a chunk, this member's or one of the `candidates` - 1 after it;
    whether there was any to do."""
    cdef Py_ssize_t k, past = p.room
    cdef Share s
    cdef int m, i
    if r.alive != NULL:
        past = min(past, rk_passed(r.listed))
    for m in range(candidates):
        i = (team.mate + m) % team.size
        k = rk_claim(&r.parts[i], past)
        if k < 0:
            continue
        rk_work(idle, &r.flags[team.mate])
        charge(clock, WAITING)
        s = share_rows(r, p.bounds, i, team, clock)
        steps_back(&r.rooms[k % ROOMS], &s, chunk_of(p, k))
        charge(clock, LOOP)
        rk_raise(&r.parts[i], 2 * (k + 1))
        return True
    return False


cdef bint has_steps(
    const Bptt *r, const Progress *p, int shard, const rk_team *team
) noexcept nogil:
    """Whether those of a chunk are done that a shard's gradients need."""
    cdef Py_ssize_t first = part(r.N, shard, r.shards), past = part(r.N, shard + 1, r.shards)
    cdef Py_ssize_t begin, end
    cdef int i, section = 0
    if r.index != NULL:  # shards may share the sums of a table
        first, past = 0, r.N
    for i in range(team.size):
        begin, end = p.bounds[i], p.bounds[i + 1]
        if r.alive != NULL:  # any rows of its sections
            while begin >= r.section[section + 1] and section + 1 < r.sections:
                section += 1
            begin, end = r.section[section], max(end, r.section[section + 1])
        if begin < past and end > first and rk_passed(&r.parts[i]) <= p.done:
            return False
    return True


cdef bint take_piece(
    const Bptt *r, const Progress *p, rk_team *team, int shards, Clock *clock, rk_idle *idle
) noexcept nogil:
    """Does a piece of a chunk's gradients, of the member's own shard or one of the `shards` - 1
    after it; whether there was any to do."""
    cdef int i, shard
    for i in range(shards):
        shard = (own_shard(r, team) + i) % r.shards
        if has_steps(r, p, shard, team) and do_piece(
            &r.rooms[p.done % ROOMS], &p.now, shard, p.pieces, team, clock, idle
        ):
            return True
    return False


cdef bint take_list(const Bptt *r, const Progress *p) noexcept nogil:
    """Lists where the rows of a chunk lie; whether there was one to list."""
    cdef Py_ssize_t k
    if r.alive == NULL:
        return False
    k = rk_claim(r.listed, p.room)
    if k < 0:
        return False
    list_rows(&r.rooms[k % ROOMS], chunk_of(p, k))
    rk_raise(r.listed, 2 * (k + 1))
    return True


cdef void run_apart(
    Bptt *r, const Chunk *c, Pieces *pieces, rk_team *team, Clock *clock
) noexcept nogil:
    """All steps and gradients from a chunk on, after those pieces of gradients."""
    cdef Progress p
    cdef rk_idle idle
    cdef bint steps_first, even
    cdef Py_ssize_t *bounds = r.bounds + team.mate * (team.size + 1)
    idle.spins = idle.since = 0
    p.done, p.now, p.pieces, p.bounds = 0, c[0], pieces, bounds
    look_at(r, &p)
    even = bound_parts(r, c.t0 + c.steps, team.size, bounds)
    if team.mate == 0:
        r.even = even
    while not all_done(r, &p):
        # Pieces of gradients go first, while what they read is in cache. But they can fill the time
        # that others take for steps: where parts have more of some chunks than of others, and at
        # the end. Those of other members' rows go last: what one core has read of another's dgates
        # must leave it again before the next are written there.
        steps_first = r.alive != NULL or p.last or p.next.t0 == 0
        if take_list(r, &p) or steps_first and take_steps(r, &p, team, 1, clock, &idle):
            continue
        if take_piece(r, &p, team, 1, clock, &idle):
            continue
        if take_steps(r, &p, team, 1, clock, &idle):
            continue
        if take_piece(r, &p, team, r.shards, clock, &idle):
            continue
        if not take_steps(r, &p, team, team.size, clock, &idle):
            rk_wait(&idle)
    rk_work(&idle, &r.flags[team.mate])
    charge(clock, WAITING)


# ------------------------------------------------------------------------------------------------


cdef void run_member(Bptt *r, int members, int member) noexcept nogil:
    cdef unsigned long long saved = fp_enter()
    cdef Clock clock = start_clock(r.spent, member)
    cdef rk_team team = rk_join(r.flags, members, member)
    cdef Py_ssize_t begin
    if r.sums_bytes > 0:
        begin = part(r.sums_bytes, member, members)
        memset(r.table_gradient + begin, 0, part(r.sums_bytes, member + 1, members) - begin)
        rk_meet(r.flags, members, member)
        charge(&clock, WAITING)
    run_together(r, &team, &clock)
    fp_leave(saved)

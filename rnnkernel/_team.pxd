"""Threads that meet again and again inside one parallel region; rnnkernel/_team.h tells how."""

cdef extern from "_team.h":
    ctypedef struct rk_flag:
        pass

    ctypedef struct rk_range:
        pass

    ctypedef struct rk_handover:
        pass

    ctypedef struct rk_idle:
        long long spins, since

    # A member's view of its team: those that began, and those that are there.
    ctypedef struct rk_team:
        rk_flag *flags
        int size, mate
        int members, member

    # Of the region that the caller is in.
    int rk_members() nogil
    int rk_member() nogil
    # Returns when all members have come as often as this one; what they wrote before is seen.
    # `flags` are `members` zeroed flags, at a multiple of 64 bytes.
    void rk_meet(rk_flag *flags, int members, int member) nogil
    # Nanoseconds of a meeting, as the first member finds by some.
    void rk_time_meetings(
        rk_flag *flags, rk_flag *past, int members, int member, double *shortest
    ) nogil
    # The team of who has these zeroed flags, from now on.
    rk_team rk_join(rk_flag *flags, int size, int mate) nogil
    # As rk_meet, in a loop of which some steps are done and some are left. Returns 0 if this member
    # came so late that the others no longer wait for it: then it leaves the loop. What it did
    # before is seen. Afterwards all agree on who is there, until they meet again. With `left` below
    # 0 nobody is late, and waiting is no loss: shares may be as unequal as they like.
    bint rk_meet_or_leave(rk_team *team, Py_ssize_t done, Py_ssize_t left) nogil
    # Lets a member be late for one of its meetings, counted from 1 with those of rk_meet.
    void rk_expel(rk_flag *flag, long long meeting) nogil
    # Nanoseconds that a member of a team has waited, where it was long; of the one who has longest.
    long long rk_lost(const rk_flag *flags, int size) nogil
    # Whether a member has left, and how many have.
    bint rk_has_left(rk_flag *flag) nogil
    int rk_gone(rk_flag *flags, int size) nogil
    # Returns when the flag has been raised to a count; what was written before that is seen.
    void rk_await(rk_flag *flag, long long count) nogil
    # One thread alone raises a flag.
    void rk_raise(rk_flag *flag, long long count) nogil
    # The next number of a count that members share, from 0, or -1 where that is not before `past`;
    # a zeroed flag that nobody meets at.
    Py_ssize_t rk_next_before(rk_flag *counter, Py_ssize_t past) nogil
    # Counts what is done; whether so much is, and then what was written for it is seen.
    void rk_count(rk_flag *counter) nogil
    bint rk_has_met(rk_flag *counter, long long count) nogil
    # Parts that go through stages 0, 1, .. each, one after another, by any member: zeroed flags.
    # The stage before `past` that this member is to do next, or -1 where there is none or another
    # is at it; then it raises the flag to twice the stages that are done.
    Py_ssize_t rk_claim(rk_flag *part, Py_ssize_t past) nogil
    # How many are done.
    Py_ssize_t rk_passed(rk_flag *part) nogil
    # Waits for a moment, in a loop that looks for work; and an end of that, which a member says
    # before it works. A zeroed rk_idle has not waited.
    void rk_wait(rk_idle *idle) nogil
    void rk_work(rk_idle *idle, rk_flag *own) nogil
    # What a member has to do of a count of pieces, and others may take from it where they have
    # nothing left. Zeros are an empty range. Nobody may take from one while it is offered.
    void rk_offer(rk_range *range, Py_ssize_t first, Py_ssize_t past) nogil
    # Takes the first half of what is left, rounded up, or the last: `most` pieces of it unless that
    # is 0. Returns 0 if there was none, 1 if it was all, 2 if more is left.
    int rk_take(
        rk_range *range, bint back, Py_ssize_t most, Py_ssize_t *first, Py_ssize_t *past
    ) nogil
    # Parts of a loop that members do each for themselves, from a step on; zeroed at first. Who has
    # done its own, and said so, takes over what others hand over: returns 0 when all is done. Who
    # is asked hands over from a step on what it does no more; returns 0 if another was first.
    void rk_begin_parts(rk_handover *h, int parts) nogil
    bint rk_wanted(rk_handover *h) nogil
    bint rk_hand_over(
        rk_handover *h, Py_ssize_t first, Py_ssize_t past, Py_ssize_t step
    ) nogil
    void rk_end_part(rk_handover *h) nogil
    bint rk_take_over(
        rk_handover *h, rk_flag *own, Py_ssize_t *first, Py_ssize_t *past, Py_ssize_t *step
    ) nogil

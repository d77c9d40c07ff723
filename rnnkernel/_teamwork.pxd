# What it costs here that so many threads work together, as a share of what it costs on the
# processor that the estimates of _plan.pyx and _chunks.pyx were fitted on: at most 1. Measured
# every now and then.
cdef double teamwork(int team) except -1
# Whether the threads of the last team have gone to sleep by now; `note_call` says that a call was
# made that could have opened one.
cdef bint are_asleep() noexcept nogil
cdef void note_call() noexcept nogil
# A number that grows whenever `teamwork` measures anew.
cdef long long this_turn() noexcept nogil
# How many threads are to copy or pack so many bytes.
cdef int team_to_move(Py_ssize_t size, int threads) except -1

cdef enum:
    WAKING = 60  # microseconds until threads that sleep are there

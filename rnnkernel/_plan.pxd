from rnnkernel._recurrence cimport Plan, Run
from rnnkernel._scratch cimport Scratch

# How many threads are worth opening for so much arithmetic in so many pieces.
cdef int team_size(double flops, Py_ssize_t tiles, int threads) except -1
cdef double flops_of(const Run *r) noexcept
cdef double team_step(const Run *r, Py_ssize_t rows, int team) except -1
cdef int plan_team(
    Plan *plan, const Run *r, Scratch scratch, Py_ssize_t steps, Py_ssize_t rows, int team
) except -1
cdef int divide(Run *r, Plan *plan, Scratch scratch, int team, Py_ssize_t piece) except -1
cdef int let_hand_over(Plan *plan, Scratch scratch) except -1

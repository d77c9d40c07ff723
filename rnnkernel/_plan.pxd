from rnnkernel._run cimport Plan, Run
from rnnkernel._scratch cimport Scratch

# How many threads are worth opening for so much arithmetic in so many pieces.
cdef int team_size(double flops, Py_ssize_t tiles, int threads) except -1
# By how many microseconds a team that takes `shared` is better than a thread that takes `alone`:
# `opening` is how long it takes a team to begin and end, and what it reads and writes to go from
# core to core, where that is dear.
cdef double gain(double alone, double shared, double opening, int team) except? -1
# Whether to open it for that, now: its threads may be asleep.
cdef bint pays_off(double gained) except -1
# Whether to open one for a forward and its backward, from their arithmetic and how many rows it has
# in a step.
# Weights that one thread has packed go from core to core, and sums and gradients come back.
cdef bint training_pays_off(
    double flops, double weight_bytes, double rows, Py_ssize_t item, int team
) except -1
cdef double flops_of(const Run *r) noexcept
# Whether threads share a step of so many rows by its units rather than by its rows.
cdef bint splits_units(const Run *r, Py_ssize_t rows, int team) except -1
# Microseconds that a team takes for a step, shared as it would share it.
cdef double team_step(const Run *r, Py_ssize_t rows, int team) except -1
cdef int plan_team(
    Plan *plan, const Run *r, Scratch scratch, Py_ssize_t steps, Py_ssize_t rows, int team
) except -1
cdef int divide(Run *r, Plan *plan, Scratch scratch, int team, Py_ssize_t piece) except -1
cdef int let_hand_over(Plan *plan, Scratch scratch) except -1

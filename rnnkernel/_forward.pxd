from rnnkernel cimport _tape
from rnnkernel._packed_weights cimport PackedWeights
from rnnkernel._run cimport Plan, Run
from rnnkernel._scratch cimport Scratch


# A run with what belongs to it.
cdef struct Pass:
    Run run
    Plan plan
    char *reserve                 # receives the gates, or NULL
    Py_ssize_t reserve_rows       # that it has room for in each step
    int groups                    # that they stand in; 0: yet to be chosen


cdef void set_weights(Run *r, PackedWeights w, Py_ssize_t N) noexcept
cdef int set_rows(Run *r, rows) except -1
cdef int set_arrays(Pass *one, _tape.Pass of, h_n, c_n) except -1
cdef int lay_out(Pass *one, Scratch scratch, index) except -1
cdef void keep_states(const Run *r) noexcept

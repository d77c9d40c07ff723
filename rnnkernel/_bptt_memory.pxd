from rnnkernel._bptt cimport Bptt
from rnnkernel._scratch cimport Scratch
from rnnkernel._tape cimport BackwardPass

# In this order: arrays, memory, and once the loop is done the gradients of the initial states.
cdef int point(Bptt *r, BackwardPass of, double limit, double norm_limit) except -1
cdef int prepare(Bptt *r, BackwardPass of, Scratch scratch, int team) except -1
cdef int hand_on_states(const Bptt *r, BackwardPass of) except -1
# Another array for dx, or None.
cdef int set_dx(Bptt *r, dx) except -1

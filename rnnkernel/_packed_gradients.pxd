from rnnkernel._kernels cimport rk_window
from rnnkernel._memory cimport Layout
from rnnkernel._packed_weights cimport PackedWeights
from rnnkernel._panels cimport Panel


cdef class PackedGradients:
    cdef PackedWeights weights
    cdef Panel panels[3]                      # how W_ih's and W_hh's, by phase, are unpacked,
    cdef tuple arrays                         # and where to
    cdef bint direct                          # each block as soon as it is summed
    # what the pointers below point into
    cdef object memory
    cdef char *bias                           # [block][S and peepholes][U], float64
    cdef char *input                          # [block][I][G][U], or NULL where direct
    cdef char *recurrent[2]                   # [block][P][slots][U], likewise
    cdef char *projection                     # [columns of H][P][4 vectors], or NULL
    cdef char *end
    cdef int shards                           # the pointers are to sums of the first,
    cdef Py_ssize_t shard_bytes               # and so far behind are those of the next
    cdef bint fresh                           # whether nothing was summed yet

    cdef int lay_out(self) except -1
    cdef void place_parts(self, Layout *m) noexcept
    cdef int find_panels(self) except -1
    cdef bint begin(self, bint at_once) noexcept
    cdef void add_vectors(self) noexcept
    cdef int copy(self, vector, const rk_window *window) except -1
    cdef void unpack_projection(self, weight_hr) noexcept

"""Dropout between layers, over the steps and rows of what one layer hands to the next."""

from cython.parallel cimport prange

from rnnkernel._kernels cimport (
    RK_FLOAT32,
    RK_FLOAT64,
    fp_enter,
    fp_leave,
    kernels,
    rk_dropout,
    rk_kernels,
)
from rnnkernel._plan cimport team_size
from rnnkernel._shared cimport rk_add, rk_get, rk_replace, rk_set

ctypedef fused real:
    float
    double

# Numbers are drawn with so many bits.
cdef int BITS = 24
# Arithmetic for one element, to decide on threads.
cdef double FLOPS = 40.0


cdef void drop_step(
    const rk_kernels *table, rk_dropout step, Py_ssize_t t, Py_ssize_t in_time, Py_ssize_t out_time
) noexcept nogil:
    cdef unsigned long long saved = fp_enter()
    step.in_ = <const char *>step.in_ + t * in_time
    step.out = <char *>step.out + t * out_time
    step.step += t
    table.dropout(&step)
    fp_leave(saved)


def dropout(
    const real[:, :, :] x,
    real[:, :, :] out,
    double p,
    unsigned long long seed,
    int layer,
    unsigned long long first_step,
    int threads,
):
    """Writes x (T, N, width; units contiguous) to `out`, each element 0 with probability p and
    divided by 1 - p otherwise. `out` may be x itself.

    What is dropped is a function of the seed, the layer, the step (`first_step` + t), the row
    and the unit, and of nothing else.
    """
    cdef rk_dropout all
    cdef Py_ssize_t t, T = x.shape[0]
    cdef Py_ssize_t in_time = x.strides[0], out_time = out.strides[0]
    cdef const rk_kernels *table = kernels(RK_FLOAT32 if x.itemsize == 4 else RK_FLOAT64)
    if T == 0 or x.shape[1] == 0:
        return
    all.rows, all.width = x.shape[1], x.shape[2]
    all.in_ = &x[0, 0, 0]
    all.out = &out[0, 0, 0]
    all.in_row, all.out_row = x.strides[1] // x.itemsize, out.strides[1] // x.itemsize
    all.first_row = 0
    all.seed, all.step = seed, first_step
    all.layer = layer
    all.threshold = <int>(p * (1 << BITS) + 0.5)
    all.scale = 1 / (1 - p) if p < 1 else 0
    cdef int team = team_size(FLOPS * T * all.rows * all.width, T, threads)
    with nogil:
        if team == 1:
            for t in range(T):
                drop_step(table, all, t, in_time, out_time)
        else:
            for t in prange(T, num_threads=team, schedule="static"):
                drop_step(table, all, t, in_time, out_time)


cdef class Drawn:
    """How many steps have had masks. Calls at once count without a lock: a signal's handler may
    make one in the middle of another."""

    cdef long long counted

    def __init__(self, long long steps=0):
        self.counted = steps

    def __reduce__(self):
        return Drawn, (self.steps,)

    @property
    def steps(self):
        return rk_get(&self.counted)

    @steps.setter
    def steps(self, long long steps):
        rk_set(&self.counted, steps)

    def draw(self, long long T):
        """The first of T more."""
        return rk_add(&self.counted, T)

    def give_back(self, long long first, long long T):
        """Those of a call that failed, unless others were drawn since."""
        rk_replace(&self.counted, first + T, first)

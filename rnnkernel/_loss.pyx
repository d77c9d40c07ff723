"""The softmax's cross-entropy, on several threads; csrc/loss.h has the equations."""

from cython.parallel cimport prange

cimport numpy as cnp

import numpy as np

from rnnkernel._kernels cimport (
    RK_FLOAT32,
    RK_FLOAT64,
    fp_enter,
    fp_leave,
    kernels,
    rk_cross_entropy,
    rk_kernels,
)
from rnnkernel._memory cimport address
from rnnkernel._teamwork cimport team_to_move

cnp.import_array()


cdef void some_positions(
    const rk_kernels *table, rk_cross_entropy job, Py_ssize_t item, int part, int parts
) noexcept nogil:
    cdef Py_ssize_t begin = job.positions * part // parts
    cdef unsigned long long saved = fp_enter()
    job.positions = job.positions * (part + 1) // parts - begin
    job.logits = <const char *>job.logits + begin * job.classes * item
    job.dlogits = <char *>job.dlogits + begin * job.classes * item
    job.targets, job.totals, job.below = job.targets + begin, job.totals + begin, job.below + begin
    table.cross_entropy(&job)
    fp_leave(saved)


def cross_entropy(cnp.ndarray logits, cnp.ndarray targets, cnp.ndarray dlogits, int threads):
    """The mean loss of logits (n, C), float32 or float64, with targets (n,), intp and in range; its
    gradient goes to `dlogits`. All are C-contiguous. No result depends on threads."""
    cdef Py_ssize_t item = cnp.PyArray_ITEMSIZE(logits)
    cdef const rk_kernels *table = kernels(RK_FLOAT32 if item == 4 else RK_FLOAT64)
    cdef int part, team
    cdef rk_cross_entropy job
    job.positions, job.classes = cnp.PyArray_DIM(logits, 0), cnp.PyArray_DIM(logits, 1)
    sums = np.empty((2, job.positions))
    job.logits, job.dlogits = address(logits), address(dlogits)
    job.targets = <const Py_ssize_t *>address(targets)
    job.totals = <double *>address(sums)
    job.below = job.totals + job.positions
    job.share = 1.0 / job.positions
    team = team_to_move(4 * cnp.PyArray_NBYTES(logits), threads)
    with nogil:
        if team == 1:
            some_positions(table, job, item, 0, 1)
        else:
            for part in prange(team, num_threads=team, schedule="static", chunksize=1):
                some_positions(table, job, item, part, team)
    with np.errstate(all="ignore"):  # not to stop half-way where the caller wants them raised
        return float(np.mean(np.log(sums[0]) + sums[1]))

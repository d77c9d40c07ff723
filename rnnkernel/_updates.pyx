"""What training does with gradients, whole arrays at a time and on several threads.

csrc/updates.h has the arithmetic. Arrays are of float32 or float64; denormals count as zero, and no
result depends on threads.
"""

from cython.parallel cimport prange

cimport numpy as cnp

import numpy as np

from rnnkernel._kernels cimport (
    RK_ALIGNMENT,
    RK_FLOAT32,
    RK_FLOAT64,
    fp_enter,
    fp_leave,
    kernels,
    rk_adam,
    rk_kernels,
)
from rnnkernel._memory cimport address
from rnnkernel._teamwork cimport team_to_move

cnp.import_array()

# Elements whose squares are added before the sums are.
cdef Py_ssize_t SUMMED = 1 << 14


cdef const rk_kernels *table_of(cnp.ndarray array) noexcept nogil:
    return kernels(RK_FLOAT32 if cnp.PyArray_ITEMSIZE(array) == 4 else RK_FLOAT64)


cdef cnp.ndarray in_order(cnp.ndarray array):
    """The array itself, or a copy in C order."""
    if cnp.PyArray_ISCARRAY_RO(array):
        return array
    return np.array(array, order="C")


cdef Py_ssize_t share(Py_ssize_t count, int part, int parts) noexcept nogil:
    """Where a part of so many begins: at the start of a cache line of either dtype."""
    return count if part == parts else count * part // parts // RK_ALIGNMENT * RK_ALIGNMENT


cdef void adam_part(
    const rk_kernels *table, rk_adam job, Py_ssize_t item, int part, int parts
) noexcept nogil:
    cdef Py_ssize_t begin = share(job.count, part, parts)
    cdef unsigned long long saved = fp_enter()
    job.count = share(job.count, part + 1, parts) - begin
    job.parameter = <char *>job.parameter + begin * item
    job.gradient = <const char *>job.gradient + begin * item
    job.mean = <char *>job.mean + begin * item
    job.square = <char *>job.square + begin * item
    table.adam(&job)
    fp_leave(saved)


def adam(
    cnp.ndarray parameter, cnp.ndarray gradient, cnp.ndarray mean, cnp.ndarray square,
    double beta1, double beta2, double rate, double eps, double decay, int threads,
):
    """Adam's step of one array, in place; means and squares in C order."""
    cdef cnp.ndarray moved = in_order(parameter), given = in_order(gradient)
    cdef Py_ssize_t item = cnp.PyArray_ITEMSIZE(moved)
    cdef const rk_kernels *table = table_of(moved)
    cdef int part, team
    cdef rk_adam job
    job.count = cnp.PyArray_SIZE(moved)
    job.parameter, job.mean, job.square = address(moved), address(mean), address(square)
    job.gradient = address(given)
    if moved is parameter and given is gradient and overlap(&job, item):
        given = given.copy()
        job.gradient = address(given)
    job.beta1, job.beta2, job.rate, job.eps, job.decay = beta1, beta2, rate, eps, decay
    team = team_to_move(4 * job.count * item, threads)
    with nogil:
        if team == 1:
            adam_part(table, job, item, 0, 1)
        else:
            for part in prange(team, num_threads=team, schedule="static", chunksize=1):
                adam_part(table, job, item, part, team)
    if moved is not parameter:
        parameter[...] = moved


cdef bint overlap(const rk_adam *job, Py_ssize_t item) noexcept:
    """Whether the gradient is a part of the parameter's memory, and elsewhere in it."""
    cdef const char *parameter = <const char *>job.parameter
    cdef const char *gradient = <const char *>job.gradient
    cdef Py_ssize_t size = job.count * item
    return parameter != gradient and parameter < gradient + size and gradient < parameter + size


cdef double sum_piece(
    const rk_kernels *table, const char *numbers, Py_ssize_t piece, Py_ssize_t count,
    Py_ssize_t item,
) noexcept nogil:
    cdef Py_ssize_t begin = piece * SUMMED
    cdef unsigned long long saved = fp_enter()
    cdef double total = table.sum_of_squares(numbers + begin * item, min(SUMMED, count - begin))
    fp_leave(saved)
    return total


def sum_of_squares(cnp.ndarray array, int threads):
    """Of all elements, in float64."""
    cdef cnp.ndarray given = in_order(array)
    cdef const rk_kernels *table = table_of(given)
    cdef Py_ssize_t item = cnp.PyArray_ITEMSIZE(given), count = cnp.PyArray_SIZE(given)
    cdef Py_ssize_t pieces = (count + SUMMED - 1) // SUMMED, piece
    cdef const char *numbers = address(given)
    cdef double total = 0
    cdef double *sums
    cdef int team
    if pieces <= 1:
        return sum_piece(table, numbers, 0, count, item)
    kept = np.empty(pieces)
    sums = <double *>address(kept)
    team = team_to_move(count * item, threads)
    with nogil:
        if team == 1:
            for piece in range(pieces):
                sums[piece] = sum_piece(table, numbers, piece, count, item)
        else:
            for piece in prange(pieces, num_threads=team, schedule="static"):
                sums[piece] = sum_piece(table, numbers, piece, count, item)
        for piece in range(pieces):
            total = total + sums[piece]
    return total


cdef void scale_part(
    const rk_kernels *table, char *numbers, Py_ssize_t count, double factor, int part, int parts,
    Py_ssize_t item,
) noexcept nogil:
    cdef Py_ssize_t begin = share(count, part, parts)
    cdef unsigned long long saved = fp_enter()
    table.scale(numbers + begin * item, share(count, part + 1, parts) - begin, factor)
    fp_leave(saved)


def scale(cnp.ndarray array, double factor, int threads):
    """Multiplies all elements by a number, in place."""
    cdef cnp.ndarray moved = in_order(array)
    cdef const rk_kernels *table = table_of(moved)
    cdef Py_ssize_t item = cnp.PyArray_ITEMSIZE(moved), count = cnp.PyArray_SIZE(moved)
    cdef char *numbers = address(moved)
    cdef int part, team = team_to_move(count * item, threads)
    with nogil:
        if team == 1:
            scale_part(table, numbers, count, factor, 0, 1, item)
        else:
            for part in prange(team, num_threads=team, schedule="static", chunksize=1):
                scale_part(table, numbers, count, factor, part, team, item)
    if moved is not array:
        array[...] = moved


def sum_of_rows(cnp.ndarray rows):
    """(C,) of (n, C), summed in float64."""
    cdef cnp.ndarray given = in_order(rows)
    cdef unsigned long long saved
    sums = np.zeros(cnp.PyArray_DIM(given, 1))
    cdef double *to = <double *>address(sums)
    with nogil:
        saved = fp_enter()
        table_of(given).sum_of_rows(
            cnp.PyArray_DATA(given), cnp.PyArray_DIM(given, 0), cnp.PyArray_DIM(given, 1), to
        )
        fp_leave(saved)
    return sums.astype(rows.dtype)

"""The rows of a batch by their lengths: the order that the loops take them in, and copies of them.
"""

from cython.parallel cimport prange
from libc.string cimport memcpy

cimport numpy as cnp

import numpy as np

from rnnkernel._kernels cimport usable_threads

from rnnkernel._memory import empty

cnp.import_array()

# Below so many bytes one thread copies: opening a team costs more.
cdef Py_ssize_t SERIAL_BYTES = 1 << 20


cdef inline Py_ssize_t *offsets(cnp.ndarray array) noexcept:
    return <Py_ssize_t *>cnp.PyArray_DATA(array)


cdef class Rows:
    """The rows of a batch as the loops of one direction take them.

    Attributes
    ----------
    T : int
        Steps of the arrays.
    order : (N,) intp
        The batch row at each position.
    lengths : (N,) intp
        By position, descending.
    start : (N,) intp
        By position: the step of the arrays, in the direction's order, that is the row's first.
    alive : (longest length,) intp
        How many rows, the first ones by position, have each step.
    reset : (longest length, N) uint8, or None
        By step and position: whether the step sees zero states instead of those before it.
    resets : (longest length,) uint8, or None
        Whether any row does.
    whole : bool
        Whether these are all steps, and the loops write zeros past the ends.
    """

    def __init__(
        self, Py_ssize_t T, order, lengths, start, alive, reset=None, resets=None, bint whole=True
    ):
        self.T, self.whole = T, whole
        self.order, self.lengths, self.start, self.alive = order, lengths, start, alive
        self.reset, self.resets = reset, resets

    def segment(self, part):
        """The same rows over some of their steps; the arrays remain those of all steps."""
        return Rows(
            self.T,
            self.order,
            np.clip(self.lengths - part.start, 0, part.stop - part.start),
            self.start + part.start,
            self.alive[part],
            None if self.reset is None else self.reset[part],
            None if self.resets is None else self.resets[part],
            False,
        )

    def restore(self, array):
        """(T, N, ...) by own step and position, as the arrays have it; zero past the ends."""
        restored = np.zeros_like(array)
        t = np.arange(len(array))[:, None]
        t, position = np.nonzero(t < self.lengths)
        restored[t + self.start[position], self.order[position]] = array[t, position]
        return restored


def plain_lengths(lengths, Py_ssize_t T, Py_ssize_t N):
    """A copy (N,) of lengths, contiguous intp, or None where they are something else than an array
    of so many integers from 0 to T."""
    cdef cnp.ndarray copy
    cdef cnp.npy_intp count = N
    cdef Py_ssize_t n
    if type(lengths) is not cnp.ndarray:
        return None
    copy = <cnp.ndarray>lengths
    if (
        cnp.PyArray_NDIM(copy) != 1
        or cnp.PyArray_DIM(copy, 0) != N
        or not cnp.PyTypeNum_ISINTEGER(cnp.PyArray_TYPE(copy))
    ):
        return None
    copy = cnp.PyArray_EMPTY(1, &count, cnp.NPY_INTP, 0)
    if cnp.PyArray_CopyInto(copy, lengths) < 0:
        return None
    for n in range(N):
        if offsets(copy)[n] < 0 or offsets(copy)[n] > T:
            return None
    return copy


def all_have(cnp.ndarray lengths, Py_ssize_t T):
    """Whether no row is shorter than T; `lengths` are contiguous intp."""
    cdef Py_ssize_t n
    for n in range(lengths.shape[0]):
        if offsets(lengths)[n] < T:
            return False
    return True


def by_length(cnp.ndarray lengths, Py_ssize_t T):
    """Rows from the longest to the shortest, equal ones as they come: `order` (N,), their lengths
    (N,), and for each step how many have it, `alive` (longest,). `lengths` (N,) are contiguous intp
    from 0 to T."""
    cdef Py_ssize_t n, length, rows, N = lengths.shape[0], longest = 0
    cdef const Py_ssize_t *given = offsets(lengths)
    cdef cnp.npy_intp count = N
    order = cnp.PyArray_EMPTY(1, &count, cnp.NPY_INTP, 0)
    by_position = cnp.PyArray_EMPTY(1, &count, cnp.NPY_INTP, 0)
    for n in range(N):
        longest = max(longest, given[n])
    count = longest + 1
    alive = cnp.PyArray_ZEROS(1, &count, cnp.NPY_INTP, 0)
    cdef Py_ssize_t *place = offsets(alive)
    cdef Py_ssize_t *to = offsets(order)
    cdef Py_ssize_t *sorted_lengths = offsets(by_position)
    # by counting: place[k] becomes how many are longer than k, where those of k begin
    for n in range(N):
        place[given[n]] += 1
    rows = 0
    for length in range(longest, -1, -1):
        n, place[length] = place[length], rows
        rows += n
    for n in range(N):
        length = given[n]
        to[place[length]] = n
        sorted_lengths[place[length]] = length
        place[length] += 1
    # that moved each to where the next shorter begins: how many have at least so many steps
    return order, by_position, alive[1:]


def first_steps(cnp.ndarray lengths, Py_ssize_t T, bint backwards):
    """By position: where rows of these lengths begin in T steps of a direction."""
    cdef cnp.npy_intp N = lengths.shape[0]
    cdef Py_ssize_t n
    start = cnp.PyArray_ZEROS(1, &N, cnp.NPY_INTP, 0)
    if backwards:
        for n in range(N):
            offsets(start)[n] = T - offsets(lengths)[n]
    return start


def rows_of(cnp.ndarray lengths, Py_ssize_t T, int directions):
    """A Rows for each direction of rows with these lengths, contiguous intp (N,) from 0 to T; None
    where no row has a step."""
    order, by_position, alive = by_length(lengths, T)
    if len(alive) == 0:
        return None
    return [
        Rows(T, order, by_position, first_steps(by_position, T, d == 1), alive)
        for d in range(directions)
    ]


cdef void copy_step(
    char *to, const char *step, Py_ssize_t t, Py_ssize_t N, Py_ssize_t row, Py_ssize_t width,
    const Py_ssize_t *lengths,
) noexcept nogil:
    """The rows that have step t; strides in bytes."""
    cdef Py_ssize_t n
    if lengths == NULL and row == width:
        memcpy(to, step, N * width)
        return
    for n in range(N):
        if lengths == NULL or t < lengths[n]:
            memcpy(to + n * width, step + n * row, width)


cdef bint stays(cnp.ndarray x) noexcept:
    """Whether BPTT can read x itself again: nobody writes to it, down to what owns its memory."""
    cdef object owner = x
    if x.shape[2] > 1 and x.strides[2] != x.itemsize:
        return False
    while isinstance(owner, np.ndarray):
        if cnp.PyArray_ISWRITEABLE(<cnp.ndarray>owner):
            return False
        owner = owner.base
    return owner is None or isinstance(owner, bytes)


def kept_x(cnp.ndarray x, lengths, int threads):
    """What training keeps of x (T, N, I): x itself where it stays as it is, or `copy_steps`."""
    return x if stays(x) else copy_steps(x, lengths, threads)


def copy_steps(cnp.ndarray x, lengths, int threads):
    """A C-contiguous copy of x (T, N, I); with `lengths`, contiguous intp (N,), only of the steps
    that the rows have."""
    cdef Py_ssize_t t, T = x.shape[0], N = x.shape[1], width = x.shape[2] * x.itemsize
    cdef Py_ssize_t time = x.strides[0], row = x.strides[1]
    cdef const Py_ssize_t *having = NULL
    cdef const char *source = <const char *>cnp.PyArray_DATA(x)
    cdef char *to
    cdef int team
    if x.shape[2] > 1 and x.strides[2] != x.itemsize:
        return np.array(x, order="C")
    copy = empty((T, N, x.shape[2]), x.dtype)
    to = <char *>cnp.PyArray_DATA(<cnp.ndarray>copy)
    if lengths is not None:
        having = offsets(lengths)
    team = usable_threads(threads) if T * N * width >= SERIAL_BYTES else 1
    if team <= 1:
        for t in range(T):
            copy_step(to + t * N * width, source + t * time, t, N, row, width, having)
    else:
        for t in prange(T, num_threads=team, schedule="static", nogil=True):
            copy_step(to + t * N * width, source + t * time, t, N, row, width, having)
    return copy

"""The rows of a batch by their lengths: the order that the loops take them in, and copies of them.
"""

from cython.parallel cimport prange
from libc.string cimport memcpy, memset

cimport numpy as cnp

import numpy as np

from rnnkernel._memory cimport new_array
from rnnkernel._teamwork cimport team_to_move

cnp.import_array()


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
        By position, descending within a section.
    start : (N,) intp
        By position: the step of the arrays, in the direction's order, that is the row's first.
    alive : (sections, longest length) intp
        Of each section the position after those that have each step, which are its first ones.
    section : (sections + 1,) intp
        Bounds of parts of the batch that stand one after another, each with the longest row first.
    longest : int
    reset : (longest length, N) uint8, or None
        By step and position: whether the step sees zero states instead of those before it.
    resets : (longest length,) uint8, or None
        Whether any row does.
    whole : bool
        Whether these are all steps, and the loops write zeros past the ends.
    """

    def __init__(
        self,
        Py_ssize_t T,
        order,
        lengths,
        start,
        alive,
        section,
        reset=None,
        resets=None,
        bint whole=True,
    ):
        self.T, self.whole = T, whole
        self.order, self.lengths, self.start, self.alive = order, lengths, start, alive
        self.section, self.longest = section, alive.shape[1]
        self.reset, self.resets = reset, resets

    def segment(self, part):
        """The same rows over some of their steps; the arrays remain those of all steps."""
        return Rows(
            self.T,
            self.order,
            np.clip(self.lengths - part.start, 0, part.stop - part.start),
            self.start + part.start,
            np.ascontiguousarray(self.alive[:, part]),
            self.section,
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


def by_length(cnp.ndarray lengths, Py_ssize_t T, int sections=1):
    """Rows from the longest to the shortest, equal ones as they come, section by section, of about
    as many steps: `order` (N,), their lengths (N,), `alive` and `section` as Rows has them.
    `lengths` (N,) are contiguous intp from 0 to T."""
    cdef Py_ssize_t n, length, rows, begin, end, N = lengths.shape[0], longest = 0
    cdef const Py_ssize_t *given = offsets(lengths)
    cdef cnp.npy_intp[2] size
    cdef int i
    cdef Py_ssize_t *place
    size[0] = sections + 1
    section = cnp.PyArray_EMPTY(1, size, cnp.NPY_INTP, 0)
    bound_section(given, 0, N, T, sections, offsets(section))
    size[0] = N
    order = cnp.PyArray_EMPTY(1, size, cnp.NPY_INTP, 0)
    by_position = cnp.PyArray_EMPTY(1, size, cnp.NPY_INTP, 0)
    for n in range(N):
        longest = max(longest, given[n])
    size[0], size[1] = sections, longest
    alive = cnp.PyArray_EMPTY(2, size, cnp.NPY_INTP, 0)
    size[0] = longest + 1
    places = cnp.PyArray_EMPTY(1, size, cnp.NPY_INTP, 0)
    place = offsets(places)
    for i in range(sections):
        begin, end = offsets(section)[i], offsets(section)[i + 1]
        # by counting: place[k] becomes where those of length k begin, behind the longer ones
        memset(place, 0, (longest + 1) * sizeof(Py_ssize_t))
        for n in range(begin, end):
            place[given[n]] += 1
        rows = begin
        for length in range(longest, -1, -1):
            n, place[length] = place[length], rows
            rows += n
        for n in range(begin, end):
            length = given[n]
            offsets(order)[place[length]] = n
            offsets(by_position)[place[length]] = length
            place[length] += 1
        # that moved each to where the next shorter begin: behind those that have so many steps
        memcpy(offsets(alive) + i * longest, place + 1, longest * sizeof(Py_ssize_t))
    return order, by_position, alive, section


def first_steps(cnp.ndarray lengths, Py_ssize_t T, bint backwards):
    """By position: where rows of these lengths begin in T steps of a direction."""
    cdef cnp.npy_intp N = lengths.shape[0]
    cdef Py_ssize_t n
    start = cnp.PyArray_ZEROS(1, &N, cnp.NPY_INTP, 0)
    if backwards:
        for n in range(N):
            offsets(start)[n] = T - offsets(lengths)[n]
    return start


def rows_of(cnp.ndarray lengths, Py_ssize_t T, int directions, int sections):
    """A Rows for each direction of rows with these lengths, contiguous intp (N,) from 0 to T; None
    where no row has a step."""
    order, by_position, alive, section = by_length(lengths, T, sections)
    if alive.shape[1] == 0:
        return None
    return [
        Rows(T, order, by_position, first_steps(by_position, T, d == 1), alive, section)
        for d in range(directions)
    ]


cdef bint bound_by_length(
    const Py_ssize_t *lengths, const Py_ssize_t *section, int sections, Py_ssize_t past,
    Py_ssize_t parts, Py_ssize_t *bounds,
) noexcept nogil:
    cdef Py_ssize_t n, i, first, length, least = section[sections] * past, most = 0
    for i in range(sections if parts >= sections else 0):
        first = part(parts, i, sections)
        bound_section(
            lengths, section[i], section[i + 1], past, part(parts, i + 1, sections) - first,
            bounds + first,
        )
    if parts < sections:
        bound_section(lengths, 0, section[sections], past, parts, bounds)
    for i in range(parts):
        length = 0
        for n in range(bounds[i], bounds[i + 1]):
            length += min(lengths[n], past)
        least, most = min(least, length), max(most, length)
    return most <= 2 * least


cdef void bound_section(
    const Py_ssize_t *lengths, Py_ssize_t begin, Py_ssize_t end, Py_ssize_t past, Py_ssize_t parts,
    Py_ssize_t *bounds,
) noexcept nogil:
    cdef Py_ssize_t n, length, i = 1
    cdef double count = 0, steps = 0
    for n in range(begin, end):
        count += min(lengths[n], past)
    bounds[0] = begin
    for n in range(begin, end):
        length = min(lengths[n], past)
        # a row goes to the part that has more of it
        while i < parts and (steps + 0.5 * length) * parts >= count * i:
            bounds[i] = n
            i += 1
        steps += length
    while i <= parts:
        bounds[i] = end
        i += 1


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


cdef bint can_be_kept(cnp.ndarray x) noexcept:
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
    """What training keeps of x (T, N, I): its memory where it stays as it is, or `copy_steps`. Not
    the array itself, whose shape the caller may set."""
    return x.view() if can_be_kept(x) else copy_steps(x, lengths, threads)


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
    copy = new_array(3, x.shape, cnp.PyArray_TYPE(x))
    to = <char *>cnp.PyArray_DATA(<cnp.ndarray>copy)
    if lengths is not None:
        having = offsets(lengths)
    team = team_to_move(T * N * width, threads)
    if team <= 1:
        for t in range(T):
            copy_step(to + t * N * width, source + t * time, t, N, row, width, having)
    else:
        for t in prange(T, num_threads=team, schedule="static", nogil=True):
            copy_step(to + t * N * width, source + t * time, t, N, row, width, having)
    return copy

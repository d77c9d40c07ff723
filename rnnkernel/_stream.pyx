"""Streams: one step of a stack at a time, with nothing left to prepare.

The loop is that of rnnkernel/_recurrence.pyx. What it works on is laid out once: the gate buffer
and the tiles of h hold two steps, in turn, so that a step leaves the state where the next one
reads it. A call checks its arrays, points the loop at them and runs.
"""

from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.pythread cimport (
    NOWAIT_LOCK,
    PyThread_acquire_lock,
    PyThread_allocate_lock,
    PyThread_free_lock,
    PyThread_release_lock,
    PyThread_type_lock,
)
from cython.parallel cimport parallel
from libc.string cimport memset

cimport numpy as cnp

cdef extern from *:
    # NumPy's headers bring <complex.h>, whose I is not the input size
    """
    #undef I
    """

import sys

import numpy as np

from rnnkernel._forward cimport set_weights
from rnnkernel._packing cimport PackedWeights, address
from rnnkernel._plan cimport plan_team
from rnnkernel._recurrence cimport Plan, Run, run_team
from rnnkernel._scratch cimport Scratch
from rnnkernel._team cimport rk_flag, rk_meet, rk_member, rk_members

from rnnkernel import _arguments, _check, _threads
from rnnkernel._memory import aligned_zeros
from rnnkernel._plan import team_size

cnp.import_array()

# From this much arithmetic on a step releases the GIL. Below, releasing would cost a part of the
# step by itself, and waiting to get it back, where other threads run Python, many times the step.
cdef double RELEASE_FLOPS = 100e3


cdef class Stream:
    """A sequence that arrives step by step: the state stays inside, between calls of `step`.

    `layer.stream()` and `layer.freeze().stream()` make one; it keeps the weights of that moment.
    Any number of steps give the bits of one call of the layer over the whole sequence. A stream is
    used by one thread at a time; different streams may run at once.

    Attributes
    ----------
    batch_size : int
        N: sequences that go side by side.
    state : (L, N, H) array, or for LSTM a pair h (L, N, P), c (L, N, H)
        Copies of the states after the last step, zeros at first. Setting it, to arrays of
        these shapes or to None for zeros, goes on from there.
    """

    cdef object frozen, layer, dtype
    cdef readonly Py_ssize_t batch_size
    cdef Py_ssize_t layers, inputs, outputs, item
    cdef int type_number
    cdef bint releases
    cdef Run *runs                 # one a layer
    cdef Plan plan
    cdef int parity                # which of the two steps' memory holds the state
    cdef PyThread_type_lock lock   # held during a step
    cdef Py_ssize_t[:, ::1] offsets
    cdef Scratch scratch
    cdef object packed, buffers, h, c, own_y

    def __cinit__(self):
        self.lock = PyThread_allocate_lock()
        if self.lock == NULL:
            raise MemoryError("no lock for a stream")

    def __init__(self, frozen, batch_size=1):
        cdef Py_ssize_t k, n, N
        cdef PackedWeights w
        cdef Run *r
        if self.runs != NULL:
            raise TypeError("a stream is made once")
        N = self.batch_size = _check.size("batch_size", batch_size)
        if frozen.bidirectional:
            raise ValueError(
                "bidirectional: expected a layer of one direction, got True: the second direction "
                "starts at the last step, which a stream does not have"
            )
        self.frozen, self.layer, self.packed = frozen, frozen._layer, frozen._packed
        self.dtype = frozen.dtype
        self.type_number = cnp.NPY_FLOAT32 if self.dtype == np.float32 else cnp.NPY_FLOAT64
        self.item = self.dtype.itemsize
        self.layers, self.inputs = frozen.num_layers, frozen.input_size
        # more than what is allocated below, in Python's integers, which do not overflow
        bound = 16 * batch_size * (frozen.hidden_size + 128) * self.item
        if bound > sys.maxsize:
            raise MemoryError(f"batch_size: the states of {batch_size} rows do not fit in memory")
        self.runs = <Run *>PyMem_Calloc(self.layers, sizeof(Run))
        if self.runs == NULL:
            raise MemoryError(f"a stream of {self.layers} layers does not fit in memory")

        flops = 0.0
        self.buffers, self.h, self.c = [], [], []
        # offsets of rows: in x, in y, and twice for each layer, in its gates and its h
        self.offsets = np.zeros((2 + 2 * self.layers, N), np.intp)
        for k in range(self.layers):
            w = self.packed[k]
            r = &self.runs[k]
            set_weights(r, w, N)
            flops += 2.0 * r.cell.gates * r.H * (r.I + r.P) * N
            r.chunk, r.gates_steps = 1, 2
            for n in range(N):
                self.offsets[2 + 2 * k, n] = n * r.cell.memory_slots * r.units
                self.offsets[3 + 2 * k, n] = n * r.pitch
            r.gates_row = r.chunk_gates = &self.offsets[2 + 2 * k, 0]
            r.h_row = &self.offsets[3 + 2 * k, 0]
            r.y_row = r.h_row
            r.x_unit = 1
            if k > 0:
                r.chunk_x = &self.offsets[1 + 2 * k, 0]
            array = self.zeros(2 * r.gates_time)
            r.gates = <char *><Py_ssize_t>address(array)
            gates = array.reshape(2, r.blocks, N, r.cell.memory_slots, r.units)
            if r.cell.states == 2:
                # where h_t lies in one tile of h, c_t lies in the other step's gates
                self.c.append(gates[::-1, :, :, r.cell.slots].transpose(0, 2, 1, 3))
            # two tiles of h, what a first phase hands on, and a y that nobody reads
            array = self.zeros(4 * N * r.pitch)
            r.h = <char *><Py_ssize_t>address(array)
            r.early = r.h + 2 * N * r.pitch * r.item
            r.y = r.early + N * r.pitch * r.item
            self.h.append(array.reshape(4, N, r.pitch)[:2])
        self.runs[0].chunk_x = &self.offsets[0, 0]
        self.runs[self.layers - 1].y_row = &self.offsets[1, 0]
        self.outputs = w.projected_size
        self.own_y = _check.allocate("y", (N, self.outputs), self.dtype)

        self.scratch = Scratch()
        self.plan.pieces = 0
        team = team_size(flops, max(N, r.blocks), _threads.resolve(None))
        plan_team(&self.plan, &self.runs[0], self.scratch, 1, N, team)
        self.releases = flops >= RELEASE_FLOPS

    def __dealloc__(self):
        PyMem_Free(self.runs)
        if self.lock != NULL:
            PyThread_free_lock(self.lock)

    def __repr__(self):
        return f"{self.frozen!r}.stream(batch_size={self.batch_size})"

    cdef zeros(self, Py_ssize_t count):
        array = aligned_zeros(count, self.dtype)
        self.buffers.append(array)
        return array

    def step(self, x, out=None):
        """One step of all layers.

        Parameters
        ----------
        x : (N, I) array, or (I,) where the batch size is 1
            Of the layer's dtype, with any strides; never written.
        out : (N, P) array, or (P,) where x is (I,), optional
            Where y is written. Given one, a step allocates nothing.

        Returns
        -------
        y : like out
            The hidden states of the last layer; `out` if it was given.

        Raises
        ------
        TypeError, ValueError
            For a bad argument, named in the message; nothing was changed.
        RuntimeError
            Where another thread is in a step of this stream.
        """
        cdef cnp.ndarray x_array, y_array
        cdef Py_ssize_t n, row_step
        cdef bint flat, through = False
        if not self.plain(x, self.inputs):
            x = self.general(x, "x", "I", self.inputs)
        x_array = <cnp.ndarray>x
        flat = cnp.PyArray_NDIM(x_array) == 1
        if out is None:
            y_array = self.allocate(flat)
        else:
            if (
                not self.plain(out, self.outputs)
                or (cnp.PyArray_NDIM(out) == 1) != flat
                or not cnp.PyArray_ISCARRAY(<cnp.ndarray>out)
                or self.overlap(<cnp.ndarray>out, x_array)
            ):
                through = self.check_out(out, x, flat)
            y_array = self.own_y if through else <cnp.ndarray>out

        if PyThread_acquire_lock(self.lock, NOWAIT_LOCK) == 0:
            raise RuntimeError("step: this stream is in a step on another thread")
        try:
            row_step = 0 if flat else cnp.PyArray_STRIDES(x_array)[0] // self.item
            for n in range(self.batch_size):
                self.offsets[0, n] = n * row_step
                self.offsets[1, n] = n * self.outputs
            self.runs[0].x = <const char *>cnp.PyArray_DATA(x_array)
            self.runs[0].x_unit = (
                cnp.PyArray_STRIDES(x_array)[0 if flat else 1] // self.item
            )
            self.runs[self.layers - 1].y = <char *>cnp.PyArray_DATA(y_array)
            if self.plan.team > 1:
                with nogil:
                    memset(self.plan.flags, 0, self.plan.team * sizeof(rk_flag))
                    with parallel(num_threads=self.plan.team):
                        self.advance(rk_members(), rk_member())
            elif self.releases:
                with nogil:
                    self.advance(1, 0)
            else:
                self.advance(1, 0)
            self.parity ^= 1
        finally:
            PyThread_release_lock(self.lock)
        if through:
            out[...] = y_array if not flat else y_array[0]
        return y_array if out is None else out

    cdef void advance(self, int members, int member) noexcept nogil:
        """What a member of the team does of a step of all layers. Steps are numbered 1 and 2 in
        turn: 0 would read c0."""
        cdef Py_ssize_t k, t = 2 - self.parity
        cdef Run r
        cdef const char *x = self.runs[0].x
        for k in range(self.layers):
            r = self.runs[k]
            r.first, r.T, r.x, r.back = t, t + 1, x, self.parity
            run_team(&r, &self.plan, members, member)
            if self.plan.by_units and members > 1 and k + 1 < self.layers:
                rk_meet(self.plan.flags, members, member)  # the next reads what all have written
            x = r.h + ((t + 1) & 1) * r.N * r.pitch * r.item

    # -- arguments ----------------------------------------------------------------------------

    cdef inline bint plain(self, array, Py_ssize_t width):
        """Whether it is an array that the loop can read as it is."""
        cdef cnp.ndarray a
        cdef cnp.npy_intp *strides
        if type(array) is not cnp.ndarray:
            return False
        a = <cnp.ndarray>array
        if cnp.PyArray_TYPE(a) != self.type_number or not cnp.PyArray_ISBEHAVED_RO(a):
            return False
        strides = cnp.PyArray_STRIDES(a)
        if cnp.PyArray_NDIM(a) == 2:
            return (
                cnp.PyArray_DIMS(a)[0] == self.batch_size
                and cnp.PyArray_DIMS(a)[1] == width
                and strides[0] % self.item == 0
                and strides[1] % self.item == 0
            )
        return (
            cnp.PyArray_NDIM(a) == 1
            and self.batch_size == 1
            and cnp.PyArray_DIMS(a)[0] == width
            and strides[0] % self.item == 0
        )

    cdef general(self, value, str name, str dim, Py_ssize_t width):
        """The check of any argument; what it returns the loop can read."""
        value = _check.as_array(name, value)
        if self.batch_size == 1 and value.ndim == 1:
            return _check.array(name, value, self.dtype, (dim,), (width,))
        return _check.array(name, value, self.dtype, ("N", dim), (self.batch_size, width))

    cdef cnp.ndarray allocate(self, bint flat):
        cdef cnp.npy_intp[2] shape
        shape[0], shape[1] = self.batch_size, self.outputs
        if flat:
            shape[0] = self.outputs
        return cnp.PyArray_EMPTY(1 if flat else 2, shape, self.type_number, 0)

    cdef bint overlap(self, cnp.ndarray a, cnp.ndarray b):
        """Whether they may share memory; a is contiguous."""
        cdef char *begin = <char *>cnp.PyArray_DATA(b)
        cdef char *end = begin + self.item
        cdef char *a_begin = <char *>cnp.PyArray_DATA(a)
        cdef Py_ssize_t reach
        cdef int axis
        for axis in range(cnp.PyArray_NDIM(b)):
            reach = (cnp.PyArray_DIMS(b)[axis] - 1) * cnp.PyArray_STRIDES(b)[axis]
            if reach < 0:
                begin += reach
            else:
                end += reach
        return a_begin < end and begin < a_begin + cnp.PyArray_NBYTES(a)

    cdef bint check_out(self, out, x, bint flat) except -1:
        """Any `out`; whether y goes through memory of the stream's own."""
        dims, sizes = ("N", "P"), (self.batch_size, self.outputs)
        if flat:
            dims, sizes = dims[1:], sizes[1:]
        _check.output("out", out, self.dtype, dims, sizes, {"x": x})
        return not out.flags.carray

    # -- state --------------------------------------------------------------------------------

    @property
    def state(self):
        hidden = [h[self.parity, :, : self.runs[k].P] for k, h in enumerate(self.h)]
        arrays = [np.stack(hidden)]
        if self.c:
            cells = [
                c[self.parity].reshape(self.batch_size, -1)[:, : self.runs[k].H]
                for k, c in enumerate(self.c)
            ]
            arrays.append(np.stack(cells))
        return _arguments.as_state(arrays)

    @state.setter
    def state(self, value):
        cdef Py_ssize_t k
        arrays = _arguments.check_state(self.layer, "state", value, self.batch_size, True)
        self.hold()
        try:
            for k in range(self.layers):
                self.h[k][self.parity, :, : self.runs[k].P] = arrays[0][k]
                if self.c:
                    cells = self.c[k][self.parity]
                    flat = np.zeros((self.batch_size, cells.shape[1] * cells.shape[2]), self.dtype)
                    flat[:, : self.runs[k].H] = arrays[1][k]
                    cells[...] = flat.reshape(cells.shape)
        finally:
            PyThread_release_lock(self.lock)

    def reset(self, rows=None):
        """Zero states, as at the start.

        Parameters
        ----------
        rows : int, sequence of int, or bool array (N,), optional
            Which rows of the batch; None is all.

        Raises
        ------
        TypeError, ValueError, IndexError
            For rows that the batch does not have, or something else than rows.
        """
        chosen = slice(None) if rows is None else _check.rows("rows", rows, self.batch_size)
        self.hold()
        try:
            for array in (*self.h, *self.c):
                array[self.parity, chosen] = 0
        finally:
            PyThread_release_lock(self.lock)

    cdef int hold(self) except -1:
        if PyThread_acquire_lock(self.lock, NOWAIT_LOCK) == 0:
            raise RuntimeError("this stream is in a step on another thread")
        return 0

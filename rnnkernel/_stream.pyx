"""Streams: one step of a stack at a time, with nothing left to prepare.

The loop is that of rnnkernel/_recurrence.pyx. What it works on is laid out once: the gate buffer
and the tiles of h hold two steps, in turn, so that a step leaves the state where the next one
reads it. A call checks its arrays, points the loop at them and runs.

Of token ids it points the loop at rows of a table, where they lie: at columns of the packed W_ih,
or at the caller's embedding. An embedding is an argument of the step, as of `forward`, and not
of the stream: nothing of it is kept, so there is nothing to copy, and a change of it is seen. What
could be made of it beforehand, its product with W_ih, is as large as the vocabulary times G*H.
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

import sys

import numpy as np

from rnnkernel._clock cimport anybody_records, nanoseconds
from rnnkernel._crowd cimport is_crowded, report
from rnnkernel._forward cimport set_weights
from rnnkernel._kernels cimport usable_threads
from rnnkernel._memory cimport address, aligned_zeros
from rnnkernel._packed_weights cimport PackedWeights
from rnnkernel._plan cimport gain, pays_off, plan_team, team_size, team_step
from rnnkernel._recurrence cimport run_team
from rnnkernel._run cimport Plan, Run
from rnnkernel._scratch cimport Scratch
from rnnkernel._team cimport rk_flag, rk_lost, rk_meet, rk_member, rk_members
from rnnkernel._teamwork cimport this_turn

from rnnkernel import _arguments, _check, _plan, _threads, profiling

cnp.import_array()

INTP = np.intp

# From this much arithmetic on a step releases the GIL. Below, releasing would cost a part of the
# step by itself, and waiting to get it back, where other threads run Python, many times the step.
cdef double RELEASE_FLOPS = 100e3

# Microseconds to open the threads of a step.
cdef double OPENING = 5

# Of so many steps that gain nothing by a team one asks whether that is still so.
cdef int SELDOM = 16

# How a step is shared: of vectors x, of one-hot ids, which have no product with W_ih.
cdef enum:
    VECTORS
    ONE_HOT
    WAYS


cdef inline long long id_at(const char *place, int size, bint is_signed) noexcept nogil:
    """An integer of any type; one past the largest `long long` is negative."""
    if size == 8:
        return (<const long long *>place)[0]
    if size == 4:
        return (<const int *>place)[0] if is_signed else (<const unsigned int *>place)[0]
    if size == 2:
        return (<const short *>place)[0] if is_signed else (<const unsigned short *>place)[0]
    return (<const signed char *>place)[0] if is_signed else (<const unsigned char *>place)[0]


cdef bint overlap(cnp.ndarray a, cnp.ndarray b) noexcept:
    """Whether they may share memory; a is contiguous."""
    cdef char *begin = <char *>cnp.PyArray_DATA(b)
    cdef char *end = begin + cnp.PyArray_ITEMSIZE(b)
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


cdef class Stream:
    """A sequence that arrives step by step: the state stays inside, between calls of `step`.

    `layer.stream()` and `layer.freeze().stream()` make one; it keeps the weights of that moment.
    Any number of steps give the bits of one call of the layer over the whole sequence. A stream is
    used by one thread at a time; different streams may run at once. A copy, also by pickle, goes on
    from the same state.

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
    cdef bint[WAYS] releases
    cdef Run *runs                 # one a layer
    cdef Plan[WAYS] plans
    cdef double[WAYS] gains        # microseconds by which such a team is better than one thread,
    cdef long long[WAYS] judged    # the turn of what teamwork costs that they were judged in,
    cdef int alone                 # and a count of steps that gained nothing
    cdef int way                   # of the step that is being made
    cdef long long *spent          # by thread and phase, where the step is recorded, or NULL
    cdef long long end             # when the caller's thread had done its part of a step
    cdef int parity                # which of the two steps' memory holds the state
    cdef bint is_made
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
        cdef int way
        cdef double flops
        cdef PackedWeights w
        cdef Run *r
        if self.runs != NULL:
            raise TypeError("a stream is made once")
        batch_size = _check.size("batch_size", batch_size)
        from rnnkernel.inference import Frozen  # which imports this module

        if not isinstance(frozen, Frozen):
            raise TypeError(
                f"frozen: expected what layer.freeze() returns, got {type(frozen).__name__}"
            )
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
        N = self.batch_size = batch_size
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
            r.T, r.chunk, r.gates_steps = 1, 1, 2
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
            r.gates = address(array)
            gates = array.reshape(2, r.blocks, N, r.cell.memory_slots, r.units)
            if r.cell.states == 2:
                # where h_t lies in one tile of h, c_t lies in the other step's gates
                self.c.append(gates[::-1, :, :, r.cell.slots].transpose(0, 2, 1, 3))
            # two tiles of h, what a first phase hands on, and a y that nobody reads
            array = self.zeros(4 * N * r.pitch)
            r.h = address(array)
            r.h_time = N * r.pitch
            r.early = r.h + 2 * N * r.pitch * r.item
            r.y = r.early + N * r.pitch * r.item
            self.h.append(array.reshape(4, N, r.pitch)[:2])
        self.outputs = w.projected_size
        r.y_row = &self.offsets[1, 0]
        for n in range(N):
            self.offsets[1, n] = n * self.outputs
        r = &self.runs[0]
        r.chunk_x = &self.offsets[0, 0]
        r.one_hot, r.table, r.table_rows = True, <char *>r.input, r.I  # where it has an index
        self.own_y = _check.allocate("y", (N, self.outputs), self.dtype)

        self.scratch = Scratch()
        for way in range(WAYS):
            if way == ONE_HOT:
                flops -= 2.0 * r.cell.gates * r.H * r.I * N
            self.plans[way].pieces = 0
            team = team_size(flops, max(N, r.blocks), _threads.resolve(None))
            plan_team(&self.plans[way], r, self.scratch, 1, N, team)
            self.judged[way] = 0
            self.releases[way] = flops >= RELEASE_FLOPS
        self.is_made = True

    def __dealloc__(self):
        PyMem_Free(self.runs)
        if self.lock != NULL:
            PyThread_free_lock(self.lock)

    def __repr__(self):
        return f"{self.frozen!r}.stream(batch_size={self.batch_size})"

    def __reduce__(self):
        # with what a class of the user's has beside
        beside = getattr(self, "__dict__", {})
        return type(self), (self.frozen, self.batch_size), (self.state, beside)

    def __setstate__(self, kept):
        self.state, beside = kept
        for name, value in beside.items():
            setattr(self, name, value)

    cdef double step_time(self, int team) except -1:
        """Microseconds that a team takes for a step of all layers, roughly."""
        cdef Py_ssize_t k
        cdef double time = 0
        for k in range(self.layers):
            time += team_step(&self.runs[k], self.batch_size, team)
        return time

    cdef bint opens(self, int way) except -1:
        """Whether a step takes its team. A stream may live long, and what it costs to work together
        changes: then that is judged anew. Steps that gain nothing ask seldom."""
        cdef int team = self.plans[way].team
        if team == 1 or usable_threads(team) < team:  # as in a forked child
            return False
        if self.judged[way] != this_turn():
            self.judged[way] = this_turn()
            self.gains[way] = gain(self.step_time(1), self.step_time(team), OPENING, team)
            if _plan.TEAMS_ARE_FREE:
                self.gains[way] = 1
        elif self.gains[way] <= 0:
            self.alone = (self.alone + 1) % SELDOM
            if self.alone > 0:
                return False
        return pays_off(self.gains[way]) and not is_crowded(0)

    cdef zeros(self, Py_ssize_t count):
        array = aligned_zeros(count, self.type_number)
        self.buffers.append(array)
        return array

    def step(self, x, out=None, *, embedding=None):
        """One step of all layers.

        Parameters
        ----------
        x : (N, I) array or (N,) ids; or (I,) or one id where the batch size is 1
            Of the layer's dtype, with any strides; never written. Integers are token ids: rows of
            `embedding`, or without one the one-hot vectors of I classes.
        out : (N, P) array, or (P,) where x is (I,) or one id, optional
            Where y is written. Given one, a step allocates nothing.
        embedding : (V, I) array, optional
            The rows that ids in x stand for, read where they lie: with ids there is no (N, I).

        Returns
        -------
        y : like out
            The hidden states of the last layer; `out` if it was given.

        Raises
        ------
        TypeError, ValueError, IndexError
            For a bad argument, named in the message; nothing was changed.
        RuntimeError
            Where another thread is in a step of this stream.
        """
        cdef cnp.ndarray x_array, y_array, table = None
        cdef Plan *plan
        cdef long long begin, end
        cdef Py_ssize_t wrong
        cdef int team = 1
        cdef bint flat, is_ids = False, through = False
        cdef object call = None, spent
        self.expect_made()
        if anybody_records():
            call = profiling.begin(self, "step()")
        if embedding is not None and not self.plain_table(embedding):
            # before x, whose shape an object of the caller's may set when it is asked
            embedding = _arguments.check_embedding(self.layer, embedding)
        if self.plain(x, self.inputs):
            x_array = <cnp.ndarray>x
        else:
            if embedding is not None:
                embedding = embedding.view()  # likewise
            x_array = <cnp.ndarray>(x if self.plain_ids(x) else self.general(x))
            is_ids = cnp.PyArray_ISINTEGER(x_array)
        flat = cnp.PyArray_NDIM(x_array) == (0 if is_ids else 1)
        if embedding is not None:
            if not is_ids:
                raise _check.embedding_of_floats(x_array)
            table = <cnp.ndarray>embedding
        if out is None:
            y_array = self.allocate(flat)
        else:
            if (
                not self.plain(out, self.outputs)
                or (cnp.PyArray_NDIM(out) == 1) != flat
                or not cnp.PyArray_ISCARRAY(<cnp.ndarray>out)
                or overlap(<cnp.ndarray>out, x_array)
                or (table is not None and overlap(<cnp.ndarray>out, table))
            ):
                through = self.check_out(out, x_array, table, flat)
            y_array = self.own_y if through else <cnp.ndarray>out

        if PyThread_acquire_lock(self.lock, NOWAIT_LOCK) == 0:
            raise RuntimeError("step: this stream is in a step on another thread")
        try:
            if is_ids:
                wrong = self.point_at_ids(x_array, table)
                if wrong >= 0:
                    raise self.no_such_id(x, x_array, table, wrong)
            else:
                self.point_at_vectors(x_array, flat)
            self.runs[self.layers - 1].y = <char *>cnp.PyArray_DATA(y_array)
            plan = &self.plans[self.way]
            if self.opens(self.way):
                team = plan.team
            if call is not None:
                spent = call.enter(team)
                self.spent = <long long *>address(spent)
            if team > 1:
                with nogil:
                    memset(plan.flags, 0, plan.team * sizeof(rk_flag))
                    begin = self.end = nanoseconds()
                    with parallel(num_threads=team):
                        self.advance(rk_members(), rk_member())
                    end = nanoseconds()
                report(end - begin, rk_lost(plan.flags, plan.team) + end - self.end)
            elif self.releases[self.way]:
                with nogil:
                    self.advance(1, 0)
            else:
                self.advance(1, 0)
            self.parity ^= 1
            if call is not None:
                self.spent = NULL
                call.leave(team)
            if through:
                out[...] = y_array if not flat else y_array[0]
        finally:
            PyThread_release_lock(self.lock)
        if call is not None:
            call.end()
        return y_array if out is None else out

    cdef inline void point_at_vectors(self, cnp.ndarray x, bint flat) noexcept:
        """Where the first layer's x lies."""
        cdef Run *r = &self.runs[0]
        cdef Py_ssize_t n, row = 0 if flat else cnp.PyArray_STRIDES(x)[0] // self.item
        for n in range(self.batch_size):
            self.offsets[0, n] = n * row
        r.x = <const char *>cnp.PyArray_DATA(x)
        r.x_unit = cnp.PyArray_STRIDES(x)[0 if flat else 1] // self.item
        r.index = NULL
        self.way = VECTORS

    cdef Py_ssize_t point_at_ids(self, cnp.ndarray ids, cnp.ndarray table) noexcept:
        """The same of ids: rows of the table, or of W_ih where there is none. Returns the first
        position whose id has no row, or -1. An id is read once: others may write to it."""
        cdef Run *r = &self.runs[0]
        cdef Py_ssize_t n, count = self.inputs, row = r.cell.input.slots * r.units
        cdef Py_ssize_t step = 0 if cnp.PyArray_NDIM(ids) == 0 else cnp.PyArray_STRIDES(ids)[0]
        cdef const char *place = <const char *>cnp.PyArray_DATA(ids)
        cdef int size = <int>cnp.PyArray_ITEMSIZE(ids)
        cdef bint is_signed = cnp.PyArray_ISSIGNED(ids)
        cdef long long value
        if table is not None:
            count = cnp.PyArray_DIMS(table)[0]
            row = cnp.PyArray_STRIDES(table)[0] // self.item
        for n in range(self.batch_size):
            value = id_at(place + n * step, size, is_signed)
            if value < 0 or value >= count:
                return n
            self.offsets[0, n] = <Py_ssize_t>value * row
        if table is None:
            r.index = r.chunk_x  # not read: without rows that differ the loop takes the offsets
            self.way = ONE_HOT
        else:
            r.x = <const char *>cnp.PyArray_DATA(table)
            r.x_unit = cnp.PyArray_STRIDES(table)[1] // self.item
            r.index = NULL
            self.way = VECTORS
        return -1

    cdef void advance(self, int members, int member) noexcept nogil:
        """What a member of the team does of a step of all layers. Steps are numbered 1 and 2 in
        turn: 0 would read c0."""
        cdef Py_ssize_t k, t = 2 - self.parity
        cdef Run r
        cdef const char *x = self.runs[0].x
        cdef const Plan *plan = &self.plans[self.way]
        for k in range(self.layers):
            r = self.runs[k]
            r.first, r.T, r.x, r.back = t, t + 1, x, self.parity
            r.spent = self.spent
            run_team(&r, plan, members, member)
            if plan.by_units and members > 1 and k + 1 < self.layers:
                rk_meet(plan.flags, members, member)  # the next reads what all have written
            x = r.h + ((t + 1) & 1) * r.N * r.pitch * r.item
        if member == 0 and members > 1:
            self.end = nanoseconds()

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

    cdef inline bint plain_ids(self, array):
        """The same of ids."""
        cdef cnp.ndarray a
        if type(array) is not cnp.ndarray:
            return False
        a = <cnp.ndarray>array
        if not cnp.PyArray_ISINTEGER(a) or not cnp.PyArray_ISBEHAVED_RO(a):
            return False
        if cnp.PyArray_NDIM(a) == 0:
            return self.batch_size == 1
        return cnp.PyArray_NDIM(a) == 1 and cnp.PyArray_DIMS(a)[0] == self.batch_size

    cdef inline bint plain_table(self, array):
        """The same of an embedding."""
        cdef cnp.ndarray a
        if type(array) is not cnp.ndarray:
            return False
        a = <cnp.ndarray>array
        return (
            cnp.PyArray_TYPE(a) == self.type_number
            and cnp.PyArray_ISBEHAVED_RO(a)
            and cnp.PyArray_NDIM(a) == 2
            and cnp.PyArray_DIMS(a)[0] > 0
            and cnp.PyArray_DIMS(a)[1] == self.inputs
            and cnp.PyArray_STRIDES(a)[0] % self.item == 0
            and cnp.PyArray_STRIDES(a)[1] % self.item == 0
        )

    cdef general(self, x):
        """The check of any x; what it returns the loop can read."""
        cdef cnp.ndarray one
        if type(x) is int or type(x) is INTP:
            one = cnp.PyArray_EMPTY(0, NULL, cnp.NPY_INTP, 0)
            try:
                (<cnp.npy_intp *>cnp.PyArray_DATA(one))[0] = x
            except OverflowError:
                (<cnp.npy_intp *>cnp.PyArray_DATA(one))[0] = -1
            if self.batch_size == 1:
                return one
            x = one
        x = _check.as_array("x", x)
        if x.dtype.kind in "iu" and x.ndim < 2:
            sizes = () if x.ndim == 0 and self.batch_size == 1 else (self.batch_size,)
            x = _check.array("x", x, x.dtype, ("N",)[: len(sizes)], sizes)
            return x.astype(x.dtype.newbyteorder("="), copy=False)
        if self.batch_size == 1 and x.ndim == 1:
            return _check.array("x", x, self.dtype, ("I",), (self.inputs,))
        return _check.array("x", x, self.dtype, ("N", "I"), (self.batch_size, self.inputs))

    cdef no_such_id(self, x, cnp.ndarray ids, table, Py_ssize_t n):
        """The error for the id at position n of what came as x."""
        count = self.inputs if table is None else len(table)
        if ids.ndim == 0:
            return _check.no_such_id("x", x, count, ())
        return _check.no_such_id("x", ids[n], count, (n,))

    cdef cnp.ndarray allocate(self, bint flat):
        cdef cnp.npy_intp[2] shape
        shape[0], shape[1] = self.batch_size, self.outputs
        if flat:
            shape[0] = self.outputs
        return cnp.PyArray_EMPTY(1 if flat else 2, shape, self.type_number, 0)

    cdef bint check_out(self, out, x, table, bint flat) except -1:
        """Any `out`; whether y goes through memory of the stream's own."""
        dims, sizes = ("N", "P"), (self.batch_size, self.outputs)
        if flat:
            dims, sizes = dims[1:], sizes[1:]
        reads = {"x": x} if table is None else {"x": x, "embedding": table}
        _check.output("out", out, self.dtype, dims, sizes, reads)
        return not out.flags.carray

    # -- state --------------------------------------------------------------------------------

    @property
    def state(self):
        self.hold()
        try:
            hidden = [h[self.parity, :, : self.runs[k].P] for k, h in enumerate(self.h)]
            arrays = [np.stack(hidden)]
            if self.c:
                cells = [
                    c[self.parity].reshape(self.batch_size, -1)[:, : self.runs[k].H]
                    for k, c in enumerate(self.c)
                ]
                arrays.append(np.stack(cells))
        finally:
            PyThread_release_lock(self.lock)
        return _arguments.as_state(arrays)

    @state.setter
    def state(self, value):
        cdef Py_ssize_t k
        self.expect_made()
        arrays = _arguments.check_state(self.layer, "state", value, self.batch_size, True)
        cells = []
        for k in range(self.layers if self.c else 0):
            shape = self.c[k].shape[1:]
            flat = np.zeros((self.batch_size, shape[1] * shape[2]), self.dtype)
            flat[:, : self.runs[k].H] = arrays[1][k]
            cells.append(flat.reshape(shape))
        self.hold()
        try:
            for k in range(self.layers):
                self.h[k][self.parity, :, : self.runs[k].P] = arrays[0][k]
                if self.c:
                    self.c[k][self.parity] = cells[k]
        finally:
            PyThread_release_lock(self.lock)

    def reset(self, rows=None):
        """Zero states, as at the start.

        Parameters
        ----------
        rows : int, sequence of int, or bool array (N,), optional
            Which rows of the batch, each once; None is all. An array that says of every row whether
            it is done is of dtype bool: zeros and ones are the numbers of rows.

        Raises
        ------
        TypeError, ValueError, IndexError
            For rows that the batch does not have, or something else than rows.
        """
        self.expect_made()
        chosen = slice(None) if rows is None else _check.rows("rows", rows, self.batch_size)
        self.hold()
        try:
            for array in (*self.h, *self.c):
                array[self.parity, chosen] = 0
        finally:
            PyThread_release_lock(self.lock)

    cdef inline int expect_made(self) except -1:
        if not self.is_made:
            raise TypeError("stream: expected one that Stream.__init__ has made, got none")
        return 0

    cdef int hold(self) except -1:
        self.expect_made()
        if PyThread_acquire_lock(self.lock, NOWAIT_LOCK) == 0:
            raise RuntimeError("this stream is in a step on another thread")
        return 0

"""Gradients of weights in the layout that the kernels sum them in, and out of it.

csrc/README.md draws the layouts.
"""

from libc.string cimport memcpy, memset

import numpy as np

from rnnkernel._clock cimport UNPACK, current_call, nanoseconds
from rnnkernel._kernels cimport RK_TRANSPOSED_VECTORS, rk_window
from rnnkernel._memory cimport Layout, address, place, room_for
from rnnkernel._packed_weights cimport PackedWeights
from rnnkernel._panels cimport Panel, add_shards, choose, run_panels
from rnnkernel._teamwork cimport team_to_move


ctypedef fused real:
    float
    double


cdef void copy_rows(
    real *vector, const double *packed, Py_ssize_t slots, const rk_window *window, PackedWeights w
) noexcept:
    """The gates of a window, out of one slot each of [block][slots][U], to a vector (G*H,)."""
    cdef int i
    cdef Py_ssize_t unit, block, U = w.units
    cdef const double *here
    cdef real *row
    for i in range(window.slots):
        row = vector + window.order[i] * w.hidden_size
        for block in range(w.blocks):
            here = packed + (block * slots + window.slot + i) * U
            for unit in range(block * U, min((block + 1) * U, w.hidden_size)):
                row[unit] = <real>here[unit - block * U]


cdef class PackedGradients:
    """Gradients of one layer and direction's weights, summed in the packed layout.

    Parameters are the weights; the shards of the batch, each with sums of its own that are added in
    the end; the canonical gradients of W_ih and W_hh (rows contiguous), to be written at last, of
    W_ih only these `columns` (intp) and zeros to the others, unless they are None; and whether all
    steps are one chunk, so that these are written directly: who has summed a block unpacks it while
    it is in cache. Then they have no place here, but for sums by columns.

    Of all but the biases the first sums are written, not added: zeros beforehand would be one more
    pass over memory.
    """

    def __init__(
        self, PackedWeights weights, int shards, weight_ih, weight_hh, columns, bint direct
    ):
        if columns is not None:
            columns = np.ascontiguousarray(columns, np.intp)
        self.weights, self.shards = weights, shards
        self.arrays, self.direct = (weight_ih, weight_hh, columns), direct
        self.fresh = True
        self.lay_out()
        self.find_panels()

    cdef int lay_out(self) except -1:
        cdef Layout m
        cdef int shard
        cdef Py_ssize_t row = self.weights.blocks * self.weights.units * sizeof(double)
        m.base, m.used = NULL, 0
        self.place_parts(&m)
        self.shard_bytes = m.used
        m.used *= self.shards
        self.memory = room_for(&m)
        self.place_parts(&m)
        self.end = m.base + m.used
        for shard in range(self.shards):
            memset(self.bias + shard * self.shard_bytes, 0, self.weights.gradient_slots * row)
        return 0

    cdef void place_parts(self, Layout *m) noexcept:
        """Of one shard."""
        cdef int phase
        cdef PackedWeights w = self.weights
        cdef Py_ssize_t row = w.blocks * w.units * w.item
        self.bias = place(m, w.gradient_slots * w.blocks * w.units * sizeof(double))
        if not self.direct or self.arrays[2] is not None:
            self.input = place(m, w.input_size * w.cell.input.slots * row)
        for phase in range(0 if self.direct else w.cell.phases):
            self.recurrent[phase] = place(
                m, w.projected_size * w.cell.recurrent[phase].slots * row
            )
        if w.projection != NULL:
            self.projection = place(
                m,
                w.column_blocks(w.hidden_size) * w.projected_size
                * RK_TRANSPOSED_VECTORS * w.kernels.lanes * w.item,
            )

    cdef int find_panels(self) except -1:
        cdef PackedWeights w = self.weights
        cdef Panel *panel
        cdef int phase
        weight_ih, weight_hh, columns = self.arrays
        if w.cell.input.slots < w.cell.gates:  # a gate whose weights have no effect
            weight_ih[...] = 0
            weight_hh[...] = 0
        w.fill_job(&self.panels[0].job, weight_ih, &w.cell.input, self.input)
        if columns is not None:
            if w.input_size == 0:
                weight_ih[...] = 0
            choose(&self.panels[0].job, w.input_size, columns)
        for phase in range(w.cell.phases):
            w.fill_job(
                &self.panels[1 + phase].job, weight_hh, &w.cell.recurrent[phase],
                self.recurrent[phase],
            )
        for phase in range(1 + w.cell.phases):
            panel = &self.panels[phase]
            panel.move, panel.blocks, panel.by_columns = w.kernels.unpack, w.blocks, True
            panel.shards, panel.shard_bytes, panel.item = self.shards, self.shard_bytes, w.item
            panel.row_bytes = panel.job.gates * w.units * w.item
        return 0

    cdef bint begin(self, bint at_once) noexcept:
        """Whether the sums are yet to be begun, as the caller then does; where W_ih's are
        made `at_once`, zeros stand there."""
        cdef bint fresh = self.fresh
        cdef int shard
        self.fresh = False
        for shard in range(self.shards if fresh and at_once and not self.direct else 0):
            memset(self.input + shard * self.shard_bytes, 0, self.recurrent[0] - self.input)
        return fresh

    cdef void add_vectors(self) noexcept:
        """What is in no panel, of all shards into those of the first."""
        add_shards(
            self.bias, self.input - self.bias, self.shards, self.shard_bytes, sizeof(double)
        )
        if self.projection != NULL:
            add_shards(
                self.projection, self.end - self.projection, self.shards, self.shard_bytes,
                self.weights.item,
            )

    def unpack(self, bias_ih, bias_hh, weight_ch, weight_hr, int threads):
        """Writes the canonical gradients, into these arrays (rows contiguous), which may be None,
        and what is left of W_ih's and W_hh's."""
        cdef PackedWeights w = self.weights
        cdef int phase, team, count = 1 + w.cell.phases
        cdef Py_ssize_t size
        cdef long long began = nanoseconds()
        if self.begin(False):  # there were no steps
            memset(self.bias, 0, self.end - self.bias)
            for phase in range(1 + w.cell.phases):
                self.panels[phase].shards = 1
            if self.direct:
                self.arrays[0][...] = 0
                self.arrays[1][...] = 0
        elif self.shards > 1:
            self.add_vectors()
        if w.cell.input.slots < w.cell.gates:
            for array in (bias_ih, bias_hh, weight_ch):
                if array is not None:
                    array[...] = 0
        if self.direct:
            count = self.input != NULL
        if count > 0:
            # zeros of the columns that were not chosen are written, too
            size = (self.panels[0].job.all + w.projected_size) * w.cell.gates * w.hidden_size
            size *= w.item
            team = team_to_move(size, threads)
            with nogil:
                run_panels(self.panels, count, team)
        if weight_ch is not None:
            self.copy(weight_ch, &w.cell.peephole)
        if weight_hr is not None:
            self.unpack_projection(weight_hr)
        if bias_ih is not None:
            self.copy(bias_ih, &w.cell.input)
            for phase in range(w.cell.phases):
                self.copy(bias_hh, &w.cell.recurrent[phase])
        call = current_call()
        if call is not None:
            call.add(UNPACK, nanoseconds() - began)

    cdef int copy(self, vector, const rk_window *window) except -1:
        """The gradient of a vector: biases or peepholes."""
        cdef Py_ssize_t slots = self.weights.gradient_slots
        cdef const double *sums = <const double *>self.bias
        if self.weights.item == sizeof(float):
            copy_rows(<float *>address(vector), sums, slots, window, self.weights)
        else:
            copy_rows(<double *>address(vector), sums, slots, window, self.weights)
        return 0

    cdef void unpack_projection(self, weight_hr) noexcept:
        cdef PackedWeights w = self.weights
        cdef Py_ssize_t columns = RK_TRANSPOSED_VECTORS * w.kernels.lanes, column = 0, p
        cdef const char *packed = self.projection
        cdef char *to = address(weight_hr)
        with nogil:
            while column < w.hidden_size:
                for p in range(w.projected_size):
                    memcpy(
                        to + (p * w.hidden_size + column) * w.item, packed,
                        min(columns, w.hidden_size - column) * w.item,
                    )
                    packed += columns * w.item
                column += columns

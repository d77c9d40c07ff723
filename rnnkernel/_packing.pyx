"""Weights in the layout that the kernels stream, and weight gradients back from it.

csrc/README.md draws the layouts. Packing costs one pass over the weights and serves all
steps of a call, or, held in a `PackedWeights`, all calls.
"""

import math

from cython.parallel cimport prange

cimport numpy as cnp

import numpy as np

from rnnkernel._kernels cimport (
    RK_FLOAT32,
    RK_FLOAT64,
    RK_HALF,
    RK_INT8,
    RK_TRANSPOSED_VECTORS,
    kernels,
    rk_packing,
    usable_threads,
)

from rnnkernel._memory import aligned_empty, aligned_zeros


cdef Py_ssize_t address(object array) except? -1:
    # array.ctypes.data makes an object for it, and a call asks some dozen times
    return <Py_ssize_t>cnp.PyArray_DATA(<cnp.ndarray?>array)


cdef void pack_blocks(
    void (*pack)(const rk_packing *) noexcept nogil,
    const rk_packing *job,
    Py_ssize_t blocks,
    int threads,
) noexcept nogil:
    cdef Py_ssize_t block
    cdef int team = usable_threads(threads)
    if team <= 1:
        pack_one(pack, job, 0, blocks)
        return
    for block in prange(blocks, num_threads=team, schedule="static"):
        pack_one(pack, job, block, block + 1)


cdef void pack_one(
    void (*pack)(const rk_packing *) noexcept nogil,
    const rk_packing *job,
    Py_ssize_t begin,
    Py_ssize_t end,
) noexcept nogil:
    cdef rk_packing part = job[0]
    part.block_begin = begin
    part.block_end = end
    pack(&part)


cdef class PackedWeights:
    """One layer and direction, packed.

    Parameters are the cell's index in the C table, the canonical weights ((G*H, I), (G*H, P),
    rows contiguous), the biases ((G*H,) or None), whether backward needs the transposed
    copies, the number of threads to pack with, and for an LSTM with them the peepholes (3*H,),
    the limit of the cell and the projection (P, H). Without `through_input` there is no transposed
    copy of W_ih.
    """

    def __init__(
        self,
        int cell,
        weight_ih,
        weight_hh,
        bias_ih,
        bias_hh,
        bint transposed,
        int threads,
        weight_ch=None,
        cell_clip=None,
        weight_hr=None,
        bint through_input=True,
    ):
        cdef int phase
        self.dtype = weight_ih.dtype
        self.kernels = kernels(RK_FLOAT32 if self.dtype == np.float32 else RK_FLOAT64)
        self.cell = &self.kernels.cells[cell]
        self.cell_index = cell
        self.input_size = weight_ih.shape[1]
        self.hidden_size = weight_hh.shape[0] // self.cell.gates
        self.projected_size = weight_hh.shape[1]
        self.item = self.dtype.itemsize
        self.units = self.cell.unit_vectors * self.kernels.lanes
        self.blocks = (self.hidden_size + self.units - 1) // self.units
        self.gradient_slots = self.cell.slots + self.cell.peephole.slots
        self.cell_clip = np.inf if cell_clip is None else cell_clip
        self.arrays = []
        # opening a team of threads costs more than packing little
        if weight_ih.size + weight_hh.size < 1 << 16:
            threads = 1

        self.bias = self.pack_bias(bias_ih, bias_hh)
        if weight_ch is not None:
            self.peepholes = self.pack_rows(weight_ch.reshape(3, self.hidden_size))
        self.input = self.pack(weight_ih, &self.cell.input, threads)
        for phase in range(self.cell.phases):
            self.recurrent[phase] = self.pack(weight_hh, &self.cell.recurrent[phase], threads)
        if transposed:
            if through_input:
                self.input_transposed = self.pack_transposed(weight_ih, &self.cell.input, threads)
            for phase in range(self.cell.phases):
                self.recurrent_transposed[phase] = self.pack_transposed(
                    weight_hh, &self.cell.recurrent[phase], threads
                )
        if weight_hr is not None:
            self.pack_projection(weight_hr, transposed, threads)

    def keeps_gates(self):
        """Whether backward needs the gates of every step."""
        return bool(self.cell.keeps_gates)

    cdef char *keep(self, array) except NULL:
        self.arrays.append(array)
        return <char *><Py_ssize_t>address(array)

    cdef char *pack_bias(self, bias_ih, bias_hh) except NULL:
        """Per slot the biases of the windows that it belongs to, added once."""
        cdef int phase, gate
        cdef Py_ssize_t H = self.hidden_size
        by_slot = np.zeros((self.cell.slots, H), self.dtype)
        if bias_ih is not None:
            for gate in range(self.cell.input.slots):
                rows = self.cell.input.order[gate] * H
                by_slot[self.cell.input.slot + gate] += bias_ih[rows : rows + H]
            for phase in range(self.cell.phases):
                for gate in range(self.cell.recurrent[phase].slots):
                    rows = self.cell.recurrent[phase].order[gate] * H
                    by_slot[self.cell.recurrent[phase].slot + gate] += bias_hh[rows : rows + H]
        return self.pack_rows(by_slot)

    cdef char *pack_rows(self, rows) except NULL:
        """Rows of H numbers as [block][row][U]."""
        padded = np.zeros((len(rows), self.blocks * self.units), self.dtype)
        padded[:, : self.hidden_size] = rows
        packed = aligned_empty(padded.size, self.dtype)
        by_block = padded.reshape(len(rows), self.blocks, self.units).transpose(1, 0, 2)
        packed.reshape(by_block.shape)[...] = by_block
        return self.keep(packed)

    def shrink(self, scale_ih=None, scale_hh=None):
        """Stores the panels smaller: as float16, or with scales (G*H,) as int8, where the weights
        are integers from -127 to 127 that these multiply."""
        cdef int phase
        smaller = np.float16 if scale_ih is None else np.int8
        self.storage = RK_HALF if scale_ih is None else RK_INT8
        self.input = self.shrink_panel(self.input, smaller)
        if scale_ih is not None:
            self.input_scale = self.pack_scale(scale_ih, &self.cell.input)
        for phase in range(self.cell.phases):
            self.recurrent[phase] = self.shrink_panel(self.recurrent[phase], smaller)
            if scale_hh is not None:
                self.recurrent_scale[phase] = self.pack_scale(
                    scale_hh, &self.cell.recurrent[phase]
                )

    cdef char *shrink_panel(self, char *panel, smaller) except NULL:
        index = [address(array) for array in self.arrays].index(<Py_ssize_t>panel)
        whole = self.arrays.pop(index)
        packed = aligned_empty(whole.size, smaller)
        packed[...] = whole
        return self.keep(packed)

    cdef char *pack_scale(self, scale, const rk_window *window) except NULL:
        H = self.hidden_size
        rows = [window.order[gate] * H for gate in range(window.slots)]
        return self.pack_rows(np.stack([scale[row : row + H] for row in rows]))

    cdef rk_packing job(self, weight, const rk_window *window):
        cdef rk_packing job
        job.hidden = self.hidden_size
        job.k = weight.shape[1]
        job.gates = window.slots
        job.order = window.order
        job.unit_vectors = self.cell.unit_vectors
        job.canonical = <void *><Py_ssize_t>address(weight)
        job.canonical_row = weight.strides[0] // self.item
        return job

    cdef char *pack(self, weight, const rk_window *window, int threads) except NULL:
        cdef rk_packing job = self.job(weight, window)
        cdef char *packed = self.keep(
            aligned_empty(self.blocks * job.k * window.slots * self.units, self.dtype)
        )
        job.packed = packed
        with nogil:
            pack_blocks(self.kernels.pack, &job, self.blocks, threads)
        return packed

    cdef char *pack_transposed(self, weight, const rk_window *window, int threads) except NULL:
        cdef rk_packing job = self.job(weight, window)
        cdef Py_ssize_t blocks = self.column_blocks(job.k)
        cdef Py_ssize_t columns = RK_TRANSPOSED_VECTORS * self.kernels.lanes
        cdef char *packed = self.keep(
            aligned_empty(blocks * self.blocks * window.slots * self.units * columns, self.dtype)
        )
        job.packed = packed
        with nogil:
            pack_blocks(self.kernels.pack_transposed, &job, blocks, threads)
        return packed

    cdef int pack_projection(self, weight_hr, bint transposed, int threads) except -1:
        """W_hr twice: P columns in blocks for h, and H columns in blocks for backward."""
        cdef Py_ssize_t blocks = self.column_blocks(self.projected_size)
        cdef Py_ssize_t columns = RK_TRANSPOSED_VECTORS * self.kernels.lanes
        # one slot, as that of RNN, the first cell
        cdef rk_packing job = self.job(weight_hr, &self.kernels.cells[0].input)
        job.hidden = self.projected_size
        job.unit_vectors = RK_TRANSPOSED_VECTORS
        self.projection = self.keep(aligned_empty(blocks * job.k * columns, self.dtype))
        job.packed = self.projection
        with nogil:
            pack_blocks(self.kernels.pack, &job, blocks, threads)
        if not transposed:
            return 0
        blocks = self.column_blocks(self.hidden_size)
        job.unit_vectors = 1
        self.projection_transposed = self.keep(
            aligned_empty(blocks * self.projected_rows() * columns, self.dtype)
        )
        job.packed = self.projection_transposed
        with nogil:
            pack_blocks(self.kernels.pack_transposed, &job, blocks, threads)
        return 0

    cdef Py_ssize_t projected_rows(self) noexcept nogil:
        """P, padded as in projection_transposed."""
        cdef Py_ssize_t lanes = self.kernels.lanes
        return (self.projected_size + lanes - 1) // lanes * lanes

    cdef Py_ssize_t input_last_vectors(self) noexcept nogil:
        """Vectors of the input projection that the last unit block needs."""
        cdef Py_ssize_t units
        if self.cell.input.slots > 1:
            return self.cell.input.slots * self.cell.unit_vectors
        units = self.hidden_size - (self.blocks - 1) * self.units
        return (units + self.kernels.lanes - 1) // self.kernels.lanes

    cdef Py_ssize_t column_blocks(self, Py_ssize_t columns) noexcept nogil:
        cdef Py_ssize_t width = RK_TRANSPOSED_VECTORS * self.kernels.lanes
        return (columns + width - 1) // width

    cdef Py_ssize_t column_last_vectors(self, Py_ssize_t columns) noexcept nogil:
        cdef Py_ssize_t width = RK_TRANSPOSED_VECTORS * self.kernels.lanes
        columns -= (self.column_blocks(columns) - 1) * width
        return (columns + self.kernels.lanes - 1) // self.kernels.lanes


cdef class PackedGradients:
    """Gradients of one layer and direction's weights, summed in the packed layout."""

    def __init__(self, PackedWeights weights):
        cdef int phase
        cdef Py_ssize_t width = weights.blocks * weights.units
        self.weights = weights
        self.arrays = []
        self.bias_array = aligned_zeros(width * weights.gradient_slots, weights.dtype)
        self.bias = <char *><Py_ssize_t>address(self.bias_array)
        self.input = self.zeros(width * weights.cell.input.slots * weights.input_size)
        for phase in range(weights.cell.phases):
            self.recurrent[phase] = self.zeros(
                width * weights.cell.recurrent[phase].slots * weights.projected_size
            )
        if weights.projection != NULL:
            columns = RK_TRANSPOSED_VECTORS * weights.kernels.lanes
            shape = (weights.column_blocks(weights.hidden_size), weights.projected_size, columns)
            self.projection_array = aligned_zeros(math.prod(shape), weights.dtype).reshape(shape)
            self.projection = <char *><Py_ssize_t>address(self.projection_array)

    cdef char *zeros(self, Py_ssize_t count) except NULL:
        array = aligned_zeros(count, self.weights.dtype)
        self.arrays.append(array)
        return <char *><Py_ssize_t>address(array)

    def unpack(
        self, weight_ih, weight_hh, bias_ih, bias_hh, int threads, weight_ch=None, weight_hr=None
    ):
        """Writes the canonical gradients into the arrays; those from the biases on may be None."""
        cdef int phase, gate
        cdef PackedWeights w = self.weights
        cdef Py_ssize_t H = w.hidden_size
        if w.cell.input.slots < w.cell.gates:  # a gate whose weights have no effect
            for array in (weight_ih, weight_hh, bias_ih, bias_hh, weight_ch):
                if array is not None:
                    array[...] = 0
        if weight_ih.size + weight_hh.size < 1 << 16:
            threads = 1
        self.unpack_weight(weight_ih, &w.cell.input, self.input, threads)
        for phase in range(w.cell.phases):
            self.unpack_weight(weight_hh, &w.cell.recurrent[phase], self.recurrent[phase], threads)
        by_slot = (
            self.bias_array.reshape(w.blocks, w.gradient_slots, w.units)
            .transpose(1, 0, 2)
            .reshape(w.gradient_slots, w.blocks * w.units)[:, :H]
        )
        for gate in range(w.cell.peephole.slots):
            rows = w.cell.peephole.order[gate] * H
            weight_ch[rows : rows + H] = by_slot[w.cell.peephole.slot + gate]
        if weight_hr is not None:
            projection = self.projection_array.transpose(1, 0, 2)
            weight_hr[...] = projection.reshape(w.projected_size, -1)[:, :H]
        if bias_ih is None:
            return
        for gate in range(w.cell.input.slots):
            rows = w.cell.input.order[gate] * H
            bias_ih[rows : rows + H] = by_slot[w.cell.input.slot + gate]
        for phase in range(w.cell.phases):
            for gate in range(w.cell.recurrent[phase].slots):
                rows = w.cell.recurrent[phase].order[gate] * H
                bias_hh[rows : rows + H] = by_slot[w.cell.recurrent[phase].slot + gate]

    cdef int unpack_weight(
        self, weight, const rk_window *window, char *packed, int threads
    ) except -1:
        cdef rk_packing job = self.weights.job(weight, window)
        job.packed = packed
        with nogil:
            pack_blocks(self.weights.kernels.unpack, &job, self.weights.blocks, threads)
        return 0

"""Weights in the layout that the kernels stream.

csrc/README.md draws the layouts. Packing costs one pass over the weights and serves all
steps of a call, or, held in a `PackedWeights`, all calls.
"""

from libc.math cimport INFINITY
from libc.string cimport memset

cimport numpy as cnp

import numpy as np

from rnnkernel._clock cimport PACK, current_call, nanoseconds
from rnnkernel._kernels cimport (
    RK_FLOAT32,
    RK_FLOAT64,
    RK_HALF,
    RK_INT8,
    RK_INT8_BYTES,
    RK_INT8_WORDS,
    RK_QUAD_PIECE,
    RK_TRANSPOSED_VECTORS,
    kernels,
    rk_in_quads,
    rk_packing,
    rk_panel_rows,
)
from rnnkernel._memory cimport Layout, address, aligned_empty, aligned_zeros, place, room_for
from rnnkernel._panels cimport choose, run_panels
from rnnkernel._teamwork cimport team_to_move

from rnnkernel._kernels import int8_ways

# What int8 weights are multiplied as, one of int8_ways(); None is the best. Tests change it.
INT8_WAY = None
cdef dict STORAGES = {"bytes": RK_INT8_BYTES, "words": RK_INT8_WORDS, "floats": RK_INT8}

ctypedef fused real:
    float
    double


cdef object contiguous(object array):
    if cnp.PyArray_IS_C_CONTIGUOUS(<cnp.ndarray?>array):
        return array
    return np.ascontiguousarray(array)


# Vectors of H numbers as one slot of [block][slots][U].


cdef void add_row(
    real *packed, Py_ssize_t slots, Py_ssize_t units, const real *row, Py_ssize_t hidden
) noexcept nogil:
    cdef Py_ssize_t unit = 0, u
    while unit < hidden:
        for u in range(min(units, hidden - unit)):
            packed[u] += row[unit + u]
        packed += slots * units
        unit += units


cdef void add_gate(
    char *packed, Py_ssize_t slots, int slot, const char *vector, int gate, PackedWeights w
) noexcept nogil:
    """The part of a vector (G*H,) that belongs to a gate."""
    cdef Py_ssize_t to = slot * w.units, row = gate * w.hidden_size
    if w.item == sizeof(float):
        add_row[float](
            <float *>packed + to, slots, w.units, <const float *>vector + row, w.hidden_size
        )
    else:
        add_row[double](
            <double *>packed + to, slots, w.units, <const double *>vector + row, w.hidden_size
        )


cdef void add_rows(
    char *packed, Py_ssize_t slots, int slot, const char *vector, const rk_window *window,
    PackedWeights w,
) noexcept nogil:
    """Those of a window, whose first slot is `slot`."""
    cdef int i
    for i in range(window.slots):
        add_gate(packed, slots, slot + i, vector, window.order[i], w)


cdef PackedWeights pack_weights(
    int cell, weight_ih, weight_hh, bias_ih, bias_hh, bint transposed, int threads, weight_ch,
    cell_clip, weight_hr, bint through_input, columns,
):
    """A PackedWeights."""
    cdef PackedWeights w = PackedWeights.__new__(PackedWeights)
    w.prepare(
        cell, weight_ih, weight_hh, bias_ih, bias_hh, transposed, weight_ch, cell_clip, weight_hr,
        through_input, columns,
    )
    w.pack_rest(0, threads)
    return w


cdef PackedWeights prepare_weights(
    int cell, weight_ih, weight_hh, bias_ih, bias_hh, bint transposed, weight_ch, cell_clip,
    weight_hr,
):
    """A PackedWeights for one pass whose panels are yet to be packed."""
    cdef PackedWeights w = PackedWeights.__new__(PackedWeights)
    w.prepare(
        cell, weight_ih, weight_hh, bias_ih, bias_hh, transposed, weight_ch, cell_clip, weight_hr,
        transposed, None,
    )
    return w


cdef class PackedWeights:
    """One layer and direction, packed; `pack_weights` and `prepare_weights` make one."""

    cdef int prepare(
        self,
        int cell,
        weight_ih,
        weight_hh,
        bias_ih,
        bias_hh,
        bint transposed,
        weight_ch,
        cell_clip,
        weight_hr,
        bint through_input,
        columns,
    ) except -1:
        """Everything but what `pack` does.

        The cell's index in the C table, the canonical weights ((G*H, I), (G*H, P), rows
        contiguous), the biases ((G*H,) or None), whether backward needs the transposed copies, and
        for an LSTM with them the peepholes (3*H,), the limit of the cell and the projection (P, H).
        Without `through_input` there is no transposed copy of W_ih. With `columns` (intp) W_ih has
        only these columns, and there is none.
        """
        cdef cnp.ndarray ih = weight_ih, hh = weight_hh
        if columns is not None:
            columns = np.ascontiguousarray(columns, np.intp)
        self.dtype = ih.dtype
        self.kernels = kernels(
            RK_FLOAT32 if cnp.PyArray_TYPE(ih) == cnp.NPY_FLOAT32 else RK_FLOAT64
        )
        self.cell = &self.kernels.cells[cell]
        self.input_size = cnp.PyArray_DIM(ih, 1) if columns is None else len(columns)
        self.hidden_size = cnp.PyArray_DIM(hh, 0) // self.cell.gates
        self.projected_size = cnp.PyArray_DIM(hh, 1)
        self.item = cnp.PyArray_ITEMSIZE(ih)
        self.units = self.cell.unit_vectors * self.kernels.lanes
        self.blocks = (self.hidden_size + self.units - 1) // self.units
        self.gradient_slots = self.cell.slots + self.cell.peephole.slots
        self.cell_clip = INFINITY if cell_clip is None else cell_clip
        self.sources = (weight_ih, weight_hh, weight_hr, columns)
        self.lay_out(
            weight_ch is not None, weight_hr is not None, transposed,
            through_input and columns is None,
        )
        self.pack_vectors(bias_ih, bias_hh, weight_ch)
        return 0

    cdef int lay_out(
        self, bint peepholes, bint projection, bint transposed, bint through_input
    ) except -1:
        """Memory for all, and the panels to be packed into it."""
        cdef int phase
        cdef Layout m
        cdef const rk_window *window = &self.kernels.cells[0].input  # W_hr has one slot, as RNN
        weight_ih, weight_hh, weight_hr, index = self.sources
        m.base, m.used = NULL, 0
        self.place_parts(&m, peepholes, projection, transposed, through_input)
        self.memory = room_for(&m)
        self.place_parts(&m, peepholes, projection, transposed, through_input)

        self.panel_count = 0
        self.add_panel(False, weight_ih, &self.cell.input, self.input)
        if index is not None:
            choose(&self.panels[0].job, self.input_size, index)
        for phase in range(self.cell.phases):
            self.add_panel(
                False, weight_hh, &self.cell.recurrent[phase], self.recurrent[phase]
            )
        if projection:
            self.add_projection(False, self.add_panel(False, weight_hr, window, self.projection))
        if not transposed:
            return 0
        if through_input:
            self.add_panel(True, weight_ih, &self.cell.input, self.input_transposed)
        for phase in range(self.cell.phases):
            self.add_panel(
                True, weight_hh, &self.cell.recurrent[phase], self.recurrent_transposed[phase]
            )
        if projection:
            self.add_projection(
                True, self.add_panel(True, weight_hr, window, self.projection_transposed)
            )
        return 0

    cdef void place_parts(
        self, Layout *m, bint peepholes, bint projection, bint transposed, bint through_input
    ) noexcept:
        # No size overflows: the weights are in memory, and padded they are some thousand times more
        # at most.
        cdef int phase
        cdef Py_ssize_t row = self.blocks * self.units * self.item
        cdef Py_ssize_t columns = RK_TRANSPOSED_VECTORS * self.kernels.lanes * self.item
        cdef Py_ssize_t inputs = self.input_size, P = self.projected_size, H = self.hidden_size
        self.bias = place(m, self.cell.slots * row)
        if peepholes:
            self.peepholes = place(m, 3 * row)
        self.input = place(m, inputs * self.cell.input.slots * row)
        for phase in range(self.cell.phases):
            self.recurrent[phase] = place(m, P * self.cell.recurrent[phase].slots * row)
        if projection:
            self.projection = place(m, self.column_blocks(P) * H * columns)
        if not transposed:
            return
        if through_input:
            self.input_transposed = place(
                m,
                self.column_blocks(inputs) * self.blocks * self.units * self.cell.input.slots
                * columns,
            )
        for phase in range(self.cell.phases):
            self.recurrent_transposed[phase] = place(
                m,
                self.column_blocks(P) * self.blocks * self.units
                * self.cell.recurrent[phase].slots * columns,
            )
        if projection:
            self.projection_transposed = place(
                m, self.column_blocks(H) * self.projected_rows() * columns
            )

    cdef Panel *add_panel(
        self, bint transposed, weight, const rk_window *window, char *packed
    ) except NULL:
        cdef Panel *panel = &self.panels[self.panel_count]
        self.panel_count += 1
        self.fill_job(&panel.job, weight, window, packed)
        panel.move = self.kernels.pack_transposed if transposed else self.kernels.pack
        panel.blocks = self.column_blocks(panel.job.k) if transposed else self.blocks
        panel.by_columns, panel.shards = not transposed, 1
        return panel

    cdef void add_projection(self, bint transposed, Panel *panel) noexcept:
        """W_hr's panels: P columns in blocks for h, and H columns in blocks for backward."""
        panel.job.hidden = self.projected_size
        panel.job.unit_vectors = 1 if transposed else RK_TRANSPOSED_VECTORS
        panel.blocks = self.column_blocks(
            self.hidden_size if transposed else self.projected_size
        )

    cdef int fill_job(
        self, rk_packing *job, weight, const rk_window *window, char *packed
    ) except -1:
        cdef cnp.ndarray array = weight
        job.hidden = self.hidden_size
        job.k = job.k_end = cnp.PyArray_DIM(array, 1)
        job.k_begin = 0
        job.gates = window.slots
        job.order = window.order
        job.unit_vectors = self.cell.unit_vectors
        job.canonical = cnp.PyArray_DATA(array)
        job.canonical_row = cnp.PyArray_STRIDE(array, 0) // self.item
        job.columns = NULL
        job.all = job.k
        job.packed = packed
        return 0

    cdef int pack_vectors(self, bias_ih, bias_hh, weight_ch) except -1:
        """Biases, per slot those of the windows that it belongs to, added once; peepholes."""
        cdef int phase, i
        cdef const rk_window *window = &self.cell.input
        cdef Py_ssize_t row = self.blocks * self.units * self.item
        memset(self.bias, 0, self.cell.slots * row)
        if bias_ih is not None:
            bias_ih, bias_hh = contiguous(bias_ih), contiguous(bias_hh)
            add_rows(self.bias, self.cell.slots, window.slot, address(bias_ih), window, self)
            for phase in range(self.cell.phases):
                window = &self.cell.recurrent[phase]
                add_rows(self.bias, self.cell.slots, window.slot, address(bias_hh), window, self)
        if weight_ch is not None:
            weight_ch = contiguous(weight_ch)
            memset(self.peepholes, 0, 3 * row)
            for i in range(3):
                add_gate(self.peepholes, 3, i, address(weight_ch), i, self)
        return 0

    cdef int pack(self, int first, int threads) except -1:
        """The panels from `first` on."""
        cdef Py_ssize_t size = 0
        cdef int i, team
        for i in range(first, self.panel_count):
            size += self.panels[i].job.hidden * self.panels[i].job.gates * self.panels[i].job.k
        team = team_to_move(size * self.item, threads)
        with nogil:
            run_panels(&self.panels[first], self.panel_count - first, team)
        return 0

    cdef bint is_packed(self) noexcept:
        return self.sources is None

    cdef int pack_rest(self, int first, int threads) except -1:
        """The same, after which all are packed that are to be."""
        cdef long long began = nanoseconds()
        self.pack(first, threads)
        self.sources = None
        call = current_call()
        if call is not None:
            call.add(PACK, nanoseconds() - began)
        return 0

    def keeps_gates(self):
        """Whether backward needs the gates of every step."""
        return bool(self.cell.keeps_gates)

    def shrink(self, scale_ih=None, scale_hh=None):
        """Stores the panels smaller: as float16, or with scales (G*H,) as int8, where the weights
        are integers from -127 to 127 that these multiply. There are no transposed copies."""
        cdef int phase
        cdef Py_ssize_t width = self.blocks * self.units
        self.storage = RK_HALF
        if scale_ih is not None:
            self.storage = STORAGES[INT8_WAY or int8_ways()[0]]
        parts = []
        self.bias = self.moved(parts, self.bias, self.cell.slots * width, self.dtype)
        if self.peepholes != NULL:
            self.peepholes = self.moved(parts, self.peepholes, 3 * width, self.dtype)
        if self.projection != NULL:
            count = self.column_blocks(self.projected_size) * self.hidden_size
            count *= RK_TRANSPOSED_VECTORS * self.kernels.lanes
            self.projection = self.moved(parts, self.projection, count, self.dtype)
        self.input = self.shrunk(parts, self.input, self.input_size, self.cell.input.slots)
        if scale_ih is not None:
            self.input_scale = self.scale(parts, scale_ih, &self.cell.input)
        for phase in range(self.cell.phases):
            self.recurrent[phase] = self.shrunk(
                parts, self.recurrent[phase], self.projected_size,
                self.cell.recurrent[phase].slots,
            )
            if scale_hh is not None:
                self.recurrent_scale[phase] = self.scale(
                    parts, scale_hh, &self.cell.recurrent[phase]
                )
        self.memory = parts

    cdef char *moved(self, list parts, char *part, Py_ssize_t count, dtype) except NULL:
        """So many numbers of the memory as an array of their own."""
        begin = part - address(self.memory)
        array = aligned_empty(count, np.dtype(dtype).num)
        array[...] = self.memory[begin : begin + count * self.item].view(self.dtype)
        parts.append(array)
        return address(array)

    cdef char *shrunk(self, list parts, char *part, Py_ssize_t rows, int slots) except NULL:
        """A panel of so many rows, stored smaller, as an array of its own. csrc/quads.h says how
        int8 lies in quads."""
        cdef Py_ssize_t width = slots * self.units, first, k, at = 0
        if not rk_in_quads(self.storage):
            kind = np.float16 if self.storage == RK_HALF else np.int8
            return self.moved(parts, part, self.blocks * rows * width, kind)
        array = aligned_zeros(
            self.blocks * rk_panel_rows(rows, self.storage) * width, cnp.NPY_INT8
        )
        parts.append(array)
        quads = array.reshape(self.blocks, -1, width, 4)
        begin = part - address(self.memory)
        panel = self.memory[begin : begin + self.blocks * rows * width * self.item]
        panel = panel.view(self.dtype).reshape(self.blocks, rows, width)
        for first in range(0, rows, RK_QUAD_PIECE):
            piece = panel[:, first : first + RK_QUAD_PIECE]
            quads[:, at].view(np.int32)[..., 0] = -64 * piece.sum(axis=1)
            for k in range(4):
                some = piece[:, k::4]
                quads[:, at + 1 : at + 1 + some.shape[1], :, k] = some
            at += 1 + (piece.shape[1] + 3) // 4
        return address(array)

    cdef char *scale(self, list parts, scale, const rk_window *window) except NULL:
        array = aligned_zeros(self.blocks * window.slots * self.units, self.type_number())
        parts.append(array)
        scale = contiguous(scale)
        add_rows(address(array), window.slots, 0, address(scale), window, self)
        return address(array)

    cdef bint for_training(self) noexcept:
        """Whether there are transposed copies."""
        return self.recurrent_transposed[0] != NULL

    cdef int type_number(self) noexcept:
        """NumPy's, of the dtype."""
        return cnp.NPY_FLOAT32 if self.item == 4 else cnp.NPY_FLOAT64

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

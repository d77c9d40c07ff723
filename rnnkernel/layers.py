"""RNN, GRU and LSTM: parameters, forward and backward over whole sequences.

Letters in shapes: T time steps, N batch rows, I input_size, H hidden_size, L num_layers,
D directions, G gates, P units of h (and of y in each direction): H, or the LSTM's proj_size.
"""

import os
import threading
import warnings
from dataclasses import dataclass, field

import numpy as np

from rnnkernel import _check, _checkpoints, _dropout, _forward, _threads, cells, profiling
from rnnkernel._checkpoints import Checkpoints
from rnnkernel._packing import PackedGradients, PackedWeights
from rnnkernel._plain import infer
from rnnkernel._sequence import Rows, Sequence, Table, constant, tokens
from rnnkernel.clipping import Clip
from rnnkernel.inference import Frozen, Stream
from rnnkernel.trace import Trace


@dataclass(frozen=True)
class Output:
    """What `forward` returns.

    Attributes
    ----------
    y : (T, N, D*P) array, laid out as x was
        The hidden states of the last layer. Read-only after `training=True`, where BPTT reads
        it again, and after `trace=True`, unless `out=` was given.
    state : (L*D, N, H) array, or for LSTM a pair h (L*D, N, P), c (L*D, N, H)
        The final states.
    trace : tuple of L*D Trace, or None without `trace=True`
        The states and gates of each layer and direction, in the order of the states' rows.
    """

    y: np.ndarray
    state: np.ndarray | tuple[np.ndarray, np.ndarray]
    trace: tuple[Trace, ...] | None = None
    _tape: object = field(default=None, repr=False)


@dataclass(frozen=True)
class Flow:
    """The gradient that reaches each step, as it arrives, before clipping.

    Attributes
    ----------
    dh_norm : (L*D, T) float64
        Euclidean norm of dL/dh_t over the batch.
    dc_norm : (L*D, T) float64, or None without a cell state
        The same of dL/dc_t, as it comes from step t+1.
    clipped : (L*D, T) int64
        Batch rows that clipping changed.
    """

    dh_norm: np.ndarray
    dc_norm: np.ndarray | None
    clipped: np.ndarray


@dataclass(frozen=True)
class Gradients:
    """What `backward` returns.

    Attributes
    ----------
    x : like x, or None with `input_grad=False` or token ids
    state : like state
        Gradient of the initial state.
    parameters : dict of str to array
        Like `layer.parameters`.
    embedding : (V, I) array, or None without `embedding`
    flow : Flow, or None without `flow=True`
    """

    x: np.ndarray | None
    state: np.ndarray | tuple[np.ndarray, np.ndarray]
    parameters: dict[str, np.ndarray]
    embedding: np.ndarray | None = None
    flow: Flow | None = None


@dataclass(frozen=True)
class _Pass:
    """One layer and direction of a training forward: what its backward needs, owned."""

    weights: PackedWeights
    x: np.ndarray  # (T, N, I), time in the direction's order, as all here
    h0: np.ndarray  # (N, P)
    c0: np.ndarray | None  # packed
    y: np.ndarray  # (T, N, P)
    reserve: np.ndarray | None
    rows: Rows | None  # with lengths or resets: then c0 and reserve are by own step and position
    checkpoints: Checkpoints | None  # then there is no reserve
    index: np.ndarray | None  # (T, N): where x is a table, the row that each step sees


@dataclass(frozen=True)
class _Dropped:
    """The dropout of one training forward: enough to draw its masks again."""

    p: float
    seed: int
    first_step: int

    def __call__(self, k: int, y: np.ndarray, out: np.ndarray, threads: int) -> np.ndarray:
        """Writes what layer k hands on, or the gradient of it, to `out`."""
        _dropout.dropout(y, out, self.p, self.seed, k, self.first_step, threads)
        return out


@dataclass(frozen=True)
class _Tape:
    layer: "_Layer"
    passes: list[_Pass]
    batched: bool
    shape: tuple[int, int]
    dropped: _Dropped | None
    table: Table | None
    vocabulary: int | None  # V, with an embedding


# Guards the counters of dropout; released in a forked child whoever held it.
_counting = threading.Lock()
os.register_at_fork(
    before=_counting.acquire,
    after_in_parent=_counting.release,
    after_in_child=_counting.release,
)


def _norm_over_batch(rows: np.ndarray) -> np.ndarray:
    """(T, N) norms of rows to (T,) norms of the batch, with no overflow of squares."""
    largest = np.max(rows, axis=1, initial=0.0)
    scale = np.where((largest > 0) & np.isfinite(largest), largest, 1.0)
    return scale * np.sqrt(np.sum((rows / scale[:, None]) ** 2, axis=1))


class _Layer:
    """What all cells share. A subclass sets `_cell` and `options`."""

    _cell: cells.Cell

    def __init__(
        self,
        input_size,
        hidden_size,
        num_layers,
        bias,
        batch_first,
        dropout,
        bidirectional,
        dtype,
        rng,
    ):
        self.input_size = _check.size("input_size", input_size)
        self.hidden_size = _check.size("hidden_size", hidden_size)
        self.num_layers = _check.size("num_layers", num_layers)
        self.bias = _check.flag("bias", bias)
        self.batch_first = _check.flag("batch_first", batch_first)
        self.dropout = _check.share("dropout", dropout)
        self.bidirectional = _check.flag("bidirectional", bidirectional)
        self.dtype = _check.real_dtype("dtype", dtype)
        self.options = {
            "num_layers": self.num_layers,
            "bias": self.bias,
            "batch_first": self.batch_first,
            "dropout": self.dropout,
            "bidirectional": self.bidirectional,
        }
        self._directions = 2 if self.bidirectional else 1
        self._name_parameters()
        rng = _check.generator("rng", rng)
        self.parameters: dict[str, np.ndarray] = self._initial_parameters(rng)
        # drawn last, and only where it is used: the parameters are those without dropout
        self._dropout_seed = int(rng.integers(2**64, dtype=np.uint64)) if self.dropout else 0
        self._dropout_steps = 0
        if self.dropout and self.num_layers == 1:
            warnings.warn(
                "dropout: it acts between layers, so with num_layers=1 nothing is dropped",
                stacklevel=3,
            )

    def _initial_parameters(self, rng) -> dict[str, np.ndarray]:
        limit = self.hidden_size**-0.5
        arrays = {
            name: _check.allocate(name, shape, self.dtype)
            for name, shape in self._parameter_shapes.items()
        }
        for array in arrays.values():
            array[...] = rng.uniform(-limit, limit, array.shape)
        return arrays

    @classmethod
    def _with_parameters(cls, parameters, *sizes, **options):
        """A layer that owns these arrays; none are drawn, or allocated, before they fit."""

        class Given(cls):
            def _initial_parameters(self, rng):
                return _check.parameters(
                    "parameters", parameters, self._parameter_shapes, self.dtype
                )

        layer = Given(*sizes, **options)
        layer.__class__ = cls
        return layer

    @property
    def _widths(self) -> tuple[int, ...]:
        """Units of each state; y has those of the first."""
        return (self.hidden_size,) * len(self._cell.states)

    def _name_parameters(self):
        """Sets what follows from the sizes: a suffix for each layer and direction, in the order of
        the states' rows, and all parameters' shapes."""
        self._suffixes = [
            f"_l{k}{reverse}"
            for k in range(self.num_layers)
            for reverse in ("", "_reverse")[: self._directions]
        ]
        rows, P = len(self._cell.gates) * self.hidden_size, self._widths[0]
        shapes: dict[str, tuple[int, ...]] = {}
        for index, suffix in enumerate(self._suffixes):
            first = index < self._directions
            inputs = self.input_size if first else self._directions * P
            shapes[f"weight_ih{suffix}"] = (rows, inputs)
            shapes[f"weight_hh{suffix}"] = (rows, P)
            if self.bias:
                shapes[f"bias_ih{suffix}"] = (rows,)
                shapes[f"bias_hh{suffix}"] = (rows,)
            if self._cell.projects:
                shapes[f"weight_hr{suffix}"] = (P, self.hidden_size)
            if self._cell.peepholes:
                shapes[f"weight_ch{suffix}"] = (len(self._cell.peepholes) * self.hidden_size,)
        self._parameter_shapes = shapes

    def __repr__(self):
        defaults = {
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0.0,
            "bidirectional": False,
            "proj_size": 0,
            "peephole": False,
            "cell_clip": None,
            "coupled": False,
            "forget_bias": 0.0,
        }
        changed = [
            f"{name}={value!r}"
            for name, value in self.options.items()
            if value != defaults.get(name)
        ]
        arguments = [str(self.input_size), str(self.hidden_size), *changed, f"dtype={self.dtype}"]
        return f"{type(self).__name__}({', '.join(arguments)})"

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all parameters by name; PyTorch's names, shapes and gate order."""
        return {name: array.copy() for name, array in self.parameters.items()}

    def load_state_dict(self, state_dict) -> None:
        """Copies values into the parameters, in place.

        Raises
        ------
        TypeError, ValueError
            For other names, shapes or dtypes than the layer's; then nothing was changed.
        """
        arrays = _check.parameters("state_dict", state_dict, self._parameter_shapes, self.dtype)
        for name, array in arrays.items():
            self.parameters[name][...] = array

    def freeze(self, weights=None) -> Frozen:
        """An immutable copy for inference whose weights are packed once, not at every call.

        Later changes of the layer do not reach it. See `Frozen`.

        Parameters
        ----------
        weights : None, "float16" or "int8"
            Stores the matrices smaller: a step of a small batch takes the time to read them.

        Raises
        ------
        TypeError, ValueError
            For other weights, for smaller ones of a float64 layer, and for parameters that they
            cannot hold.
        """
        return Frozen(self, weights)

    def stream(self, batch_size=1) -> Stream:
        """A `Stream` with the weights as they are now: `freeze().stream(batch_size)`."""
        return self.freeze().stream(batch_size)

    # -- forward ------------------------------------------------------------------------------

    def __call__(
        self, x, state=None, *, lengths=None, reset=None, embedding=None, num_threads=None
    ):
        """Inference: `y, state` of `forward`."""
        if lengths is None and reset is None and embedding is None:
            call = profiling.begin(self, "forward()")
            plain = infer(self, None, x, state, _threads.resolve(num_threads))
            if plain is not None:
                if call is not None:
                    call.end()
                return plain
        out = self.forward(
            x,
            state,
            lengths=lengths,
            reset=reset,
            embedding=embedding,
            num_threads=num_threads,
        )
        return out.y, out.state

    def forward(
        self,
        x,
        state=None,
        *,
        lengths=None,
        reset=None,
        embedding=None,
        training=False,
        trace=False,
        checkpoint_every=None,
        out=None,
        num_threads=None,
    ) -> Output:
        """Runs the layer over sequences.

        Parameters
        ----------
        x : (T, N, I) array; (N, T, I) with `batch_first`; or (T, I), unbatched
            Of the layer's dtype, with any strides; never written. An x that is broadcast along time
            (stride 0) is projected once, and the gradient of weight_ih is summed over time before
            it meets x. Integers (T, N), (N, T) or (T,) are token ids: rows of
            `embedding`, or without one the one-hot vectors of I classes.
        state : (L*D, N, H) array, or for LSTM a pair h (L*D, N, P), c (L*D, N, H)
            Initial states, without N where x has none; None is zeros.
        lengths : (N,) integers, optional
            How many steps each row has, from 0 to T; None is T. Past them x is not looked at, y
            is 0, and nothing is computed. The final state is that of the last valid step (for
            length 0 the initial state), and the second direction begins there. An unbatched x
            takes a single integer.
        reset : (T, N) bool array, laid out as x, optional
            Where True at t, a segment begins at t: no state, and no gradient, crosses the border
            between t-1 and t in either direction. At t = 0 the forward direction drops its
            initial state.
        embedding : (V, I) array, optional
            Of the layer's dtype: what the ids in x stand for.
        training : bool
            Keeps what `backward` needs, in memory of its own: 5 H numbers per step and row for
            LSTM, 4 H for GRU, none for RNN, and a copy of x. Dropout acts, and keeps a copy of
            what it leaves of every layer's output but the last's.
        trace : bool
            Keeps the states and gates of every step, for `out.trace`: no more memory than training
            takes for them.
        checkpoint_every : int, optional
            Training keeps, beside y and x, the states before every so many steps instead of the
            gates of all; `backward` computes those again, segment by segment. That takes memory for
            T / checkpoint_every + checkpoint_every steps, least at the square root of T, and up to
            a third more time. Not a bit changes. Inference keeps nothing in any case.
        out : array like y, optional
            Where y is written.
        num_threads : int, optional
            Most threads to use; None is `get_num_threads()`. Results do not depend on it.

        Raises
        ------
        TypeError, ValueError, IndexError
            For a bad argument, named in the message, as an id out of range with its position;
            nothing was changed.
        MemoryError
            Where y or what training keeps does not fit.

        Notes
        -----
        Truncated BPTT is forward and backward on pieces of the sequences, one after another, each
        with `state=` the piece before's `out.state`. The outputs are the whole's, bit for bit;
        gradients stop where a piece begins. Going back through the pieces from the last, with
        `dstate=` the `grads.state` of the piece behind, adds up to the whole's gradient.
        """
        call = profiling.begin(self, "forward(training=True)" if training else "forward()")
        training, trace = _check.flag("training", training), _check.flag("trace", trace)
        if checkpoint_every is not None:
            checkpoint_every = _check.size("checkpoint_every", checkpoint_every)
            if trace:
                raise ValueError(
                    f"checkpoint_every: expected None with trace=True, got {checkpoint_every}: a "
                    "trace keeps the gates of every step"
                )
        threads = _threads.resolve(num_threads)
        weights = _check.parameters(
            "parameters", self.parameters, self._parameter_shapes, self.dtype
        )
        result = self._run(
            lambda index, columns=None: self._pack(weights, index, training, threads, columns),
            weights,
            threads,
            x,
            state,
            lengths=lengths,
            reset=reset,
            embedding=embedding,
            training=training,
            trace=trace,
            checkpoint_every=checkpoint_every,
            out=out,
        )
        if call is not None:
            call.end()
        return result

    def _pack(
        self, weights, index: int, transposed: bool, threads: int, columns=None
    ) -> PackedWeights:
        """The weights of one layer and direction as the kernels read them.

        With `columns` W_ih has only these, and x no gradient.
        """
        suffix = self._suffixes[index]
        weight_ih = weights[f"weight_ih{suffix}"]
        return PackedWeights(
            self._cell.index,
            np.ascontiguousarray(weight_ih),
            np.ascontiguousarray(weights[f"weight_hh{suffix}"]),
            weights.get(f"bias_ih{suffix}"),
            weights.get(f"bias_hh{suffix}"),
            transposed,
            threads,
            weights.get(f"weight_ch{suffix}"),
            self.options.get("cell_clip"),
            np.ascontiguousarray(weights[f"weight_hr{suffix}"]) if self._cell.projects else None,
            True,
            columns,
        )

    def _run(
        self,
        packed_weights,
        weights,
        threads,
        x,
        state,
        *,
        lengths=None,
        reset=None,
        embedding=None,
        training=False,
        trace=False,
        checkpoint_every=None,
        out=None,
        one_hot="columns",
    ):
        """What `forward` does with weights packed: `packed_weights(index)` for each layer and
        direction, or `packed_weights(index, columns)` for some columns of W_ih. `weights` are the
        arrays that `out` must not overlap. `one_hot` says what ids are without an embedding:
        "columns" of W_ih to be packed, rows of all of it "packed", or "vectors".
        """
        x, batched = self._check_x(x)
        T, N = x.shape[:2]
        initial = self._check_state("state", state, N, batched)
        if lengths is not None or reset is not None:
            lengths, reset = self._check_rows(lengths, reset, T, N, batched)
        table = None
        if x.ndim == 2:
            table = self._check_tokens(x, embedding, lengths, batched, one_hot)
        elif embedding is not None:
            raise ValueError(f"embedding: expected None with an x of {x.dtype}, got an embedding")
        elif T > 1 and x.strides[0] == 0:
            table = constant(x)
        rows = [None, None]
        if T > 0 and N > 0 and (lengths is not None or reset is not None or table is not None):
            sequence = Sequence(T, N, lengths, reset)
            rows = [sequence.rows(d == 1) for d in range(self._directions)]
        P, D, L, states = self._widths[0], self._directions, self.num_layers, self._cell.states
        if out is not None:
            reads = {"x": x, **{f"state ({s})": a for s, a in zip(states, initial, strict=True)}}
            reads |= {f"parameters[{name!r}]": array for name, array in weights.items()}
            if embedding is not None:
                reads["embedding"] = np.asarray(embedding)
            dims = ("T", "N", "D*P")
            sizes = (T, N, D * P)
            if self.batch_first and batched:
                dims, sizes = ("N", "T", "D*P"), (N, T, D * P)
            elif not batched:
                dims, sizes = ("T", "D*P"), (T, D * P)
            _check.output("out", out, self.dtype, dims, sizes, reads)

        finals = [_check.allocate("state", (L * D, N, w), self.dtype) for w in self._widths]
        passes, traces, keeps = [], [], training or trace
        dropped = self._draw(T) if training and self.dropout and L > 1 else None
        layer_x, columns = x, None
        if table is not None:
            layer_x = table.x(self.input_size, self.dtype)
            columns = table.ids if table.rows is None else None
        elif training:
            layer_x = np.array(x, order="C")
        for k in range(L):
            y = self._allocate_y(T, N, batched, D * P)
            if k == L - 1 and out is not None and not keeps and _writes_direct(out):
                y = self._time_first(out, batched)
            for d in range(D):
                index = k * D + d
                step = -1 if d else 1
                if columns is None or k > 0:
                    packed = packed_weights(index)
                else:
                    packed = packed_weights(index, columns)
                looked_up = table is not None and k == 0
                c0 = None
                if len(states) == 2:
                    order = None if rows[d] is None else rows[d].order
                    c0 = _forward.pack_cells(packed, initial[1][index], order)
                checkpoints = None
                if training and checkpoint_every is not None and checkpoint_every < T:
                    if packed.keeps_gates():
                        checkpoints = Checkpoints(checkpoint_every)
                one = _Pass(
                    packed,
                    layer_x if looked_up else layer_x[::step],
                    np.array(initial[0][index], order="C"),
                    c0,
                    y[::step, :, d * P : (d + 1) * P],
                    _forward.allocate_reserve(packed, T, N)
                    if keeps and checkpoints is None
                    else None,
                    rows[d],
                    checkpoints,
                    table.index[::step] if looked_up else None,
                )
                _checkpoints.forward(
                    one,
                    finals[0][index],
                    finals[1][index] if len(states) == 2 else None,
                    threads,
                )
                if training:
                    passes.append(one)
                if trace:
                    traces.append(self._trace(one, step, batched))
            layer_x = y
            if dropped is not None and k < L - 1:
                layer_x = dropped(k, y, _check.allocate("y", y.shape, self.dtype), threads)

        result = self._caller_view(y, batched)
        if keeps:
            result = result.view()
            result.flags.writeable = False
        if out is not None:
            if not np.shares_memory(result, out):
                out[...] = result
            result = out
        tape = None
        if training:
            V = None if embedding is None else len(embedding)
            tape = _Tape(self, passes, batched, (T, N), dropped, table, V)
        return Output(
            result, self._caller_state(finals, batched), tuple(traces) if trace else None, tape
        )

    def _trace(self, one: _Pass, step: int, batched: bool) -> Trace:
        """What one layer and direction went through, as the caller sees time and rows."""

        def source(gate):
            T, N = one.y.shape[:2]
            array = _forward.kept(one.weights, one.reserve, T, N, gate)
            if one.rows is not None:
                array = one.rows.restore(array)
            return self._caller_view(array[::step], batched)

        sources = {"h": lambda: self._caller_view(one.y[::step], batched)}
        if len(self._cell.states) == 2:
            sources["c"] = lambda: source(None)
        if one.reserve is not None:
            for index, name in enumerate(self._cell.gates):
                sources[name] = lambda index=index: source(index)
        return Trace(sources)

    def _draw(self, T: int) -> _Dropped:
        """The masks of the next T steps: each training forward goes on where the last ended."""
        with _counting:
            first, self._dropout_steps = self._dropout_steps, self._dropout_steps + T
        return _Dropped(self.dropout, self._dropout_seed, first)

    # -- backward -----------------------------------------------------------------------------

    def backward(
        self, out, dy=None, dstate=None, *, clip=None, flow=False, input_grad=True, num_threads=None
    ) -> Gradients:
        """Backpropagation through time of a `forward(..., training=True)`.

        Gradients are exact for what that forward computed, also where parameters or x have
        changed since. They are written, not accumulated.

        Parameters
        ----------
        out : Output
        dy : like out.y, optional
            dL/dy; None is zeros.
        dstate : like out.state, optional
            dL/d(final state); None is zeros.
        clip : Clip, optional
            Limits the gradient at every step.
        flow : bool
            Records the norm of the gradient that reaches each state.
        input_grad : bool
            Whether to compute the gradient of x.
        num_threads : int, optional
            As in `forward`; gradients do not depend on it.

        Raises
        ------
        TypeError, ValueError
            For a bad argument, named in the message.
        """
        call = profiling.begin(self, "backward()")
        if not isinstance(out, Output):
            raise TypeError(f"out: expected what forward returned, got {type(out).__name__}")
        if out._tape is None:
            raise ValueError(
                "out: expected the output of forward(..., training=True), got inference"
            )
        if out._tape.layer is not self:
            raise ValueError(
                f"out: expected an output of this layer, got one of {out._tape.layer!r}"
            )
        if clip is not None and not isinstance(clip, Clip):
            raise TypeError(f"clip: expected a Clip or None, got {type(clip).__name__}")
        flow = _check.flag("flow", flow)
        input_grad = _check.flag("input_grad", input_grad)
        threads = _threads.resolve(num_threads)
        tape: _Tape = out._tape
        (T, N), batched = tape.shape, tape.batched
        P, D, L, states = self._widths[0], self._directions, self.num_layers, self._cell.states
        if dy is not None:
            dims = ("N", "T", "D*P") if self.batch_first else ("T", "N", "D*P")
            sizes = (N, T, D * P) if self.batch_first else (T, N, D * P)
            if not batched:
                dims, sizes = ("T", "D*P"), (T, D * P)
            dy = self._time_first(_check.array("dy", dy, self.dtype, dims, sizes), batched)
        dfinal = [None] * len(states)
        if dstate is not None:
            dfinal = self._check_state("dstate", dstate, N, batched)

        dinitial = [_check.allocate("grads.state", (L * D, N, w), self.dtype) for w in self._widths]
        parameters = {
            name: _check.allocate(name, shape, self.dtype)
            for name, shape in self._parameter_shapes.items()
        }
        limits = tuple(
            np.inf if limit is None else limit
            for limit in ((None, None) if clip is None else (clip.value, clip.norm))
        )
        table, dembedding = tape.table, None
        is_tokens = table is not None and table.ids is not None
        if is_tokens:
            input_grad = False
            if table.rows is not None:
                dembedding = np.zeros((tape.vocabulary, self.input_size), self.dtype)
        records = [None] * (L * D)
        dx = dy
        for k in reversed(range(L)):
            dlayer, dx = dx, None
            for d in range(D):
                index = k * D + d
                step, suffix, one = -1 if d else 1, self._suffixes[index], tape.passes[index]
                dpart = dtable = None
                if k > 0:
                    dpart = _check.allocate("grads.x", one.x.shape, self.dtype)
                elif input_grad:
                    dpart = self._allocate_y(T, N, batched, self.input_size)
                elif dembedding is not None:
                    dtable = _check.allocate("grads.embedding", table.rows.shape, self.dtype)
                if flow:
                    records[index] = (
                        np.zeros((T, N)),
                        np.zeros((T, N)),
                        np.zeros((T, N), np.uint8),
                    )
                gradients = PackedGradients(one.weights)
                _checkpoints.backward(
                    one,
                    gradients,
                    None if dlayer is None else dlayer[::step, :, d * P : (d + 1) * P],
                    None if dfinal[0] is None else dfinal[0][index],
                    None if dfinal[-1] is None or len(states) == 1 else dfinal[1][index],
                    limits,
                    records[index],
                    None if dpart is None else dpart[::step],
                    dinitial[0][index],
                    dinitial[1][index] if len(states) == 2 else None,
                    threads,
                    dtable,
                )
                if flow and one.rows is not None:
                    records[index] = [one.rows.restore(record) for record in records[index]]
                some_columns = k == 0 and is_tokens and table.rows is None
                gradients.unpack(
                    parameters[f"weight_ih{suffix}"],
                    parameters[f"weight_hh{suffix}"],
                    parameters.get(f"bias_ih{suffix}"),
                    parameters.get(f"bias_hh{suffix}"),
                    threads,
                    parameters.get(f"weight_ch{suffix}"),
                    parameters.get(f"weight_hr{suffix}"),
                    table.ids if some_columns else None,
                )
                if dtable is not None:
                    dembedding[table.ids] += dtable
                if dpart is not None:
                    dx = dpart if dx is None else np.add(dx, dpart, out=dx)
            if k > 0 and tape.dropped is not None:
                tape.dropped(k - 1, dx, dx, threads)
        gradients = Gradients(
            self._caller_view(dx, batched) if input_grad else None,
            self._caller_state(dinitial, batched),
            parameters,
            dembedding,
            self._flow(records) if flow else None,
        )
        if call is not None:
            call.end()
        return gradients

    def _flow(self, records) -> Flow:
        steps = [-1 if d else 1 for d in range(self._directions)] * self.num_layers
        dh, dc, clipped = (
            np.stack([record[part][::step] for record, step in zip(records, steps, strict=True)])
            for part in range(3)
        )
        return Flow(
            np.stack([_norm_over_batch(rows) for rows in dh]),
            np.stack([_norm_over_batch(rows) for rows in dc])
            if len(self._cell.states) == 2
            else None,
            clipped.sum(axis=2, dtype=np.int64),
        )

    # -- layouts: kernels see (T, N, .), callers what they chose --------------------------------

    def _check_x(self, x) -> tuple[np.ndarray, bool]:
        if not isinstance(x, np.ndarray):
            x = _check._foreign_array("x", x)
        if x.dtype.kind in "iu" and x.ndim in (1, 2):
            return self._time_first(x, x.ndim == 2), x.ndim == 2
        batched = x.ndim != 2
        dims = ("N", "T", "I") if self.batch_first else ("T", "N", "I")
        sizes = (None, None, self.input_size)
        if not batched:
            dims, sizes = ("T", "I"), (None, self.input_size)
        x = _check.array("x", x, self.dtype, dims, sizes)
        return self._time_first(x, batched), batched

    def _check_tokens(self, ids, embedding, lengths, batched: bool, one_hot: str) -> Table:
        """Ids (T, N) as rows of a table."""
        count = self.input_size
        if embedding is not None:
            sizes = (None, self.input_size)
            embedding = _check.array("embedding", embedding, self.dtype, ("V", "I"), sizes)
            count = _check.size("embedding: V", len(embedding))

        def position(t, n):
            if not batched:
                return f"({t},)"
            return f"({n}, {t})" if self.batch_first else f"({t}, {n})"

        ids = _check.ids("x", ids, count, lengths, position)
        if embedding is None and one_hot == "packed":
            return Table(None, ids, None)
        table = tokens(ids, count, embedding)
        if embedding is None and one_hot == "vectors":
            vectors = np.zeros((len(table.ids), count), self.dtype)
            vectors[np.arange(len(table.ids)), table.ids] = 1
            return Table(vectors, table.index, table.ids)
        return table

    def _check_rows(self, lengths, reset, T: int, N: int, batched: bool):
        """Lengths (N,) and resets (T, N), each None where it makes no difference."""
        if lengths is not None:
            lengths = _check.lengths("lengths", lengths, T, N, batched)
            lengths = None if np.all(lengths == T) else lengths
        if reset is not None:
            dims, sizes = (("N", "T"), (N, T)) if self.batch_first else (("T", "N"), (T, N))
            if not batched:
                dims, sizes = ("T",), (T,)
            reset = self._time_first(_check.borders("reset", reset, dims, sizes), batched)
            reset = reset if reset.any() else None
        return lengths, reset

    def _check_state(self, name, state, N: int, batched: bool) -> list[np.ndarray]:
        """One (L*D, N, its units) array for each state."""
        names, rows = self._cell.states, self.num_layers * self._directions
        if state is None:
            zeros = [_check.allocate(name, (rows, N, w), self.dtype) for w in self._widths]
            for array in zeros:
                array.fill(0)
            return zeros
        if len(names) == 1:
            state = (state,)
        elif not isinstance(state, (tuple, list)) or len(state) != len(names):
            kind = TypeError if not isinstance(state, (tuple, list)) else ValueError
            got = type(state).__name__ if kind is TypeError else f"{len(state)} elements"
            raise kind(f"{name}: expected a pair ({', '.join(names)}), got {got}")
        arrays = []
        for part, width, array in zip(names, self._widths, state, strict=True):
            label = name if len(names) == 1 else f"{name} ({part})"
            units = "H" if width == self.hidden_size else "P"
            dims, sizes = ("L*D", "N", units), (rows, N, width)
            if not batched:
                dims, sizes = ("L*D", units), (rows, width)
            array = _check.array(label, array, self.dtype, dims, sizes)
            arrays.append(array if batched else array[:, None])
        return arrays

    def _time_first(self, array: np.ndarray, batched: bool) -> np.ndarray:
        if not batched:
            return array[:, None]
        return array.swapaxes(0, 1) if self.batch_first else array

    def _caller_view(self, array: np.ndarray, batched: bool) -> np.ndarray:
        if not batched:
            return array[:, 0]
        return array.swapaxes(0, 1) if self.batch_first else array

    def _caller_state(self, arrays: list[np.ndarray], batched: bool):
        arrays = [array if batched else array[:, 0] for array in arrays]
        return arrays[0] if len(arrays) == 1 else tuple(arrays)

    def _allocate_y(self, T: int, N: int, batched: bool, width: int) -> np.ndarray:
        """(T, N, width) as seen, contiguous in the caller's order."""
        if self.batch_first and batched:
            return _check.allocate("y", (N, T, width), self.dtype).transpose(1, 0, 2)
        return _check.allocate("y", (T, N, width), self.dtype)


def _writes_direct(out: np.ndarray) -> bool:
    """Whether kernels can write to it: units side by side, numbers where they belong."""
    contiguous = out.shape[-1] == 1 or out.strides[-1] == out.itemsize
    aligned = out.flags.aligned and not any(stride % out.itemsize for stride in out.strides)
    return bool(contiguous and aligned)


class RNN(_Layer):
    """Vanilla RNN (Elman 1990): h = act(W_ih x + b_ih + W_hh h' + b_hh).

    Parameters
    ----------
    input_size, hidden_size, num_layers : int
        I, H and L.
    nonlinearity : "tanh" or "relu"
    bias : bool
    batch_first : bool
        Whether x and y are (N, T, .) instead of (T, N, .). States are (L*D, N, H) always.
    dropout : float from 0 to 1
        With `training=True`, each element that one layer hands to the next is 0 with this
        probability and divided by 1 - dropout otherwise (Srivastava et al. 2014). What is dropped
        is a function of a seed that `rng` draws, the layer, the step, the row and the unit. Steps
        are counted over all training forwards of the layer, so that every call drops afresh and
        pieces of a sequence drop what the whole would.
    bidirectional : bool
        Whether every layer has a second direction that runs from the last step.
    dtype : float32 or float64
    rng : int or numpy.random.Generator, optional
        Draws the initial parameters from U(-1/sqrt(H), 1/sqrt(H)), then the seed of dropout.

    Raises
    ------
    TypeError, ValueError
        For a bad argument, named in the message.
    MemoryError
        Where the parameters do not fit.

    Warns
    -----
    UserWarning
        For dropout with a single layer, where there is nothing that it acts on.
    """

    def __init__(
        self,
        input_size,
        hidden_size,
        num_layers=1,
        *,
        nonlinearity="tanh",
        bias=True,
        batch_first=False,
        dropout=0.0,
        bidirectional=False,
        dtype=np.float32,
        rng=None,
    ):
        self.nonlinearity = _check.choice("nonlinearity", nonlinearity, ("tanh", "relu"))
        self._cell = cells.RNN_TANH if nonlinearity == "tanh" else cells.RNN_RELU
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            dtype,
            rng,
        )
        self.options["nonlinearity"] = self.nonlinearity


class GRU(_Layer):
    """Gated recurrent unit (Cho et al. 2014); gates r, z, n.

    r, z = s(W_ih x + b_ih + W_hh h' + b_hh), h = (1-z)*n + z*h', and
    `reset_after=True` (cuDNN, PyTorch, Keras): n = tanh(W_in x + b_in + r*(W_hn h' + b_hn));
    `reset_after=False` (the paper, ONNX): n = tanh(W_in x + b_in + W_hn (r*h') + b_hn).
    The two are not convertible.

    Parameters and errors are those of `RNN`, with `reset_after` for `nonlinearity`.
    """

    def __init__(
        self,
        input_size,
        hidden_size,
        num_layers=1,
        *,
        reset_after=True,
        bias=True,
        batch_first=False,
        dropout=0.0,
        bidirectional=False,
        dtype=np.float32,
        rng=None,
    ):
        self.reset_after = _check.flag("reset_after", reset_after)
        self._cell = cells.GRU_RESET_AFTER if reset_after else cells.GRU_RESET_BEFORE
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            dtype,
            rng,
        )
        self.options["reset_after"] = self.reset_after


class LSTM(_Layer):
    """LSTM with a forget gate (Hochreiter & Schmidhuber 1997, Gers et al. 2000); gates i, f, g, o.

    i, f, o = s(W_ih x + b_ih + W_hh h' + b_hh), g = tanh(the same),
    c = f*c' + i*g, h = o*tanh(c). The options combine freely.

    States are pairs (h, c). Parameters and errors are those of `RNN`, without `nonlinearity`, and

    proj_size : int
        P: with it h = W_hr (o*tanh(c)) with `weight_hr_l{k}` (P, H), and h, y and what the next
        step and layer see have P units; 1 <= P < H. 0 is no projection.
    peephole : bool
        Whether the gates see the cell: i and f have p*c' among their arguments, o has p*c, with p
        from `weight_ch_l{k}` (3*H: i, f, o).
    cell_clip : float, optional
        c is clipped to ±cell_clip, before o sees it, and no gradient passes where it was.
    forget_bias : float
        Where it is not 0, the forget gate's biases start at it (`bias_ih`) and at 0 (`bias_hh`)
        instead of at random: 1 keeps gradients alive over more steps from the first day
        (Jozefowicz et al. 2015). With `coupled`, i starts at -forget_bias likewise. It wants
        `bias`.
    coupled : bool
        Whether f = 1 - i (CIFG, Greff et al. 2017; `input_forget` of ONNX). The weights keep their
        shapes; the rows of f are not used and their gradient is 0.
    """

    def __init__(
        self,
        input_size,
        hidden_size,
        num_layers=1,
        *,
        proj_size=0,
        peephole=False,
        cell_clip=None,
        forget_bias=0.0,
        coupled=False,
        bias=True,
        batch_first=False,
        dropout=0.0,
        bidirectional=False,
        dtype=np.float32,
        rng=None,
    ):
        hidden_size = _check.size("hidden_size", hidden_size)
        self.proj_size = _check.size("proj_size", proj_size, 0)
        if self.proj_size >= hidden_size:
            raise ValueError(
                f"proj_size: expected less than hidden_size={hidden_size}, got {self.proj_size}"
            )
        self.peephole = _check.flag("peephole", peephole)
        self.cell_clip = None if cell_clip is None else _check.positive("cell_clip", cell_clip)
        self.coupled = _check.flag("coupled", coupled)
        self.forget_bias = _check.finite("forget_bias", forget_bias)
        if self.forget_bias and not _check.flag("bias", bias):
            raise ValueError(f"forget_bias: expected 0 with bias=False, got {self.forget_bias}")
        self._cell = cells.lstm(
            peephole=self.peephole,
            cell_clip=self.cell_clip is not None,
            coupled=self.coupled,
            projection=self.proj_size > 0,
        )
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            dtype,
            rng,
        )
        self.options |= {
            "proj_size": self.proj_size,
            "peephole": self.peephole,
            "cell_clip": self.cell_clip,
            "forget_bias": self.forget_bias,
            "coupled": self.coupled,
        }

    @property
    def _widths(self):
        return self.proj_size or self.hidden_size, self.hidden_size

    def _initial_parameters(self, rng):
        arrays = super()._initial_parameters(rng)
        if self.forget_bias:
            # 1 - s(a) = s(-a)
            name, start = ("i", -self.forget_bias) if self.coupled else ("f", self.forget_bias)
            gate = self._cell.gates.index(name)
            rows = slice(gate * self.hidden_size, (gate + 1) * self.hidden_size)
            for suffix in self._suffixes:
                arrays[f"bias_ih{suffix}"][rows] = start
                arrays[f"bias_hh{suffix}"][rows] = 0
        return arrays

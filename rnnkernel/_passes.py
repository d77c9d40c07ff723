"""A forward of any arguments: checks them, with words for what is wrong, and gives what was asked
for beside y.

rnnkernel/_unroll.pyx runs the layers. `layer` is an RNN, GRU or LSTM, for its sizes and options;
weights come packed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnnkernel import _check, _dropout, _forward
from rnnkernel._arguments import (
    Layout,
    check_embedding,
    check_rows,
    check_state,
    check_tokens,
    check_x,
    check_y,
)
from rnnkernel._packed_weights import PackedWeights
from rnnkernel._plan import sections_of
from rnnkernel._rows import kept_x
from rnnkernel._sequence import Sequence, constant
from rnnkernel._tape import Pass, Tape
from rnnkernel._unroll import unroll
from rnnkernel.results import Output
from rnnkernel.trace import Trace


@dataclass(frozen=True)
class Dropped:
    """The dropout of one training forward: enough to draw its masks again."""

    p: float
    seed: int
    first_step: int

    def __call__(self, k: int, y: np.ndarray, out: np.ndarray, threads: int) -> np.ndarray:
        """Writes what layer k hands on, or the gradient of it, to `out`."""
        _dropout.dropout(y, out, self.p, self.seed, k, self.first_step, threads)
        return out


def forward(
    layer: Any,
    packed_weights: Callable[..., PackedWeights],
    weights: Any,
    threads: int,
    x: Any,
    state: Any,
    *,
    lengths: Any = None,
    reset: Any = None,
    embedding: Any = None,
    training: bool = False,
    trace: bool = False,
    checkpoint_every: int | None = None,
    out: Any = None,
    one_hot: str = "columns",
) -> Output:
    """What `forward` of a layer does with weights packed: `packed_weights(index)` for each layer
    and direction, or `packed_weights(index, columns)` for some columns of W_ih. `weights` are the
    arrays that `out` must not overlap. `one_hot` says what ids are without an embedding:
    "columns" of W_ih to be packed, or rows of all of it "packed".
    """
    x, layout = check_x(layer, x)
    T, N = x.shape[:2]
    initial = check_state(layer, "state", state, N, layout.batched)
    if lengths is not None or reset is not None:
        lengths, reset = check_rows(lengths, reset, T, N, layout)
    table = None
    if x.ndim == 2:
        if embedding is not None:
            embedding = check_embedding(layer, embedding)
        table = check_tokens(layer, x, embedding, lengths, layout, one_hot)
    elif embedding is not None:
        raise _check.embedding_of_floats(x)
    elif T > 1 and x.strides[0] == 0:
        table = constant(x, lengths)
    rows = None
    if T > 0 and N > 0 and (lengths is not None or reset is not None or table is not None):
        sections = sections_of(layer, N, threads, training)
        sequence = Sequence(T, N, lengths, reset, sections)
        rows = [sequence.rows(d == 1) for d in range(layer._directions)]
    count, L = layer.num_layers * layer._directions, layer.num_layers
    out_time_first = None
    if out is not None:
        states = zip(layer._cell.states, initial, strict=True)
        reads = {"x": x, **{f"state ({name})": array for name, array in states}}
        reads |= {f"parameters[{name!r}]": array for name, array in weights.items()}
        if embedding is not None:
            reads["embedding"] = embedding
        out_time_first = check_y(layer, "out", out, T, N, layout, reads)

    keeps = training or trace
    index = columns = None
    if table is not None:
        x, index = table.x(layer.input_size, layer.dtype), table.index
        columns = table.ids if table.rows is None else None
    elif training:
        try:
            x = kept_x(x, lengths, threads)
        except (MemoryError, ValueError):  # NumPy's for more bytes than there are addresses
            raise _check.does_not_fit("x", x.shape, x.itemsize) from None
    packed = [
        packed_weights(i, columns)
        if columns is not None and i < layer._directions
        else packed_weights(i)
        for i in range(count)
    ]
    dropped = _draw(layer, T) if training and layer.dropout and L > 1 else None
    try:
        y, finals, passes = unroll(
            layer,
            layout,
            (T, N),
            x,
            initial,
            rows,
            index,
            out_time_first if out is not None and not keeps and _writes_direct(out) else None,
            packed,
            keeps,
            trace,
            checkpoint_every if training else None,
            dropped,
            threads,
        )
    except BaseException:
        if dropped is not None:
            _give_back(layer, dropped, T)
        raise
    result = layout.caller_view(y.view())  # the tape and the trace have y, and its shape
    if out is not None:
        if not np.shares_memory(result, out):
            out[...] = result
        result = out
    traces = tape = None
    if trace:
        traces = tuple(
            _trace(layer, one, -1 if i % layer._directions else 1, layout)
            for i, one in enumerate(passes)
        )
    if training:
        V = None if embedding is None else len(embedding)
        tape = Tape(layer, passes, layout, (T, N), dropped, table, V)
    return Output(result, layout.caller_state(finals), traces, tape)


def _writes_direct(out: np.ndarray) -> bool:
    """Whether kernels can write to it: units side by side, numbers where they belong."""
    contiguous = out.shape[-1] == 1 or out.strides[-1] == out.itemsize
    aligned = out.flags.aligned and not any(stride % out.itemsize for stride in out.strides)
    return bool(contiguous and aligned)


def _trace(layer: Any, one: Pass, step: int, layout: Layout) -> Trace:
    """What one layer and direction went through, as the caller sees time and rows."""

    def source(gate):
        T, N = one.y.shape[:2]
        array = _forward.kept(one.weights, one.reserve, T, N, gate)
        if one.rows is not None:
            array = one.rows.restore(array)
        return layout.caller_view(array[::step])

    sources = {"h": lambda: layout.caller_view(one.y[::step])}
    if len(layer._cell.states) == 2:
        sources["c"] = lambda: source(None)
    if one.reserve is not None:
        for index, name in enumerate(layer._cell.gates):
            sources[name] = lambda index=index: source(index)
    return Trace(sources)


# -- dropout --------------------------------------------------------------------------------------


def _draw(layer: Any, T: int) -> Dropped:
    """The masks of the next T steps: each training forward goes on where the last ended."""
    return Dropped(layer.dropout, layer._dropout_seed, layer._dropout_drawn.draw(T))


def _give_back(layer: Any, dropped: Dropped, T: int) -> None:
    """After a call that failed: its steps are the next one's, unless one has begun since."""
    layer._dropout_drawn.give_back(dropped.first_step, T)

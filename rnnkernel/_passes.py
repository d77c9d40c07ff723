"""The passes of a stack, one for each layer and direction, forward.

`layer` is an RNN, GRU or LSTM, for its sizes and options; weights come packed.
"""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnnkernel import _check, _checkpoints, _dropout, _forward
from rnnkernel._arguments import Layout, check_rows, check_state, check_tokens, check_x, check_y
from rnnkernel._checkpoints import Checkpoints
from rnnkernel._packing import PackedWeights
from rnnkernel._rows import kept_x
from rnnkernel._sequence import Sequence, constant
from rnnkernel._tape import Pass, Tape
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


def pack(
    layer: Any, weights: Any, index: int, transposed: bool, threads: int, columns: Any = None
) -> PackedWeights:
    """The weights of one layer and direction as the kernels read them.

    With `columns` W_ih has only these, and x no gradient.
    """
    suffix = layer._suffixes[index]
    weight_ih = weights[f"weight_ih{suffix}"]
    return PackedWeights(
        layer._cell.index,
        np.ascontiguousarray(weight_ih),
        np.ascontiguousarray(weights[f"weight_hh{suffix}"]),
        weights.get(f"bias_ih{suffix}"),
        weights.get(f"bias_hh{suffix}"),
        transposed,
        threads,
        weights.get(f"weight_ch{suffix}"),
        layer.options.get("cell_clip"),
        np.ascontiguousarray(weights[f"weight_hr{suffix}"]) if layer._cell.projects else None,
        True,
        columns,
    )


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
        table = check_tokens(layer, x, embedding, lengths, layout, one_hot)
    elif embedding is not None:
        raise _check.embedding_of_floats(x)
    elif T > 1 and x.strides[0] == 0:
        table = constant(x)
    rows = [None, None]
    if T > 0 and N > 0 and (lengths is not None or reset is not None or table is not None):
        sequence = Sequence(T, N, lengths, reset)
        rows = [sequence.rows(d == 1) for d in range(layer._directions)]
    P, D, L, states = layer._widths[0], layer._directions, layer.num_layers, layer._cell.states
    out_time_first = None
    if out is not None:
        reads = {"x": x, **{f"state ({s})": a for s, a in zip(states, initial, strict=True)}}
        reads |= {f"parameters[{name!r}]": array for name, array in weights.items()}
        if embedding is not None:
            reads["embedding"] = np.asarray(embedding)
        out_time_first = check_y(layer, "out", out, T, N, layout, reads)

    finals = [_check.allocate("state", (L * D, N, w), layer.dtype) for w in layer._widths]
    passes, keeps = [], training or trace
    dropped = _draw(layer, T) if training and layer.dropout and L > 1 else None
    layer_x, columns = x, None
    if table is not None:
        layer_x = table.x(layer.input_size, layer.dtype)
        columns = table.ids if table.rows is None else None
    elif training:
        layer_x = kept_x(x, lengths, threads)
    ready, between = [], [None, None]  # layers yet to be run; what one hands to the next
    for k in range(L):
        if k == L - 1 and out is not None and not keeps and _writes_direct(out):
            y = out_time_first
        elif 1 < k < L - 1 and not keeps:
            # whoever reads a step is done with it before the next layer but one writes there
            y = between[k % 2]
        else:
            y = between[k % 2] = layout.allocate("y", T, N, D * P, layer.dtype)
        directions = []
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
            one = Pass(
                packed,
                layer_x if looked_up else layer_x[::step],
                np.array(initial[0][index], order="C"),
                c0,
                y[::step, :, d * P : (d + 1) * P],
                _forward.allocate_reserve(packed, T, N) if keeps and checkpoints is None else None,
                rows[d],
                checkpoints,
                table.index[::step] if looked_up else None,
            )
            c_n = finals[1][index] if len(states) == 2 else None
            directions.append((one, finals[0][index], c_n))
            passes.append(one)
        layer_x = y
        ready.append(directions)
        if dropped is not None or k == L - 1:
            _checkpoints.forward(ready, threads)
            ready = []
        if dropped is not None and k < L - 1:
            layer_x = dropped(k, y, _check.allocate("y", y.shape, layer.dtype), threads)

    if keeps:
        for array in (y, y.base):  # batch_first sees what it allocates transposed
            if array is not None:
                array.flags.writeable = False
    result = layout.caller_view(y)
    if out is not None:
        if not np.shares_memory(result, out):
            out[...] = result
        result = out
    traces = tape = None
    if trace:
        traces = tuple(
            _trace(layer, one, -1 if index % D else 1, layout) for index, one in enumerate(passes)
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

# Guards the counters of dropout; released in a forked child whoever held it.
_counting = threading.Lock()
os.register_at_fork(
    before=_counting.acquire,
    after_in_parent=_counting.release,
    after_in_child=_counting.release,
)


def _draw(layer: Any, T: int) -> Dropped:
    """The masks of the next T steps: each training forward goes on where the last ended."""
    with _counting:
        first, layer._dropout_steps = layer._dropout_steps, layer._dropout_steps + T
    return Dropped(layer.dropout, layer._dropout_seed, first)

"""The passes of a stack, one for each layer and direction: forward and backward.

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
from rnnkernel._packing import PackedGradients, PackedWeights
from rnnkernel._rows import kept_x
from rnnkernel._sequence import Sequence, constant
from rnnkernel._tape import Pass, Tape
from rnnkernel.results import Flow, Gradients, Output
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


def backward(
    tape: Tape,
    dy: Any,
    dstate: Any,
    limits: tuple[float, float],
    flow: bool,
    input_grad: bool,
    threads: int,
) -> Gradients:
    """What `backward` of a layer does, once it is known that the tape is its own; `limits` are
    those of clipping, of an element and of a norm.
    """
    layer, layout, (T, N) = tape.layer, tape.layout, tape.shape
    P, D, L, states = layer._widths[0], layer._directions, layer.num_layers, layer._cell.states
    if dy is not None:
        dy = check_y(layer, "dy", dy, T, N, layout)
    dfinal = [None] * len(states)
    if dstate is not None:
        dfinal = check_state(layer, "dstate", dstate, N, layout.batched)

    dinitial = [_check.allocate("grads.state", (L * D, N, w), layer.dtype) for w in layer._widths]
    parameters = {
        name: _check.allocate(name, shape, layer.dtype)
        for name, shape in layer._parameter_shapes.items()
    }
    table, dembedding = tape.table, None
    is_tokens = table is not None and table.ids is not None
    if is_tokens:
        input_grad = False
        if table.rows is not None:
            dembedding = np.zeros((tape.vocabulary, layer.input_size), layer.dtype)
    records = [None] * (L * D)
    dx = dy
    for k in reversed(range(L)):
        dlayer, dx = dx, None
        for d in range(D):
            index = k * D + d
            step, suffix, one = -1 if d else 1, layer._suffixes[index], tape.passes[index]
            dpart = dtable = dtable_rows = None
            if k > 0:
                dpart = _check.allocate("grads.x", one.x.shape, layer.dtype)
            elif input_grad:
                dpart = layout.allocate("grads.x", T, N, layer.input_size, layer.dtype)
            elif dembedding is not None and d == 0:
                dtable, dtable_rows = dembedding, table.ids
            elif dembedding is not None:
                dtable = _check.allocate("grads.embedding", table.rows.shape, layer.dtype)
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
                dtable_rows,
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
            if dtable is not None and dtable_rows is None:
                dembedding[table.ids] += dtable
            if dpart is not None:
                dx = dpart if dx is None else np.add(dx, dpart, out=dx)
        if k > 0 and tape.dropped is not None:
            tape.dropped(k - 1, dx, dx, threads)
    return Gradients(
        layout.caller_view(dx) if input_grad else None,
        layout.caller_state(dinitial),
        parameters,
        dembedding,
        _flow(layer, records) if flow else None,
    )


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


# -- flow -----------------------------------------------------------------------------------------


def _flow(layer: Any, records: list) -> Flow:
    """What backward recorded of each layer and direction, in the time of x."""
    steps = [-1 if d else 1 for d in range(layer._directions)] * layer.num_layers
    dh, dc, clipped = (
        np.stack([record[part][::step] for record, step in zip(records, steps, strict=True)])
        for part in range(3)
    )
    return Flow(
        np.stack([_norm_over_batch(rows) for rows in dh]),
        np.stack([_norm_over_batch(rows) for rows in dc]) if len(layer._cell.states) == 2 else None,
        clipped.sum(axis=2, dtype=np.int64),
    )


def _norm_over_batch(rows: np.ndarray) -> np.ndarray:
    """(T, N) norms of rows to (T,) norms of the batch, with no overflow of squares."""
    largest = np.max(rows, axis=1, initial=0.0)
    scale = np.where((largest > 0) & np.isfinite(largest), largest, 1.0)
    return scale * np.sqrt(np.sum((rows / scale[:, None]) ** 2, axis=1))

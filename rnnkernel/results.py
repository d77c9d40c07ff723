"""What `forward` and `backward` of a layer return."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from rnnkernel.trace import Trace

# An array, or for LSTM a pair of arrays; what is None unless it was asked for: the caller knows.
State: TypeAlias = Any
Asked: TypeAlias = Any


def shapes(name: str, **fields: Any) -> str:
    """A representation that tells arrays by their shapes: they are large."""

    def shape(value: Any) -> str:
        if isinstance(value, np.ndarray):
            return str(value.shape)
        if isinstance(value, tuple):
            return f"({', '.join(map(shape, value))}{',' if len(value) == 1 else ''})"
        if isinstance(value, dict):
            return "{" + ", ".join(f"{key!r}: {shape(one)}" for key, one in value.items()) + "}"
        return repr(value)

    return f"{name}({', '.join(f'{field}={shape(value)}' for field, value in fields.items())})"


# What every call returns sets its fields at once: one by one, each past a frozen class's refusal,
# takes a small call a tenth longer.


@dataclass(frozen=True, init=False, repr=False, eq=False)
class Output:
    """What `forward` returns.

    Attributes
    ----------
    y : (T, N, D*P) array, laid out as x was
        The hidden states of the last layer, of the forward direction and then of the reverse one.
        Read-only after `training=True`, where BPTT reads
        it again, and after `trace=True`, unless `out=` was given.
    state : (L*D, N, H) array, or for LSTM a pair h (L*D, N, P), c (L*D, N, H)
        The final states; row k*D + d is that of layer k and direction d, 1 being the reverse one.
    trace : tuple of L*D Trace, or None without `trace=True`
        The states and gates of each layer and direction, in the order of the states' rows.
    """

    y: np.ndarray
    state: State
    trace: Asked = None
    _tape: Any = field(default=None, repr=False)

    def __init__(
        self,
        y: np.ndarray,
        state: State,
        trace: tuple[Trace, ...] | None = None,
        _tape: Any = None,
    ) -> None:
        self.__dict__.update(y=y, state=state, trace=trace, _tape=_tape)

    def __repr__(self) -> str:
        return shapes("Output", y=self.y, state=self.state, trace=self.trace)


@dataclass(frozen=True, repr=False, eq=False)
class Flow:
    """The gradient that reaches each step, as it arrives, before clipping.

    Attributes
    ----------
    dh_norm : (L*D, T) float64
        Euclidean norm of dL/dh_t over the batch; rows are those of the states.
    dc_norm : (L*D, T) float64, or None without a cell state
        The same of dL/dc_t, as it comes from step t+1.
    clipped : (L*D, T) int64
        Batch rows that clipping changed.
    dh : (L*D, T, N, P) array, or (L*D, T, P) of an unbatched x; None without `flow="states"`
        dL/dh_t itself, of the layer's dtype; with `batch_first`, too, time comes first. Zero past a
        row's length.
    dc : (L*D, T, N, H) array, or (L*D, T, H); None without `flow="states"` or a cell state
        dL/dc_t, as it comes from step t+1.
    """

    dh_norm: np.ndarray
    dc_norm: Asked
    clipped: np.ndarray
    dh: Asked = None
    dc: Asked = None

    def __repr__(self) -> str:
        return shapes("Flow", **self.__dict__)

    @classmethod
    def _of_records(cls, records: list, has_cells: bool, batched: bool) -> Flow:
        """From what backward recorded of each layer and direction, (T, N) in the time of x: norms
        of dh and dc by row, rows clipped, and dh and dc (T, N, units) or None."""
        dh_norm, dc_norm, clipped, *states = zip(*records, strict=True)
        dh, dc = (None if part[0] is None else np.stack(part) for part in states)
        if not batched:
            dh, dc = (None if part is None else part[:, :, 0] for part in (dh, dc))
        return cls(
            np.stack([_norm_over_batch(rows) for rows in dh_norm]),
            np.stack([_norm_over_batch(rows) for rows in dc_norm]) if has_cells else None,
            np.stack(clipped).sum(axis=2, dtype=np.int64),
            dh,
            dc,
        )


@dataclass(frozen=True, init=False, repr=False, eq=False)
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

    x: Asked
    state: State
    parameters: dict[str, np.ndarray]
    embedding: Asked = None
    flow: Asked = None

    def __init__(
        self,
        x: np.ndarray | None,
        state: State,
        parameters: dict[str, np.ndarray],
        embedding: np.ndarray | None = None,
        flow: Flow | None = None,
    ) -> None:
        self.__dict__.update(
            x=x, state=state, parameters=parameters, embedding=embedding, flow=flow
        )

    def __repr__(self) -> str:
        return shapes("Gradients", **self.__dict__)


def _norm_over_batch(rows: np.ndarray) -> np.ndarray:
    """(T, N) norms of rows to (T,) norms of the batch, with no overflow of squares."""
    largest = np.max(rows, axis=1, initial=0.0)
    scale = np.where((largest > 0) & np.isfinite(largest), largest, 1.0)
    return scale * np.sqrt(np.sum((rows / scale[:, None]) ** 2, axis=1))

"""What `forward` and `backward` of a layer return."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from rnnkernel.trace import Trace

if TYPE_CHECKING:
    import numpy.typing as npt

# an array, or for LSTM a pair of arrays: the caller knows which
State: TypeAlias = Any


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
    state: State
    trace: tuple[Trace, ...] | None = None
    _tape: Any = field(default=None, repr=False)


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

    dh_norm: npt.NDArray[np.float64]
    dc_norm: npt.NDArray[np.float64] | None
    clipped: npt.NDArray[np.int64]


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
    state: State
    parameters: dict[str, np.ndarray]
    embedding: np.ndarray | None = None
    flow: Flow | None = None

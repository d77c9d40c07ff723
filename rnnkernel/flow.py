"""What the gradient does on its way back through time, measured on one batch.

Hochreiter, "Untersuchungen zu dynamischen neuronalen Netzen", 1991; Bengio, Simard & Frasconi,
"Learning long-term dependencies with gradient descent is difficult", 1994; Pascanu, Mikolov &
Bengio, "On the difficulty of training recurrent neural networks", 2013.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from rnnkernel import _check
from rnnkernel._arguments import as_state, check_state, check_x, parts_of
from rnnkernel.layers import _Layer
from rnnkernel.results import shapes

__all__ = ["GradientFlow", "gradient_flow"]

# Rows of a batch that Jacobians are carried back in.
BATCH_ROWS = 2048
# Power iteration ends where the norm changes by less than this share, or after so many rounds.
SETTLED, ROUNDS = 1e-10, 2000


@dataclass(frozen=True, repr=False, eq=False)
class GradientFlow:
    """What `gradient_flow` measured: by layer and direction, and by step in the time of x.

    Attributes
    ----------
    dh_norm : (L*D, T) float64
        Euclidean norm over the batch of dL/dh_t, as it arrives, before clipping.
    dc_norm : (L*D, T) float64, or None without a cell state
        The same of dL/dc_t, as it comes from step t+1.
    clipped : (L*D, T) int64
        Batch rows that clipping changed.
    saturated : dict of str to (L*D, T) float64
        By gate ("h" for RNN): the share of units, in the rows that have the step, whose activation
        is so close to its bounds that it passes little gradient on; for relu, of those that are 0.
    jacobian_norm : (L*D, T) float64, or None with `jacobian=False`
        Spectral norm of dh_T/dh_t, the product of the Jacobians of steps t+1 to T within the
        layer, T the last step of its direction: the most that a gradient can have grown, or kept,
        on its way from T to t. The largest over the batch rows, each with a T of its own; 1 at T,
        and 0 where a reset lies between.
    cell_jacobian_norm : (L*D, T) float64, or None
        The same of dc_T/dc_t, for LSTM.
    """

    dh_norm: np.ndarray
    dc_norm: np.ndarray | None
    clipped: np.ndarray
    saturated: dict[str, np.ndarray]
    jacobian_norm: np.ndarray | None
    cell_jacobian_norm: np.ndarray | None

    def __repr__(self) -> str:
        return shapes("GradientFlow", **self.__dict__)


def gradient_flow(
    layer: Any,
    x: Any,
    state: Any = None,
    *,
    lengths: Any = None,
    reset: Any = None,
    embedding: Any = None,
    dy: Any = None,
    dstate: Any = None,
    clip: Any = None,
    saturation: float = 0.05,
    jacobian: bool = True,
    num_threads: int | None = None,
) -> GradientFlow:
    """Measures how the gradient vanishes or explodes through the steps of one batch.

    Nothing of the layer changes, and dropout does not act.

    Parameters
    ----------
    layer : RNN, GRU or LSTM
    x, state, lengths, reset, embedding
        As for `layer.forward`. A few rows are enough.
    dy, dstate : optional
        As for `layer.backward`. With neither, the loss is the sum of the last layer's final hidden
        states, scaled so that its gradient has norm 1 over the batch in each direction: the norms
        are then what is left of 1.
    clip : Clip, optional
        Limits the gradient inside BPTT, as for `layer.backward`; the Jacobians know nothing of it.
    saturation : float
        A sigmoid counts as saturated below this and above 1 minus this, a tanh beyond ±(1 - this).
    jacobian : bool
        Whether to compute the norms of Jacobians. They take about 3 H steps, 6 H for LSTM, of
        training time for every step and row.
    num_threads : int, optional
        As for `layer.forward`.

    Returns
    -------
    GradientFlow
        Norms by layer and direction (L*D) and step (T).

    Raises
    ------
    TypeError, ValueError, IndexError, MemoryError
        For a bad argument, named in the message, and as `layer.forward` and `layer.backward`.
    """
    if not isinstance(layer, _Layer):
        raise TypeError(f"layer: expected an RNN, GRU or LSTM, got {type(layer).__name__}")
    saturation = _check.share("saturation", saturation)
    jacobian = _check.flag("jacobian", jacobian)
    plain = copy.copy(layer)  # its parameters are the layer's own
    plain.__dict__["dropout"] = 0.0
    out = plain.forward(
        x,
        state,
        lengths=lengths,
        reset=reset,
        embedding=embedding,
        training=True,
        trace=True,
        num_threads=num_threads,
    )
    if dy is None and dstate is None:
        dstate = _final_loss(layer, out.state)
    grads = plain.backward(
        out, dy, dstate, clip=clip, flow=True, input_grad=False, num_threads=num_threads
    )
    norms = [None, None]
    if jacobian:
        seen, layout = check_x(plain, x)
        initial = check_state(plain, "state", state, seen.shape[1], layout.batched)
        norms = _jacobian_norms(plain, out, seen, embedding, initial, num_threads)
    return GradientFlow(
        grads.flow.dh_norm,
        grads.flow.dc_norm,
        grads.flow.clipped,
        _saturated(plain, out, saturation),
        *norms,
    )


def _final_loss(layer: Any, state: Any) -> Any:
    """dL/d(final state) of the scaled sum of the last layer's hidden states."""
    parts = [np.zeros_like(part) for part in parts_of(state)]
    last = parts[0][-layer._directions :]
    last[...] = (last[0].size or 1) ** -0.5
    return tuple(parts) if isinstance(state, tuple) else parts[0]


def _saturated(layer: Any, out: Any, margin: float) -> dict[str, np.ndarray]:
    relu = layer.options.get("nonlinearity") == "relu"
    T, N = out._tape.shape
    valid = np.ones((T, N, 1), bool)
    if (rows := out._tape.passes[0].rows) is not None:
        valid[:, rows.order, 0] = np.arange(T)[:, None] < rows.lengths
    alive = valid.sum(axis=(1, 2))

    def share(name: str, trace: Any) -> np.ndarray:
        gate = out._tape.layout.time_first(trace[name])
        if name in ("h", "g", "n"):
            flat = gate <= 0 if relu else np.abs(gate) > 1 - margin
        else:
            flat = (gate < margin) | (gate > 1 - margin)
        return (flat & valid).sum(axis=(1, 2)) / np.maximum(1, alive * gate.shape[2])

    return {
        name: np.stack([share(name, trace) for trace in out.trace]) for name in layer._cell.gates
    }


# -- Jacobians ------------------------------------------------------------------------------------


def _jacobian_norms(
    layer: Any,
    out: Any,
    x: np.ndarray,
    embedding: Any,
    initial: list[np.ndarray],
    num_threads: int | None,
) -> list[np.ndarray | None]:
    """For h and, or None, for c: (L*D, T)."""
    found = []
    for index, one in enumerate(out._tape.passes):
        step = -1 if index % layer._directions else 1
        alone, first_layer = layer._alone(index), index < layer._directions
        seen = x[::step] if first_layer else one.x
        arguments = {"embedding": embedding if first_layer else None, "num_threads": num_threads}
        states = []
        for name, first in zip(layer._cell.states, initial, strict=True):
            after = out._tape.layout.time_first(out.trace[index][name])[::step]
            before = np.concatenate([first[index][None], after])
            if one.rows is not None:  # a row's first step may not be the array's
                before[one.rows.start, one.rows.order] = first[index][one.rows.order]
            states.append(before)
        T, N = out._tape.shape
        norms = np.zeros((len(states), T))
        at_once = max(1, BATCH_ROWS // sum(s.shape[2] for s in states))
        for steps, rows, reset in _groups(one.rows, T, N, at_once):
            group = _carry_back(
                alone,
                seen[steps, rows],
                [s[steps.start : steps.stop + 1, rows] for s in states],
                reset,
                arguments,
            )
            norms[:, steps] = np.maximum(norms[:, steps], group.max(axis=2))  # a NaN stays
        found.append(norms[:, ::step])
    stacked = np.stack(found, axis=1)
    return [stacked[0], stacked[1] if len(stacked) > 1 else None]


def _groups(
    rows: Any, T: int, N: int, at_once: int
) -> Iterator[tuple[slice, slice, np.ndarray | None]]:
    """Steps and batch rows to carry back together, and which steps see zero states, (steps, 1)."""
    if rows is None:
        for n in range(0, N, at_once):
            yield slice(0, T), slice(n, n + at_once), None
        return
    for position, n in enumerate(rows.order):
        begin, length = int(rows.start[position]), int(rows.lengths[position])
        reset = None if rows.reset is None else rows.reset[:length, position, None].astype(bool)
        if length > 0:
            yield slice(begin, begin + length), slice(n, n + 1), reset


def _carry_back(
    alone: Any,
    x: np.ndarray,
    states: list[np.ndarray],
    reset: np.ndarray | None,
    arguments: dict[str, Any],
) -> np.ndarray:
    """Norms of ds_T/ds_t for every state s: (states, T, R) for x (T, R, I) or ids (T, R), and
    states (T+1, R, .), of which the first is what the first step sees.

    The Jacobians are carried whole, each of their rows as the gradient of a batch row of its own:
    `ds` is d(every unit of every state at T)/d(states at t). A power of two is taken out at every
    step, so that nothing overflows or vanishes on the way.
    """
    (T, R), widths = x.shape[:2], [s.shape[2] for s in states]
    ends = np.cumsum([0, *widths])
    starts = int(ends[-1])
    norms = np.ones((len(widths), T, R))
    identity = np.eye(starts, dtype=states[0].dtype)
    # by state: (R, starts, width)
    ds = [np.repeat(identity[None, :, a:b], R, axis=0) for a, b in pairwise(ends)]
    taken = np.zeros((len(widths), R), np.int64)
    vectors: list[np.ndarray | None] = [None] * len(widths)
    for t in range(T - 1, 0, -1):
        before = [np.repeat(s[t], starts, axis=0)[None] for s in states]
        out = alone.forward(
            np.repeat(x[t], starts, axis=0)[None],
            as_state(before),
            reset=None if reset is None else np.repeat(reset[t], starts)[None],
            training=True,
            **arguments,
        )
        arriving = as_state([d.reshape(1, R * starts, -1) for d in ds])
        grads = alone.backward(
            out, None, arriving, input_grad=False, num_threads=arguments["num_threads"]
        )
        ds = [np.array(g).reshape(R, starts, -1) for g in parts_of(grads.state)]
        for k, (a, b) in enumerate(pairwise(ends)):
            largest = np.max([np.abs(d[:, a:b]).max(axis=(1, 2)) for d in ds], axis=0)
            exponent = np.where(np.isfinite(largest), np.frexp(largest)[1], 0)
            for d in ds:
                d[:, a:b] = np.ldexp(d[:, a:b], -exponent[:, None, None])
            taken[k] += exponent
            block = ds[k][:, a:b].astype(np.float64)
            norm, vectors[k] = _spectral_norms(block, vectors[k])
            with np.errstate(over="ignore", under="ignore"):
                norms[k, t - 1] = np.ldexp(norm, taken[k])
    return norms


def _spectral_norms(
    matrices: np.ndarray, start: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Largest singular values of (R, m, n) by power iteration, and their right vectors (R, n, 1).

    `start` are vectors to begin with; a little of everything is added, so that none of them can be
    orthogonal to what is looked for.
    """
    R, _, n = matrices.shape
    vector = np.random.default_rng(0).standard_normal((1, n, 1)) / np.sqrt(n)
    vector = np.repeat(vector, R, axis=0) if start is None else start + 0.1 * vector
    norm = np.zeros(R)
    for _ in range(ROUNDS):
        vector /= _safe(np.linalg.norm(vector, axis=1, keepdims=True))
        image = matrices @ vector
        before, norm = norm, np.linalg.norm(image, axis=(1, 2))
        vector = matrices.transpose(0, 2, 1) @ (image / _safe(norm)[:, None, None])
        if not np.any(np.abs(norm - before) > SETTLED * norm):
            break
    return norm, np.where(np.isfinite(vector), vector, 1)


def _safe(norm: np.ndarray) -> np.ndarray:
    return np.where(norm > 0, norm, 1)

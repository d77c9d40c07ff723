"""Gradients held to finite differences, on the user's own layer and data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnnkernel import _check
from rnnkernel._arguments import (
    as_state,
    check_embedding,
    check_rows,
    check_state,
    check_x,
    parts_of,
)
from rnnkernel.layers import GRU, LSTM, RNN, _Layer

__all__ = ["GradcheckReport", "GradientError", "Worst", "gradcheck"]

Index = tuple[int, ...]
Arrays = tuple[np.ndarray, ...]

FLOOR = 1e-2
"""Errors are relative to an array's largest gradient entry, or to this where that is smaller.

A difference quotient carries rounding errors of about 1e-10 whatever the gradient's size, so a
gradient that has all but vanished can only be held to an absolute bound."""


class GradientError(AssertionError):
    """A gradient differs from the finite differences by more than the tolerance.

    Attributes
    ----------
    report : GradcheckReport, or None where a gradient is not even of its array's shape
    """

    def __init__(self, message: str, report: GradcheckReport | None = None) -> None:
        super().__init__(message)
        self.report = report


@dataclass(frozen=True)
class Worst:
    """The entry of one array whose gradient is farthest from the finite difference."""

    array: str
    index: Index
    analytic: float
    numeric: float
    error: float
    """|analytic - numeric|, relative to the array's largest gradient entry (see FLOOR)."""

    def __str__(self) -> str:
        return (
            f"{self.array}{list(self.index)}: analytic {self.analytic:.10g}, "
            f"numeric {self.numeric:.10g}, relative error {self.error:.2e}"
        )


@dataclass(frozen=True)
class GradcheckReport:
    """What :func:`gradcheck` found."""

    errors: dict[str, float]
    """Worst relative error of each array: ``x`` or, with ids, ``embedding``; ``state`` (or ``h``,
    ``c``); parameters."""

    checked: dict[str, int]
    """Number of entries compared in each array."""

    worst: Worst
    """The worst entry of all."""

    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether every error is within the tolerance."""
        return self.worst.error <= self.tolerance  # false for NaN, too

    def __str__(self) -> str:
        width = max(map(len, self.errors))
        rows = [
            f"{name:{width}}  {error:8.2e}  {self.checked[name]} entries"
            for name, error in self.errors.items()
        ]
        verdict = "ok" if self.ok else "FAILED"
        return "\n".join([*rows, f"{verdict}, tolerance {self.tolerance:.0e}, worst {self.worst}"])


def gradcheck(
    layer: Any,
    x: Any = None,
    state: Any = None,
    *,
    lengths: Any = None,
    reset: Any = None,
    embedding: Any = None,
    clip: Any = None,
    eps: float = 1e-6,
    tolerance: float = 1e-7,
    max_entries: int = 200,
    rng: int | np.random.Generator | None = 0,
) -> GradcheckReport:
    """Compare ``layer.backward`` with central finite differences of the forward pass.

    A float64 twin with the layer's options and weights is made; the layer itself is not touched.
    The loss is ``sum(y * dy) + sum(final state * dstate)`` with random ``dy`` and ``dstate``, and
    its derivative is taken with respect to ``x``, the initial state, ``embedding`` and every
    parameter, at all or at ``max_entries`` random entries of each.

    Parameters
    ----------
    layer : RNN, GRU or LSTM
        Of any dtype and options. Dropout is switched off: with it, two calls differ.
    x : array, optional
        As for ``layer(x)``; floats are cast to float64. Default: random, with T = 5 and N = 3, or
        as ``lengths`` and ``reset`` have it; token ids, where there is an ``embedding``.
    state : array or pair of arrays, optional
        Initial state, as for ``layer(x, state)``. Default: random.
    lengths, reset, embedding : array, optional
        As for ``layer(x, state, lengths=..., reset=..., embedding=...)``.
    clip : rnnkernel.Clip, optional
        Check the gradients that clipping inside BPTT defines. Clipped, they are no derivative of
        a loss; step by step they are, so that each step of each layer and direction is
        differentiated on its own and what arrives at it is clipped between.
    eps : float
        Step of the differences, in the units of the entry that is varied.
    tolerance : float
        Largest error allowed, relative to the largest gradient entry of the array or to 0.01 if
        that is smaller. Around 1e-9 is usual; a relu whose argument, or a clipped cell whose state,
        lies within ``eps`` of its kink may exceed any tolerance, since there is no derivative.
    max_entries : int
        Arrays with more entries are checked at this many, chosen at random.
    rng : None, int or numpy.random.Generator
        Source of everything random here.

    Returns
    -------
    GradcheckReport
        Worst error of each array.

    Raises
    ------
    GradientError
        Naming the worst entry: its array, index, analytic and numeric value, and error.
    TypeError, ValueError, IndexError
        If ``layer`` is none, ``eps`` or ``tolerance`` is not a positive finite number, or for what
        ``layer.forward`` and ``backward`` reject.
    """
    if not isinstance(layer, _Layer):
        raise TypeError(f"layer: expected an RNN, GRU or LSTM, got {type(layer).__name__}")
    eps, tolerance = _check.positive("eps", eps), _check.positive("tolerance", tolerance)
    max_entries = _check.size("max_entries", max_entries)
    rng = _check.generator("rng", rng)
    inputs = {"lengths": lengths, "reset": reset, "embedding": embedding}
    inputs = {name: value for name, value in inputs.items() if value is not None}
    problem = _Problem(float64_twin(layer), x, state, inputs, rng, max_entries)
    analytic = problem.analytic(clip)  # which checks all arguments
    if clip is None:
        numeric = _whole_sequence(problem, eps)
    else:
        numeric = _step_by_step(problem, eps, clip)
    worst = {
        name: _worst(name, analytic[name], array.shape, problem.entries[name], numeric[name])
        for name, array in problem.variables.items()
    }
    report = GradcheckReport(
        errors={name: w.error for name, w in worst.items()},
        checked={name: len(problem.entries[name]) for name in worst},
        worst=max(worst.values(), key=lambda w: math.inf if math.isnan(w.error) else w.error),
        tolerance=tolerance,
    )
    if not report.ok:
        raise GradientError(
            f"{type(layer).__name__}: worst gradient {report.worst} > tolerance {tolerance:.1e}",
            report,
        )
    return report


def float64_twin(layer: Any) -> Any:
    """A float64 layer with the options and weights of ``layer``, and without dropout."""
    options = dict(layer.options)
    if options.get("dropout"):
        options["dropout"] = 0.0
    # of a class of the user's, which may be made otherwise
    kind = next(kind for kind in type(layer).__mro__ if kind in (RNN, GRU, LSTM))
    twin = kind.__new__(type(layer))
    kind.__init__(twin, layer.input_size, layer.hidden_size, dtype=np.float64, **options)
    weights = _check.parameters(
        "parameters", layer._parameters, layer._parameter_shapes, layer.dtype
    )
    twin.load_state_dict({name: array.astype(np.float64) for name, array in weights.items()})
    return twin


class _Problem:
    """A loss, the arrays it depends on, and the entries of them that are compared.

    The arrays in ``variables`` are what the layer computes with: the difference quotients vary
    them in place.
    """

    def __init__(
        self,
        layer: Any,
        x: Any,
        state: Any,
        inputs: dict[str, Any],
        rng: np.random.Generator,
        max_entries: int,
    ) -> None:
        self.layer = layer
        self.time_axis = 1 if layer.options.get("batch_first") else 0
        self.inputs = dict(inputs)
        if "embedding" in inputs:
            self.inputs["embedding"] = check_embedding(
                layer, _float64_copy("embedding", inputs["embedding"])
            )
        self.x = self._draw_x(rng) if x is None else _float64_copy("x", x)
        if state is not None:
            state = _like(state, [_float64_copy("state", s) for s in parts_of(state)])
        # The layer knows the shapes of the states, whatever its options.
        y, self.state = layer(self.x, state, **self.inputs)
        if state is None:
            state = _normal_like(self.state, rng)
        self.state = state
        self.dy = rng.standard_normal(y.shape)
        self.dstate = _normal_like(state, rng)

        parts = parts_of(state)
        self.state_names = ["state"] if len(parts) == 1 else ["h", "c"]
        self.variables: dict[str, np.ndarray] = {}
        if self.x.dtype.kind == "f":  # token ids have no gradient
            self.variables["x"] = self.x
        self.variables |= zip(self.state_names, parts, strict=True)
        if "embedding" in self.inputs:
            self.variables["embedding"] = self.inputs["embedding"]
        self.variables |= layer.parameters
        self.entries = {
            name: _choose(array, max_entries, rng) for name, array in self.variables.items()
        }

    def _draw_x(self, rng: np.random.Generator) -> np.ndarray:
        T, N = 5, 3
        if "lengths" in self.inputs:
            lengths = _check.any_array("lengths", self.inputs["lengths"])
            if lengths.dtype.kind not in "iu" or lengths.ndim != 1 or lengths.size == 0:
                raise ValueError(f"lengths: expected integers (N,), got {self.inputs['lengths']!r}")
            N, T = lengths.size, max(5, int(lengths.max()))
        shape = (N, T) if self.time_axis else (T, N)
        if "reset" in self.inputs:
            reset = _check.any_array("reset", self.inputs["reset"])
            if reset.ndim not in (1, 2):
                raise ValueError(f"reset: expected shape (T, N), got {reset.shape}")
            shape = reset.shape
        if "embedding" in self.inputs:
            return rng.integers(0, len(self.inputs["embedding"]), shape)
        x = _check.allocate("x", (*shape, self.layer.input_size), np.dtype(np.float64))
        return rng.standard_normal(out=x)

    def analytic(self, clip: Any) -> dict[str, np.ndarray]:
        out = self.layer.forward(self.x, self.state, training=True, **self.inputs)
        gradients = self.layer.backward(out, self.dy, self.dstate, clip=clip)
        named = dict(zip(self.state_names, parts_of(gradients.state), strict=True))
        if "embedding" in self.inputs:
            named["embedding"] = gradients.embedding
        return {"x": gradients.x, **named, **gradients.parameters}


def _whole_sequence(problem: _Problem, eps: float) -> dict[str, np.ndarray]:
    """Difference quotients of the loss of the whole sequence, for the chosen entries."""

    def outputs() -> Arrays:
        y, state = problem.layer(problem.x, problem.state, **problem.inputs)
        return (y, *parts_of(state))

    cotangents = (problem.dy, *parts_of(problem.dstate))
    return {
        name: _quotients(problem.variables[name], entries, outputs, cotangents, eps)
        for name, entries in problem.entries.items()
    }


def _step_by_step(problem: _Problem, eps: float, clip: Any) -> dict[str, np.ndarray]:
    """BPTT with difference quotients for each step of each layer and direction, and clipping
    between the steps."""
    layer, inputs = problem.layer, problem.inputs
    D, P = layer._directions, layer._widths[0]
    x, layout = check_x(layer, problem.x)
    T, N = x.shape[:2]
    lengths, reset = check_rows(inputs.get("lengths"), inputs.get("reset"), T, N, layout)
    valid = np.arange(T)[:, None] < np.full(N, T if lengths is None else lengths)
    reset = np.zeros((T, N), bool) if reset is None else reset
    # what of the first layer's x is asked for
    if is_tokens := x.ndim == 2:
        ids = np.where(valid, x, 0)  # past an end it may be none
        table = inputs.get("embedding", np.eye(layer.input_size))
        x, chosen = table[ids], _mark(table.shape, problem.entries.get("embedding", []))[ids]
    else:
        chosen = layout.time_first(_mark(problem.x.shape, problem.entries["x"]))
    x = np.where(valid[..., None], x, 0.0)

    initial = check_state(layer, "state", problem.state, N, layout.batched)
    final = check_state(layer, "dstate", problem.dstate, N, layout.batched)
    passes = []
    for k in range(layer.num_layers):
        chosen = chosen if k == 0 else np.ones(x.shape, bool)
        some = [
            _Pass(layer, k * D + d, x, chosen, [s[k * D + d] for s in initial], valid, reset)
            for d in range(D)
        ]
        x = np.concatenate([one.y for one in some], axis=2)
        passes += some
    dy = layout.time_first(problem.dy)
    numeric = {}
    dinitial = [np.zeros_like(s) for s in initial]
    for k in reversed(range(layer.num_layers)):
        below: Any = 0.0
        for d in range(D):
            index = k * D + d
            one, suffix = passes[index], layer._suffixes[index]
            entries = {
                name: problem.entries[name.removesuffix("_l0") + suffix]
                for name in one.alone.parameters
            }
            arriving = [s[index] for s in final]
            dx, parts, parameters = one.backward(
                dy[..., d * P : (d + 1) * P], arriving, entries, eps, clip
            )
            below = below + dx
            for whole, part in zip(dinitial, parts, strict=True):
                whole[index] = part
            for name, gradient in parameters.items():
                numeric[name.removesuffix("_l0") + suffix] = gradient
        dy = below

    arrays = dict(zip(problem.state_names, parts_of(layout.caller_state(dinitial)), strict=True))
    if not is_tokens:
        arrays["x"] = layout.caller_view(dy)
    elif "embedding" in inputs:
        arrays["embedding"] = np.zeros(table.shape)
        np.add.at(arrays["embedding"], ids[valid], dy[valid])
    for name, array in arrays.items():
        numeric[name] = np.array([array[index] for index in problem.entries[name]])
    return numeric


class _Pass:
    """One layer and direction, a step at a time; all arrays (T, N, .) in the time of x.

    `chosen` says where the gradient of x is wanted; `valid` and `reset` are (T, N).
    """

    def __init__(
        self,
        layer: Any,
        index: int,
        x: np.ndarray,
        chosen: np.ndarray,
        initial: list[np.ndarray],
        valid: np.ndarray,
        reset: np.ndarray,
    ) -> None:
        self.alone, self.x, self.chosen, self.valid = layer._alone(index), x.copy(), chosen, valid
        self.steps = list(range(len(x)))
        self.fresh = reset
        if index % layer._directions:  # a border before t is one before t-1 on the way back
            self.steps.reverse()
            self.fresh = np.zeros_like(reset)
            self.fresh[:-1] = reset[1:] & valid[1:]
        self.y = np.zeros((*x.shape[:2], layer._widths[0]))
        self.before: dict[int, Arrays] = {}
        states = tuple(initial)
        for t in self.steps:
            self.before[t] = tuple(np.where(self.fresh[t, :, None], 0.0, s) for s in states)
            after = self.step(t)
            states = tuple(
                np.where(valid[t, :, None], new, old)
                for new, old in zip(after, states, strict=True)
            )
            self.y[t] = np.where(valid[t, :, None], after[0], 0.0)

    def step(self, t: int) -> Arrays:
        """The states (N, .) after a step of all rows."""
        before = [s[None] for s in self.before[t]]
        return tuple(s[0] for s in parts_of(self.alone(self.x[t : t + 1], as_state(before))[1]))

    def backward(
        self,
        dy: np.ndarray,
        arriving: list[np.ndarray],
        entries: dict[str, list[Index]],
        eps: float,
        clip: Any,
    ) -> tuple[np.ndarray, list[np.ndarray], dict[str, np.ndarray]]:
        """Gradients of x, where chosen, of the initial states, and of entries of the parameters."""
        dx = np.zeros(self.x.shape)
        parameters = {name: np.zeros(len(some)) for name, some in entries.items()}
        for t in reversed(self.steps):
            here = self.valid[t, :, None]
            reaching = (arriving[0] + dy[t], *arriving[1:])
            cotangents = tuple(np.where(here, _clip(g, clip), 0.0) for g in reaching)

            def quotients(
                array: np.ndarray, some: list[Index], t: int = t, seen: Arrays = cotangents
            ) -> np.ndarray:
                return _quotients(array, some, lambda: self.step(t), seen, eps)

            for name, some in entries.items():
                parameters[name] += quotients(self.alone.parameters[name], some)
            chosen = here & self.chosen[t]
            dx[t][chosen] = quotients(self.x[t], list(map(tuple, np.argwhere(chosen))))
            back = [
                quotients(s, list(np.ndindex(s.shape))).reshape(s.shape) for s in self.before[t]
            ]
            arriving = [
                np.where(here, np.where(self.fresh[t, :, None], 0.0, new), old)
                for new, old in zip(back, arriving, strict=True)
            ]
        return dx, arriving, parameters


def _mark(shape: Index, entries: list[Index]) -> np.ndarray:
    """Where these entries are."""
    marked = np.zeros(shape, bool)
    for index in entries:
        marked[index] = True
    return marked


def _quotients(
    array: np.ndarray,
    entries: list[Index],
    outputs: Callable[[], Arrays],
    cotangents: Arrays,
    eps: float,
) -> np.ndarray:
    """d sum(outputs * cotangents) / d array[entry], by central differences, for each entry."""
    quotients = np.empty(len(entries))
    for k, index in enumerate(entries):
        value = array[index]
        try:
            array[index] = above = value + eps
            plus = outputs()
            array[index] = below = value - eps
            minus = outputs()
        finally:
            array[index] = value
        # Subtracting before summing: the rounding errors are those of single outputs, not of the
        # whole loss. The step is the one that was taken, not the one that was asked for.
        change = sum(
            float(np.sum((p - m) * g)) for p, m, g in zip(plus, minus, cotangents, strict=True)
        )
        quotients[k] = change / (above - below)
    return quotients


def _clip(gradient: np.ndarray, clip: Any) -> np.ndarray:
    """What rnnkernel.Clip does to the gradient that arrives at a state, (N, H)."""
    if clip.value is not None:
        gradient = np.clip(gradient, -clip.value, clip.value)
    if clip.norm is not None:
        norm = np.linalg.norm(gradient, axis=-1, keepdims=True)
        scale = np.divide(clip.norm, norm, out=np.ones_like(norm), where=norm > clip.norm)
        gradient = gradient * scale
    return gradient


def _worst(
    name: str, analytic: Any, shape: Index, entries: list[Index], numeric: np.ndarray
) -> Worst:
    analytic = np.asarray(analytic)
    if analytic.shape != shape:
        raise GradientError(f"{name}: expected a gradient of shape {shape}, got {analytic.shape}")
    if not entries:
        return Worst(name, (), 0.0, 0.0, 0.0)
    chosen = np.array([analytic[index] for index in entries])
    # Infinities and NaN, which are errors, must not become the scale of the others.
    scale = max(np.abs(a[np.isfinite(a)]).max(initial=FLOOR) for a in (analytic, numeric))
    errors = np.abs(chosen - numeric) / scale
    k = int(np.argmax(np.where(np.isnan(errors), np.inf, errors)))
    return Worst(name, entries[k], float(chosen[k]), float(numeric[k]), float(errors[k]))


def _choose(array: np.ndarray, most: int, rng: np.random.Generator) -> list[Index]:
    flat = np.flatnonzero(np.isfinite(array))  # past a row's length there may be anything
    if len(flat) > most:
        flat = np.sort(rng.choice(flat, most, replace=False))
    return [tuple(map(int, index)) for index in np.transpose(np.unravel_index(flat, array.shape))]


def _float64_copy(name: str, value: Any) -> np.ndarray:
    array = _check.any_array(name, value)
    return array.astype(np.float64 if array.dtype.kind == "f" else array.dtype)


def _normal_like(state: Any, rng: np.random.Generator) -> Any:
    return _like(state, [rng.standard_normal(s.shape) for s in parts_of(state)])


def _like(state: Any, parts: Iterable[np.ndarray]) -> Any:
    """A state with the structure of ``state``."""
    return tuple(parts) if isinstance(state, (tuple, list)) else next(iter(parts))

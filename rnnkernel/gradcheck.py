"""Gradients held to finite differences, on the user's own layer and data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnnkernel import _check

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
    """Worst relative error of each array: ``x``, ``state`` (or ``h``, ``c``), parameters."""

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
        a loss; step by step they are, so that each step is differentiated on its own and what
        arrives at it is clipped between. For one layer and direction and whole sequences.
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
    TypeError, ValueError
        If ``eps`` or ``tolerance`` is not a positive finite number, ``clip`` is given for what it
        is not for, or for what ``layer.forward`` and ``backward`` reject.
    """
    eps, tolerance = _check.positive("eps", eps), _check.positive("tolerance", tolerance)
    max_entries = _check.size("max_entries", max_entries)
    rng = _check.generator("rng", rng)
    inputs = {"lengths": lengths, "reset": reset, "embedding": embedding}
    inputs = {name: value for name, value in inputs.items() if value is not None}
    problem = _Problem(float64_twin(layer), x, state, inputs, rng, max_entries)
    if clip is None:
        numeric = _whole_sequence(problem, eps)
    else:
        numeric = _step_by_step(problem, eps, clip)
    analytic = problem.analytic(clip)
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
    twin = type(layer)(layer.input_size, layer.hidden_size, dtype=np.float64, **options)
    twin.load_state_dict({k: v.astype(np.float64) for k, v in layer.state_dict().items()})
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
            self.inputs["embedding"] = _float64_copy(inputs["embedding"])
        self.x = self._draw_x(rng) if x is None else _float64_copy(x)
        if state is not None:
            state = _like(state, [_float64_copy(s) for s in _parts(state)])
        # The layer knows the shapes of the states, whatever its options.
        y, self.state = layer(self.x, state, **self.inputs)
        if state is None:
            state = _normal_like(self.state, rng)
        self.state = state
        self.dy = rng.standard_normal(y.shape)
        self.dstate = _normal_like(state, rng)

        parts = _parts(state)
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
            N, T = np.size(self.inputs["lengths"]), max(5, int(np.max(self.inputs["lengths"])))
        shape = (N, T) if self.time_axis else (T, N)
        shape = np.shape(self.inputs.get("reset", np.empty(shape)))
        if "embedding" in self.inputs:
            return rng.integers(0, len(self.inputs["embedding"]), shape)
        return rng.standard_normal((*shape, self.layer.input_size))

    def analytic(self, clip: Any) -> dict[str, np.ndarray]:
        out = self.layer.forward(self.x, self.state, training=True, **self.inputs)
        gradients = self.layer.backward(out, self.dy, self.dstate, clip=clip)
        named = dict(zip(self.state_names, _parts(gradients.state), strict=True))
        if "embedding" in self.inputs:
            named["embedding"] = gradients.embedding
        return {"x": gradients.x, **named, **gradients.parameters}


def _whole_sequence(problem: _Problem, eps: float) -> dict[str, np.ndarray]:
    """Difference quotients of the loss of the whole sequence, for the chosen entries."""

    def outputs() -> Arrays:
        y, state = problem.layer(problem.x, problem.state, **problem.inputs)
        return (y, *_parts(state))

    cotangents = (problem.dy, *_parts(problem.dstate))
    return {
        name: _quotients(problem.variables[name], entries, outputs, cotangents, eps)
        for name, entries in problem.entries.items()
    }


def _step_by_step(problem: _Problem, eps: float, clip: Any) -> dict[str, np.ndarray]:
    """BPTT with difference quotients for each step and clipping between the steps."""
    layer, state = problem.layer, _parts(problem.state)
    if state[0].ndim != 3 or len(state[0]) != 1 or problem.x.dtype.kind != "f" or problem.inputs:
        raise ValueError(
            "clip: expected a layer of one layer and direction and a float x (T, N, I) to check "
            f"clipped gradients of, got {layer!r}, x {problem.x.shape}, state {state[0].shape} and "
            f"{', '.join(problem.inputs) or 'nothing else'}"
        )
    # Views, with the time in front: varying them varies what the layer is given.
    x = np.moveaxis(problem.x, problem.time_axis, 0)
    dy = np.moveaxis(problem.dy, problem.time_axis, 0)

    def step(x_t: np.ndarray, before: Arrays) -> Arrays:
        one_step = np.expand_dims(x_t, problem.time_axis)
        return tuple(_parts(layer(one_step, _like(problem.state, before))[1]))

    states = [tuple(state)]
    for x_t in x[:-1]:
        states.append(step(x_t, states[-1]))

    numeric = {name: np.zeros(len(entries)) for name, entries in problem.entries.items()}
    numeric_x = {}
    arriving = _parts(problem.dstate)
    for t in reversed(range(len(x))):
        before = tuple(s.copy() for s in states[t])
        cotangents = tuple(_clip(g, clip) for g in (arriving[0] + dy[t][np.newaxis], *arriving[1:]))

        def outputs(x_t: np.ndarray = x[t], before: Arrays = before) -> Arrays:
            return step(x_t, before)

        for name, array in layer.parameters.items():
            entries = problem.entries[name]
            numeric[name] += _quotients(array, entries, outputs, cotangents, eps)
        for index in problem.entries["x"]:
            time = index[problem.time_axis]
            if time == t:
                inner = index[: problem.time_axis] + index[problem.time_axis + 1 :]
                quotient = _quotients(x[t], [inner], outputs, cotangents, eps)
                numeric_x[index] = quotient[0]
        arriving = [
            _quotients(s, list(np.ndindex(s.shape)), outputs, cotangents, eps).reshape(s.shape)
            for s in before
        ]
    numeric["x"] = np.array([numeric_x[index] for index in problem.entries["x"]])
    for name, gradient in zip(problem.state_names, arriving, strict=True):
        numeric[name] = np.array([gradient[index] for index in problem.entries[name]])
    return numeric


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
    """What rnnkernel.Clip does to the gradient that arrives at a state, (1, N, H)."""
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


def _float64_copy(value: Any) -> np.ndarray:
    array = np.array(value)
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def _normal_like(state: Any, rng: np.random.Generator) -> Any:
    return _like(state, [rng.standard_normal(s.shape) for s in _parts(state)])


def _parts(state: Any) -> list[np.ndarray]:
    """The arrays of a state: one, or the pair of an LSTM."""
    return list(state) if isinstance(state, (tuple, list)) else [state]


def _like(state: Any, parts: Iterable[np.ndarray]) -> Any:
    """A state with the structure of ``state``."""
    return tuple(parts) if isinstance(state, (tuple, list)) else next(iter(parts))

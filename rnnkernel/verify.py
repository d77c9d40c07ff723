"""``rnnkernel verify``: every cell, option and dtype checked on the machine it runs on.

float64: ``y`` against the NumPy reference, gradients against finite differences.
float32: everything against the float64 kernels on the same numbers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import rnnkernel as rk
from rnnkernel import numpy_reference
from rnnkernel._arguments import parts_of
from rnnkernel.gradcheck import GradientError, float64_twin, gradcheck

__all__ = ["CASES", "Case", "Result", "check", "run"]

SIZES = ((5, 3, 7, 13), (3, 7, 34, 41))
"""(T, N, I, H): odd, so that no tile is full, and larger than a tile in every dimension."""

# What is allowed, relative to the largest entry of the array (or 1, if that is more: sums of terms
# of order 1 keep the terms' rounding errors when they cancel).
VALUE = 1e-12  # float64 against float64, in another order of summation
DIFFERENCE = 1e-7  # against central differences, see rnnkernel.gradcheck
SINGLE = 4.0  # float32: this * eps * sqrt(length of the sum); roundings grow as its root

MAX_ENTRIES = 16
"""Entries of each array, chosen at random, that are held to differences."""

COLUMNS = ("y", "dx", "dstate", "weights")


@dataclass(frozen=True)
class Case:
    """One row of the table but for the dtype."""

    cell: str
    option: str
    keywords: dict[str, Any]
    clip: Any = None
    inputs: tuple[str, ...] = ()
    """What forward is given beside x and the state: "lengths", "reset", "ids", "embedding"."""


@dataclass(frozen=True)
class Result:
    """The worst errors of one case in one dtype."""

    errors: dict[str, float]
    """By column: ``y`` (and the final state), ``dx``, ``dstate``, ``weights`` (and biases)."""

    ok: bool


def _cases() -> Iterator[Case]:
    every: dict[str, Any] = {
        "proj_size": 3,
        "peephole": True,
        "coupled": True,
        "cell_clip": 0.5,
    }
    variants: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("RNN", "tanh", {"nonlinearity": "tanh"}),
        ("RNN", "relu", {"nonlinearity": "relu"}),
        ("GRU", "reset after", {"reset_after": True}),
        ("GRU", "reset before", {"reset_after": False}),
        ("LSTM", "", {}),
        ("LSTM", "all options", every),
        *(("LSTM", name.replace("_", " "), {name: value}) for name, value in every.items()),
    )
    alone = {name.replace("_", " ") for name in every}  # with nothing else: there is one with all
    clip = rk.Clip(value=0.5, norm=1.0)
    for cell, option, keywords in variants:
        for more, options, limits, inputs in (
            ("", {}, None, ()),
            ("no bias", {"bias": False}, None, ()),
            ("clip", {}, clip, ()),
            ("stack", {"num_layers": 2, "bidirectional": True}, None, ()),
            ("cut", {"bidirectional": True}, None, ("lengths", "reset")),
            ("ids", {}, None, ("ids",)),
            ("embedding", {"bidirectional": True}, None, ("embedding", "lengths")),
        ):
            if more and option in alone:
                continue
            text = ", ".join(filter(None, (option, more)))
            yield Case(cell, text, keywords | options, limits, inputs)


CASES = tuple(_cases())


def check(case: Case, dtype: Any, *, seed: int = 0) -> Result:
    """Check one case in one dtype at every size; the worst of each column."""
    errors = dict.fromkeys(COLUMNS, 0.0)
    ok = True
    for sizes in SIZES:
        rng = np.random.default_rng([seed, *sizes])
        layer = getattr(rk, case.cell)(*sizes[2:], dtype=dtype, rng=rng, **case.keywords)
        measure = _check_float64 if layer.dtype == np.float64 else _check_float32
        for column, error, limit in measure(layer, case, sizes, rng):
            errors[column] = float(np.maximum(errors[column], error))  # which keeps a NaN
            ok = ok and error <= limit
    return Result(errors, ok)


def run(*, seed: int = 0) -> int:
    """Check everything, print the table; 0 if all is well, else 1."""
    start = time.perf_counter()
    print(f"rnnkernel {rk.__version__}: worst relative errors on this machine\n")
    width = max(len(case.option) for case in CASES)
    print(f"{'cell':<5} {'dtype':<8} {'option':<{width}}" + "".join(f"{c:>10}" for c in COLUMNS))
    failed = 0
    for case in CASES:
        for dtype in (np.float64, np.float32):
            result = check(case, dtype, seed=seed)
            failed += not result.ok
            numbers = "".join(f"{result.errors[c]:>10.1e}" for c in COLUMNS)
            verdict = "ok" if result.ok else "FAILED"
            words = f"{case.cell:<5} {np.dtype(dtype).name:<8} {case.option:<{width}}"
            print(f"{words}{numbers}  {verdict}", flush=True)
    print(
        "\nfloat64: y against the NumPy reference, gradients against finite differences"
        "\nfloat32: against the float64 kernels"
    )
    count = 2 * len(CASES)
    seconds = time.perf_counter() - start
    if failed:
        print(f"FAILED: {failed} of {count} checks ({seconds:.1f} s)")
        return 1
    print(f"all {count} checks passed ({seconds:.1f} s)")
    return 0


Row = tuple[str, float, float]
"""Column, error, limit."""


def _check_float64(layer: Any, case: Case, sizes: Any, rng: np.random.Generator) -> Iterator[Row]:
    x, inputs, state, _, _ = _data(layer, case, sizes, rng)
    y, final = layer(x, state, **inputs)
    expected_y, expected_final, _ = numpy_reference.forward(layer, x, state, **inputs)
    for value, expected in zip(
        (y, *parts_of(final)), (expected_y, *parts_of(expected_final)), strict=True
    ):
        yield "y", _error(value, expected), VALUE
    if sizes != SIZES[0] and (case.clip is not None or len(layer.parameters) > 6):
        return  # differences of many arrays, or of every single step, take long; one size will do
    try:
        report = gradcheck(
            layer, x, state, clip=case.clip, rng=rng, max_entries=MAX_ENTRIES, **inputs
        )
    except GradientError as error:
        if error.report is None:
            raise
        report = error.report
    columns = {"x": "dx", "embedding": "dx", "state": "dstate", "h": "dstate", "c": "dstate"}
    for name, error in report.errors.items():
        yield columns.get(name, "weights"), error, DIFFERENCE


def _check_float32(layer: Any, case: Case, sizes: Any, rng: np.random.Generator) -> Iterator[Row]:
    data = _data(layer, case, sizes, rng)
    values = _outputs(layer, case, *data)
    expected = _outputs(float64_twin(layer), case, *map(_to_float64, data))
    T, N, I, H = sizes  # noqa: E741
    passes = len(parts_of(data[2])[0])
    forward = passes * (max(I, 2 * H if passes > 2 else 0) + H)
    step_back = forward + passes * layer.parameters["weight_hh_l0"].shape[0]
    length = {"y": forward, "dx": step_back, "dstate": step_back, "weights": step_back + T * N}
    eps = float(np.finfo(np.float32).eps)
    for (column, value), (_, twin) in zip(values, expected, strict=True):
        yield column, _error(value, twin), SINGLE * eps * length[column] ** 0.5


def _data(layer: Any, case: Case, sizes: Any, rng: np.random.Generator) -> tuple:
    """x, other inputs by name, state, dy and dstate, in the layer's dtype."""
    T, N, I, _ = sizes  # noqa: E741

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(layer.dtype)

    x, inputs = normal(T, N, I), {}
    if "ids" in case.inputs:
        x = rng.integers(0, I, (T, N))
    if "embedding" in case.inputs:
        inputs["embedding"] = normal(11, I)
        x = rng.integers(0, 11, (T, N))
    if "lengths" in case.inputs:
        inputs["lengths"] = np.arange(N) % (T + 1)
    if "reset" in case.inputs:
        inputs["reset"] = rng.random((T, N)) < 0.3
    y, final = layer(x, **inputs)  # the layer knows its shapes, whatever its options

    def state() -> Any:
        parts = tuple(normal(*s.shape) for s in parts_of(final))
        return parts if isinstance(final, tuple) else parts[0]

    return x, inputs, state(), normal(*y.shape), state()


def _outputs(
    layer: Any, case: Case, x: Any, inputs: dict[str, Any], state: Any, dy: Any, dstate: Any
) -> list[tuple[str, np.ndarray]]:
    """Everything that forward and backward compute, with its column."""
    out = layer.forward(x, state, training=True, **inputs)
    gradients = layer.backward(out, dy, dstate, clip=case.clip)
    return [
        *(("y", a) for a in (out.y, *parts_of(out.state))),
        *(("dx", a) for a in (gradients.x, gradients.embedding) if a is not None),
        *(("dstate", a) for a in parts_of(gradients.state)),
        *(("weights", gradients.parameters[name]) for name in sorted(gradients.parameters)),
    ]


def _error(value: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference relative to the largest entry, or to 1 if that is more."""
    if value.shape != expected.shape:
        return float("inf")
    return float(np.abs(value - expected).max() / max(1.0, np.abs(expected).max()))


def _to_float64(value: Any) -> Any:
    """Floats of any structure in float64; ids, lengths and resets as they are."""
    if isinstance(value, tuple):
        return tuple(map(_to_float64, value))
    if isinstance(value, dict):
        return {name: _to_float64(one) for name, one in value.items()}
    return value.astype(np.float64) if value.dtype.kind == "f" else value

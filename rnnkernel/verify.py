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
from rnnkernel.gradcheck import GradientError, float64_twin, gradcheck

__all__ = ["CASES", "Case", "Result", "check", "run"]

SIZES = ((5, 3, 7, 13), (3, 7, 34, 41))
"""(T, N, I, H): odd, so that no tile is full, and larger than a tile in every dimension."""

# What is allowed, relative to the largest entry of the array (or 1, if that is more: sums of terms
# of order 1 keep the terms' rounding errors when they cancel).
VALUE = 1e-12  # float64 against float64, in another order of summation
DIFFERENCE = 1e-7  # against central differences, see rnnkernel.gradcheck
SINGLE = 4.0  # float32: this * eps * sqrt(length of the sum); roundings grow as its root

MAX_ENTRIES = 60
"""Entries of each array, chosen at random, that are held to differences."""

COLUMNS = ("y", "dx", "dstate", "weights")


@dataclass(frozen=True)
class Case:
    """One row of the table but for the dtype."""

    cell: str
    option: str
    keywords: dict[str, Any]
    clip: Any = None


@dataclass(frozen=True)
class Result:
    """The worst errors of one case in one dtype."""

    errors: dict[str, float]
    """By column: ``y`` (and the final state), ``dx``, ``dstate``, ``weights`` (and biases)."""

    ok: bool


def _cases() -> Iterator[Case]:
    variants = (
        ("RNN", "tanh", {"nonlinearity": "tanh"}),
        ("RNN", "relu", {"nonlinearity": "relu"}),
        ("GRU", "reset after", {"reset_after": True}),
        ("GRU", "reset before", {"reset_after": False}),
        ("LSTM", "", {}),
        ("LSTM", "peephole", {"peephole": True}),
        ("LSTM", "coupled", {"coupled": True}),
        ("LSTM", "cell clip", {"cell_clip": 0.5}),
        ("LSTM", "all three", {"peephole": True, "coupled": True, "cell_clip": 0.5}),
    )
    for cell, option, keywords in variants:
        for more, bias, clip in (
            ("", True, None),
            ("no bias", False, None),
            ("clip", True, rk.Clip(value=0.5, norm=1.0)),
        ):
            text = ", ".join(filter(None, (option, more)))
            yield Case(cell, text, keywords | {"bias": bias}, clip)


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
    print(f"{'cell':<5} {'dtype':<8} {'option':<21}" + "".join(f"{c:>10}" for c in COLUMNS))
    failed = 0
    for case in CASES:
        for dtype in (np.float64, np.float32):
            result = check(case, dtype, seed=seed)
            failed += not result.ok
            numbers = "".join(f"{result.errors[c]:>10.1e}" for c in COLUMNS)
            verdict = "ok" if result.ok else "FAILED"
            print(
                f"{case.cell:<5} {np.dtype(dtype).name:<8} {case.option:<21}{numbers}  {verdict}",
                flush=True,
            )
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
    x, state, _, _ = _data(layer, sizes, rng)
    y, final = layer(x, state)
    expected_y, expected_final, _ = numpy_reference.forward(layer, x, state)
    for value, expected in zip(
        (y, *_parts(final)), (expected_y, *_parts(expected_final)), strict=True
    ):
        yield "y", _error(value, expected), VALUE
    if case.clip is not None and sizes != SIZES[0]:
        return  # differences of every single step take long; one size will do
    try:
        report = gradcheck(layer, x, state, clip=case.clip, rng=rng, max_entries=MAX_ENTRIES)
    except GradientError as error:
        if error.report is None:
            raise
        report = error.report
    for name, error in report.errors.items():
        column = {"x": "dx", "state": "dstate", "h": "dstate", "c": "dstate"}.get(name, "weights")
        yield column, error, DIFFERENCE


def _check_float32(layer: Any, case: Case, sizes: Any, rng: np.random.Generator) -> Iterator[Row]:
    data = _data(layer, sizes, rng)
    values = _outputs(layer, case, *data)
    expected = _outputs(float64_twin(layer), case, *map(_to_float64, data))
    T, N, I, H = sizes  # noqa: E741
    forward = I + H
    step_back = forward + layer.parameters["weight_hh_l0"].shape[0]
    length = {"y": forward, "dx": step_back, "dstate": step_back, "weights": step_back + T * N}
    eps = float(np.finfo(np.float32).eps)
    for (column, value), (_, twin) in zip(values, expected, strict=True):
        yield column, _error(value, twin), SINGLE * eps * length[column] ** 0.5


def _data(layer: Any, sizes: Any, rng: np.random.Generator) -> tuple:
    """x, state, dy and dstate, in the layer's dtype."""
    T, N, I, H = sizes  # noqa: E741

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(layer.dtype)

    def state() -> Any:
        if type(layer).__name__ == "LSTM":
            return normal(1, N, H), normal(1, N, H)
        return normal(1, N, H)

    return normal(T, N, I), state(), normal(T, N, H), state()


def _outputs(
    layer: Any, case: Case, x: Any, state: Any, dy: Any, dstate: Any
) -> list[tuple[str, np.ndarray]]:
    """Everything that forward and backward compute, with its column."""
    out = layer.forward(x, state, training=True)
    gradients = layer.backward(out, dy, dstate, clip=case.clip)
    return [
        *(("y", a) for a in (out.y, *_parts(out.state))),
        ("dx", gradients.x),
        *(("dstate", a) for a in _parts(gradients.state)),
        *(("weights", gradients.parameters[name]) for name in sorted(gradients.parameters)),
    ]


def _error(value: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference relative to the largest entry, or to 1 if that is more."""
    if value.shape != expected.shape:
        return float("inf")
    return float(np.abs(value - expected).max() / max(1.0, np.abs(expected).max()))


def _to_float64(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_to_float64, value))
    return value.astype(np.float64)


def _parts(state: Any) -> tuple:
    return state if isinstance(state, tuple) else (state,)

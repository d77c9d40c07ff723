"""Inputs and weights of a problem, what the references make of them, and layers that hold them.

Outputs are dicts of arrays under one set of names, whoever computed them: `y`; for training also
`dx` and `d_<parameter>`, with the parameters' names and layouts of rnnkernel (and PyTorch).
"""

import functools
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from problems import GATES

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from reference import CASES  # noqa: E402

# Of the largest element of an output, for each dtype: float32 sums of some thousand terms over up
# to a thousand steps, with every library's own activations; a mistake is of order 1.
TOLERANCE = {"float32": 2e-4, "float64": 1e-10}


@dataclass
class Data:
    x: np.ndarray  # (T, N, I)
    weights: dict[str, np.ndarray]
    states: tuple[np.ndarray, ...] | None  # (L*D, N, H) each; None is zeros
    dy: np.ndarray  # (T, N, D*H)


def suffixes(problem):
    """Of the parameters of each layer and direction, in the order of the states' rows."""
    return [
        f"_l{k}{reverse}"
        for k in range(problem.layers)
        for reverse in ("", "_reverse")[: problem.directions]
    ]


def draw(problem, mode="inference", seed=0):
    """The problem's arrays; a step continues from drawn states, at rest (a stream) from zeros."""
    rng = np.random.default_rng(seed)
    dtype, H, D = np.dtype(problem.dtype), problem.H, problem.directions
    rows = GATES[problem.cell] * H

    def normal(*shape):
        return rng.standard_normal(shape, np.float32).astype(dtype)

    weights = {}
    for index, suffix in enumerate(suffixes(problem)):
        inputs = problem.layer_inputs()[index // D]
        for name, shape in (
            ("weight_ih", (rows, inputs)),
            ("weight_hh", (rows, H)),
            ("bias_ih", (rows,)),
            ("bias_hh", (rows,)),
        ):
            weights[name + suffix] = rng.uniform(-(H**-0.5), H**-0.5, shape).astype(dtype)
    states = None
    if problem.step:
        count = len(CASES[problem.cell].states)
        scale = dtype.type(0.0 if mode == "rest" else 0.5)
        states = tuple(normal(problem.layers * D, problem.N, H) * scale for _ in range(count))
    x = normal(problem.T, problem.N, problem.I)
    dy = normal(problem.T, problem.N, D * H)
    if problem.lengths is not None:
        past = np.arange(problem.T)[:, None] >= np.array(problem.lengths)
        x[past] = 0
        dy[past] = 0
    return Data(x, weights, states, dy)


def reference(problem, data, mode="inference", dtype=np.float64):
    """The outputs of the NumPy reference: stacks, directions and lengths around its one layer."""
    x, dy = data.x.astype(dtype, copy=False), data.dy.astype(dtype, copy=False)
    weights = {name: w.astype(dtype, copy=False) for name, w in data.weights.items()}
    if problem.lengths is None:
        return _reference(problem, x, weights, data.states, dy, mode)
    y = np.zeros((problem.T, problem.N, problem.directions * problem.H), dtype)
    outputs = {"y": y}
    for n, length in enumerate(problem.lengths):  # each row alone, as long as it is
        rows = np.s_[:length, n : n + 1]
        one = _reference(problem, x[rows], weights, None, dy[rows], mode)
        y[rows] = one.pop("y")
        if mode == "training":
            outputs.setdefault("dx", np.zeros_like(x))[rows] = one.pop("dx")
        for name, value in one.items():
            outputs[name] = outputs[name] + value if name in outputs else value
    return outputs


@functools.cache
def expected(problem, mode):
    """The float64 reference's outputs for `draw(problem)`, kept for the next test; not to write."""
    return reference(problem, draw(problem, mode), mode)


def _reference(problem, x, weights, states, dy, mode):
    case, D, H = CASES[problem.cell], problem.directions, problem.H
    N, names = x.shape[1], suffixes(problem)
    zero = np.zeros((problem.layers * D, N, H), x.dtype)
    states = [zero] * len(case.states) if states is None else [s.astype(x.dtype) for s in states]
    tapes = []
    for k in range(problem.layers):
        halves = []
        for d in range(D):
            index, step = k * D + d, -1 if d else 1
            plain = _plain(weights, names[index])
            y, _, tape = case.forward(plain, x[::step], case.pack([s[index] for s in states]))
            halves.append(y[::step])
            tapes.append((plain, tape))
        x = halves[0] if D == 1 else np.concatenate(halves, axis=2)
    outputs = {"y": x}
    if mode != "training":
        return outputs
    for k in reversed(range(problem.layers)):
        dx = 0
        for d in range(D):
            index, step = k * D + d, -1 if d else 1
            plain, tape = tapes[index]
            part = dy[::step, :, d * H : (d + 1) * H]
            grads = case.backward(plain, tape, part, case.pack([zero[0]] * len(case.states)))
            dx = dx + grads.x[::step]
            for name, value in grads.parameters.items():
                outputs[f"d_{name}{names[index]}"] = value
        dy = dx
    outputs["dx"] = dy
    return outputs


def _plain(weights, suffix):
    """One layer's and direction's weights under the reference's names."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return {name: weights[name + suffix] for name in names}


def make_layer(problem, data):
    """The rnnkernel layer with the problem's weights."""
    import rnnkernel as rk

    case = CASES[problem.cell]
    options = dict(case.options)
    if problem.layers > 1:
        options["num_layers"] = problem.layers
    if problem.bidirectional:
        options["bidirectional"] = True
    layer = getattr(rk, case.layer)(problem.I, problem.H, dtype=problem.dtype, **options)
    layer.load_state_dict(data.weights)
    return layer


def layer_state(problem, states):
    """States as a layer takes them: an array, or a pair for LSTM."""
    return None if states is None else CASES[problem.cell].pack(states)


def layer_outputs(out, grads=None):
    """What forward and backward of rnnkernel returned, under the common names."""
    outputs = {"y": out}
    if grads is not None:
        outputs["dx"] = grads.x
        outputs |= {f"d_{name}": value for name, value in grads.parameters.items()}
    return outputs


def check(actual, expected, dtype, who, tolerance=None):
    """Raises where an output is missing, misshapen or off; returns the largest error found."""
    tolerance = TOLERANCE[dtype] if tolerance is None else tolerance
    worst = 0.0
    for name, want in expected.items():
        if name not in actual:
            raise AssertionError(f"{who}: no {name}")
        got = np.asarray(actual[name])
        if got.shape != want.shape:
            raise AssertionError(f"{who}: {name} is {got.shape}, expected {want.shape}")
        if got.dtype != np.dtype(dtype):
            raise AssertionError(f"{who}: {name} is {got.dtype}, expected {dtype}")
        error = float(np.abs(got - want).max() / max(np.abs(want).max(), 1e-30))
        if not error <= tolerance:  # catches NaN too
            raise AssertionError(f"{who}: {name} is off by {error:.2g} of its largest element")
        worst = max(worst, error)
    return worst

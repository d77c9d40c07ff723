"""Random problems from a seed, what the reference makes of them, and central differences.

Knows nothing of the package under test. Outputs go by name in a dict, so that every check compares
all of them: y, the final states h and c, and in the backward direction dx, dh0, dc0 and d_<weight>.
"""

from dataclasses import dataclass, replace

import numpy as np

from reference import Case

SMALL = (4, 3, 5, 6)  # T, N, I, H, where a test wants no more than that they differ


@dataclass(frozen=True)
class Problem:
    case: Case
    weights: dict[str, np.ndarray]
    x: np.ndarray  # (T, N, I)
    states: tuple[np.ndarray, ...]  # (N, H) each; with projection h, as y and dy, is P wide
    dy: np.ndarray | None  # (T, N, H)
    dstates: tuple[np.ndarray, ...] | None  # (N, H) each

    @property
    def sizes(self):
        T, N, I = self.x.shape  # noqa: E741
        return T, N, I, self.states[-1].shape[1]

    @property
    def dtype(self):
        return self.x.dtype

    passes = 1  # of a cell over the sequence, one after another

    def astype(self, dtype):
        return replace(
            self,
            weights={name: w.astype(dtype) for name, w in self.weights.items()},
            x=self.x.astype(dtype),
            states=tuple(s.astype(dtype) for s in self.states),
            dy=None if self.dy is None else self.dy.astype(dtype),
            dstates=None if self.dstates is None else tuple(s.astype(dtype) for s in self.dstates),
        )

    def arrays(self):
        """Every array that something can be differentiated by, under its gradient's name."""
        named = {"dx": self.x}
        named |= {f"d{s}0": array for s, array in zip(self.case.states, self.states, strict=True)}
        named |= {f"d_{name}": array for name, array in self.weights.items()}
        return named


def draw(
    case,
    T,
    N,
    I,  # noqa: E741
    H,
    *,
    dtype=np.float64,
    seed=0,
    bias=True,
    dy=True,
    dstate=True,
    scale=1.0,
):
    """Inputs, states and gradients of unit variance; weights as a layer's at first, times scale."""
    rng = np.random.default_rng([seed, T, N, I, H])

    def uniform(*shape):
        return (rng.uniform(-1, 1, shape) * scale / np.sqrt(H)).astype(dtype)

    def normal(*shape):
        return rng.standard_normal(shape).astype(dtype)

    weights = {name: uniform(*shape) for name, shape in case.weight_shapes(I, H, bias).items()}
    widths = case.widths(H)
    x = normal(T, N, I)
    states = tuple(normal(N, width) for width in widths)
    d_y = normal(T, N, widths[0])
    d_states = tuple(normal(N, width) for width in widths)
    return Problem(case, weights, x, states, d_y if dy else None, d_states if dstate else None)


def forward_outputs(case, y, states):
    return {"y": y} | dict(zip(case.states, states, strict=True))


def gradient_outputs(case, x, states, parameters):
    named = {"dx": x}
    named |= {f"d{s}0": array for s, array in zip(case.states, states, strict=True)}
    named |= {f"d_{name}": array for name, array in parameters.items()}
    return named


def reference_outputs(problem, **clip):
    """Every output of the reference, and its Gradients (for the flow)."""
    case, p = problem.case, problem
    y, state, tape = case.forward(p.weights, p.x, case.pack(p.states))
    dstate = None if p.dstates is None else case.pack(p.dstates)
    grads = case.backward(p.weights, tape, p.dy, dstate, **clip)
    outputs = forward_outputs(case, y, case.unpack(state))
    outputs |= gradient_outputs(case, grads.x, case.unpack(grads.state), grads.parameters)
    return outputs, grads


def loss(problem, y, states):
    """The scalar whose gradient BPTT returns for dy and dstate."""
    total = 0.0
    if problem.dy is not None:
        total += (y * problem.dy).sum()
    if problem.dstates is not None:
        total += sum((s * d).sum() for s, d in zip(states, problem.dstates, strict=True))
    return total


def central_differences(function, array, step=1e-5):
    """d function() / d array, element by element; array is edited in place and restored.

    In float64 the step balances truncation (step^2) and rounding (eps / step): both near 1e-10.
    """
    gradient = np.empty_like(array)
    for index in np.ndindex(array.shape):
        saved = array[index]
        array[index] = saved + step
        above = function()
        array[index] = saved - step
        below = function()
        array[index] = saved
        gradient[index] = (above - below) / (2 * step)
    return gradient


def difference_along(function, array, direction, step=1e-5):
    """d function() / d array along a direction of unit norm: every element has its share in it."""
    saved = array.copy()
    array += step * direction
    above = function()
    array[...] = saved - step * direction
    below = function()
    array[...] = saved
    return (above - below) / (2 * step)


def distance_to_kink(problem):
    """The smallest distance to a step of a derivative in a forward pass: of relu's argument to 0,
    of a cell to its clip. Infinite for a smooth cell."""
    case, w = problem.case, problem.weights
    _, _, tape = case.forward(w, problem.x, case.pack(problem.states))
    return tape_distance_to_kink(case, w, tape)


def tape_distance_to_kink(case, w, tape):
    """The same, of a forward pass that has been."""
    if case.options.get("nonlinearity") == "relu":
        a = tape["x"] @ w["weight_ih"].T + tape["h"][:-1] @ w["weight_hh"].T
        a += w.get("bias_ih", 0) + w.get("bias_hh", 0)
        return np.abs(a).min(initial=np.inf)
    if case.options.get("cell_clip"):
        c = [f * c + i * g for c, (i, f, g, _) in zip(tape["c"], tape["gates"], strict=False)]
        return np.abs(np.abs(c) - case.options["cell_clip"]).min()
    return np.inf


def draw_smooth(case, *sizes, seed=0, **arguments):
    """A problem without a kink so near that a central difference would lie across it."""
    while True:
        problem = draw(case, *sizes, seed=seed, **arguments)
        if distance_to_kink(problem) > 2e-4:
            return problem
        seed += 1

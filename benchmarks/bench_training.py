"""Forward and backward beside the NumPy reference."""

import problems
import pytest
from data import check, expected, layer_outputs, layer_state, make_layer, reference

CHOSEN = [problem for problem in problems.DAILY if "training" in problem.modes]
each_problem = pytest.mark.parametrize("problem", CHOSEN, ids=lambda problem: problem.name)


@each_problem
def test_rnnkernel(benchmark, problem, drawn):
    layer, state = make_layer(problem, drawn), layer_state(problem, drawn.states)

    def train():
        out = layer.forward(drawn.x, state, training=True)
        return out, layer.backward(out, drawn.dy)

    benchmark.group = f"forward+backward {problem.name}: {problem.cell} {problem.sizes}"
    out, grads = benchmark(train)
    actual = layer_outputs(out.y, grads)
    check(actual, expected(problem, "training"), problem.dtype, "rnnkernel")


@each_problem
def test_numpy(benchmark, problem, drawn):
    benchmark.group = f"forward+backward {problem.name}: {problem.cell} {problem.sizes}"
    outputs = benchmark(reference, problem, drawn, "training", problem.dtype)
    check(outputs, expected(problem, "training"), problem.dtype, "NumPy")

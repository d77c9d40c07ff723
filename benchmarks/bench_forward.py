"""Inference beside the NumPy reference: pytest benchmarks -o python_files='bench_*.py'"""

import problems
import pytest
from data import check, expected, layer_outputs, layer_state, make_layer, reference

CHOSEN = [problem for problem in problems.DAILY if "inference" in problem.modes]
each_problem = pytest.mark.parametrize("problem", CHOSEN, ids=lambda problem: problem.name)


@each_problem
def test_rnnkernel(benchmark, problem, drawn):
    layer, state = make_layer(problem, drawn), layer_state(problem, drawn.states)
    benchmark.group = f"forward {problem.name}: {problem.cell} {problem.sizes}"
    y, _ = benchmark(layer, drawn.x, state)
    check(layer_outputs(y), expected(problem, "inference"), problem.dtype, "rnnkernel")


@each_problem
def test_numpy(benchmark, problem, drawn):
    benchmark.group = f"forward {problem.name}: {problem.cell} {problem.sizes}"
    outputs = benchmark(reference, problem, drawn, "inference", problem.dtype)
    check(outputs, expected(problem, "inference"), problem.dtype, "NumPy")

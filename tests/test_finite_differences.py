"""The float64 kernels by their own public interface against finite differences: no reference."""

import numpy as np
import pytest

import tolerances
from drawn import central_differences, distance_to_kink, draw, loss
from helpers import layer_outputs, layer_state, make_layer, plain_states

WANTED = [
    pytest.param({}, id="dy_and_dstate"),
    pytest.param({"dy": False}, id="dstate_only"),
    pytest.param({"dstate": False}, id="dy_only"),
]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("sizes", [(4, 3, 4, 5), (3, 2, 3, 11)], ids=str)
def test_every_gradient_equals_central_differences(case, sizes, wanted, bias):
    problem = draw(case, *sizes, dtype=np.float64, seed=1, bias=bias, **wanted)
    assert distance_to_kink(problem) > 2e-4  # a difference across relu's kink is no derivative
    layer = make_layer(problem)
    outputs, _ = layer_outputs(problem, layer)

    def function():
        y, state = layer(problem.x, layer_state(case, problem.states))
        return loss(problem, y, plain_states(case, state))

    arrays = problem.arrays()
    for name in problem.weights:
        arrays[f"d_{name}"] = layer.parameters[f"{name}_l0"]  # live: edited in place
    assert arrays.keys() == outputs.keys() - {"y", *case.states}
    for name, array in arrays.items():
        expected = central_differences(function, array)
        assert np.abs(expected).max() > 1e-3, name
        tolerances.assert_close_to_differences(outputs[name], expected, name)

"""Layers under test, run as the reference is: a drawn problem in, the same named outputs out."""

import os
import subprocess
import sys
import sysconfig
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import rnnkernel as rk
from drawn import (
    central_differences,
    distance_to_kink,
    forward_outputs,
    gradient_outputs,
    loss,
    reference_outputs,
)
from tolerances import assert_close_to_differences, assert_outputs_close

WITHOUT_GIL = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


def construct(case, *sizes, **arguments):
    """A layer of the case's cell and options."""
    return getattr(rk, case.layer)(*sizes, **{**case.options, **arguments})


def make_layer(problem, **arguments):
    """A layer of the problem's cell and sizes, with the problem's weights."""
    _, _, input_size, hidden_size = problem.sizes
    layer = construct(
        problem.case,
        input_size,
        hidden_size,
        bias="bias_ih" in problem.weights,
        dtype=problem.dtype,
        **arguments,
    )
    assert set(layer.parameters) == {f"{name}_l0" for name in problem.weights}
    for name, value in problem.weights.items():
        layer.parameters[f"{name}_l0"][...] = value
    return layer


def layer_state(case, states):
    """States (N, H) as a layer takes them: (1, N, H), alone or as a tuple; None stays None."""
    return None if states is None else case.pack([s[None] for s in states])


def plain_states(case, state):
    """The reverse of layer_state."""
    states = case.unpack(state)
    assert all(s.shape[0] == 1 for s in states)
    return tuple(s[0] for s in states)


def run_forward(problem, layer, **arguments):
    """The training forward from the problem's states."""
    state = layer_state(problem.case, problem.states)
    return layer.forward(problem.x, state, training=True, **arguments)


def run_backward(problem, layer, out, **arguments):
    return layer.backward(out, problem.dy, layer_state(problem.case, problem.dstates), **arguments)


def named_outputs(case, out, grads=None):
    """What forward, or forward and backward, returned, under the reference's names."""
    named = forward_outputs(case, out.y, plain_states(case, out.state))
    if grads is not None:
        assert all(name.endswith("_l0") for name in grads.parameters)
        parameters = {name.removesuffix("_l0"): g for name, g in grads.parameters.items()}
        named |= gradient_outputs(case, grads.x, plain_states(case, grads.state), parameters)
    return named


def layer_outputs(problem, layer=None, *, num_threads=None, **backward):
    """Every output of a fresh forward and backward by name, and the gradients' record."""
    layer = make_layer(problem) if layer is None else layer
    out = run_forward(problem, layer, num_threads=num_threads)
    grads = run_backward(problem, layer, out, num_threads=num_threads, **backward)
    return named_outputs(problem.case, out, grads), grads


def check_values(problem, *, num_threads=None):
    """Every output of the layer against the reference on the same inputs, in float64."""
    __tracebackhide__ = True
    actual, _ = layer_outputs(problem, num_threads=num_threads)
    expected, _ = reference_outputs(problem.astype(np.float64))
    assert_outputs_close(actual, expected, problem)


def check_central_differences(problem):
    """Every gradient of a float64 layer against differences of its own inference."""
    __tracebackhide__ = True
    assert distance_to_kink(problem) > 2e-4  # a difference across a kink is no derivative
    case, layer = problem.case, make_layer(problem)
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
        assert_close_to_differences(outputs[name], expected, name)


def bits(array):
    return np.ascontiguousarray(array).tobytes()


def assert_same_bits(actual, expected, what=""):
    """Equal to the last bit, signs of zeros and payloads of NaNs included."""
    __tracebackhide__ = True
    assert actual.dtype == expected.dtype, what
    assert actual.shape == expected.shape, what
    if bits(actual) != bits(expected):
        different = (actual != expected) & ~(np.isnan(actual) & np.isnan(expected))
        where = np.argwhere(different)
        first = tuple(where[0]) if len(where) else "only signs of zeros or payloads of NaNs"
        raise AssertionError(f"{what}: {len(where)} of {actual.size} differ, first {first}")


def assert_same_outputs(actual, expected):
    __tracebackhide__ = True
    assert actual.keys() == expected.keys()
    for name in expected:
        assert_same_bits(actual[name], expected[name], name)


@contextmanager
def unchanged(*arrays):
    """That none of the arrays is written inside."""
    __tracebackhide__ = True
    before = [bits(array) for array in arrays]
    yield
    for k, (array, was) in enumerate(zip(arrays, before, strict=True)):
        assert bits(array) == was, f"array {k} was written"


def problem_arrays(problem):
    """Every array of the caller's in a forward and backward call."""
    arrays = [problem.x, *problem.states, *problem.weights.values()]
    if problem.dy is not None:
        arrays.append(problem.dy)
    if problem.dstates is not None:
        arrays.extend(problem.dstates)
    return arrays


def read_only(array):
    array.setflags(write=False)
    return array


def names(argument):
    """A pattern for a message that names the argument."""
    return rf"\b{argument}\b"


TESTS = Path(__file__).parent


def run_python(*arguments, timeout=300, cwd=TESTS, **environment):
    """Python in a process of its own that can import these helpers; what became of it."""
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": path} | environment,
        timeout=timeout,
        capture_output=True,
        text=True,
    )


def run_script(script, timeout=120):
    """Python code in a process of its own, beside these tests; its failure is the test's."""
    done = run_python("-c", script, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr

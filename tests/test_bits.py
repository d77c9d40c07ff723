"""A row's result has the same bits however it is computed; gradients for any number of threads."""

import numpy as np
import pytest

import rnnkernel as rk
from drawn import draw
from helpers import (
    assert_same_bits,
    assert_same_outputs,
    layer_outputs,
    layer_state,
    make_layer,
    plain_states,
    run_forward,
)

# (T, N, I, H): beside a small one, sizes past any chunk of steps, tile of rows, block of units.
SIZES = [(6, 13, 7, 11), (300, 5, 9, 24), (9, 70, 33, 40), (4, 6, 20, 130), (40, 21, 3, 67)]


@pytest.fixture(params=SIZES, ids=str)
def problem(request, case, dtype):
    return draw(case, *request.param, dtype=dtype)


def infer(layer, problem, *, rows=slice(None), steps=slice(None), states=None, **arguments):
    """y and the final states (a dict) of some rows and steps."""
    case = problem.case
    states = problem.states if states is None else states
    x = np.ascontiguousarray(problem.x[steps][:, rows])
    state = layer_state(case, [np.ascontiguousarray(s[rows]) for s in states])
    y, state = layer(x, state, **arguments)
    return {"y": y} | dict(zip(case.states, plain_states(case, state), strict=True))


def rows_of(outputs, rows):
    return {name: array[:, rows] if name == "y" else array[rows] for name, array in outputs.items()}


def test_a_row_alone_or_in_a_batch(problem):
    layer = make_layer(problem)
    whole = infer(layer, problem)
    N = problem.sizes[1]
    for n in {0, 1, 2, 3, N // 2, N - 2, N - 1}:
        rows = slice(n, n + 1)
        assert_same_outputs(infer(layer, problem, rows=rows), rows_of(whole, rows))


def test_any_batch_size(problem):
    layer = make_layer(problem)
    whole = infer(layer, problem)
    for size in {2, 3, 4, 5, 7, 12, 32, 65} & set(range(problem.sizes[1])):
        rows = slice(problem.sizes[1] - size, None)
        assert_same_outputs(infer(layer, problem, rows=rows), rows_of(whole, rows))


def test_any_position_in_the_batch(problem):
    layer = make_layer(problem)
    order = np.random.default_rng(0).permutation(problem.sizes[1])
    assert_same_outputs(infer(layer, problem, rows=order), rows_of(infer(layer, problem), order))


@pytest.mark.parametrize("num_threads", [2, 3, 5])
def test_any_number_of_threads(problem, num_threads):
    layer = make_layer(problem)
    one = infer(layer, problem, num_threads=1)
    assert_same_outputs(infer(layer, problem, num_threads=num_threads), one)


@pytest.mark.parametrize("num_threads", [2, 3, 5])
def test_one_row_and_any_number_of_threads(problem, num_threads):
    layer = make_layer(problem)
    row = slice(1, 2)
    one = infer(layer, problem, rows=row, num_threads=1)
    assert_same_outputs(infer(layer, problem, rows=row, num_threads=num_threads), one)


def test_the_default_number_of_threads(problem):
    layer = make_layer(problem)
    one = infer(layer, problem, num_threads=1)
    before = rk.get_num_threads()
    try:
        for n in (1, 2, 4):
            rk.set_num_threads(n)
            assert rk.get_num_threads() == n
            assert_same_outputs(infer(layer, problem), one)
    finally:
        rk.set_num_threads(before)


def test_cut_into_pieces(problem):
    """Handing the state on; the pieces of other lengths than any chunk, single steps among them."""
    layer = make_layer(problem)
    whole = infer(layer, problem)
    T = problem.sizes[0]
    for cuts in ({1}, {T - 1}, {1, 2, 3}, {T // 3, T // 2}, set(range(1, T, 17))):
        borders = [0, *sorted(cuts), T]
        states, pieces = problem.states, []
        for begin, end in zip(borders[:-1], borders[1:], strict=True):
            piece = infer(layer, problem, steps=slice(begin, end), states=states)
            pieces.append(piece["y"])
            states = [piece[name] for name in problem.case.states]
        joined = {"y": np.concatenate(pieces)}
        joined |= dict(zip(problem.case.states, states, strict=True))
        assert_same_outputs(joined, whole)


def test_step_by_step(case, dtype):
    problem = draw(case, T=9, N=5, I=4, H=21, dtype=dtype)
    layer = make_layer(problem)
    whole = infer(layer, problem)
    states = problem.states
    for t in range(9):
        step = infer(layer, problem, steps=slice(t, t + 1), states=states)
        assert_same_bits(step["y"][0], whole["y"][t])
        states = [step[name] for name in case.states]


def test_the_ways_to_run_forward(problem):
    case, layer = problem.case, make_layer(problem)
    expected = infer(layer, problem)
    state = layer_state(case, problem.states)
    y = np.full(expected["y"].shape, np.nan, problem.dtype)
    for out in (
        layer.forward(problem.x, state),
        layer.forward(problem.x, state, training=True),
        layer.forward(problem.x, state, out=y),
        layer.forward(problem.x, state, training=True, out=y.copy(), num_threads=3),
    ):
        actual = {"y": out.y}
        actual |= dict(zip(case.states, plain_states(case, out.state), strict=True))
        assert_same_outputs(actual, expected)
    assert_same_bits(y, expected["y"])


def test_the_last_output_is_the_final_state(problem):
    """Without projection h is y."""
    layer = make_layer(problem)
    outputs = infer(layer, problem)
    assert_same_bits(outputs["h"], outputs["y"][-1])


@pytest.mark.parametrize("num_threads", [2, 3, 5])
def test_gradients_with_any_number_of_threads(problem, num_threads):
    layer = make_layer(problem)
    clip = rk.Clip(value=0.8, norm=2.0)
    for arguments in ({}, {"clip": clip, "flow": True}):
        one, grads_one = layer_outputs(problem, layer, num_threads=1, **arguments)
        many, grads_many = layer_outputs(problem, layer, num_threads=num_threads, **arguments)
        assert_same_outputs(many, one)
        if arguments:
            assert_same_bits(grads_many.flow.dh_norm, grads_one.flow.dh_norm)
            assert_same_bits(grads_many.flow.clipped, grads_one.flow.clipped)
            if len(problem.case.states) > 1:
                assert_same_bits(grads_many.flow.dc_norm, grads_one.flow.dc_norm)


def test_threads_of_forward_and_backward_are_independent(problem):
    layer = make_layer(problem)
    expected, _ = layer_outputs(problem, layer, num_threads=1)
    for forward, backward in ((1, 3), (3, 1), (2, 5)):
        out = run_forward(problem, layer, num_threads=forward)
        dstate = layer_state(problem.case, problem.dstates)
        grads = layer.backward(out, problem.dy, dstate, num_threads=backward)
        assert_same_bits(grads.x, expected["dx"])
        for name, g in grads.parameters.items():
            assert_same_bits(g, expected["d_" + name.removesuffix("_l0")], name)

"""Every output of forward and backward, by value, against the reference."""

import numpy as np
import pytest

from drawn import draw, reference_outputs
from helpers import assert_same_bits, check_values, layer_outputs, make_layer
from tolerances import assert_outputs_close


def test_core(case, dtype):
    """Small, but with every remainder: odd sizes, several rows, steps, chunks, blocks of units."""
    check_values(draw(case, T=5, N=3, I=7, H=11, dtype=dtype))
    check_values(draw(case, T=3, N=14, I=5, H=37, dtype=dtype, bias=False))
    check_values(draw(case, T=4, N=2, I=40, H=20, dtype=dtype, dy=False))
    check_values(draw(case, T=60, N=7, I=3, H=9, dtype=dtype))


# (T, N, I, H): ones alone and together.
ONES = [(1, 1, 1, 1), (1, 3, 4, 5), (4, 1, 3, 5), (4, 3, 1, 5), (4, 3, 5, 1), (6, 1, 1, 1)]


@pytest.mark.parametrize("sizes", ONES, ids=str)
def test_sizes_of_one(case, dtype, sizes):
    check_values(draw(case, *sizes, dtype=dtype))


@pytest.mark.parametrize("H", range(1, 41))
def test_every_hidden_size(case, dtype, H):
    """Every remainder of the vector width, beside input sizes that take all residues too."""
    check_values(draw(case, T=3, N=4, I=7 * H % 40 + 1, H=H, dtype=dtype))


@pytest.mark.parametrize("I", range(1, 41))
def test_every_input_size(case, dtype, I):  # noqa: E741
    check_values(draw(case, T=2, N=5, I=I, H=11 * I % 40 + 1, dtype=dtype))


@pytest.mark.parametrize("N", range(1, 14))
def test_every_remainder_of_rows(case, dtype, N):
    check_values(draw(case, T=3, N=N, I=6, H=19, dtype=dtype))


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("N", [1, 2, 7, 29, 64])
def test_rows_shared_between_threads(case, dtype, N, num_threads):
    check_values(draw(case, T=3, N=N, I=5, H=18, dtype=dtype), num_threads=num_threads)


LARGER = [
    pytest.param((3, 9, 37, 64), id="H64"),
    pytest.param((4, 6, 37, 100), id="H100"),
    pytest.param((3, 17, 37, 130), id="H130"),
    pytest.param((2, 5, 37, 257), id="H257"),
    pytest.param((3, 5, 600, 300), id="long_sums"),
    pytest.param((3, 70, 9, 33), id="large_batch"),
    pytest.param((300, 3, 5, 13), id="long_sequence"),
    pytest.param((45, 33, 12, 16), id="many_steps_and_rows"),
    pytest.param((5000, 1, 3, 4), id="very_long_sequence"),
]


@pytest.mark.parametrize("sizes", LARGER)
def test_larger_sizes(case, dtype, sizes):
    check_values(draw(case, *sizes, dtype=dtype))


@pytest.mark.parametrize("dstate", [True, False], ids=["dstate", "no_dstate"])
@pytest.mark.parametrize("dy", [True, False], ids=["dy", "no_dy"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_what_may_be_left_out(case, dtype, bias, dy, dstate):
    check_values(draw(case, T=4, N=3, I=5, H=13, dtype=dtype, bias=bias, dy=dy, dstate=dstate))


def test_weights_that_saturate(case, dtype):
    """Pre-activations past 5: gates near 0 and 1, where the derivative is all cancellation."""
    if case.name == "rnn_relu":
        problem = draw(case, T=3, N=4, I=6, H=21, dtype=dtype, scale=2.0)  # it grows, not saturates
    else:
        # few steps: weights so large amplify rounding errors from step to step
        problem = draw(case, T=2, N=4, I=60, H=21, dtype=dtype, scale=4.0)
        a = problem.x @ problem.weights["weight_ih"].T
        assert (np.abs(a) > 5).mean() > 0.1
    check_values(problem)


@pytest.mark.parametrize("sizes", [(0, 3, 4, 5), (3, 0, 4, 5), (0, 0, 1, 1)], ids=str)
def test_no_steps_or_no_rows(case, dtype, sizes):
    """The state passes through, and so does its gradient; the weights have none."""
    problem = draw(case, *sizes, dtype=dtype)
    outputs, _ = layer_outputs(problem)
    T, N, I, H = sizes  # noqa: E741
    assert outputs["y"].shape == (T, N, H)
    assert outputs["dx"].shape == (T, N, I)
    for name, s, ds in zip(case.states, problem.states, problem.dstates, strict=True):
        assert_same_bits(outputs[name], s)
        assert_same_bits(outputs[f"d{name}0"], ds)
    for name, w in problem.weights.items():
        assert_same_bits(outputs[f"d_{name}"], np.zeros_like(w))


def test_no_state_is_zeros(case, dtype):
    problem = draw(case, T=4, N=3, I=5, H=9, dtype=dtype)
    for s in problem.states:
        s[...] = 0
    expected, _ = reference_outputs(problem.astype(np.float64))
    layer = make_layer(problem)
    out = layer.forward(problem.x, training=True)
    actual, _ = layer_outputs(problem, layer)
    assert_same_bits(out.y, actual["y"])
    assert_outputs_close(actual, expected, problem)


def test_without_the_input_gradient_all_else_is_the_same(case, dtype):
    problem = draw(case, T=4, N=3, I=5, H=9, dtype=dtype)
    layer = make_layer(problem)
    state, dstate = ([s[None] for s in states] for states in (problem.states, problem.dstates))
    out = layer.forward(problem.x, case.pack(state), training=True)
    full = layer.backward(out, problem.dy, case.pack(dstate))
    lean = layer.backward(out, problem.dy, case.pack(dstate), input_grad=False)
    assert full.x is not None
    assert lean.x is None
    for a, b in zip(case.unpack(full.state), case.unpack(lean.state), strict=True):
        assert_same_bits(a, b)
    for name in full.parameters:
        assert_same_bits(full.parameters[name], lean.parameters[name], name)


@pytest.mark.parametrize("threads", [1, 2])
def test_bias_gradients_of_a_long_input_keep_their_digits(case, threads):
    """Added one after another in float32, the last of so many rows would be lost to a tenth."""
    problem = draw(case, T=6000, N=33, I=1, H=5, dtype=np.float32)
    problem.dy[...] = 1
    actual, _ = layer_outputs(problem, num_threads=threads)
    expected, _ = layer_outputs(problem.astype(np.float64))
    for name in ("d_bias_ih", "d_bias_hh"):
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(actual[name] / scale, expected[name] / scale, atol=1e-6)

"""The LSTM's options: peepholes, a clipped cell, coupled gates, all combined; forget_bias."""

import math
from dataclasses import replace

import numpy as np
import pytest

import rnnkernel as rk
import tolerances
from drawn import central_differences, draw, draw_smooth, loss, reference_outputs
from helpers import (
    assert_same_bits,
    assert_same_outputs,
    check_values,
    layer_outputs,
    layer_state,
    make_layer,
    plain_states,
    run_backward,
    run_forward,
)
from reference import LSTM_VARIANTS, lstm_case
from tolerances import assert_outputs_close

VARIANTS = [case for case in LSTM_VARIANTS.values() if not case.options.get("proj_size")]
EVERYTHING = max(VARIANTS, key=lambda case: len(case.options))


@pytest.fixture(params=VARIANTS, ids=lambda case: case.name)
def case(request):
    return request.param


# Values.


def test_core(case, dtype):
    """As of the cells without options."""
    check_values(draw(case, T=5, N=3, I=7, H=11, dtype=dtype))
    check_values(draw(case, T=3, N=14, I=5, H=37, dtype=dtype, bias=False))
    check_values(draw(case, T=4, N=2, I=40, H=20, dtype=dtype, dy=False))
    check_values(draw(case, T=60, N=7, I=3, H=9, dtype=dtype, dstate=False))


@pytest.mark.parametrize("options", [EVERYTHING.options, {"peephole": True}], ids=str)
@pytest.mark.parametrize("H", range(1, 41))
def test_every_hidden_size(dtype, H, options):
    check_values(draw(lstm_case(**options), T=3, N=4, I=7 * H % 40 + 1, H=H, dtype=dtype))


@pytest.mark.parametrize("N", range(1, 14))
def test_every_remainder_of_rows(case, dtype, N):
    check_values(draw(case, T=3, N=N, I=6, H=19, dtype=dtype), num_threads=1 + N % 3)


LARGER = [(4, 6, 37, 100), (3, 17, 20, 130), (300, 3, 5, 13), (45, 33, 12, 16), (1, 1, 1, 1)]


@pytest.mark.parametrize("sizes", LARGER, ids=str)
def test_larger_sizes(case, dtype, sizes):
    check_values(draw(case, *sizes, dtype=dtype))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("sizes", [(4, 3, 4, 5), (3, 2, 3, 11)], ids=str)
def test_every_gradient_equals_central_differences(case, sizes, bias):
    problem = draw_smooth(case, *sizes, dtype=np.float64, seed=1, bias=bias)
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


@pytest.mark.parametrize("clip", [{"value": 0.4}, {"value": 0.9, "norm": 2.0}], ids=str)
@pytest.mark.parametrize("sizes", [(6, 7, 4, 5), (70, 5, 3, 40)], ids=str)
def test_clipped_bptt_equals_the_reference(case, dtype, sizes, clip):
    problem = draw(case, *sizes, dtype=dtype, seed=3)
    spread = np.geomspace(0.02, 2, sizes[1], dtype=dtype)[:, None]  # so that some rows are clipped
    for array in (problem.dy, *problem.dstates):
        array *= spread
    actual, grads = layer_outputs(problem, clip=rk.Clip(**clip), flow=True)
    limits = {f"clip_{kind}": limit for kind, limit in clip.items()}
    expected, flow = reference_outputs(problem.astype(np.float64), **limits)
    assert_outputs_close(actual, expected, problem)
    assert 0 < flow.clipped.sum() < sizes[0] * sizes[1]  # the case tells rows apart
    np.testing.assert_array_equal(grads.flow.clipped[0], flow.clipped)
    rtol = 1e-12 if dtype == np.float64 else 1e-5
    np.testing.assert_allclose(grads.flow.dh_norm[0], flow.dh_norm, rtol=rtol)
    np.testing.assert_allclose(grads.flow.dc_norm[0], flow.dc_norm, rtol=rtol)


def test_the_clip_acts_in_the_tests(dtype):
    """On some of the cells, not on all of them."""
    problem = draw(EVERYTHING, T=5, N=3, I=7, H=11, dtype=dtype)
    outputs, _ = layer_outputs(problem)
    at_limit = np.abs(outputs["c"]) == dtype(EVERYTHING.options["cell_clip"])
    assert 0.1 < at_limit.mean() < 0.9
    assert np.abs(outputs["c"]).max() == dtype(EVERYTHING.options["cell_clip"])


# What single options mean.


def test_a_clip_that_nothing_reaches_changes_no_bit(dtype):
    problem = draw(lstm_case(), T=6, N=5, I=4, H=13, dtype=dtype)
    plain, _ = layer_outputs(problem)
    for limit in (50.0, 1e300):
        clipped, _ = layer_outputs(replace(problem, case=lstm_case(cell_clip=limit)))
        assert_same_outputs(clipped, plain)


def test_the_clip_leaves_the_initial_cell_alone(dtype):
    """It acts on what a step computes: with f = 1 and peepholes, c0 comes in as it is."""
    case = lstm_case(cell_clip=0.5, peephole=True)
    problem = draw(case, T=0, N=3, I=4, H=5, dtype=dtype)
    outputs, _ = layer_outputs(problem)
    assert np.abs(outputs["c"]).max() > 0.5
    check_values(draw(case, T=1, N=3, I=4, H=5, dtype=dtype))


def test_nan_passes_the_clip_of_the_cell(case, dtype):
    problem = draw(case, T=3, N=4, I=5, H=20, dtype=dtype)
    clean, _ = layer_outputs(problem)
    problem.states[1][1] = np.nan
    outputs, _ = layer_outputs(problem)
    assert np.isnan(outputs["c"][1]).all()
    assert np.isnan(outputs["y"][:, 1]).all()
    assert np.isnan(outputs["dc0"][1]).all()
    others = [0, 2, 3]
    for name in ("c", "h", "dc0", "dh0"):
        assert_same_bits(outputs[name][others], clean[name][others], name)
    assert_same_bits(outputs["dx"][:, others], clean["dx"][:, others])


def test_peepholes_of_zero_are_none(dtype):
    problem = draw(lstm_case(), T=6, N=5, I=4, H=13, dtype=dtype)
    plain, _ = layer_outputs(problem)
    weights = problem.weights | {"weight_ch": np.zeros(39, dtype)}
    seen, _ = layer_outputs(replace(problem, case=lstm_case(peephole=True), weights=weights))
    assert seen.pop("d_weight_ch").any()
    for name in plain:  # a + 0 * c is a, and dc + 0 * da_o is dc
        np.testing.assert_array_equal(seen[name], plain[name], name)


def test_coupled_gates_leave_the_rows_of_f_alone(dtype):
    problem = draw(EVERYTHING, T=4, N=5, I=6, H=19, dtype=dtype)
    outputs, _ = layer_outputs(problem)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_ch"):
        assert_same_bits(outputs[f"d_{name}"][19:38], np.zeros_like(problem.weights[name][19:38]))
        problem.weights[name][19:38] = np.nan
    again, _ = layer_outputs(problem)
    assert_same_outputs(again, outputs)


def test_coupled_is_the_plain_lstm_with_the_opposite_forget_gate(dtype):
    """f = 1 - s(a) = s(-a)."""
    problem = draw(lstm_case(coupled=True), T=6, N=5, I=4, H=13, dtype=dtype)
    for w in problem.weights.values():
        w[13:26] = -w[:13]
    coupled, _ = layer_outputs(problem)
    plain, _ = layer_outputs(replace(problem, case=lstm_case()))
    for name in ("y", "h", "c", "dx", "dh0", "dc0"):
        rtol = 1e-12 if dtype == np.float64 else 2e-5
        np.testing.assert_allclose(coupled[name], plain[name], rtol=rtol, atol=rtol, err_msg=name)


# Bits.


def infer(layer, problem, rows=slice(None), steps=slice(None), states=None, **arguments):
    states = problem.states if states is None else states
    state = layer_state(problem.case, [np.ascontiguousarray(s[rows]) for s in states])
    y, state = layer(np.ascontiguousarray(problem.x[steps][:, rows]), state, **arguments)
    return (y, *plain_states(problem.case, state))


@pytest.mark.parametrize("sizes", [(6, 13, 7, 11), (40, 21, 3, 67)], ids=str)
def test_bits_of_rows_threads_and_pieces(case, dtype, sizes):
    problem = draw(case, *sizes, dtype=dtype)
    layer = make_layer(problem)
    y, h, c = infer(layer, problem, num_threads=1)
    for n in (0, 5, sizes[1] - 1):
        row = infer(layer, problem, rows=slice(n, n + 1))
        for got, whole in zip(row, (y[:, n : n + 1], h[n : n + 1], c[n : n + 1]), strict=True):
            assert_same_bits(got, whole)
    for got, whole in zip(infer(layer, problem, num_threads=3), (y, h, c), strict=True):
        assert_same_bits(got, whole)
    states, pieces = problem.states, []
    for steps in (slice(0, 1), slice(1, 4), slice(4, None)):
        piece, *states = infer(layer, problem, steps=steps, states=states)
        pieces.append(piece)
    for got, whole in zip((np.concatenate(pieces), *states), (y, h, c), strict=True):
        assert_same_bits(got, whole)
    out = run_forward(problem, layer)
    assert_same_bits(out.y, y)
    frozen, _ = layer.freeze()(problem.x, layer_state(case, problem.states))
    assert_same_bits(frozen, y)


@pytest.mark.parametrize("arguments", [{}, {"clip": rk.Clip(value=0.8, norm=2.0)}], ids=str)
def test_bits_of_gradients_for_any_number_of_threads(case, dtype, arguments):
    problem = draw(case, 40, 21, 3, 67, dtype=dtype)
    layer = make_layer(problem)
    one, _ = layer_outputs(problem, layer, num_threads=1, **arguments)
    for num_threads in (2, 5):
        many, _ = layer_outputs(problem, layer, num_threads=num_threads, **arguments)
        assert_same_outputs(many, one)


def test_backward_twice_gives_the_same(case, dtype):
    problem = draw(case, T=5, N=3, I=4, H=9, dtype=dtype)
    layer = make_layer(problem)
    out = run_forward(problem, layer)
    first, second = run_backward(problem, layer, out), run_backward(problem, layer, out)
    for name, gradient in first.parameters.items():
        assert_same_bits(gradient, second.parameters[name], name)


def test_trace(case, dtype):
    """The gates as they were, o's peephole and the clip included, and f of coupled gates."""
    problem = draw(case, T=4, N=3, I=5, H=21, dtype=dtype)
    layer = make_layer(problem)
    state = layer_state(case, problem.states)
    (trace,) = layer.forward(problem.x, state, trace=True).trace
    exact = problem.astype(np.float64)
    _, _, tape = case.forward(exact.weights, exact.x, exact.states)
    tolerances.assert_output_close(trace.c, tape["c"][1:], "c", problem)
    for k, name in enumerate("ifgo"):
        gate = np.stack([step[k] for step in tape["gates"]])
        tolerances.assert_output_close(trace[name], gate, name, problem)
    assert_same_bits(trace.h, layer(problem.x, state)[0])


# Parameters and arguments.


def test_names_and_shapes(case, dtype):
    layer = rk.LSTM(3, 5, 2, bidirectional=True, dtype=dtype, **case.options)
    for k in range(2):
        for suffix in (f"_l{k}", f"_l{k}_reverse"):
            assert layer.parameters[f"weight_ih{suffix}"].shape == (20, 3 if k == 0 else 10)
            assert layer.parameters[f"weight_hh{suffix}"].shape == (20, 5)
            if case.options.get("peephole"):
                assert layer.parameters[f"weight_ch{suffix}"].shape == (15,)
    count = 5 if case.options.get("peephole") else 4
    assert len(layer.parameters) == 4 * count
    for values in layer.parameters.values():
        assert 0 < np.abs(values).max() <= 5**-0.5


def test_options_are_attributes_and_in_the_repr(case):
    layer = rk.LSTM(3, 5, **case.options)
    for name in ("peephole", "cell_clip", "coupled"):
        value = case.options.get(name, rk.LSTM(3, 5).options[name])
        assert getattr(layer, name) == layer.options[name] == value
        assert (f"{name}={value!r}" in repr(layer)) == (name in case.options)


@pytest.mark.parametrize("value", [0, 0.0, -1.0, math.nan, math.inf, -math.inf], ids=str)
def test_cell_clip_is_positive_and_finite(value):
    with pytest.raises(ValueError, match=r"\bcell_clip\b"):
        rk.LSTM(3, 5, cell_clip=value)


@pytest.mark.parametrize("value", ["1", [1.0], True, 1j], ids=repr)
def test_cell_clip_is_a_number(value):
    with pytest.raises(TypeError, match=r"\bcell_clip\b"):
        rk.LSTM(3, 5, cell_clip=value)


@pytest.mark.parametrize("name", ["peephole", "coupled"])
@pytest.mark.parametrize("value", [0, 1, None, "yes", 1.0], ids=repr)
def test_flags_are_bools(name, value):
    with pytest.raises(TypeError, match=rf"\b{name}\b"):
        rk.LSTM(3, 5, **{name: value})


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda p: p[:-1], ValueError),
        (lambda p: p.reshape(3, -1), ValueError),
        (lambda p: p.astype(np.float16), TypeError),
    ],
)
def test_peepholes_are_checked_at_the_call(dtype, spoil, error):
    layer = rk.LSTM(3, 5, dtype=dtype, peephole=True)
    layer.parameters["weight_ch_l0"] = spoil(layer.parameters["weight_ch_l0"])
    with pytest.raises(error, match="weight_ch_l0"):
        layer(np.ones((2, 3, 3), dtype))
    del layer.parameters["weight_ch_l0"]
    with pytest.raises(ValueError, match="weight_ch_l0"):
        layer(np.ones((2, 3, 3), dtype))


def test_peepholes_of_any_strides(dtype):
    problem = draw(lstm_case(peephole=True), T=4, N=3, I=5, H=9, dtype=dtype)
    layer = make_layer(problem)
    expected, _ = layer_outputs(problem, layer)
    wide = np.zeros((27, 2), dtype)
    wide[:, 1] = layer.parameters["weight_ch_l0"]
    layer.parameters["weight_ch_l0"] = wide[:, 1]
    actual, _ = layer_outputs(problem, layer)
    assert_same_outputs(actual, expected)


# forget_bias: an initial value, and nothing else.


@pytest.mark.parametrize("stack", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_forget_bias_is_where_the_biases_of_f_start(dtype, stack):
    plain = rk.LSTM(3, 5, dtype=dtype, rng=1, **stack)
    layer = rk.LSTM(3, 5, dtype=dtype, rng=1, forget_bias=1.5, **stack)
    assert layer.parameters.keys() == plain.parameters.keys()
    for name, values in layer.parameters.items():
        if name.startswith("bias"):
            expected = 1.5 if name.startswith("bias_ih") else 0
            np.testing.assert_array_equal(values[5:10], np.full(5, expected, dtype), name)
            values = np.delete(values, np.s_[5:10])
            assert_same_bits(values, np.delete(plain.parameters[name], np.s_[5:10]), name)
        else:
            assert_same_bits(values, plain.parameters[name], name)


def test_a_forget_bias_of_zero_changes_nothing(dtype):
    plain, zero = (
        rk.LSTM(3, 5, dtype=dtype, rng=1),
        rk.LSTM(3, 5, dtype=dtype, rng=1, forget_bias=0),
    )
    for name, values in plain.parameters.items():
        assert_same_bits(zero.parameters[name], values, name)


def test_forget_bias_acts_as_its_parameters_and_no_more(dtype):
    layer = rk.LSTM(3, 5, dtype=dtype, rng=1, forget_bias=1.0)
    plain = rk.LSTM(3, 5, dtype=dtype)
    plain.load_state_dict(layer.state_dict())
    x = np.random.default_rng(0).standard_normal((4, 2, 3)).astype(dtype)
    assert_same_bits(layer(x)[0], plain(x)[0])


def test_forget_bias_is_an_option_of_the_layer():
    layer = rk.LSTM(3, 5, forget_bias=np.float32(1))
    assert layer.forget_bias == layer.options["forget_bias"] == 1.0
    assert "forget_bias=1.0" in repr(layer)
    assert "forget_bias" not in repr(rk.LSTM(3, 5))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400], ids=str)
def test_forget_bias_is_finite(value):
    with pytest.raises(ValueError, match=r"\bforget_bias\b"):
        rk.LSTM(3, 5, forget_bias=value)


@pytest.mark.parametrize("value", ["1", None, [1.0], True, 1j], ids=repr)
def test_forget_bias_is_a_number(value):
    with pytest.raises(TypeError, match=r"\bforget_bias\b"):
        rk.LSTM(3, 5, forget_bias=value)


def test_forget_bias_of_coupled_gates():
    """f = 1 - s(a_i) = s(-a_i)."""
    layer = rk.LSTM(3, 5, rng=1, forget_bias=1.5, coupled=True)
    plain = rk.LSTM(3, 5, rng=1)
    np.testing.assert_array_equal(layer.parameters["bias_ih_l0"][:5], np.full(5, -1.5))
    np.testing.assert_array_equal(layer.parameters["bias_hh_l0"][:5], np.zeros(5))
    assert_same_bits(layer.parameters["bias_ih_l0"][5:], plain.parameters["bias_ih_l0"][5:])


def test_forget_bias_wants_biases():
    rk.LSTM(3, 5, bias=False, forget_bias=0.0)
    with pytest.raises(ValueError, match=r"\bforget_bias\b"):
        rk.LSTM(3, 5, bias=False, forget_bias=1.0)

"""The LSTM's options: peepholes, a clipped cell, coupled gates, projection; forget_bias."""

import math
from dataclasses import replace

import numpy as np
import pytest

import rnnkernel as rk
import tolerances
from drawn import draw, draw_smooth, reference_outputs
from helpers import (
    assert_same_bits,
    assert_same_outputs,
    check_central_differences,
    check_values,
    layer_outputs,
    layer_state,
    make_layer,
    plain_states,
    run_backward,
    run_forward,
)
from reference import LSTM_VARIANTS, lstm_case
from rnnkernel import numpy_reference
from tolerances import assert_outputs_close

EVERYTHING = max(LSTM_VARIANTS.values(), key=lambda case: len(case.options))


@pytest.fixture(params=LSTM_VARIANTS.values(), ids=LSTM_VARIANTS.keys())
def case(request):
    return request.param


# Values.


def test_core(case, dtype):
    """As of the cells without options."""
    check_values(draw(case, T=5, N=3, I=7, H=11, dtype=dtype))
    check_values(draw(case, T=3, N=14, I=5, H=37, dtype=dtype, bias=False))
    check_values(draw(case, T=4, N=2, I=40, H=20, dtype=dtype, dy=False))
    check_values(draw(case, T=60, N=7, I=3, H=9, dtype=dtype, dstate=False))


@pytest.mark.parametrize("H", range(1, 41))
def test_every_hidden_and_projected_size(dtype, H):
    """Every remainder of the vector width, of H beside P and I of all residues too."""
    sizes = {"T": 3, "N": 4, "I": 7 * H % 40 + 1, "H": H}
    check_values(draw(lstm_case(peephole=True, cell_clip=0.3), **sizes, dtype=dtype))
    check_values(draw(lstm_case(coupled=True), **sizes, dtype=dtype))
    for P in {11 * H % 40 + 1, H // 2, H - 1, 1}:
        if 1 <= P < H:
            case = lstm_case(**EVERYTHING.options | {"proj_size": P})
            check_values(draw(case, **sizes, dtype=dtype))


@pytest.mark.parametrize("P", [1, 2, 15, 16, 17, 33, 63, 64, 65, 127, 129])
def test_projected_sizes_of_many_blocks(dtype, P):
    check_values(draw(lstm_case(proj_size=P), T=3, N=9, I=5, H=130, dtype=dtype))
    check_values(draw(lstm_case(proj_size=P), T=40, N=9, I=5, H=P + 70, dtype=dtype))


@pytest.mark.parametrize("N", range(1, 14))
def test_every_remainder_of_rows(case, dtype, N):
    check_values(draw(case, T=3, N=N, I=6, H=19, dtype=dtype), num_threads=1 + N % 3)


LARGER = [(4, 6, 37, 100), (3, 17, 20, 130), (300, 3, 5, 13), (45, 33, 12, 16), (1, 1, 1, 4)]


@pytest.mark.parametrize("sizes", LARGER, ids=str)
def test_larger_sizes(case, dtype, sizes):
    check_values(draw(case, *sizes, dtype=dtype))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("sizes", [(4, 3, 4, 5), (3, 2, 3, 11)], ids=str)
def test_every_gradient_equals_central_differences(case, sizes, bias):
    check_central_differences(draw_smooth(case, *sizes, dtype=np.float64, seed=1, bias=bias))


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


def assert_near(actual, expected, dtype, terms, name):
    """Two layers of cells, each within the table's bound; float64 as in the table."""
    eps = tolerances.FLOAT32 * np.finfo(np.float32).eps * np.sqrt(terms)
    bound = 2 * eps if dtype == np.float32 else 10 * tolerances.FLOAT64
    error = np.abs(actual - expected).max(initial=0)
    assert actual.shape == expected.shape, name
    assert error <= bound * max(1.0, np.abs(expected).max(initial=0)), (name, error)


@pytest.mark.parametrize("ragged", [False, True], ids=["whole", "lengths_and_resets"])
def test_stacks_of_both_directions(case, dtype, ragged):
    """Two layers, both directions, clipped: y, states, flow and all gradients."""
    T, N, I, H = 9, 6, 5, 21  # noqa: E741
    layer = rk.LSTM(I, H, 2, bidirectional=True, dtype=dtype, rng=2, **case.options)
    rng = np.random.default_rng(4)
    P = layer.parameters["weight_hh_l0"].shape[1]
    x, dy = rng.standard_normal((T, N, I)), rng.standard_normal((T, N, 2 * P))
    states = [[rng.standard_normal((4, N, width)) for width in (P, H)] for _ in range(2)]
    how = {}
    if ragged:
        how = {"lengths": np.array([9, 0, 4, 7, 1, 9]), "reset": rng.random((T, N)) < 0.2}
    given = [a.astype(dtype) for a in (x, dy, *states[0], *states[1])]
    out = layer.forward(given[0], tuple(given[2:4]), training=True, **how)
    clip = rk.Clip(value=0.8, norm=3.0)
    grads = layer.backward(out, given[1], tuple(given[4:]), clip=clip, flow=True)

    twin = rk.LSTM(I, H, 2, bidirectional=True, dtype=np.float64, **case.options)
    twin.load_state_dict({n: w.astype(np.float64) for n, w in layer.parameters.items()})
    exact = [a.astype(np.float64) for a in given]
    y, final, tape = numpy_reference.forward(twin, exact[0], tuple(exact[2:4]), **how)
    expected = numpy_reference.backward(tape, exact[1], tuple(exact[4:]), clip=clip)
    terms = 5 * H + 2 * P
    assert_near(out.y, y, dtype, terms, "y")
    assert_near(grads.x, expected.x, dtype, terms, "dx")
    for k, name in enumerate("hc"):
        assert_near(out.state[k], final[k], dtype, terms, name)
        assert_near(grads.state[k], expected.state[k], dtype, terms, f"d{name}0")
    for name, gradient in expected.parameters.items():
        assert_near(grads.parameters[name], gradient, dtype, terms + T * N, name)
    np.testing.assert_array_equal(grads.flow.clipped, expected.clipped)
    assert_near(grads.flow.dh_norm, expected.dh_norm, dtype, terms, "dh_norm")
    assert_near(grads.flow.dc_norm, expected.dc_norm, dtype, terms, "dc_norm")


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
    """It acts on what a step computes: f and the peepholes see c0 as it came."""
    case = lstm_case(cell_clip=0.5, peephole=True)
    problem = draw(case, T=0, N=3, I=4, H=5, dtype=dtype)
    outputs, _ = layer_outputs(problem)
    assert np.abs(outputs["c"]).max() > 0.5
    check_values(draw(case, T=1, N=3, I=4, H=5, dtype=dtype))


def test_no_steps_or_no_rows(case, dtype):
    """The states pass through, as wide as they are, and so do their gradients."""
    for T, N in ((0, 3), (3, 0), (0, 0)):
        problem = draw(case, T, N, I=4, H=5, dtype=dtype)
        outputs, _ = layer_outputs(problem)
        assert outputs["y"].shape == (T, N, case.widths(5)[0])
        for name, s, ds in zip("hc", problem.states, problem.dstates, strict=True):
            assert_same_bits(outputs[name], s)
            assert_same_bits(outputs[f"d{name}0"], ds)
        for name, w in problem.weights.items():
            assert_same_bits(outputs[f"d_{name}"], np.zeros_like(w))


def test_projection_by_a_permuted_identity_is_a_choice_of_units(dtype):
    """W_hr of rows of the identity: y is some units of o * tanh(c), as without projection where
    these alone are seen by the next step."""
    H, units = 9, [7, 0, 4]
    projected = draw(lstm_case(proj_size=3), T=5, N=4, I=6, H=H, dtype=dtype)
    projected.weights["weight_hr"][...] = np.eye(H, dtype=dtype)[units]
    plain = draw(lstm_case(), T=5, N=4, I=6, H=H, dtype=dtype)
    for name in ("weight_ih", "bias_ih", "bias_hh"):
        plain.weights[name][...] = projected.weights[name]
    plain.weights["weight_hh"][...] = 0
    plain.weights["weight_hh"][:, units] = projected.weights["weight_hh"]
    plain.states[0][:, units] = projected.states[0]
    plain = replace(plain, x=projected.x, states=(plain.states[0], projected.states[1]))
    narrow, _ = layer_outputs(projected)
    wide, _ = layer_outputs(plain)
    rtol = 1e-12 if dtype == np.float64 else 1e-5
    np.testing.assert_allclose(narrow["y"], wide["y"][:, :, units], rtol=rtol, atol=rtol)
    np.testing.assert_allclose(narrow["c"], wide["c"], rtol=rtol, atol=rtol)


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


@pytest.mark.parametrize("N", [1, 5])
def test_a_stream_has_the_bits_of_the_whole(case, dtype, N):
    layer = rk.LSTM(4, 21, 2, dtype=dtype, rng=1, **case.options)
    rng = np.random.default_rng(0)
    P = case.widths(21)[0]
    x = rng.standard_normal((6, N, 4)).astype(dtype)
    state = tuple(rng.standard_normal((2, N, width)).astype(dtype) for width in (P, 21))
    y, final = layer(x, state)
    stream = layer.stream(batch_size=N)
    stream.state = state
    for t in range(6):
        assert_same_bits(stream.step(x[t]), y[t])
    for got, expected in zip(stream.state, final, strict=True):
        assert_same_bits(got, expected)
    stream.reset()
    again, _ = layer(x)
    assert_same_bits(stream.step(x[0]), again[0])


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


@pytest.mark.parametrize("ragged", [False, True], ids=["whole", "lengths_and_resets"])
def test_checkpoints_change_no_bit(case, dtype, ragged):
    T, N, H = 11, 5, 21
    layer = rk.LSTM(4, H, 2, dtype=dtype, rng=1, **case.options)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((T, N, 4)).astype(dtype)
    dy = rng.standard_normal((T, N, case.widths(H)[0])).astype(dtype)
    how = {}
    if ragged:
        how = {"lengths": np.array([11, 0, 4, 7, 1]), "reset": rng.random((T, N)) < 0.2}
    out = layer.forward(x, training=True, **how)
    expected = layer.backward(out, dy)
    again = layer.forward(x, training=True, checkpoint_every=3, **how)
    actual = layer.backward(again, dy)
    assert_same_bits(again.y, out.y)
    assert_same_bits(actual.x, expected.x)
    for name, gradient in expected.parameters.items():
        assert_same_bits(actual.parameters[name], gradient, name)


@pytest.mark.parametrize("clip", [None, rk.Clip(value=0.5, norm=1.0)], ids=["free", "clipped"])
def test_gradcheck(case, clip):
    layer = rk.LSTM(3, 5, rng=1, **case.options)
    report = rk.gradcheck(layer, clip=clip, rng=3)
    assert set(report.errors) == {"x", "h", "c", *layer.parameters}


# Parameters and arguments.


def test_saved_and_loaded(case, dtype, tmp_path):
    layer = rk.LSTM(3, 5, 2, bidirectional=True, dtype=dtype, rng=1, **case.options)
    rk.save(layer, tmp_path / "layer.safetensors")
    loaded = rk.load(tmp_path / "layer.safetensors")
    assert loaded.options == layer.options
    x = np.ones((3, 2, 3), dtype)
    assert_same_bits(loaded(x)[0], layer(x)[0])


def test_names_and_shapes(case, dtype):
    layer = rk.LSTM(3, 5, 2, bidirectional=True, dtype=dtype, **case.options)
    P = case.options.get("proj_size", 5)
    expected = {}
    for k in range(2):
        for suffix in (f"_l{k}", f"_l{k}_reverse"):
            expected[f"weight_ih{suffix}"] = (20, 3 if k == 0 else 2 * P)
            expected[f"weight_hh{suffix}"] = (20, P)
            expected |= {f"bias_ih{suffix}": (20,), f"bias_hh{suffix}": (20,)}
            if "proj_size" in case.options:
                expected[f"weight_hr{suffix}"] = (P, 5)
            if "peephole" in case.options:
                expected[f"weight_ch{suffix}"] = (15,)
    assert {name: values.shape for name, values in layer.parameters.items()} == expected
    assert list(layer.state_dict()) == list(expected)  # PyTorch's order
    for values in layer.parameters.values():
        assert 0 < np.abs(values).max() <= 5**-0.5


def test_options_are_attributes_and_in_the_repr(case):
    layer = rk.LSTM(3, 5, **case.options)
    for name in ("peephole", "cell_clip", "coupled", "proj_size"):
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


@pytest.mark.parametrize("value", [5, 6, -1, 2**70])
def test_proj_size_is_smaller_than_hidden_size(value):
    with pytest.raises(ValueError, match=r"\bproj_size\b"):
        rk.LSTM(3, 5, proj_size=value)


@pytest.mark.parametrize("value", ["1", 2.0, None, True], ids=repr)
def test_proj_size_is_an_integer(value):
    with pytest.raises(TypeError, match=r"\bproj_size\b"):
        rk.LSTM(3, 5, proj_size=value)


def test_states_of_another_width_are_errors(dtype):
    """h is (L*D, N, P), c (L*D, N, H); y, dy and out= are as wide as h."""
    layer = rk.LSTM(3, 5, proj_size=2, dtype=dtype)
    x = np.ones((4, 3, 3), dtype)
    h, c = np.zeros((1, 3, 2), dtype), np.zeros((1, 3, 5), dtype)
    out = layer.forward(x, (h, c), training=True)
    assert out.y.shape == (4, 3, 2)
    with pytest.raises(ValueError, match=r"state \(h\).*P=2.*\(1, 3, 5\)"):
        layer(x, (c, c))
    with pytest.raises(ValueError, match=r"state \(c\).*H=5.*\(1, 3, 2\)"):
        layer(x, (h, h))
    with pytest.raises(ValueError, match=r"dstate \(h\)"):
        layer.backward(out, dstate=(c, c))
    with pytest.raises(ValueError, match=r"\bdy\b.*D\*P=2"):
        layer.backward(out, np.ones((4, 3, 5), dtype))
    with pytest.raises(ValueError, match=r"\bout\b.*D\*P=2"):
        layer.forward(x, out=np.ones((4, 3, 5), dtype))


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


def test_parameters_of_any_strides(dtype):
    problem = draw(lstm_case(peephole=True, proj_size=4), T=4, N=3, I=5, H=9, dtype=dtype)
    layer = make_layer(problem)
    expected, _ = layer_outputs(problem, layer)
    wide = np.zeros((27, 2), dtype)
    wide[:, 1] = layer.parameters["weight_ch_l0"]
    layer.parameters["weight_ch_l0"] = wide[:, 1]
    layer.parameters["weight_hr_l0"] = np.asfortranarray(layer.parameters["weight_hr_l0"])
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

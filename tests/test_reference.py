"""The references themselves: held to finite differences, to steps by hand and to naive clipping."""

import math
from dataclasses import replace

import numpy as np
import pytest

import tolerances
from drawn import central_differences, draw, draw_smooth, loss, reference_outputs
from reference import CASES, LSTM_VARIANTS, lstm_case
from reference.common import clip, sigmoid


@pytest.fixture(params=[*CASES.values(), *LSTM_VARIANTS.values()], ids=lambda case: case.name)
def case(request):
    return request.param


GRADIENTS_WANTED = [  # which of the two sources of gradient are present
    pytest.param({}, id="dy_and_dstate"),
    pytest.param({"dy": False}, id="dstate_only"),
    pytest.param({"dstate": False}, id="dy_only"),
]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("wanted", GRADIENTS_WANTED)
def test_every_gradient_equals_central_differences(case, wanted, bias):
    problem = draw_smooth(case, 4, 3, 4, 5, seed=1, bias=bias, **wanted)
    outputs, _ = reference_outputs(problem)

    def function():
        y, state, _ = case.forward(problem.weights, problem.x, case.pack(problem.states))
        return loss(problem, y, case.unpack(state))

    for name, array in problem.arrays().items():
        expected = central_differences(function, array)
        tolerances.assert_close_to_differences(outputs[name], expected, name)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.longdouble])
def test_the_dtype_is_kept(case, dtype):
    problem = draw(case, T=3, N=2, I=4, H=5, dtype=dtype)
    outputs, grads = reference_outputs(problem, clip_value=0.5, clip_norm=0.7)
    assert {name: array.dtype for name, array in outputs.items()} == dict.fromkeys(outputs, dtype)
    assert grads.dh_norm.dtype == dtype


def test_the_dtypes_agree(case):
    problem = draw(case, T=5, N=3, I=4, H=7, dtype=np.float32)
    narrow, _ = reference_outputs(problem)
    wide, _ = reference_outputs(problem.astype(np.float64))
    for name in wide:
        np.testing.assert_allclose(narrow[name], wide[name], rtol=0, atol=1e-5, err_msg=name)


def test_inputs_are_not_written(case):
    problem = draw(case, T=3, N=2, I=4, H=5)
    before = problem.astype(problem.dtype)  # astype copies
    reference_outputs(problem, clip_value=0.1, clip_norm=0.1)
    for name, array in problem.arrays().items():
        np.testing.assert_array_equal(array, before.arrays()[name], err_msg=name)
    np.testing.assert_array_equal(problem.dy, before.dy)
    for after, was in zip(problem.dstates, before.dstates, strict=True):
        np.testing.assert_array_equal(after, was)


# One unit, one step, with math's scalars: the equations once more, by another way.


def s(a):
    return 1 / (1 + math.exp(-a))


def one_unit(case, wi, wh, bi, bh, x, *states):
    """Forward of one step of one unit, from lists with one number per gate."""
    weights = {
        "weight_ih": np.array(wi)[:, None],
        "weight_hh": np.array(wh)[:, None],
        "bias_ih": np.array(bi),
        "bias_hh": np.array(bh),
    }
    states = case.pack([np.array([[value]]) for value in states])
    y, state, _ = case.forward(weights, np.array([[[x]]]), states)
    return y.item(), *(array.item() for array in case.unpack(state))


def test_rnn_step_by_hand():
    a = 0.3 * 2 + 0.1 - 0.5 * 0.4 + 0.2
    y, h = one_unit(CASES["rnn_tanh"], [0.3], [-0.5], [0.1], [0.2], 2.0, 0.4)
    assert y == h == pytest.approx(math.tanh(a), rel=1e-15)
    assert one_unit(CASES["rnn_relu"], [0.3], [-0.5], [0.1], [0.2], 2.0, 0.4)[0] == pytest.approx(a)
    assert one_unit(CASES["rnn_relu"], [0.3], [-0.5], [0.1], [0.2], -2.0, 0.4)[0] == 0


def test_gru_step_by_hand():
    wi, wh, bi, bh = [0.5, -0.3, 0.8], [0.2, 0.7, -0.6], [0.1, -0.2, 0.3], [0.4, 0.05, -0.15]
    x, h = 1.5, -0.7
    r = s(wi[0] * x + bi[0] + wh[0] * h + bh[0])
    z = s(wi[1] * x + bi[1] + wh[1] * h + bh[1])
    after = math.tanh(wi[2] * x + bi[2] + r * (wh[2] * h + bh[2]))
    before = math.tanh(wi[2] * x + bi[2] + wh[2] * (r * h) + bh[2])
    for name, n in (("gru_reset_after", after), ("gru_reset_before", before)):
        y, state = one_unit(CASES[name], wi, wh, bi, bh, x, h)
        assert y == state == pytest.approx((1 - z) * n + z * h, rel=1e-14)


def test_lstm_step_by_hand():
    wi, wh = [0.5, -0.3, 0.8, 0.9], [0.2, 0.7, -0.6, 0.35]
    bi, bh = [0.1, -0.2, 0.3, 0.0], [0.4, 0.05, -0.15, 0.6]
    x, h, c = 1.5, -0.7, 1.2
    a = [wi[k] * x + bi[k] + wh[k] * h + bh[k] for k in range(4)]
    c_new = s(a[1]) * c + s(a[0]) * math.tanh(a[2])
    y, h_new, c_out = one_unit(CASES["lstm"], wi, wh, bi, bh, x, h, c)
    assert c_out == pytest.approx(c_new, rel=1e-14)
    assert y == h_new == pytest.approx(s(a[3]) * math.tanh(c_new), rel=1e-14)


def test_lstm_step_with_options_by_hand():
    wi, wh = [0.5, -0.3, 0.8, 0.9], [0.2, 0.7, -0.6, 0.35]
    bi, bh = [0.1, -0.2, 0.3, 0.0], [0.4, 0.05, -0.15, 0.6]
    x, h, c, ch = 1.5, -0.7, 1.2, [0.25, -0.4, 0.7]
    a = [wi[k] * x + bi[k] + wh[k] * h + bh[k] for k in range(4)]
    weights = {
        "weight_ih": np.array(wi)[:, None],
        "weight_hh": np.array(wh)[:, None],
        "bias_ih": np.array(bi),
        "bias_hh": np.array(bh),
        "weight_ch": np.array(ch),
    }

    def step(**options):
        case = lstm_case(**options)
        state = (np.array([[h]]), np.array([[c]]))
        y, (h_n, c_n), _ = case.forward(weights, np.array([[[x]]]), state)
        assert y.item() == h_n.item()
        return h_n.item(), c_n.item()

    i = s(a[0])
    coupled = (1 - i) * c + i * math.tanh(a[2])
    assert step(coupled=True) == pytest.approx((s(a[3]) * math.tanh(coupled), coupled), rel=1e-14)

    plain = s(a[1]) * c + i * math.tanh(a[2])
    assert plain > 0.3
    assert step(cell_clip=0.3) == pytest.approx((s(a[3]) * math.tanh(0.3), 0.3), rel=1e-14)
    assert step(cell_clip=3) == step()

    seen = s(a[1] + ch[1] * c) * c + s(a[0] + ch[0] * c) * math.tanh(a[2])
    o = s(a[3] + ch[2] * seen)
    assert step(peephole=True) == pytest.approx((o * math.tanh(seen), seen), rel=1e-14)
    assert seen > 0.3
    o = s(a[3] + ch[2] * 0.3)  # the output gate sees the cell as clipped
    both = step(peephole=True, cell_clip=0.3)
    assert both == pytest.approx((o * math.tanh(0.3), 0.3), rel=1e-14)


def test_lstm_projection_by_hand():
    """From three units without recurrence to two outputs, and these back in the next step."""
    case = lstm_case(proj_size=2)
    problem = draw(case, T=2, N=1, I=1, H=3)
    w, x = problem.weights, problem.x[:, 0, 0].tolist()
    h, c = problem.states[0][0].tolist(), problem.states[1][0].tolist()
    y, _, _ = case.forward(w, problem.x, problem.states)
    for t in range(2):
        m = []
        for unit in range(3):
            a = []
            for row in range(unit, 12, 3):
                terms = [w["weight_ih"][row, 0] * x[t], w["bias_ih"][row], w["bias_hh"][row]]
                a.append(math.fsum([*terms, *(w["weight_hh"][row, p] * h[p] for p in range(2))]))
            c[unit] = s(a[1]) * c[unit] + s(a[0]) * math.tanh(a[2])
            m.append(s(a[3]) * math.tanh(c[unit]))
        h = [math.fsum(w["weight_hr"][p, unit] * m[unit] for unit in range(3)) for p in range(2)]
        np.testing.assert_allclose(y[t, 0], h, rtol=1e-13)


def test_coupled_lstm_leaves_the_rows_of_f_alone():
    case = lstm_case(coupled=True, peephole=True)
    problem = draw(case, T=3, N=2, I=4, H=5)
    outputs, _ = reference_outputs(problem)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_ch"):
        assert not outputs[f"d_{name}"][5:10].any(), name
        problem.weights[name][5:10] = np.nan
    assert np.isfinite(case.forward(problem.weights, problem.x, problem.states)[0]).all()


def test_a_clipped_cell_passes_no_gradient():
    case = lstm_case(cell_clip=1e-9)
    problem = draw(case, T=1, N=3, I=4, H=5)
    outputs, _ = reference_outputs(problem)
    assert not outputs["dc0"].any()
    assert not outputs["d_bias_ih"][:15].any()
    assert outputs["d_bias_ih"][15:].all()
    free, _ = reference_outputs(replace(problem, case=lstm_case()))
    assert free["dc0"].all()


def test_nan_passes_the_clip_of_the_cell():
    case = lstm_case(cell_clip=0.6)
    problem = draw(case, T=2, N=3, I=4, H=5)
    problem.states[1][1] = np.nan
    outputs, _ = reference_outputs(problem)
    assert np.isnan(outputs["c"][1]).all()
    assert np.isnan(outputs["dc0"][1]).all()
    assert np.isfinite(outputs["c"][[0, 2]]).all()


def test_relu_has_no_slope_at_zero():
    case = CASES["rnn_relu"]
    problem = draw(case, T=2, N=2, I=3, H=4)
    problem = replace(problem, weights={n: np.zeros_like(w) for n, w in problem.weights.items()})
    outputs, _ = reference_outputs(problem)
    assert not outputs["d_bias_ih"].any()


def test_sigmoid_holds_in_the_tails():
    a = np.array([-700.0, -40.0, -1.0, 0.0, 1.0, 40.0, 700.0])
    expected = [math.exp(-700), math.exp(-40), s(-1), 0.5, s(1), 1.0, 1.0]
    np.testing.assert_allclose(sigmoid(a), expected, rtol=1e-15)
    np.testing.assert_array_equal(sigmoid(np.array([-np.inf, np.inf, np.nan])), [0, 1, np.nan])


# Clipping.


def clip_in_plain_python(gradient, value, norm):
    rows, changed = [], []
    for row in gradient.tolist():
        new = list(row)
        if value is not None:
            new = [max(-value, min(value, g)) for g in new]
        length = math.sqrt(math.fsum(g * g for g in new))
        if norm is not None and length > norm:
            new = [g * norm / length for g in new]
        rows.append(new)
        changed.append(new != row)
    return np.array(rows), np.array(changed)


CLIPS = [
    pytest.param(0.3, None, id="value"),
    pytest.param(None, 1.5, id="norm"),
    pytest.param(0.6, 1.5, id="both"),
    pytest.param(1e3, 1e3, id="neither_acts"),
]


@pytest.mark.parametrize(("value", "norm"), CLIPS)
def test_clip_equals_plain_python(value, norm):
    gradient = np.random.default_rng(0).standard_normal((20, 5)) * np.linspace(0, 2, 20)[:, None]
    limited, changed = clip(gradient, value, norm)
    expected, expected_changed = clip_in_plain_python(gradient, value, norm)
    np.testing.assert_allclose(limited, expected, rtol=1e-14, atol=0)
    np.testing.assert_array_equal(changed, expected_changed)
    if value != 1e3:
        assert 0 < changed.sum() < len(changed)  # the case tells rows apart


@pytest.mark.parametrize(("value", "norm"), CLIPS)
def test_clipped_bptt_is_a_chain_of_clipped_single_steps(case, value, norm):
    """Clip what arrives, take one unclipped step back, add dy, and so on to the first step."""
    problem = draw(case, T=6, N=7, I=4, H=5, seed=2)
    T = 6
    outputs, grads = reference_outputs(problem, clip_value=value, clip_norm=norm)

    states, tapes = problem.states, []
    for t in range(T):
        x_t = problem.x[t : t + 1]
        _, state, tape = case.forward(problem.weights, x_t, case.pack(states))
        states = case.unpack(state)
        tapes.append(tape)

    arrived = list(problem.dstates)
    total = {name: 0 for name in problem.weights}
    for t in reversed(range(T)):
        arrived[0] = arrived[0] + problem.dy[t]
        norms = [math.sqrt(math.fsum(g * g for g in d.flat)) for d in arrived]
        assert grads.dh_norm[t] == pytest.approx(norms[0], rel=1e-12)
        if len(arrived) > 1:
            assert grads.dc_norm[t] == pytest.approx(norms[1], rel=1e-12)
        limited, changed = zip(
            *(clip_in_plain_python(d, value, norm) for d in arrived), strict=True
        )
        assert grads.clipped[t] == np.any(changed, axis=0).sum()
        step = case.backward(problem.weights, tapes[t], None, case.pack(limited))
        np.testing.assert_allclose(outputs["dx"][t], step.x[0], rtol=1e-10, atol=1e-13)
        total = {name: total[name] + step.parameters[name] for name in total}
        arrived = list(case.unpack(step.state))

    if len(arrived) == 1:
        assert grads.dc_norm is None
    for name, array in zip(case.states, arrived, strict=True):
        np.testing.assert_allclose(outputs[f"d{name}0"], array, rtol=1e-10, atol=1e-13)
    for name, array in total.items():
        np.testing.assert_allclose(outputs[f"d_{name}"], array, rtol=1e-10, atol=1e-12)

"""Clipping inside BPTT, the record of the gradient's flow, and clipping of parameter gradients."""

import math

import numpy as np
import pytest

import rnnkernel as rk
from drawn import draw, reference_outputs
from helpers import (
    assert_same_bits,
    assert_same_outputs,
    layer_outputs,
    make_layer,
    run_backward,
    run_forward,
    unchanged,
)
from tolerances import FLOAT32, FLOAT64, assert_outputs_close

CLIPS = [
    pytest.param({"value": 0.4}, id="value"),
    pytest.param({"norm": 2.0}, id="norm"),
    pytest.param({"value": 0.9, "norm": 2.0}, id="both"),
]
SIZES = [(6, 7, 4, 5), (3, 13, 6, 21), (70, 5, 3, 40)]


def assert_norms_close(actual, expected, dtype):
    """Norms of whole batches have no cancellation: relative bounds."""
    rtol = FLOAT64 if dtype == np.float64 else FLOAT32 * np.sqrt(200) * np.finfo(dtype).eps
    np.testing.assert_allclose(actual, expected, rtol=rtol)


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_clipped_bptt_equals_the_reference(case, dtype, sizes, clip):
    problem = draw(case, *sizes, dtype=dtype, seed=3)
    spread = np.geomspace(0.02, 2, sizes[1], dtype=dtype)[:, None]  # so that some rows are clipped
    for array in (problem.dy, *problem.dstates):
        array *= spread
    actual, grads = layer_outputs(problem, clip=rk.Clip(**clip), flow=True)
    limits = {f"clip_{kind}": limit for kind, limit in clip.items()}
    expected, flow = reference_outputs(problem.astype(np.float64), **limits)
    assert_outputs_close(actual, expected, problem)

    T, N, _, _ = problem.sizes
    assert 0 < flow.clipped.sum() < T * N  # the case tells rows apart
    assert grads.flow.clipped.shape == (1, T)
    assert np.issubdtype(grads.flow.clipped.dtype, np.integer)
    np.testing.assert_array_equal(grads.flow.clipped[0], flow.clipped)
    assert grads.flow.dh_norm.shape == (1, T)
    assert_norms_close(grads.flow.dh_norm[0], flow.dh_norm, dtype)
    if len(case.states) > 1:
        assert grads.flow.dc_norm.shape == (1, T)
        assert_norms_close(grads.flow.dc_norm[0], flow.dc_norm, dtype)
    else:
        assert getattr(grads.flow, "dc_norm", None) is None


@pytest.mark.parametrize("wanted", [{"dy": False}, {"dstate": False}], ids=["no_dy", "no_dstate"])
def test_clipping_with_one_source_of_gradient(case, dtype, wanted):
    problem = draw(case, T=5, N=6, I=4, H=9, dtype=dtype, **wanted)
    actual, grads = layer_outputs(problem, clip=rk.Clip(norm=0.7), flow=True)
    expected, flow = reference_outputs(problem.astype(np.float64), clip_norm=0.7)
    assert_outputs_close(actual, expected, problem)
    np.testing.assert_array_equal(grads.flow.clipped[0], flow.clipped)
    assert_norms_close(grads.flow.dh_norm[0], flow.dh_norm, dtype)


def test_flow_without_clipping(case, dtype):
    problem = draw(case, T=9, N=5, I=4, H=13, dtype=dtype)
    plain, without = layer_outputs(problem)
    actual, grads = layer_outputs(problem, flow=True)
    assert without.flow is None
    assert_same_outputs(actual, plain)
    _, flow = reference_outputs(problem.astype(np.float64))
    assert_norms_close(grads.flow.dh_norm[0], flow.dh_norm, dtype)
    assert not grads.flow.clipped.any()


def test_flow_at_the_last_step_is_what_came_in(dtype, case):
    problem = draw(case, T=4, N=5, I=4, H=13, dtype=dtype)
    _, grads = layer_outputs(problem, flow=True)
    arrived = problem.dy[-1].astype(np.float64) + problem.dstates[0]
    assert_norms_close(grads.flow.dh_norm[0, -1], np.linalg.norm(arrived), dtype)
    if len(case.states) > 1:
        norm = np.linalg.norm(problem.dstates[1].astype(np.float64))
        assert_norms_close(grads.flow.dc_norm[0, -1], norm, dtype)


@pytest.mark.parametrize(
    "clip", [{}, {"value": 1e6}, {"norm": 1e6}, {"value": 1e6, "norm": 1e6}], ids=str
)
def test_limits_that_nothing_reaches_change_no_bit(case, dtype, clip):
    problem = draw(case, T=9, N=5, I=4, H=13, dtype=dtype)
    plain, _ = layer_outputs(problem)
    actual, grads = layer_outputs(problem, clip=rk.Clip(**clip), flow=True)
    assert_same_outputs(actual, plain)
    assert not grads.flow.clipped.any()


@pytest.mark.parametrize("clip", [{"value": 0.1}, {"norm": 0.1}], ids=str)
def test_a_row_with_nan_has_no_norm(dtype, clip):
    """Not that of the infinity beside it, by which the others would be 0."""
    layer = rk.RNN(2, 3, rng=0, dtype=dtype)
    out = layer.forward(np.ones((1, 2, 2), dtype), np.ones((1, 2, 3), dtype), training=True)
    dy = np.ones((1, 2, 3), dtype)
    dy[0, 1] = [np.nan, np.inf, 0.5]
    with np.errstate(invalid="ignore"):
        grads = layer.backward(out, dy, clip=rk.Clip(**clip), flow=True)
    assert np.isnan(grads.flow.dh_norm).all()
    alone = layer.backward(
        layer.forward(np.ones((1, 1, 2), dtype), np.ones((1, 1, 3), dtype), training=True),
        dy[:, :1],
        clip=rk.Clip(**clip),
    )
    assert_same_bits(grads.x[0, 0], alone.x[0, 0])
    assert np.isnan(grads.x[0, 1]).all()


def test_clipping_leaves_the_callers_gradients_alone(case, dtype):
    problem = draw(case, T=5, N=4, I=3, H=9, dtype=dtype)
    layer = make_layer(problem)
    out = run_forward(problem, layer)
    with unchanged(problem.dy, *problem.dstates, out.y):
        run_backward(problem, layer, out, clip=rk.Clip(value=0.1, norm=0.1))


def test_initial_state_gradient_is_not_clipped(dtype):
    """relu as the identity with a recurrent weight of 10: the clipped 1 grows to 10 behind h_0."""
    rnn = rk.RNN(1, 1, nonlinearity="relu", bias=False, dtype=dtype)
    rnn.parameters["weight_ih_l0"][...] = 1
    rnn.parameters["weight_hh_l0"][...] = 10
    out = rnn.forward(np.ones((2, 1, 1), dtype), training=True)
    dstate = np.full((1, 1, 1), 5, dtype)
    grads = rnn.backward(out, dstate=dstate, clip=rk.Clip(value=1.0), flow=True)
    assert grads.state.item() == 10
    np.testing.assert_array_equal(grads.x.ravel(), [1, 1])
    np.testing.assert_array_equal(grads.flow.dh_norm, [[10, 5]])
    np.testing.assert_array_equal(grads.flow.clipped, [[1, 1]])


def test_clip_keeps_its_limits():
    assert (rk.Clip().value, rk.Clip().norm) == (None, None)
    clip = rk.Clip(value=0.5, norm=3)
    assert (clip.value, clip.norm) == (0.5, 3)
    assert rk.Clip(0.5, 3) == clip


@pytest.mark.parametrize("name", ["value", "norm"])
@pytest.mark.parametrize("limit", [math.nan, math.inf, -math.inf, -1.0, -1e-300])
def test_clip_rejects_values(name, limit):
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        rk.Clip(**{name: limit})


NO_NUMBERS = ["1", [1.0], 1j, True, b"1", bytearray(b"1"), memoryview(b"1"), np.array("1.5"),
              np.array(True), np.timedelta64(5)]  # fmt: skip


class Unwilling:
    """Has neither a number nor a text for who asks."""

    def __float__(self):
        raise KeyError("float")

    __index__ = __repr__ = __float__


@pytest.mark.parametrize("name", ["value", "norm"])
@pytest.mark.parametrize("limit", [*NO_NUMBERS, Unwilling()], ids=lambda one: type(one).__name__)
def test_clip_rejects_types(name, limit):
    with pytest.raises(TypeError, match=rf"\b{name}\b"):
        rk.Clip(**{name: limit})


@pytest.mark.parametrize("clip", [1.0, (None, 1.0), {"norm": 1.0}], ids=str)
def test_backward_wants_a_clip(case, clip):
    problem = draw(case, T=2, N=2, I=3, H=4)
    layer = make_layer(problem)
    out = run_forward(problem, layer)
    with pytest.raises(TypeError, match=r"\bclip\b"):
        run_backward(problem, layer, out, clip=clip)


# Clipping of parameter gradients, after backward.


@pytest.fixture
def gradients(dtype):
    rng = np.random.default_rng(0)
    shapes = {"weight_ih_l0": (20, 3), "weight_hh_l0": (20, 5), "bias_ih_l0": (20,)}
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def total_norm(gradients):
    return math.sqrt(math.fsum(float(g) ** 2 for array in gradients.values() for g in array.flat))


def test_clip_grad_norm_scales_in_place(gradients, dtype):
    before = {name: g.copy() for name, g in gradients.items()}
    arrays = dict(gradients)
    total = rk.clip_grad_norm(gradients, 2.5)
    assert isinstance(total, float)
    assert total == pytest.approx(total_norm(before), rel=4 * float(np.finfo(dtype).eps))
    for name, g in gradients.items():
        assert g is arrays[name]
        expected = before[name].astype(np.float64) * (2.5 / total)
        np.testing.assert_allclose(g, expected, rtol=2 * np.finfo(dtype).eps)
    assert total_norm(gradients) == pytest.approx(2.5, rel=4 * float(np.finfo(dtype).eps))


def test_clip_grad_norm_leaves_short_gradients_alone(gradients):
    length = total_norm(gradients)
    with unchanged(*gradients.values()):
        for max_norm in (length * 1.001, 1e9):
            assert rk.clip_grad_norm(gradients, max_norm) == pytest.approx(length, rel=1e-6)


def test_clip_grad_norm_sums_in_double():
    """The squares of these do not fit float32; their norm does."""
    gradients = {"w": np.full(16, 1e30, np.float32)}
    assert rk.clip_grad_norm(gradients, 1.0) == pytest.approx(4e30, rel=1e-6)
    np.testing.assert_allclose(gradients["w"], 0.25, rtol=1e-6)


def test_clip_grad_norm_of_zeros():
    gradients = {"w": np.zeros(3)}
    assert rk.clip_grad_norm(gradients, 1.0) == 0
    assert not gradients["w"].any()


@pytest.mark.parametrize("as_list", [False, True])
def test_an_array_that_is_given_twice_is_not_scaled_twice(as_list):
    w = np.full(3, 2.0)
    gradients = [{"a": w}, {"a": w}] if as_list else {"a": w, "b": w}
    for clip in (rk.clip_grad_norm, rk.clip_grad_value):
        with unchanged(w), pytest.raises(ValueError, match="every array once"):
            clip(gradients, 1.0)


def test_clip_grad_norm_that_no_number_can_hold():
    gradients = {"w": np.full(4, 1.7e308)}
    with unchanged(gradients["w"]):
        assert rk.clip_grad_norm(gradients, 1.0) == math.inf


@pytest.mark.parametrize("first", ["a", "b"])
def test_clip_grad_norm_of_nan(first):
    arrays = {"a": np.zeros(3, np.float32), "b": np.array([np.nan], np.float32)}
    assert math.isnan(rk.clip_grad_norm({name: arrays[name] for name in (first, *arrays)}, 1.0))


def test_clip_grad_norm_is_whole_where_errors_are_to_be_raised():
    gradients = {"a": np.full(4, 1e-30, np.float32), "b": np.full(4, 1e30, np.float32)}
    with np.errstate(all="raise"):
        assert rk.clip_grad_norm(gradients, 1e-10) == pytest.approx(2e30)
    np.testing.assert_allclose(gradients["b"], 0.5e-10, rtol=1e-4)  # the factor is denormal
    assert not gradients["a"].any()


@pytest.mark.parametrize("size", [5e-324, 1e-310, 1e-200, 1e200, 1.7e308])
def test_clip_grad_norm_of_any_size(size):
    gradients = {"a": np.array([size, 0.0]), "b": np.array([[size / 4]])}
    expected = size * math.sqrt(1 + (gradients["b"][0, 0] / size) ** 2)
    assert rk.clip_grad_norm(gradients, 1e-3) == pytest.approx(expected, rel=1e-12, abs=5e-324)
    after = math.hypot(*(float(g) for array in gradients.values() for g in array.flat))
    assert after == pytest.approx(min(expected, 1e-3), rel=1e-12, abs=5e-324)


def test_clip_grad_norm_of_two_dtypes():
    """The largest is no number of the other's dtype."""
    gradients = {"a": np.zeros(3, np.float32), "b": np.array([1e-60])}
    assert rk.clip_grad_norm(gradients, 1.0) == pytest.approx(1e-60)


def test_clip_grad_value_of_infinity_with_a_limit_past_the_dtype():
    gradients = {"a": np.array([np.inf, -np.inf, 5], np.float32)}
    rk.clip_grad_value(gradients, 1e300)
    most = np.finfo(np.float32).max
    np.testing.assert_array_equal(gradients["a"], [most, -most, 5])


def test_clip_grad_value_limits_in_place(gradients):
    before = {name: g.copy() for name, g in gradients.items()}
    arrays = dict(gradients)
    rk.clip_grad_value(gradients, 0.5)
    for name, g in gradients.items():
        assert g is arrays[name]
        np.testing.assert_array_equal(g, np.clip(before[name], -0.5, 0.5))
    assert (np.abs(before["weight_ih_l0"]) > 0.5).any()


def test_gradients_of_a_layer_can_be_clipped(case, dtype):
    problem = draw(case, T=4, N=3, I=5, H=6, dtype=dtype)
    _, grads = layer_outputs(problem)
    assert rk.clip_grad_norm(grads.parameters, 0.01) > 0.01
    assert total_norm(grads.parameters) == pytest.approx(0.01, rel=1e-5)
    rk.clip_grad_value(grads.parameters, 1e-4)
    assert max(np.abs(g).max() for g in grads.parameters.values()) == dtype(1e-4)


@pytest.mark.parametrize(
    ("function", "name"), [(rk.clip_grad_norm, "max_norm"), (rk.clip_grad_value, "limit")]
)
def test_bad_limits_of_parameter_gradients(gradients, function, name):
    with unchanged(*gradients.values()):
        for limit in (math.nan, -1.0, -math.inf):
            with pytest.raises(ValueError, match=rf"\b{name}\b"):
                function(gradients, limit)
        for limit in ("1", None, 1j):
            with pytest.raises(TypeError, match=rf"\b{name}\b"):
                function(gradients, limit)


@pytest.mark.parametrize("kind", [list, tuple])
def test_gradients_of_several_layers_have_one_norm(gradients, dtype, kind):
    """They may have the same names."""
    others = {name: 3 * g for name, g in gradients.items()}
    limit = 2.5
    together = {**gradients, **{f"other {name}": g for name, g in others.items()}}
    expected = {name: g.copy() for name, g in together.items()}
    norm = rk.clip_grad_norm(expected, limit)
    assert rk.clip_grad_norm(kind([gradients, others]), limit) == norm
    for name, g in together.items():
        assert_same_bits(g, expected[name], name)
    rk.clip_grad_value(expected, 0.01)
    rk.clip_grad_value(kind([gradients, others]), 0.01)
    for name, g in together.items():
        assert_same_bits(g, expected[name], name)
    assert rk.clip_grad_norm([], limit) == 0


@pytest.mark.filterwarnings("ignore:the matrix subclass")
@pytest.mark.parametrize("kind", [np.ma.masked_array, np.matrix])
def test_gradients_of_a_subclass_are_plain_numbers(kind):
    array = np.full((2, 2), 3.0)
    given = kind(array, copy=False)
    assert rk.clip_grad_norm({"w": given}, 1.0) == 6
    np.testing.assert_allclose(array, 0.5)
    rk.clip_grad_value({"w": given}, 0.25)
    np.testing.assert_array_equal(array, 0.25)


@pytest.mark.parametrize("function", [rk.clip_grad_norm, rk.clip_grad_value])
def test_bad_parameter_gradients(function):
    """Checked before anything is scaled, the first array too."""
    good = np.ones(3)
    read_only = np.ones(3)
    read_only.setflags(write=False)
    for bad in ([1.0, 2.0], np.ones(3, int), read_only):
        with unchanged(good), pytest.raises((TypeError, ValueError)):
            function({"good": good, "bad": bad}, 0.1)
        with (
            unchanged(good),
            pytest.raises((TypeError, ValueError), match=r"gradients\[1\]\['bad'\]"),
        ):
            function([{"good": good}, {"bad": bad}], 0.1)
    for bad in (good, [good], {"good": good}.values(), "good", None, memoryview(np.ones((2, 2)))):
        with unchanged(good), pytest.raises(TypeError, match="gradients: expected a mapping"):
            function(bad, 0.1)


def test_same_bits_from_a_clip_given_as_int_or_numpy_scalar(case):
    problem = draw(case, T=4, N=3, I=5, H=6)
    expected, _ = layer_outputs(problem, clip=rk.Clip(value=1.0, norm=2.0))
    actual, _ = layer_outputs(problem, clip=rk.Clip(value=1, norm=np.float32(2)))
    for name in expected:
        assert_same_bits(actual[name], expected[name], name)

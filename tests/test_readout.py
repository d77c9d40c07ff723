"""Linear and softmax_cross_entropy against definitions and central differences."""

import math

import numpy as np
import pytest

import rnnkernel as rk
from helpers import assert_same_bits
from rnnkernel import _teamwork


def central_differences(function, array, eps=1e-6):
    """d function() / d array, entry by entry; ``array`` is what ``function`` computes with."""
    gradient = np.empty_like(array)
    for index in np.ndindex(array.shape):
        value = array[index]
        array[index] = value + eps
        above = function()
        array[index] = value - eps
        below = function()
        array[index] = value
        gradient[index] = (above - below) / (2 * eps)
    return gradient


# --- Linear ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("leading", [(), (4,), (3, 2), (2, 1, 3), (0,), (3, 0)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_the_affine_map(dtype, leading, bias):
    layer = rk.Linear(5, 3, bias=bias, dtype=dtype, rng=1)
    x = np.random.default_rng(2).standard_normal((*leading, 5)).astype(dtype)
    y = layer(x)
    weight, b = layer.parameters["weight"], layer.parameters.get("bias", np.zeros(3))
    expected = np.einsum("oi,...i->...o", weight.astype(float), x.astype(float)) + b
    assert y.dtype == dtype
    assert y.shape == (*leading, 3)
    np.testing.assert_allclose(y, expected, rtol=0, atol=20 * np.finfo(dtype).eps)


@pytest.mark.parametrize("leading", [(), (4,), (3, 2)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_gradients_are_the_differences(leading, bias):
    layer = rk.Linear(5, 3, bias=bias, dtype=np.float64, rng=1)
    rng = np.random.default_rng(2)
    x, dy = rng.standard_normal((*leading, 5)), rng.standard_normal((*leading, 3))
    gradients = layer.backward(x, dy)

    def loss():
        return float((layer(x) * dy).sum())

    assert gradients.parameters.keys() == layer.parameters.keys()
    np.testing.assert_allclose(gradients.x, central_differences(loss, x), atol=1e-8)
    for name, array in layer.parameters.items():
        expected = central_differences(loss, array)
        np.testing.assert_allclose(gradients.parameters[name], expected, atol=1e-8, err_msg=name)


def test_linear_gradients_of_float32_are_those_of_float64():
    single, double = rk.Linear(40, 30, rng=1), rk.Linear(40, 30, dtype=np.float64)
    double.load_state_dict({k: v.astype(np.float64) for k, v in single.state_dict().items()})
    rng = np.random.default_rng(2)
    x = rng.standard_normal((6, 7, 40)).astype(np.float32)
    dy = rng.standard_normal((6, 7, 30)).astype(np.float32)
    got = single.backward(x, dy)
    expected = double.backward(x.astype(np.float64), dy.astype(np.float64))
    assert got.x.dtype == np.float32
    np.testing.assert_allclose(got.x, expected.x, atol=1e-5)
    for name, gradient in got.parameters.items():
        assert gradient.dtype == np.float32
        np.testing.assert_allclose(gradient, expected.parameters[name], atol=1e-4, err_msg=name)


def test_linear_takes_any_strides_and_writes_nothing_of_the_callers():
    layer = rk.Linear(5, 3, rng=1)
    x = np.random.default_rng(2).standard_normal((4, 2, 10)).astype(np.float32)
    strided = x[::-1, :, ::2]
    strided.flags.writeable = False
    kept = strided.copy()
    np.testing.assert_array_equal(layer(strided), layer(kept))
    layer.backward(strided, np.ones((4, 2, 3), np.float32))
    np.testing.assert_array_equal(strided, kept)


def test_linear_parameters_are_live_and_seeded():
    layer, same, other = (rk.Linear(5, 3, rng=seed) for seed in (1, 1, 2))
    for name in ("weight", "bias"):
        np.testing.assert_array_equal(layer.parameters[name], same.parameters[name])
        assert (layer.parameters[name] != other.parameters[name]).any()
        assert np.abs(layer.parameters[name]).max() <= 1 / math.sqrt(5)
    layer.parameters["weight"][...] = 0
    layer.parameters["bias"][...] = [1, 2, 3]
    np.testing.assert_array_equal(layer(np.ones(5, np.float32)), [1, 2, 3])


def test_linear_state_dict_copies_and_loads():
    layer, other = rk.Linear(5, 3, rng=1), rk.Linear(5, 3, rng=2)
    state = layer.state_dict()
    other.load_state_dict(state)
    for name, array in state.items():
        np.testing.assert_array_equal(other.parameters[name], array)
        array[...] = 0
        assert layer.parameters[name].any() and other.parameters[name].any()


@pytest.mark.parametrize(
    "change, error, words",
    [
        (lambda d: d.pop("bias"), ValueError, "bias"),
        (lambda d: d.update(extra=d["bias"]), ValueError, "extra"),
        (lambda d: d.update(bias=d["bias"][:2]), ValueError, r"bias.*\(3\).*\(2,\)"),
        (lambda d: d.update(weight=d["weight"].T), ValueError, r"weight.*\(3, 5\).*\(5, 3\)"),
        (lambda d: d.update(bias=d["bias"].astype(float)), TypeError, "bias.*float32.*float64"),
    ],
)
def test_linear_load_state_dict_checks_before_it_changes(change, error, words):
    layer = rk.Linear(5, 3, rng=1)
    before, state = layer.state_dict(), rk.Linear(5, 3, rng=2).state_dict()
    change(state)
    with pytest.raises(error, match=words):
        layer.load_state_dict(state)
    for name, array in before.items():
        np.testing.assert_array_equal(layer.parameters[name], array)


@pytest.mark.parametrize(
    "arguments, keywords, error, words",
    [
        ((0, 3), {}, ValueError, "input_size.*>= 1.*0"),
        ((5, -1), {}, ValueError, "output_size.*>= 1.*-1"),
        ((5.0, 3), {}, TypeError, "input_size.*integer.*float"),
        ((5, 3), {"dtype": np.float16}, TypeError, "dtype.*float32.*float16"),
        ((5, 3), {"bias": 1}, TypeError, "bias.*bool.*1"),
        ((5, 3), {"rng": "seed"}, TypeError, "rng.*Generator.*seed"),
    ],
)
def test_linear_rejects_bad_arguments(arguments, keywords, error, words):
    with pytest.raises(error, match=words):
        rk.Linear(*arguments, **keywords)


def test_linear_rejects_bad_arrays():
    layer = rk.Linear(5, 3)
    x = np.zeros((4, 5), np.float32)
    with pytest.raises(TypeError, match="x: .*float32.*float64"):
        layer(x.astype(np.float64))
    with pytest.raises(ValueError, match=r"x: .*\(\.\.\., 5\).*\(4, 4\)"):
        layer(x[:, 1:])
    with pytest.raises(ValueError, match=r"x: "):
        layer(np.float32(1))
    with pytest.raises(ValueError, match=r"dy: .*\(4, 3\).*\(2, 3\)"):
        layer.backward(x, np.zeros((2, 3), np.float32))
    with pytest.raises(TypeError, match="dy: .*float32.*int"):
        layer.backward(x, np.zeros((4, 3), int))


def test_the_biases_gradient_of_many_rows_keeps_its_digits():
    """Rows that are added one after another lose a percent of so many."""
    dy = np.full((1_000_000, 2), 0.1, np.float32)
    layer = rk.Linear(1, 2, rng=0)
    bias = layer.backward(np.zeros((len(dy), 1), np.float32), dy).parameters["bias"]
    assert bias.dtype == np.float32
    np.testing.assert_allclose(bias, 1e5, rtol=2e-6)


def test_no_rows_have_gradients_of_zero(dtype):
    layer = rk.Linear(3, 2, dtype=dtype, rng=0)
    gradients = layer.backward(np.zeros((0, 3), dtype), np.zeros((0, 2), dtype))
    assert gradients.x.shape == (0, 3)
    for name, array in gradients.parameters.items():
        np.testing.assert_array_equal(array, np.zeros_like(layer.parameters[name]))


# --- softmax cross-entropy ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "leading, classes", [((), 5), ((4,), 5), ((3, 2), 5), ((40_000,), 5), ((3, 7), 9000)]
)
def test_cross_entropy_is_its_definition(dtype, leading, classes):
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((*leading, classes)).astype(dtype)
    targets = rng.integers(classes, size=leading)
    kept = logits.copy()
    loss, dlogits = rk.softmax_cross_entropy(logits, targets)

    e = np.exp(logits.astype(np.float64))
    softmax, one_hot = e / e.sum(axis=-1, keepdims=True), np.eye(classes)[targets]
    expected = -(np.log(softmax) * one_hot).sum() / targets.size
    assert type(loss) is float
    assert dlogits.dtype == dtype
    eps = float(np.finfo(dtype).eps)
    assert loss == pytest.approx(expected, rel=20 * eps)
    np.testing.assert_allclose(dlogits, (softmax - one_hot) / targets.size, rtol=0, atol=8 * eps)
    np.testing.assert_array_equal(logits, kept)


@pytest.mark.parametrize("leading", [(), (4,), (3, 2)])
def test_cross_entropy_gradient_is_the_differences(leading):
    rng = np.random.default_rng(1)
    logits, targets = rng.standard_normal((*leading, 5)), rng.integers(5, size=leading)
    _, dlogits = rk.softmax_cross_entropy(logits, targets)
    differences = central_differences(lambda: rk.softmax_cross_entropy(logits, targets)[0], logits)
    np.testing.assert_allclose(dlogits, differences, rtol=0, atol=1e-9)


@pytest.mark.parametrize("classes", [*range(1, 36), 63, 64, 65, 127, 200])
@pytest.mark.parametrize("positions", [1, 2, 3, 7])
def test_cross_entropy_of_every_number_of_classes(dtype, classes, positions):
    """Short rows lie in one vector with the next ones, and the last has nothing behind it."""
    rng = np.random.default_rng(classes)
    logits = (5 * rng.standard_normal((positions, classes))).astype(dtype)
    targets = rng.integers(classes, size=positions)
    loss, dlogits = rk.softmax_cross_entropy(logits, targets)
    e = np.exp(logits.astype(np.float64))
    softmax, one_hot = e / e.sum(axis=-1, keepdims=True), np.eye(classes)[targets]
    eps = float(np.finfo(dtype).eps)
    expected = -(np.log(softmax) * one_hot).sum() / positions
    assert loss == pytest.approx(expected, rel=20 * eps, abs=4 * eps)
    np.testing.assert_allclose(dlogits, (softmax - one_hot) / positions, rtol=0, atol=8 * eps)
    alone = [rk.softmax_cross_entropy(*one)[0] for one in zip(logits, targets, strict=True)]
    assert loss == pytest.approx(sum(alone) / positions, rel=1e-14)


def test_probabilities_have_their_digits(dtype):
    """Also of classes that are far from likely: e^-d beside 1."""
    limit = 87 if dtype == np.float32 else 708
    d = np.random.default_rng(0).uniform(0, limit, 50_000).astype(dtype)
    _, dlogits = rk.softmax_cross_entropy(np.stack([0 * d, -d], axis=1), np.zeros(len(d), int))
    wide = d.astype(np.float64 if dtype == np.float32 else np.longdouble)
    expected = np.exp(-wide) / (1 + np.exp(-wide))
    normal = expected > len(d) * np.finfo(dtype).tiny
    error = dlogits[:, 1] * np.longdouble(len(d)) / expected - 1
    assert np.abs(error[normal]).max() < 6 * np.finfo(dtype).eps


@pytest.mark.parametrize("shape", [(40_000, 10), (300, 2_000)])
def test_cross_entropy_has_the_same_bits_on_any_threads(monkeypatch, dtype, shape):
    monkeypatch.setattr(_teamwork, "COST", 0.0)
    rng = np.random.default_rng(0)
    logits, targets = (
        rng.standard_normal(shape).astype(dtype),
        rng.integers(shape[1], size=shape[0]),
    )
    expected, dexpected = rk.softmax_cross_entropy(logits, targets, num_threads=1)
    for threads in (2, 3, 7):
        loss, dlogits = rk.softmax_cross_entropy(logits, targets, num_threads=threads)
        assert loss == expected
        assert_same_bits(dlogits, dexpected)


def test_logits_of_any_strides(dtype):
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((6, 5, 9)).astype(dtype), rng.integers(9, size=(6, 5))
    loss, dlogits = rk.softmax_cross_entropy(logits, targets)
    memory = bytearray(b"x" + logits.tobytes())
    for other in (
        np.asfortranarray(logits),
        np.repeat(logits, 2, axis=2)[..., ::2],
        logits[::-1].copy()[::-1],
        np.frombuffer(memory, dtype, offset=1).reshape(logits.shape),
    ):
        for to in (targets, np.asfortranarray(targets), targets.astype(">i2")):
            found, dfound = rk.softmax_cross_entropy(other, to)
            assert found == loss
            assert_same_bits(dfound, dlogits)


def test_cross_entropy_of_equal_logits_is_log_of_the_classes(dtype):
    loss, dlogits = rk.softmax_cross_entropy(np.full((2, 3, 8), 7, dtype), np.zeros((2, 3), int))
    assert loss == pytest.approx(math.log(8), rel=1e-7)
    np.testing.assert_allclose(dlogits.sum(axis=-1), 0, atol=1e-7)


@pytest.mark.filterwarnings("error")
def test_cross_entropy_of_huge_logits_is_finite(dtype):
    big = float(np.finfo(dtype).max) * (1 if dtype == np.float32 else 0.25)
    logits = np.array([[big, 0, -big], [-big, -big, big]], dtype)
    loss, dlogits = rk.softmax_cross_entropy(logits, np.array([0, 2]))
    assert loss == 0
    np.testing.assert_array_equal(dlogits, 0)
    loss, dlogits = rk.softmax_cross_entropy(logits, np.array([1, 1]))
    assert loss == pytest.approx(1.5 * big, rel=1e-6)
    np.testing.assert_array_equal(dlogits, [[0.5, -0.5, 0], [0, -0.5, 0.5]])


def test_cross_entropy_is_whole_where_errors_are_to_be_raised():
    with np.errstate(all="raise"):
        logits = np.array([[0, -95, -102]] * 3, np.float32)
        loss, dlogits = rk.softmax_cross_entropy(logits, [0] * 3)
        nowhere, _ = rk.softmax_cross_entropy(np.full((2, 3), -np.inf), [0, 1])
    assert loss == 0 and math.isnan(nowhere)
    np.testing.assert_allclose(dlogits, 0, atol=1e-30)


def test_cross_entropy_sums_in_float64():
    # In float32 a running sum of a million losses of log(3) would be off in the fourth digit.
    loss, _ = rk.softmax_cross_entropy(np.zeros((1_000_000, 3), np.float32), np.zeros(10**6, int))
    assert loss == pytest.approx(math.log(3), rel=1e-7)


def test_cross_entropy_keeps_nan_in_its_position():
    logits = np.zeros((3, 4), np.float32)
    logits[1, 2] = np.nan
    loss, dlogits = rk.softmax_cross_entropy(logits, np.zeros(3, int))
    assert math.isnan(loss)
    assert np.isnan(dlogits[1]).all()
    assert np.isfinite(dlogits[[0, 2]]).all()


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int32, np.uint64])
def test_cross_entropy_takes_any_integers(kind):
    logits = np.random.default_rng(1).standard_normal((4, 3))
    targets = np.array([0, 2, 1, 2])
    expected, _ = rk.softmax_cross_entropy(logits, targets)
    assert rk.softmax_cross_entropy(logits, targets.astype(kind))[0] == expected


@pytest.mark.parametrize(
    "logits, targets, error, words",
    [
        (np.zeros((2, 3), ">f4"), [0, 0], TypeError, "logits: .*float32.*>f4"),
        (np.zeros((2, 3), int), [0, 0], TypeError, "logits: .*float32.*int"),
        (np.zeros((2, 3)), [0.0, 0.0], TypeError, "targets: .*integer.*float64"),
        (np.zeros((2, 3)), [0, 0, 0], ValueError, r"targets: .*\(2,\).*\(3,\)"),
        (np.zeros((0, 3)), np.zeros(0, int), ValueError, r"logits: .*\(0, 3\)"),
        (np.zeros((2, 0)), [0, 0], ValueError, r"logits: .*\(2, 0\)"),
        (np.float64(1), 0, ValueError, "logits: "),
        (np.zeros((2, 3)), [0, 3], IndexError, r"targets: .*< 3.*3 at position \(1,\)"),
        (np.zeros((2, 1, 3)), [[0], [-1]], IndexError, r"targets: .*-1 at position \(1, 0\)"),
    ],
)
def test_cross_entropy_rejects_bad_arguments(logits, targets, error, words):
    with pytest.raises(error, match=words):
        rk.softmax_cross_entropy(logits, targets)


def test_parameters_that_do_not_fit_are_named(dtype):
    layer = rk.Linear(3, 2, dtype=dtype, rng=0)
    x, dy = np.zeros((4, 3), dtype), np.zeros((4, 2), dtype)
    layer.parameters["weight"] = np.zeros((2, 3), np.float32 if dtype == np.float64 else np.float64)
    for call in (lambda: layer(x), lambda: layer.backward(x, dy)):
        with pytest.raises(TypeError, match="weight"):
            call()
    layer.parameters["weight"] = np.zeros((3, 3), dtype)
    for call in (lambda: layer(x), lambda: layer.backward(x, dy)):
        with pytest.raises(ValueError, match="weight"):
            call()

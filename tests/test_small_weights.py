"""Frozen layers with float16 and int8 weights: what they compute, and how far that is off."""

import pickle
import platform
from dataclasses import replace

import numpy as np
import pytest

import rnnkernel as rk
from drawn import draw
from helpers import assert_same_bits, layer_state, make_layer
from rnnkernel import _kernels, _packed_weights
from tolerances import assert_output_close

# int8 in each way that this processor has; the first is what users get
INT8_WAYS = _kernels.int8_ways()
# what x and h keep of their largest element
KEPT = {"bytes": 2.0**-22, "words": 2.0**-14, "floats": 2.0**-23}
KINDS = ["float16", *(f"int8 as {way}" for way in INT8_WAYS)]
# (T, N, I, H): rows alone and in tiles of every size, blocks alone and in fours, unfilled ones,
# and more k's than one piece of integers has
SIZES = [
    (5, 1, 7, 11),
    (4, 3, 9, 24),
    (3, 13, 33, 67),
    (2, 6, 20, 130),
    (1, 1, 1, 1),
    (1, 5, 4203, 3),
]


@pytest.fixture(params=KINDS)
def kind(request, monkeypatch):
    """How weights are stored."""
    kind, *way = request.param.split(" as ")
    monkeypatch.setattr(_packed_weights, "INT8_WAY", *way or [None])
    return kind


@pytest.fixture(params=SIZES, ids=str)
def problem(request, case):
    return draw(case, *request.param, dtype=np.float32)


def parts(state):
    return state if isinstance(state, tuple) else (state,)


def plain(fast):
    """The float32 layer with the values that a frozen layer's weights stand for."""
    layer = pickle.loads(pickle.dumps(fast))._layer
    again = type(layer)(layer.input_size, layer.hidden_size, dtype=layer.dtype, **layer.options)
    again.load_state_dict(fast.parameters)
    return again


def test_float16_has_the_bits_of_rounded_weights(problem):
    layer = make_layer(problem)
    state = layer_state(problem.case, problem.states)
    fast = layer.freeze("float16")
    for name, array in layer.parameters.items():
        rounded = array.astype(np.float16).astype(np.float32) if "weight" in name else array
        assert_same_bits(fast.parameters[name], rounded, name)
        array[...] = rounded
    y, final = layer(problem.x, state)
    fast_y, fast_final = fast(problem.x, state)
    assert_same_bits(fast_y, y)
    for got, expected in zip(parts(fast_final), parts(final), strict=True):
        assert_same_bits(got, expected)


def test_every_float16_number():
    """Denormals, infinities and NaNs among them: relu shows the weights, then their negatives."""
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    layer = rk.RNN(1, 256, nonlinearity="relu", bias=False, rng=0)
    layer.parameters["weight_hh_l0"].fill(0)
    for some in every.reshape(256, 256):
        layer.parameters["weight_ih_l0"][:, 0] = some
        fast = layer.freeze("float16")
        for sign in (1, -1):
            y, _ = fast(np.full((1, 1, 1), sign, np.float32))
            with np.errstate(invalid="ignore"):  # signalling NaNs
                assert np.array_equal(y[0, 0], np.maximum(sign * some, 0), equal_nan=True)


def test_values(problem, kind):
    """Against the reference with the weights that are stored, in float64."""
    case = problem.case
    fast = make_layer(problem).freeze(kind)
    stored = {name.removesuffix("_l0"): array for name, array in fast.parameters.items()}
    exact = replace(problem, weights=stored).astype(np.float64)
    expected, final, _ = case.forward(exact.weights, exact.x, case.pack(exact.states))
    y, state = fast(problem.x, layer_state(case, problem.states))
    eps = KEPT[_packed_weights.INT8_WAY or "floats"]
    assert_output_close(y, expected, "y", problem, eps)
    for name, got, wanted in zip(case.states, parts(state), case.unpack(final), strict=True):
        assert_output_close(got[0], wanted, name, problem, eps)


def test_what_is_stored(case, kind):
    problem = draw(case, 1, 1, 9, 13, dtype=np.float32)
    layer = make_layer(problem)
    layer.parameters["weight_ih_l0"][3] = 0
    layer.parameters["weight_hh_l0"][5] *= 1e-40  # denormal
    fast = layer.freeze(kind)
    for name, array in layer.parameters.items():
        stored = fast.parameters[name]
        if "bias" in name:
            assert_same_bits(stored, array, name)
            continue
        largest = np.abs(array).max(axis=1, keepdims=True)
        if kind == "float16":
            bound = np.maximum(np.abs(array) * 2.0**-11, 2.0**-25)
        else:
            # half a step, and the scale's own rounding up
            bound = largest / 254 * (1 + 2.0**-14) + 1e-36
            integers = stored / np.maximum(np.abs(stored).max(axis=1, keepdims=True), 1e-36) * 127
            assert np.abs(integers - np.rint(integers)).max() < 1e-3
        assert (np.abs(stored - array) <= bound).all(), name
        assert not stored[3].any() or "ih" not in name


def test_a_row_alone_or_in_a_batch(problem, kind):
    fast = make_layer(problem).freeze(kind)
    N = problem.sizes[1]
    state = [s[None] for s in problem.states]
    whole, final = fast(problem.x, problem.case.pack(state))
    for rows in [slice(n, n + 1) for n in range(N)] + [slice(0, n) for n in range(2, N)]:
        y, last = fast(problem.x[:, rows], problem.case.pack([s[:, rows] for s in state]))
        assert_same_bits(y, whole[:, rows])
        for got, expected in zip(parts(last), parts(final), strict=True):
            assert_same_bits(got, expected[:, rows])


@pytest.mark.parametrize("num_threads", [2, 3])
def test_any_number_of_threads(case, kind, num_threads):
    problem = draw(case, T=30, N=13, I=33, H=67, dtype=np.float32)
    fast = make_layer(problem).freeze(kind)
    assert_same_bits(fast(problem.x, num_threads=num_threads)[0], fast(problem.x, num_threads=1)[0])


def test_streams(problem, kind):
    T, N, _, _ = problem.sizes
    fast = make_layer(problem).freeze(kind)
    state = layer_state(problem.case, problem.states)
    y, final = fast(problem.x, state)
    stream = fast.stream(N)
    stream.state = state
    for t in range(T):
        assert_same_bits(stream.step(problem.x[t]), y[t])
    for got, expected in zip(parts(stream.state), parts(final), strict=True):
        assert_same_bits(got, expected)


def test_stacks_and_directions(case, kind):
    layer = getattr(rk, case.layer)(6, 21, num_layers=2, bidirectional=True, rng=0, **case.options)
    fast = layer.freeze(kind)
    x = np.random.default_rng(0).standard_normal((5, 3, 6), np.float32)
    y, _ = fast(x)
    expected, _ = plain(fast)(x)
    if kind == "float16":
        assert_same_bits(y, expected)
    else:
        assert np.abs(y - expected).max() < 4 * KEPT[_packed_weights.INT8_WAY]
    assert np.abs(y - layer(x)[0]).max() > 1e-6


def test_pickled(case, kind):
    problem = draw(case, 3, 2, 9, 13, dtype=np.float32)
    fast = make_layer(problem).freeze(kind)
    again = pickle.loads(pickle.dumps(fast))
    assert repr(again) == repr(fast) and f"freeze('{kind}')" in repr(fast)
    assert_same_bits(again(problem.x)[0], fast(problem.x)[0])
    for name, array in fast.parameters.items():
        assert_same_bits(again.parameters[name], array, name)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_of_x_stay_in_their_row(case, kind, value):
    problem = draw(case, 4, 3, 5, 13, dtype=np.float32)
    fast = make_layer(problem).freeze(kind)
    expected, _ = fast(problem.x)
    x = problem.x.copy()
    x[1, 1, 2] = value
    y, _ = fast(x)
    assert_same_bits(y[:, [0, 2]], expected[:, [0, 2]])
    assert_same_bits(y[0], expected[0])
    if np.isnan(value) or _packed_weights.INT8_WAY in ("bytes", "words"):
        assert np.isnan(y[1:, 1]).all()


def integers(a, bits):
    """A row in quads: its integers, and 2^u."""
    exponent = int(max(np.frexp(np.abs(a).max())[1], -104))
    whole = np.rint(np.ldexp(a.astype(np.float64), bits - exponent)).astype(np.int64)
    return whole, np.ldexp(np.float32(1), exponent - bits)


def sum_of_bytes(row, q):
    """Of a row and a column of integers, with the roundings of csrc/quads.h."""
    n, unit = integers(row, 22)
    n += 1 << 22
    low, middle, high = (int((d * q).sum()) for d in (n & 255, n >> 8 & 255, (n >> 16) - 64))
    once = np.float32(256 * int(np.float32(high)) + int(np.float32(middle)))
    return np.float32(256 * int(once) + int(np.float32(low))) * unit


def sum_of_words(row, q):
    n, unit = integers(row, 14)
    return np.float32(int((n * q).sum())) * unit


def sum_of_floats(row, q):
    """By multiply-adds in turn, each rounded once, or twice where the processor has none fused."""
    fused = _kernels.selected_isa() != "baseline" or platform.machine() != "x86_64"
    total = np.float32(0)
    for a, b in zip(row, q, strict=True):
        product = np.longdouble(a) * np.longdouble(b)
        total = np.float32((product if fused else np.float32(product)) + total)
    return total


SUMS = {"bytes": sum_of_bytes, "words": sum_of_words, "floats": sum_of_floats}


@pytest.mark.parametrize("way", INT8_WAYS)
@pytest.mark.parametrize("magnitude", [1, 3e-4, 1e-33, 1e33])
def test_int8_has_the_bits_of_its_rule(monkeypatch, way, magnitude):
    """relu shows the sums: its other product is 0."""
    monkeypatch.setattr(_packed_weights, "INT8_WAY", way)
    rng = np.random.default_rng(3)
    layer = rk.RNN(37, 19, nonlinearity="relu", bias=False, rng=0)
    layer.parameters["weight_hh_l0"].fill(0)
    x = (magnitude * rng.standard_normal((2, 5, 37)) * rng.random((2, 5, 37)) ** 4).astype("f4")
    x[np.abs(x) < 1e-3 * magnitude] = 0  # no denormals
    x[0, 1] = 0
    x[1, 2, 5] = 40 * magnitude
    y, _ = layer.freeze("int8")(x)
    stored = layer.freeze("int8").parameters["weight_ih_l0"]
    scale = np.abs(stored).max(axis=1) / 127
    q = np.rint(stored / scale[:, None]).astype(np.int64)
    assert (np.abs(q).max(axis=1) == 127).all()
    expected = [
        s * SUMS[way](row, c) for row in x.reshape(-1, 37) for s, c in zip(scale, q, strict=True)
    ]
    expected = np.array(expected, np.float32).reshape(y.shape)
    assert np.count_nonzero(expected > 0) > 50
    assert_same_bits(y, np.maximum(expected, 0))


@pytest.mark.parametrize("way", INT8_WAYS)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums_of_int8_fit(monkeypatch, way, sign):
    """All weights the largest, as all elements of a whole piece are."""
    monkeypatch.setattr(_packed_weights, "INT8_WAY", way)
    layer = rk.RNN(1024, 1, nonlinearity="relu", bias=False, rng=0)
    layer.parameters["weight_ih_l0"].fill(sign)
    fast = layer.freeze("int8")
    below_one = np.nextafter(np.float32(1), np.float32(0))
    y, _ = fast(np.full((1, 1, 1024), sign * below_one, np.float32))
    stored = fast.parameters["weight_ih_l0"].astype(np.float64)
    np.testing.assert_allclose(y, np.abs(stored).sum(), rtol=1e-6)


@pytest.mark.parametrize("way", INT8_WAYS)
def test_int8_of_ids_is_that_of_one_hot_vectors(monkeypatch, case, way):
    """Of each place in a quad, and of every piece."""
    monkeypatch.setattr(_packed_weights, "INT8_WAY", way)
    classes = 4203
    fast = getattr(rk, case.layer)(classes, 21, rng=0, **case.options).freeze("int8")
    ids = np.array([[0, 1, 2, 3], [1023, 1024, 1025, 4095], [4096, 4201, 4202, 7]])
    one_hot = np.zeros((*ids.shape, classes), np.float32)
    np.put_along_axis(one_hot, ids[..., None], 1, axis=2)
    expected = fast(one_hot)[0]
    assert_same_bits(fast(ids)[0], expected)
    stream = fast.stream(4)
    for t in range(3):
        assert_same_bits(stream.step(ids[t]), expected[t])


@pytest.mark.parametrize("way", INT8_WAYS)
def test_int8_of_more_units_than_a_piece_has(monkeypatch, way):
    layer = rk.GRU(3, 2100, rng=0)
    x = np.random.default_rng(0).standard_normal((3, 3, 3)).astype(np.float32)
    monkeypatch.setattr(_packed_weights, "INT8_WAY", way)
    fast = layer.freeze("int8")
    y, _ = fast(x)
    np.testing.assert_allclose(y, plain(fast)(x)[0], rtol=0, atol=KEPT[way])


def test_int8_of_x_with_gaps(case, kind):
    problem = draw(case, 3, 6, 33, 21, dtype=np.float32)
    fast = make_layer(problem).freeze(kind)
    apart = np.full((3, 6, 99), np.nan, np.float32)[..., ::3]
    apart[...] = problem.x
    assert_same_bits(fast(apart)[0], fast(problem.x)[0])


def trained():
    """A layer and readout that have learned to add up the last four inputs, and a batch."""
    rng = np.random.default_rng(0)
    layer, readout = rk.LSTM(1, 24, rng=0), rk.Linear(24, 1, rng=1)
    optimizer = rk.Adam({**layer.parameters, **{f"o{k}": v for k, v in readout.parameters.items()}})

    def batch():
        x = rng.uniform(-1, 1, (16, 32, 1)).astype(np.float32)
        return x, x[3:] + x[2:-1] + x[1:-2] + x[:-3]

    for _ in range(300):
        x, wanted = batch()
        out = layer.forward(x, training=True)
        y = out.y @ readout.parameters["weight"].T + readout.parameters["bias"]
        dy = np.zeros_like(y)
        dy[3:] = 2 * (y[3:] - wanted) / wanted.size
        grads = layer.backward(out, dy @ readout.parameters["weight"])
        gradients = dict(grads.parameters)
        gradients["oweight"] = np.einsum("tno,tnh->oh", dy, out.y)
        gradients["obias"] = dy.sum((0, 1))
        optimizer.step(gradients)
    return layer, readout, *batch()


def test_the_error_on_a_trained_model():
    layer, readout, x, wanted = trained()

    def loss(y):
        y = y @ readout.parameters["weight"].T + readout.parameters["bias"]
        return float(np.mean((y[3:] - wanted) ** 2))

    y, _ = layer(x)
    assert loss(y) < 0.1 * float(np.mean(wanted**2))  # it has learned something
    for kind, share in (("float16", 0.01), ("int8", 0.1)):
        small, _ = layer.freeze(kind)(x)
        assert 0 < np.abs(small - y).max()
        assert abs(loss(small) - loss(y)) < share * loss(y)


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "error"),
    [("float32", ValueError), ("int4", ValueError), (np.float16, TypeError), (16, TypeError)],
    ids=str,
)
def test_other_weights(weights, error):
    with pytest.raises(error, match="weights: expected one of 'float16', 'int8', got"):
        rk.LSTM(3, 4).freeze(weights)


def test_float64_layers_have_none(case, kind):
    layer = getattr(rk, case.layer)(3, 4, dtype=np.float64, **case.options)
    with pytest.raises(ValueError, match="weights: expected None for a float64 layer"):
        layer.freeze(kind)


@pytest.mark.parametrize("value", [1e5, -7e4])
def test_what_float16_cannot_hold(value):
    layer = rk.GRU(3, 4, rng=0)
    layer.parameters["weight_hh_l0"][1, 2] = value
    with pytest.raises(ValueError, match=r"weight_hh_l0.*at most 65504"):
        layer.freeze("float16")
    layer.freeze("int8")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_int8_cannot_hold(value):
    layer = rk.GRU(3, 4, rng=0)
    layer.parameters["weight_ih_l0"][1, 2] = value
    with pytest.raises(ValueError, match="weight_ih_l0.*expected finite"):
        layer.freeze("int8")
    x = np.ones((1, 1, 3), np.float32)
    assert np.array_equal(np.isnan(layer.freeze("float16")(x)[0]), np.isnan(layer(x)[0]))

"""Rows of unequal length: each is what it is alone, and nothing past an end is seen or computed."""

import numpy as np
import pytest

import rnnkernel as rk
from helpers import assert_same_bits
from sequences import assert_differences, like, loss, normal_state, parts, row_of

# (T, N, I, H) and the lengths
BATCHES = [
    ((6, 5, 4, 11), [3, 6, 0, 1, 6]),
    ((5, 1, 3, 7), [2]),
    ((5, 1, 3, 7), [0]),
    ((4, 3, 3, 7), [0, 0, 0]),
    ((60, 11, 7, 19), "random"),
    ((20, 5, 3, 130), "random"),
]


@pytest.fixture(params=BATCHES, ids=lambda batch: f"{batch[0]}")
def batch(request):
    sizes, lengths = request.param
    if isinstance(lengths, str):
        rng = np.random.default_rng(sizes)
        lengths = rng.integers(0, sizes[0] + 1, sizes[1])
        lengths[rng.integers(sizes[1])] = sizes[0]
    return sizes, np.array(lengths)


def build(case, dtype, inputs, H, **options):
    return getattr(rk, case.layer)(inputs, H, dtype=dtype, rng=3, **case.options, **options)


STACKS = [
    {},
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
]


@pytest.fixture(params=STACKS, ids=["single", "both", "stack"])
def stack(request):
    return request.param


def past(lengths, T):
    """(T, N): the steps past each row's end."""
    return np.arange(T)[:, None] >= lengths


def draw(layer, T, N, lengths, rng):
    """x, dy (T, N, .), NaN past the ends: none of it may be looked at."""
    width = layer(np.zeros((1, 1, layer.input_size), layer.dtype))[0].shape[2]
    x = rng.standard_normal((T, N, layer.input_size)).astype(layer.dtype)
    dy = rng.standard_normal((T, N, width)).astype(layer.dtype)
    x[past(lengths, T)] = dy[past(lengths, T)] = np.nan
    return x, dy


def turned(layer, array):
    return np.ascontiguousarray(array.swapaxes(0, 1)) if layer.batch_first else array


def test_every_row_is_what_it_is_alone(case, dtype, batch, stack):
    (T, N, inputs, H), lengths = batch
    layer = build(case, dtype, inputs, H, **stack)
    rng = np.random.default_rng(1)
    x, dy = draw(layer, T, N, lengths, rng)
    state, dstate = normal_state(layer, N, rng), normal_state(layer, N, rng)

    y, final = layer(turned(layer, x), state, lengths=lengths)
    out = layer.forward(turned(layer, x), state, lengths=lengths, training=True)
    assert_same_bits(out.y, y, "training")
    grads = layer.backward(out, turned(layer, dy), dstate, flow=True)
    y, dx = turned(layer, y), turned(layer, grads.x)
    total = {name: np.zeros(w.shape) for name, w in layer.parameters.items()}
    dh_norm = np.zeros(grads.flow.dh_norm.shape)
    for n, length in enumerate(lengths):
        rows, steps = slice(n, n + 1), slice(length)
        alone = layer.forward(turned(layer, x[steps, rows]), row_of(state, n), training=True)
        one = layer.backward(alone, turned(layer, dy[steps, rows]), row_of(dstate, n), flow=True)
        assert_same_bits(y[steps, rows], turned(layer, alone.y), f"y of row {n}")
        assert_same_bits(dx[steps, rows], turned(layer, one.x), f"dx of row {n}")
        for ours, theirs in (
            (final, alone.state),
            (out.state, alone.state),
            (grads.state, one.state),
        ):
            for a, b in zip(parts(ours), parts(theirs), strict=True):
                assert_same_bits(a[:, rows], b, f"state of row {n}")
        for name, gradient in one.parameters.items():
            total[name] += gradient
        dh_norm[:, steps] += one.flow.dh_norm**2
    assert not y[past(lengths, T)].any()
    assert not dx[past(lengths, T)].any()
    eps = np.finfo(dtype).eps
    for name, expected in total.items():
        scale = max(1.0, np.abs(expected).max())
        error = np.abs(grads.parameters[name] - expected).max()
        assert error <= 8 * eps * np.sqrt(T * N + 4 * H + inputs) * scale, name
    np.testing.assert_allclose(grads.flow.dh_norm**2, dh_norm, rtol=1e-4 if eps > 1e-9 else 1e-11)


def test_a_zero_gradient_past_the_ends_is_the_padded_batch(case, dtype, batch):
    """One direction: the weights' gradients too are those of the padded batch, to the bit."""
    (T, N, inputs, H), lengths = batch
    layer = build(case, dtype, inputs, H, num_layers=2)
    rng = np.random.default_rng(2)
    x, dy = draw(layer, T, N, lengths, rng)
    x, dy = np.nan_to_num(x), np.nan_to_num(dy)
    state = normal_state(layer, N, rng)
    padded = layer.forward(x, state, training=True)
    expected = layer.backward(padded, dy)
    out = layer.forward(x, state, lengths=lengths, training=True)
    grads = layer.backward(out, dy)
    for name, gradient in expected.parameters.items():
        np.testing.assert_array_equal(grads.parameters[name], gradient, name)
    np.testing.assert_array_equal(grads.x, expected.x)


@pytest.mark.parametrize("num_threads", [2, 3])
def test_any_number_of_threads(case, dtype, batch, num_threads):
    (T, N, inputs, H), lengths = batch
    layer = build(case, dtype, inputs, H, bidirectional=True)
    rng = np.random.default_rng(3)
    x, dy = draw(layer, T, N, lengths, rng)
    state, dstate = normal_state(layer, N, rng), normal_state(layer, N, rng)
    arguments = {"clip": rk.Clip(value=0.8, norm=2.0), "flow": True}
    results = []
    for threads in (1, num_threads):
        out = layer.forward(x, state, lengths=lengths, training=True, num_threads=threads)
        grads = layer.backward(out, dy, dstate, num_threads=threads, **arguments)
        flow = [grads.flow.dh_norm, grads.flow.clipped]
        arrays = [out.y, *parts(out.state), grads.x, *parts(grads.state), *flow]
        results.append([*arrays, *grads.parameters.values()])
    for one, many in zip(*results, strict=True):
        assert_same_bits(many, one)


@pytest.mark.parametrize("lengths", [[3, 5, 0, 1], [1, 1, 1, 1]])
def test_finite_differences(case, lengths):
    layer = build(case, np.float64, 3, 5, num_layers=2, bidirectional=True)
    rng = np.random.default_rng(4)
    x, dy = rng.standard_normal((5, 4, 3)), rng.standard_normal((5, 4, 10))
    state, dstate = normal_state(layer, 4, rng), normal_state(layer, 4, rng)
    out = layer.forward(x, state, lengths=lengths, training=True)
    grads = layer.backward(out, dy, dstate)
    arrays = {"x": (x, grads.x)}
    arrays |= {
        f"state {k}": pair
        for k, pair in enumerate(zip(parts(state), parts(grads.state), strict=True))
    }
    arrays |= {name: (w, grads.parameters[name]) for name, w in layer.parameters.items()}

    def function():
        return loss(*layer(x, state, lengths=lengths), dy, dstate)

    assert_differences(function, arrays, rng)


def test_clipping_acts_on_valid_rows_alone(dtype):
    layer = rk.LSTM(3, 5, dtype=dtype, rng=0)
    rng = np.random.default_rng(5)
    lengths = np.array([2, 4, 0])
    x, dy = draw(layer, 4, 3, lengths, rng)
    out = layer.forward(x, lengths=lengths, training=True)
    grads = layer.backward(out, dy, clip=rk.Clip(value=1e-6), flow=True)
    assert grads.flow.clipped.tolist() == [[2, 2, 1, 1]]
    assert (grads.flow.dc_norm[0, :3] > 0).all() and grads.flow.dc_norm[0, 3] == 0


def test_the_caller_s_output(case, dtype):
    """`out=` is zero past the ends as well, whatever was there."""
    layer = build(case, dtype, 3, 5, bidirectional=True)
    lengths = np.array([2, 0, 4])
    x, _ = draw(layer, 4, 3, lengths, np.random.default_rng(6))
    expected, _ = layer(x, lengths=lengths)
    for training in (False, True):
        y = np.full((4, 3, 10), np.nan, dtype)
        layer.forward(x, lengths=lengths, training=training, out=y)
        assert_same_bits(y, expected)
    wide = np.full((4, 3, 20), np.nan, dtype)
    layer.forward(x, lengths=lengths, out=wide[:, :, ::2])
    assert_same_bits(np.ascontiguousarray(wide[:, :, ::2]), expected)
    assert np.isnan(wide[:, :, 1::2]).all()


def test_no_gradient_wanted_of_y_or_x(dtype):
    layer = rk.GRU(3, 5, num_layers=2, dtype=dtype, rng=0)
    lengths = np.array([2, 0, 4])
    rng = np.random.default_rng(7)
    x, _ = draw(layer, 4, 3, lengths, rng)
    dstate = normal_state(layer, 3, rng)
    out = layer.forward(x, lengths=lengths, training=True)
    expected = layer.backward(out, np.zeros((4, 3, 5), dtype), dstate)
    grads = layer.backward(out, None, dstate, input_grad=False)
    assert grads.x is None
    for name, gradient in expected.parameters.items():
        assert_same_bits(grads.parameters[name], gradient, name)
    assert_same_bits(grads.state, expected.state)
    assert_same_bits(grads.state[:, 1], dstate[:, 1], "length 0")


def test_full_lengths_are_none(case, dtype):
    layer = build(case, dtype, 3, 5, bidirectional=True)
    x = np.random.default_rng(8).standard_normal((4, 3, 3)).astype(dtype)
    expected = layer.forward(x, training=True)
    out = layer.forward(x, lengths=[4, 4, 4], training=True)
    assert_same_bits(out.y, expected.y)
    dy = np.ones_like(out.y)
    ours, theirs = layer.backward(out, dy), layer.backward(expected, dy)
    for name, gradient in theirs.parameters.items():
        assert_same_bits(ours.parameters[name], gradient, name)


@pytest.mark.parametrize("length", [3, [3], np.array(3, np.uint8), np.array([3])])
def test_unbatched(dtype, length):
    layer = rk.LSTM(3, 5, bidirectional=True, dtype=dtype, rng=0)
    x = np.random.default_rng(9).standard_normal((5, 3)).astype(dtype)
    y, (h, c) = layer(x, lengths=length)
    expected, (h3, c3) = layer(x[:3])
    assert_same_bits(y[:3], expected)
    assert not y[3:].any()
    assert_same_bits(h, h3)
    assert_same_bits(c, c3)


@pytest.mark.parametrize(("T", "N"), [(0, 3), (4, 0), (0, 0)])
def test_nothing_at_all(case, dtype, T, N):
    layer = build(case, dtype, 3, 5, bidirectional=True)
    state = normal_state(layer, N, np.random.default_rng(10))
    x = np.zeros((T, N, 3), dtype)
    out = layer.forward(x, state, lengths=np.zeros(N, int), training=True)
    assert out.y.shape == (T, N, 10)
    for got, expected in zip(parts(out.state), parts(state), strict=True):
        assert_same_bits(got, expected)
    grads = layer.backward(out, np.zeros((T, N, 10), dtype), state)
    assert grads.x.shape == x.shape
    assert all(not g.any() for g in grads.parameters.values())


@pytest.mark.parametrize(
    ("lengths", "error", "words"),
    [
        ([1, 2], ValueError, ["lengths", "(N=3)", "(2,)"]),
        (3, ValueError, ["lengths", "(N=3)", "()"]),
        ([[1, 2, 3]], ValueError, ["lengths", "(1, 3)"]),
        ([1, 5, 2], ValueError, ["lengths", "T=4", "5", "row 1"]),
        ([1, 4, -1], ValueError, ["lengths", "-1", "row 2"]),
        (np.array([1, 4, 2**64 - 1], np.uint64), ValueError, ["lengths", "row 2"]),
        ([1.0, 2.0, 3.0], TypeError, ["lengths", "integers", "float64"]),
        ([True, False, True], TypeError, ["lengths", "integers", "bool"]),
        ("all", TypeError, ["lengths", "str"]),
        ([[1], [1, 2]], ValueError, ["lengths", "list"]),
    ],
)
def test_errors(lengths, error, words):
    layer = rk.RNN(2, 3, rng=0)
    out = np.full((4, 3, 3), 7, np.float32)
    for call in (
        lambda x: layer(x, lengths=lengths),
        lambda x: layer.forward(x, lengths=lengths, out=out),
    ):
        with pytest.raises(error) as caught:
            call(np.zeros((4, 3, 2), np.float32))
        assert all(word in str(caught.value) for word in words), str(caught.value)
    assert (out == 7).all()


@pytest.mark.parametrize("length", [10**6, -(10**6), 4])
def test_masked_lengths_are_checked(length):
    lengths = np.ma.array([length, 2], mask=[True, False])
    layer, x = rk.GRU(5, 4, rng=0), np.ones((3, 2, 5), np.float32)
    for call in (layer, lambda *a, **k: layer.forward(*a, training=True, **k)):
        with pytest.raises(ValueError, match=f"lengths: .* got {length} for row 0"):
            call(x, lengths=lengths)
    with pytest.raises(ValueError, match=f"lengths: .* got {length} for row 0"):
        rk.unpack(x, lengths)


def test_rows_of_one_length_in_any_order(dtype):
    """A permutation of the batch permutes everything."""
    layer = rk.GRU(3, 9, bidirectional=True, dtype=dtype, rng=0)
    rng = np.random.default_rng(11)
    lengths = np.array([4, 1, 4, 0, 3, 4, 1])
    x, dy = draw(layer, 4, 7, lengths, rng)
    state = normal_state(layer, 7, rng)
    order = rng.permutation(7)

    def run(rows):
        out = layer.forward(x[:, rows], state[:, rows], lengths=lengths[rows], training=True)
        grads = layer.backward(out, dy[:, rows])
        return out.y, out.state, grads.x, grads.state

    for got, expected in zip(run(order), run(np.arange(7)), strict=True):
        assert_same_bits(np.ascontiguousarray(got), np.ascontiguousarray(expected[:, order]))


def test_the_trace_is_each_row_s(case, dtype):
    layer = build(case, dtype, 3, 21, bidirectional=True)
    lengths = np.array([2, 0, 5, 4])
    x, _ = draw(layer, 5, 4, lengths, np.random.default_rng(12))
    traces = layer.forward(x, lengths=lengths, trace=True).trace
    for n, length in enumerate(lengths):
        alone = layer.forward(x[:length, n : n + 1], trace=True).trace
        for ours, theirs in zip(traces, alone, strict=True):
            for name in ours:
                assert_same_bits(ours[name][:length, n], theirs[name][:, 0], name)
                assert not ours[name][length:, n].any()


def test_like_is_the_reverse_of_parts():
    a, b = np.zeros(1), np.ones(1)
    assert like(parts(a)) is a and like(parts((a, b))) == (a, b)


@pytest.mark.parametrize("broadcast", [False, True])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}], ids=str)
def test_a_row_without_a_step_is_not_looked_at(case, dtype, broadcast, options):
    """Not even where its x is the same at every step, and projected once."""
    layer = build(case, dtype, 3, 4, **options)
    rows = np.random.default_rng(0).standard_normal((1, 3, 3)).astype(dtype)
    results = []
    for value in (np.nan, 1):
        rows[0, 1] = value
        x = np.broadcast_to(rows, (5, 3, 3))
        out = layer.forward(x if broadcast else x.copy(), lengths=[5, 0, 2], training=True)
        grads = layer.backward(out, np.ones_like(out.y))
        results.append([out.y, grads.x, *grads.parameters.values()])
    for found, expected in zip(*results, strict=True):
        assert_same_bits(found, expected)

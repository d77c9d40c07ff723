"""A reset inside a sequence: what follows it is a sequence of its own, forward and backward."""

import numpy as np
import pytest

import rnnkernel as rk
from helpers import assert_same_bits
from sequences import assert_differences, like, loss, normal_state, parts, row_of

SIZES = [((7, 4, 3, 11), 0.3), ((6, 1, 4, 7), 0.5), ((60, 19, 5, 37), 0.05), ((5, 3, 2, 20), 1.0)]


@pytest.fixture(params=SIZES, ids=lambda size: f"{size[0]}-{size[1]}")
def problem(request):
    (T, N, inputs, H), share = request.param
    rng = np.random.default_rng([T, N])
    return (T, N, inputs, H), rng.random((T, N)) < share


def build(case, dtype, inputs, H, **options):
    return getattr(rk, case.layer)(inputs, H, dtype=dtype, rng=3, **case.options, **options)


def segments(reset):
    """(T,) to the (begin, end) of each segment."""
    borders = [0, *(t for t in np.flatnonzero(reset) if t > 0), len(reset)]
    return list(zip(borders[:-1], borders[1:], strict=True))


def run_segments(layer, x, reset, state, dy, dstate):
    """One row (T, 1, .) of a single-layer net, segment by segment: forward and backward."""
    D, L = 2 if layer.bidirectional else 1, 1
    pieces = segments(reset)
    y, dx = [], []
    final = [s.copy() for s in parts(state)]
    initial = [np.zeros_like(s) for s in parts(state)]
    total = {name: np.zeros(w.shape) for name, w in layer.parameters.items()}
    for begin, end in pieces:
        # by direction: what the segment begins with, and whether its final state is the row's
        starts = [begin == 0 and not reset[0], end == len(reset)][:D]
        ends = [end == len(reset), begin == 0][:D]
        before, wanted = (
            like([np.zeros((L * D, *s.shape[1:]), s.dtype) for s in parts(state)]) for _ in range(2)
        )
        for d in range(D):
            for k, s in enumerate(parts(state)):
                if starts[d]:
                    parts(before)[k][d] = s[d]
                if ends[d]:
                    parts(wanted)[k][d] = parts(dstate)[k][d]
        out = layer.forward(x[begin:end], before, training=True)
        grads = layer.backward(out, dy[begin:end], wanted)
        y.append(out.y)
        dx.append(grads.x)
        for d in range(D):
            for k in range(len(final)):
                if ends[d]:
                    final[k][d] = parts(out.state)[k][d]
                if starts[d]:
                    initial[k][d] = parts(grads.state)[k][d]
        for name, gradient in grads.parameters.items():
            total[name] += gradient
    return np.concatenate(y), final, np.concatenate(dx), initial, total


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "both"])
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
def test_segments_are_sequences_of_their_own(case, dtype, problem, bidirectional, ragged):
    (T, N, inputs, H), reset = problem
    layer = build(case, dtype, inputs, H, bidirectional=bidirectional)
    D = 2 if bidirectional else 1
    rng = np.random.default_rng(1)
    lengths = rng.integers(0, T + 1, N) if ragged else np.full(N, T)
    x, dy = (rng.standard_normal((T, N, w)).astype(dtype) for w in (inputs, D * H))
    state, dstate = normal_state(layer, N, rng), normal_state(layer, N, rng)
    arguments = {"reset": reset, "lengths": lengths if ragged else None}

    inferred, last = layer(x, state, **arguments)
    out = layer.forward(x, state, training=True, **arguments)
    assert_same_bits(out.y, inferred)
    grads = layer.backward(out, dy, dstate)
    total = {name: np.zeros(w.shape) for name, w in layer.parameters.items()}
    for n, length in enumerate(lengths):
        if length == 0:
            continue
        row = np.s_[:length, n : n + 1]
        y, final, dx, initial, row_total = run_segments(
            layer, x[row], reset[:length, n], row_of(state, n), dy[row], row_of(dstate, n)
        )
        assert_same_bits(out.y[row], y, f"y of row {n}")
        assert_same_bits(grads.x[row], dx, f"dx of row {n}")
        for got, expected in (
            (out.state, final),
            (last, final),
            (grads.state, initial),
        ):
            for a, b in zip(parts(got), expected, strict=True):
                assert_same_bits(a[:, n : n + 1], b, f"state of row {n}")
        for name, gradient in row_total.items():
            total[name] += gradient
    eps = np.finfo(dtype).eps
    for name, expected in total.items():
        scale = max(1.0, np.abs(expected).max())
        error = np.abs(grads.parameters[name] - expected).max()
        assert error <= 8 * eps * np.sqrt(T * N + 4 * H + inputs) * scale, name


def test_finite_differences(case):
    layer = build(case, np.float64, 3, 5, num_layers=2, bidirectional=True)
    rng = np.random.default_rng(4)
    x, dy = rng.standard_normal((5, 4, 3)), rng.standard_normal((5, 4, 10))
    state, dstate = normal_state(layer, 4, rng), normal_state(layer, 4, rng)
    reset = np.zeros((5, 4), bool)
    reset[[0, 2, 3, 4, 2], [1, 0, 0, 2, 1]] = True
    lengths = np.array([5, 4, 5, 2])
    for arguments in ({"reset": reset}, {"reset": reset, "lengths": lengths}):
        out = layer.forward(x, state, training=True, **arguments)
        grads = layer.backward(out, dy, dstate)
        arrays = {"x": (x, grads.x)}
        arrays |= {
            f"state {k}": pair
            for k, pair in enumerate(zip(parts(state), parts(grads.state), strict=True))
        }
        arrays |= {name: (w, grads.parameters[name]) for name, w in layer.parameters.items()}

        def function(arguments=arguments):
            return loss(*layer(x, state, **arguments), dy, dstate)

        assert_differences(function, arrays, rng)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_reset_ends_nan(case, dtype, bad):
    """Selected, not multiplied: what was NaN before a reset is gone after it."""
    layer = build(case, dtype, 3, 5)
    rng = np.random.default_rng(5)
    x = rng.standard_normal((6, 2, 3)).astype(dtype)
    reset = np.zeros((6, 2), bool)
    reset[3, 0] = True
    clean = layer.forward(x, training=True, reset=reset)
    dirty = x.copy()
    dirty[1, 0] = bad
    out = layer.forward(dirty, training=True, reset=reset)
    assert_same_bits(out.y[3:], clean.y[3:])
    assert_same_bits(out.y[:, 1], clean.y[:, 1])
    # and what arrives as NaN after a reset does not cross it backwards
    dy = rng.standard_normal((6, 2, 5)).astype(dtype)
    expected = layer.backward(clean, dy)
    dy[4, 0] = bad
    grads = layer.backward(clean, dy)
    assert_same_bits(grads.x[:3], expected.x[:3])
    for got, wanted in zip(parts(grads.state), parts(expected.state), strict=True):
        assert_same_bits(got, wanted)


def test_what_the_flow_records(dtype):
    """At t-1 only dy arrives where t begins a segment, and nothing of the cell state."""
    layer = rk.LSTM(3, 5, bidirectional=True, dtype=dtype, rng=0)
    rng = np.random.default_rng(6)
    x, dy = (rng.standard_normal((6, 2, w)).astype(dtype) for w in (3, 10))
    reset = np.zeros((6, 2), bool)
    reset[4] = True
    out = layer.forward(x, training=True, reset=reset)
    flow = layer.backward(out, dy, flow=True).flow
    for index, t in ((0, 3), (1, 4)):  # the reverse direction stops at t, not at t-1
        expected = np.linalg.norm(dy[t, :, index * 5 : index * 5 + 5].astype(np.float64))
        np.testing.assert_allclose(flow.dh_norm[index, t], expected, rtol=1e-6)
        assert flow.dc_norm[index, t] == 0
        assert (np.delete(flow.dc_norm[index], [t, (5, 0)[index]]) > 0).all()


@pytest.mark.parametrize("num_threads", [2, 3])
def test_any_number_of_threads(case, dtype, problem, num_threads):
    (T, N, inputs, H), reset = problem
    layer = build(case, dtype, inputs, H, bidirectional=True)
    rng = np.random.default_rng(3)
    x, dy = (rng.standard_normal((T, N, w)).astype(dtype) for w in (inputs, 2 * H))
    state = normal_state(layer, N, rng)
    results = []
    for threads in (1, num_threads):
        out = layer.forward(x, state, reset=reset, training=True, num_threads=threads)
        grads = layer.backward(out, dy, num_threads=threads)
        results.append([out.y, *parts(out.state), grads.x, *grads.parameters.values()])
    for one, many in zip(*results, strict=True):
        assert_same_bits(many, one)


def test_layouts(dtype):
    layer = rk.GRU(3, 5, bidirectional=True, dtype=dtype, rng=0)
    turned = rk.GRU(3, 5, bidirectional=True, batch_first=True, dtype=dtype)
    turned.load_state_dict(layer.state_dict())
    rng = np.random.default_rng(7)
    x, reset = rng.standard_normal((4, 3, 3)).astype(dtype), rng.random((4, 3)) < 0.4
    y, h = layer(x, reset=reset)
    turned_y, turned_h = turned(x.swapaxes(0, 1), reset=reset.T)
    assert_same_bits(np.ascontiguousarray(turned_y.swapaxes(0, 1)), y)
    assert_same_bits(turned_h, h)
    one, _ = layer(np.ascontiguousarray(x[:, 1]), reset=reset[:, 1])
    assert_same_bits(one, np.ascontiguousarray(y[:, 1]))
    listed, _ = layer(x, reset=reset.tolist())
    assert_same_bits(listed, y)


def test_no_reset_is_none(case, dtype):
    layer = build(case, dtype, 3, 5)
    x = np.random.default_rng(8).standard_normal((4, 3, 3)).astype(dtype)
    assert_same_bits(layer(x, reset=np.zeros((4, 3), bool))[0], layer(x)[0])


def test_resets_past_the_ends_are_none(dtype):
    layer = rk.LSTM(3, 5, bidirectional=True, dtype=dtype, rng=0)
    x = np.random.default_rng(9).standard_normal((4, 2, 3)).astype(dtype)
    reset = np.array([[0, 0], [0, 0], [0, 1], [1, 0]], bool)
    y, (h, c) = layer(x, reset=reset, lengths=[3, 2])
    expected, (h2, c2) = layer(x, lengths=[3, 2])
    for got, wanted in ((y, expected), (h, h2), (c, c2)):
        assert_same_bits(got, wanted)


@pytest.mark.parametrize(
    ("reset", "error", "words"),
    [
        (np.zeros((3, 4), bool), ValueError, ["reset", "T=4", "N=3", "(3, 4)"]),
        (np.zeros(4, bool), ValueError, ["reset", "(4,)"]),
        (np.zeros((4, 3), np.uint8), TypeError, ["reset", "bool", "uint8"]),
        ([[0.0] * 3] * 4, TypeError, ["reset", "bool", "float64"]),
        (True, ValueError, ["reset", "()"]),
        ("0", TypeError, ["reset", "str"]),
    ],
)
def test_errors(reset, error, words):
    layer = rk.RNN(2, 3, rng=0)
    with pytest.raises(error) as caught:
        layer(np.zeros((4, 3, 2), np.float32), reset=reset)
    assert all(word in str(caught.value) for word in words), str(caught.value)

"""Dropout between layers: what is dropped is a function of its place; the rest is exact."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import rnnkernel as rk
from drawn import central_differences, draw, gradient_outputs
from helpers import assert_same_bits, run_script
from reference.dropout import factors, philox
from rnnkernel import _dropout
from tolerances import assert_close_to_differences, assert_output_close

SIZES = [(2, 2, 3, 5), (7, 5, 4, 33), (9, 3, 20, 70)]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the authors' own known answers
        ((0,) * 4, (0, 0), (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A),
        ),
    ],
)
def test_the_generator_is_philox(counter, key, expected):
    assert tuple(int(word) for word in philox(counter, key)) == expected


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("width", [1, 16, 63, 64, 65, 130])
@pytest.mark.parametrize("first_step", [0, 5, 2**32 - 2, 2**40 + 3])
def test_what_is_dropped_is_a_function_of_its_place(dtype, width, first_step, threads):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 7, width)).astype(dtype)
    for p, seed, layer in ((0.3, 2**63 + 12345, 0), (0.75, 7, 3)):
        out = np.full_like(x, np.nan)
        _dropout.dropout(x, out, p, seed, layer, first_step, threads)
        expected = x * factors(x.shape, dtype, p, seed, layer, first_step)
        assert np.array_equal(out, expected)
        in_place = x.transpose(1, 0, 2).copy().transpose(1, 0, 2)
        _dropout.dropout(in_place, in_place, p, seed, layer, first_step, threads)
        assert_same_bits(in_place, out)


def test_many_threads_drop_the_same(dtype):
    x = np.random.default_rng(0).standard_normal((60, 30, 100)).astype(dtype)
    one, many = np.empty_like(x), np.empty_like(x)
    _dropout.dropout(x, one, 0.5, 11, 1, 3, 1)
    _dropout.dropout(x, many, 0.5, 11, 1, 3, 4)
    assert_same_bits(many, one)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_share_and_scale(dtype, p):
    x = np.ones((50, 40, 90), dtype)
    _dropout.dropout(x, x, p, 99, 0, 0, 1)
    kept = x != 0
    assert set(np.unique(x[kept])) == {dtype(1 / (1 - p))}
    deviation = np.sqrt(p * (1 - p))
    assert abs(kept.mean() - (1 - p)) < 5 * deviation / np.sqrt(x.size)
    for axis in ((0, 1), (1, 2), (0, 2)):  # no unit, step or row stands out
        count = kept.size // kept.mean(axis=axis).size
        assert np.abs(kept.mean(axis=axis) - (1 - p)).max() < 5 * deviation / np.sqrt(count)
    for axis in range(3):  # neighbours are independent
        a = np.moveaxis(kept, axis, 0).astype(float) - (1 - p)
        assert abs((a[1:] * a[:-1]).mean()) < 5 * deviation**2 / np.sqrt(a[1:].size)


# -- layers ---------------------------------------------------------------------------------------


def build(case, I, H, *, dtype, dropout=0.4, num_layers=3, rng=1, **options):  # noqa: E741
    return getattr(rk, case.layer)(
        I,
        H,
        num_layers,
        dropout=dropout,
        dtype=dtype,
        rng=rng,
        **case.options,
        **options,
    )


def parts(state):
    return state if isinstance(state, tuple) else (state,)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("first_step", [0, 11])
def test_values_against_the_reference_with_the_same_masks(case, dtype, sizes, first_step):
    T, N, I, H = sizes  # noqa: E741
    p, L = 0.4, 3
    layer = build(case, I, H, dtype=dtype, dropout=p)
    problems = [
        draw(case, T, N, I if k == 0 else H, H, dtype=dtype, seed=k, dy=k == L - 1)
        for k in range(L)
    ]
    for k, problem in enumerate(problems):
        for name, array in problem.weights.items():
            layer.parameters[f"{name}_l{k}"][...] = array
    if first_step:
        layer.forward(np.zeros((first_step, N, I), dtype), training=True)
    state = case.pack([np.stack(s) for s in zip(*(q.states for q in problems), strict=True)])
    dstate = case.pack([np.stack(s) for s in zip(*(q.dstates for q in problems), strict=True)])
    out = layer.forward(problems[0].x, state, training=True)
    grads = layer.backward(out, problems[-1].dy, dstate)

    masks = [
        factors((T, N, H), dtype, p, layer._dropout_seed, k, first_step).astype(np.float64)
        for k in range(L - 1)
    ]
    exact = [problem.astype(np.float64) for problem in problems]
    tapes, x = [], exact[0].x
    for k, problem in enumerate(exact):
        y, final, tape = case.forward(problem.weights, x, case.pack(problem.states))
        tapes.append(tape)
        for name, got, expected in zip(
            case.states, parts(out.state), case.unpack(final), strict=True
        ):
            assert_output_close(got[k], expected, name, problems[k])
        x = y * masks[k] if k < L - 1 else y
    assert_output_close(out.y, y, "y", problems[-1])

    dy = exact[-1].dy
    for k in reversed(range(L)):
        problem = exact[k]
        expected = case.backward(problem.weights, tapes[k], dy, case.pack(problem.dstates))
        named = gradient_outputs(case, expected.x, case.unpack(expected.state), expected.parameters)
        got = gradient_outputs(
            case,
            grads.x,
            [s[k] for s in parts(grads.state)],
            {name: grads.parameters[f"{name}_l{k}"] for name in problem.weights},
        )
        if k > 0:
            del named["dx"], got["dx"]
            dy = expected.x * masks[k - 1]
        for name in named:
            assert_output_close(got[name], named[name], name, problems[k])


def test_gradients_against_finite_differences(case):
    layer = build(case, 3, 5, dtype=np.float64, num_layers=2, bidirectional=True, rng=4)
    rng = np.random.default_rng(2)
    x, dy = rng.standard_normal((4, 2, 3)), rng.standard_normal((4, 2, 10))

    def forward():
        layer._dropout_drawn.steps = 17  # the same masks again
        return layer.forward(x, training=True)

    grads = layer.backward(forward(), dy)
    for name, array, gradient in [
        ("x", x, grads.x),
        *((name, a, grads.parameters[name]) for name, a in layer.parameters.items()),
    ]:
        differences = central_differences(lambda: float((forward().y * dy).sum()), array)
        assert_close_to_differences(gradient, differences, name)


def test_inference_drops_nothing_and_counts_nothing(case, dtype):
    dropping = build(case, 4, 9, dtype=dtype)
    plain = build(case, 4, 9, dtype=dtype, dropout=0.0)
    x = np.random.default_rng(0).standard_normal((6, 3, 4)).astype(dtype)
    for name, array in plain.parameters.items():
        assert_same_bits(dropping.parameters[name], array, name)
    assert_same_bits(dropping(x)[0], plain(x)[0])
    assert_same_bits(dropping.forward(x).y, plain(x)[0])
    first = dropping.forward(x, training=True).y
    assert not np.array_equal(first, plain(x)[0])
    again = build(case, 4, 9, dtype=dtype)
    assert_same_bits(again.forward(x, training=True).y, first)


def test_every_call_drops_afresh_and_the_seed_repeats_it(case):
    x = np.random.default_rng(0).standard_normal((6, 3, 4)).astype(np.float32)
    runs = []
    for seed in (1, 1, 2):
        layer = build(case, 4, 9, dtype=np.float32)  # the same weights
        layer._dropout_seed = build(case, 4, 9, dtype=np.float32, rng=seed)._dropout_seed
        runs.append([layer.forward(x, training=True).y for _ in range(2)])
    assert not np.array_equal(runs[0][0], runs[0][1])
    for first, again in zip(runs[0], runs[1], strict=True):
        assert_same_bits(again, first)
    assert not np.array_equal(runs[0][0], runs[2][0])


@pytest.mark.parametrize("cuts", [[4], [1, 2, 9], list(range(1, 12))], ids=str)
def test_pieces_drop_what_the_whole_would(case, dtype, cuts):
    x = np.random.default_rng(0).standard_normal((12, 3, 4)).astype(dtype)
    out = build(case, 4, 9, dtype=dtype).forward(x, training=True)
    layer, state, pieces = build(case, 4, 9, dtype=dtype), None, []
    for piece in np.split(x, cuts):
        one = layer.forward(piece, state, training=True)
        pieces.append(one.y)
        state = one.state
    assert_same_bits(np.concatenate(pieces), out.y)
    for got, expected in zip(parts(state), parts(out.state), strict=True):
        assert_same_bits(got, expected)


@pytest.mark.parametrize("num_threads", [2, 5])
def test_threads_and_rows_do_not_matter(case, dtype, num_threads):
    x = np.random.default_rng(0).standard_normal((30, 11, 4)).astype(dtype)
    dy = np.random.default_rng(1).standard_normal((30, 11, 2 * 40)).astype(dtype)
    results = []
    for threads in (1, num_threads):
        layer = build(case, 4, 40, dtype=dtype, bidirectional=True)
        out = layer.forward(x, training=True, num_threads=threads)
        results.append((out, layer.backward(out, dy, num_threads=threads)))
    (one, grads_one), (many, grads_many) = results
    assert_same_bits(many.y, one.y)
    assert_same_bits(grads_many.x, grads_one.x)
    for name, gradient in grads_one.parameters.items():
        assert_same_bits(grads_many.parameters[name], gradient, name)
    fewer = build(case, 4, 40, dtype=dtype, bidirectional=True)
    assert_same_bits(fewer.forward(x[:, :3], training=True).y, one.y[:, :3])


def test_layouts_do_not_matter(case, dtype):
    x = np.random.default_rng(0).standard_normal((6, 3, 4)).astype(dtype)
    out = build(case, 4, 9, dtype=dtype).forward(x, training=True)
    first = build(case, 4, 9, dtype=dtype, batch_first=True)
    rows = first.forward(x.transpose(1, 0, 2), training=True)
    assert_same_bits(rows.y.transpose(1, 0, 2), out.y)
    alone = build(case, 4, 9, dtype=dtype)
    assert_same_bits(alone.forward(x[:, 0], training=True).y, out.y[:, 0])


def test_backward_can_run_again_after_other_forwards(case, dtype):
    layer = build(case, 4, 9, dtype=dtype)
    x = np.random.default_rng(0).standard_normal((6, 3, 4)).astype(dtype)
    out = layer.forward(x, training=True)
    before = layer.backward(out, np.ones_like(out.y))
    layer.forward(x, training=True)
    after = layer.backward(out, np.ones_like(out.y))
    assert_same_bits(after.x, before.x)
    for name, gradient in before.parameters.items():
        assert_same_bits(after.parameters[name], gradient, name)


def test_all_or_nothing(case, dtype):
    x = np.random.default_rng(0).standard_normal((6, 3, 4)).astype(dtype)
    layer = build(case, 4, 9, dtype=dtype, dropout=1, num_layers=2)
    out = layer.forward(x, training=True)
    blind = out.y
    assert_same_bits(layer.forward(-x, training=True).y, blind)
    grads = layer.backward(out, np.ones_like(out.y))
    assert not grads.x.any()
    assert not grads.parameters["weight_ih_l1"].any()
    assert grads.parameters["weight_hh_l1"].any()


def test_what_is_dropped_may_be_anything(dtype):
    """A dropped NaN is a zero; a kept one stays, and stays in its row."""
    x = np.full((3, 2, 40), np.nan, dtype)
    x[:, 1] = 1
    _dropout.dropout(x, x, 0.5, 3, 0, 0, 1)
    assert set(np.unique(x[:, 1])) == {0, 2}
    assert np.array_equal(np.isnan(x[:, 0]), factors(x.shape, dtype, 0.5, 3, 0, 0)[:, 0] != 0)


def test_calls_at_once_take_masks_of_their_own():
    layer = rk.GRU(4, 9, 2, dropout=0.5, rng=0)
    x = np.zeros((5, 2, 4), np.float32)
    with ThreadPoolExecutor(8) as pool:
        outs = list(pool.map(lambda _: layer.forward(x, training=True), range(40)))
    assert sorted(out._tape.dropped.first_step for out in outs) == list(range(0, 200, 5))


def test_a_copy_of_a_layer_drops_the_same():
    layer = rk.LSTM(4, 9, 2, dropout=0.5, rng=0)
    x = np.ones((5, 2, 4), np.float32)
    layer.forward(x, training=True)
    twin = copy.deepcopy(layer)
    assert_same_bits(twin.forward(x, training=True).y, layer.forward(x, training=True).y)


def test_a_single_layer_has_nothing_to_drop():
    with pytest.warns(UserWarning, match="dropout.*num_layers=1") as caught:
        layer = rk.GRU(4, 9, dropout=0.5, rng=0)
    assert caught[0].filename == __file__
    x = np.ones((5, 2, 4), np.float32)
    assert_same_bits(layer.forward(x, training=True).y, layer(x)[0])
    assert "dropout=0.5" in repr(layer)


@pytest.mark.parametrize("value", [-0.1, 1.1, np.nan, np.inf])
def test_bad_shares(value):
    with pytest.raises(ValueError, match=r"^dropout: expected a number from 0 to 1, got "):
        rk.LSTM(3, 4, 2, dropout=value)


@pytest.mark.parametrize("value", [True, "0.5", None, [0.5]])
def test_bad_types(value):
    with pytest.raises(TypeError, match=r"^dropout: expected a number, got "):
        rk.LSTM(3, 4, 2, dropout=value)


def test_a_call_that_fails_drops_nothing():
    """The next one drops what it would have dropped."""
    layer = rk.RNN(1, 2, num_layers=2, dropout=0.5, rng=0)
    twin = rk.RNN(1, 2, num_layers=2, dropout=0.5, rng=0)
    state = np.broadcast_to(np.float32(0), (2, 2**44, 2))
    zero = np.frombuffer(bytes(4), np.float32)  # BPTT needs no copy of what nobody can write to
    for given in (zero, zero.copy()):
        with pytest.raises(MemoryError):
            layer.forward(np.broadcast_to(given, (1, 2**44, 1)), state, training=True)
    x = np.ones((6, 3, 1), np.float32)
    assert_same_bits(layer.forward(x, training=True).y, twin.forward(x, training=True).y)


def test_a_signal_s_handler_may_train_too():
    """In the middle of a call that counts its steps, as anywhere."""
    script = """
import signal
import numpy as np
import rnnkernel as rk

layer, x = rk.GRU(4, 4, 2, dropout=0.5, rng=0), np.ones((2, 2, 4), np.float32)
calls = 0

def train(*_):
    global calls
    layer.forward(x, training=True, num_threads=1)
    calls += 1

signal.signal(signal.SIGALRM, train)
signal.setitimer(signal.ITIMER_REAL, 2e-4, 2e-4)
own = 0
while calls < 2000:
    layer.forward(x, training=True, num_threads=1)
    own += 1
signal.setitimer(signal.ITIMER_REAL, 0)
assert layer._dropout_drawn.steps == 2 * (own + calls), (layer._dropout_drawn.steps, own, calls)
"""
    run_script(script, timeout=120)


def test_a_copy_counts_its_own_steps():
    layer = rk.GRU(3, 4, 2, dropout=0.5, rng=0)
    layer.forward(np.ones((5, 1, 3), np.float32), training=True)
    for other in (copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other._dropout_drawn.steps == 5
        other.forward(np.ones((2, 1, 3), np.float32), training=True)
        assert (layer._dropout_drawn.steps, other._dropout_drawn.steps) == (5, 7)

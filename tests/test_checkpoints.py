"""`checkpoint_every`: the bits of the run that keeps every gate, in the memory of few of them."""

import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import rnnkernel as rk
from helpers import assert_same_bits
from reference import LSTM_VARIANTS
from sequences import like, normal_state, parts

T, N, I, H = 23, 5, 4, 19  # noqa: E741
EVERY = [1, 7, 22, 40]

STACKS = {
    "single": {},
    "both": {"bidirectional": True},
    "stack": {"num_layers": 3, "bidirectional": True, "batch_first": True, "dropout": 0.3},
}
BATCHES = {
    "plain": {},
    "lengths": {"lengths": np.array([9, 23, 0, 5, 14])},
    "short": {"lengths": np.array([3, 2, 0, 4, 1])},
    "empty": {"lengths": np.zeros(N, int)},
    "reset": {"reset": np.random.default_rng(4).random((T, N)) < 0.2},
    "both": {
        "lengths": np.array([9, 23, 0, 5, 14]),
        "reset": np.random.default_rng(5).random((T, N)) < 0.2,
    },
}


def build(case, dtype, **options):
    return getattr(rk, case.layer)(I, H, dtype=dtype, rng=3, **case.options, **options)


def run(build_layer, batch, *, every, dtype, sizes=(T, N, I), num_threads=1, **backward):
    """Everything that comes out, by name, of a fresh layer."""
    layer = build_layer()
    steps, rows, _ = sizes
    rng = np.random.default_rng(0)
    state = normal_state(layer, rows, rng)
    dstate = like([rng.standard_normal(s.shape).astype(dtype) for s in parts(state)])
    x = rng.standard_normal(sizes).astype(dtype)
    given = {"num_threads": num_threads, **batch}
    if layer.batch_first:
        x = x.transpose(1, 0, 2)
        if "reset" in given:
            given["reset"] = given["reset"].T
    out = layer.forward(x, state, training=True, checkpoint_every=every, **given)
    dy = rng.standard_normal(out.y.shape).astype(dtype)
    grads = layer.backward(out, dy, dstate, num_threads=num_threads, **backward)
    named = {"y": out.y, **dict(enumerate(parts(out.state)))}
    named |= {f"d{k}": array for k, array in enumerate(parts(grads.state))}
    named |= grads.parameters
    if grads.x is not None:
        named["dx"] = grads.x
    if grads.flow is not None:
        named |= {f"flow {name}": a for name, a in vars(grads.flow).items() if a is not None}
    return named


def assert_same(got, expected):
    __tracebackhide__ = True
    assert got.keys() == expected.keys()
    for name in expected:
        assert_same_bits(got[name], expected[name], name)


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES.keys())
@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS.keys())
def test_same_bits(case, dtype, stack, batch):
    def layer():
        return build(case, dtype, **stack)

    clip = {"clip": rk.Clip(value=0.8, norm=1.5), "flow": True}
    for backward, cuts in (({}, [5]), (clip, EVERY)):
        expected = run(layer, batch, every=None, dtype=dtype, **backward)
        for every in cuts:
            assert_same(run(layer, batch, every=every, dtype=dtype, **backward), expected)


VARIANTS = [case for case in LSTM_VARIANTS.values() if not case.options.get("proj_size")]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda case: case.name)
def test_same_bits_of_lstm_options(variant):
    def layer():
        return build(variant, np.float32, num_layers=2)

    for batch in (BATCHES["plain"], BATCHES["both"]):
        expected = run(layer, batch, every=None, dtype=np.float32)
        assert_same(run(layer, batch, every=4, dtype=np.float32), expected)


@pytest.mark.parametrize("sizes", [(300, 3, I), (400, 1, I), (9, 70, I)], ids=str)
def test_same_bits_past_any_chunk_and_tile(case, dtype, sizes):
    def layer():
        return build(case, dtype)

    for num_threads in (1, 3):
        options = {"dtype": dtype, "sizes": sizes, "num_threads": num_threads}
        expected = run(layer, {}, every=None, **options)
        for every in (4, 17, 130):
            assert_same(run(layer, {}, every=every, **options), expected)


def test_without_the_gradient_of_x(case):
    def layer():
        return build(case, np.float32)

    for batch in (BATCHES["plain"], BATCHES["lengths"]):
        expected = run(layer, batch, every=None, dtype=np.float32, input_grad=False)
        got = run(layer, batch, every=4, dtype=np.float32, input_grad=False)
        assert "dx" not in got
        assert_same(got, expected)


def test_backward_again_and_at_once(case):
    layer = build(case, np.float32)
    x = np.random.default_rng(0).standard_normal((T, N, I)).astype(np.float32)
    out = layer.forward(x, training=True, checkpoint_every=4)
    expected = layer.backward(out, np.ones_like(out.y))
    with ThreadPoolExecutor(4) as pool:
        many = list(pool.map(lambda _: layer.backward(out, np.ones_like(out.y)), range(8)))
    for grads in many:
        assert_same_bits(grads.x, expected.x)
        assert_same(grads.parameters, expected.parameters)


def test_parameters_that_change_do_not_matter(case):
    layer = build(case, np.float32)
    x = np.random.default_rng(0).standard_normal((T, N, I)).astype(np.float32)
    out = layer.forward(x, training=True, checkpoint_every=4)
    expected = layer.backward(out, np.ones_like(out.y))
    for array in (x, *layer.parameters.values()):
        array[...] = 7
    assert_same_bits(layer.backward(out, np.ones_like(out.y)).x, expected.x)


def memory(layer, x, every):
    """Bytes that forward leaves with its output, and the most that backward takes beside."""
    tracemalloc.start()
    try:
        out = layer.forward(x, training=True, checkpoint_every=every, num_threads=1)
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        layer.backward(out, dstate=out.state, input_grad=False, num_threads=1)
        return kept, tracemalloc.get_traced_memory()[1] - kept
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("cell", ["GRU", "LSTM"])
def test_memory(cell):
    """In numbers of H: gates are 4 or 5 per step and row, states 1 or 2."""
    steps, rows, hidden, every = 1024, 4, 64, 32
    layer = getattr(rk, cell)(4, hidden, dtype=np.float64)
    x = np.zeros((steps, rows, 4))
    gates, states = {"GRU": (4, 1), "LSTM": (5, 2)}[cell]
    unit = rows * hidden * 8
    plain, plain_peak = memory(layer, x, None)
    kept, peak = memory(layer, x, every)
    assert plain - kept >= gates * unit * steps - states * unit * (steps // every + 2) - 20_000
    # beside weights and their gradients, which any run has
    assert peak - plain_peak <= gates * unit * every + 8 * unit + 20_000


def test_inference_keeps_nothing_anyway(case):
    layer = build(case, np.float32)
    x = np.random.default_rng(0).standard_normal((T, N, I)).astype(np.float32)
    assert_same_bits(layer.forward(x, checkpoint_every=3).y, layer(x)[0])


@pytest.mark.parametrize("every", [0, -1, -(2**70)])
def test_bad_values(every):
    with pytest.raises(ValueError, match="^checkpoint_every: expected an integer >= 1, got "):
        rk.GRU(I, H).forward(np.zeros((T, N, I), np.float32), training=True, checkpoint_every=every)


@pytest.mark.parametrize("every", [True, 2.0, "2", [2]])
def test_bad_types(every):
    with pytest.raises(TypeError, match="^checkpoint_every: expected an integer, got "):
        rk.GRU(I, H).forward(np.zeros((T, N, I), np.float32), training=True, checkpoint_every=every)


def test_a_trace_wants_every_gate():
    x = np.zeros((T, N, I), np.float32)
    with pytest.raises(ValueError, match="^checkpoint_every: expected None with trace=True, got 4"):
        rk.GRU(I, H).forward(x, training=True, trace=True, checkpoint_every=4)


def test_more_than_fits_an_index():
    x = np.zeros((T, N, I), np.float32)
    layer = rk.GRU(I, H)
    out = layer.forward(x, training=True, checkpoint_every=2**80)
    assert_same_bits(out.y, layer(x)[0])

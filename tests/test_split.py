"""Threads that split the batch or the units, or take units of one another: the bits of one."""

import numpy as np
import pytest
from rnnkernel._kernels import compiler

import rnnkernel as rk
from batches import KINDS, batch
from helpers import assert_same_bits
from rnnkernel import _plan, _stack
from sequences import parts

LAYERS = {
    "rnn": (rk.RNN, {}),
    "gru after": (rk.GRU, {}),
    "gru before": (rk.GRU, {"reset_after": False}),
    "lstm": (rk.LSTM, {}),
    "lstm options": (rk.LSTM, {"peephole": True, "coupled": True, "cell_clip": 0.7}),
    "lstm projection": (rk.LSTM, {"proj_size": 70}),
}


@pytest.fixture(params=LAYERS.values(), ids=LAYERS.keys())
def layer(request, dtype):
    cls, options = request.param
    layer = cls(11, 147, 2, bidirectional=True, dtype=dtype, rng=0, **options)
    layer.held = layer.parameters  # so that every call packs
    return layer


@pytest.fixture(params=["rows", "units", "taking"])
def split(request, monkeypatch):
    """However little there is to do, and whatever is measured to be faster."""
    monkeypatch.setattr(_plan, "SERIAL_FLOPS", 0.0)
    monkeypatch.setattr(_plan, "SPLIT", "rows" if request.param == "rows" else "units")
    # others can only take what the first thread has not begun
    monkeypatch.setattr(_plan, "TAKING", "all" if request.param == "taking" else False)
    return request.param


@pytest.mark.parametrize("kind", KINDS)
def test_batches(layer, split, kind):
    x, state, arguments = batch(layer, kind)
    expected, last = layer(x, state, num_threads=1, **arguments)
    for threads in (2, 3):
        for training in (False, True):
            out = layer.forward(x, state, num_threads=threads, training=training, **arguments)
            assert_same_bits(out.y, expected, f"{threads} threads")
            for actual, wanted in zip(parts(out.state), parts(last), strict=True):
                assert_same_bits(actual, wanted, f"{threads} threads")


@pytest.mark.parametrize("N", [1, 2, 7])
def test_one_row_and_one_step(layer, split, N):
    x, state, _ = batch(layer, "equal", T=1, N=N)
    expected, last = layer(x, state, num_threads=1)
    y, after = layer(x, state, num_threads=4)
    assert_same_bits(y, expected)
    for actual, wanted in zip(parts(after), parts(last), strict=True):
        assert_same_bits(actual, wanted)


@pytest.mark.parametrize("weights", [None, "float16", "int8"])
@pytest.mark.parametrize("N", [1, 5])
def test_streams(split, monkeypatch, weights, N):
    layer = rk.LSTM(11, 147, 2, rng=0)
    x = np.random.default_rng(1).standard_normal((6, N, 11)).astype(np.float32)
    frozen = layer.freeze(weights)
    expected, _ = frozen(x, num_threads=1)
    monkeypatch.setattr("rnnkernel._threads._requested", 3)
    stream = frozen.stream(N)
    for t in range(6):
        assert_same_bits(stream.step(x[t]), expected[t], f"step {t}")


@pytest.mark.parametrize(
    ("threads", "kind"), [*((2, kind) for kind in KINDS), (3, "equal"), (3, "ragged")]
)
def test_rows_that_change_hands(layer, monkeypatch, threads, kind):
    """The first thread has all rows, and the others take over some of what it has left."""
    x, state, arguments = batch(layer, kind, T=40, N=72)
    expected, last = layer(x, state, num_threads=1, **arguments)
    monkeypatch.setattr(_plan, "SERIAL_FLOPS", 0.0)
    monkeypatch.setattr(_plan, "SPLIT", "rows")
    monkeypatch.setattr(_plan, "TAKING", "all")
    monkeypatch.setattr(_stack, "TEAMS", 1)  # else each direction may have a thread of its own
    taken = not compiler()[2]  # with one thread there is nobody to take
    for call in range(50):
        with rk.profile() as profile:
            out = layer.forward(x, state, num_threads=threads, training=call % 2 == 1, **arguments)
        assert_same_bits(out.y, expected, f"call {call}")
        for actual, wanted in zip(parts(out.state), parts(last), strict=True):
            assert_same_bits(actual, wanted, f"call {call}")
        taken = taken or profile.records[0].phases["loop"][threads - 1] > 0
        if taken and call > 2:
            break
    assert taken

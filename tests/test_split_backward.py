"""Backward with threads that split the batch, or the units, or take a direction each: the bits of
one thread."""

import numpy as np
import pytest

import rnnkernel as rk
from helpers import assert_same_bits, run_python
from reference import LSTM_VARIANTS, lstm_case
from rnnkernel import _backward
from sequences import normal_state, parts

# (T, N, I, H): few rows and many, units that no number of vectors divides, chunks of one step
SIZES = [(37, 7, 5, 67), (130, 1, 21, 130), (5, 300, 9, 21), (70, 13, 3, 33)]


def gradients(layer, sizes, *, num_threads, batch, **backward):
    """All that backward returns, by name."""
    T, N, inputs, _ = sizes
    rng = np.random.default_rng(0)
    state, dstate = normal_state(layer, N, rng), normal_state(layer, N, rng)
    x = rng.standard_normal((T, N, inputs)).astype(layer.dtype)
    given = {}
    if "lengths" in batch:
        given["lengths"] = rng.integers(0, T + 1, N)
    if "reset" in batch:
        given["reset"] = rng.random((T, N)) < 0.1
    out = layer.forward(x, state, training=True, num_threads=1, **given)
    dy = rng.standard_normal(out.y.shape).astype(layer.dtype)
    grads = layer.backward(out, dy, dstate, num_threads=num_threads, **backward)
    named = {"x": grads.x, **grads.parameters, **dict(enumerate(parts(grads.state)))}
    if grads.flow is not None:
        named |= {name: a for name, a in vars(grads.flow).items() if a is not None}
    return named


def check(monkeypatch, layer, sizes, **arguments):
    __tracebackhide__ = True
    monkeypatch.setattr(_backward, "SPLIT", "rows")
    expected = gradients(layer, sizes, num_threads=1, **arguments)
    for num_threads in (1, 2, 3, 5):
        for split in ("rows", "units", None):
            for teams in (1, 2) if layer.bidirectional else (None,):
                monkeypatch.setattr(_backward, "SPLIT", split)
                monkeypatch.setattr(_backward, "TEAMS", teams)
                got = gradients(layer, sizes, num_threads=num_threads, **arguments)
                assert got.keys() == expected.keys()
                for name in expected:
                    way = f"{split}, {teams}, {num_threads}: {name}"
                    assert_same_bits(got[name], expected[name], way)


@pytest.mark.parametrize("batch", ["full", "lengths", "reset", "lengths and reset"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_sequences(case, dtype, sizes, batch, monkeypatch):
    layer = getattr(rk, case.layer)(*sizes[2:], dtype=dtype, rng=1, **case.options)
    check(monkeypatch, layer, sizes, batch=batch)


@pytest.mark.parametrize("clip", [{"value": 0.3}, {"norm": 0.7}, {"value": 0.4, "norm": 0.9}])
def test_clipping_and_norms(case, dtype, clip, monkeypatch):
    sizes = (37, 7, 5, 67)
    layer = getattr(rk, case.layer)(*sizes[2:], dtype=dtype, rng=1, **case.options)
    for flow in (False, True):
        check(monkeypatch, layer, sizes, batch="lengths", clip=rk.Clip(**clip), flow=flow)


@pytest.mark.parametrize("variant", LSTM_VARIANTS.values(), ids=LSTM_VARIANTS.keys())
def test_lstm_options(variant, monkeypatch):
    sizes = (37, 7, 5, 67)
    layer = rk.LSTM(*sizes[2:], rng=1, **variant.options)
    check(monkeypatch, layer, sizes, batch="lengths and reset")


@pytest.mark.parametrize("proj_size", [1, 17, 66])
def test_projections(dtype, proj_size, monkeypatch):
    sizes = (37, 7, 5, 67)
    layer = rk.LSTM(*sizes[2:], dtype=dtype, rng=1, **lstm_case(proj_size=proj_size).options)
    for arguments in ({}, {"clip": rk.Clip(norm=0.7), "flow": True}):
        check(monkeypatch, layer, sizes, batch="lengths and reset", **arguments)


@pytest.mark.parametrize("batch", ["full", "lengths and reset"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_directions(case, dtype, sizes, batch, monkeypatch):
    layer = getattr(rk, case.layer)(
        *sizes[2:], 2, bidirectional=True, dtype=dtype, rng=1, **case.options
    )
    check(monkeypatch, layer, sizes, batch=batch)
    monkeypatch.setattr(_backward, "TEAMS", 2)
    check(monkeypatch, layer, sizes, batch=batch, clip=rk.Clip(norm=0.7), flow=True)


@pytest.mark.parametrize("threads", [2, 3, 5])
@pytest.mark.parametrize("kind", ["dense", "lengths", "reset", "ids", "embedding", "constant"])
def test_threads_apart(case, kind, threads, monkeypatch):
    """Who is early goes on to the next chunk, and who is late finds its steps done: that differs
    from call to call."""
    T, N, inputs, _ = sizes = 157, 21, 9, 40  # chunks of 12 steps, and one of a single step
    layer = getattr(rk, case.layer)(inputs, sizes[3], rng=1, **case.options)
    rng = np.random.default_rng(0)
    x, given = rng.standard_normal((T, N, inputs)).astype(layer.dtype), {}
    if kind == "lengths":  # the end by units, if cost decides
        given["lengths"] = rng.integers(0, T + 1, N)
    elif kind == "reset":
        given["reset"] = rng.random((T, N)) < 0.1
    elif kind == "ids":
        x = rng.integers(0, inputs, (T, N))
    elif kind == "embedding":
        x = rng.integers(0, 700, (T, N))
        given["embedding"] = rng.standard_normal((700, inputs)).astype(layer.dtype)
    elif kind == "constant":
        x = np.broadcast_to(x[0], x.shape)
    out = layer.forward(x, training=True, num_threads=1, **given)
    dy = rng.standard_normal(out.y.shape).astype(layer.dtype)
    dstate = normal_state(layer, N, rng)

    def named(threads):
        grads = layer.backward(out, dy, dstate, num_threads=threads)
        found = {"x": grads.x, "embedding": grads.embedding, **grads.parameters}
        found |= dict(enumerate(parts(grads.state)))
        return {name: array for name, array in found.items() if array is not None}

    expected = named(1)
    for call in range(20):
        monkeypatch.setattr(_backward, "SPLIT", "rows" if call % 2 else None)
        got = named(threads)
        assert got.keys() == expected.keys()
        for name in expected:
            assert_same_bits(got[name], expected[name], f"call {call}: {name}")


@pytest.mark.parametrize("embedding", [False, True])
def test_directions_of_ids(case, dtype, embedding, monkeypatch):
    layer = getattr(rk, case.layer)(19, 33, bidirectional=True, dtype=dtype, rng=1, **case.options)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 11, (40, 9))
    table = rng.standard_normal((11, 19)).astype(dtype) if embedding else None
    out = layer.forward(ids, embedding=table, training=True)
    results = []
    for teams, threads in [(1, 1), (1, 2), (2, 2), (2, 3), (2, 4)]:
        monkeypatch.setattr(_backward, "TEAMS", teams)
        grads = layer.backward(out, out.y, num_threads=threads)
        results.append([*grads.parameters.values()] + ([grads.embedding] if embedding else []))
    for other in results[1:]:
        for one, expected in zip(other, results[0], strict=True):
            assert_same_bits(one, expected)


def test_denormal_sums_of_directions_are_zero(monkeypatch):
    """However the directions are run: dx of each is a normal number, and their sum is not."""
    layer = rk.RNN(5, 16, bidirectional=True, bias=False, rng=0)
    for array in layer.parameters.values():
        array[...] = 0
    layer.parameters["weight_ih_l0"][...] = np.eye(16, 5)
    layer.parameters["weight_ih_l0_reverse"][...] = -np.eye(16, 5)
    out = layer.forward(np.zeros((50, 8, 5), np.float32), training=True)
    dy = np.repeat(np.array([1.5e-38, 1.2e-38], np.float32), 16) + np.zeros_like(out.y)
    for teams, threads in ((1, 1), (1, 2), (2, 2)):
        monkeypatch.setattr(_backward, "TEAMS", teams)
        assert not layer.backward(out, dy, num_threads=threads).x.any(), (teams, threads)
    alone = layer.backward(out, dy * (np.arange(32) < 16)).x
    assert np.all(alone == np.float32(1.5e-38))


FEWER = """
import numpy as np
import rnnkernel as rk
from rnnkernel import _backward, _kernels

layer = rk.LSTM(16, 40, bidirectional=True, rng=0)
x = np.random.default_rng(0).standard_normal((50, 12, 16)).astype(np.float32)
out = layer.forward(x, training=True, num_threads=1)
_backward.TEAMS = 1
expected = layer.backward(out, out.y, num_threads=1)
for _backward.TEAMS in (1, 2):
    grads = layer.backward(out, out.y, num_threads=4)
    assert grads.x.tobytes() == expected.x.tobytes()
    for name, array in expected.parameters.items():
        assert grads.parameters[name].tobytes() == array.tobytes(), name
"""


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_fewer_threads_than_asked_for(limit):
    done = run_python("-c", FEWER, OMP_THREAD_LIMIT=str(limit))
    assert done.returncode == 0, done.stderr

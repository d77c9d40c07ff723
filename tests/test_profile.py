"""`rk.profile()`: phases that add up to the calls of one thread; the bits are those without."""

import threading

import numpy as np
import pytest
from rnnkernel._kernels import compiler

import rnnkernel as rk
from rnnkernel import _backward, _plan

FORWARD = {"set-up", "pack", "projection", "loop"}
BACKWARD = {"set-up", "loop", "weight gradients", "input gradient", "unpack"}
# enough arithmetic for a team of two
T, N, I, H = 24, 16, 20, 64  # noqa: E741


def layer_and_x(cell, dtype="float32", **options):
    layer = cell(I, H, dtype=dtype, rng=0, **options)
    x = np.random.default_rng(1).standard_normal((T, N, I)).astype(dtype)
    return layer, x


def both(layer, x, threads, **options):
    out = layer.forward(x, training=True, num_threads=threads, **options)
    return out, layer.backward(out, np.ones_like(out.y), num_threads=threads)


def assert_consistent(record, threads):
    used = {len(seconds) for seconds in record.phases.values()}
    assert len(used) == 1 and used <= set(range(1, threads + 1))
    table = np.array(list(record.phases.values()))
    assert (table >= 0).all()
    # the calling thread's phases are the call; no other thread was busy for longer
    assert table[:, 0].sum() == pytest.approx(record.seconds, rel=1e-6)
    assert (table.sum(axis=0) <= record.seconds * (1 + 1e-6)).all()


@pytest.mark.parametrize("split", ["rows", "units"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("cell", [rk.RNN, rk.GRU, rk.LSTM])
def test_phases_add_up(cell, threads, split, monkeypatch):
    monkeypatch.setattr(_plan, "SPLIT", split)
    monkeypatch.setattr(_backward, "SPLIT", split)
    layer, x = layer_and_x(cell, num_layers=2, bidirectional=True)
    with rk.profile() as p:
        layer(x, num_threads=threads)
        both(layer, x, threads)
    inference, forward, backward = p.records
    for record, phases in ((inference, FORWARD), (forward, FORWARD), (backward, BACKWARD)):
        assert phases <= set(record.phases) <= phases | {"waiting"}
        assert_consistent(record, threads)
    assert inference.name == f"{layer!r}.forward()"
    assert forward.name == f"{layer!r}.forward(training=True)"
    assert backward.name == f"{layer!r}.backward()"


def test_each_thread_has_its_phases():
    """One of them may have come too late to find any work."""
    layer, x = layer_and_x(rk.LSTM)
    with rk.profile() as p:
        both(layer, x, 2)
    threads = 2 if compiler()[2] else 1  # the kernels may be built without any
    for record in p.records:
        assert len(record.phases["loop"]) == threads
        assert sum(record.phases["loop"]) > 0
        assert not any(record.phases["set-up"][1:])


@pytest.mark.parametrize("threads", [1, 2])
def test_bits_are_those_without(threads):
    layer, x = layer_and_x(rk.GRU, bidirectional=True)
    out, grads = both(layer, x, threads)
    with rk.profile():
        recorded, recorded_grads = both(layer, x, threads)
    assert np.array_equal(out.y, recorded.y)
    assert np.array_equal(grads.x, recorded_grads.x)
    for name, value in grads.parameters.items():
        assert np.array_equal(value, recorded_grads.parameters[name])


def test_a_frozen_layer_packs_nothing():
    layer, x = layer_and_x(rk.LSTM)
    with rk.profile() as p:
        frozen = layer.freeze()
        frozen(x)
    (record,) = p.records
    assert record.name == f"{frozen!r}.forward()"
    assert FORWARD - {"pack"} <= set(record.phases) <= FORWARD - {"pack"} | {"waiting"}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("x_t", ["vectors", "ids"])
def test_steps_of_a_stream(threads, x_t):
    layer = rk.LSTM(I, 300, num_layers=2, rng=0)
    x = np.random.default_rng(1).standard_normal((T, N, I)).astype(np.float32)
    if x_t == "ids":
        x = np.random.default_rng(1).integers(0, I, (T, N))
    before = rk.get_num_threads()
    try:
        rk.set_num_threads(threads)
        stream, other = layer.stream(N), layer.stream(N)
    finally:
        rk.set_num_threads(before)
    expected = [other.step(step) for step in x]
    stream.step(x[0])
    with rk.profile() as p:
        stream.state = None
        with pytest.raises(ValueError):
            stream.step(x[0, 1:])
        y = [stream.step(step) for step in x]
    stream.step(x[0])
    assert len(p.records) == T
    assert np.array_equal(y, expected)
    team = threads if compiler()[2] else 1
    for record in p.records:
        assert record.name == f"{stream!r}.step()"
        assert {"set-up", "projection", "loop"} <= set(record.phases)
        assert set(record.phases) <= {"set-up", "projection", "loop", "waiting"}
        assert_consistent(record, team)
        assert len(record.phases["loop"]) == team
        assert all(seconds > 0 for seconds in record.phases["loop"])


def test_steps_on_other_threads_are_left_out():
    layer, x = layer_and_x(rk.GRU)
    stream = layer.stream(N)
    with rk.profile() as p, rk.profile() as inner:
        thread = threading.Thread(target=stream.step, args=(x[0],))
        thread.start()
        thread.join()
    assert p.records == inner.records == []
    with p:
        stream.step(x[0])
        with inner:
            stream.step(x[0])
        stream.step(x[0])
    assert (len(p.records), len(inner.records)) == (2, 1)


def test_lengths_tokens_and_checkpoints():
    layer, x = layer_and_x(rk.LSTM)
    ids = np.random.default_rng(0).integers(0, I, (T, N))
    with rk.profile() as p:
        both(layer, x, 2, lengths=np.arange(N) % T)
        both(layer, ids, 2)
        both(layer, x, 2, checkpoint_every=5)
    for record in p.records:
        assert_consistent(record, 2)
    again = p.records[-1]
    assert {"projection", "loop", "weight gradients"} <= set(again.phases)  # gates once more
    assert "input gradient" not in p.records[3].phases


def test_only_inside_the_with():
    layer, x = layer_and_x(rk.RNN)
    layer(x)
    with rk.profile() as p:
        layer(x)
    layer(x)
    assert len(p.records) == 1
    with pytest.raises(KeyError):
        with p:
            layer(x)
            raise KeyError
    layer(x)
    assert len(p.records) == 2


def test_the_innermost_records():
    layer, x = layer_and_x(rk.RNN)
    with rk.profile() as outer:
        layer(x)
        with rk.profile() as inner:
            layer(x)
            layer(x)
        layer(x)
    assert (len(outer.records), len(inner.records)) == (2, 2)


def test_other_threads_are_left_out():
    layer, x = layer_and_x(rk.RNN)
    with rk.profile() as p:
        thread = threading.Thread(target=layer, args=(x,))
        thread.start()
        thread.join()
        assert p.records == []
        layer(x)
    assert len(p.records) == 1


def test_a_call_that_fails_is_no_record():
    layer, x = layer_and_x(rk.LSTM)
    with rk.profile() as p:
        with pytest.raises(ValueError):
            layer(x[:, :, 1:])
        layer(x)
        with pytest.raises(ValueError):
            layer(x, lengths=[T + 1] * N)
    (record,) = p.records
    assert_consistent(record, rk.get_num_threads())


def test_an_empty_sequence():
    layer, x = layer_and_x(rk.LSTM)
    with rk.profile() as p:
        both(layer, x[:0], 2)
    for record in p.records:
        assert_consistent(record, 2)


def test_in_use():
    with rk.profile() as p:
        with pytest.raises(RuntimeError, match="profile"):
            with p:
                pass


def test_printed():
    layer, x = layer_and_x(rk.LSTM)
    assert str(rk.profile()) == "no calls"
    with rk.profile() as p:
        for _ in range(3):
            both(layer, x, 1)
    text = str(p)
    assert text.count("calling thread") == 2  # a table for each kind of call
    assert f"{layer!r}.forward(training=True): 3 calls" in text
    lines = text.splitlines()
    for phase in FORWARD | BACKWARD:
        assert any(line.startswith(f"  {phase} ") for line in lines)
    shares = [int(line.split()[-2]) for line in lines if line.endswith("%")]
    assert 190 <= sum(shares) <= 210  # of two tables, each rounded

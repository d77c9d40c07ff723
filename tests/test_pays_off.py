"""A team of threads is opened for what it makes faster, and one thread does the rest."""

import numpy as np
import pytest
from rnnkernel._kernels import compiler

import rnnkernel as rk
from helpers import assert_same_bits
from rnnkernel import _plan, _teamwork

TWO = 2 if compiler()[2] else 1  # as many as there can be


DEAR, CHEAP = 1.0, 0.1  # what it may cost to work together
FOR_EVER = 1 << 60


@pytest.fixture(autouse=True)
def teams_cost(monkeypatch):
    """The most, and threads are awake, as they are to a call that follows another."""
    monkeypatch.setattr(_plan, "TEAMS_ARE_FREE", False)
    monkeypatch.setattr(_teamwork, "COST", DEAR)
    before = _teamwork.set_awake(FOR_EVER)
    yield
    _teamwork.set_awake(before)


def threads_of(*calls):
    """How many threads each of some calls has."""
    with rk.profile() as profile:
        for call in calls:
            call()
    return [max(map(len, record.phases.values())) for record in profile.records]


def both(layer, x):
    def forward():
        out = layer.forward(x, training=True, num_threads=2)
        grads.append(lambda: layer.backward(out, np.ones_like(out.y), num_threads=2))

    grads = []
    return forward, lambda: grads[-1]()


@pytest.mark.parametrize("cls", [rk.RNN, rk.GRU, rk.LSTM])
def test_small_and_large_batches(cls):
    layer, rng = cls(64, 64, rng=0), np.random.default_rng(1)
    x = rng.standard_normal((200, 64, 64)).astype(np.float32)
    frozen = layer.freeze()
    assert threads_of(lambda: frozen(x[:1, :8], num_threads=2), *both(layer, x[:3, :8])) == [1] * 3
    assert threads_of(lambda: frozen(x, num_threads=2), *both(layer, x)) == [TWO] * 3


def test_training_costs_more():
    """Of a few steps inference gains and training does not: its weights are new to the others."""
    layer = rk.LSTM(64, 64, rng=0)
    x = np.random.default_rng(1).standard_normal((8, 12, 64)).astype(np.float32)
    frozen = layer.freeze()
    assert threads_of(lambda: frozen(x, num_threads=2), *both(layer, x)) == [TWO, 1, 1]


def small_calls(layer):
    """Whose threads save less than it takes to wake them."""
    T = {rk.LSTM: 4, rk.GRU: 8, rk.RNN: 16}[type(layer)]
    x = np.random.default_rng(1).standard_normal((T, 12, layer.input_size)).astype(layer.dtype)
    frozen = layer.freeze()
    return lambda: frozen(x, num_threads=2), *both(layer, x)


@pytest.mark.parametrize("cls", [rk.RNN, rk.GRU, rk.LSTM])
def test_cheap_teamwork(cls, monkeypatch):
    """Calls that are too small for a team where it is dear have one where it is not."""
    calls = small_calls(cls(40, 40, rng=0))
    assert threads_of(*calls) == [1] * 3
    monkeypatch.setattr(_teamwork, "COST", CHEAP)
    assert threads_of(*calls) == [TWO] * 3


def test_threads_that_sleep(monkeypatch):
    """Nobody wakes them for a small call, but for a large one."""
    layer = rk.LSTM(40, 40, rng=0)
    calls = small_calls(layer)
    monkeypatch.setattr(_teamwork, "COST", CHEAP)
    _teamwork.set_awake(-1)
    assert threads_of(*calls) == [1] * 3
    large = np.ones((200, 64, 40), np.float32)
    frozen = layer.freeze()
    assert threads_of(lambda: frozen(large, num_threads=2), *both(layer, large)) == [TWO] * 3


def test_streams_whose_threads_sleep(monkeypatch):
    monkeypatch.setattr("rnnkernel._threads._requested", 2)
    monkeypatch.setattr(_teamwork, "COST", CHEAP)
    stream, x = rk.LSTM(64, 64, rng=0).freeze().stream(16), np.ones((16, 64), np.float32)
    assert threads_of(lambda: stream.step(x)) == [TWO]
    _teamwork.set_awake(-1)
    assert threads_of(lambda: stream.step(x)) == [1]


def test_streams_that_live_long(monkeypatch):
    """The cores of a virtual machine may come nearer to one another, and go apart."""
    monkeypatch.setattr("rnnkernel._threads._requested", 2)
    stream, x = rk.LSTM(64, 64, rng=0).freeze().stream(16), np.ones((16, 64), np.float32)
    for cost, threads in ((DEAR, 1), (CHEAP, TWO), (DEAR, 1), (CHEAP, TWO)):
        monkeypatch.setattr(_teamwork, "COST", cost)
        _teamwork.measure_again()
        assert threads_of(*[lambda: stream.step(x)] * 40) == [threads] * 40


@pytest.mark.parametrize("cls", [rk.RNN, rk.GRU, rk.LSTM])
def test_teams_that_pack_and_copy(cls, monkeypatch):
    """One thread, or a team where that is cheap: x, weights and gradients are the same."""
    layer, rng = cls(61, 83, rng=0), np.random.default_rng(1)
    x = rng.standard_normal((19, 13, 61)).astype(np.float32)  # 60 KB, and may be written to
    results = []
    for cost in (DEAR, CHEAP / 10):
        monkeypatch.setattr(_teamwork, "COST", cost)
        out = layer.forward(x, training=True, num_threads=3)
        grads = layer.backward(out, np.ones_like(out.y), num_threads=3)
        results.append([out.y, grads.x, *grads.parameters.values()])
    for one, team in zip(*results, strict=True):
        assert_same_bits(team, one)


def test_teamwork_is_measured(monkeypatch):
    monkeypatch.setattr(_teamwork, "COST", None)
    costs = [_teamwork.cost(team) for team in (1, TWO, TWO)]
    assert costs[0] == 1
    assert 0 < costs[1] <= 1
    assert costs[2] == costs[1]  # nothing was called since


def test_weights_that_one_cache_does_not_hold():
    """Two may, and then one row and step is enough."""
    layer = rk.LSTM(768, 768, rng=0)  # 19 MB
    x = np.ones((1, 1, 768), np.float32)
    frozen = layer.freeze()
    assert threads_of(lambda: frozen(x, num_threads=2), *both(layer, x)) == [TWO] * 3


def test_streams(monkeypatch):
    monkeypatch.setattr("rnnkernel._threads._requested", 2)
    for H, N, threads in ((64, 2, 1), (256, 64, TWO)):
        stream = rk.LSTM(H, H, rng=0).freeze().stream(N)
        x = np.ones((N, H), np.float32)
        assert threads_of(lambda stream=stream, x=x: stream.step(x)) == [threads]

"""A team of threads is opened for what it makes faster, and one thread does the rest."""

import numpy as np
import pytest
from rnnkernel._kernels import compiler

import rnnkernel as rk
from rnnkernel import _plan

TWO = 2 if compiler()[2] else 1  # as many as there can be


@pytest.fixture(autouse=True)
def teams_cost(monkeypatch):
    monkeypatch.setattr(_plan, "TEAMS_ARE_FREE", False)


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

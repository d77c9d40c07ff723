"""Calls on several threads at once wait for nobody, and have the bits that they have alone."""

import pickle
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import rnnkernel as rk
from drawn import draw
from helpers import assert_same_outputs, bits, layer_outputs, make_layer


@pytest.mark.parametrize("num_threads", [1, 2])
def test_calls_at_once_on_one_layer(case, dtype, num_threads):
    weights = draw(case, T=1, N=1, I=5, H=20, dtype=dtype).weights
    problems = [draw(case, T=20, N=4 + k, I=5, H=20, dtype=dtype, seed=k) for k in range(8)]
    for problem in problems:
        problem.weights.update(weights)
    layer = make_layer(problems[0])
    expected = [layer_outputs(problem, layer, num_threads=1)[0] for problem in problems]
    barrier = threading.Barrier(8)

    def work(problem):
        barrier.wait(timeout=60)
        return [layer_outputs(problem, layer, num_threads=num_threads)[0] for _ in range(5)]

    with ThreadPoolExecutor(8) as pool:
        for results, wanted in zip(pool.map(work, problems), expected, strict=True):
            for result in results:
                assert_same_outputs(result, wanted)


def test_calls_release_the_gil():
    """This thread sees the other inside a call, though the interpreter makes neither yield."""
    layer = rk.LSTM(64, 128)
    x = np.zeros((200, 32, 64), np.float32)
    inside = done = False

    def work():
        nonlocal inside
        while not done:
            inside = True
            layer(x, num_threads=1)
            inside = False
            time.sleep(1e-3)  # yields, outside of the call

    interval = sys.getswitchinterval()
    sys.setswitchinterval(100)
    thread = threading.Thread(target=work)
    try:
        thread.start()
        seen = False
        for _ in range(2000):
            time.sleep(5e-4)
            seen = seen or inside
            if seen:
                break
    finally:
        done = True
        thread.join()
        sys.setswitchinterval(interval)
    assert seen


T, N, SIZE = 12, 5, 9


def everything(layer, x, lengths):
    """What threads can do with one layer, each a function that gives arrays; nothing changes what
    the others give."""
    frozen, embedding = layer.freeze(), x[0].copy()
    lock = threading.Lock()
    stream = layer.stream(N)
    ids = np.arange(T * N).reshape(T, N) % N

    def call():
        y, (h, c) = layer(x)
        return y, h, c

    def ragged():
        return (layer.forward(x, lengths=lengths).y,)

    def tokens():
        return (layer.forward(ids, embedding=embedding).y,)

    def train():
        out = layer.forward(x, training=True)
        grads = layer.backward(out, out.y)
        return (out.y, grads.x, *grads.parameters.values())

    def trace():
        return tuple(layer.forward(x, trace=True).trace[0].values())

    def rest():
        return (frozen(x)[0],)

    def steps():
        own = layer.stream(N)
        return tuple(own.step(x[t]) for t in range(T))

    def step_together():
        with lock:
            stream.reset()
            return tuple(stream.step(x[t]) for t in range(T))

    def pickled():
        return (pickle.loads(pickle.dumps(layer))(x)[0],)

    def write_the_same():
        for array in layer.parameters.values():
            array[...] = array.copy()
        return ()

    def assign_the_same():
        layer.parameters = dict(layer.parameters)
        return ()

    def record():
        with rk.profile() as p:
            y, _ = layer(x)
        assert len(p.records) == 1
        return (y,)

    def others():
        return (rk.GRU(SIZE, 3, rng=2)(x)[0],)

    return (
        call, ragged, tokens, train, trace, rest, steps, step_together, pickled, write_the_same,
        assign_the_same, record, others,
    )  # fmt: skip


@pytest.mark.parametrize("num_threads", [1, 2])
def test_everything_at_once_on_one_layer(num_threads, monkeypatch):
    rng = np.random.default_rng(3)
    layer = rk.LSTM(SIZE, 20, rng=1)
    x = rng.standard_normal((T, N, SIZE)).astype(np.float32)
    tasks = everything(layer, x, rng.integers(0, T + 1, N))
    expected = [[bits(array) for array in task()] for task in tasks]
    barrier = threading.Barrier(6)

    def work(seed):
        order = np.random.default_rng(seed).integers(0, len(tasks), 120)
        barrier.wait(timeout=60)
        for k in order:
            assert [bits(array) for array in tasks[k]()] == expected[k], tasks[k].__name__

    monkeypatch.setattr(rk._threads, "_requested", num_threads)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))

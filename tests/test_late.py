"""Threads that come too late and leave their team: the bits of one thread, whoever is left."""

import os

import numpy as np
import pytest
from rnnkernel._kernels import compiler

import rnnkernel as rk
from batches import KINDS, batch
from helpers import assert_same_bits, run_python
from rnnkernel import _backward, _plan, _stack, _teamwork
from sequences import normal_state, parts
from test_split import LAYERS

# The first meetings, those of later steps and chunks, and none.
MEETINGS = [1, 2, 3, 5, 12, 31, 1000]


@pytest.fixture(params=LAYERS.values(), ids=LAYERS.keys())
def layer(request):
    cls, options = request.param
    layer = cls(11, 147, bidirectional=True, rng=0, **options)
    layer.held = layer.parameters  # so that every call packs
    return layer


@pytest.fixture
def late(monkeypatch):
    """Sets the meeting for which members begin to come too late, and whether blocks are taken."""
    monkeypatch.setattr(_plan, "SERIAL_FLOPS", 0.0)

    def choose(meeting, taking=False, split="units"):
        for module in (_plan, _backward):
            monkeypatch.setattr(module, "SPLIT", split)
            monkeypatch.setattr(module, "LATE", meeting)
        monkeypatch.setattr(_plan, "TAKING", taking)

    return choose


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("taking", [False, True, "all"])
def test_forward(layer, late, kind, taking):
    x, state, arguments = batch(layer, kind)
    late(None)
    expected, last = layer(x, state, num_threads=1, **arguments)
    for threads in (2, 4):
        for meeting in MEETINGS:
            late(meeting, taking)
            y, after = layer(x, state, num_threads=threads, **arguments)
            assert_same_bits(y, expected, f"{threads} threads, late for {meeting}")
            for actual, wanted in zip(parts(after), parts(last), strict=True):
                assert_same_bits(actual, wanted, f"{threads} threads, late for {meeting}")


# several chunks of 256 rows, by units and by rows
@pytest.mark.parametrize("split", ["units", "rows"])
@pytest.mark.parametrize("kind", KINDS)
def test_backward(layer, late, kind, split):
    x, state, arguments = batch(layer, kind, T=70)
    late(None)
    out = layer.forward(x, state, training=True, num_threads=1, **arguments)
    rng = np.random.default_rng(2)
    dy = rng.standard_normal(out.y.shape).astype(layer.dtype)
    dstate = normal_state(layer, x.shape[1], rng)

    def gradients(threads, **options):
        grads = layer.backward(out, dy, dstate, num_threads=threads, **options)
        named = {"x": grads.x, **grads.parameters, **dict(enumerate(parts(grads.state)))}
        if grads.flow is not None:
            named |= {name: a for name, a in vars(grads.flow).items() if a is not None}
        return {name: array for name, array in named.items() if array is not None}

    for options in ({}, {"clip": rk.Clip(norm=0.7), "flow": True}):
        late(None)
        expected = gradients(1, **options)
        for meeting in MEETINGS:
            late(meeting, split=split)
            got = gradients(3, **options)
            assert got.keys() == expected.keys()
            for name in expected:
                assert_same_bits(got[name], expected[name], f"late for {meeting}: {name}")


@pytest.mark.parametrize("threads", [2, 4])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"bidirectional": True}])
def test_a_profile_tells_who_left(late, threads, options, monkeypatch):
    for module in (_stack, _backward):
        monkeypatch.setattr(module, "TEAMS", 1)  # all of it for each pass
    layer = rk.LSTM(11, 147, rng=0, **options)
    x = np.zeros((70, 3, 11), np.float32)
    passes = layer.num_layers * (1 + layer.bidirectional)
    gone = passes * ((threads if compiler()[2] else 1) - 1)
    late(2)
    with rk.profile() as profile:
        out = layer.forward(x, training=True, num_threads=threads)
        layer.backward(out, np.ones_like(out.y), num_threads=threads)
        layer(x, num_threads=1)
    assert [call.left for call in profile.records] == [gone, gone, 0]
    assert gone == 0 or f"left for want of a core: {gone}" in str(profile)


PINNED = """
import os
import numpy as np
import rnnkernel as rk

if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
layer = rk.LSTM(30, 70, rng=0)
x = np.random.default_rng(0).standard_normal((400, 3, 30)).astype(np.float32)
results = []
for threads in (1, 3):
    out = layer.forward(x, training=True, num_threads=threads)
    grads = layer.backward(out, np.ones_like(out.y), num_threads=threads)
    results.append([out.y, grads.x, *grads.parameters.values()])
for one, other in zip(*results, strict=True):
    np.testing.assert_array_equal(one, other)
"""


def test_one_core_for_all():
    """Members wait for one that needs their own core."""
    ran = run_python("-c", PINNED)
    assert ran.returncode == 0, ran.stderr


def meets(first, second, left, expected):
    """Whether two members stay as expected, in one of some tries: others may take their cores."""
    return any(_teamwork.meet_after(first, second, left)[:2] == expected for _ in range(10))


def cores():
    affinity = getattr(os, "sched_getaffinity", lambda pid: range(os.cpu_count() or 1))
    return len(affinity(0))


@pytest.mark.skipif(not compiler()[2] or cores() < 2, reason="needs two cores")
def test_time_tells_who_is_late():
    """Waiting may cost twice what the own share of all steps takes, and 0.2 ms in any case."""
    assert meets(5_000, 5_000, 9, (True, True))
    assert meets(0, 20_000, 0, (True, False))
    assert meets(20_000, 0, 0, (False, True))
    # ten steps of 5 ms: 50 ms is not too long for a step of 30, and of two steps it is
    assert meets(5_000, 30_000, 9, (True, True))
    assert meets(5_000, 30_000, 1, (True, False))
    # of those that have nothing left nobody is late
    assert meets(0, 20_000, -1, (True, True))
    assert _teamwork.meet_after(0, 20_000, 1)[2] >= 200_000

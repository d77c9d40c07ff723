"""The rows that forward keeps gates of, in groups by its threads: all bits as in one group."""

import numpy as np
import pytest

import rnnkernel as rk
from batches import batch
from helpers import assert_same_bits
from rnnkernel import _kernels, _plan
from sequences import parts

THREADED = _kernels.compiler()[2]  # with OpenMP: else there is one thread, and one group


def train(layer, given, num_threads, back_threads, **kept):
    """y, final states and all gradients by name; and the groups that forward has chosen."""
    x, state, arguments = given
    out = layer.forward(x, state, training=True, num_threads=num_threads, **arguments, **kept)
    grads = layer.backward(out, np.cos(out.y), num_threads=back_threads)
    named = {"y": out.y, "x": grads.x, **grads.parameters}
    named |= {f"final {i}": array for i, array in enumerate(parts(out.state))}
    named |= {f"initial {i}": array for i, array in enumerate(parts(grads.state))}
    return named, [one.groups for one in out._tape.passes]


@pytest.fixture(autouse=True)
def shared_by_rows(monkeypatch):
    monkeypatch.setattr(_plan, "SERIAL_FLOPS", 0)
    monkeypatch.setattr(_plan, "SPLIT", "rows")
    monkeypatch.setattr(_plan, "SECTIONED_ROWS", 0)


def same(got, expected):
    __tracebackhide__ = True
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert_same_bits(got[name], array, name)


@pytest.mark.parametrize("kind", ["equal", "ragged", "reset"])
@pytest.mark.parametrize("N", [2, 6, 9, 12])
def test_bits(case, dtype, kind, N):
    layer = getattr(rk, case.layer)(5, 35, dtype=dtype, rng=0, **case.options)
    given = batch(layer, kind, 23, N)
    expected, _ = train(layer, given, 1, 1)
    for num_threads, back_threads in ((2, 2), (2, 1), (3, 3), (3, 2), (1, 3)):
        got, _ = train(layer, given, num_threads, back_threads)
        same(got, expected)


@pytest.mark.parametrize(
    ("N", "num_threads", "expected"),
    [(12, 1, 1), (12, 2, 2), (12, 3, 3), (13, 2, 1), (2, 3, 2), (1, 3, 1)],
)
def test_how_many(N, num_threads, expected):
    """As many as threads, where there is room for just the rows."""
    layer = rk.LSTM(5, 7, rng=0)
    given = batch(layer, "equal", 23, N)
    assert train(layer, given, num_threads, 1)[1] == [expected if THREADED else 1]
    assert train(layer, given, num_threads, 1, trace=True)[1] == [1]  # for views of them


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [([9] * 8, 2), ([9, 9, 9, 9, 5, 5, 5, 5], 2), ([23, 1, 1, 1, 1, 1, 1, 1], 1)],
    ids=str,
)
def test_sections(lengths, expected):
    """Unequal ones may take a quarter more."""
    layer = rk.GRU(5, 7, rng=0)
    x, state, _ = batch(layer, "equal", 23, 8)
    given = x, state, {"lengths": np.array(lengths)}
    wanted, _ = train(layer, given, 1, 1)
    got, groups = train(layer, given, 2, 2)
    assert groups == [expected if THREADED else 1]
    same(got, wanted)


@pytest.mark.parametrize("options", [{"num_layers": 2, "bidirectional": True}, {"num_layers": 3}])
def test_stacks_and_checkpoints(case, options):
    layer = getattr(rk, case.layer)(5, 9, rng=0, **case.options, **options)
    given = batch(layer, "ragged", 23, 12)
    for kept in ({}, {"checkpoint_every": 6}):
        expected, _ = train(layer, given, 1, 1, **kept)
        for num_threads in (2, 4):
            same(train(layer, given, num_threads, num_threads, **kept)[0], expected)


def test_a_short_segment(case):
    """It has room for more groups than its rows fill."""
    layer = getattr(rk, case.layer)(5, 9, rng=0, **case.options)
    given = batch(layer, "equal", 23, 5)
    expected, _ = train(layer, given, 1, 1)
    got, _ = train(layer, given, 4, 4, checkpoint_every=20)
    same(got, expected)

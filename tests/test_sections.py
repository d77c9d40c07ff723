"""Rows of unequal batches in sections, on several threads: all bits as without."""

import numpy as np
import pytest

import rnnkernel as rk
from batches import KINDS, batch
from helpers import assert_same_bits
from rnnkernel import _backward, _passes, _plain, _plan
from sequences import parts
from test_split import LAYERS as SPLIT_LAYERS

FROM = _plan.SECTIONED_ROWS
NEVER = 1 << 40
WAYS = [(split, taking) for split in ("rows", "units") for taking in (None, True, "all")]


def train(layer, given, *, num_threads, back_threads=None, backward=None, **kept):
    """All that a training step returns, by name; and how many rows each section has."""
    x, state, arguments = given
    out = layer.forward(x, state, training=True, num_threads=num_threads, **arguments, **kept)
    grads = layer.backward(
        out, np.sin(out.y), num_threads=back_threads or num_threads, **backward or {}
    )
    named = {"y": out.y, "x": grads.x, "embedding": grads.embedding, **grads.parameters}
    named |= {f"final {i}": array for i, array in enumerate(parts(out.state))}
    named |= {f"initial {i}": array for i, array in enumerate(parts(grads.state))}
    if grads.flow is not None:
        named |= vars(grads.flow)
    rows = out._tape.passes[0].rows
    sections = [] if rows is None else np.diff(rows.section).tolist()
    return {name: array for name, array in named.items() if array is not None}, sections


def check(layer, given, expected, **arguments):
    __tracebackhide__ = True
    got, found = train(layer, given, **arguments)
    assert len(found) == 2
    assert got.keys() == expected.keys()
    for name, wanted in expected.items():
        assert_same_bits(got[name], wanted, f"{arguments}: {name}")


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("N", [2, 9, 33])
def test_bits(case, dtype, kind, N, monkeypatch):
    layer = getattr(rk, case.layer)(9, 21, dtype=dtype, rng=0, **case.options)
    given = batch(layer, kind, 61, N)
    expected, _ = train(layer, given, num_threads=1)
    monkeypatch.setattr(_plan, "SECTIONED_ROWS", 0)
    for num_threads, back_threads in ((2, 2), (2, 1), (3, 2), (2, 3)):
        check(layer, given, expected, num_threads=num_threads, back_threads=back_threads)


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("N", [2, 9, 33])
@pytest.mark.parametrize("split", ["rows", "units"])
def test_bits_of_inference(case, dtype, kind, N, split, monkeypatch):
    layer = getattr(rk, case.layer)(9, 21, dtype=dtype, rng=0, **case.options)
    x, state, arguments = batch(layer, kind, 61, N)
    y, final = layer(x, state, num_threads=1, **arguments)
    found = []

    def sections_of(*arguments):
        found.append(_plan.sections_of(*arguments))
        return found[-1]

    for module in (_plain, _passes):
        monkeypatch.setattr(module, "sections_of", sections_of)
    monkeypatch.setattr(_plan, "SECTIONED_ROWS", 0)
    monkeypatch.setattr(_plan, "SPLIT", split)
    for num_threads in (2, 3):
        got, last = layer(x, state, num_threads=num_threads, **arguments)
        assert found.pop() == 2
        assert_same_bits(got, y)
        for array, wanted in zip(parts(last), parts(final), strict=True):
            assert_same_bits(array, wanted)


@pytest.mark.parametrize("backward", [{}, {"flow": True}, {"clip": rk.Clip(norm=0.5)}], ids=str)
@pytest.mark.parametrize("split", ["rows", "units"])
@pytest.mark.parametrize(("forward", "taking"), WAYS)
def test_ways_to_share(case, forward, taking, split, backward, monkeypatch):
    layer = getattr(rk, case.layer)(9, 35, rng=0, **case.options)
    given = batch(layer, "reset", 130, 21)
    expected, _ = train(layer, given, num_threads=1, backward=backward)
    monkeypatch.setattr(_plan, "SECTIONED_ROWS", 0)
    monkeypatch.setattr(_plan, "SPLIT", forward)
    monkeypatch.setattr(_plan, "TAKING", taking)
    monkeypatch.setattr(_backward, "SPLIT", split)
    for num_threads in (2, 3):
        check(layer, given, expected, num_threads=num_threads, backward=backward)


@pytest.mark.parametrize("late", range(1, 40, 6))
@pytest.mark.parametrize("split", ["rows", "units"])
def test_late_threads(case, late, split, monkeypatch):
    layer = getattr(rk, case.layer)(9, 35, rng=0, **case.options)
    given = batch(layer, "ragged", 17, 21)
    expected, _ = train(layer, given, num_threads=1)
    monkeypatch.setattr(_plan, "SECTIONED_ROWS", 0)
    for module in (_plan, _backward):
        monkeypatch.setattr(module, "SPLIT", split)
        monkeypatch.setattr(module, "LATE", late)
    check(layer, given, expected, num_threads=2)


# sections that end together, one before the other, and one that has no step
ENDS = {
    "first": [5] * 16 + [20] * 4,
    "second": [20] * 4 + [5] * 16,
    "nearly together": [20] * 19 + [19],
    "none": [0] * 16 + [20] * 4,
}


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("taking", [True, "all"])
@pytest.mark.parametrize("cell", SPLIT_LAYERS.values(), ids=SPLIT_LAYERS.keys())
def test_who_leaves_takes_its_blocks_along(cell, taking, ends, monkeypatch):
    """A section may end with the meeting that a member is too late for: nobody is to do in the next
    one what it had offered for a round that did not come."""
    cls, options = cell
    layer = cls(9, 147, rng=0, **options)
    x, state, _ = batch(layer, "plain", 20, 20)
    arguments = {"lengths": np.array(ENDS[ends])}
    held = layer.parameters  # so that every call packs
    expected, last = layer(x, state, num_threads=1, **arguments)
    monkeypatch.setattr(_plan, "SERIAL_FLOPS", 0.0)
    monkeypatch.setattr(_plan, "SECTIONED_ROWS", 0)
    monkeypatch.setattr(_plan, "SPLIT", "units")
    monkeypatch.setattr(_plan, "TAKING", taking)
    for num_threads in (2, 4):
        for late in range(1, 70):
            monkeypatch.setattr(_plan, "LATE", late)
            y, after = layer(x, state, num_threads=num_threads, **arguments)
            assert_same_bits(y, expected, f"{num_threads} threads, late for {late}")
            for actual, wanted in zip(parts(after), parts(last), strict=True):
                assert_same_bits(actual, wanted, f"{num_threads} threads, late for {late}")
    assert held


@pytest.mark.parametrize("options", [{"num_layers": 3}, {"bidirectional": True}])
@pytest.mark.parametrize("kept", [{}, {"checkpoint_every": 8}, {"trace": True}])
def test_stacks_and_what_is_kept(case, options, kept, monkeypatch):
    layer = getattr(rk, case.layer)(9, 21, rng=0, **case.options, **options)
    given = batch(layer, "reset", 61, 17)
    expected, _ = train(layer, given, num_threads=1, **kept)
    monkeypatch.setattr(_plan, "SECTIONED_ROWS", 0)
    for num_threads in (2, 4):
        check(layer, given, expected, num_threads=num_threads, **kept)


@pytest.mark.parametrize(
    "lengths",
    [[60] + [1] * 20, [1] * 20 + [60], [0] * 20 + [5], [5] + [0] * 20, range(21), range(21, 0, -1)],
    ids=str,
)
def test_uneven_batches(case, lengths, monkeypatch):
    """Long rows at either end, and sections without rows or steps."""
    layer = getattr(rk, case.layer)(9, 21, rng=0, **case.options)
    x, state, _ = batch(layer, "ragged", 61, 21)
    given = x, state, {"lengths": np.array(lengths)}
    expected, _ = train(layer, given, num_threads=1)
    monkeypatch.setattr(_plan, "SECTIONED_ROWS", 0)
    for num_threads in (2, 3):
        check(layer, given, expected, num_threads=num_threads)


def test_trace(case, monkeypatch):
    layer = getattr(rk, case.layer)(9, 21, rng=0, **case.options)
    x, state, arguments = batch(layer, "ragged", 31, 17)
    traces = []
    for rows in (NEVER, 0):
        monkeypatch.setattr(_plan, "SECTIONED_ROWS", rows)
        out = layer.forward(x, state, training=True, trace=True, num_threads=2, **arguments)
        traces.append(out.trace[0])
    for name in traces[0]:
        assert_same_bits(traces[1][name], traces[0][name], name)


@pytest.mark.parametrize(
    ("N", "H", "num_threads", "sections"),
    [
        (2 * FROM, 21, 2, [FROM, FROM]),
        (2 * FROM - 1, 21, 2, [2 * FROM - 1]),
        (2 * FROM, 21, 1, [2 * FROM]),
        (2 * FROM, 21, 3, [2 * FROM]),
        (2 * FROM, 513, 2, [2 * FROM]),
    ],
)
def test_which_batches_have_them(N, H, num_threads, sections, monkeypatch):
    """Those of many rows for each thread, and of small weights; sections of about as many steps."""
    monkeypatch.setattr(_plan, "SECTIONED_ROWS", FROM)
    layer = rk.RNN(9, H, rng=0)
    x = np.zeros((2, N, 9), np.float32)
    given = x, None, {"reset": np.ones((2, N), bool)}
    assert train(layer, given, num_threads=num_threads)[1] == sections
    assert _plan.sections_of(layer, N, num_threads, False) == len(sections)
    if len(sections) > 1:
        assert _plan.sections_of(rk.RNN(9, 400), N, num_threads, True) == 2
        assert _plan.sections_of(rk.RNN(9, 400), N, num_threads, False) == 1
        given = x, None, {"lengths": np.array([2] * 10 + [1] * 22)}
        assert train(layer, given, num_threads=num_threads)[1] == [11, 21]

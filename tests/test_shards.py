"""Gradients of a batch in shards: those of one sum, but for the order that it is taken in."""

import numpy as np
import pytest

import rnnkernel as rk
from batches import KINDS, batch
from helpers import assert_same_bits
from rnnkernel import _backward
from tolerances import FLOAT64

FROM, STEPS = _backward.SHARDED_ROWS, _backward.SHARDED_STEPS
NEVER = 1 << 40


def weight_gradients(layer, kind, N, rows, monkeypatch, *, steps=0, T=61, num_threads=2, **kept):
    """Where batches of so many `rows`, and so many in all `steps`, are in shards; chunks of several
    steps, one of fewer."""
    monkeypatch.setattr(_backward, "SHARDED_ROWS", rows)
    monkeypatch.setattr(_backward, "SHARDED_STEPS", steps)
    x, state, arguments = batch(layer, kind, T, N)
    out = layer.forward(x, state, training=True, **arguments, **kept)
    grads = layer.backward(out, np.sin(out.y), num_threads=num_threads)
    named = {**grads.parameters, "embedding": grads.embedding, "x": grads.x}
    return {name: array for name, array in named.items() if array is not None}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("N", [2, 3, 21])
def test_values(case, kind, N, monkeypatch):
    layer = getattr(rk, case.layer)(9, 21, dtype=np.float64, rng=0, **case.options)
    expected = weight_gradients(layer, kind, N, NEVER, monkeypatch)
    for rows in (N, N + 1):
        for num_threads in (1, 2, 3):
            got = weight_gradients(layer, kind, N, rows, monkeypatch, num_threads=num_threads)
            for name, wanted in expected.items():
                if rows > N or name in ("x", "embedding"):
                    assert_same_bits(got[name], wanted, name)
                error = np.abs(got[name] - wanted).max()
                assert error <= FLOAT64 * np.abs(wanted).max(), name


def test_sums_that_are_added_piece_by_piece(case, monkeypatch):
    """Of more columns than are added before they are unpacked; by one thread, or by more than there
    are blocks."""
    layer = getattr(rk, case.layer)(2200, 5, dtype=np.float64, rng=0, **case.options)
    expected = weight_gradients(layer, "equal", 3, NEVER, monkeypatch, T=20)
    for num_threads in (1, 3):
        got = weight_gradients(layer, "equal", 3, 3, monkeypatch, T=20, num_threads=num_threads)
        for name, wanted in expected.items():
            assert np.abs(got[name] - wanted).max() <= FLOAT64 * np.abs(wanted).max(), name


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints(case, kind, monkeypatch):
    layer = getattr(rk, case.layer)(9, 21, rng=0, **case.options)
    expected = weight_gradients(layer, kind, 17, 17, monkeypatch)
    got = weight_gradients(layer, kind, 17, 17, monkeypatch, checkpoint_every=8)
    for name, wanted in expected.items():
        assert_same_bits(got[name], wanted, name)


def test_ids_are_one_hot_vectors(case, dtype, monkeypatch):
    monkeypatch.setattr(_backward, "SHARDED_ROWS", 2)
    monkeypatch.setattr(_backward, "SHARDED_STEPS", 0)
    layer = getattr(rk, case.layer)(9, 21, dtype=dtype, rng=0, **case.options)
    ids, _, _ = batch(layer, "ids", T=61, N=5)
    gradients = []
    for x in (ids, np.eye(9, dtype=dtype)[ids]):
        out = layer.forward(x, training=True)
        gradients.append(layer.backward(out, np.sin(out.y), num_threads=2).parameters)
    for name, wanted in gradients[1].items():
        assert_same_bits(gradients[0][name], wanted, name)


@pytest.mark.parametrize(
    ("T", "N", "H", "sharded"),
    [
        (61, FROM - 1, 21, 0),
        (61, FROM, 21, 1),
        (61, FROM, 600, 0),
        (STEPS // FROM, FROM, 21, 1),
        (STEPS // FROM - 1, FROM, 21, 0),
    ],
)
def test_which_batches_are_in_shards(T, N, H, sharded, monkeypatch):
    """Many rows, many steps and small weights; in float32 the order of a sum shows."""
    layer = rk.RNN(9, H, rng=0)
    by_default, in_one = (
        weight_gradients(layer, "equal", N, rows, monkeypatch, steps=STEPS, T=T)["weight_hh_l0"]
        for rows in (FROM, NEVER)
    )
    assert sharded == (by_default.tobytes() != in_one.tobytes())

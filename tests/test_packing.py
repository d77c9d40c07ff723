"""Weights reach the kernels, and gradients come back, bit for bit: every element, at its place.

A product with one nonzero factor is exact, so unit vectors show single columns of the weights, and
a single step shows each gradient as one product.
"""

import numpy as np
import pytest

import rnnkernel as rk
from helpers import run_python
from rnnkernel import _kernels

# columns: 1, about each vector's width, powers of two, and past the strips that are packed in turn
SIZES = [
    (1, 1), (2, 3), (5, 4), (4, 5), (7, 8), (8, 7), (9, 15), (16, 16), (15, 17), (17, 31), (33, 32),
    (64, 64), (65, 63), (100, 127), (128, 128), (31, 129), (3, 256), (70, 257), (20, 400), (300, 9),
]  # fmt: skip


def layer_with(kind, K, H, dtype, layout="whole", **options):
    """Positive weights, no biases; rows contiguous, apart, or columns contiguous."""
    layer = kind(K, H, bias=False, dtype=dtype, rng=1, **options)
    rng = np.random.default_rng(K * 1000 + H)
    for name, array in layer.parameters.items():
        values = rng.uniform(0.5, 2, array.shape).astype(dtype)
        if layout == "rows apart":
            wide = np.full((len(values), values.shape[1] + 5), np.nan, dtype)
            wide[:, 3:-2] = values
            values = wide[:, 3:-2]
        elif layout == "columns":
            values = np.asfortranarray(values)
        layer.parameters[name] = values
    return layer


def relu(*args, **options):
    return rk.RNN(*args, nonlinearity="relu", **options)


def check_matrices(H, K, dtype, layout, threads):
    """W_ih and W_hh forward, transposed, and their gradients."""
    layer = layer_with(relu, K, H, dtype, layout)
    ih, hh = layer.parameters["weight_ih_l0"], layer.parameters["weight_hh_l0"]
    zeros = np.zeros((1, K, H), dtype)
    y, _ = layer(np.eye(K, dtype=dtype)[None], zeros, num_threads=threads)
    np.testing.assert_array_equal(y[0], ih.T)
    y, _ = layer(np.zeros((1, H, K), dtype), np.eye(H, dtype=dtype)[None], num_threads=threads)
    np.testing.assert_array_equal(y[0], hh.T)

    ones = np.ones((1, H, K), dtype)
    out = layer.forward(ones, np.ones((1, H, H), dtype), training=True, num_threads=threads)
    grads = layer.backward(out, np.eye(H, dtype=dtype)[None], num_threads=threads)
    np.testing.assert_array_equal(grads.x[0], ih)
    np.testing.assert_array_equal(grads.state[0], hh)

    rng = np.random.default_rng(0)
    x, h0, dy = (rng.uniform(0.5, 2, (1, 1, n)).astype(dtype) for n in (K, H, H))
    out = layer.forward(x, h0, training=True, num_threads=threads)
    grads = layer.backward(out, dy, num_threads=threads).parameters
    np.testing.assert_array_equal(grads["weight_ih_l0"], np.outer(dy, x))
    np.testing.assert_array_equal(grads["weight_hh_l0"], np.outer(dy, h0))


def check_gates(kind, K, H, dtype, **options):
    """Each unit of a step has the bits that it has in a layer of its own."""
    layer = layer_with(kind, K, H, dtype, **options)
    G = len(layer.parameters["weight_ih_l0"]) // H
    rng = np.random.default_rng(3)
    for name in ("weight_ih_l0", "weight_hh_l0"):
        layer.parameters[name] = rng.normal(size=layer.parameters[name].shape).astype(dtype)
    x = rng.normal(size=(1, 2, K)).astype(dtype)
    trace = layer.forward(x, trace=True).trace[0]
    for u in range(H):
        one = layer_with(kind, K, 1, dtype, **options)
        one.parameters["weight_ih_l0"] = layer.parameters["weight_ih_l0"].reshape(G, H, K)[:, u]
        alone = one.forward(x, trace=True).trace[0]
        for name in layer._cell.gates:
            np.testing.assert_array_equal(trace[name][..., u], alone[name][..., 0])


# of so many classes the ids that occur: all, most, few, in clusters, at the ends; of few classes
# and of so many that W_ih and its table lie beyond L2
CHOSEN = {
    "one of one": (1, [0]),
    "few classes": (15, [2, 3, 7, 14]),
    "all": (129, range(129)),
    "the last": (140, range(130, 140)),
    "every other": (1000, range(1, 1000, 2)),
    "one of seven": (1003, range(0, 1003, 7)),
    "one of ninety": (14_000, range(50, 14_000, 90)),
    "clusters": (3000, [*range(40, 200), *range(700, 703), *range(1500, 1600), 2999]),
    "many of many": (16_001, range(0, 16_001, 2)),
    "clusters of many": (20_000, [0, *range(4000, 6000, 3), *range(19_000, 19_990)]),
    "few of many": (20_000, range(3, 20_000, 71)),
}


def check_chosen(classes, chosen, H, dtype):
    """The columns of W_ih that ids choose, some twice; whole numbers, of which sums are exact."""
    layer = layer_with(relu, classes, H, dtype)
    rng = np.random.default_rng(0)
    ids = rng.permutation([*chosen, *chosen[:40]])
    out = layer.forward(ids[None], training=True)
    np.testing.assert_array_equal(out.y[0], layer.parameters["weight_ih_l0"][:, ids].T)
    dy = rng.integers(1, 100, (1, len(ids), H)).astype(dtype)
    grads = layer.backward(out, dy).parameters["weight_ih_l0"]
    expected = np.zeros((classes, H), dtype)
    np.add.at(expected, ids, dy[0])
    np.testing.assert_array_equal(grads, expected.T)


def check_all():
    for dtype in (np.float32, np.float64):
        for H, K in SIZES:
            for layout in ("whole", "rows apart", "columns"):
                check_matrices(H, K, dtype, layout, 1)
        for kind, options in ((rk.LSTM, {}), (rk.GRU, {}), (rk.GRU, {"reset_after": False})):
            for K, H in ((1, 3), (19, 37)):
                check_gates(kind, K, H, dtype, **options)
        for classes, chosen in CHOSEN.values():
            for H in (9, 33):
                check_chosen(classes, chosen, H, dtype)


@pytest.mark.parametrize("isa", _kernels.available_isas())
def test_every_element_at_its_place(isa):
    script = "import test_packing; test_packing.check_all(); print('checked')"
    done = run_python("-c", script, RNNKERNEL_ISA=isa)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip() == "checked"


@pytest.mark.parametrize("threads", [2, 3])
def test_a_team_packs_the_same(dtype, threads):
    """Weights enough for several threads."""
    check_matrices(260, 1100, dtype, "whole", threads)


def test_a_team_larger_than_the_blocks(dtype):
    rng = np.random.default_rng(0)
    layer = layer_with(relu, 300_000, 3, dtype)
    x = np.zeros((1, 4, 300_000), dtype)
    columns = rng.integers(0, 300_000, 4)
    x[0, np.arange(4), columns] = 1
    out = layer.forward(x, training=True, num_threads=5)
    np.testing.assert_array_equal(out.y[0], layer.parameters["weight_ih_l0"][:, columns].T)
    dy = rng.uniform(0.5, 2, (1, 4, 3)).astype(dtype)
    grads = layer.backward(out, dy, num_threads=5)
    expected = np.zeros((3, 300_000), dtype)
    np.add.at(expected, (slice(None), columns), dy[0].T)
    np.testing.assert_array_equal(grads.parameters["weight_ih_l0"], expected)


@pytest.mark.parametrize(("ids", "H"), [(3, 700), (40, 520)])
def test_a_team_unpacks_some_columns(dtype, ids, H):
    """Fewer than a vector and more, with rows in other threads' blocks."""
    rng = np.random.default_rng(0)
    layer = layer_with(relu, 90, H, dtype)
    columns = rng.choice(90, ids, replace=False)
    out = layer.forward(columns[None], training=True, num_threads=2)
    np.testing.assert_array_equal(out.y[0], layer.parameters["weight_ih_l0"][:, columns].T)
    dy = rng.uniform(0.5, 2, (1, ids, H)).astype(dtype)
    grads = layer.backward(out, dy, num_threads=2)
    expected = np.zeros((H, 90), dtype)
    expected[:, columns] = dy[0].T
    np.testing.assert_array_equal(grads.parameters["weight_ih_l0"], expected)


def test_no_ids_no_gradient(dtype):
    layer = layer_with(relu, 9, 20, dtype)
    for T, N in ((0, 2), (2, 0)):
        out = layer.forward(np.zeros((T, N), int), training=True)
        grads = layer.backward(out, np.ones(out.y.shape, dtype)).parameters
        assert not np.any([g.any() for g in grads.values()])

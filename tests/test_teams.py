"""Teams that share the passes of a call, directions side by side and layers as a wavefront: the
bits of one thread."""

import pytest

import rnnkernel as rk
from batches import KINDS, batch
from helpers import assert_same_bits
from rnnkernel import _plan, _stack
from sequences import parts

LAYERS = {
    "rnn": (rk.RNN, {}),
    "gru after": (rk.GRU, {}),
    "gru before": (rk.GRU, {"reset_after": False}),
    "lstm": (rk.LSTM, {}),
    "lstm options": (rk.LSTM, {"peephole": True, "coupled": True, "cell_clip": 0.7}),
    "lstm projection": (rk.LSTM, {"proj_size": 23}),
}
# (layers, directions)
STACKS = [(1, 2), (2, 1), (2, 2), (3, 1), (3, 2), (5, 1)]
# threads, teams at most, steps of a piece, and what a team's threads share
WAYS = [
    (2, 1, None, "units"),
    (2, 1, None, "taking"),
    (2, 2, 1, "rows"),
    (2, 2, 4, "rows"),
    (2, 5, 1000, "units"),
    (3, 3, 7, "rows"),
    (4, 2, 4, "units"),
    (4, 2, 3, "taking"),
    (5, 2, 5, "rows"),
    (5, 5, 4, "units"),
]


@pytest.fixture(params=LAYERS.values(), ids=LAYERS.keys())
def cell(request):
    return request.param


@pytest.fixture(params=STACKS, ids=lambda stack: f"L{stack[0]} D{stack[1]}")
def layer(request, cell, dtype):
    L, D = request.param
    cls, options = cell
    layer = cls(11, 37, L, bidirectional=D == 2, dtype=dtype, rng=0, **options)
    layer.held = layer.parameters  # so that every call packs
    return layer


@pytest.fixture
def team(monkeypatch):
    """Sets how many teams at most, of how many steps a piece is, and what a team's threads share,
    whatever is measured to be faster."""
    monkeypatch.setattr(_plan, "SERIAL_FLOPS", 0.0)

    def choose(teams, piece, split):
        monkeypatch.setattr(_stack, "TEAMS", teams)
        monkeypatch.setattr(_stack, "PIECE", piece)
        monkeypatch.setattr(_plan, "SPLIT", "rows" if split == "rows" else "units")
        monkeypatch.setattr(_plan, "TAKING", "all" if split == "taking" else False)

    return choose


def assert_same(actual, expected, way):
    __tracebackhide__ = True
    (y, state), (wanted, last) = actual, expected
    assert_same_bits(y, wanted, f"{way}: y")
    for index, (a, b) in enumerate(zip(parts(state), parts(last), strict=True)):
        assert_same_bits(a, b, f"{way}: state {index}")


@pytest.mark.parametrize("kind", KINDS)
def test_batches(layer, team, kind):
    x, state, arguments = batch(layer, kind, T=19, N=5)
    team(1, None, "rows")
    expected = layer(x, state, num_threads=1, **arguments)
    for way in WAYS:
        team(*way[1:])
        assert_same(layer(x, state, num_threads=way[0], **arguments), expected, way)
        out = layer.forward(x, state, num_threads=way[0], training=True, **arguments)
        assert_same((out.y, out.state), expected, way)


@pytest.mark.parametrize(("T", "N"), [(1, 1), (1, 4), (2, 1), (53, 1), (150, 2)])
def test_few_steps_and_rows(layer, team, T, N):
    x, state, _ = batch(layer, "equal", T, N)
    team(1, None, "rows")
    expected = layer(x, state, num_threads=1)
    for way in WAYS:
        team(*way[1:])
        assert_same(layer(x, state, num_threads=way[0]), expected, way)

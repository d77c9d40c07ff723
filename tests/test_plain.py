"""A call without resets or ids takes a shorter way than `forward`: with the same bits."""

import numpy as np
import pytest
from rnnkernel._plain import infer

import rnnkernel as rk
from helpers import assert_same_bits, unchanged
from rnnkernel import _plan
from sequences import like, normal_state, parts

LAYERS = {
    "rnn": (rk.RNN, {}),
    "relu": (rk.RNN, {"nonlinearity": "relu", "bias": False}),
    "gru after": (rk.GRU, {}),
    "gru before": (rk.GRU, {"reset_after": False}),
    "lstm": (rk.LSTM, {}),
    "lstm options": (rk.LSTM, {"peephole": True, "coupled": True, "cell_clip": 0.7}),
    "lstm projection": (rk.LSTM, {"proj_size": 5}),
}
STACKS = [
    {},
    {"num_layers": 3},
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
]


@pytest.fixture(params=LAYERS.values(), ids=LAYERS.keys())
def cell(request):
    return request.param


@pytest.fixture(params=STACKS, ids=str)
def layer(request, cell, dtype):
    cls, options = cell
    return cls(7, 19, dtype=dtype, rng=0, **options, **request.param)


def draw(layer, T, N):
    rng = np.random.default_rng([T, N])
    shape = (N, T, 7) if layer.batch_first else (T, N, 7)
    return rng.standard_normal(shape).astype(layer.dtype), normal_state(layer, N, rng)


def check(layer, x, state, lengths=None):
    """The call took the shorter way, and gave what `forward` gives."""
    __tracebackhide__ = True
    assert infer(layer, x, state, 1, lengths) is not None
    out = layer.forward(x, state, lengths=lengths)
    arrays = [x, *layer.parameters.values(), *([] if state is None else parts(state))]
    for run in (layer, layer.freeze()):
        with unchanged(*arrays):
            y, last = run(x, state, lengths=lengths)
        assert_same_bits(y, out.y, "y")
        assert y.flags.c_contiguous
        assert isinstance(last, tuple) == isinstance(out.state, tuple)
        for actual, expected in zip(parts(last), parts(out.state), strict=True):
            assert_same_bits(actual, expected, "state")


@pytest.mark.parametrize("sizes", [(1, 1), (1, 6), (8, 1), (9, 13)], ids=str)
def test_batches(layer, sizes):
    x, state = draw(layer, *sizes)
    check(layer, x, state)
    check(layer, x, None)


@pytest.mark.parametrize("kind", [np.intp, np.uint8, ">i4"])
@pytest.mark.parametrize("sizes", [(1, 6), (8, 1), (9, 13)], ids=str)
def test_lengths(layer, sizes, kind):
    T, N = sizes
    x, state = draw(layer, *sizes)
    lengths = np.random.default_rng(N).integers(0, T + 1, N)
    lengths[N // 2] = max(1, T - 1)
    check(layer, x, state, lengths.astype(kind))
    check(layer, x, None, np.repeat(lengths, 2).astype(kind)[::2])
    check(layer, x, state, np.full(N, T, kind))


def test_lengths_that_go_the_other_way(layer):
    x, state = draw(layer, 4, 3)
    zeros = np.zeros(3, int)
    assert infer(layer, x, state, 1, zeros) is None
    y, last = layer(x, state, lengths=zeros)
    assert not y.any()
    for actual, expected in zip(parts(last), parts(state), strict=True):
        assert_same_bits(actual, expected)
    for wrong in ([4, 2, 5], [4, 2, -1], [4, 2], [[4, 2, 1]], [4.0, 2.0, 1.0], [True, True, True]):
        for lengths in (wrong, np.array(wrong)):
            assert infer(layer, x, state, 1, lengths) is None
            with pytest.raises((TypeError, ValueError), match="lengths: expected"):
                layer(x, state, lengths=lengths)
    with pytest.raises(ValueError, match="lengths: expected integers from 0 to T=4"):
        layer(x, state, lengths=np.array([1, 2, 2**64 - 1], np.uint64))


def test_unbatched(layer):
    x, state = draw(layer, 6, 1)
    state = like([np.ascontiguousarray(s[:, 0]) for s in parts(state)])
    check(layer, np.ascontiguousarray(x[0] if layer.batch_first else x[:, 0]), state)
    check(layer, np.ascontiguousarray(x[0] if layer.batch_first else x[:, 0]), None)


def test_any_strides(layer):
    x, state = draw(layer, 12, 12)
    state = like([np.repeat(s, 2, axis=2)[:, ::-1, ::2] for s in parts(state)])
    rows = like([s[:, ::2] for s in parts(state)])
    check(layer, x[::-2, :, ::-1] if layer.batch_first else x[:, ::-2, ::-1], rows)
    check(layer, np.asfortranarray(x), state)
    check(layer, x.swapaxes(0, 1), state)


def test_what_is_not_plain_goes_the_other_way(layer):
    x, state = draw(layer, 4, 3)
    states = parts(state)
    constant = np.broadcast_to(x[:, :1] if layer.batch_first else x[:1], x.shape)
    unaligned = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(x.dtype).reshape(x.shape)
    for other in (x.tolist(), x.astype(np.float16), x[:0], x[..., :3], constant, unaligned):
        assert infer(layer, other, None, 1) is None
    for other in ((*states, states[0]), [*states], like([s[:, :1] for s in states])):
        assert infer(layer, x, other, 1) is None
    assert_same_bits(layer(unaligned)[0], layer(x)[0])
    assert_same_bits(layer(constant)[0], layer(np.array(constant))[0])


def test_parameters_in_other_arrays(layer):
    x, state = draw(layer, 4, 3)
    expected = layer(x, state)[0]
    name = "weight_ih_l0"
    array = layer.parameters[name]
    layer.parameters[name] = np.asfortranarray(array)
    assert infer(layer, x, state, 1) is None
    assert_same_bits(layer(x, state)[0], expected)
    layer.parameters[name] = np.repeat(array, 2, axis=0)[::2]
    check(layer, x, state)
    layer.parameters[name] = array[:-1]
    with pytest.raises(ValueError, match=f"parameters\\['{name}'\\]"):
        layer(x, state)
    del layer.parameters[name]
    with pytest.raises(ValueError, match="parameters: expected the names"):
        layer(x, state)


@pytest.mark.parametrize("most", [11_000, 25_000, 55_000, 1 << 20])
@pytest.mark.parametrize("T, N", [(1, 1), (1, 9), (2, 3), (9, 1)])
def test_weights_that_pass(cell, dtype, monkeypatch, most, T, N):
    """Packed as they are used, of W_ih or of both, one block at a time or more."""
    cls, options = cell
    layer = cls(37, 83, 2, bidirectional=True, dtype=dtype, rng=0, **options)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((T, N, 37)).astype(dtype)
    state = normal_state(layer, N, rng)
    expected, last = layer.freeze()(x, state)
    monkeypatch.setattr(_plan, "PASSING_BYTES", most)
    monkeypatch.setattr(_plan, "SERIAL_FLOPS", 0.0)
    monkeypatch.setattr(_plan, "SPLIT", "units")
    held = layer.parameters  # else packed weights would stay
    for threads, taking in ((1, False), (3, False), (3, "all")):
        monkeypatch.setattr(_plan, "TAKING", taking)
        y, after = layer(x, state, num_threads=threads)
        assert_same_bits(y, expected, f"{threads} threads")
        for actual, wanted in zip(parts(after), parts(last), strict=True):
            assert_same_bits(actual, wanted, f"{threads} threads")
    assert held and layer._kept.weights is None

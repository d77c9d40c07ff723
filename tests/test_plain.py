"""Calls and training without resets, ids and what else is rare take a shorter way: with the same
bits."""

import numpy as np
import pytest
from rnnkernel._differentiate import plain_arrivals
from rnnkernel._plain import infer
from rnnkernel._unroll import train

import rnnkernel as rk
from helpers import assert_same_bits, unchanged
from rnnkernel import _plan, layers
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


@pytest.mark.parametrize("stack", STACKS, ids=str)
@pytest.mark.parametrize("split", ["rows", "units"])
def test_cell_states_of_whole_blocks(stack, split, dtype, monkeypatch):
    """Are read where they lie, if their units are side by side."""
    monkeypatch.setattr(_plan, "SPLIT", split)
    layer = rk.LSTM(7, 32, dtype=dtype, rng=0, **stack)
    x, (h, c) = draw(layer, 3, 13)
    apart = np.repeat(np.repeat(c, 2, axis=1), 2, axis=2)
    same = np.broadcast_to(c[:, :1], c.shape)
    for cells in (c, c[:, ::-1], apart[:, ::2, ::2], apart[:, ::2, :32], same, c[..., ::-1]):
        check(layer, x, (h, cells))
        expected = layer(x, (h, np.array(cells)), num_threads=1)
        y, last = layer(x, (h, cells), num_threads=2)
        assert_same_bits(y, expected[0], "y")
        assert_same_bits(last[1], expected[1][1], "c")
    check(layer, x, None)


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


# -- training ------------------------------------------------------------------------------------


def results(layer, x, state, lengths, dy, dstate, clip=None, input_grad=True):
    """All arrays that a training forward and its backward give, by name."""
    out = layer.forward(x, state, lengths=lengths, training=True)
    grads = layer.backward(out, dy, dstate, clip=clip, input_grad=input_grad)
    arrays = {"y": out.y, "x": grads.x, **grads.parameters}
    for name, value in (("last", out.state), ("state", grads.state)):
        assert isinstance(value, tuple) == isinstance(layer, rk.LSTM)
        arrays |= {f"{name} {k}": part for k, part in enumerate(parts(value))}
    assert out.trace is grads.flow is grads.embedding is None
    return arrays


def check_training(monkeypatch, layer, x, state, lengths=None, dy=None, dstate=None, **options):
    """Training took the shorter way, and gave what the other way gives."""
    __tracebackhide__ = True
    arrays = [x, *layer.parameters.values()]
    arrays += [*([] if state is None else parts(state)), *([] if dy is None else [dy])]
    with unchanged(*arrays):
        out = train(layer, x, state, 1, lengths)
        assert out is not None
        assert not out.y.flags.writeable
        assert plain_arrivals(out._tape, dy, dstate) is not None
        actual = results(layer, x, state, lengths, dy, dstate, **options)
    with monkeypatch.context() as patch:
        patch.setattr(layers, "train", lambda *_: None)
        patch.setattr(layers, "plain_arrivals", lambda *_: None)
        expected = results(layer, x, state, lengths, dy, dstate, **options)
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        if array is None:
            assert actual[name] is None, name
            continue
        assert_same_bits(actual[name], array, name)
        assert actual[name].strides == array.strides, name


def draw_gradients(layer, out_y, state):
    rng = np.random.default_rng(out_y.shape)
    dy = rng.standard_normal(out_y.shape).astype(layer.dtype)
    return dy, like([rng.standard_normal(s.shape).astype(layer.dtype) for s in parts(state)])


@pytest.mark.parametrize("sizes", [(1, 1), (1, 6), (8, 1), (9, 13)], ids=str)
def test_training(monkeypatch, layer, sizes):
    x, state = draw(layer, *sizes)
    dy, dstate = draw_gradients(layer, layer(x)[0], state)
    check_training(monkeypatch, layer, x, state, None, dy, dstate)
    check_training(monkeypatch, layer, x, None, None, dy)
    check_training(monkeypatch, layer, x, state, None, None, dstate)
    check_training(monkeypatch, layer, x, state, None, dy, dstate, input_grad=False)
    clip = rk.Clip(value=0.5, norm=1.0)
    check_training(monkeypatch, layer, x, state, None, dy, dstate, clip=clip)


@pytest.mark.parametrize("sizes", [(1, 6), (8, 1), (9, 13)], ids=str)
def test_training_with_lengths(monkeypatch, layer, sizes):
    T, N = sizes
    x, state = draw(layer, *sizes)
    dy, dstate = draw_gradients(layer, layer(x)[0], state)
    lengths = np.random.default_rng(N).integers(0, T + 1, N)
    lengths[N // 2] = max(1, T - 1)
    check_training(monkeypatch, layer, x, state, lengths, dy, dstate)
    check_training(monkeypatch, layer, x, None, np.full(N, T, np.uint8), dy)


def test_training_unbatched(monkeypatch, layer):
    x, state = draw(layer, 6, 1)
    x = np.ascontiguousarray(x[0] if layer.batch_first else x[:, 0])
    state = like([np.ascontiguousarray(s[:, 0]) for s in parts(state)])
    dy, dstate = draw_gradients(layer, layer(x)[0], state)
    check_training(monkeypatch, layer, x, state, None, dy, dstate)
    check_training(monkeypatch, layer, x, None, None, dy)


def test_training_with_any_strides(monkeypatch, layer):
    x, state = draw(layer, 12, 12)
    state = like([np.repeat(s, 2, axis=2)[:, ::-1, ::2] for s in parts(state)])
    dy, dstate = draw_gradients(layer, layer(x)[0], state)
    dstate = like([s[:, ::-1, ::-1] for s in parts(dstate)])
    check_training(monkeypatch, layer, x[:, ::-1, ::-1], state, None, dy[::-1, :, ::-1], dstate)
    check_training(monkeypatch, layer, np.asfortranarray(x), state, None, np.asfortranarray(dy))
    x = np.broadcast_to(x[:, :, :1], x.shape)
    check_training(monkeypatch, layer, x, state, None, np.broadcast_to(dy[:1, :1], dy.shape))


def test_training_keeps_what_nobody_writes_to_and_copies_the_rest(monkeypatch, layer):
    x, state = draw(layer, 5, 3)
    dy, _ = draw_gradients(layer, layer(x)[0], state)
    kept = train(layer, x, None, 1)._tape.passes[0].x
    assert not np.shares_memory(kept, x)
    out = layer.forward(x, state, training=True)
    expected = layer.backward(out, dy).parameters
    out = layer.forward(x, state, training=True)
    x[...] = np.nan
    for array in parts(state):
        array[...] = np.nan
    for array in layer.parameters.values():
        array[...] = np.nan
    for name, array in layer.backward(out, dy).parameters.items():
        assert_same_bits(array, expected[name], name)
    x.flags.writeable = False
    assert np.shares_memory(train(layer, x, None, 1)._tape.passes[0].x, x)
    view = np.broadcast_to(np.ones((1, 1, 7), layer.dtype), x.shape)[:, ::-1]
    assert train(layer, view, None, 1) is None  # constant in time


def test_training_that_is_not_plain_goes_the_other_way(layer):
    x, state = draw(layer, 4, 3)
    dy, dstate = draw_gradients(layer, layer(x)[0], state)
    states = parts(dstate)
    for other in (x.tolist(), x.astype(np.float16), x[:0], x[..., :3]):
        assert train(layer, other, None, 1) is None
    for other in ((*states, states[0]), [*states], like([s[:, :1] for s in states])):
        assert train(layer, x, other, 1) is None
    out = layer.forward(x, state, training=True)
    for other in (dy.tolist(), dy.astype(np.float16), dy[:2], dy[..., :3], dy[..., 0]):
        assert plain_arrivals(out._tape, other, None) is None
    for other in ((*states, states[0]), [*states], like([s[:, :1] for s in states])):
        assert plain_arrivals(out._tape, dy, other) is None
    with pytest.raises(ValueError, match="dy: expected shape"):
        layer.backward(out, dy[:2])
    with pytest.raises((TypeError, ValueError), match="dstate"):
        layer.backward(out, dy, (*states, states[0]))
    reset = np.zeros((3, 4) if layer.batch_first else (4, 3), bool)
    reset[1, 2] = True
    with_resets = layer.forward(x, state, training=True, reset=reset)
    expected = layer.backward(with_resets, dy, dstate, flow=True)
    again = layer.backward(with_resets, dy, dstate)
    for name, array in expected.parameters.items():
        assert_same_bits(again.parameters[name], array, name)


def test_dropout_is_not_plain(dtype):
    layer = rk.GRU(7, 19, 2, dropout=0.3, dtype=dtype, rng=0)
    x, _ = draw(layer, 4, 3)
    assert train(layer, x, None, 1) is None


def test_parameters_of_training_in_other_arrays(monkeypatch, layer):
    x, state = draw(layer, 4, 3)
    name = "weight_ih_l0"
    array = layer.parameters[name]
    layer.parameters[name] = np.asfortranarray(array)
    assert train(layer, x, state, 1) is None
    layer.parameters[name] = np.repeat(array, 2, axis=0)[::2]
    check_training(monkeypatch, layer, x, state)
    layer.parameters[name] = array[:-1]
    with pytest.raises(ValueError, match=f"parameters\\['{name}'\\]"):
        layer.forward(x, state, training=True)


def test_training_of_several_threads(monkeypatch, cell, dtype):
    cls, options = cell
    layer = cls(37, 83, 2, bidirectional=True, dtype=dtype, rng=0, **options)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((11, 9, 37)).astype(dtype)
    state = normal_state(layer, 9, rng)
    dy, dstate = draw_gradients(layer, layer(x)[0], state)
    lengths = np.array([11, 3, 0, 7, 7, 1, 10, 11, 2])
    monkeypatch.setattr(_plan, "SERIAL_FLOPS", 0.0)
    results_of = []
    for threads in (1, 3):
        out = train(layer, x, state, threads, lengths)
        grads = layer.backward(out, dy, dstate, clip=rk.Clip(value=0.5), num_threads=threads)
        results_of.append([out.y, grads.x, *grads.parameters.values(), *parts(grads.state)])
    for one, three in zip(*results_of, strict=True):
        assert_same_bits(three, one)

"""Token ids are the dense input that they stand for; so is an input that is constant in time, but
that the gradient of W_ih is summed in another order."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

import rnnkernel as rk
from helpers import assert_same_bits, bits
from reference import stack as stack_reference
from rnnkernel import _check
from sequences import assert_differences, loss, normal_state, parts
from tolerances import assert_output_close

# (T, N, V, H): more ids than steps, and fewer; past chunks of steps and rows of a table
SIZES = [(6, 5, 9, 11), (3, 1, 40, 7), (50, 11, 5, 19), (20, 23, 300, 37)]
STACKS = [
    {},
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "batch_first": True, "bias": False},
]

# what another thread may do; NumPy deprecates it from 2.5 on
SETS_SHAPES = pytest.mark.filterwarnings("ignore:Setting the shape:DeprecationWarning")


@pytest.fixture(params=SIZES, ids=str)
def sizes(request):
    return request.param


@pytest.fixture(params=STACKS, ids=["single", "both", "stack"])
def stack(request):
    return request.param


def build(case, dtype, inputs, H, **options):
    return getattr(rk, case.layer)(inputs, H, dtype=dtype, rng=3, **case.options, **options)


def more(which, T, N, rng):
    """Lengths and resets beside the ids, or neither."""
    if not which:
        return {}
    return {"lengths": rng.integers(0, T + 1, N), "reset": rng.random((T, N)) < 0.2}


def turned(layer, arguments):
    """Everything (T, N, ...) as the layer has it."""
    if not layer.batch_first:
        return arguments
    return {k: v if k == "lengths" else v.swapaxes(0, 1) for k, v in arguments.items()}


@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize("embedded", [False, True], ids=["one_hot", "embedding"])
def test_ids_have_the_bits_of_the_dense_run(case, dtype, sizes, stack, embedded, ragged):
    T, N, V, H = sizes
    rng = np.random.default_rng(1)
    inputs = 6 if embedded else V
    table = rng.standard_normal((V, 6)).astype(dtype) if embedded else np.eye(V, dtype=dtype)
    layer = build(case, dtype, inputs, H, **stack)
    state, dstate = normal_state(layer, N, rng), normal_state(layer, N, rng)
    ids = rng.integers(0, V, (T, N))
    time_first = {"x": ids} | more(ragged, T, N, rng)
    arguments = turned(layer, time_first)
    dense = turned(layer, time_first | {"x": table[ids]})
    if ragged:  # whatever stands past an end is not looked at
        past = np.arange(T)[:, None] >= arguments["lengths"]
        arguments["x"] = turned(layer, {"x": np.where(past, -7, ids)})["x"]
    embedding = {"embedding": table} if embedded else {}

    expected = layer.forward(**dense, state=state, training=True)
    out = layer.forward(**arguments, **embedding, state=state, training=True)
    y, final = layer(**arguments, **embedding, state=state)
    frozen_y, _ = layer.freeze()(**arguments, **embedding, state=state)
    for one in (out.y, y, frozen_y):
        assert_same_bits(one, expected.y)
    for one in (out.state, final):
        for a, b in zip(parts(one), parts(expected.state), strict=True):
            assert_same_bits(a, b, "state")

    dy = rng.standard_normal(out.y.shape).astype(dtype)
    wanted = layer.backward(expected, dy, dstate, flow=True)
    grads = layer.backward(out, dy, dstate, flow=True)
    assert grads.x is None
    assert_same_bits(grads.flow.dh_norm, wanted.flow.dh_norm)
    for a, b in zip(parts(grads.state), parts(wanted.state), strict=True):
        assert_same_bits(a, b, "dstate")
    for name, gradient in wanted.parameters.items():
        # one-hot columns that are not there: 0 * dgates may have been -0
        np.testing.assert_array_equal(grads.parameters[name], gradient, name)
    if not embedded:
        assert grads.embedding is None
        return
    total = np.zeros((V, 6))
    np.add.at(total, ids, wanted.x.swapaxes(0, 1) if layer.batch_first else wanted.x)
    assert grads.embedding.shape == (V, 6) and grads.embedding.dtype == dtype
    bound = 8 * np.finfo(dtype).eps * np.sqrt(T * N + 8 * H) * max(1.0, np.abs(total).max())
    assert np.abs(grads.embedding - total).max() <= bound
    assert not grads.embedding[np.setdiff1d(np.arange(V), ids)].any()


@pytest.mark.parametrize("num_threads", [2, 3])
@pytest.mark.parametrize("embedded", [False, True], ids=["one_hot", "embedding"])
def test_any_number_of_threads(case, dtype, sizes, embedded, num_threads):
    T, N, V, H = sizes
    rng = np.random.default_rng(2)
    layer = build(case, dtype, 6 if embedded else V, H, bidirectional=True)
    embedding = rng.standard_normal((V, 6)).astype(dtype) if embedded else None
    ids, dy = rng.integers(0, V, (T, N)), rng.standard_normal((T, N, 2 * H)).astype(dtype)
    results = []
    for threads in (1, num_threads):
        out = layer.forward(ids, embedding=embedding, training=True, num_threads=threads)
        grads = layer.backward(out, dy, num_threads=threads)
        results.append([out.y, *parts(out.state), *grads.parameters.values()])
        if embedded:
            results[-1].append(grads.embedding)
    for one, many in zip(*results, strict=True):
        assert_same_bits(many, one)


@pytest.mark.parametrize("embedded", [False, True], ids=["one_hot", "embedding"])
def test_finite_differences(case, embedded):
    rng = np.random.default_rng(4)
    layer = build(case, np.float64, 4 if embedded else 7, 5, num_layers=2, bidirectional=True)
    embedding = rng.standard_normal((7, 4)) if embedded else None
    ids, dy = rng.integers(0, 7, (5, 4)), rng.standard_normal((5, 4, 10))
    state, dstate = normal_state(layer, 4, rng), normal_state(layer, 4, rng)
    arguments = {"embedding": embedding, "lengths": np.array([5, 3, 0, 4])}
    out = layer.forward(ids, state, training=True, **arguments)
    grads = layer.backward(out, dy, dstate)
    arrays = {name: (w, grads.parameters[name]) for name, w in layer.parameters.items()}
    if embedded:
        arrays["embedding"] = (embedding, grads.embedding)

    def function():
        return loss(*layer(ids, state, **arguments), dy, dstate)

    assert_differences(function, arrays, rng, 12)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int32, np.uint64, ">i4"])
def test_any_integers(dtype, kind):
    layer = rk.GRU(7, 5, dtype=dtype, rng=0)
    ids = np.random.default_rng(5).integers(0, 7, (4, 6)).astype(kind)
    expected, _ = layer(ids.astype(np.int64))
    assert_same_bits(layer(ids)[0], expected)
    assert_same_bits(layer(np.asfortranarray(ids))[0], expected)
    assert_same_bits(layer(np.repeat(ids, 2, axis=1)[:, ::2])[0], expected)
    read_only = ids.copy()
    read_only.flags.writeable = False
    assert_same_bits(layer(read_only)[0], expected)


def test_unbatched_and_batch_first(dtype):
    layer = rk.LSTM(7, 5, dtype=dtype, rng=0)
    turned_layer = rk.LSTM(7, 5, batch_first=True, dtype=dtype)
    turned_layer.load_state_dict(layer.state_dict())
    ids = np.random.default_rng(6).integers(0, 7, (4, 6))
    y, (h, c) = layer(ids)
    turned_y, (turned_h, turned_c) = turned_layer(ids.T)
    assert_same_bits(np.ascontiguousarray(turned_y.swapaxes(0, 1)), y)
    assert_same_bits(turned_h, h)
    assert_same_bits(turned_c, c)
    one, (h_one, _) = layer(ids[:, 2])
    assert_same_bits(one, np.ascontiguousarray(y[:, 2]))
    assert h_one.shape == (1, 5)


def test_out_owns_what_backward_needs(dtype):
    """Ids, embedding and weights may change after forward."""
    layer = rk.LSTM(3, 5, dtype=dtype, rng=0)
    rng = np.random.default_rng(7)
    embedding, ids = rng.standard_normal((8, 3)).astype(dtype), rng.integers(0, 8, (4, 6))
    dy = rng.standard_normal((4, 6, 5)).astype(dtype)
    out = layer.forward(ids, embedding=embedding, training=True)
    expected = layer.backward(out, dy)
    assert bits(layer.backward(out, dy).embedding) == bits(expected.embedding)
    ids[:], embedding[:] = 0, np.nan
    for weight in layer.parameters.values():
        weight[:] = np.nan
    grads = layer.backward(out, dy)
    assert_same_bits(grads.embedding, expected.embedding)
    for name, gradient in expected.parameters.items():
        assert_same_bits(grads.parameters[name], gradient, name)


def test_a_large_vocabulary_is_not_looked_at(dtype):
    """NaN in the rows and columns of ids that do not occur stays there."""
    ids = np.array([[1, 40_000], [7, 1]])
    layer = rk.GRU(50_000, 5, dtype=dtype, rng=0)
    small = rk.GRU(3, 5, dtype=dtype)
    for name, weight in layer.parameters.items():
        small.parameters[name][...] = (
            weight[:, [1, 7, 40_000]] if "ih_l" in name[6:] and (weight.ndim == 2) else weight
        )
    unused = np.setdiff1d(np.arange(50_000), ids)
    layer.parameters["weight_ih_l0"][:, unused] = np.nan
    compact = np.array([[0, 2], [1, 0]])
    out, expected = layer.forward(ids, training=True), small.forward(compact, training=True)
    assert_same_bits(out.y, expected.y)
    dy = np.ones_like(out.y)
    grads, wanted = layer.backward(out, dy), small.backward(expected, dy)
    gradient = grads.parameters["weight_ih_l0"]
    assert_same_bits(
        np.ascontiguousarray(gradient[:, [1, 7, 40_000]]), wanted.parameters["weight_ih_l0"]
    )
    assert not gradient[:, unused].any()


def test_nothing_at_all(case, dtype):
    layer = build(case, dtype, 7, 5)
    embedding = np.ones((3, 7), dtype)
    for shape in ((0, 3), (4, 0), (0, 0)):
        for table in (None, embedding):
            out = layer.forward(np.zeros(shape, int), embedding=table, training=True)
            assert out.y.shape == (*shape, 5)
            grads = layer.backward(out, np.zeros_like(out.y))
            assert all(not g.any() for g in grads.parameters.values())
            if table is not None:
                assert grads.embedding.shape == (3, 7) and not grads.embedding.any()
    ids, lengths = np.full((4, 2), -1), [0, 0]
    for table in (None, embedding):
        out = layer.forward(ids, lengths=lengths, embedding=table, training=True)
        grads = layer.backward(out, np.ones_like(out.y))
        assert not out.y.any() and not any(g.any() for g in grads.parameters.values())


E_OK = np.zeros((3, 2), np.float32)


@pytest.mark.parametrize(
    ("x", "arguments", "error", "words"),
    [
        ([[0, 1, 2]], {}, IndexError, ["x", "0 to 1", "got 2", "(0, 2)"]),
        ([[0, 1], [-1, 1]], {}, IndexError, ["x", "-1", "(1, 0)"]),
        ([[0, 3]], {"embedding": E_OK}, IndexError, ["x", "0 to 2", "got 3", "(0, 1)"]),
        ([0, 1, 5], {}, IndexError, ["x", "5", "(2,)"]),
        ([[0, 9]], {"lengths": [1, 1]}, IndexError, ["x", "9", "(0, 1)"]),
        ([[0]], {"embedding": E_OK.astype(float)}, TypeError, ["embedding", "float32", "float64"]),
        ([[0]], {"embedding": np.zeros((3, 4), np.float32)}, ValueError, ["embedding", "I=2"]),
        ([[0]], {"embedding": np.zeros((0, 2), np.float32)}, ValueError, ["embedding"]),
        ([[[0, 1]]], {}, TypeError, ["x", "float32", "int"]),
        ([[True]], {}, TypeError, ["x", "bool"]),
        (np.zeros((1, 1, 2), np.float32), {"embedding": E_OK}, ValueError, ["embedding", "x"]),
    ],
)
def test_errors(x, arguments, error, words):
    layer = rk.RNN(2, 3, rng=0)
    with pytest.raises(error) as caught:
        layer(np.asarray(x), **arguments)
    assert all(word in str(caught.value) for word in words), str(caught.value)


class NoComparison(np.ndarray):
    """Whose comparisons find nothing."""

    def __lt__(self, other):
        return np.zeros(self.shape, bool)

    __ge__ = __lt__


@pytest.mark.parametrize("make", [np.ma.masked_all_like, lambda x: x.view(NoComparison)])
@pytest.mark.parametrize("bad", [10**12, -(10**7), 2])
def test_subclasses_are_looked_at_as_arrays(make, bad):
    """A masked id is an id, since kernels do not know masks."""
    x = make(np.array([[0], [1]]))
    np.asarray(x)[...] = [[0], [bad]]
    layer = rk.RNN(2, 3, rng=0)
    for call in (layer, layer.freeze(), lambda x: layer.forward(x, training=True)):
        with pytest.raises(IndexError, match=rf"x: .* got {bad} at \(1, 0\)"):
            call(x)


class Interface:
    """Nothing but the array interface, and a length that is none of the array's."""

    def __init__(self, array, asked=None):
        self.array, self.asked = array, asked or (lambda: None)

    def __len__(self):
        return 1

    @property
    def __array_interface__(self):
        self.asked()
        return self.array.__array_interface__


def test_an_embedding_is_asked_once():
    """What counts is the array that it was."""
    layer = rk.LSTM(5, 8, num_layers=2, dropout=0.5, rng=0)
    twin = rk.LSTM(5, 8, num_layers=2, dropout=0.5, rng=0)
    ids = np.arange(30).reshape(10, 3)
    table = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32)
    out = layer.forward(ids, embedding=Interface(table), training=True)
    expected = twin.forward(ids, embedding=table, training=True)
    assert_same_bits(out.y, expected.y)
    grads = layer.backward(out, np.ones_like(out.y))
    assert grads.embedding.shape == table.shape
    assert_same_bits(
        grads.embedding, twin.backward(expected, np.ones_like(out.y)).embedding, "embedding"
    )
    with pytest.raises(ValueError, match="^out: .* overlaps embedding"):
        buffer = np.zeros((40, 8), np.float32)
        rk.RNN(8, 8, rng=0).forward(
            ids[:5, :2], embedding=Interface(buffer), out=buffer[:10].reshape(5, 2, 8)
        )


@SETS_SHAPES
@pytest.mark.parametrize("name", ["state", "lengths", "reset", "embedding"])
@pytest.mark.parametrize("training", [False, True])
def test_an_x_that_gets_another_shape_while_others_are_asked(name, training):
    """What was checked is what is used."""
    layer = rk.RNN(4, 4, rng=0)
    x = np.random.default_rng(0).standard_normal((2000, 1, 4)).astype(np.float32)
    arrays = {
        "state": np.zeros((1, 1, 4), np.float32),
        "lengths": np.array([1900]),
        "reset": np.zeros((2000, 1), bool),
        "embedding": np.ones((3, 4), np.float32),
    }
    if name == "embedding":
        x = (np.arange(2000) % 3).reshape(2000, 1)
    shape = x.shape

    def change():
        x.shape = (1, 2000, *shape[2:])

    expected = layer.forward(x, **{name: arrays[name]}, training=training).y
    y = layer.forward(x, **{name: Interface(arrays[name], change)}, training=training).y
    assert x.shape != shape
    assert_same_bits(y, expected)


@SETS_SHAPES
def test_an_embedding_that_gets_another_shape_during_a_step():
    stream = rk.RNN(4, 4, rng=0).stream(1)
    table = np.random.default_rng(0).standard_normal((128, 4)).astype(np.float32)

    class Asked:
        def __array__(self, *_, **__):
            table.shape = (512,)
            return np.array([100])

    expected = rk.RNN(4, 4, rng=0).stream(1).step(np.array([100]), embedding=table.copy())
    assert_same_bits(stream.step(Asked(), embedding=table), expected)


@SETS_SHAPES
def test_ids_that_get_another_shape_during_a_step():
    stream = rk.RNN(4, 4, rng=0).stream(3)
    ids, table = np.arange(3), np.ones((3, 4), np.float32)

    def change():
        ids.shape = (3, 1)

    with pytest.raises(TypeError, match="^x: "):  # as a matrix of integers always is
        stream.step(ids, embedding=Interface(table, change))


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.int32])
def test_ids_that_change_after_they_are_checked(dtype, monkeypatch):
    """As another thread may have it: what was checked is what is used."""
    x = np.array([[0, 1], [1, 0]], dtype)
    layer = rk.RNN(2, 3, rng=0).freeze()
    expected, _ = layer(x)
    ids = _check.ids

    def change(name, value, *others):
        checked = ids(name, value, *others)
        x[...] = 100
        return checked

    monkeypatch.setattr(_check, "ids", change)
    assert_same_bits(layer(x)[0], expected)


def test_the_position_of_a_bad_id_with_batch_first():
    layer = rk.RNN(2, 3, batch_first=True, rng=0)
    with pytest.raises(IndexError, match=r"\(1, 0\)"):
        layer(np.array([[0, 1], [2, 1]]))


@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
def test_an_input_that_is_constant_in_time(case, dtype, stack, ragged):
    T, N, inputs, H = 20, 13, 9, 21
    layer = build(case, dtype, inputs, H, **stack)
    rng = np.random.default_rng(8)
    state = normal_state(layer, N, rng)
    x = np.broadcast_to(rng.standard_normal((N, inputs)).astype(dtype), (T, N, inputs))
    others = more(ragged, T, N, rng)
    constant = turned(layer, {"x": x} | others)
    dense = turned(layer, {"x": x.copy()} | others)
    expected = layer.forward(**dense, state=state, training=True)
    out = layer.forward(**constant, state=state, training=True)
    assert_same_bits(out.y, expected.y)
    assert_same_bits(layer(**constant, state=state)[0], expected.y)
    dy = rng.standard_normal(out.y.shape).astype(dtype)
    wanted, grads = layer.backward(expected, dy), layer.backward(out, dy)
    assert_same_bits(grads.x, wanted.x)
    assert layer.backward(out, dy, input_grad=False).x is None

    # the first layer's dgates are summed over time, and then meet x
    weights = {name: w.astype(np.float64) for name, w in layer.parameters.items()}
    states = [s.astype(np.float64) for s in parts(state)]
    _, _, tape = stack_reference.forward(case, weights, x.astype(np.float64), states, **others)
    time_first = dy.swapaxes(0, 1) if layer.batch_first else dy
    reference = stack_reference.backward(tape, time_first.astype(np.float64), None)
    problem = SimpleNamespace(
        case=case, dtype=dtype, passes=len(states[0]), sizes=(T, N, max(inputs, 2 * H), H)
    )
    for name, gradient in wanted.parameters.items():
        if name.startswith("weight_ih_l0"):
            assert_output_close(
                grads.parameters[name], reference.parameters[name], f"d_{name}", problem
            )
        else:
            assert_same_bits(grads.parameters[name], gradient, name)


@pytest.mark.parametrize("num_threads", [2, 3])
def test_a_constant_input_and_any_number_of_threads(case, dtype, num_threads):
    T, N, inputs, H = 70, 13, 9, 37
    layer = build(case, dtype, inputs, H, bidirectional=True)
    rng = np.random.default_rng(8)
    x = np.broadcast_to(rng.standard_normal((N, inputs)).astype(dtype), (T, N, inputs))
    dy = rng.standard_normal((T, N, 2 * H)).astype(dtype)
    for which in (False, True):
        others = more(which, T, N, rng)
        one, many = (
            layer.backward(
                layer.forward(x, training=True, num_threads=threads, **others),
                dy,
                num_threads=threads,
            )
            for threads in (1, num_threads)
        )
        assert_same_bits(many.x, one.x)
        for name, gradient in one.parameters.items():
            assert_same_bits(many.parameters[name], gradient, name)


@pytest.mark.parametrize("kind", ["one_hot", "embedding", "constant"])
def test_checkpoints_change_no_bit(case, dtype, kind):
    T, N, V = 11, 5, 7
    rng = np.random.default_rng(9)
    layer = build(case, dtype, V, 13, bidirectional=True)
    arguments = more(True, T, N, rng)
    x = rng.integers(0, V, (T, N))
    if kind == "constant":
        x = np.broadcast_to(rng.standard_normal((N, V)).astype(dtype), (T, N, V))
    if kind == "embedding":
        arguments["embedding"] = rng.standard_normal((V, V)).astype(dtype)
    dy = rng.standard_normal((T, N, 26)).astype(dtype)
    results = []
    for every in (None, 3):
        out = layer.forward(x, training=True, checkpoint_every=every, **arguments)
        grads = layer.backward(out, dy)
        results.append([out.y, *parts(out.state), *parts(grads.state), *grads.parameters.values()])
        results[-1] += [g for g in (grads.x, grads.embedding) if g is not None]
    for one, many in zip(*results, strict=True):
        assert_same_bits(many, one)


@pytest.mark.parametrize("weights", ["float16", "int8"])
@pytest.mark.parametrize("embedded", [False, True], ids=["one_hot", "embedding"])
def test_smaller_weights(case, weights, embedded):
    layer = build(case, np.float32, 7, 13, bidirectional=True)
    rng = np.random.default_rng(10)
    table = rng.standard_normal((9, 7)).astype(np.float32) if embedded else np.eye(7, dtype="f4")
    ids = rng.integers(0, 7, (4, 5))
    fast = layer.freeze(weights=weights)
    expected, _ = fast(table[ids])
    y, _ = fast(ids, embedding=table if embedded else None)
    assert_same_bits(y, expected)


def test_more_ids_than_steps_in_the_last_segment(case, dtype):
    layer = getattr(rk, case.layer)(5, 9, dtype=dtype, rng=0, **case.options)
    embedding = np.random.default_rng(0).standard_normal((61, 5)).astype(dtype)
    ids = np.random.default_rng(1).permutation(61)[:, None]
    dy = np.random.default_rng(2).standard_normal((61, 1, 9)).astype(dtype)
    outs = [
        layer.forward(ids, embedding=embedding, training=True, checkpoint_every=every)
        for every in (None, 60)
    ]
    whole, cut = (layer.backward(out, dy) for out in outs)
    assert_same_bits(cut.embedding, whole.embedding)
    for name, gradient in whole.parameters.items():
        assert_same_bits(cut.parameters[name], gradient, name)


def test_of_an_embedding_that_lies_anyhow_only_the_rows_that_occur_are_copied():
    V, I = 20_000, 8  # noqa: E741
    ids = np.array([[3, V - 1], [0, 3]])
    table = np.random.default_rng(0).standard_normal((V, 2 * I)).astype(np.float32)
    layer = rk.GRU(I, 5, rng=0)
    for embedding in (table[:, :I], table[:, I:][::-1], np.asfortranarray(table[:, :I])):
        plain = np.ascontiguousarray(embedding)
        expected = layer.forward(ids, embedding=plain, training=True)
        tracemalloc.start()
        try:
            y, _ = layer(ids, embedding=embedding)
            out = layer.forward(ids, embedding=embedding, training=True)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < plain.nbytes / 4
        assert_same_bits(y, expected.y)
        assert_same_bits(
            layer.backward(out, out.y).embedding, layer.backward(expected, expected.y).embedding
        )
    endless = np.broadcast_to(table[:1, :I], (10**14, I))
    assert_same_bits(layer(ids, embedding=endless)[0], layer(ids * 0, embedding=table[:1, :I])[0])

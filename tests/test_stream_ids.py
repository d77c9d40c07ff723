"""Steps of token ids are one call of the layer over the same ids, bit for bit: of rows of an
embedding, and without one of the one-hot vectors, which are columns of W_ih."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

import rnnkernel as rk
from drawn import draw
from helpers import assert_same_bits, layer_state, make_layer, unchanged
from reference import CASES
from sequences import normal_state, parts
from tolerances import assert_output_close

T = 9
KINDS = ["one_hot", "embedding"]
# (V, H): fewer ids than steps and more, unit blocks filled and not
SIZES = [(5, 19), (1, 1), (300, 67), (20, 130)]


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def build(case, dtype, V, H, kind, **options):
    """A layer, and its embedding as a keyword: none, or more rows than the layer has inputs."""
    options = case.options | options
    if kind == "one_hot":
        return getattr(rk, case.layer)(V, H, dtype=dtype, rng=1, **options), {}
    layer = getattr(rk, case.layer)(6, H, dtype=dtype, rng=1, **options)
    return layer, {"embedding": np.random.default_rng(2).standard_normal((V, 6)).astype(dtype)}


def draw_ids(V, *shape):
    return np.random.default_rng(3).integers(0, V, shape)


def assert_same_state(actual, expected):
    __tracebackhide__ = True
    for got, wanted in zip(parts(actual), parts(expected), strict=True):
        assert_same_bits(got, wanted, "state")


def check_steps(called, ids, embedding, **call):
    """All steps, from a state that is not zero, against one call."""
    __tracebackhide__ = True
    N = ids.shape[1]
    layer = getattr(called, "_layer", called)
    state = normal_state(layer, N, np.random.default_rng(4))
    y, final = called(ids, state, **embedding, **call)
    stream = called.stream(N)
    stream.state = state
    for t, step in enumerate(ids):
        assert_same_bits(stream.step(step, **embedding), y[t], f"y at {t}")
    assert_same_state(stream.state, final)


# -- the promise -----------------------------------------------------------------------------------


@pytest.mark.parametrize("N", [1, 2, 3, 7, 70])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_bits_of_the_whole(case, dtype, kind, N, sizes):
    layer, embedding = build(case, dtype, *sizes, kind)
    check_steps(layer, draw_ids(sizes[0], T, N), embedding)


@pytest.mark.parametrize("options", [{"num_layers": 3}, {"num_layers": 2, "bias": False}], ids=str)
@pytest.mark.parametrize("N", [1, 4])
def test_stacks(case, dtype, kind, options, N):
    layer, embedding = build(case, dtype, 11, 19, kind, **options)
    check_steps(layer.freeze(), draw_ids(11, T, N), embedding)


@pytest.mark.parametrize(
    "options",
    [{"proj_size": 7}, {"peephole": True, "cell_clip": 0.3}, {"coupled": True, "proj_size": 5}],
    ids=str,
)
def test_options_of_lstm(dtype, kind, options):
    inputs = 11 if kind == "one_hot" else 6
    layer = rk.LSTM(inputs, 19, num_layers=2, dtype=dtype, rng=1, **options)
    table = np.random.default_rng(2).standard_normal((11, 6)).astype(dtype)
    check_steps(layer, draw_ids(11, T, 3), {} if kind == "one_hot" else {"embedding": table})


@pytest.mark.parametrize("weights", ["float16", "int8"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_smaller_weights(case, kind, weights, sizes):
    """Also the bits of the vectors that the ids stand for."""
    V = sizes[0]
    layer, embedding = build(case, np.float32, *sizes, kind, num_layers=2)
    fast, ids = layer.freeze(weights), draw_ids(V, T, 5)
    check_steps(fast, ids, embedding)
    vectors = embedding.get("embedding", np.eye(V, dtype=np.float32))[ids]
    assert_same_bits(fast(ids, **embedding)[0], fast(vectors)[0])
    stream = fast.stream(5)
    for x, y in zip(ids, fast(vectors)[0], strict=True):
        assert_same_bits(stream.step(x, **embedding), y)


@pytest.mark.parametrize(
    ("dtype", "weights"),
    [(np.float32, None), (np.float64, None), (np.float32, "float16"), (np.float32, "int8")],
)
def test_values(case, dtype, kind, weights):
    """Against the reference, not only against the layer."""
    V = 13
    problem = draw(case, T=T, N=3, I=V if kind == "one_hot" else 6, H=19, dtype=dtype)
    ids, table = draw_ids(V, T, 3), np.eye(V, dtype=dtype)
    if kind == "embedding":
        table = np.random.default_rng(2).standard_normal((V, 6)).astype(dtype)
    fast = make_layer(problem).freeze(weights)
    stream = fast.stream(3)
    stream.state = layer_state(case, problem.states)
    embedding = {} if kind == "one_hot" else {"embedding": table}
    y = np.stack([stream.step(x, **embedding) for x in ids])
    stored = {name.removesuffix("_l0"): array for name, array in fast.parameters.items()}
    exact = replace(problem, weights=stored, x=table[ids]).astype(np.float64)
    expected, final, _ = case.forward(exact.weights, exact.x, case.pack(exact.states))
    assert_output_close(y, expected, "y", problem)
    for name, got, wanted in zip(case.states, parts(stream.state), case.unpack(final), strict=True):
        assert_output_close(got[0], wanted, name, problem)


def test_after_reset(case, dtype, kind):
    layer, embedding = build(case, dtype, 11, 19, kind, num_layers=2)
    ids, reset = draw_ids(11, T, 4), np.zeros((T, 4), bool)
    reset[2, [0, 3]] = reset[5] = reset[6, 1] = True
    state = normal_state(layer, 4, np.random.default_rng(4))
    y, final = layer(ids, state, reset=reset, **embedding)
    stream = layer.stream(4)
    stream.state = state
    for t in range(T):
        if reset[t].any():
            stream.reset(None if reset[t].all() else reset[t])
        assert_same_bits(stream.step(ids[t], **embedding), y[t], f"y at {t}")
    assert_same_state(stream.state, final)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(("V", "N", "H"), [(40, 70, 67), (3000, 1, 40), (30, 1, 300)])
def test_threads(case, dtype, kind, threads, V, N, H):
    """So large that a step is shared between threads, of ids or of vectors."""
    layer, embedding = build(case, dtype, V, H, kind, num_layers=2)
    before = rk.get_num_threads()
    try:
        rk.set_num_threads(threads)
        check_steps(layer, draw_ids(V, 4, N), embedding, num_threads=1)
    finally:
        rk.set_num_threads(before)


def test_ids_and_vectors_in_turn(case, dtype):
    """One stream takes whatever stands for x at each step."""
    V = 6
    layer, embedding = build(case, dtype, V, 19, "embedding", num_layers=2)
    table, eye = embedding["embedding"], np.eye(V, dtype=dtype)
    ids = draw_ids(V, T, 3)
    x = np.stack([table[step] if t % 3 else eye[step] for t, step in enumerate(ids)])
    y, _ = layer(x)
    stream = layer.stream(3)
    for t, step in enumerate(ids):
        seen = [(step, {}), (step, embedding), (x[t], {})][t % 3]
        assert_same_bits(stream.step(seen[0], **seen[1]), y[t], f"y at {t}")


def test_other_ids_are_not_looked_at(case, dtype, kind):
    """NaN in their rows and columns stays there."""
    V, ids = 5000, np.array([[17, 4999], [17, 1234], [0, 17]])
    layer, embedding = build(case, dtype, V, 5, kind)
    expected, _ = layer(ids, **embedding)
    unused = np.setdiff1d(np.arange(V), ids)
    if kind == "one_hot":
        layer.parameters["weight_ih_l0"][:, unused] = np.nan
    else:
        embedding["embedding"][unused] = np.nan
    stream = layer.stream(2)
    for x, y in zip(ids, expected, strict=True):
        assert_same_bits(stream.step(x, **embedding), y)


def test_infinite_float16_weights_stay_in_their_column(case):
    layer, _ = build(case, np.float32, 7, 5, "one_hot")
    layer.parameters["weight_ih_l0"][:, 3] = np.inf
    fast, ids = layer.freeze("float16"), np.array([[0], [2], [6]])
    expected, _ = fast(ids)
    assert np.isfinite(expected).all()
    stream = fast.stream()
    for x, y in zip(ids, expected, strict=True):
        assert_same_bits(stream.step(x), y)


def test_a_change_of_the_embedding_is_seen(case, dtype):
    layer, embedding = build(case, dtype, 11, 5, "embedding")
    table, x = embedding["embedding"], np.array([3, 7])
    stream, other = layer.stream(2), layer.stream(2)
    assert_same_bits(stream.step(x, **embedding), other.step(table[x]))
    table *= -2
    assert_same_bits(stream.step(x, **embedding), other.step(table[x]))


# -- arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "integer",
    [*(f"{sign}{size}" for sign in "iu" for size in (1, 2, 4, 8)), ">i4", ">u8", np.longlong],
)
def test_any_integers(kind, integer):
    V = 200 if np.dtype(integer).itemsize > 1 else 120
    layer, embedding = build(CASES["lstm"], np.float32, V, 7, kind)
    ids = draw_ids(V, 3)
    ids[0] = V - 1
    expected = layer.stream(3).step(ids, **embedding)
    ids = ids.astype(integer)
    wide = np.zeros(6, ids.dtype)
    wide[::2] = ids
    read_only = ids.copy()
    read_only.flags.writeable = False
    for same in (
        ids,
        wide[::2],
        ids[::-1].copy()[::-1],
        np.frombuffer(b"." + ids.tobytes(), np.uint8)[1:].view(ids.dtype),
        read_only,
        ids.view(type("Sub", (np.ndarray,), {})),
        *([memoryview(ids)] if ids.dtype.isnative else []),
    ):
        with unchanged(same if isinstance(same, np.ndarray) else ids):
            assert_same_bits(layer.stream(3).step(same, **embedding), expected)
    row = np.broadcast_to(ids[:1], 3)
    assert_same_bits(
        layer.stream(3).step(row, **embedding), layer.stream(3).step(row.copy(), **embedding)
    )


def test_any_layout_of_the_embedding(dtype):
    layer, embedding = build(CASES["lstm"], dtype, 11, 7, "embedding")
    table, ids = embedding["embedding"], draw_ids(11, 3)
    expected = layer.stream(3).step(table[ids])
    wide = np.zeros((22, 12), dtype)
    wide[::2, ::2] = table
    read_only = table.copy()
    read_only.flags.writeable = False
    for same in (
        table,
        np.asfortranarray(table),
        wide[::2, ::2],
        table[::-1, ::-1].copy()[::-1, ::-1],
        np.frombuffer(b"." + table.tobytes(), np.uint8)[1:].view(dtype).reshape(table.shape),
        read_only,
        memoryview(table),
        table.view(type("Sub", (np.ndarray,), {})),
    ):
        with unchanged(same if isinstance(same, np.ndarray) else table):
            assert_same_bits(layer.stream(3).step(ids, embedding=same), expected)
    row = np.broadcast_to(table[4], (11, 6))
    assert_same_bits(layer.stream(3).step(ids, embedding=row), layer.stream(3).step(row[:3].copy()))


def test_one_id_by_itself(case, dtype, kind):
    """As a step of ids (T,), whatever kind of integer it is."""
    layer, embedding = build(case, dtype, 11, 19, kind)
    ids = draw_ids(11, 6)
    y, _ = layer(ids, **embedding)
    assert y.shape == (6, 19)
    stream = layer.stream()
    for t, kind_of in enumerate([int, np.int64, np.uint8, np.array, memoryview, None]):
        out = np.full(19, np.nan, dtype) if t % 2 else None
        x = ids[t : t + 1] if kind_of is None else memoryview(np.array(ids[t]))
        if kind_of not in (None, memoryview):
            x = kind_of(ids[t])
        if kind_of is None:
            out = out[None]
        step = stream.step(x, out=out, **embedding)
        assert out is None or step is out
        assert_same_bits(step if step.ndim == 1 else step[0], y[t])
        assert step.ndim == (2 if kind_of is None else 1)


def test_out(case, dtype, kind):
    layer, embedding = build(case, dtype, 11, 19, kind)
    ids = draw_ids(11, 3, 3)
    y, _ = layer(ids, **embedding)
    stream = layer.stream(3)
    whole = np.full((3, 38), np.nan, dtype)
    for t, out in enumerate(
        [np.full((3, 19), np.nan, dtype), whole[:, ::2], np.full((3, 19), np.nan, dtype, order="F")]
    ):
        assert stream.step(ids[t], out=out, **embedding) is out
        assert_same_bits(out, y[t])
    assert np.isnan(whole[:, 1::2]).all()


def test_wrong_arguments(case, dtype, kind):
    V, H = 6, 19
    layer, embedding = build(case, dtype, V, H, kind, num_layers=2)
    stream = layer.stream(3)
    ids = np.array([1, 0, 5])
    stream.step(ids, **embedding)
    before = stream.state
    other = np.float64 if dtype == np.float32 else np.float32
    table = np.ones((V, 6), dtype)
    x = np.zeros((3, 6), dtype)
    wrong = [
        ([1, 6, 7], embedding, IndexError, r"x: expected ids from 0 to 5, got 6 at \(1,\)"),
        ([1, 2, -1], embedding, IndexError, r"x: expected ids from 0 to 5, got -1 at \(2,\)"),
        (np.array([2**64 - 1, 1, 1], np.uint64), embedding, IndexError, f"got {2**64 - 1} at"),
        (np.array([2**64 - 1, 1, 1], ">u8"), embedding, IndexError, f"got {2**64 - 1} at"),
        (ids[:2], embedding, ValueError, r"x: expected shape \(N=3\), got \(2,\)"),
        (np.arange(4), embedding, ValueError, r"x: expected shape \(N=3\), got \(4,\)"),
        (np.array(1), embedding, ValueError, r"x: expected shape \(N=3\), got \(\)"),
        (1, embedding, ValueError, r"x: expected shape \(N=3\), got \(\)"),
        (np.int64(1), embedding, ValueError, r"x: expected shape \(N=3\), got \(\)"),
        (ids[None], embedding, TypeError, "x: expected dtype"),
        (np.ones((3, 6), int), embedding, TypeError, "x: expected dtype"),
        (ids == 1, embedding, TypeError, "x: expected dtype .* got bool"),
        (True, embedding, TypeError, "x: expected an array"),
        ("3", embedding, TypeError, "x: expected an array"),
        (ids.tolist(), embedding, TypeError, "x: expected an array"),
        (ids.astype("m8[s]"), embedding, TypeError, "x: expected dtype"),
        (x, {"embedding": table}, ValueError, "embedding: expected None with an x of float"),
        (ids, {"embedding": table[:, :5]}, ValueError, r"embedding: expected shape \(V, I=6\)"),
        (ids, {"embedding": table[0]}, ValueError, r"embedding: expected shape \(V, I=6\)"),
        (ids, {"embedding": table[:0]}, ValueError, "embedding: V: expected an integer >= 1"),
        (ids, {"embedding": table.astype(other)}, TypeError, "embedding: expected dtype"),
        (ids, {"embedding": table.tolist()}, TypeError, "embedding: expected an array"),
        (ids, {"embedding": table[:5]}, IndexError, r"x: expected ids from 0 to 4, got 5 at \(2,"),
    ]
    for x_t, given, error, words in wrong:
        if error is IndexError and isinstance(x_t, list):
            x_t = np.array(x_t)
        for out in (None, np.full((3, H), 7, dtype)):
            with pytest.raises(error, match=words):
                stream.step(x_t, out=out, **given)
            assert_same_state(stream.state, before)
            assert out is None or (out == 7).all()
    with pytest.raises(ValueError, match="out: expected shape"):
        stream.step(ids, out=np.zeros((3, H + 1), dtype), **embedding)
    assert_same_state(stream.state, before)
    with pytest.raises(TypeError):
        stream.step(ids, None, table)


@pytest.mark.parametrize(
    "wrong", [6, -1, 10**30, -(10**30), np.int64(6), np.uint64(2**64 - 1), np.array(6)], ids=repr
)
def test_a_wrong_id_by_itself(dtype, kind, wrong):
    layer, embedding = build(CASES["gru_reset_after"], dtype, 6, 5, kind)
    stream = layer.stream()
    stream.step(3, **embedding)
    before = stream.state
    with pytest.raises(IndexError, match=rf"x: expected ids from 0 to 5, got {wrong} at \(\)"):
        stream.step(wrong, **embedding)
    assert_same_state(stream.state, before)


def test_out_must_not_be_what_is_read(dtype):
    layer, embedding = build(CASES["gru_reset_after"], dtype, 11, 6, "embedding")
    stream, table, ids = layer.stream(3), embedding["embedding"], draw_ids(11, 3)
    expected = layer.stream(3).step(table[ids])
    for out in (table[:3], table[2:5], table[::-1][:3]):
        with pytest.raises(ValueError, match="out: expected memory .* overlaps embedding"):
            stream.step(ids, out=out, embedding=table)
    block = np.zeros((14, 6), dtype)
    block[:11] = table
    assert_same_bits(stream.step(ids, out=block[11:], embedding=block[:11]), expected)
    seen_as_ids = np.zeros((3, 6), dtype)
    with pytest.raises(ValueError, match="out: expected memory .* overlaps x"):
        stream.step(seen_as_ids.view(np.uint8).ravel()[:3], out=seen_as_ids, embedding=table)


# -- memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, "int8"])
def test_steps_take_no_memory(case, kind, weights):
    layer, embedding = build(case, np.float32, 50, 19, kind, num_layers=2)
    fast = layer.freeze(weights)
    stream, alone = fast.stream(3), fast.stream()
    x, out = draw_ids(50, 3), np.empty((3, 19), np.float32)
    for _ in range(1000):
        stream.step(x, out=out, **embedding)
        alone.step(7, out=out[0], **embedding)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(30_000):
            stream.step(x, out=out, **embedding)
            alone.step(7, out=out[0], **embedding)
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < 2048 and now - before < 2048  # nothing but the loop's own objects

"""A stream's steps are one call of the layer, bit for bit, and its state can be seen and set."""

import copy
import pickle
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import rnnkernel as rk
from drawn import draw
from helpers import assert_same_bits, layer_state, make_layer, unchanged
from tolerances import assert_output_close

T, I, H = 9, 5, 19  # noqa: E741


def parts(state):
    return state if isinstance(state, tuple) else (state,)


def assert_same_state(actual, expected):
    __tracebackhide__ = True
    assert type(actual) is type(expected)
    for got, wanted in zip(parts(actual), parts(expected), strict=True):
        assert_same_bits(got, wanted, "state")


def build(case, dtype, inputs=I, hidden=H, **options):
    options = case.options | options
    return getattr(rk, case.layer)(inputs, hidden, dtype=dtype, rng=1, **options)


def normal(layer, *shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(layer.dtype)


def random_state(case, layer, N):
    rng = np.random.default_rng(3)
    shape = (layer.num_layers, N, layer.hidden_size)
    return case.pack([rng.standard_normal(shape).astype(layer.dtype) for _ in case.states])


# -- the promise -----------------------------------------------------------------------------------


@pytest.mark.parametrize("N", [1, 2, 3, 7, 70])
@pytest.mark.parametrize("sizes", [(I, H), (1, 1), (33, 67), (20, 130)], ids=str)
def test_the_bits_of_the_whole(case, dtype, N, sizes):
    layer = build(case, dtype, *sizes)
    x, state = normal(layer, T, N, sizes[0]), random_state(case, layer, N)
    y, final = layer(x, state)
    stream = layer.stream(batch_size=N)
    stream.state = state
    for t in range(T):
        assert_same_bits(stream.step(x[t]), y[t], f"y at {t}")
    assert_same_state(stream.state, final)


@pytest.mark.parametrize("options", [{"num_layers": 3}, {"num_layers": 2, "bias": False}], ids=str)
@pytest.mark.parametrize("N", [1, 4])
def test_stacks(case, dtype, options, N):
    layer = build(case, dtype, **options)
    x, state = normal(layer, T, N, I), random_state(case, layer, N)
    y, final = layer(x, state)
    stream = layer.freeze().stream(N)
    stream.state = state
    for t in range(T):
        assert_same_bits(stream.step(x[t]), y[t], f"y at {t}")
    assert_same_state(stream.state, final)


def test_values(case, dtype):
    """Against the reference, not only against the layer."""
    problem = draw(case, T=T, N=3, I=I, H=H, dtype=dtype)
    stream = make_layer(problem).stream(3)
    stream.state = layer_state(case, problem.states)
    y = np.stack([stream.step(x) for x in problem.x])
    exact = problem.astype(np.float64)
    expected, final, _ = case.forward(exact.weights, exact.x, case.pack(exact.states))
    assert_output_close(y, expected, "y", problem)
    for name, got, wanted in zip(case.states, parts(stream.state), case.unpack(final), strict=True):
        assert_output_close(got[0], wanted, name, problem)


@pytest.mark.parametrize(
    "options",
    [{"peephole": True}, {"cell_clip": 0.3}, {"coupled": True, "peephole": True, "cell_clip": 1}],
    ids=str,
)
def test_options_of_lstm(dtype, options):
    layer = rk.LSTM(I, H, num_layers=2, dtype=dtype, rng=1, **options)
    x = 3 * normal(layer, T, 2, I)
    y, final = layer(x)
    stream = layer.stream(2)
    for t in range(T):
        assert_same_bits(stream.step(x[t]), y[t], f"y at {t}")
    assert_same_state(stream.state, final)


def test_it_begins_at_zeros(case, dtype):
    layer = build(case, dtype, num_layers=2)
    x = normal(layer, 1, 2, I)
    stream = layer.stream(2)
    for array in parts(stream.state):
        assert array.shape == (2, 2, H) and not array.any()
    assert_same_bits(stream.step(x[0]), layer(x)[0][0])


def test_threads(case, dtype):
    """So large that a step is shared between threads."""
    layer = build(case, dtype, 40, 67)
    N = 70
    x = normal(layer, 3, N, 40)
    y, final = layer(x, num_threads=1)
    before = rk.get_num_threads()
    try:
        for threads in (1, 2, 5):
            rk.set_num_threads(threads)
            stream = layer.stream(N)
            for t in range(3):
                assert_same_bits(stream.step(x[t]), y[t])
            assert_same_state(stream.state, final)
    finally:
        rk.set_num_threads(before)


def test_it_keeps_its_weights(case, dtype):
    layer = build(case, dtype)
    x = normal(layer, T, 1, I)
    expected, _ = layer(x)
    stream = layer.stream()
    for array in layer.parameters.values():
        array.fill(7)
    del layer
    for t in range(T):
        assert_same_bits(stream.step(x[t]), expected[t])


def test_streams_of_one_frozen_layer_do_not_meet(case, dtype):
    layer = build(case, dtype)
    fast = layer.freeze()
    x = normal(layer, T, 2, I)
    expected, _ = layer(x)
    streams = [fast.stream() for _ in range(2)]
    for t in range(T):
        for n, stream in enumerate(streams):
            assert_same_bits(stream.step(x[t, n : n + 1]), expected[t, n : n + 1])


def test_nan_stays_in_its_row(case, dtype):
    layer = build(case, dtype, num_layers=2)
    x = normal(layer, T, 3, I)
    expected, _ = layer(x)
    x[4, 1, 2] = np.nan
    stream = layer.stream(3)
    for t in range(T):
        y = stream.step(x[t])
        assert_same_bits(y[[0, 2]], expected[t][[0, 2]])
        assert np.isnan(y[1]).all() == (t >= 4)
    stream.reset(1)
    assert np.isfinite(stream.step(expected[0, :, :I].copy())).all()


# -- state and reset -------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_the_state_goes_on_elsewhere(case, dtype, steps):
    layer = build(case, dtype, num_layers=2)
    x = normal(layer, T, 3, I)
    y, _ = layer(x)
    stream = layer.stream(3)
    for t in range(steps):
        stream.step(x[t])
    state = stream.state
    kept = [array.copy() for array in parts(state)]
    other = layer.stream(3)
    other.state = state
    assert_same_state(other.state, state)
    for t in range(steps, T):
        assert_same_bits(stream.step(x[t]), y[t])
        assert_same_bits(other.step(x[t]), y[t])
    rest, _ = layer(x[steps:], state)
    assert_same_bits(rest, y[steps:])
    for array, was in zip(parts(state), kept, strict=True):
        assert_same_bits(array, was, "a copy")


def test_state_none_is_zeros(case, dtype):
    layer = build(case, dtype, num_layers=2)
    stream = layer.stream(2)
    x = normal(layer, 2, I)
    first = stream.step(x)
    stream.state = None
    assert_same_bits(stream.step(x), first)


@pytest.mark.parametrize(
    "rows",
    [None, 0, -1, [0, 2], (), np.array([1]), np.array([True, False, True]), [False, False, True]],
    ids=str,
)
@pytest.mark.parametrize("steps", [1, 2])
def test_reset(case, dtype, rows, steps):
    layer = build(case, dtype, num_layers=2)
    x = normal(layer, T, 3, I)
    stream = layer.stream(3)
    for t in range(steps):
        stream.step(x[t])
    expected = [array.copy() for array in parts(stream.state)]
    for array in expected:
        array[
            :,
            slice(None)
            if rows is None
            else np.array(rows, ndmin=1, dtype=None if np.size(rows) else int),
        ] = 0
    stream.reset(rows)
    assert_same_state(stream.state, case.pack(expected))
    y, _ = layer(x[steps:], case.pack(expected))
    for t in range(steps, T):
        assert_same_bits(stream.step(x[t]), y[t - steps])


@pytest.mark.parametrize(
    ("rows", "error", "words"),
    [
        (3, IndexError, "rows: expected indices below 3, got 3"),
        ([0, -4], IndexError, "got -4"),
        (1.0, TypeError, "rows: expected None, an integer"),
        ("all", TypeError, "rows"),
        (True, TypeError, "rows"),
        ([True, False], ValueError, "rows: expected a bool for each of 3"),
        ([[0, 1]], ValueError, "rows: expected one dimension"),
        (np.array([1, 0, 1]), ValueError, "rows: expected each row once, got 1 again"),
        ([2, -1], ValueError, "rows: expected each row once, got 2 again"),
        ([[0, 1], [2]], TypeError, "rows"),
    ],
    ids=str,
)
def test_reset_of_no_rows_that_exist(rows, error, words):
    layer = rk.LSTM(I, H, rng=0)
    stream = layer.stream(3)
    stream.step(normal(layer, 3, I))
    before = stream.state
    with pytest.raises(error, match=words):
        stream.reset(rows)
    assert_same_state(stream.state, before)


def test_a_wrong_state_changes_nothing(case, dtype):
    layer = build(case, dtype, num_layers=2)
    stream = layer.stream(3)
    stream.step(normal(layer, 3, I))
    before = stream.state
    good = [array + 1 for array in parts(before)]
    wrong = [
        case.pack([array[:, :2] for array in good]),
        case.pack([array[0] for array in good]),
        case.pack([array.astype(np.float16) for array in good]),
        case.pack(good[:-1] + [good[-1][..., :-1]]),
        7,
    ]
    if len(good) > 1:
        wrong.append((good[0],))
    for state in wrong:
        with pytest.raises((TypeError, ValueError), match="state"):
            stream.state = state
        assert_same_state(stream.state, before)


# -- arguments -------------------------------------------------------------------------------------


def test_out(case, dtype):
    layer = build(case, dtype)
    x = normal(layer, 3, 3, I)
    y, _ = layer(x)
    stream = layer.stream(3)
    whole = np.full((3, 2 * H), np.nan, dtype)
    for t, out in enumerate(
        [np.full((3, H), np.nan, dtype), whole[:, ::2], np.full((3, H), np.nan, dtype, order="F")]
    ):
        assert stream.step(x[t], out=out) is out
        assert_same_bits(out, y[t])
    assert np.isnan(whole[:, 1::2]).all()


def test_any_layout_of_x(case, dtype):
    layer = build(case, dtype)
    x = normal(layer, 3, I)
    expected = layer.stream(3).step(x)
    wide = np.zeros((6, 2 * I), dtype)
    wide[::2, ::2] = x
    unaligned = np.frombuffer(b"." + x.tobytes(), np.uint8)[1:].view(dtype).reshape(x.shape)
    read_only = x.copy()
    read_only.flags.writeable = False
    for same in (
        np.asfortranarray(x),
        wide[::2, ::2],
        x[::-1].copy()[::-1],
        x[:, ::-1].copy()[:, ::-1],
        unaligned,
        read_only,
        memoryview(x),
        x.view(type("Sub", (np.ndarray,), {})),
    ):
        with unchanged(same if isinstance(same, np.ndarray) else x):
            assert_same_bits(layer.stream(3).step(same), expected)
    row = np.broadcast_to(x[:1], (3, I))
    assert_same_bits(layer.stream(3).step(row), layer.stream(3).step(row.copy()))


def test_one_row_may_come_without_its_axis(case, dtype):
    layer = build(case, dtype)
    x = normal(layer, T, I)
    y, _ = layer(x)
    stream, spread = layer.stream(), np.zeros((T, 2 * I), dtype)
    spread[:, ::2] = x
    for t in range(T):
        if t % 3 == 0:
            step = stream.step(spread[t, ::2])
        elif t % 3 == 1:
            step = np.full(H, np.nan, dtype)
            assert stream.step(x[t], out=step) is step
        else:
            wide = np.full(2 * H, np.nan, dtype)
            step = stream.step(x[t], out=wide[::2])
        assert_same_bits(step, y[t])


def test_wrong_arguments(case, dtype):
    layer = build(case, dtype)
    stream = layer.stream(3)
    x = normal(layer, 3, I)
    stream.step(x)
    before = stream.state
    other = np.float64 if dtype == np.float32 else np.float32
    read_only = np.zeros((3, H), dtype)
    read_only.flags.writeable = False
    big = np.zeros((3, H), dtype).astype(np.dtype(dtype).newbyteorder())
    wrong = [
        (x[:2], None, ValueError, "x: expected shape"),
        (x[:, :-1], None, ValueError, "x: expected shape"),
        (x[0], None, ValueError, "x: expected shape"),
        (x[None], None, ValueError, "x: expected shape"),
        (x.astype(other), None, TypeError, "x: expected dtype"),
        (x.astype(x.dtype.newbyteorder()), None, TypeError, "x: expected dtype"),
        ([[0.0] * I] * 3, None, TypeError, "x: expected an array"),
        (None, None, TypeError, "x: expected an array"),
        (x, np.zeros((3, H + 1), dtype), ValueError, "out: expected shape"),
        (x, np.zeros((2, H), dtype), ValueError, "out: expected shape"),
        (x, np.zeros(3 * H, dtype), ValueError, "out: expected shape"),
        (x, np.zeros((3, H), other), TypeError, "out: expected dtype"),
        (x, big, TypeError, "out: expected dtype"),
        (x, [0.0], TypeError, "out: expected a numpy.ndarray"),
        (x, read_only, ValueError, "out: expected a writable"),
        (x, np.broadcast_to(np.zeros(H, dtype), (3, H)), ValueError, "out: expected"),
    ]
    for x_t, out, error, words in wrong:
        with pytest.raises(error, match=words):
            stream.step(x_t, out=out)
        assert_same_state(stream.state, before)
    with pytest.raises(TypeError):
        stream.step()


def test_out_must_not_be_x(dtype):
    layer = rk.GRU(H, H, dtype=dtype, rng=0)
    stream = layer.stream(3)
    x = normal(layer, 3, H)
    for out in (x, x[::-1]):
        with pytest.raises(ValueError, match="out: expected memory of its own"):
            stream.step(x, out=out)
    block = np.zeros((7, H), dtype)
    block[:3] = x
    expected = layer.stream(3).step(x)
    assert_same_bits(stream.step(block[:3], out=block[3:6]), expected)
    # interleaved: the same stretch of memory, no element in common
    pairs = np.zeros((3, 2, H), dtype)
    pairs[:, 0] = x
    assert_same_bits(layer.stream(3).step(pairs[:, 0], out=pairs[:, 1]), expected)


@pytest.mark.parametrize(
    ("size", "error"), [(0, ValueError), (-1, ValueError), (1.0, TypeError), (True, TypeError)]
)
def test_wrong_batch_sizes(size, error):
    with pytest.raises(error, match="batch_size: expected an integer"):
        rk.LSTM(I, H).stream(batch_size=size)


def test_a_batch_that_does_not_fit():
    with pytest.raises(MemoryError):
        rk.LSTM(I, H).stream(1 << 58)


def test_no_stream_of_both_directions(case):
    layer = build(case, np.float32, bidirectional=True)
    for make in (layer.stream, layer.freeze().stream):
        with pytest.raises(ValueError, match="bidirectional: expected a layer of one direction"):
            make()


def test_what_it_shows():
    layer = rk.LSTM(I, H)
    stream = layer.stream(4)
    assert isinstance(stream, rk.Stream)
    assert stream.batch_size == 4
    assert repr(stream) == f"{layer!r}.freeze().stream(batch_size=4)"
    with pytest.raises(AttributeError):
        stream.batch_size = 5


# -- memory and threads ----------------------------------------------------------------------------


def test_steps_take_no_memory(case):
    layer = build(case, np.float32, num_layers=2)
    stream = layer.stream()
    x, out = normal(layer, 1, I), np.empty((1, H), np.float32)
    for _ in range(1000):
        stream.step(x, out=out)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(100_000):
            stream.step(x, out=out)
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < 1024 and now - before < 1024  # nothing but the loop's own numbers


def test_the_process_does_not_grow():
    layer = rk.LSTM(I, H, num_layers=2)
    stream = layer.stream()
    x, out = normal(layer, 1, I), np.empty((1, H), np.float32)

    def pages():
        statm = Path("/proc/self/statm")
        return int(statm.read_text().split()[1]) if statm.exists() else 0

    for _ in range(1000):
        stream.step(x, out=out)
        stream.step(x)
    before = pages()
    for _ in range(100_000):
        stream.step(x, out=out)
        stream.step(x)
    for _ in range(300):
        layer.stream(20)
    assert pages() - before < 500  # 2 MB; a leak of one y a step would be 7.6 MB


def test_one_thread_at_a_time():
    """While a step runs without the GIL its stream refuses other threads, and goes on unharmed."""
    layer = rk.LSTM(512, 512, num_layers=2, rng=0)
    x = normal(layer, 40, 64, 512)
    expected, _ = layer(x)
    stream = layer.stream(64)
    barrier, refused, done = threading.Barrier(2), [], []

    def run():
        barrier.wait()
        for t in range(40):
            while True:
                try:
                    done.append((t, stream.step(x[len(done) % 40])))
                    break
                except RuntimeError as error:
                    refused.append(str(error))
                    time.sleep(1e-4)  # or they refuse one another for ever

    def disturb():
        barrier.wait()
        while len(done) < 40:
            try:
                stream.state = stream.state
            except RuntimeError as error:
                refused.append(str(error))
            time.sleep(1e-4)

    threads = [threading.Thread(target=run), threading.Thread(target=disturb)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 40
    assert all("on another thread" in words for words in refused)
    for t, y in done:
        assert_same_bits(y, expected[t])


def test_what_is_refused_during_a_step():
    """A step writes y to an array that calls back."""
    stream = rk.GRU(3, 4, rng=0).stream(2)
    x, state = np.ones((2, 3), np.float32), np.zeros((1, 2, 4), np.float32)
    calls = {
        "step": lambda: stream.step(x),
        "state": lambda: stream.state,
        "setting state": lambda: setattr(stream, "state", state),
        "reset": lambda: stream.reset(),
    }
    refused = {}

    class Calls(np.ndarray):
        def __setitem__(self, key, value):
            for name, call in calls.items():
                with pytest.raises(RuntimeError, match="on another thread") as caught:
                    call()
                refused[name] = caught
            super().__setitem__(key, value)

    out = np.empty((2, 8), np.float32)[:, ::2].view(Calls)
    y = stream.step(x, out=out)
    assert refused.keys() == calls.keys()
    assert y is out
    assert_same_bits(np.asarray(y), stream.state[0])


@pytest.mark.parametrize("again", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_copy_goes_on_from_the_same_state(case, again):
    layer = build(case, np.float32, I, H, num_layers=2)
    x = normal(layer, 7, 3, I)
    stream = layer.stream(3)
    for t in range(3):
        stream.step(x[t])
    other = again(stream)
    expected, _ = layer(x)
    for t in range(3, 7):
        assert_same_bits(other.step(x[t]), expected[t])
    for t in range(3, 7):
        assert_same_bits(stream.step(x[t]), expected[t])


def test_a_copy_of_a_class_of_the_user_s_has_what_it_had(case):
    class Named(rk.Stream):
        pass

    stream = Named(build(case, np.float32, I, H).freeze(), 2)
    stream.name = ["left", "right"]
    other = copy.copy(stream)
    assert type(other) is Named and other.name is stream.name
    deep = copy.deepcopy(stream)
    assert deep.name == stream.name and deep.name is not stream.name


def test_a_stream_that_was_not_made():
    class Mine(rk.Stream):
        def __init__(self):
            pass

    x = np.ones(3, np.float32)
    for use in (lambda s: s.step(x), lambda s: s.state, lambda s: s.reset()):
        with pytest.raises(TypeError, match="stream: expected one that Stream.__init__ has made"):
            use(Mine())
    layer = rk.RNN(3, 4, rng=0)
    for wrong in ("frozen", layer):
        with pytest.raises(TypeError, match="frozen: expected what layer.freeze.. returns"):
            rk.Stream(wrong)
    assert layer.stream(np.int8(100)).batch_size == 100


def test_streams_on_many_threads(case):
    layer = build(case, np.float32, 40, 120)
    fast = layer.freeze()
    x = normal(layer, 30, 16, 40)
    expected, _ = layer(x)
    failures = []

    def run():
        stream = fast.stream(16)
        try:
            for t in range(30):
                assert_same_bits(stream.step(x[t]), expected[t])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_rows_of_an_object_that_raises_anything():
    class Rows:
        @property
        def __array_interface__(self):
            raise KeyError("anything")

    with pytest.raises(TypeError, match="^rows: expected"):
        rk.GRU(3, 5).stream(2).reset(Rows())

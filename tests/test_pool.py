"""Large blocks of memory go from call to call, and nobody sees it."""

import gc
import os
import threading

import numpy as np
import pytest

import rnnkernel as rk
from helpers import WITHOUT_GIL, assert_same_bits, run_python
from rnnkernel import _pool
from sequences import parts

T, N, H = 21, 17, 65
LAYERS = {
    "RNN": rk.RNN,
    "GRU": rk.GRU,
    "LSTM": rk.LSTM,
}


@pytest.fixture(params=LAYERS.values(), ids=LAYERS.keys())
def layer(request):
    return request.param(H, H, 2, bidirectional=True, rng=0)


@pytest.fixture
def arrays(layer):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((T, N, H)).astype(np.float32)
    return x, rng.standard_normal((T, N, 2 * H)).astype(np.float32)


@pytest.fixture
def limit():
    """Sets how much may wait; as it was, afterwards."""
    before = _pool.set_idle_limit(0)
    _pool.set_idle_limit(before)
    yield _pool.set_idle_limit
    _pool.set_idle_limit(before)


def train(layer, x, dy, threads=2):
    """All results of a training call, copied."""
    out = layer.forward(x, training=True, num_threads=threads)
    grads = layer.backward(out, dy, num_threads=threads)
    results = [out.y, *parts(out.state), grads.x, *parts(grads.state), *grads.parameters.values()]
    return [array.copy() for array in results]


def test_a_loop_needs_nothing_new(layer, arrays):
    for call in range(10):
        train(layer, *arrays)
        layer(arrays[0])
        if call == 4:
            before = _pool.new_blocks()
    assert before > 0
    assert _pool.new_blocks() == before


def test_what_is_held_is_not_given_away(layer, arrays):
    x, dy = arrays
    first = layer.forward(x, training=True)
    y, state = layer(x)
    grads = layer.backward(first, dy)
    held = [first.y, y, *parts(state), grads.x, *grads.parameters.values()]
    before = [array.copy() for array in held]
    for scale in (0.5, 2):
        train(layer, np.float32(scale) * x, dy)
        layer(np.float32(scale) * x)
    again = layer.backward(first, dy)
    for array, expected in zip(held, before, strict=True):
        assert_same_bits(array, expected)
    assert_same_bits(again.x, grads.x)


def test_results_are_arrays_as_any_others(arrays):
    x, _ = arrays
    layer = rk.LSTM(H, H, rng=0)
    y, _ = layer(x)
    assert y.nbytes > 1 << 16
    assert y.flags.owndata
    assert y.flags.writeable
    before = _pool.idle_bytes()
    del y
    assert _pool.idle_bytes() > before


def test_a_limit(layer, arrays, limit):
    expected = train(layer, *arrays)
    for most in (1 << 20, 0, 1 << 28):
        limit(most)
        for _ in range(2):
            for actual, array in zip(train(layer, *arrays), expected, strict=True):
                assert_same_bits(actual, array)
            assert _pool.idle_bytes() <= most
    assert _pool.idle_bytes() > 0


def test_what_nobody_takes_is_freed(layer, arrays):
    large = np.concatenate([arrays[0]] * 40)
    layer(large)
    waiting = _pool.idle_bytes()
    assert waiting > large.nbytes
    for _ in range(300):
        train(layer, *arrays, threads=1)
    assert _pool.idle_bytes() < waiting - large.nbytes


def test_threads_at_once(layer, arrays):
    expected = train(layer, *arrays)
    wrong = []

    def work():
        for _ in range(10):
            for actual, array in zip(train(layer, *arrays, threads=1), expected, strict=True):
                if actual.tobytes() != array.tobytes():
                    wrong.append(actual)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def run(program, **environment):
    done = run_python("-c", program, **environment)
    assert done.returncode == 0, done.stderr


BEGIN = """
import gc, os, threading
import numpy as np
import rnnkernel as rk
from rnnkernel import _pool
def train(layer):
    x = np.ones((30, 20, 64), np.float32)
    out = layer.forward(x, training=True)
    return layer.backward(out, out.y)
"""


def test_nothing_waits_without_a_layer():
    run(f"""{BEGIN}
assert _pool.idle_bytes() == 0
first, second = rk.GRU(64, 64, rng=0), rk.LSTM(64, 64, rng=0)
held = train(first), train(second)
assert _pool.idle_bytes() > 0
del first
gc.collect()
assert _pool.idle_bytes() > 0
del second
gc.collect()
assert _pool.idle_bytes() == 0
expected = held[0].x.copy()
again = train(rk.GRU(64, 64, rng=0))
assert (again.x == expected).all() and (held[0].x == expected).all()
del held, again
gc.collect()
assert _pool.idle_bytes() == 0
""")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks")
def test_a_child_of_a_busy_process():
    run(f"""{BEGIN}
layer = rk.GRU(64, 64, rng=0)
expected = train(layer).x.copy()
over = threading.Event()
def work():
    while not over.is_set():
        train(layer)
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
failed = 0
for _ in range(20):
    child = os.fork()
    if child == 0:
        right = all((train(layer).x == expected).all() for _ in range(3))
        os._exit(0 if right else 1)
    failed += os.waitpid(child, 0)[1] != 0
over.set()
for thread in threads:
    thread.join()
assert failed == 0
""")


def test_other_arrays_keep_their_memory(layer, arrays):
    from numpy._core.multiarray import get_handler_name

    before = get_handler_name()
    y, _ = layer(arrays[0])
    assert get_handler_name(y) == "rnnkernel"
    assert get_handler_name() == before
    assert get_handler_name(np.empty(1 << 20)) == before
    gc.collect()


@pytest.mark.skipif(
    not os.path.exists("/sys/kernel/mm/transparent_hugepage"), reason="a system with huge pages"
)
def test_only_large_blocks_ask_for_huge_pages():
    """And hand them back whole: what malloc gives later must not have been asked for."""
    run(
        BEGIN
        + """
def asked():
    ranges = []
    for line in open("/proc/self/smaps"):
        first, *rest = line.split()
        if not first.endswith(":"):
            begin, end = (int(place, 16) for place in first.split("-"))
        elif first == "VmFlags:" and "hg" in rest:
            ranges.append((begin, end))
    return ranges


def lies_in(ranges, array):
    middle = array.ctypes.data + array.nbytes // 2
    return any(begin <= middle < end for begin, end in ranges)


np.ones(24 << 20, np.uint8)  # from here on glibc's malloc maps no more of its own that is smaller
before = asked()
layer = rk.RNN(1, 128)
small, _ = layer(np.zeros((30, 64, 1), np.float32))
assert small.nbytes < 1 << 21 and not lies_in(asked(), small)
large, _ = layer(np.zeros((150, 64, 1), np.float32))
assert large.nbytes > 2 << 21 and lies_in(asked(), large)
del large
assert asked() != before
del layer, small
gc.collect()
assert asked() == before
""",
        # Python's own blocks ask for them, too, from 3.15 on; without the GIL there is no choice
        **({} if WITHOUT_GIL else {"PYTHONMALLOC": "malloc"}),
    )


OPTIONS = {
    "RNN": (rk.RNN, {}),
    "GRU": (rk.GRU, {}),
    "GRU before": (rk.GRU, {"reset_after": False}),
    "LSTM": (rk.LSTM, {}),
    "LSTM with options": (rk.LSTM, {"coupled": True, "peephole": True, "proj_size": 4}),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("units", [5, 18, 20, 23, 37])
@pytest.mark.parametrize("cls, options", OPTIONS.values(), ids=OPTIONS.keys())
def test_what_lay_in_a_block_reaches_no_result(cls, options, units, dtype):
    """NaN of a layer whose units fill the same blocks, those past the last unit, too."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((T, N, 24)).astype(dtype)
    layer = cls(24, units, rng=0, dtype=dtype, **options)
    dy = rng.standard_normal(layer(x)[0].shape).astype(dtype)
    lengths = rng.integers(0, T + 1, N)

    def results():
        out = layer.forward(x, training=True, lengths=lengths)
        plain = train(layer, x, dy)
        return [*plain, layer(x)[0], out.y.copy(), layer.backward(out, dy).x]

    expected = results()
    lanes = 64 // np.dtype(dtype).itemsize
    filler = cls(24, -(-units // lanes) * lanes, rng=0, dtype=dtype, **options)
    nothing = np.full_like(x, np.nan)
    for _ in range(3):
        out = filler.forward(nothing, training=True)
        filler.backward(out, np.full_like(out.y, np.nan))
        del out
    for got, wanted in zip(results(), expected, strict=True):
        assert_same_bits(got, wanted)
        assert np.isfinite(got).all()

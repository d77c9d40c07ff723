"""NaN, denormals, the floating-point environment, fork, and memory."""

import gc
import inspect
import os
import sys
import tracemalloc
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

import rnnkernel as rk
from drawn import draw, reference_outputs
from helpers import (
    assert_same_bits,
    assert_same_outputs,
    construct,
    layer_outputs,
    layer_state,
    make_layer,
    named_outputs,
    run_backward,
    run_forward,
    run_python,
    run_script,
)
from reference import CASES
from rnnkernel import _threads
from tolerances import assert_outputs_close

# NaN and Inf.

SIZES = [(6, 13, 7, 11), (5, 6, 4, 40)]


@pytest.fixture(params=SIZES, ids=str)
def problem(request, case, dtype):
    return draw(case, *request.param, dtype=dtype)


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_stay_in_their_row_forward(problem, value, num_threads):
    T, N, _, _ = problem.sizes
    layer = make_layer(problem)
    clean, _ = layer_outputs(problem, layer, num_threads=num_threads)
    for n in range(N):
        t = n % T
        saved = problem.x[t, n, 2]
        problem.x[t, n, 2] = value
        outputs, _ = layer_outputs(problem, layer, num_threads=num_threads)
        problem.x[t, n, 2] = saved

        others = np.arange(N) != n
        assert_same_bits(outputs["y"][:, others], clean["y"][:, others])
        assert_same_bits(outputs["y"][:t, n], clean["y"][:t, n])
        for name in problem.case.states:
            assert_same_bits(outputs[name][others], clean[name][others], name)
            assert_same_bits(outputs[f"d{name}0"][others], clean[f"d{name}0"][others], name)
        assert_same_bits(outputs["dx"][:, others], clean["dx"][:, others])
        if np.isnan(value):
            assert np.isnan(outputs["y"][t:, n]).all()
            for name in problem.case.states:
                assert np.isnan(outputs[name][n]).all()


@pytest.mark.parametrize("num_threads", [1, 2])
def test_nan_in_a_state_stays_in_its_row(problem, num_threads):
    _, N, _, _ = problem.sizes
    layer = make_layer(problem)
    clean, _ = layer_outputs(problem, layer, num_threads=num_threads)
    for state in problem.states:
        saved = state[1].copy()
        state[1, :] = np.nan
        outputs, _ = layer_outputs(problem, layer, num_threads=num_threads)
        state[1] = saved
        others = np.arange(N) != 1
        assert np.isnan(outputs["y"][:, 1]).all()
        assert_same_bits(outputs["y"][:, others], clean["y"][:, others])
        assert_same_bits(outputs["dx"][:, others], clean["dx"][:, others])


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_stay_in_their_row_backward(problem, value, num_threads):
    T, N, _, H = problem.sizes
    layer = make_layer(problem)
    clean, _ = layer_outputs(problem, layer, num_threads=num_threads)
    for n in range(N):
        t = n % T
        saved = problem.dy[t, n].copy()
        problem.dy[t, n] = value
        outputs, _ = layer_outputs(problem, layer, num_threads=num_threads)
        problem.dy[t, n] = saved

        others = np.arange(N) != n
        assert_same_bits(outputs["dx"][:, others], clean["dx"][:, others])
        assert_same_bits(outputs["dx"][t + 1 :, n], clean["dx"][t + 1 :, n])
        for name in problem.case.states:
            assert_same_bits(outputs[f"d{name}0"][others], clean[f"d{name}0"][others], name)
        if np.isnan(value) and problem.case.name != "rnn_relu":  # relu's slope of 0 may stop it
            assert np.isnan(outputs["dx"][: t + 1, n]).all()


@pytest.mark.parametrize("H", [30, 31, 33, 61, 147])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_what_saturates_has_finite_gradients(case, dtype, H, num_threads):
    """Of an infinite x all gates that it reaches are 0 or 1, and their gradients 0: NaN, which is
    what weights of zero make of it, stays in the lanes past the last unit."""
    saturates = case.options.get("nonlinearity") != "relu"
    layer = construct(case, 5, H, 2, dtype=dtype, rng=0)
    x = np.random.default_rng(1).standard_normal((6, 3, 5)).astype(dtype)
    x[3, 0, 2] = np.inf
    out = layer.forward(x, training=True, num_threads=num_threads)
    grads = layer.backward(out, np.ones_like(out.y), num_threads=num_threads)
    states = grads.state if isinstance(grads.state, tuple) else (grads.state,)
    rows = slice(0 if saturates else 1, None)
    for array in (out.y, grads.x, *states):
        assert np.isfinite(array[:, rows]).all()
    if not saturates:
        return
    for name, array in grads.parameters.items():
        assert name == "weight_ih_l0" or np.isfinite(array).all(), name
    # 0 times infinity: the column that x meets alone
    assert np.isfinite(np.delete(grads.parameters["weight_ih_l0"], 2, axis=1)).all()


def test_nan_reaches_the_gradients_of_the_weights(problem):
    """It is not silently dropped: a sum with a NaN in it is NaN."""
    problem.dy[2, 1] = np.nan
    outputs, _ = layer_outputs(problem)
    assert np.isnan(outputs["d_weight_ih"]).any()


def test_clipping_does_not_hide_nan(problem):
    _, N, _, _ = problem.sizes
    clip = rk.Clip(value=0.5, norm=1.0)
    layer = make_layer(problem)
    clean, _ = layer_outputs(problem, layer, clip=clip)
    problem.dy[2, 1] = np.nan
    outputs, _ = layer_outputs(problem, layer, clip=clip)
    others = np.arange(N) != 1
    assert_same_bits(outputs["dx"][:, others], clean["dx"][:, others])
    assert np.isnan(outputs["d_weight_ih"]).any()


def poison():
    """Leaves NaN in freed memory of many sizes, where a call's next buffers are likely to lie.

    What it returns is to be kept, lest the allocator give the memory back.
    """
    sizes = np.geomspace(8, 15_000, 150).astype(int)
    blocks = [np.full(size, np.nan) for size in sizes for _ in range(4)]
    return blocks[-1]


@pytest.mark.parametrize("num_threads", [1, 2])
def test_what_lies_in_fresh_memory_does_not_matter(case, dtype, num_threads):
    """Buffers have padding that no one writes; what is found there must not reach a result."""
    for H in (1, 5, 9, 21):
        problem = draw(case, T=5, N=3, I=4, H=H, dtype=dtype)
        layer = make_layer(problem)
        expected, _ = reference_outputs(problem.astype(np.float64))
        for _ in range(2):
            kept = poison()
            actual, _ = layer_outputs(problem, layer, num_threads=num_threads)
            del kept
            assert_outputs_close(actual, expected, problem)


# Denormals and the floating-point environment.


def probe():
    """The bits of arithmetic that depends on rounding, on denormal results and denormal inputs."""
    results = []
    for dtype in (np.float32, np.float64):
        tiny = np.finfo(dtype).tiny
        operands = np.array([1, -1, tiny, tiny / 1024, 1 + np.finfo(dtype).eps], dtype)
        for divisor in (3, 7, 1, -2):
            results.append((operands / dtype(divisor)).tobytes())
        results.append((operands * operands).tobytes())
        results.append((operands - operands / dtype(1000)).tobytes())
    return results


def test_probe_sees_denormals():
    """The probe's own check: these are denormal, and not flushed here."""
    tiny = np.float32(1e-40)
    assert 0 < tiny * np.float32(0.5) < tiny < np.finfo(np.float32).tiny


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_the_floating_point_environment_is_as_it_was(problem, num_threads):
    layer = make_layer(problem)
    errors, before = np.geterr(), probe()
    layer_outputs(problem, layer, num_threads=num_threads)
    assert probe() == before
    problem.x[...] = np.finfo(problem.dtype).tiny / 4
    problem.dy[...] = np.finfo(problem.dtype).tiny / 4
    layer_outputs(problem, layer, num_threads=num_threads, clip=rk.Clip(value=1.0), flow=True)
    assert probe() == before
    problem.x[...] = np.nan
    layer_outputs(problem, layer, num_threads=num_threads)
    assert probe() == before
    layer(problem.x, num_threads=num_threads)
    assert probe() == before
    gradients = {"w": problem.dy.copy()}
    rk.clip_grad_norm(gradients, 1e-30, num_threads=num_threads)
    rk.Adam({"w": problem.x.copy()}).step({"w": problem.x}, num_threads=num_threads)
    assert probe() == before
    with pytest.raises(ValueError):
        layer(problem.x[..., 1:])
    assert probe() == before
    assert np.geterr() == errors


def test_the_floating_point_environment_of_other_threads(case, dtype):
    """A call in a thread of Python's own leaves it as it was, and later threads are clean."""
    problem = draw(case, T=5, N=6, I=4, H=12, dtype=dtype)
    before = probe()

    def work():
        layer_outputs(problem, num_threads=2)
        return probe()

    with ThreadPoolExecutor(4) as pool:
        assert all(result == before for result in pool.map(lambda _: work(), range(8)))
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(probe).result() == before


def test_import_leaves_the_floating_point_environment_alone():
    script = """
import numpy, test_probe_only as t
before = t.probe()
import rnnkernel
assert t.probe() == before
assert numpy.geterr() == t.errors
"""
    # The probe's source alone: importing this file would import the package first.
    source = "import sys, types, numpy as np\n" + inspect.getsource(probe)
    setup = f"""
import sys, types
t = types.ModuleType("test_probe_only")
exec({source!r}, t.__dict__)
t.errors = t.np.geterr()
sys.modules["test_probe_only"] = t
"""
    run_script(setup + script)


@pytest.mark.parametrize("what", ["x", "states", "weights", "dy"])
def test_denormal_inputs(case, dtype, what):
    """Nearly zero, whether taken as such or flushed to zero."""
    problem = draw(case, T=4, N=3, I=5, H=13, dtype=dtype)
    tiny = np.finfo(dtype).tiny
    arrays = {
        "x": [problem.x],
        "states": problem.states,
        "weights": problem.weights.values(),
        "dy": [problem.dy, *problem.dstates],
    }[what]
    for array in arrays:
        array *= tiny / 8
        assert (array != 0).all()
    actual, _ = layer_outputs(problem)
    expected, _ = reference_outputs(problem.astype(np.float64))
    eps = np.finfo(dtype).eps
    for name in expected:
        if name.startswith("d") and case.name == "rnn_relu" and what == "weights":
            continue  # h is denormal, and relu has another slope there than at zero
        scale = np.abs(expected[name]).max()
        bound = 32 * eps * np.sqrt(100) * scale + 100 * tiny
        assert np.isfinite(actual[name]).all(), name
        assert np.abs(actual[name] - expected[name]).max() <= bound, name


def test_a_state_that_fades_into_denormals(dtype):
    """relu with a recurrent weight of 1/2: h halves every step, through all denormals to zero."""
    rnn = rk.RNN(1, 3, nonlinearity="relu", bias=False, dtype=dtype)
    rnn.parameters["weight_ih_l0"][...] = 0
    rnn.parameters["weight_hh_l0"][...] = np.eye(3) / 2
    T = 160 if dtype == np.float32 else 1100
    y, _ = rnn(np.zeros((T, 2, 1), dtype), np.ones((1, 2, 3), dtype))
    expected = dtype(2) ** -np.arange(1, T + 1, dtype=dtype)
    error = np.abs(y - expected[:, None, None])
    normal = expected >= np.finfo(dtype).tiny
    assert not error[normal].any()
    assert (error[~normal] < np.finfo(dtype).tiny).all()
    assert (y >= 0).all()


# Calls that must not disturb one another.


def test_backward_twice(problem):
    layer = make_layer(problem)
    out = run_forward(problem, layer)
    first = named_outputs(problem.case, out, run_backward(problem, layer, out))
    clipped = run_backward(problem, layer, out, clip=rk.Clip(value=0.01), flow=True)
    second = named_outputs(problem.case, out, run_backward(problem, layer, out))
    assert_same_outputs(second, first)
    assert clipped.flow.clipped.any()


def test_two_forwards_before_two_backwards(case, dtype):
    a = draw(case, T=5, N=4, I=3, H=9, dtype=dtype, seed=1)
    b = draw(case, T=5, N=4, I=3, H=9, dtype=dtype, seed=2)
    b.weights.update(a.weights)
    layer = make_layer(a)
    expected_a, _ = layer_outputs(a, layer)
    expected_b, _ = layer_outputs(b, layer)
    out_a, out_b = run_forward(a, layer), run_forward(b, layer)
    layer(a.x)
    grads_a, grads_b = run_backward(a, layer, out_a), run_backward(b, layer, out_b)
    assert_same_outputs(named_outputs(case, out_a, grads_a), expected_a)
    assert_same_outputs(named_outputs(case, out_b, grads_b), expected_b)


def test_gradients_are_of_what_forward_computed(case, dtype):
    """An optimizer's step between forward and backward does not reach into the tape."""
    problem = draw(case, T=5, N=4, I=3, H=9, dtype=dtype)
    layer = make_layer(problem)
    expected, _ = layer_outputs(problem, layer)
    out = run_forward(problem, layer)
    for p in layer.parameters.values():
        p *= dtype(0.5)
    assert_same_outputs(named_outputs(case, out, run_backward(problem, layer, out)), expected)


def test_the_tape_outlives_the_callers_arrays(case, dtype):
    """Inputs overwritten after forward, as a loader does that reuses its buffer."""
    problem = draw(case, T=5, N=4, I=3, H=9, dtype=dtype)
    layer = make_layer(problem)
    expected, _ = layer_outputs(problem, layer)
    out = run_forward(problem, layer)
    problem.x[...] = np.nan
    for s in problem.states:
        s[...] = np.nan
    assert_same_outputs(named_outputs(case, out, run_backward(problem, layer, out)), expected)


def test_a_readonly_view_does_not_keep_an_array_from_changing(case, dtype):
    problem = draw(case, T=5, N=4, I=3, H=9, dtype=dtype)
    layer = make_layer(problem)
    expected, _ = layer_outputs(problem, layer)
    seen = problem.x.view()
    seen.flags.writeable = False
    out = run_forward(replace(problem, x=seen), layer)
    problem.x[...] = np.nan
    assert_same_outputs(named_outputs(case, out, run_backward(problem, layer, out)), expected)


def kept_by_training(layer, x, **options):
    """Bytes that the output holds beyond y, and the gradients."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        out = layer.forward(x, training=True, **options)
        kept = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    return kept, layer.backward(out, out.y)


@pytest.mark.parametrize("batch_first", [False, True])
def test_an_x_that_nobody_writes_to_is_not_copied(case, batch_first):
    T, N, H = 40, 8, 32
    layer = getattr(rk, case.layer)(H, H, batch_first=batch_first, rng=0, **case.options)
    x = np.random.default_rng(0).standard_normal((T, N, H)).astype(np.float32)
    x = np.ascontiguousarray(x.swapaxes(0, 1)) if batch_first else x
    lengths = np.random.default_rng(1).integers(1, T + 1, N)
    frozen = x.copy()
    frozen.flags.writeable = False
    other = rk.RNN(H, H, batch_first=batch_first, rng=1).forward(x, training=True).y
    immutable = np.frombuffer(x.tobytes(), np.float32).reshape(x.shape)
    for options in ({}, {"lengths": lengths}):
        kept, expected = kept_by_training(layer, x, **options)
        for same in (frozen, frozen[:], immutable):
            less, grads = kept_by_training(layer, same, **options)
            assert kept - less > 0.9 * x.nbytes
            assert_same_bits(grads.x, expected.x)
            for name, gradient in grads.parameters.items():
                assert_same_bits(gradient, expected.parameters[name], name)
        copied, _ = kept_by_training(layer, other.copy(), **options)
        assert copied - kept_by_training(layer, other, **options)[0] > 0.9 * x.nbytes


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_large_batch_outlives_the_callers_array(num_threads):
    """Large enough that threads share the copy of x."""
    T, N, H = 40, 64, 128
    layer, rng = rk.GRU(H, 16, rng=0), np.random.default_rng(0)
    x = rng.standard_normal((T, N, H)).astype(np.float32)
    lengths = rng.integers(0, T + 1, N)
    for options in ({}, {"lengths": lengths}):
        out = layer.forward(x, training=True, num_threads=1, **options)
        expected = layer.backward(out, out.y, num_threads=1)
        copy = x.copy()
        out = layer.forward(copy, training=True, num_threads=num_threads, **options)
        copy[...] = np.nan
        grads = layer.backward(out, out.y, num_threads=num_threads)
        assert_same_bits(grads.x, expected.x)
        for name, gradient in grads.parameters.items():
            assert_same_bits(gradient, expected.parameters[name], name)


if hasattr(os, "fork"):

    @pytest.mark.parametrize("children", [1, 2])
    def test_a_forked_child_computes_the_same(children):
        """With threads on, after a threaded call; a hang runs into the timeout."""
        script = f"""
import os, sys, threading, warnings
import numpy as np
import rnnkernel as rk
from drawn import draw
from helpers import bits, layer_outputs, make_layer
from reference import CASES
from tolerances import assert_outputs_close
warnings.simplefilter("ignore")
problem = draw(CASES["lstm"], T=40, N=16, I=20, H=32, dtype=np.float32)
layer = make_layer(problem)

def run(num_threads=4):
    outputs, _ = layer_outputs(problem, layer, num_threads=num_threads)
    return {{name: bits(a) for name, a in outputs.items()}}

expected = run()

def child():
    ok = run() == expected and run(None) == expected
    results = []
    threads = [threading.Thread(target=lambda: results.append(run())) for _ in range(3)]
    for t in threads: t.start()
    for t in threads: t.join()
    return ok and results == [expected] * 3

pids = []
for _ in range({children}):
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if child() else 1)
        finally:
            os._exit(2)
    pids.append(pid)
assert run() == expected
for pid in pids:
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert run() == expected
"""
        run_script(script, timeout=60)

    def test_a_stream_in_a_forked_child():
        """One that has stepped on several threads, of which the child has none."""
        script = """
import os, warnings
import numpy as np
import rnnkernel as rk
from rnnkernel import _plan, _teamwork
warnings.simplefilter("ignore")
_plan.TEAMS_ARE_FREE = True
rk.set_num_threads(4)
x = np.random.default_rng(0).standard_normal((5, 8, 64)).astype(np.float32)
layer = rk.GRU(64, 128, rng=0)
expected, _ = layer(x)
stream = layer.stream(8)
with rk.profile() as p:
    y = stream.step(x[0])
assert max(len(spent) for spent in p.records[0].phases.values()) > 1, str(p)

pid = os.fork()
if pid == 0:
    try:
        _teamwork.measure_again()
        right = all((stream.step(x[t]) == expected[t]).all() for t in range(1, 5))
        os._exit(0 if right else 1)
    finally:
        os._exit(2)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""
        run_script(script, timeout=60)

    def test_a_pool_of_forked_workers():
        """As a data loader has it: the parent has computed, the workers compute, twice over."""
        script = """
import multiprocessing, warnings
import numpy as np
import rnnkernel as rk
warnings.simplefilter("ignore")
layer = rk.GRU(8, 24, rng=0)
x = np.random.default_rng(0).standard_normal((30, 12, 8)).astype(np.float32)

def work(k):
    y, _ = layer(x * np.float32(k), num_threads=3)
    return y.tobytes()

expected = [work(k) for k in range(6)]
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(work, range(6)) == expected
    assert pool.map(work, range(6)) == expected
"""
        run_script(script, timeout=60)


# Memory.


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="address space has no limit")
def test_a_system_that_refuses_threads():
    """OpenMP would end the process: the call goes on alone, or says what does not fit."""
    script = """
import resource
import numpy as np
import rnnkernel as rk
from rnnkernel import _plan
_plan.TEAMS_ARE_FREE = True
layer = rk.LSTM(64, 256, rng=0)
x = np.zeros((50, 64, 64), np.float32)
expected, _ = layer(x, num_threads=1)
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
for extra in range(1, 24):
    resource.setrlimit(resource.RLIMIT_AS, (used + (extra << 20), -1))
    try:
        y, _ = layer(x, num_threads=3)
        assert (y == expected).all()
    except MemoryError:
        pass
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
y, _ = layer(x, num_threads=3)
assert (y == expected).all()
"""
    run_script(script, timeout=120)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="address space has no limit")
@pytest.mark.parametrize("stack", ["", "1 g", "3G", "2000000M", "99999999999999999999g"])
def test_a_system_that_refuses_threads_of_a_second_pool(stack):
    """OpenMP's threads are those of the thread that calls, with stacks as large as it is told."""
    script = """
import resource, threading
import numpy as np
import rnnkernel as rk
from rnnkernel import _plan
_plan.TEAMS_ARE_FREE = True
layer = rk.LSTM(64, 256, rng=0)
x = np.zeros((50, 64, 64), np.float32)
expected, _ = layer(x, num_threads=1)
def call():
    try:
        assert (layer(x, num_threads=3)[0] == expected).all()
        passed.append(True)
    except MemoryError:
        passed.append(False)
passed = []
call()
for extra in range(8, 40, 4):
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (extra << 20), -1))
    other = threading.Thread(target=call)
    try:
        other.start()
    except RuntimeError:  # Python has none
        passed.append(False)
    else:
        other.join()
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
call()
assert len(passed) == 10 and passed[0] and passed[-1], passed
"""
    stacks = {"OMP_STACKSIZE": stack} if stack else {}
    done = run_python("-c", script, **stacks)
    assert done.returncode == 0, done.stderr


def test_a_sandbox_that_does_not_tell_the_cores(monkeypatch):
    def refused(pid):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_getaffinity", refused, raising=False)
    monkeypatch.delenv("RNNKERNEL_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    count, _ = _threads.default.__wrapped__()
    assert 1 <= count <= (os.cpu_count() or 1)


def test_results_can_be_resized():
    """By those who own them, as any other array."""
    layer = rk.LSTM(16, 64, rng=0)
    y, _ = layer(np.ones((40, 32, 16), np.float32))
    expected = y.copy()
    for steps in (80, 41, 500, 40):
        y.resize((steps, 32, 64), refcheck=False)
        assert_same_bits(y[:40], expected)
    y.resize((1, 32, 64), refcheck=False)
    assert_same_bits(y, expected[:1])


def test_memory_does_not_grow():
    """One leaked buffer a call, x or y or larger, would be 19 MiB over these calls."""
    script = """
import resource, sys, tracemalloc
import numpy as np
import rnnkernel as rk
from drawn import draw
from helpers import layer_outputs, make_layer
from reference import CASES
from tolerances import assert_outputs_close

unit = 1 if sys.platform == "darwin" else 1024
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

for name in ("rnn_relu", "gru_reset_before", "lstm"):  # every number of states and phases
    case = CASES[name]
    problem = draw(case, T=128, N=16, I=16, H=16, dtype=np.float32)
    layer = make_layer(problem)

    def calls(count):
        for k in range(count):
            threads = 2 if k % 10 == 0 else 1
            layer_outputs(problem, layer, num_threads=threads, clip=rk.Clip(norm=1.0), flow=True)
            layer(problem.x)
            try:
                layer.forward(problem.x, out=problem.x)
            except ValueError:
                pass

    calls(20)
    tracemalloc.start()
    calls(10)
    traced, before = tracemalloc.get_traced_memory()[0], peak()
    calls(10)
    growth = tracemalloc.get_traced_memory()[0] - traced
    tracemalloc.stop()
    assert growth < 64 * 1024, (case.name, growth)
    calls(150)
    assert peak() - before < 8 * 2**20, (case.name, peak() - before)
"""
    run_script(script)


def test_a_dropped_tape_is_freed(dtype):
    """No reference cycle keeps out, or what it owns, alive until the collector runs."""
    problem = draw(CASES["lstm"], T=4, N=3, I=5, H=6, dtype=dtype)
    layer = make_layer(problem)
    gc.collect()
    gc.disable()
    try:
        out = layer.forward(problem.x, layer_state(problem.case, problem.states), training=True)
        y = weakref.ref(out.y)
        del out
        assert y() is None
    finally:
        gc.enable()

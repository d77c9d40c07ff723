"""What calls refuse: the right exception, naming the argument, and nothing changed."""

import os

import numpy as np
import pytest

import rnnkernel as rk
from drawn import SMALL, draw
from helpers import (
    assert_same_bits,
    assert_same_outputs,
    construct,
    layer_outputs,
    layer_state,
    make_layer,
    named_outputs,
    names,
    problem_arrays,
    read_only,
    run_backward,
    run_forward,
    run_script,
    unchanged,
)
from rnnkernel import _threads

T, N, I, H = SMALL  # noqa: E741
OTHER = {np.float32: np.float64, np.float64: np.float32}


# Forward.


class Opaque:
    """Not an array, and nothing that could become one."""


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_batch_of_single_numbers_is_told_what_it_lacks(case, batch_first):
    """As `pack` makes one of series (T,)."""
    layer = construct(case, 1, 4, batch_first=batch_first)
    order = "N, T, I=1" if batch_first else "T, N, I=1"
    wanted = rf"^x: expected shape \({order}\), or unbatched \(T, I=1\), got \(7, 3\)"
    with pytest.raises(ValueError, match=wanted):
        layer(np.zeros((7, 3), np.float32))


BAD_X = [
    pytest.param(lambda x: x[0, 0], ValueError, id="rank_1"),
    pytest.param(lambda x: x[None], ValueError, id="rank_4"),
    pytest.param(lambda x: x[0, 0, 0], ValueError, id="rank_0"),
    pytest.param(lambda x: x[..., :-1], ValueError, id="too_few_features"),
    pytest.param(lambda x: np.concatenate([x, x], axis=2), ValueError, id="too_many_features"),
    pytest.param(lambda x: x[..., :0], ValueError, id="no_features"),
    pytest.param(lambda x: x.astype(OTHER[x.dtype.type]), TypeError, id="the_other_float"),
    pytest.param(lambda x: x.astype(np.float16), TypeError, id="half"),
    pytest.param(lambda x: x.astype(np.longdouble), TypeError, id="long_double"),
    pytest.param(lambda x: x.astype(complex), TypeError, id="complex"),
    pytest.param(lambda x: x > 0, TypeError, id="bool"),
    pytest.param(lambda x: x.astype(object), TypeError, id="object"),
    pytest.param(lambda x: x.astype("U8"), TypeError, id="strings"),
    pytest.param(lambda x: x.astype("M8[s]"), TypeError, id="dates"),
    pytest.param(lambda x: None, TypeError, id="none"),
    pytest.param(lambda x: "x", TypeError, id="a_string"),
    pytest.param(lambda x: Opaque(), TypeError, id="an_object"),
    pytest.param(lambda x: {"x": x}, TypeError, id="a_dict"),
]


@pytest.mark.parametrize(("spoil", "error"), BAD_X)
def test_bad_x(problem, layer, spoil, error):
    state = layer_state(problem.case, problem.states)
    x = spoil(problem.x)
    with unchanged(*layer.parameters.values(), *problem_arrays(problem)):
        with pytest.raises(error, match=names("x")):
            layer(x, state)
        with pytest.raises(error, match=names("x")):
            layer.forward(x, state, training=True)


def test_messages_say_what_was_expected_and_what_came(layer, problem):
    with pytest.raises(ValueError, match=rf"{I}.*{I - 1}|{I - 1}.*{I}"):
        layer(problem.x[..., :-1])
    with pytest.raises(TypeError, match="float16"):
        layer(problem.x.astype(np.float16))
    with pytest.raises(ValueError, match=rf"1.*{N}.*{H}.*\(1, {N - 1}, {H}\)"):
        layer(problem.x, problem.case.pack([s[None, :-1] for s in problem.states]))


BAD_STATES = [
    pytest.param(lambda s: s[0], ValueError, id="no_layer_axis"),
    pytest.param(lambda s: s[:, :-1], ValueError, id="too_few_rows"),
    pytest.param(lambda s: s[:, :1], ValueError, id="one_row_for_all"),
    pytest.param(lambda s: s[:, :, :-1], ValueError, id="too_few_units"),
    pytest.param(lambda s: np.concatenate([s, s]), ValueError, id="two_layers"),
    pytest.param(lambda s: s[:0], ValueError, id="no_layers"),
    pytest.param(lambda s: s.swapaxes(1, 2), ValueError, id="transposed"),
    pytest.param(lambda s: s.ravel(), ValueError, id="flat"),
    pytest.param(lambda s: s.astype(OTHER[s.dtype.type]), TypeError, id="the_other_float"),
    pytest.param(lambda s: s.astype(int), TypeError, id="integers"),
    pytest.param(lambda s: "state", TypeError, id="a_string"),
    pytest.param(lambda s: Opaque(), TypeError, id="an_object"),
]


def spoilt(problem, arrays, spoil):
    """Every way to pass one bad array among the state's."""
    good = [s[None] for s in arrays]
    for k in range(len(good)):
        yield problem.case.pack([spoil(s) if j == k else s for j, s in enumerate(good)])


@pytest.mark.parametrize(("spoil", "error"), BAD_STATES)
def test_bad_state(problem, layer, spoil, error):
    for state in spoilt(problem, problem.states, spoil):
        with unchanged(*layer.parameters.values(), *problem_arrays(problem)):
            with pytest.raises(error, match="state"):
                layer(problem.x, state)
            with pytest.raises(error, match="state"):
                layer.forward(problem.x, state, training=True)


@pytest.mark.parametrize(("spoil", "error"), BAD_STATES)
def test_bad_dstate(problem, layer, spoil, error):
    out = run_forward(problem, layer)
    for dstate in spoilt(problem, problem.dstates, spoil):
        with (
            unchanged(*layer.parameters.values(), *problem_arrays(problem), out.y),
            pytest.raises(error, match=names("dstate")),
        ):
            layer.backward(out, problem.dy, dstate)


def wrong_structures(case, s):
    """States that are a tuple where they should not be, and the reverse."""
    if len(case.states) == 1:
        return [(s, s), (s,), ()]
    return [s, (s,), (s, s, s), (), (s, None), (None, s), np.concatenate([s, s])]


def test_states_of_the_wrong_structure(problem, layer):
    out = run_forward(problem, layer)
    for state in wrong_structures(problem.case, problem.states[0][None]):
        with pytest.raises((TypeError, ValueError), match="state"):
            layer(problem.x, state)
        with pytest.raises((TypeError, ValueError), match=names("dstate")):
            layer.backward(out, problem.dy, state)


def test_one_of_a_pair_is_not_none():
    layer, h = rk.LSTM(I, H), np.zeros((1, N, H), np.float32)
    for state, part in (((h, None), "c"), ((None, h), "h")):
        with pytest.raises(TypeError, match=rf"^state \({part}\): .*zeros if need be, got None"):
            layer(np.zeros((T, N, I), np.float32), state)


def test_states_of_an_unbatched_call(problem, layer):
    states = [s[None] for s in problem.states]  # (1, N, H), where (1, H) is wanted
    with pytest.raises(ValueError, match="state"):
        layer(problem.x[:, 0], problem.case.pack(states))


BAD_OUT = [
    pytest.param(lambda y: y[:-1], ValueError, id="too_few_steps"),
    pytest.param(lambda y: y[:, :-1], ValueError, id="too_few_rows"),
    pytest.param(lambda y: y[..., :-1], ValueError, id="too_few_units"),
    pytest.param(lambda y: y[0], ValueError, id="rank_2"),
    pytest.param(lambda y: y[None], ValueError, id="rank_4"),
    pytest.param(lambda y: y.swapaxes(0, 1), ValueError, id="swapped"),
    pytest.param(lambda y: y.astype(OTHER[y.dtype.type]), TypeError, id="the_other_float"),
    pytest.param(lambda y: y.astype(int), TypeError, id="integers"),
    pytest.param(read_only, ValueError, id="read_only"),
    pytest.param(lambda y: y.tolist(), TypeError, id="a_list"),
    pytest.param(lambda y: np.broadcast_to(y[:1], y.shape), ValueError, id="broadcast"),
    pytest.param(
        lambda y: np.lib.stride_tricks.as_strided(y, y.shape, (0, *y.strides[1:]), writeable=True),
        ValueError,
        id="one_step_for_all",
    ),
    pytest.param(
        lambda y: np.lib.stride_tricks.as_strided(y, y.shape, (y.itemsize,) * 3, writeable=True),
        ValueError,
        id="overlaps_itself",
    ),
]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("spoil", "error"), BAD_OUT)
def test_bad_out(problem, layer, spoil, error, training):
    y = np.full((T, N, H), 7, problem.dtype)
    out = spoil(y)
    with unchanged(y, *layer.parameters.values()), pytest.raises(error, match=names("out")):
        layer.forward(problem.x, out=out, training=training)


@pytest.mark.parametrize("training", [False, True])
def test_out_that_overlaps_an_input(case, dtype, training):
    problem = draw(case, T=4, N=3, I=6, H=6, dtype=dtype)
    layer = make_layer(problem)
    state = layer_state(case, problem.states)
    memory = np.zeros(200, dtype)
    x = memory[:72].reshape(4, 3, 6)
    x[...] = problem.x
    shifted = memory[70 : 70 + 72].reshape(4, 3, 6)  # shares its first two elements with x
    with unchanged(memory, *layer.parameters.values(), *problem_arrays(problem)):
        for out in (x, shifted, x[::-1]):
            with pytest.raises(ValueError, match=names("out")):
                layer.forward(x, state, out=out, training=training)

    for k in range(len(case.states)):
        states = [s.copy() for s in problem.states]
        memory[:18] = states[k].ravel()
        states[k] = memory[:18].reshape(3, 6)
        out = memory[17 : 17 + 72].reshape(4, 3, 6)
        with unchanged(memory), pytest.raises(ValueError, match=names("out")):
            layer.forward(problem.x, layer_state(case, states), out=out, training=training)


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
def test_out_that_overlaps_a_parameter(case, dtype, name):
    layer = construct(case, 6, 6, dtype=dtype)
    parameter = layer.parameters[name]
    out = parameter.reshape(-1)[:6].reshape(1, 1, 6)
    assert np.shares_memory(out, parameter)
    x = np.ones((1, 1, 6), dtype)
    with unchanged(parameter), pytest.raises(ValueError, match=names("out")):
        layer.forward(x, out=out)


@pytest.mark.parametrize("shape", [(0, N, H), (T, 0, H), (0, 0, H)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_out_without_elements(case, dtype, shape, order):
    layer = construct(case, I, H, dtype=dtype)
    out = np.empty(shape, dtype, order=order)
    x = np.zeros((*shape[:2], I), dtype)
    for of in (layer, layer.freeze()):
        assert of.forward(x, out=out).y is out


@pytest.mark.parametrize(
    "training", [0, 1, None, "yes", np.array([1, 0]), np.zeros(2), [True]], ids=repr
)
def test_training_is_a_flag(problem, layer, training):
    for of in (layer, layer.freeze()):
        with pytest.raises((TypeError, ValueError), match=names("training")):
            of.forward(problem.x, training=training)


def test_out_beside_an_input_in_one_buffer_is_fine(case, dtype):
    problem = draw(case, T=4, N=3, I=6, H=6, dtype=dtype)
    layer = make_layer(problem)
    memory = np.zeros((2, 4, 3, 6), dtype)
    memory[0] = problem.x
    out = layer.forward(memory[0], out=memory[1])
    assert out.y is memory[1] or np.shares_memory(out.y, memory[1])
    assert_same_bits(memory[1], layer(problem.x)[0])
    assert_same_bits(memory[0], problem.x)


@pytest.mark.parametrize("count", [0, -1, -(2**40)])
def test_thread_counts_are_positive(problem, layer, count):
    out = run_forward(problem, layer)
    for call in (
        lambda: layer(problem.x, num_threads=count),
        lambda: layer.forward(problem.x, num_threads=count),
        lambda: run_backward(problem, layer, out, num_threads=count),
    ):
        with pytest.raises(ValueError, match=names("num_threads")):
            call()
    before = rk.get_num_threads()
    with pytest.raises(ValueError):
        rk.set_num_threads(count)
    assert rk.get_num_threads() == before


@pytest.mark.parametrize("count", ["2", 2.0, True, [1]], ids=repr)
def test_thread_counts_are_integers(problem, layer, count):
    out = run_forward(problem, layer)
    for call in (
        lambda: layer(problem.x, num_threads=count),
        lambda: layer.forward(problem.x, num_threads=count),
        lambda: run_backward(problem, layer, out, num_threads=count),
    ):
        with pytest.raises(TypeError, match=names("num_threads")):
            call()
    before = rk.get_num_threads()
    with pytest.raises(TypeError):
        rk.set_num_threads(count)
    assert rk.get_num_threads() == before


def test_absurd_thread_counts_do_no_harm(problem, layer):
    """More threads than any machine has, within a C int and past it: an error or the same bits."""
    expected, _ = layer_outputs(problem, layer)
    for count in (1000, 2**31, 2**63, 2**70):
        actual, _ = layer_outputs(problem, layer, num_threads=count)
        assert_same_outputs(actual, expected)


def test_no_more_threads_are_told_than_a_call_takes():
    before = rk.get_num_threads()
    try:
        rk.set_num_threads(10**6)
        assert rk.get_num_threads() == max(64, 2 * (os.cpu_count() or 1))
    finally:
        rk.set_num_threads(before)


def test_absurd_thread_counts_start_no_more_threads_than_are_of_use():
    """OpenMP ends the process where the system refuses a thread."""
    script = """
import os
import numpy as np
import rnnkernel as rk
from rnnkernel import _plan
_plan.TEAMS_ARE_FREE = True
layer = rk.RNN(64, 64, rng=0)
x = np.ones((5, 4000, 64), np.float32)
expected, _ = layer(x, num_threads=1)
y, _ = layer(x, num_threads=3000)
assert (y == expected).all()
if os.path.exists("/proc/self/task"):
    assert 1 < len(os.listdir("/proc/self/task")) <= max(64, 2 * os.cpu_count()) + 8
"""
    run_script(script, timeout=120)


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({"RNNKERNEL_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "5"}, 5),
        ({"OMP_NUM_THREADS": "5,2"}, 5),
        ({"RNNKERNEL_NUM_THREADS": "3", "OMP_NUM_THREADS": "5"}, 3),
        ({"RNNKERNEL_NUM_THREADS": "", "OMP_NUM_THREADS": "5"}, 5),
        ({"RNNKERNEL_NUM_THREADS": "0", "OMP_NUM_THREADS": "5"}, 5),
        ({"RNNKERNEL_NUM_THREADS": "many", "OMP_NUM_THREADS": "5"}, 5),
        ({"RNNKERNEL_NUM_THREADS": "9" * 5000}, max(64, 2 * (os.cpu_count() or 1))),
    ],
)
@pytest.mark.filterwarnings("ignore:RNNKERNEL_NUM_THREADS")
def test_the_environment_says_how_many_threads(environment, threads, monkeypatch):
    for name in ("RNNKERNEL_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(_threads, "_requested", None)
    _threads.default.cache_clear()
    try:
        assert rk.get_num_threads() == threads
        assert _threads.reason()[1] in environment
        rk.set_num_threads(2)
        assert rk.get_num_threads() == 2
    finally:
        _threads.default.cache_clear()


@pytest.mark.parametrize("given", ["0", "many", "1.5", "-2", "2 threads"])
def test_a_bad_number_in_the_environment_is_told(given, monkeypatch):
    monkeypatch.setenv("RNNKERNEL_NUM_THREADS", given)
    _threads.default.cache_clear()
    try:
        with pytest.warns(UserWarning, match=f"RNNKERNEL_NUM_THREADS: .* got '{given}'"):
            _threads.default()
    finally:
        _threads.default.cache_clear()


def test_output_that_does_not_fit_in_memory(case, dtype):
    """x takes no memory, being broadcast; y would take more than the address space."""
    layer = construct(case, 3, 64, dtype=dtype)
    for shape in ((2**40, 2**10, 3), (2**20, 2**36, 3), (2**55, 1, 3), (1, 2**55, 3)):
        x = np.broadcast_to(dtype(0), shape)
        for training in (False, True):
            with pytest.raises(MemoryError):
                layer.forward(x, training=training)
        with pytest.raises(MemoryError):
            layer(x)


def test_the_other_inputs_of_the_interface_are_keywords(problem, layer):
    with pytest.raises(TypeError):
        layer(problem.x, None, 2)
    with pytest.raises(TypeError):
        layer.forward(problem.x, None, True)


# Backward.


def test_backward_wants_the_result_of_forward(problem, layer):
    y, state = layer(problem.x)
    for wrong in (None, y, (y, state), Opaque()):
        with pytest.raises(TypeError, match=names("out")):
            layer.backward(wrong, problem.dy)


def test_backward_wants_a_training_forward(problem, layer):
    out = layer.forward(problem.x)
    with unchanged(out.y), pytest.raises(ValueError, match="training"):
        layer.backward(out, problem.dy)


def test_backward_wants_this_layers_forward(problem, layer):
    other = make_layer(problem)  # even one with the same weights
    out = run_forward(problem, other)
    with unchanged(out.y), pytest.raises(ValueError, match=names("out")):
        layer.backward(out, problem.dy)


BAD_DY = [
    pytest.param(lambda dy: dy[:-1], ValueError, id="too_few_steps"),
    pytest.param(lambda dy: dy[:, :-1], ValueError, id="too_few_rows"),
    pytest.param(lambda dy: dy[:, :1], ValueError, id="one_row_for_all"),
    pytest.param(lambda dy: dy[..., :-1], ValueError, id="too_few_units"),
    pytest.param(lambda dy: dy[0], ValueError, id="rank_2"),
    pytest.param(lambda dy: dy[None], ValueError, id="rank_4"),
    pytest.param(lambda dy: dy.swapaxes(0, 1), ValueError, id="swapped"),
    pytest.param(lambda dy: dy.astype(OTHER[dy.dtype.type]), TypeError, id="the_other_float"),
    pytest.param(lambda dy: dy.astype(int), TypeError, id="integers"),
    pytest.param(lambda dy: 1.0, (TypeError, ValueError), id="a_number"),
    pytest.param(lambda dy: "dy", TypeError, id="a_string"),
    pytest.param(lambda dy: Opaque(), TypeError, id="an_object"),
]


@pytest.mark.parametrize(("spoil", "error"), BAD_DY)
def test_bad_dy(problem, layer, spoil, error):
    out = run_forward(problem, layer)
    dy = spoil(problem.dy)
    with (
        unchanged(*layer.parameters.values(), *problem_arrays(problem), out.y),
        pytest.raises(error, match=names("dy")),
    ):
        layer.backward(out, dy, layer_state(problem.case, problem.dstates))


def test_no_gradient_in_gives_no_gradient_out(problem, layer):
    grads = layer.backward(run_forward(problem, layer))
    arrays = [grads.x, *problem.case.unpack(grads.state), *grads.parameters.values()]
    assert not any(array.any() for array in arrays)


def test_a_failed_backward_spoils_nothing(problem, layer):
    expected, _ = layer_outputs(problem, layer)
    out = run_forward(problem, layer)
    with pytest.raises(ValueError):
        layer.backward(out, problem.dy[:-1])
    grads = run_backward(problem, layer, out)
    assert_same_outputs(named_outputs(problem.case, out, grads), expected)

"""`out.trace`: the states and gates of every step, by value, for every layer and direction."""

import copy
import pickle

import numpy as np
import pytest

import rnnkernel as rk
from drawn import draw
from helpers import assert_same_bits, layer_state, make_layer
from tolerances import assert_output_close

SIZES = [(1, 1, 1, 1), (2, 3, 4, 5), (6, 7, 5, 33), (40, 5, 3, 70)]


def expected_trace(case, problem, names):
    """The reference's states and gates by name, in float64."""
    exact = problem.astype(np.float64)
    y, _, tape = case.forward(exact.weights, exact.x, case.pack(exact.states))
    arrays = {"h": y}
    if "c" in tape:
        arrays["c"] = tape["c"][1:]
    if "gates" in tape:
        gates = [n for n in names if n not in arrays]
        for k, name in enumerate(gates):
            arrays[name] = np.stack([step[k] for step in tape["gates"]])
    return arrays


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_values_against_the_reference(case, dtype, sizes, training):
    problem = draw(case, *sizes, dtype=dtype, seed=5)
    layer = make_layer(problem)
    out = layer.forward(problem.x, layer_state(case, problem.states), training=training, trace=True)
    (trace,) = out.trace
    expected = expected_trace(case, problem, list(trace))
    gates = {"LSTM": "ifgo", "GRU": "rzn", "RNN": ""}[case.layer]
    states = "hc" if case.layer == "LSTM" else "h"
    assert list(trace) == [*states, *gates]
    for name in trace:
        assert_output_close(trace[name], expected[name], name, problem)
    assert_same_bits(trace.h, out.y)


@pytest.mark.parametrize("layout", ["time first", "batch first", "unbatched"])
def test_stacks_directions_and_layouts(case, dtype, layout):
    """Every layer and direction has the trace of itself alone, in the time of x."""
    T, N, I, H, L, D = 5, 1 if layout == "unbatched" else 3, 4, 19, 3, 2  # noqa: E741
    build = getattr(rk, case.layer)
    options = dict(case.options, dtype=dtype)
    layer = build(
        I, H, L, bidirectional=True, batch_first=layout == "batch first", rng=1, **options
    )
    x = np.random.default_rng(0).standard_normal((T, N, I)).astype(dtype)
    given, seen = {
        "time first": (x, lambda a: a),
        "batch first": (x.transpose(1, 0, 2), lambda a: a.transpose(1, 0, 2)),
        "unbatched": (x[:, 0], lambda a: a[:, None]),
    }[layout]
    out = layer.forward(given, trace=True)
    assert len(out.trace) == L * D

    for k in range(L):
        hidden = []
        for d, suffix in enumerate((f"_l{k}", f"_l{k}_reverse")):
            alone = build(x.shape[2], H, **options)
            alone.load_state_dict(
                {
                    name.removesuffix(suffix) + "_l0": array
                    for name, array in layer.parameters.items()
                    if name.endswith(suffix)
                }
            )
            step = -1 if d else 1
            (expected,) = alone.forward(x[::step], trace=True).trace
            trace = out.trace[k * D + d]
            assert list(trace) == list(expected)
            for name in trace:
                assert trace[name].shape == given.shape[:-1] + (H,)
                assert_same_bits(seen(trace[name]), expected[name][::step], name)
            hidden.append(seen(trace.h))
        x = np.concatenate(hidden, axis=2)
    assert_same_bits(seen(out.y), x)


def test_a_trace_changes_no_bit(case, dtype):
    problem = draw(case, 9, 5, 4, 33, dtype=dtype)
    layer = make_layer(problem)
    plain = layer.forward(problem.x)
    for training in (False, True):
        out = layer.forward(problem.x, training=training, trace=True)
        assert_same_bits(out.y, plain.y)
        y = np.empty_like(plain.y)
        given = layer.forward(problem.x, training=training, trace=True, out=y)
        assert given.y is y
        assert_same_bits(y, plain.y)
        y[...] = 0  # the caller's, not the trace's
        assert_same_bits(given.trace[0].h, plain.y)
    assert plain.trace is None
    assert layer.forward(problem.x, training=True).trace is None


def test_backward_is_that_without_a_trace(case, dtype):
    problem = draw(case, 9, 5, 4, 33, dtype=dtype)
    layer = make_layer(problem)
    plain = layer.backward(layer.forward(problem.x, training=True), problem.dy)
    out = layer.forward(problem.x, training=True, trace=True)
    dict(out.trace[0])
    grads = layer.backward(out, problem.dy)
    assert_same_bits(grads.x, plain.x)
    for name, gradient in plain.parameters.items():
        assert_same_bits(grads.parameters[name], gradient, name)


@pytest.mark.parametrize("hidden", [3, 70])
def test_arrays_are_read_only_and_made_once(case, hidden):
    layer = getattr(rk, case.layer)(4, hidden, **case.options)
    x = np.random.default_rng(0).standard_normal((6, 3, 4)).astype(np.float32)
    out = layer.forward(x, trace=True)
    (trace,) = out.trace
    for name, array in trace.items():
        assert not array.flags.writeable
        assert trace[name] is array
        assert getattr(trace, name) is array
    assert not out.y.flags.writeable


def test_gates_of_one_block_are_views(dtype):
    """2 units fit one block of any instruction set: nothing is copied."""
    lstm = rk.LSTM(4, 2, dtype=dtype)
    out = lstm.forward(np.zeros((6, 3, 4), dtype), training=True, trace=True)
    reserve = out._tape.passes[0].reserve
    for name in "cifgo":
        assert np.shares_memory(out.trace[0][name], reserve)
    assert np.shares_memory(out.trace[0].h, out.y)


@pytest.mark.parametrize("T,N", [(0, 3), (4, 0)])
def test_nothing_to_trace(case, T, N):
    layer = getattr(rk, case.layer)(4, 9, **case.options)
    out = layer.forward(np.zeros((T, N, 4), np.float32), trace=True)
    for array in out.trace[0].values():
        assert array.shape == (T, N, 9)


def test_hidden_states_are_those_before_dropout():
    layer = rk.GRU(4, 9, 2, dropout=0.5, rng=0)
    x = np.random.default_rng(0).standard_normal((6, 3, 4)).astype(np.float32)
    dropped = layer.forward(x, training=True, trace=True).trace
    assert_same_bits(dropped[0].h, layer.forward(x, trace=True).trace[0].h)


def test_unknown_names():
    (trace,) = rk.GRU(4, 9).forward(np.zeros((2, 3, 4), np.float32), trace=True).trace
    with pytest.raises(KeyError):
        trace["f"]
    with pytest.raises(AttributeError, match="h, r, z, n has no 'f'"):
        _ = trace.f


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda trace: pickle.loads(pickle.dumps(trace))]
)
def test_copies(again):
    (trace,) = rk.LSTM(4, 40, rng=0).forward(np.ones((2, 3, 4), np.float32), trace=True).trace
    other = again(trace)
    assert list(other) == list(trace) == ["h", "c", "i", "f", "g", "o"]
    for name, array in trace.items():
        assert_same_bits(other[name], array, name)
        assert not getattr(other, name).flags.writeable
    assert {"h", "c", "i", "f", "g", "o"} <= set(dir(other))


def test_what_training_keeps_has_no_copies():
    out = rk.GRU(4, 9, rng=0).forward(np.ones((2, 3, 4), np.float32), training=True)
    for again in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="no copies: keep its y and state"):
            again(out)


@pytest.mark.parametrize("value", [1, None, "yes"])
def test_bad_flag(value):
    with pytest.raises(TypeError, match="^trace: expected a bool, got "):
        rk.GRU(4, 9).forward(np.zeros((2, 3, 4), np.float32), trace=value)


def test_results_are_told_by_their_shapes():
    """Not by hundreds of numbers."""
    layer = rk.LSTM(4, 9, 2, rng=0)
    x = np.ones((5, 3, 4), np.float32)
    out = layer.forward(x, trace=True)
    names = "Trace(h, c, i, f, g, o)"
    assert repr(out) == (
        f"Output(y=(5, 3, 9), state=((2, 3, 9), (2, 3, 9)), trace=({names}, {names}))"
    )
    out = rk.GRU(4, 9, bias=False, rng=0).forward(x)
    assert repr(out) == "Output(y=(5, 3, 9), state=(1, 3, 9), trace=None)"
    layer = rk.RNN(4, 9, bias=False, rng=0)
    out = layer.forward(x, training=True)
    assert repr(layer.backward(out, out.y, flow=True, input_grad=False)) == (
        "Gradients(x=None, state=(1, 3, 9), parameters={'weight_ih_l0': (9, 4), "
        "'weight_hh_l0': (9, 9)}, embedding=None, "
        "flow=Flow(dh_norm=(1, 5), dc_norm=None, clipped=(1, 5), dh=None, dc=None))"
    )
    assert repr(rk.gradient_flow(layer, x)) == (
        "GradientFlow(dh_norm=(1, 5), dc_norm=None, clipped=(1, 5), saturated={'h': (1, 5)}, "
        "jacobian_norm=(1, 5), cell_jacobian_norm=None)"
    )
    assert repr(rk.Adam(layer.parameters)).startswith("Adam(2 arrays, lr=0.001, ")


def test_what_a_call_returns_is_itself_and_no_other():
    """Arrays have no truth to compare by, and lists and sets compare what is in them."""
    layer, x = rk.LSTM(3, 4, rng=0), np.ones((5, 2, 3), np.float32)
    outs = [layer.forward(x, training=True, trace=True) for _ in range(2)]
    grads = [layer.backward(out, out.y, flow=True) for out in outs]
    flows = [rk.gradient_flow(layer, x, jacobian=False) for _ in range(2)]
    for first, second in (
        outs, grads, flows, [g.flow for g in grads], [out.trace[0] for out in outs]
    ):  # fmt: skip
        kept = [first, second]
        kept.remove(second)
        assert kept[0] is first and second not in kept and len({first, second}) == 2

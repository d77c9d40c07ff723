"""A frozen layer is its layer, packed once: same bits, same errors, and nothing moves it."""

import copy
import pickle
import warnings

import numpy as np
import pytest

import rnnkernel as rk
from drawn import draw
from helpers import assert_same_bits, layer_state, make_layer

I, H = 5, 19  # noqa: E741


def parts(state):
    return state if isinstance(state, tuple) else (state,)


def assert_same_results(actual, expected):
    __tracebackhide__ = True
    (y, state), (expected_y, expected_state) = actual, expected
    assert_same_bits(y, expected_y, "y")
    assert type(state) is type(expected_state)
    for got, wanted in zip(parts(state), parts(expected_state), strict=True):
        assert_same_bits(got, wanted, "state")


def stack(case, dtype, **options):
    return getattr(rk, case.layer)(I, H, dtype=dtype, rng=1, **case.options, **options)


def inputs(case, layer, *shape):
    rng = np.random.default_rng(2)
    D = 2 if layer.bidirectional else 1
    batch = (shape[0] if layer.batch_first else shape[1],) if len(shape) == 3 else ()

    def normal(*shape):
        return rng.standard_normal(shape).astype(layer.dtype)

    states = [normal(layer.num_layers * D, *batch, H) for _ in case.states]
    return normal(*shape), case.pack(states)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"num_layers": 3},
        {"bidirectional": True},
        {"num_layers": 2, "bidirectional": True, "batch_first": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(6, 3, I), (1, 1, I), (4, I), (0, 2, I)], ids=str)
def test_the_bits_of_the_layer(case, dtype, options, shape):
    layer = stack(case, dtype, **options)
    fast = layer.freeze()
    x, state = inputs(case, layer, *shape)
    assert_same_results(fast(x), layer(x))
    assert_same_results(fast(x, state), layer(x, state))
    out = fast.forward(x, state)
    assert out.trace is None
    assert_same_results((out.y, out.state), layer(x, state))
    traces = [which.forward(x, state, trace=True).trace for which in (fast, layer)]
    for one, expected in zip(*traces, strict=True):
        for name in ("h", *case.states):
            assert_same_bits(one[name], expected[name], name)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_any_number_of_threads(case, dtype, num_threads):
    problem = draw(case, T=40, N=21, I=33, H=67, dtype=dtype)
    layer = make_layer(problem)
    state = layer_state(case, problem.states)
    expected = layer(problem.x, state, num_threads=1)
    assert_same_results(layer.freeze()(problem.x, state, num_threads=num_threads), expected)


def test_out(case, dtype):
    layer = stack(case, dtype)
    x, state = inputs(case, layer, 6, 3, I)
    out = np.full((6, 3, H), np.nan, dtype)
    result = layer.freeze().forward(x, state, out=out)
    assert result.y is out
    assert_same_bits(out, layer(x, state)[0])


def test_later_changes_of_the_layer_do_not_reach_it(case, dtype):
    layer = stack(case, dtype, num_layers=2)
    fast = layer.freeze()
    x, state = inputs(case, layer, 6, 3, I)
    expected = layer(x, state)
    kept = layer.state_dict()
    for array in layer.parameters.values():
        array *= 2
    layer.parameters["weight_hh_l1"] = np.zeros_like(layer.parameters["weight_hh_l1"])
    layer.load_state_dict({name: array + 1 for name, array in kept.items()})
    assert_same_results(fast(x, state), expected)
    assert fast.parameters.keys() == kept.keys()
    for name, array in kept.items():
        assert_same_bits(fast.parameters[name], array, name)


def test_what_it_shows(case, dtype):
    layer = stack(case, dtype, num_layers=2, bidirectional=True, batch_first=True)
    fast = layer.freeze()
    for name in "input_size hidden_size num_layers bidirectional batch_first dtype".split():
        assert getattr(fast, name) == getattr(layer, name), name
    assert repr(fast) == f"{layer!r}.freeze()"


def test_nothing_of_it_can_be_changed(case, dtype):
    fast = stack(case, dtype).freeze()
    name = "weight_ih_l0"
    with pytest.raises(ValueError, match="read-only"):
        fast.parameters[name][...] = 0
    with pytest.raises(ValueError, match="WRITEABLE"):
        fast.parameters[name].flags.writeable = True
    with pytest.raises(TypeError):
        fast.parameters[name] = np.zeros((1, 1))
    for attribute in ("input_size", "hidden_size", "num_layers", "dtype", "parameters"):
        with pytest.raises(AttributeError):
            setattr(fast, attribute, None)


def test_pickled_and_copied(case, dtype):
    layer = stack(case, dtype, num_layers=2)
    fast = layer.freeze()
    x, state = inputs(case, layer, 6, 3, I)
    for again in (pickle.loads(pickle.dumps(fast)), copy.copy(fast), copy.deepcopy(fast)):
        assert_same_results(again(x, state), fast(x, state))
        assert not again.parameters["weight_ih_l0"].flags.writeable


def test_training_is_an_error():
    fast = rk.LSTM(I, H).freeze()
    x = np.zeros((2, 1, I), np.float32)
    with pytest.raises(ValueError, match="training: expected False, got True"):
        fast.forward(x, training=True)
    with pytest.raises(TypeError, match="training: expected a bool"):
        fast.forward(x, training=1)
    assert not hasattr(fast, "backward")


def test_the_errors_of_the_layer(case, dtype):
    layer = stack(case, dtype)
    fast = layer.freeze()
    x, state = inputs(case, layer, 4, 3, I)
    wrong = [
        ((x[..., :-1],), {}),
        ((x.astype(np.float16),), {}),
        ((x[0, 0],), {}),
        ((None,), {}),
        ((x, x), {}),
        ((x, state), {"num_threads": 0}),
    ]
    for arguments, keywords in wrong:
        with pytest.raises((TypeError, ValueError)) as expected:
            layer(*arguments, **keywords)
        with pytest.raises(expected.type) as actual:
            fast(*arguments, **keywords)
        assert str(actual.value) == str(expected.value)
    with pytest.raises(ValueError, match="out: expected shape"):
        fast.forward(x, out=np.zeros((4, 3, H + 1), dtype))


def test_a_layer_with_wrong_parameters_is_not_frozen(dtype):
    layer = rk.GRU(I, H, dtype=dtype)
    layer.parameters["weight_ih_l0"] = np.zeros((3 * H, I + 1), dtype)
    with pytest.raises(ValueError, match="weight_ih_l0"):
        layer.freeze()


def test_only_a_layer_is_frozen():
    layer = rk.GRU(3, 4, rng=0)
    for other in (3, None, rk.Linear(2, 2), layer.freeze()):
        with pytest.raises(TypeError, match="^layer: expected an RNN, GRU or LSTM, got "):
            rk.Frozen(other)


def test_what_a_frozen_layer_shows_has_no_shape_to_set():
    fast = rk.GRU(3, 4, rng=0).freeze()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        fast.parameters["weight_ih_l0"].shape = (36,)
    assert fast.parameters["weight_ih_l0"].shape == (12, 3)
    assert pickle.loads(pickle.dumps(fast)).parameters["weight_ih_l0"].shape == (12, 3)

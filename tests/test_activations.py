"""Errors of tanh and sigmoid in ULP, measured through the public interface.

Weights are chosen so that one activation comes out as it is: an RNN without recurrence is tanh(x),
a GRU with h' = 1 and n = 0 is its update gate, an LSTM's c or h one of its gates.
"""

import numpy as np
import pytest

import rnnkernel as rk

ULP = {
    ("tanh", np.float32): 4.0,
    ("tanh", np.float64): 4.0,
    ("sigmoid", np.float32): 3.0,
    ("sigmoid", np.float64): 4.0,
}
# Where the result leaves the normal numbers; behind, it may be flushed to zero.
SIGMOID_LIMIT = {np.float32: -87.336, np.float64: -708.396}
# From here on tanh is 1 within half an ulp, with some room for its own error.
SATURATED = {np.float32: 10.0, np.float64: 20.0}


def sample(dtype, low, high, count=150_000):
    """Evenly spread, spread over all magnitudes, and around multiples of 1/4 and of ln(2) / 4."""
    rng = np.random.default_rng(0)
    tiny = np.finfo(dtype).tiny
    even = rng.uniform(low, high, count)
    magnitudes = np.exp(rng.uniform(np.log(tiny), np.log(max(-low, high)), count))
    magnitudes *= rng.choice([-1, 1], count)
    near_zero = rng.uniform(-1, 1, count)
    k = np.arange(-4000, 4001) / 4
    ties = np.concatenate([k * np.log(2), k, 2.0 ** -np.arange(1, 60), -(2.0 ** -np.arange(1, 60))])
    around = [ties * (1 + j * np.finfo(dtype).eps) for j in (-2, -1, 0, 1, 2)]
    x = np.concatenate([even, magnitudes, near_zero, *around, [low, high, 0.0, -0.0, tiny, -tiny]])
    return x[(x >= low) & (x <= high)].astype(dtype)


def exact(function, x):
    """In more precision than the dtype has."""
    wide = x.astype(np.float64 if x.dtype == np.float32 else np.longdouble)
    if function == "tanh":
        return np.tanh(wide)
    return 1 / (1 + np.exp(-wide))


def ulp_error(actual, expected):
    """In units of the last place that the result has in its own dtype."""
    spacing = np.spacing(np.abs(expected).astype(actual.dtype)).astype(expected.dtype)
    return np.abs(actual - expected) / spacing


def assert_ulp(actual, function, x):
    __tracebackhide__ = True
    error = ulp_error(actual, exact(function, x))
    worst = np.argmax(np.where(np.isnan(error), np.inf, error))
    bound = ULP[function, x.dtype.type]
    assert error[worst] <= bound, f"{function}({x[worst]!r}): {error[worst]:.2f} ulp"


def rows(x):
    return np.ascontiguousarray(x.reshape(1, -1, 1))


def set_weights(layer, **values):
    """All zero but the given ones, each a number per gate."""
    for p in layer.parameters.values():
        p[...] = 0
    for name, per_gate in values.items():
        p = layer.parameters[f"{name}_l0"]
        H = p.shape[0] // len(per_gate)
        p[...] = np.repeat(per_gate, H).reshape(p.shape[0], *[1] * (p.ndim - 1))


def through_rnn(x, H=1):
    layer = rk.RNN(1, H, dtype=x.dtype)
    set_weights(layer, weight_ih=[1])
    return layer(rows(x))[0][0]


def through_gru_z(x, H=1, reset_after=True):
    """h = (1 - z) * 0 + z * 1"""
    layer = rk.GRU(1, H, dtype=x.dtype, reset_after=reset_after)
    set_weights(layer, weight_ih=[0, 1, 0])
    return layer(rows(x), np.ones((1, len(x), H), x.dtype))[0][0]


def through_lstm(x, gate, H=1):
    layer = rk.LSTM(1, H, dtype=x.dtype)
    state = np.zeros((2, 1, len(x), H), x.dtype)
    if gate == "i":  # c = f * 0 + i * tanh(100)
        set_weights(layer, weight_ih=[1, 0, 0, 0], bias_ih=[0, 0, 100, 0])
    elif gate == "f":  # c = f * 1 + 1/2 * 0
        set_weights(layer, weight_ih=[0, 1, 0, 0])
        state[1] = 1
    elif gate == "g":  # c = 1/2 * 0 + s(100) * g
        set_weights(layer, weight_ih=[0, 0, 1, 0], bias_ih=[100, 0, 0, 0])
    else:  # h = o * tanh(s(100) * 100)
        set_weights(layer, weight_ih=[0, 0, 0, 1], bias_ih=[0, 100, 0, 0])
        state[1] = 100
    y, (_, c) = layer(rows(x), tuple(state))
    return y[0] if gate == "o" else c[0]


SIGMOIDS = {
    "gru_z": through_gru_z,
    "gru_z_reset_before": lambda x, H=1: through_gru_z(x, H, reset_after=False),
    "lstm_i": lambda x, H=1: through_lstm(x, "i", H),
    "lstm_f": lambda x, H=1: through_lstm(x, "f", H),
    "lstm_o": lambda x, H=1: through_lstm(x, "o", H),
}
TANHS = {"rnn": through_rnn, "lstm_g": lambda x, H=1: through_lstm(x, "g", H)}

tanhs = pytest.mark.parametrize("through", TANHS.values(), ids=TANHS.keys())
sigmoids = pytest.mark.parametrize("through", SIGMOIDS.values(), ids=SIGMOIDS.keys())


@tanhs
def test_tanh(dtype, through):
    limit = 1.2 * SATURATED[dtype]
    x = sample(dtype, -limit, limit)
    assert_ulp(through(x)[:, 0], "tanh", x)


@tanhs
def test_tanh_is_odd_and_at_most_one(dtype, through):
    x = sample(dtype, 0, 1.2 * SATURATED[dtype])
    y = through(x)
    np.testing.assert_array_equal(through(-x), -y)
    assert (y <= 1).all()


@tanhs
def test_tanh_saturates_exactly(dtype, through):
    big = np.finfo(dtype).max
    x = np.array([SATURATED[dtype], 25, 88, 89, 100, 710, 1e4, 1e30, big], dtype)
    assert (through(x) == 1).all()
    assert (through(-x) == -1).all()


def test_tanh_keeps_the_sign_of_zero(dtype):
    """h = tanh(c) / 2, where c = +-0 / 2 + i g and i g is too small for any number but +-0."""
    layer = rk.LSTM(1, 5, dtype=dtype)
    set_weights(layer, weight_ih=[0, 0, 1, 0], bias_ih=[SIGMOID_LIMIT[dtype] + 5, 0, 0, 0])
    x = np.array([[[1], [-1]]], dtype) * np.sqrt(np.finfo(dtype).tiny)
    c = np.repeat(np.array([[[0.0], [-0.0]]], dtype), 5, axis=2)
    y, _ = layer(x, (np.zeros_like(c), c))
    np.testing.assert_array_equal(y, 0)
    np.testing.assert_array_equal(np.signbit(y), np.signbit(c))


def test_denormals_stay_where_they_are(dtype):
    """They may be flushed to zero."""
    tiny = np.finfo(dtype).tiny
    x = np.array([tiny / 2, tiny / 1024, np.finfo(dtype).smallest_subnormal], dtype)
    x = np.concatenate([x, -x])
    for through in TANHS.values():
        y = through(x)[:, 0]
        assert ((y == 0) | (y == x)).all()
    for through in SIGMOIDS.values():
        assert (through(x) == 0.5).all()


def test_tanh_of_infinity(dtype):
    np.testing.assert_array_equal(through_rnn(np.array([[np.inf], [-np.inf]], dtype)), [[1], [-1]])


@sigmoids
def test_sigmoid(dtype, through):
    """Relative to the result, so in the left tail too, down to the smallest normal number."""
    x = sample(dtype, SIGMOID_LIMIT[dtype], 50)
    assert_ulp(through(x)[:, 0], "sigmoid", x)


@sigmoids
def test_sigmoid_past_the_normal_numbers(dtype, through):
    """There it is zero, denormal or the smallest normal number, and never negative."""
    low = SIGMOID_LIMIT[dtype]
    x = np.array([low * 1.001, low * 1.1, -1e4, -1e30, np.finfo(dtype).min], dtype)
    y = through(x)
    assert (y >= 0).all()
    assert (y <= 1.001 * np.finfo(dtype).tiny).all()


@sigmoids
def test_sigmoid_saturates_exactly(dtype, through):
    x = np.array([40, 88, 89, 100, 710, 1e4, 1e30, np.finfo(dtype).max], dtype)
    assert (through(x) == 1).all()


def test_sigmoid_of_zero_is_a_half(dtype):
    for through in SIGMOIDS.values():
        assert (through(np.array([0.0, -0.0], dtype)) == 0.5).all()


def test_sigmoid_of_infinity(dtype):
    """By overflow of the product W x in one gate alone: 0 * inf in the others would be NaN."""
    layer = rk.GRU(1, 1, dtype=dtype)
    set_weights(layer, weight_ih=[0, 10, 0])
    big = np.finfo(dtype).max
    x = np.array([[[big], [-big]]], dtype)
    y, _ = layer(x, np.ones((1, 2, 1), dtype))
    assert y[0, 0, 0] == 1
    assert 0 <= y[0, 1, 0] <= 1.001 * np.finfo(dtype).tiny


def test_nan_stays_nan(dtype):
    x = np.array([np.nan, 1.0, -np.nan], dtype)
    for through in (*TANHS.values(), *SIGMOIDS.values()):
        y = through(x)[:, 0]
        assert np.isnan(y[[0, 2]]).all()
        assert not np.isnan(y[1])


def test_every_lane_computes_the_same(dtype):
    """Whole vectors, their remainders, and every place in them."""
    x = sample(dtype, -12, 12, 500)
    for through in (*TANHS.values(), *SIGMOIDS.values()):
        alone = through(x)
        for H in (3, 8, 37):
            np.testing.assert_array_equal(through(x, H), np.repeat(alone, H, axis=1))

"""The LSTM's options: forget_bias."""

import math

import numpy as np
import pytest

import rnnkernel as rk
from helpers import assert_same_bits

# forget_bias: an initial value, and nothing else.


@pytest.mark.parametrize("stack", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_forget_bias_is_where_the_biases_of_f_start(dtype, stack):
    plain = rk.LSTM(3, 5, dtype=dtype, rng=1, **stack)
    layer = rk.LSTM(3, 5, dtype=dtype, rng=1, forget_bias=1.5, **stack)
    assert layer.parameters.keys() == plain.parameters.keys()
    for name, values in layer.parameters.items():
        if name.startswith("bias"):
            expected = 1.5 if name.startswith("bias_ih") else 0
            np.testing.assert_array_equal(values[5:10], np.full(5, expected, dtype), name)
            values = np.delete(values, np.s_[5:10])
            assert_same_bits(values, np.delete(plain.parameters[name], np.s_[5:10]), name)
        else:
            assert_same_bits(values, plain.parameters[name], name)


def test_a_forget_bias_of_zero_changes_nothing(dtype):
    plain, zero = (
        rk.LSTM(3, 5, dtype=dtype, rng=1),
        rk.LSTM(3, 5, dtype=dtype, rng=1, forget_bias=0),
    )
    for name, values in plain.parameters.items():
        assert_same_bits(zero.parameters[name], values, name)


def test_forget_bias_acts_as_its_parameters_and_no_more(dtype):
    layer = rk.LSTM(3, 5, dtype=dtype, rng=1, forget_bias=1.0)
    plain = rk.LSTM(3, 5, dtype=dtype)
    plain.load_state_dict(layer.state_dict())
    x = np.random.default_rng(0).standard_normal((4, 2, 3)).astype(dtype)
    assert_same_bits(layer(x)[0], plain(x)[0])


def test_forget_bias_is_an_option_of_the_layer():
    layer = rk.LSTM(3, 5, forget_bias=np.float32(1))
    assert layer.forget_bias == layer.options["forget_bias"] == 1.0
    assert "forget_bias=1.0" in repr(layer)
    assert "forget_bias" not in repr(rk.LSTM(3, 5))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400], ids=str)
def test_forget_bias_is_finite(value):
    with pytest.raises(ValueError, match=r"\bforget_bias\b"):
        rk.LSTM(3, 5, forget_bias=value)


@pytest.mark.parametrize("value", ["1", None, [1.0], True, 1j], ids=repr)
def test_forget_bias_is_a_number(value):
    with pytest.raises(TypeError, match=r"\bforget_bias\b"):
        rk.LSTM(3, 5, forget_bias=value)


def test_forget_bias_wants_biases():
    rk.LSTM(3, 5, bias=False, forget_bias=0.0)
    with pytest.raises(ValueError, match=r"\bforget_bias\b"):
        rk.LSTM(3, 5, bias=False, forget_bias=1.0)

"""What a constructor may be given, and the exception that names what it may not."""

import numpy as np
import pytest

import rnnkernel as rk
from helpers import construct, names


@pytest.mark.parametrize("size", [2.5, 3.0, True, "3", None, [3], np.float32(3)], ids=repr)
def test_sizes_are_integers(case, size):
    with pytest.raises(TypeError, match=names("input_size")):
        construct(case, size, 4)
    with pytest.raises(TypeError, match=names("hidden_size")):
        construct(case, 4, size)


@pytest.mark.parametrize("size", [0, -1, -(2**40), -(2**70)])
def test_sizes_are_positive(case, size):
    with pytest.raises(ValueError, match=names("input_size")):
        construct(case, size, 4)
    with pytest.raises(ValueError, match=names("hidden_size")):
        construct(case, 4, size)


@pytest.mark.parametrize(
    "sizes",
    [
        (2**62, 2**62),
        (2**40, 2**40),
        (2**62, 1),
        (1, 2**62),
        (2**33, 2**20),
        (2**61, 2),
        (2**63 - 1, 2**63 - 1),
        (2**70, 1),
        (1, 2**70),
        (3, 10**400),
        (10**400, 3),
    ],
    ids=str,
)
def test_sizes_whose_product_overflows(case, dtype, sizes):
    with pytest.raises((MemoryError, ValueError)):
        construct(case, *sizes, dtype=dtype)


@pytest.mark.parametrize(
    "wrong",
    [np.float16, np.int32, "complex64", bool, object, "no", 3, ",,", "(9" + 20 * "9" + ",)f4"],
    ids=str,
)
def test_dtypes_are_float32_and_float64(case, wrong):
    with pytest.raises((TypeError, ValueError), match=names("dtype")):
        construct(case, 3, 4, dtype=wrong)


@pytest.mark.parametrize("wrong", [1e39, -np.float64(1e39), float("nan"), np.complex64(1)])
def test_forget_bias_is_finite_in_the_dtype(wrong):
    with pytest.raises((TypeError, ValueError), match=names("forget_bias")):
        rk.LSTM(2, 3, forget_bias=wrong)
    if isinstance(wrong, float) and wrong > 0:
        assert rk.LSTM(2, 3, forget_bias=wrong, dtype=np.float64).forget_bias == wrong


def test_nonlinearities():
    for wrong in ("sin", "", "TANH", None, 1):
        with pytest.raises((TypeError, ValueError), match=names("nonlinearity")):
            rk.RNN(3, 4, nonlinearity=wrong)


@pytest.mark.parametrize("rng", ["seed", 1.5, object()], ids=["str", "float", "object"])
def test_rng_is_a_seed_or_a_generator(case, rng):
    with pytest.raises((TypeError, ValueError), match=names("rng")):
        construct(case, 3, 4, rng=rng)


def test_unknown_arguments_are_named(case):
    with pytest.raises(TypeError, match="hidden_sise"):
        construct(case, 3, 4, hidden_sise=4)


def test_what_a_layer_was_made_with_stays(case):
    """A change would reach some of what was made from it, and not the rest."""
    layer = construct(case, 3, 4, 2, dropout=0.5)
    made_with = {"input_size": 3, "hidden_size": 4, "dtype": np.dtype(np.float32), **layer.options}
    for name, value in made_with.items():
        with pytest.raises(AttributeError, match=rf"^{name}: expected .*, got 'other'"):
            setattr(layer, name, "other")
        assert getattr(layer, name) == value
    with pytest.raises(AttributeError, match="options"):
        layer.options = {}
    with pytest.raises(TypeError):
        layer.options["batch_first"] = True


def test_other_attributes_are_the_users(case):
    class Named(type(construct(case, 1, 1))):
        def __init__(self, name):
            super().__init__(3, 4, **case.options)
            self.name = name

    layer = Named("first")
    layer.name, layer.coupling = "second", 1
    assert (layer.name, layer.coupling) == ("second", 1)
    other = rk.RNN(3, 4)
    other.coupled = True  # an option of LSTM alone
    assert other.coupled


@pytest.mark.parametrize("size", [-(10**5000), 10**5000], ids=["-", "+"])
def test_what_has_no_text_is_named_all_the_same(size):
    """Python writes no integer of thousands of digits."""
    for name in ("input_size", "hidden_size"):
        with pytest.raises((ValueError, MemoryError), match=f"^{name}|^weight_ih_l0"):
            rk.RNN(**{"input_size": 3, "hidden_size": 4, name: size})


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_a_seed_that_numpy_crashes_on():
    with pytest.raises(TypeError, match=names("rng")):
        rk.RNN(3, 4, rng=np.matrix([[1, 2]]))

"""Parameters: names, shapes, initial values, live editing, copies and loading."""

import sys
from array import array as numbers

import numpy as np
import pytest

import rnnkernel as rk
from drawn import draw
from helpers import (
    assert_same_bits,
    bits,
    layer_outputs,
    make_layer,
    read_only,
    run_script,
    unchanged,
)

SETS_SHAPES = pytest.mark.filterwarnings("ignore:Setting the shape:DeprecationWarning")


def make(case, I=5, H=7, **arguments):  # noqa: E741
    return getattr(rk, case.layer)(I, H, **case.options, **arguments)


@pytest.mark.parametrize("bias", [True, False])
def test_names_shapes_and_dtype(case, dtype, bias):
    rows = case.gates * 7
    expected = {"weight_ih_l0": (rows, 5), "weight_hh_l0": (rows, 7)}
    if bias:
        expected |= {"bias_ih_l0": (rows,), "bias_hh_l0": (rows,)}
    parameters = make(case, dtype=dtype, bias=bias).parameters
    assert {name: p.shape for name, p in parameters.items()} == expected
    assert {p.dtype for p in parameters.values()} == {np.dtype(dtype)}


def test_the_dtype_is_float32_unless_told(case):
    assert make(case).parameters["weight_ih_l0"].dtype == np.float32
    assert make(case, dtype="float64").parameters["weight_ih_l0"].dtype == np.float64


def test_numpy_integers_are_sizes(case):
    layer = make(case, I=np.int64(3), H=np.uint8(4))
    assert layer.parameters["weight_ih_l0"].shape == (case.gates * 4, 3)


def test_initial_values_are_uniform(case, dtype):
    """U(-1/sqrt(H), 1/sqrt(H)): the bounds, and deciles within six sigma."""
    parameters = make(case, I=100, H=64, dtype=dtype, rng=0).parameters
    for name, p in parameters.items():
        assert np.abs(p).max() <= 1 / 8, name
        counts, _ = np.histogram(p, bins=10, range=(-1 / 8, 1 / 8))
        sigma = np.sqrt(p.size * 0.1 * 0.9)
        assert np.abs(counts - p.size / 10).max() < 6 * sigma, name


def test_initial_values_follow_the_seed(case, dtype):
    def values(rng):
        return {name: bits(p) for name, p in make(case, dtype=dtype, rng=rng).parameters.items()}

    assert values(3) == values(3)
    assert values(3) == values(np.random.default_rng(3))
    assert values(3) != values(4)
    assert values(None) != values(None)
    assert len(set(values(3).values())) == 4  # no two parameters alike


def test_initial_values_leave_numpys_global_generator_alone(case):
    np.random.seed(0)
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(0)
    make(case)
    assert np.random.random() == expected  # noqa: NPY002


@pytest.mark.parametrize("name", ["weight_ih", "weight_hh", "bias_ih", "bias_hh"])
def test_editing_in_place_takes_effect(case, dtype, name):
    problem = draw(case, T=4, N=3, I=5, H=9, dtype=dtype)
    layer = make_layer(problem)
    before, _ = layer_outputs(problem, layer)
    problem.weights[name][...] *= dtype(1.5)
    layer.parameters[f"{name}_l0"] *= dtype(1.5)
    edited, _ = layer_outputs(problem, layer)
    fresh, _ = layer_outputs(problem, make_layer(problem))
    for output in fresh:
        assert_same_bits(edited[output], fresh[output], output)
    assert bits(edited["y"]) != bits(before["y"])


def test_an_array_put_in_the_dict_takes_effect(case, dtype):
    problem = draw(case, T=4, N=3, I=5, H=9, dtype=dtype)
    layer = make_layer(problem)
    replaced = np.asfortranarray(layer.parameters["weight_hh_l0"] * dtype(1.5))
    layer.parameters["weight_hh_l0"] = replaced
    problem.weights["weight_hh"] = replaced.copy()
    actual, _ = layer_outputs(problem, layer)
    expected, _ = layer_outputs(problem, make_layer(problem))
    for output in expected:
        assert_same_bits(actual[output], expected[output], output)


BAD_PARAMETERS = [
    pytest.param(lambda p: p[:-1], ValueError, id="wrong_shape"),
    pytest.param(lambda p: p[None], ValueError, id="wrong_rank"),
    pytest.param(lambda p: p.astype(np.float16), TypeError, id="wrong_dtype"),
    pytest.param(lambda p: None, TypeError, id="none"),
]


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
@pytest.mark.parametrize(("spoil", "error"), BAD_PARAMETERS)
def test_what_is_in_the_dict_is_checked_at_the_call(case, dtype, name, spoil, error):
    layer = make(case, dtype=dtype)
    x = np.ones((2, 3, 5), dtype)
    layer.parameters[name] = spoil(layer.parameters[name])
    with pytest.raises(error, match=name):
        layer(x)
    del layer.parameters[name]
    with pytest.raises(ValueError, match=name):
        layer(x)


def test_state_dict_copies(case, dtype):
    layer = make(case, dtype=dtype)
    with unchanged(*layer.parameters.values()):
        copy = layer.state_dict()
        assert copy.keys() == layer.parameters.keys()
        for name, p in layer.parameters.items():
            assert_same_bits(copy[name], p, name)
            copy[name][...] = 0


def test_load_state_dict_copies_in_place(case, dtype):
    source, target = make(case, dtype=dtype, rng=1), make(case, dtype=dtype, rng=2)
    arrays = dict(target.parameters)
    loaded = source.state_dict()
    target.load_state_dict(loaded)
    for name, p in target.parameters.items():
        assert p is arrays[name]  # who held on to an array, an optimizer say, still holds it
        assert_same_bits(p, source.parameters[name], name)
        loaded[name][...] = 0
        assert p.any()


def test_load_state_dict_takes_any_strides(case, dtype):
    layer = make(case, dtype=dtype)
    wanted = {n: np.asfortranarray(p)[::-1] for n, p in make(case, dtype=dtype).parameters.items()}
    layer.load_state_dict(wanted)
    for name, p in layer.parameters.items():
        np.testing.assert_array_equal(p, wanted[name])


BAD_STATE_DICTS = [
    pytest.param(lambda d: d.pop("bias_hh_l0"), ValueError, "bias_hh_l0", id="missing"),
    pytest.param(lambda d: d.update(weight_xx_l0=1), ValueError, "weight_xx_l0", id="unexpected"),
    pytest.param(
        lambda d: d.update(weight_hh_l0=d["weight_hh_l0"][:, 1:]),
        ValueError,
        "weight_hh_l0",
        id="wrong_shape",
    ),
    pytest.param(
        lambda d: d.update(bias_hh_l0=d["bias_hh_l0"][:, None]),
        ValueError,
        "bias_hh_l0",
        id="wrong_rank",
    ),
    pytest.param(
        lambda d: d.update(bias_hh_l0=d["bias_hh_l0"].astype(np.float16)),
        TypeError,
        "bias_hh_l0",
        id="wrong_dtype",
    ),
    pytest.param(
        lambda d: d.update(bias_hh_l0=np.zeros(len(d["bias_hh_l0"]), int)),
        TypeError,
        "bias_hh_l0",
        id="integers",
    ),
    pytest.param(lambda d: d.update(bias_hh_l0=None), TypeError, "bias_hh_l0", id="none"),
]


@pytest.mark.parametrize(("spoil", "error", "name"), BAD_STATE_DICTS)
def test_load_state_dict_checks_before_it_changes(case, dtype, spoil, error, name):
    layer = make(case, dtype=dtype, rng=1)
    loaded = make(case, dtype=dtype, rng=2).state_dict()
    spoil(loaded)
    with unchanged(*layer.parameters.values()), pytest.raises(error, match=name):
        layer.load_state_dict(loaded)


def test_load_state_dict_never_casts_float64_to_float32(case):
    layer = make(case, dtype=np.float32)
    with unchanged(*layer.parameters.values()), pytest.raises(TypeError, match="float64"):
        layer.load_state_dict(make(case, dtype=np.float64).state_dict())


@pytest.mark.parametrize("not_a_dict", [None, 3, [("weight_ih_l0", 1)]], ids=str)
def test_load_state_dict_wants_a_mapping(case, not_a_dict):
    layer = make(case)
    with unchanged(*layer.parameters.values()), pytest.raises(TypeError):
        layer.load_state_dict(not_a_dict)


def test_load_state_dict_of_its_own_arrays(case, dtype):
    """Each is read before one is written."""
    layer = make(case, dtype=dtype, bidirectional=True)
    before = layer.state_dict()

    def other(name):
        return name.removesuffix("_reverse") if name.endswith("_reverse") else name + "_reverse"

    live = layer.parameters
    layer.load_state_dict({name: live[other(name)] for name in live})
    for name, array in layer.parameters.items():
        assert_same_bits(array, before[other(name)], name)


@pytest.mark.parametrize("spoil", ["read_only", "shape", "missing"])
def test_load_state_dict_checks_what_it_writes_to(case, spoil):
    layer = make(case, rng=1)
    loaded, name = make(case, rng=2).state_dict(), "weight_hh_l0"
    if spoil == "read_only":
        layer.parameters[name].flags.writeable = False
    elif spoil == "shape":
        layer.parameters[name] = np.zeros((1, 1), np.float32)
    else:
        del layer.parameters[name]
    with unchanged(*layer.parameters.values()), pytest.raises(ValueError, match=name):
        layer.load_state_dict(loaded)


def test_parameters_that_only_look_like_arrays(case):
    """Whatever calls take, a copy of the parameters does."""
    layer, other = make(case, rng=0), make(case, rng=0)
    for name, array in layer.parameters.items():
        layer.parameters[name] = memoryview(array)
    x = np.ones((3, 2, 5), np.float32)
    assert_same_bits(layer(x)[0], other(x)[0])
    for name, array in layer.state_dict().items():
        assert type(array) is np.ndarray
        assert_same_bits(array, other.parameters[name], name)
    assert rk.gradcheck(layer, rng=0).ok


@pytest.mark.parametrize(
    "kind",
    [memoryview, lambda a: numbers("f", a), read_only],
    ids=["memoryview", "array", "read_only"],
)
def test_parameters_that_are_no_arrays_are_loaded_or_nothing_is(kind):
    layer, other = rk.RNN(2, 3, rng=0), rk.RNN(2, 3, rng=1)
    layer.parameters["bias_hh_l0"] = kind(layer.parameters["bias_hh_l0"].copy())
    before = layer.state_dict()
    wanted = other.state_dict()
    if kind is read_only:
        wanted = before
        with pytest.raises(ValueError, match="bias_hh_l0.*writable"):
            layer.load_state_dict(other.state_dict())
    else:
        layer.load_state_dict(other.state_dict())
    for name, value in layer.state_dict().items():
        assert_same_bits(value, wanted[name], name)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="address space has no limit")
def test_so_many_layers_are_refused_before_they_are_named():
    script = """
import resource
import pytest
import rnnkernel as rk
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, -1))
for count in (10**9, 2**62, 2**70):
    for cell in (rk.RNN, rk.LSTM):
        with pytest.raises(MemoryError, match="^num_layers: "):
            cell(3, 4, count)
"""
    run_script(script, timeout=30)


@SETS_SHAPES
@pytest.mark.parametrize("training", [False, True])
def test_parameters_that_get_another_shape_while_x_is_asked(training):
    layer, x = rk.RNN(3, 4, rng=0), np.ones((2, 3, 3), np.float32)

    class Asked:
        def __array__(self, *_, **__):
            layer.parameters["weight_hh_l0"].shape = (1, 16)
            return x

    expected = layer(x)[0]
    assert_same_bits(layer.forward(Asked(), training=training).y, expected)
    with pytest.raises(ValueError, match="weight_hh_l0"):
        layer(x)

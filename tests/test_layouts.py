"""Arrays of every make and layout are taken as they are, and what belongs to whom afterwards."""

import warnings
from dataclasses import replace

import numpy as np
import pytest

import rnnkernel as rk
from drawn import SMALL, draw, reference_outputs
from helpers import (
    assert_same_bits,
    assert_same_outputs,
    construct,
    layer_outputs,
    layer_state,
    make_layer,
    named_outputs,
    problem_arrays,
    read_only,
    run_backward,
    run_forward,
    unchanged,
)
from tolerances import assert_output_close

T, N, I, H = SMALL  # noqa: E741


def misaligned(array):
    """At an odd address."""
    memory = np.zeros(array.nbytes + 1, np.uint8)[1:]
    view = memory.view(array.dtype).reshape(array.shape)
    view[...] = array
    assert not view.flags.aligned
    return view


def field_of_records(array):
    """Strides that are no multiple of the element's size."""
    records = np.zeros(array.shape, [("tag", "u1"), ("value", array.dtype)])
    records["value"] = array
    assert records["value"].strides[-1] % array.itemsize
    return records["value"]


def spread(array):
    """Every second element of a larger array, along every axis."""
    larger = np.full([2 * size + 1 for size in array.shape], np.nan, array.dtype)
    view = larger[(slice(0, -1, 2),) * array.ndim]
    view[...] = array
    return view


def backwards(array):
    return np.ascontiguousarray(np.flip(array))[(slice(None, None, -1),) * array.ndim]


class WithDLPack:
    """Has the two methods of the protocol and nothing else."""

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **arguments):
        return self._array.__dlpack__(**arguments)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


class WithArrayInterface:
    def __init__(self, array):
        self._array = array
        self.__array_interface__ = array.__array_interface__


VIEWS = [
    pytest.param(spread, id="strided"),
    pytest.param(backwards, id="backwards"),
    pytest.param(np.asfortranarray, id="fortran"),
    pytest.param(lambda a: np.ascontiguousarray(a.swapaxes(0, 1)).swapaxes(0, 1), id="swapped"),
    pytest.param(lambda a: read_only(a.copy()), id="read_only"),
    pytest.param(misaligned, id="misaligned"),
    pytest.param(field_of_records, id="field_of_records"),
    pytest.param(lambda a: a.view(np.ndarray).view(type("Sub", (np.ndarray,), {})), id="subclass"),
    pytest.param(WithDLPack, id="dlpack"),
    pytest.param(WithArrayInterface, id="array_interface"),
]


@pytest.mark.parametrize("view", VIEWS)
def test_every_array_may_be_any_view(problem, layer, view):
    case = problem.case
    expected, _ = layer_outputs(problem, layer)
    x, dy = view(problem.x), view(problem.dy)
    state = case.pack([view(s[None]) for s in problem.states])
    dstate = case.pack([view(s[None]) for s in problem.dstates])
    with unchanged(*problem_arrays(problem)):
        out = layer.forward(x, state, training=True)
        grads = layer.backward(out, dy, dstate)
    assert_same_outputs(named_outputs(case, out, grads), expected)
    assert type(out.y) is type(grads.x) is np.ndarray


def test_views_are_not_written(problem, layer):
    """Nor what lies between a view's elements."""
    x, dy = spread(problem.x), spread(problem.dy)
    with unchanged(x.base, dy.base):
        out = layer.forward(x, training=True)
        layer.backward(out, dy)


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1), (0, 1, 2)], ids=str)
def test_broadcast_arrays(case, dtype, axes):
    problem = draw(case, T, N, I, H, dtype=dtype)
    layer = make_layer(problem)

    def along(array):
        first = array[tuple(slice(0, 1) if k in axes else slice(None) for k in range(3))]
        return np.broadcast_to(first, array.shape)

    out = layer.forward(along(problem.x), training=True)
    grads = layer.backward(out, along(problem.dy))
    out_copy = layer.forward(along(problem.x).copy(), training=True)
    grads_copy = layer.backward(out_copy, along(problem.dy).copy())
    actual, expected = named_outputs(case, out, grads), named_outputs(case, out_copy, grads_copy)
    if 0 in axes:  # constant in time: dgates are summed first
        problem = replace(
            problem,
            x=along(problem.x),
            dy=along(problem.dy),
            states=tuple(np.zeros_like(s) for s in problem.states),
            dstates=None,
        )
        reference, _ = reference_outputs(problem.astype(np.float64))
        name = "d_weight_ih"
        assert_output_close(actual.pop(name), reference[name], name, problem)
        del expected[name]
    assert_same_outputs(actual, expected)


def test_a_swapped_byte_order_is_never_misread(problem, layer):
    """Refused, or read right."""
    expected, _ = layer(problem.x)
    swapped = problem.x.astype(problem.dtype.newbyteorder())
    try:
        y, _ = layer(swapped)
    except TypeError as error:
        assert "x" in str(error)
    else:
        assert_same_bits(y, expected)


@pytest.mark.parametrize(
    "view",
    [spread, backwards, np.asfortranarray, misaligned, field_of_records],
    ids=lambda v: v.__name__,
)
@pytest.mark.parametrize("training", [False, True])
def test_out_of_every_make(problem, layer, view, training):
    """Written through its strides, or refused with nothing written."""
    expected, _ = layer(problem.x)
    out = view(np.full((T, N, H), 7, problem.dtype))
    try:
        result = layer.forward(problem.x, out=out, training=training)
    except ValueError as error:
        assert "out" in str(error)
        assert (out == 7).all()
    else:
        assert_same_bits(out, expected)
        assert_same_bits(result.y, expected)


def test_out_is_not_written_between_its_elements(problem, layer):
    larger = np.full((T, 2 * N, 2 * H), 7, problem.dtype)
    layer.forward(problem.x, out=larger[:, ::2, :H])
    assert (larger[:, 1::2] == 7).all()
    assert (larger[:, :, H:] == 7).all()


def test_batch_first(problem, layer):
    case = problem.case
    expected, _ = layer_outputs(problem, layer)
    transposed = make_layer(problem, batch_first=True)
    for copy in (np.ascontiguousarray, np.asarray):
        x, dy = copy(problem.x.swapaxes(0, 1)), copy(problem.dy.swapaxes(0, 1))
        out = transposed.forward(x, layer_state(case, problem.states), training=True)
        assert out.y.shape == (N, T, H)
        grads = transposed.backward(out, dy, layer_state(case, problem.dstates))
        assert grads.x.shape == (N, T, I)
        outputs = named_outputs(case, out, grads)
        outputs |= {name: outputs[name].swapaxes(0, 1) for name in ("y", "dx")}
        assert_same_outputs(outputs, expected)
        y, _ = transposed(x, layer_state(case, problem.states))
        assert_same_bits(y.swapaxes(0, 1), expected["y"])


def test_batch_first_out(problem, layer):
    expected, _ = layer(problem.x)
    y = np.zeros((N, T, H), problem.dtype)
    make_layer(problem, batch_first=True).forward(problem.x.swapaxes(0, 1), out=y)
    assert_same_bits(y.swapaxes(0, 1), expected)


@pytest.mark.parametrize("batch_first", [False, True])
def test_unbatched(problem, batch_first):
    """(T, I) either way; states (1, H)."""
    case = problem.case
    layer = make_layer(problem, batch_first=batch_first)
    one = draw(case, T, 1, I, H, dtype=problem.dtype)
    expected, _ = layer_outputs(one, make_layer(problem))
    states, dstates = case.pack(one.states), case.pack(one.dstates)

    out = layer.forward(one.x[:, 0], states, training=True)
    assert out.y.shape == (T, H)
    grads = layer.backward(out, one.dy[:, 0], dstates)
    assert grads.x.shape == (T, I)
    assert_same_bits(out.y, expected["y"][:, 0])
    assert_same_bits(grads.x, expected["dx"][:, 0])
    for name, s, ds in zip(
        case.states, case.unpack(out.state), case.unpack(grads.state), strict=True
    ):
        assert s.shape == ds.shape == (1, H)
        assert_same_bits(s, expected[name])
        assert_same_bits(ds, expected[f"d{name}0"])
    for name, g in grads.parameters.items():
        assert_same_bits(g, expected["d_" + name.removesuffix("_l0")])
    y, _ = layer(one.x[:, 0], states)
    assert_same_bits(y, out.y)


def test_nothing_of_the_callers_is_written(problem, layer):
    with unchanged(*layer.parameters.values(), *problem_arrays(problem)):
        layer_outputs(problem, layer, clip=rk.Clip(value=0.1, norm=0.2), flow=True)
        layer(problem.x, layer_state(problem.case, problem.states))


def test_results_share_no_memory_with_arguments(problem, layer):
    out = run_forward(problem, layer)
    grads = run_backward(problem, layer, out)
    case = problem.case
    results = [*case.unpack(out.state), grads.x, *case.unpack(grads.state)]
    results += grads.parameters.values()
    for result in results:
        assert result.flags.writeable
        for given in (*problem_arrays(problem), *layer.parameters.values(), out.y):
            assert not np.shares_memory(result, given)
    # The final state of a short sequence is the most tempting to alias.
    y, state = layer(problem.x[:1])
    assert not any(np.shares_memory(y, s) for s in case.unpack(state))


def test_y_of_training_is_read_only(problem, layer):
    """BPTT needs it as it was."""
    out = run_forward(problem, layer)
    with pytest.raises(ValueError):
        out.y[0] = 0
    y, _ = layer(problem.x)
    y[0] = 0  # the caller's own


def set_shape(array, shape):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # NumPy's, from 2.5 on
        array.shape = shape


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lengths": [6, 0, 3, 5]},
        {"checkpoint_every": 2},
        {"trace": True},
        {"reset": np.zeros((6, 4), bool)},
    ],
    ids=str,
)
@pytest.mark.parametrize("layers", [1, 2])
def test_shapes_that_the_caller_sets_after_forward(case, layers, options):
    """As to hand y to a readout: what backward reads is not the caller's array."""
    below, layer = construct(case, 3, 5, rng=1), construct(case, 5, 5, layers, rng=0)
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((6, 4, n)).astype(np.float32) for n in (3, 5))
    x.flags.writeable = False

    def train(change):
        first = below.forward(x, training=True)
        out = layer.forward(first.y, training=True, **options)
        if change:
            set_shape(first.y, (24, 5))
            set_shape(out.y, (1, 24, 5))
            set_shape(x, (24, 3))
        grads = layer.backward(out, dy)
        of_below = below.backward(first, grads.x)
        set_shape(x, (6, 4, 3))
        traced = [array for one in out.trace or () for array in one.values()]
        return [*grads.parameters.values(), *of_below.parameters.values(), of_below.x, *traced]

    for found, expected in zip(train(True), train(False), strict=True):
        assert_same_bits(found, expected)

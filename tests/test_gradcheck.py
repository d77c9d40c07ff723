"""gradcheck passes what is right, names what is wrong, and touches nothing."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest

import rnnkernel as rk
from rnnkernel import numpy_reference
from rnnkernel.gradcheck import GradcheckReport, GradientError

LAYERS = {
    "rnn-tanh": lambda **k: rk.RNN(3, 5, rng=1, **k),
    "rnn-relu": lambda **k: rk.RNN(3, 5, rng=1, nonlinearity="relu", **k),
    "gru-after": lambda **k: rk.GRU(3, 5, rng=1, **k),
    "gru-before": lambda **k: rk.GRU(3, 5, rng=1, reset_after=False, **k),
    "lstm": lambda **k: rk.LSTM(3, 5, rng=1, **k),
}


@pytest.fixture(params=LAYERS.values(), ids=LAYERS.keys())
def make(request):
    return request.param


@pytest.mark.parametrize(
    "keywords", [{}, {"bias": False}, {"batch_first": True}, {"dtype": np.float64}], ids=str
)
def test_right_gradients_pass(make, keywords):
    layer = make(**keywords)
    report = rk.gradcheck(layer)
    assert isinstance(report, GradcheckReport)
    assert report.ok
    states = ["h", "c"] if isinstance(layer, rk.LSTM) else ["state"]
    assert list(report.errors) == ["x", *states, *layer.parameters]
    assert max(report.errors.values()) == report.worst.error < 1e-7
    assert report.checked["x"] == 5 * 3 * 3
    assert "ok" in str(report) and report.worst.array in str(report)


@pytest.mark.parametrize(
    "keywords",
    [
        {"num_layers": 3},
        {"bidirectional": True, "batch_first": True},
        {"num_layers": 2, "bidirectional": True},
    ],
    ids=str,
)
def test_stacks_and_directions(make, keywords):
    layer = make(**keywords)
    report = rk.gradcheck(layer, max_entries=30)
    for name, array in layer.parameters.items():
        assert report.checked[name] == min(30, array.size)


LENGTHS = np.array([5, 0, 2, 3])
RESET = np.random.default_rng(0).random((6, 4)) < 0.4


@pytest.mark.parametrize("batch_first", [False, True])
def test_lengths_and_resets(make, batch_first):
    layer = make(num_layers=2, bidirectional=True, batch_first=batch_first)
    reset = RESET.T if batch_first else RESET
    for inputs in ({"lengths": LENGTHS}, {"reset": reset}, {"lengths": LENGTHS, "reset": reset}):
        report = rk.gradcheck(layer, max_entries=8, **inputs)
        assert report.checked["x"] == 8
    assert rk.gradcheck(make(), lengths=LENGTHS).checked["x"] == 5 * 4 * 3
    assert rk.gradcheck(make(), lengths=LENGTHS + 6).checked["x"] == 11 * 4 * 3
    assert rk.gradcheck(make(), reset=RESET).checked["x"] == 6 * 4 * 3


def test_what_stands_past_an_end_is_left_out(make):
    x = np.random.default_rng(1).standard_normal((5, 4, 3))
    x[np.arange(5)[:, None] >= LENGTHS] = np.nan
    assert rk.gradcheck(make(), x, lengths=LENGTHS).checked["x"] == LENGTHS.sum() * 3


def test_token_ids_and_embeddings(make):
    layer = make(bidirectional=True)
    embedding = np.random.default_rng(2).standard_normal((6, 3))
    report = rk.gradcheck(layer, embedding=embedding, lengths=LENGTHS, max_entries=20)
    assert "x" not in report.errors
    assert report.checked["embedding"] == 18
    ids = np.random.default_rng(3).integers(0, 3, (4, 2))
    assert "x" not in rk.gradcheck(layer, ids, max_entries=8).errors


@pytest.mark.parametrize(
    "inputs", [{"lengths": LENGTHS}, {"reset": RESET}], ids=["length", "reset"]
)
def test_ignoring_an_input_is_caught(inputs):
    class Deaf(rk.GRU):
        """Whose training forgets what inference minds."""

        def forward(self, x, state=None, *, training=False, **given):
            given = {} if training else given
            return super().forward(x, state, training=training, **given)

    with pytest.raises(GradientError):
        rk.gradcheck(Deaf(3, 5, rng=1), **inputs)


@pytest.mark.parametrize(
    "clip", [{"value": 0.3}, {"norm": 0.4}, {"value": 0.5, "norm": 0.6}], ids=str
)
@pytest.mark.parametrize("batch_first", [False, True])
def test_right_clipped_gradients_pass(make, clip, batch_first):
    layer = make(batch_first=batch_first)
    clip = rk.Clip(**clip)
    x = np.random.default_rng(1).standard_normal((2, 4, 3) if batch_first else (4, 2, 3))
    assert rk.gradcheck(layer, x, clip=clip).ok

    # And the clip did clip: unclipped gradients are not these.
    def backward_without_clip(self, out, dy, dstate, *, clip):
        return type(layer).backward(self, out, dy, dstate)

    unclipped = type(type(layer).__name__, (type(layer),), {"backward": backward_without_clip})
    other = unclipped(layer.input_size, layer.hidden_size, dtype=np.float64, rng=1, **layer.options)
    with pytest.raises(GradientError):
        rk.gradcheck(other, x, clip=clip)


BOTH = rk.Clip(value=0.5, norm=0.6)


@pytest.mark.parametrize(
    "keywords",
    [{"num_layers": 2}, {"bidirectional": True, "batch_first": True}],
    ids=str,
)
def test_clipped_gradients_of_stacks_and_directions(make, keywords):
    layer = make(**keywords)
    reset = RESET.T if layer.batch_first else RESET
    for inputs in ({}, {"lengths": LENGTHS}, {"reset": reset}):
        report = rk.gradcheck(layer, clip=BOTH, max_entries=12, **inputs)
        assert report.checked["x"] == 12
    assert rk.gradcheck(layer, np.zeros((4, 3)), clip=BOTH, max_entries=12).ok  # unbatched


@pytest.mark.parametrize("bidirectional", [False, True])
def test_clipped_gradients_of_lengths_resets_and_ids_together(make, bidirectional):
    layer = make(num_layers=2, bidirectional=bidirectional)
    how = {"lengths": LENGTHS, "reset": RESET, "clip": BOTH, "max_entries": 12}
    x = np.random.default_rng(1).standard_normal((6, 4, 3))
    x[np.arange(6)[:, None] >= LENGTHS] = np.nan
    assert rk.gradcheck(layer, x, **how).checked["x"] == 12
    embedding = np.random.default_rng(2).standard_normal((7, 3))
    assert rk.gradcheck(layer, embedding=embedding, **how).checked["embedding"] == 12
    ids = np.random.default_rng(3).integers(0, 3, (6, 4))
    ids[np.arange(6)[:, None] >= LENGTHS] = -1
    assert "x" not in rk.gradcheck(layer, ids, **how).errors


@pytest.mark.parametrize("keywords", [{"num_layers": 2}, {"bidirectional": True}], ids=str)
@pytest.mark.parametrize(
    "clip", [{"value": 0.3}, {"norm": 0.4}, {"value": 0.5, "norm": 0.6}], ids=str
)
def test_another_clip_than_that_asked_for_is_caught(make, keywords, clip):
    """None, and one that is a thousandth wider, of a stack's gradients."""
    right = type(make())

    def other(change):
        class Other(right):
            def backward(self, out, dy, dstate, *, clip):
                return super().backward(out, dy, dstate, clip=change(clip))

        return Other(3, 5, rng=1, **keywords)

    def wider(c):
        return rk.Clip(*(limit and limit * 1.001 for limit in (c.value, c.norm)))

    rk.gradcheck(other(lambda c: c), clip=rk.Clip(**clip), max_entries=30)
    for change in (lambda c: None, wider):
        with pytest.raises(GradientError):
            rk.gradcheck(other(change), clip=rk.Clip(**clip), max_entries=30)


def test_what_is_no_layer_or_no_clip_is_refused():
    layer = rk.RNN(3, 5)
    for wrong in (layer.freeze(), rk.Linear(3, 5), None):
        with pytest.raises(TypeError, match="layer: expected an RNN, GRU or LSTM, got"):
            rk.gradcheck(wrong)
    with pytest.raises(TypeError, match="clip: expected a Clip"):
        rk.gradcheck(layer, clip=0.5)


@pytest.mark.parametrize("name", ["x", "h", "c", "weight_ih_l0", "weight_hh_l0", "bias_hh_l0"])
def test_a_wrong_entry_is_caught_and_named(monkeypatch, name):
    layer = rk.LSTM(3, 5, rng=1)
    right = rk.LSTM.backward

    def wrong(self, *args, **kwargs):
        gradients = right(self, *args, **kwargs)
        arrays = {"x": gradients.x, "h": gradients.state[0], "c": gradients.state[1]}
        arrays = {k: np.array(a) for k, a in (arrays | gradients.parameters).items()}
        largest = np.unravel_index(np.abs(arrays[name]).argmax(), arrays[name].shape)
        arrays[name][largest] *= 1 + 1e-5
        wrong.index = tuple(map(int, largest))
        return SimpleNamespace(
            x=arrays.pop("x"), state=(arrays.pop("h"), arrays.pop("c")), parameters=arrays
        )

    monkeypatch.setattr(rk.LSTM, "backward", wrong)
    with pytest.raises(GradientError) as caught:
        rk.gradcheck(layer)
    assert f"{name}{list(wrong.index)}" in str(caught.value)
    assert isinstance(caught.value, AssertionError)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_is_caught(monkeypatch, value):
    right = rk.RNN.backward

    def wrong(self, *args, **kwargs):
        gradients = right(self, *args, **kwargs)
        parameters = {k: np.array(a) for k, a in gradients.parameters.items()}
        parameters["weight_hh_l0"][1, 2] = value
        return SimpleNamespace(x=gradients.x, state=gradients.state, parameters=parameters)

    monkeypatch.setattr(rk.RNN, "backward", wrong)
    with pytest.raises(GradientError, match=r"weight_hh_l0\[1, 2\]"):
        rk.gradcheck(rk.RNN(3, 5))


def test_a_gradient_of_the_wrong_shape_is_caught(monkeypatch):
    right = rk.RNN.backward

    def wrong(self, *args, **kwargs):
        g = right(self, *args, **kwargs)
        return SimpleNamespace(x=g.x[:1], state=g.state, parameters=g.parameters)

    monkeypatch.setattr(rk.RNN, "backward", wrong)
    with pytest.raises(GradientError, match=r"x: .*\(5, 3, 3\).*\(1, 3, 3\)"):
        rk.gradcheck(rk.RNN(3, 5))


def test_the_users_data_is_checked_and_left_alone():
    rng = np.random.default_rng(1)
    layer = rk.GRU(3, 5, rng=rng)
    x = rng.standard_normal((2, 4, 3)).astype(np.float32)
    state = rng.standard_normal((1, 4, 5)).astype(np.float32)
    kept = [a.copy() for a in (x, state)] + list(layer.state_dict().values())
    x.flags.writeable = state.flags.writeable = False
    report = rk.gradcheck(layer, x, state)
    assert report.checked["x"] == x.size
    assert report.checked["state"] == state.size
    for array, before in zip((x, state, *layer.parameters.values()), kept, strict=True):
        np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize(
    ("inputs", "error", "name"),
    [
        ({"lengths": []}, ValueError, "lengths"),
        ({"lengths": "ab"}, TypeError, "lengths"),
        ({"lengths": [2**62]}, MemoryError, "x"),
        ({"embedding": np.float64(5)}, ValueError, "embedding"),
        ({"embedding": np.zeros((0, 3))}, ValueError, "embedding"),
        ({"reset": True}, ValueError, "reset"),
    ],
)
def test_bad_inputs_are_named(inputs, error, name):
    with pytest.raises(error, match=f"^{name}: "):
        rk.gradcheck(rk.LSTM(3, 2, rng=0), **inputs)


def test_a_class_of_the_user_s():
    class Mine(rk.GRU):
        def __init__(self, size):
            super().__init__(size, size, rng=0)

    assert rk.gradcheck(Mine(3)).ok


def test_large_arrays_are_sampled():
    report = rk.gradcheck(rk.RNN(30, 20, rng=1), np.zeros((1, 2, 30)))
    assert report.checked["weight_ih_l0"] == 200
    assert report.checked["x"] == 60


def test_as_many_entries_as_wanted():
    report = rk.gradcheck(rk.RNN(30, 20, rng=1), max_entries=7)
    assert set(report.checked.values()) == {7}
    with pytest.raises(ValueError, match="max_entries"):
        rk.gradcheck(rk.RNN(2, 2), max_entries=0)


def test_the_report_of_a_failure_comes_with_the_error():
    class Wrong(rk.RNN):
        def backward(self, *args, **kwargs):
            gradients = super().backward(*args, **kwargs)
            gradients.parameters["bias_hh_l0"][1] += 1
            return gradients

    with pytest.raises(GradientError) as caught:
        rk.gradcheck(Wrong(3, 5, rng=1))
    report = caught.value.report
    assert not report.ok
    assert (report.worst.array, report.worst.index) == ("bias_hh_l0", (1,))
    assert report.worst.analytic - report.worst.numeric == pytest.approx(1, abs=1e-6)
    assert "FAILED" in str(report) and str(report.worst) in str(caught.value)


def test_the_same_seed_gives_the_same_report():
    layer = rk.RNN(20, 30, rng=1)
    first, same, other = (rk.gradcheck(layer, rng=seed) for seed in (3, 3, 4))
    assert first == same != other


def test_reports_are_frozen():
    report = rk.gradcheck(rk.RNN(2, 2, rng=1))
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.tolerance = 1.0


@pytest.mark.parametrize("name", ["eps", "tolerance"])
@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf])
def test_bad_settings_are_rejected(name, value):
    with pytest.raises(ValueError, match=f"{name}.*positive"):
        rk.gradcheck(rk.RNN(2, 2), **{name: value})


# --- the NumPy reference that the package carries -------------------------------------------------


def in_numpy(layer):
    """``layer`` with its arithmetic done by rnnkernel.numpy_reference."""

    class InNumPy(type(layer)):
        def __call__(self, x, state=None):
            y, state, _ = numpy_reference.forward(self, x, state)
            return y, state

        def forward(self, x, state=None, *, training):
            return numpy_reference.forward(self, x, state)

        def backward(self, out, dy, dstate, *, clip):
            return numpy_reference.backward(out[2], dy, dstate, clip=clip)

    InNumPy.__name__ = type(layer).__name__
    return InNumPy(layer.input_size, layer.hidden_size, dtype=np.float64, **layer.options)


@pytest.mark.parametrize("bias", [True, False])
def test_the_numpy_reference_has_the_gradients_of_the_differences(make, bias):
    assert rk.gradcheck(in_numpy(make(bias=bias))).ok


def test_the_numpy_reference_agrees_with_the_kernels(make, dtype):
    layer = make(dtype=dtype)
    rng = np.random.default_rng(1)
    x, dy = (rng.standard_normal((4, 2, size)).astype(dtype) for size in (3, 5))
    out = layer.forward(x, training=True)
    gradients = layer.backward(out, dy)
    y, state, tape = numpy_reference.forward(layer, x)
    expected = numpy_reference.backward(tape, dy)

    def parts(value):
        return value if isinstance(value, tuple) else (value,)

    close = {"rtol": 0, "atol": 50 * np.finfo(dtype).eps}
    np.testing.assert_allclose(y, out.y, **close)
    np.testing.assert_allclose(expected.x, gradients.x, **close)
    for got, wanted in zip(parts(state), parts(out.state), strict=True):
        np.testing.assert_allclose(got, wanted, **close)
    for got, wanted in zip(parts(expected.state), parts(gradients.state), strict=True):
        np.testing.assert_allclose(got, wanted, **close)
    assert expected.parameters.keys() == gradients.parameters.keys()
    for name, got in expected.parameters.items():
        assert got.dtype == dtype
        np.testing.assert_allclose(got, gradients.parameters[name], **close, err_msg=name)


def test_the_numpy_reference_says_what_it_cannot():
    with pytest.raises(ValueError, match="expected an RNN, GRU or LSTM, got SimpleNamespace"):
        numpy_reference.forward(SimpleNamespace(options={}), np.zeros((1, 1, 1)))


class Exchanged:
    """An array that can be come to by __dlpack__ alone."""

    def __init__(self, array):
        self.__dlpack__, self.__dlpack_device__ = array.__dlpack__, array.__dlpack_device__


def test_it_takes_what_the_layer_takes(make):
    layer = make()
    x = np.random.default_rng(0).standard_normal((4, 2, 3))
    expected = rk.gradcheck(layer, x, rng=3)
    for given in (Exchanged(x), memoryview(x), x.tolist(), np.ma.masked_array(x)):
        assert rk.gradcheck(layer, given, rng=3).errors == expected.errors
    for bad in ([[1.0, 2.0], [3.0]], object(), "x"):
        with pytest.raises((TypeError, ValueError), match="^x: expected"):
            rk.gradcheck(layer, bad)


def test_bad_parameters_are_named_as_calls_name_them(make):
    layer = make()
    layer.parameters["bias_ih_l0"] = layer.parameters["bias_ih_l0"].astype(np.float64)
    with pytest.raises(TypeError, match=r"^parameters\['bias_ih_l0'\]"):
        rk.gradcheck(layer)
    layer.parameters["bias_ih_l0"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match=r"^parameters\['bias_ih_l0'\]"):
        rk.gradcheck(layer)

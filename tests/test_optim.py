"""Adam against its formula, written down once more in float64."""

import math
import warnings

import numpy as np
import pytest

import rnnkernel as rk

SHAPES = {"weight": (4, 3), "bias": (4,), "scalar": ()}


def draw(seed, dtype=np.float64, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    # 0-d results of Generator methods are scalars, not arrays.
    return {k: np.asarray(rng.standard_normal(s)).astype(dtype) for k, s in shapes.items()}


def adam_formula(p, gradients, lr, beta1, beta2, eps, weight_decay):
    """The parameter after all ``gradients``, as in Kingma & Ba (2015), algorithm 1."""
    m = v = np.zeros_like(p)
    for t, g in enumerate(gradients, start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
        p = p - lr * m_hat / (np.sqrt(v_hat) + eps) - lr * weight_decay * p
    return p


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"lr": 0.1, "betas": (0.5, 0.9)},
        {"betas": (0.0, 0.0)},
        {"eps": 0.1},
        {"weight_decay": 0.3, "lr": 0.01},
    ],
    ids=str,
)
def test_adam_is_its_formula(dtype, settings):
    parameters = draw(0, dtype)
    start = {k: p.astype(np.float64) for k, p in parameters.items()}
    gradients = [draw(t, dtype) for t in range(1, 8)]
    adam = rk.Adam(parameters, **settings)
    for gradient in gradients:
        adam.step(gradient)
    assert adam.steps == 7

    full = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0} | settings
    beta1, beta2 = full.pop("betas")
    for name, p in parameters.items():
        history = [g[name].astype(np.float64) for g in gradients]
        expected = adam_formula(start[name], history, beta1=beta1, beta2=beta2, **full)
        assert p.dtype == dtype
        np.testing.assert_allclose(p, expected, rtol=0, atol=50 * np.finfo(dtype).eps, err_msg=name)


def test_the_first_step_is_lr_against_the_sign_of_the_gradient():
    parameters, gradients = draw(0), draw(1)
    start = {k: p.copy() for k, p in parameters.items()}
    rk.Adam(parameters, lr=0.5, eps=0).step(gradients)
    for name, p in parameters.items():
        np.testing.assert_allclose(p, start[name] - 0.5 * np.sign(gradients[name]), rtol=1e-12)


@pytest.mark.parametrize("eps", [0, 1e-50, 1e-44])  # of which float32 has two as 0
def test_without_gradient_and_eps_there_is_no_step(eps, dtype):
    parameters = draw(0, dtype)
    start = {k: p.copy() for k, p in parameters.items()}
    adam = rk.Adam(parameters, eps=eps)
    for _ in range(2):
        adam.step({k: np.zeros_like(p) for k, p in parameters.items()})
    for name, p in parameters.items():
        np.testing.assert_array_equal(p, start[name])


def test_weight_decay_does_not_pass_through_the_moments():
    parameters = draw(0)
    start = {k: p.copy() for k, p in parameters.items()}
    rk.Adam(parameters, lr=0.1, weight_decay=0.5).step(
        {k: np.zeros_like(p) for k, p in parameters.items()}
    )
    for name, p in parameters.items():
        np.testing.assert_allclose(p, 0.95 * start[name], rtol=1e-15)


def test_the_learning_rate_can_change_between_steps():
    parameters, gradients = draw(0), draw(1)
    adam = rk.Adam(parameters, lr=0.5)
    adam.lr = 0.0
    start = {k: p.copy() for k, p in parameters.items()}
    adam.step(gradients)
    for name, p in parameters.items():
        np.testing.assert_array_equal(p, start[name])
    adam.lr = math.nan
    with pytest.raises(ValueError, match="lr"):
        adam.step(gradients)
    assert adam.steps == 1


@pytest.mark.parametrize(
    "name, value", [("betas", (0.9, 1.5)), ("betas", 3), ("eps", -1), ("weight_decay", "1")]
)
def test_a_bad_setting_between_steps_changes_nothing(name, value):
    parameters, gradients = draw(0), draw(1)
    adam = rk.Adam(parameters)
    start = {k: p.copy() for k, p in parameters.items()} | adam.state_dict()
    setattr(adam, name, value)
    with pytest.raises((TypeError, ValueError), match=name):
        adam.step(gradients)
    for key, array in (parameters | adam.state_dict()).items():
        np.testing.assert_array_equal(array, start[key])
    adam.steps = -1
    with pytest.raises(ValueError, match="steps"):
        adam.load_state_dict(adam.state_dict())


def test_a_list_of_dicts_is_the_same_as_one_dict():
    one, first, second = draw(0), draw(0), draw(5, shapes={"weight": (2,), "other": (6, 1)})
    two = {k: p.copy() for k, p in second.items()}
    single, single_two, both = rk.Adam(one), rk.Adam(two), rk.Adam([first, second])
    for t in range(3):
        a, b = draw(10 + t), draw(20 + t, shapes={"weight": (2,), "other": (6, 1)})
        single.step(a)
        single_two.step(b)
        both.step([a, b])
    for expected, got in ((one, first), (two, second)):
        for name, p in expected.items():
            np.testing.assert_array_equal(got[name], p)


@pytest.mark.parametrize("as_list", [False, True])
def test_training_goes_on_from_a_file(as_list, tmp_path):
    """With the numbers of training that did not stop."""
    parameters, twin = draw(0), {}
    adam = rk.Adam([parameters] if as_list else parameters, lr=0.1)

    def step(optimizer, seed):
        optimizer.step([draw(seed)] if as_list else draw(seed))

    for seed in (1, 2, 3):
        step(adam, seed)
    twin.update((name, p.copy()) for name, p in parameters.items())
    np.savez(tmp_path / "adam.npz", **adam.state_dict())
    again = rk.Adam([twin] if as_list else twin, lr=0.1)
    with np.load(tmp_path / "adam.npz") as kept:
        assert len(kept) == 1 + 2 * len(parameters)
        again.load_state_dict(kept)
    assert again.steps == 3
    for seed in (4, 5):
        step(adam, seed)
        step(again, seed)
    for name, p in parameters.items():
        np.testing.assert_array_equal(twin[name], p)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda s: s.pop("steps"), ValueError, "state_dict: .*missing: steps"),
        (lambda s: s.update(more=s["steps"]), ValueError, "state_dict: .*unknown: more"),
        (lambda s: s.update(steps=np.array(-1)), ValueError, r"state_dict\['steps'\].*-1"),
        (
            lambda s: s.update(steps=np.array(2**63 - 1)),
            ValueError,
            r"state_dict\['steps'\].*2\*\*62",
        ),
        (
            lambda s: s.update({"square.bias": -s["square.bias"]}),
            ValueError,
            r"state_dict\['square.bias'\].*negative",
        ),
        (lambda s: s.update(steps=np.array(1.5)), TypeError, r"state_dict\['steps'\].*float64"),
        (
            lambda s: s.update({"square.scalar": np.zeros(2)}),
            ValueError,
            r"state_dict\['square.scalar'\].*\(2,\)",
        ),
        (
            lambda s: s.update({"mean.scalar": np.float32(0)}),
            TypeError,
            r"state_dict\['mean.scalar'\].*float32",
        ),
    ],
)
def test_a_bad_state_changes_nothing(change, error, words):
    adam = rk.Adam(draw(0))
    adam.step(draw(1))
    before, state = adam.state_dict(), {name: 2 * a for name, a in adam.state_dict().items()}
    change(state)
    with pytest.raises(error, match=words):
        adam.load_state_dict(state)
    after = adam.state_dict()
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)


def test_arrays_of_any_strides_are_updated_in_place():
    whole, plain = np.zeros((6, 8)), np.zeros((4, 3))
    gradient = draw(1)["weight"]
    rk.Adam({"w": whole[1:5, ::3]}).step({"w": gradient})
    rk.Adam({"w": plain}).step({"w": gradient})
    np.testing.assert_array_equal(whole[1:5, ::3], plain)
    whole[1:5, ::3] = 0
    assert not whole.any()


def test_gradients_are_only_read():
    gradients = draw(1)
    for g in gradients.values():
        g.flags.writeable = False
    rk.Adam(draw(0), weight_decay=0.1).step(gradients)


def test_parameters_of_layers_are_trained():
    layer, readout = rk.GRU(3, 4, rng=1), rk.Linear(4, 2, rng=1)
    adam = rk.Adam([layer.parameters, readout.parameters])
    before = layer.state_dict() | readout.state_dict()
    adam.step(
        [{k: np.ones_like(p) for k, p in group.items()} for group in
         (layer.parameters, readout.parameters)]
    )  # fmt: skip
    after = layer.state_dict() | readout.state_dict()
    for name, array in before.items():
        np.testing.assert_allclose(after[name], array - 1e-3, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "change, error, words",
    [
        (lambda g: g.pop("bias"), ValueError, "gradients.*bias"),
        (lambda g: g.update(more=g["bias"]), ValueError, "gradients.*more"),
        (lambda g: g.update(scalar=np.zeros(1)), ValueError, r"scalar.*\(\).*\(1,\)"),
        (lambda g: g.update(scalar=np.float32(0)), TypeError, "scalar.*float64.*float32"),
        (lambda g: g.update(scalar=None), TypeError, "scalar.*float64.*NoneType"),
    ],
)
def test_a_bad_gradient_changes_nothing(change, error, words):
    parameters, gradients = draw(0), draw(1)
    twin = {k: p.copy() for k, p in parameters.items()}
    adam, expected = rk.Adam(parameters), rk.Adam(twin)
    bad = dict(gradients)
    change(bad)
    with pytest.raises(error, match=words):
        adam.step(bad)
    assert adam.steps == 0
    adam.step(gradients)
    expected.step(gradients)
    for name, p in parameters.items():
        np.testing.assert_array_equal(p, twin[name])


def test_gradients_must_have_the_parameters_structure():
    parameters, gradients = draw(0), draw(1)
    with pytest.raises(TypeError, match="gradients"):
        rk.Adam(parameters).step([gradients])
    with pytest.raises(TypeError, match="gradients"):
        rk.Adam([parameters]).step(gradients)
    with pytest.raises(ValueError, match="gradients: expected 1.*got 2"):
        rk.Adam([parameters]).step([gradients, gradients])
    layer = rk.RNN(1, 2, rng=0)
    out = layer.forward(np.ones((1, 1, 1), np.float32), training=True)
    with pytest.raises(TypeError, match="such as grads.parameters.*got Gradients"):
        rk.Adam(layer.parameters).step(layer.backward(out, out.y))


class Strange(np.ndarray):
    """With arithmetic of its own."""

    def __array_ufunc__(self, *arguments, **keywords):
        raise RuntimeError("no")


def test_a_step_is_whole_whatever_numpy_is_told():
    """That errors are to be raised, or that a gradient is a subclass."""
    parameters = {"a": np.ones(4, np.float32), "b": np.ones(4, np.float32)}
    twin = {name: p.copy() for name, p in parameters.items()}
    large = {"a": np.full(4, 1e-2, np.float32), "b": np.full(4, 1e30, np.float32)}
    adam, expected = rk.Adam(parameters), rk.Adam(twin)
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        adam.step({name: g.view(Strange) for name, g in large.items()})
    expected.step(large)
    for name, p in parameters.items():
        np.testing.assert_array_equal(p, twin[name])
    adam.eps = -1.0
    before = adam.state_dict()
    with pytest.raises(ValueError, match="eps"):
        adam.step(large)
    for name, kept in adam.state_dict().items():
        np.testing.assert_array_equal(kept, before[name])


def test_a_parameter_that_has_become_read_only():
    parameters, gradients = draw(0), draw(1)
    before = {name: p.copy() for name, p in parameters.items()}
    adam = rk.Adam(parameters, betas=np.array([0.9, 0.99]))
    list(parameters.values())[-1].flags.writeable = False
    with pytest.raises(ValueError, match="parameters.*writable"):
        adam.step(gradients)
    assert adam.steps == 0
    for name, p in parameters.items():
        np.testing.assert_array_equal(p, before[name])


@pytest.mark.parametrize(
    "parameters, keywords, error, words",
    [
        (np.zeros(3), {}, TypeError, "parameters.*mapping"),
        ([np.zeros(3)], {}, TypeError, "parameters.*mapping"),
        ({"w": [1.0]}, {}, TypeError, r"parameters\['w'\].*list"),
        ([{"w": np.zeros(3, int)}], {}, TypeError, r"parameters\[0\]\['w'\].*int"),
        ({"w": np.broadcast_to(0.0, 3)}, {}, ValueError, r"parameters\['w'\].*writable"),
        ({}, {"lr": -1}, ValueError, "lr.*-1"),
        ({}, {"lr": math.nan}, ValueError, "lr.*nan"),
        ({}, {"lr": "fast"}, TypeError, "lr.*str"),
        ({}, {"lr": "0.1"}, TypeError, "lr.*str"),
        ({}, {"lr": True}, TypeError, "lr.*bool"),
        ({}, {"lr": 10**400}, ValueError, "lr.*inf"),
        ({}, {"betas": (0.9,)}, ValueError, "betas"),
        ({}, {"betas": 0.9}, ValueError, "betas"),
        ({}, {"betas": np.array(0.9)}, ValueError, "betas"),
        ({}, {"betas": np.ones((2, 2))}, ValueError, "betas"),
        ({}, {"betas": (0.9, 1.0)}, ValueError, r"betas\[1\].*1.0"),
        ({}, {"eps": math.inf}, ValueError, "eps.*inf"),
        ({}, {"weight_decay": -0.1}, ValueError, "weight_decay"),
    ],
)
def test_bad_arguments_are_rejected(parameters, keywords, error, words):
    with pytest.raises(error, match=words):
        rk.Adam(parameters, **keywords)


def test_an_array_given_twice_is_rejected():
    w = np.zeros(3)
    with pytest.raises(ValueError, match=r"parameters\['b'\].*once.*parameters\['a'\]"):
        rk.Adam({"a": w, "b": w})
    with pytest.raises(ValueError, match=r"parameters\['b'\].*once.*parameters\['a'\]"):
        rk.Adam({"a": w[:2], "b": w[1:]})

"""Adam's step and the clipping of finished gradients, as kernels: sizes, threads, numbers that are
not finite or denormal. test_optim.py and test_clipping.py have formulas and arguments."""

import math

import numpy as np
import pytest

import rnnkernel as rk
from helpers import assert_same_bits
from rnnkernel import _teamwork

# remainders of every vector width and of sums of squares; and what several threads share
SIZES = [0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 100, (1 << 14) - 1, (1 << 14) + 1]
SHARED = 300_007


@pytest.fixture(autouse=True)
def teams_cost_nothing(monkeypatch):
    monkeypatch.setattr(_teamwork, "COST", 0.0)


def draw(seed, count, dtype):
    return np.random.default_rng(seed).standard_normal(count).astype(dtype)


def trained(count, dtype, steps=3, threads=None, **settings):
    """The parameter and the moments after some steps."""
    parameter = draw(0, count, dtype)
    adam = rk.Adam({"w": parameter}, lr=0.1, **settings)
    for step in range(1, steps + 1):
        adam.step({"w": draw(step, count, dtype)}, num_threads=threads)
    return {"w": parameter, **adam.state_dict()}


@pytest.mark.parametrize("size", [*SIZES, SHARED])
def test_every_element_has_its_step(size, dtype):
    found = trained(size, dtype, weight_decay=0.2)
    w, m, v = draw(0, size, dtype).astype(float), 0.0, 0.0
    for t in range(1, 4):
        g = draw(t, size, dtype).astype(float)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        step = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        w = w - 0.1 * step - 0.1 * 0.2 * w
    eps = np.finfo(dtype).eps
    for name, expected in (("w", w), ("mean.w", m), ("square.w", v)):
        np.testing.assert_allclose(found[name], expected, rtol=8 * eps, atol=8 * eps, err_msg=name)


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_a_step_has_the_same_bits_on_any_threads(threads, dtype):
    alone, shared = (trained(SHARED, dtype, threads=n) for n in (1, threads))
    for name, expected in alone.items():
        assert_same_bits(shared[name], expected, name)


@pytest.mark.parametrize("size", SIZES[1:])
def test_every_element_is_of_the_norm(size, dtype):
    gradients = {"w": draw(0, size, dtype)}
    before = gradients["w"].astype(float)
    expected = math.sqrt(math.fsum(before**2))
    assert rk.clip_grad_norm(gradients, expected / 3) == pytest.approx(expected, rel=1e-14)
    np.testing.assert_allclose(gradients["w"], before / 3, rtol=2 * np.finfo(dtype).eps)


def test_a_norm_has_the_same_bits_on_any_threads(dtype):
    results = []
    for threads in (1, 2, 3, 7):
        gradients = {"w": draw(0, SHARED, dtype), "b": draw(1, 10, dtype)}
        total = rk.clip_grad_norm(gradients, 1.0, num_threads=threads)
        assert total == pytest.approx(math.sqrt(SHARED + 10), rel=0.01)
        results.append([np.array(total), *gradients.values()])
    for others in results[1:]:
        for found, expected in zip(others, results[0], strict=True):
            assert_same_bits(found, expected)


def test_nan_stays_in_its_element(dtype):
    parameter, gradient = draw(0, 40, dtype), draw(1, 40, dtype)
    alone = parameter.copy()
    rk.Adam({"w": alone}).step({"w": gradient})
    gradient[[3, 38]] = np.nan, np.inf
    rk.Adam({"w": parameter}).step({"w": gradient})
    others = np.setdiff1d(np.arange(40), [3, 38])
    assert_same_bits(parameter[others], alone[others])
    assert np.isnan(parameter[[3, 38]]).all()


def test_moments_of_what_has_no_gradient_any_more_do_not_stay_denormal():
    tiny = np.finfo(np.float32).tiny
    parameter = np.zeros(20, np.float32)
    adam = rk.Adam({"w": parameter})
    adam.step({"w": np.full(20, 20 * tiny)})
    assert (adam.state_dict()["mean.w"] > tiny).all()
    for _ in range(7):
        adam.step({"w": np.zeros(20, np.float32)})
    assert not adam.state_dict()["mean.w"].any()


def test_a_gradient_whose_square_vanishes_makes_no_huge_step(dtype):
    parameter = draw(0, 20, dtype)
    before = parameter.copy()
    gradient = np.full(20, np.finfo(dtype).tiny)
    rk.Adam({"w": parameter}, eps=0).step({"w": gradient})
    np.testing.assert_array_equal(parameter, before)
    rk.Adam({"w": parameter}).step({"w": gradient})
    np.testing.assert_allclose(parameter, before, atol=1e-7)


@pytest.mark.parametrize("apart", [0, 1, 8, -5])
def test_a_gradient_that_is_the_parameters_memory(apart, dtype):
    memory = draw(0, 200, dtype)
    parameter, gradient = memory[20:120], memory[20 + apart : 120 + apart]
    expected, given = parameter.copy(), gradient.copy()
    rk.Adam({"w": expected}).step({"w": given})
    rk.Adam({"w": parameter}).step({"w": gradient})
    assert_same_bits(parameter, expected)


def test_arrays_that_no_kernel_reads_as_they_lie(dtype):
    """Their elements are not aligned, or not in order."""
    expected = trained(30, dtype, steps=1)["w"]
    for wrap in (
        lambda a: np.frombuffer(bytearray(b"x" + a.tobytes()), dtype, offset=1),
        lambda a: np.repeat(a, 2)[::2],
        lambda a: np.ascontiguousarray(a[::-1])[::-1],
    ):
        parameter, gradient = wrap(draw(0, 30, dtype)), wrap(draw(1, 30, dtype))
        norm = rk.clip_grad_norm({"w": wrap(draw(1, 30, dtype))}, 1e9)
        assert norm == rk.clip_grad_norm({"w": draw(1, 30, dtype)}, 1e9)
        rk.Adam({"w": parameter}, lr=0.1).step({"w": gradient})
        assert_same_bits(parameter, expected)
        rk.clip_grad_norm({"w": gradient}, norm / 2)
        np.testing.assert_allclose(gradient, draw(1, 30, dtype) / 2, rtol=1e-6)


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2"])
def test_bad_threads_change_nothing(threads):
    parameter, gradient = draw(0, 4, np.float32), draw(1, 4, np.float32)
    before = [parameter.copy(), gradient.copy()]
    adam = rk.Adam({"w": parameter})
    with pytest.raises((TypeError, ValueError), match="num_threads"):
        adam.step({"w": gradient}, num_threads=threads)
    with pytest.raises((TypeError, ValueError), match="num_threads"):
        rk.clip_grad_norm({"w": gradient}, 1e-3, num_threads=threads)
    assert adam.steps == 0
    for array, expected in zip((parameter, gradient), before, strict=True):
        assert_same_bits(array, expected)

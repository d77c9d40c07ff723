"""The one table of tolerances, with the reason for each number, and the checks that apply it.

The chain of truth: finite differences hold the float64 reference, the float64 reference holds the
float64 kernels, and evaluated on the very same float32 inputs it holds the float32 kernels too.
"""

import numpy as np

# Central differences in float64 are good to about 1e-10 of the loss (see central_differences), so
# the slack to 1e-7 of the largest gradient entry only absorbs the size of the third derivatives.
DIFFERENCES = 1e-7

# Float64 kernel against float64 reference, relative to the norm of the row (the last axis): both
# round, in another order of summation, sums of up to some thousand terms: sqrt(1000) * eps = 7e-15,
# some times over through T steps. A fault of mathematics is of order 1.
FLOAT64 = 1e-12

# What cancels keeps the rounding of its terms: a row of a single element that happens to be small,
# or 1 - h^2 of a saturated unit. All inputs are drawn with unit variance, so the terms are of order
# 1, and larger where the output itself is. Hence no row counts as shorter than this share of the
# longest row of the same output, or of 1 if that is more.
SHORTEST_ROW = 1e-2

# Float32 kernel against float64 reference, elementwise: FLOAT32 * eps * sqrt(K) * scale. K is the
# length of the sum: independent roundings grow as its root. The scale is the largest magnitude in
# the output, or 1 if that is more (for the reason just given). The factor is for the activations
# (4 ulp), and for the sum over steps of what each step's error leaves behind: with weights as
# drawn, every step hands on about half (1 + 1/2 + 1/4 + ... = 2). The reference itself, computed in
# float32, stays below 1.
FLOAT32 = 4.0
EPS = float(np.finfo(np.float32).eps)


def sum_length(name, problem):
    """K: how many rounded terms stand behind one element of the output of that name.

    In a stack the passes of all layers and directions stand behind it, one after another.
    """
    T, N, I, H = problem.sizes  # noqa: E741
    forward = problem.passes * (I + H)
    if not name.startswith("d"):
        return forward
    # the errors of forward, then of W^T da
    step_back = forward + problem.passes * problem.case.gates * H
    if name.startswith("d_"):
        return step_back + T * N
    return step_back


def assert_close_to_differences(actual, differences, name):
    __tracebackhide__ = True
    _assert_within(actual, differences, DIFFERENCES * np.abs(differences).max(), name)


def assert_outputs_close(actual, expected, problem):
    """Every output by value: the kernel's in the problem's dtype, the reference's in float64."""
    __tracebackhide__ = True
    assert actual.keys() == expected.keys()
    for name in expected:
        assert_output_close(actual[name], expected[name], name, problem)


def assert_output_close(actual, expected, name, problem, eps=EPS):
    """`eps` is what a float32 output's operands have lost, relative to the largest."""
    __tracebackhide__ = True
    assert actual.dtype == problem.dtype, f"{name}: {actual.dtype}"
    assert expected.dtype == np.float64
    assert actual.shape == expected.shape, f"{name}: {actual.shape}, not {expected.shape}"
    if problem.dtype == np.float32:
        scale = max(1.0, np.abs(expected).max())
        bound = FLOAT32 * eps * np.sqrt(sum_length(name, problem)) * scale
        _assert_within(actual, expected, bound, name)
    else:
        row = np.linalg.norm(expected, axis=-1)
        row = np.maximum(row, SHORTEST_ROW * max(1.0, row.max()))
        error = np.linalg.norm(actual - expected, axis=-1)
        _assert_within(error, 0.0, FLOAT64 * row, f"{name} (norms of rows)")


def _assert_within(actual, expected, bound, name):
    __tracebackhide__ = True
    error = np.abs(actual - expected)
    # Not "error > bound": that is False for NaN.
    wrong = ~(error <= bound)
    if wrong.any():
        worst = np.unravel_index(np.argmax(np.where(wrong, error, -1)), error.shape)
        bounds = np.broadcast_to(bound, error.shape)
        raise AssertionError(
            f"{name}: {wrong.sum()} of {error.size} elements are off; the worst at {worst} by "
            f"{error[worst]:.3g}, where {bounds[worst]:.3g} is allowed"
        )

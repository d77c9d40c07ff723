"""Gradient clipping: inside BPTT, step by step, and of finished gradients.

Pascanu, Mikolov & Bengio, "On the difficulty of training recurrent neural networks", 2013.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rnnkernel import _check, _threads, _updates

KERNELS = (np.float32, np.float64)
SAFE = (1e-50, 1e300)
"""Between these a sum of squares has lost none that counts: not to overflow, nor of denormals."""


@dataclass(frozen=True)
class Clip:
    """Limits on the gradient inside BPTT.

    At every step, before the cell's backward, the whole gradient that has arrived at h_t, and
    for LSTM what has arrived at c_t from the step after, is limited elementwise to ±`value`;
    then each batch row of either is scaled down to Euclidean norm `norm` where it is longer.

    Parameters
    ----------
    value, norm : float, optional
        Positive and finite. None does not clip.

    Raises
    ------
    TypeError, ValueError
        Where a limit is not a number, or not positive and finite.
    """

    value: float | None = None
    norm: float | None = None

    def __post_init__(self):
        for name in ("value", "norm"):
            limit = getattr(self, name)
            if limit is not None:
                object.__setattr__(self, name, _check.positive(name, limit))


def clip_grad_norm(
    gradients: Mapping[str, np.ndarray] | Sequence[Mapping[str, np.ndarray]],
    max_norm: float,
    *,
    num_threads: int | None = None,
) -> float:
    """Scales gradients in place so that their norm over all arrays is at most `max_norm`.

    Parameters
    ----------
    gradients : mapping of str to float array, or a sequence of such mappings
        Such as `grads.parameters`, or `[grads.parameters, of_readout.parameters]` as `Adam.step`
        takes them, whose norm is that of all. Written only where the norm is above the limit.
    max_norm : float
        Positive and finite.
    num_threads : int, optional
        The most threads to use; no result depends on them.

    Returns
    -------
    float
        The total Euclidean norm before clipping. Where it is not finite nothing is scaled.

    Raises
    ------
    TypeError, ValueError
        For anything else than writable float arrays, or a bad limit; nothing is changed.
    """
    max_norm = _check.positive("max_norm", max_norm)
    threads = _threads.resolve(num_threads)
    arrays = _check.gradients("gradients", gradients)
    total = _norm(arrays, threads)
    if max_norm < total < math.inf:
        factor = max_norm / total
        for array in arrays:
            # to kernels a denormal factor is none
            if array.dtype in KERNELS and factor >= np.finfo(np.float64).tiny:
                _updates.scale(array, factor, threads)
            else:
                with np.errstate(all="ignore"):  # not to stop half-way where the caller wants it
                    array *= array.dtype.type(factor)
    return total


def _norm(arrays: list[np.ndarray], threads: int) -> float:
    """The Euclidean norm of all, summed in float64."""
    arrays = [a if a.dtype in KERNELS else a.astype(np.float64) for a in arrays]
    total = sum(_updates.sum_of_squares(a, threads) for a in arrays)
    if SAFE[0] <= total <= SAFE[1]:
        return math.sqrt(total)
    # NumPy's maximum hands NaN on, Python's only as the first of two
    largest = float(np.max([np.max(np.abs(a), initial=0) for a in arrays], initial=0))
    if largest == 0 or not np.isfinite(largest):
        return largest
    # scaled by about the largest entry
    scale = math.ldexp(1.0, max(math.frexp(largest)[1] - 1, -1000))
    with np.errstate(all="ignore"):
        scaled = [np.divide(a, scale, dtype=np.float64) for a in arrays]
    return scale * math.sqrt(sum(_updates.sum_of_squares(a, threads) for a in scaled))


def clip_grad_value(
    gradients: Mapping[str, np.ndarray] | Sequence[Mapping[str, np.ndarray]], limit: float
) -> None:
    """Limits every element of the gradients to ±`limit`, in place. NaN stays.

    Parameters
    ----------
    gradients : mapping of str to float array, or a sequence of such mappings
        Such as `grads.parameters`.
    limit : float
        Positive and finite.

    Raises
    ------
    TypeError, ValueError
        For anything else than writable float arrays, or a bad limit; nothing is changed.
    """
    limit = _check.positive("limit", limit)
    for array in _check.gradients("gradients", gradients):
        # not to infinity, where the dtype has no such number
        most = array.dtype.type(min(limit, float(np.finfo(array.dtype).max)))
        np.clip(array, -most, most, out=array)

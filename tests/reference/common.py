"""What the reference cells share: the sigmoid, clipping inside BPTT and the record of gradients."""

from dataclasses import dataclass

import numpy as np


@dataclass
class Gradients:
    """What BPTT returns, shaped like what forward was given."""

    x: np.ndarray  # (T, N, I)
    state: np.ndarray | tuple[np.ndarray, ...]  # gradient of the initial state, (N, H) each
    parameters: dict[str, np.ndarray]
    dh_norm: np.ndarray  # (T,) norm over the batch of dL/dh_t as it arrives, before clipping
    dc_norm: np.ndarray | None  # (T,) likewise for c_t; None without a cell state
    clipped: np.ndarray  # (T,) batch rows in which clipping changed something


def sigmoid(a):
    """1 / (1 + exp(-a)); exp of no positive number, so nothing overflows and both tails hold."""
    e = np.exp(-np.abs(a))
    return np.where(a >= 0, 1 / (1 + e), e / (1 + e))


def clip(gradient, value=None, norm=None):
    """Limit every element to +-value, then the Euclidean norm of every row to norm.

    Returns the limited gradient (N, H) and which of its N rows have changed.
    """
    changed = np.zeros(len(gradient), dtype=bool)
    if value is not None:
        changed |= (np.abs(gradient) > value).any(axis=1)
        gradient = np.clip(gradient, -value, value)
    if norm is not None:
        row_norm = np.sqrt((gradient**2).sum(axis=1))
        too_long = row_norm > norm
        changed |= too_long
        scale = np.ones_like(row_norm)
        scale[too_long] = norm / row_norm[too_long]
        gradient = gradient * scale[:, None]
    return gradient, changed


def batch_norm(gradient):
    """Euclidean norm over all rows and units, the measure of gradient flow."""
    return np.sqrt((gradient**2).sum())

"""A batch of every kind that the time loops take differently, however threads share it."""

import numpy as np

from sequences import normal_state

KINDS = ["equal", "ragged", "reset", "ids", "embedding", "constant"]


def batch(layer, kind, T=23, N=9):
    """x, a state, and the other arguments of the call."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((T, N, layer.input_size)).astype(layer.dtype)
    arguments = {}
    if kind in ("ragged", "reset"):
        arguments["lengths"] = rng.integers(0, T + 1, N)
    if kind == "reset":
        arguments["reset"] = rng.random((T, N)) < 0.2
    if kind == "ids":
        x = rng.integers(0, layer.input_size, (T, N))
    if kind == "embedding":
        x = rng.integers(0, 200, (T, N))
        arguments["embedding"] = rng.standard_normal((200, layer.input_size)).astype(layer.dtype)
    if kind == "constant":
        x = np.broadcast_to(x[0], x.shape)
    return x, normal_state(layer, N, rng), arguments

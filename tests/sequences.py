"""Batches whose rows differ, run row by row and segment by segment: what equal batches must equal.

Nothing here knows lengths, resets or ids: it cuts a batch into plain runs of the same layer.
"""

import numpy as np


def parts(state):
    """The arrays of a state."""
    return list(state) if isinstance(state, tuple) else [state]


def like(arrays):
    """The reverse: an array alone, or a tuple."""
    return tuple(arrays) if len(arrays) > 1 else arrays[0]


def normal_state(layer, N, rng):
    L, D = layer.num_layers, 2 if layer.bidirectional else 1
    widths = [s.shape[2] for s in parts(layer(np.zeros((1, 1, layer.input_size), layer.dtype))[1])]
    return like([rng.standard_normal((L * D, N, w)).astype(layer.dtype) for w in widths])


def row_of(state, n):
    return like([s[:, n : n + 1] for s in parts(state)])


def loss(y, state, dy, dstate):
    pairs = zip(parts(state), parts(dstate), strict=True)
    return float(np.sum(y * dy) + sum(np.sum(s * d) for s, d in pairs))


def assert_differences(function, arrays, rng, entries=6):
    """Some entries of each gradient, by name (array, gradient), against central differences."""
    for name, (array, gradient) in arrays.items():
        assert gradient.shape == array.shape, name
        assert np.isfinite(gradient).all(), name
        for index in map(tuple, rng.integers(0, array.shape, (entries, array.ndim))):
            kept = array[index]
            array[index] = kept + 1e-6
            above = function()
            array[index] = kept - 1e-6
            below = function()
            array[index] = kept
            scale = max(1.0, np.abs(gradient).max())
            assert abs((above - below) / 2e-6 - gradient[index]) <= 1e-7 * scale, (name, index)

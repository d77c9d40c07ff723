"""NumPy: in inference as fast as loops over time get, in training the reference of the tests."""

import numpy as np
from data import reference, suffixes

VERSION = np.__version__


def refuses(problem, mode):
    if problem.lengths is not None and mode != "training":
        return "NumPy runs no ragged batches"
    if problem.cell in ("rnn_relu", "gru_reset_before") and mode != "training":
        return f"the lean loop has no {problem.cell}"
    return ""


def prepare(problem, mode, data, threads):
    if mode == "training":
        return {
            "reference": (
                lambda: reference(problem, data, "training", problem.dtype),
                lambda result: result,
            )
        }
    one_layer = {"lstm": _lstm, "gru_reset_after": _gru, "rnn_tanh": _rnn}[problem.cell]
    N, H, D = problem.N, problem.H, problem.directions
    kind, zero = np.dtype(problem.dtype).type, np.zeros((N, H), problem.dtype)
    weights = [_fold(problem.cell, data.weights, suffix, H, kind) for suffix in suffixes(problem)]

    def run():
        x = data.x
        for k in range(problem.layers):
            y = np.empty((problem.T, N, D * H), problem.dtype)
            for d in range(D):
                index, step = k * D + d, -1 if d else 1
                if data.states is None:
                    state = (zero, zero)
                else:
                    state = [s[index] for s in data.states]
                one_layer(weights[index], x[::step], state, y[::step, :, d * H : (d + 1) * H], H)
            x = y
        return x

    return {"loop": (run, lambda y: {"y": y})}


def _fold(cell, weights, suffix, H, kind):
    """Transposed weights; s(a) = (1 + tanh(a/2)) / 2, with the inner half folded into them."""
    half = {"lstm": [0.5, 0.5, 1, 0.5], "gru_reset_after": [0.5, 0.5, 1], "rnn_tanh": [1]}[cell]
    scale = np.repeat(np.array(half, kind), H)
    W_ih, W_hh = (
        np.ascontiguousarray((weights[name + suffix] * scale[:, None]).T)
        for name in ("weight_ih", "weight_hh")
    )
    b_ih, b_hh = (weights[name + suffix] * scale for name in ("bias_ih", "bias_hh"))
    if cell != "gru_reset_after":
        return W_ih, W_hh, b_ih + b_hh, kind(0.5)
    together = b_ih.copy()
    together[: 2 * H] += b_hh[: 2 * H]
    return W_ih, W_hh, together, b_hh[2 * H :], kind(0.5)


def _project(x, W, b):
    T, N, inputs = x.shape
    return (x.reshape(-1, inputs) @ W + b).reshape(T, N, -1)


def _lstm(weights, x, state, y, H):
    W_ih, W_hh, b, half = weights
    h, c = state
    a = _project(x, W_ih, b)
    for t in range(len(x)):
        g = a[t]
        g += h @ W_hh
        np.tanh(g, out=g)
        i, f, o = g[:, :H], g[:, H : 2 * H], g[:, 3 * H :]
        # c = s(f) c + s(i) g, with s = (1 + tanh) / 2
        c = half * (c + f * c + (1 + i) * g[:, 2 * H : 3 * H])
        h = half * (1 + o) * np.tanh(c)
        y[t] = h


def _gru(weights, x, state, y, H):
    W_ih, W_hh, b, b_n, half = weights
    h = state[0]
    a = _project(x, W_ih, b)
    for t in range(len(x)):
        g, r = a[t], h @ W_hh
        rz = np.tanh(g[:, : 2 * H] + r[:, : 2 * H])
        n = np.tanh(g[:, 2 * H :] + half * (1 + rz[:, :H]) * (r[:, 2 * H :] + b_n))
        h = n + half * (1 + rz[:, H:]) * (h - n)
        y[t] = h


def _rnn(weights, x, state, y, H):
    W_ih, W_hh, b, _ = weights
    h = state[0]
    a = _project(x, W_ih, b)
    for t in range(len(x)):
        h = np.tanh(a[t] + h @ W_hh)
        y[t] = h

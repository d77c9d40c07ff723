"""Elman RNN, one layer, one direction.

Forward, for t = 0 .. T-1 (h_{-1} is the initial state, act is tanh or relu):

    h_t = act(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)

Backward, for t = T-1 .. 0, with dh_t the whole gradient at h_t and da_t that at act's argument:

    dh_t = dy_t + W_hh^T da_{t+1}           (at t = T-1: + the gradient of the final state)
    da_t = act'(a_t) * dh_t                 tanh' = 1 - h_t^2,  relu' = 1 where h_t > 0, else 0

    dx_t = W_ih^T da_t                      dh_{-1} = W_hh^T da_0
    dW_ih = sum_t da_t x_t^T                dW_hh = sum_t da_t h_{t-1}^T
    db_ih = db_hh = sum_t da_t

Shapes: x (T, N, I), h0 (N, H), weight_ih (H, I), weight_hh (H, H), biases (H,) or absent.
"""

import numpy as np

from .common import Gradients, batch_norm, clip


def forward(weights, x, h0, *, nonlinearity="tanh"):
    W_ih, W_hh = weights["weight_ih"], weights["weight_hh"]
    b_ih, b_hh = weights.get("bias_ih", 0), weights.get("bias_hh", 0)
    T = len(x)

    h = np.empty((T + 1, *h0.shape), x.dtype)  # h[t] is what step t sees, h[t + 1] what it makes
    h[0] = h0
    for t in range(T):
        a = x[t] @ W_ih.T + b_ih + h[t] @ W_hh.T + b_hh
        h[t + 1] = np.tanh(a) if nonlinearity == "tanh" else np.maximum(a, 0)

    tape = {"x": x, "h": h, "nonlinearity": nonlinearity}
    return h[1:], h[T], tape


def backward(weights, tape, dy, dstate, *, clip_value=None, clip_norm=None):
    x, h = tape["x"], tape["h"]
    W_ih, W_hh = weights["weight_ih"], weights["weight_hh"]
    T = len(x)

    dx = np.zeros_like(x)
    d = {name: np.zeros_like(w) for name, w in weights.items()}
    dh_norm = np.zeros(T, x.dtype)
    clipped = np.zeros(T, int)

    dh = np.zeros_like(h[0]) if dstate is None else dstate
    for t in reversed(range(T)):
        if dy is not None:
            dh = dh + dy[t]
        dh_norm[t] = batch_norm(dh)
        dh, changed = clip(dh, clip_value, clip_norm)
        clipped[t] = changed.sum()

        if tape["nonlinearity"] == "tanh":
            da = dh * (1 - h[t + 1] ** 2)
        else:
            da = dh * (h[t + 1] > 0)

        dx[t] = da @ W_ih
        d["weight_ih"] += da.T @ x[t]
        d["weight_hh"] += da.T @ h[t]
        if "bias_ih" in d:
            d["bias_ih"] += da.sum(axis=0)
            d["bias_hh"] += da.sum(axis=0)
        dh = da @ W_hh  # the gradient at h[t]

    return Gradients(dx, dh, d, dh_norm, None, clipped)

"""LSTM, one layer, one direction. Rows of the weights, in blocks of H: i, f, g, o.

Forward, for t = 0 .. T-1 (h_{-1}, c_{-1} are the initial state, s the sigmoid, * elementwise):

    i_t = s(W_ii x_t + b_ii + W_hi h_{t-1} + b_hi)                     input gate
    f_t = s(W_if x_t + b_if + W_hf h_{t-1} + b_hf)                     forget gate
    g_t = tanh(W_ig x_t + b_ig + W_hg h_{t-1} + b_hg)                  candidate
    o_t = s(W_io x_t + b_io + W_ho h_{t-1} + b_ho)                     output gate
    c_t = f_t * c_{t-1} + i_t * g_t
    h_t = o_t * tanh(c_t)

Backward, for t = T-1 .. 0. dh_t is the whole gradient at h_t: dy_t, plus what step t+1 hands back
(at t = T-1: the gradient of the final state); da_g is the gradient at the argument of gate g:

    dc_t = f_{t+1} * dc_{t+1} + o_t * (1 - tanh(c_t)^2) * dh_t         (at t = T-1 the first term is
                                                                        that of the final state)
    da_i = g_t     * dc_t * i_t * (1 - i_t)
    da_f = c_{t-1} * dc_t * f_t * (1 - f_t)
    da_g = i_t     * dc_t * (1 - g_t^2)
    da_o = tanh(c_t) * dh_t * o_t * (1 - o_t)

    with da_t = [da_i, da_f, da_g, da_o] stacked as the rows of the weights are:

    dx_t = W_ih^T da_t             dh_{t-1} = W_hh^T da_t              dc_{-1} = f_0 * dc_0
    dW_ih = sum_t da_t x_t^T       dW_hh = sum_t da_t h_{t-1}^T        db_ih = db_hh = sum_t da_t

Clipping acts on dh_t, and on the first term of dc_t: on what arrives from outside the step.

Shapes: x (T, N, I), h0 and c0 (N, H), weight_ih (4H, I), weight_hh (4H, H), biases (4H,) or absent.
"""

import numpy as np

from .common import Gradients, batch_norm, clip, sigmoid


def forward(weights, x, state):
    W_ih, W_hh = weights["weight_ih"], weights["weight_hh"]
    b_ih, b_hh = weights.get("bias_ih", 0), weights.get("bias_hh", 0)
    h0, c0 = state
    T = len(x)

    h = np.empty((T + 1, *h0.shape), x.dtype)  # h[t] is what step t sees, h[t + 1] what it makes
    c = np.empty_like(h)
    h[0], c[0] = h0, c0
    gates = []
    for t in range(T):
        a_i, a_f, a_g, a_o = np.split(x[t] @ W_ih.T + b_ih + h[t] @ W_hh.T + b_hh, 4, axis=1)
        i, f, g, o = sigmoid(a_i), sigmoid(a_f), np.tanh(a_g), sigmoid(a_o)
        c[t + 1] = f * c[t] + i * g
        h[t + 1] = o * np.tanh(c[t + 1])
        gates.append((i, f, g, o))

    tape = {"x": x, "h": h, "c": c, "gates": gates}
    return h[1:], (h[T], c[T]), tape


def backward(weights, tape, dy, dstate, *, clip_value=None, clip_norm=None):
    x, h, c = tape["x"], tape["h"], tape["c"]
    W_ih, W_hh = weights["weight_ih"], weights["weight_hh"]
    T = len(x)

    dx = np.zeros_like(x)
    d = {name: np.zeros_like(w) for name, w in weights.items()}
    dh_norm, dc_norm = np.zeros(T, x.dtype), np.zeros(T, x.dtype)
    clipped = np.zeros(T, int)

    dh, dc = (np.zeros_like(h[0]), np.zeros_like(c[0])) if dstate is None else dstate
    for t in reversed(range(T)):
        if dy is not None:
            dh = dh + dy[t]
        dh_norm[t], dc_norm[t] = batch_norm(dh), batch_norm(dc)
        dh, dh_changed = clip(dh, clip_value, clip_norm)
        dc, dc_changed = clip(dc, clip_value, clip_norm)
        clipped[t] = (dh_changed | dc_changed).sum()

        i, f, g, o = tape["gates"][t]
        tanh_c = np.tanh(c[t + 1])
        dc = dc + dh * o * (1 - tanh_c**2)
        da_i = g * dc * i * (1 - i)
        da_f = c[t] * dc * f * (1 - f)
        da_g = i * dc * (1 - g**2)
        da_o = tanh_c * dh * o * (1 - o)

        da = np.concatenate([da_i, da_f, da_g, da_o], axis=1)
        dx[t] = da @ W_ih
        d["weight_ih"] += da.T @ x[t]
        d["weight_hh"] += da.T @ h[t]
        if "bias_ih" in d:
            d["bias_ih"] += da.sum(axis=0)
            d["bias_hh"] += da.sum(axis=0)
        dh = da @ W_hh  # the gradient at h[t]
        dc = f * dc  # the gradient at c[t]

    return Gradients(dx, (dh, dc), d, dh_norm, dc_norm, clipped)

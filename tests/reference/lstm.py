"""LSTM, one layer, one direction. Rows of the weights, in blocks of H: i, f, g, o.

Forward, for t = 0 .. T-1 (h_{-1}, c_{-1} are the initial state, s the sigmoid, * elementwise):

    i_t = s(W_ii x_t + b_ii + W_hi h_{t-1} + b_hi + p_i * c_{t-1})     input gate
    f_t = s(W_if x_t + b_if + W_hf h_{t-1} + b_hf + p_f * c_{t-1})     forget gate
    g_t = tanh(W_ig x_t + b_ig + W_hg h_{t-1} + b_hg)                  candidate
    c_t = clip(f_t * c_{t-1} + i_t * g_t)                              to +-cell_clip
    o_t = s(W_io x_t + b_io + W_ho h_{t-1} + b_ho + p_o * c_t)         output gate
    m_t = o_t * tanh(c_t)
    h_t = W_hr m_t

p_i, p_f, p_o are the peepholes (Gers & Schmidhuber 2000), the three blocks of weight_ch; W_hr is
the projection (Sak et al. 2014). Without the option that brings them the terms with p vanish, c_t
is not clipped, and h_t is m_t. With `coupled` (CIFG, Greff et al. 2017) f_t = 1 - i_t, and the rows
of f in all weights have no effect.

Backward, for t = T-1 .. 0. dh_t is the whole gradient at h_t: dy_t, plus what step t+1 hands back
(at t = T-1: the gradient of the final state); da_g is the gradient at the argument of gate g:

    dm_t = W_hr^T dh_t
    da_o = tanh(c_t) * dm_t * o_t * (1 - o_t)
    dc_t = what step t+1 hands back (at t = T-1: the gradient of the final state)
           + o_t * (1 - tanh(c_t)^2) * dm_t + p_o * da_o,       or 0 where c_t was clipped
    da_i = g_t     * dc_t * i_t * (1 - i_t)                     coupled: g_t - c_{t-1} for g_t
    da_f = c_{t-1} * dc_t * f_t * (1 - f_t)                     coupled: 0
    da_g = i_t     * dc_t * (1 - g_t^2)

    with da_t = [da_i, da_f, da_g, da_o] stacked as the rows of the weights are:

    dx_t = W_ih^T da_t             dh_{t-1} = W_hh^T da_t
    step t hands back to c_{t-1}:  f_t * dc_t + p_i * da_i + p_f * da_f
    dW_ih = sum_t da_t x_t^T       dW_hh = sum_t da_t h_{t-1}^T        db_ih = db_hh = sum_t da_t
    dp_i = sum_t da_i * c_{t-1}    dp_f = sum_t da_f * c_{t-1}         dp_o = sum_t da_o * c_t
    dW_hr = sum_t dh_t m_t^T

Clipping of gradients acts on dh_t, and on the first term of dc_t: on what arrives from outside the
step.

Shapes: x (T, N, I), h0 (N, P), c0 (N, H), weight_ih (4H, I), weight_hh (4H, P), biases (4H,) or
absent, weight_ch (3H,), weight_hr (P, H). Without projection P = H.
"""

import numpy as np

from .common import Gradients, batch_norm, clip, sigmoid


def forward(weights, x, state, *, peephole=False, cell_clip=None, coupled=False, proj_size=0):
    W_ih, W_hh = weights["weight_ih"], weights["weight_hh"]
    b_ih, b_hh = weights.get("bias_ih", 0), weights.get("bias_hh", 0)
    h0, c0 = state
    T = len(x)

    h = np.empty((T + 1, *h0.shape), x.dtype)  # h[t] is what step t sees, h[t + 1] what it makes
    c = np.empty((T + 1, *c0.shape), x.dtype)
    h[0], c[0] = h0, c0
    gates, cut = [], []  # cut: where c was clipped
    for t in range(T):
        a_i, a_f, a_g, a_o = np.split(x[t] @ W_ih.T + b_ih + h[t] @ W_hh.T + b_hh, 4, axis=1)
        if peephole:
            p_i, p_f, p_o = np.split(weights["weight_ch"], 3)
            a_i, a_f = a_i + p_i * c[t], a_f + p_f * c[t]
        i, g = sigmoid(a_i), np.tanh(a_g)
        f = 1 - i if coupled else sigmoid(a_f)
        c[t + 1] = f * c[t] + i * g
        if cell_clip is not None:
            cut.append(np.abs(c[t + 1]) > cell_clip)
            c[t + 1] = np.clip(c[t + 1], -cell_clip, cell_clip)
        o = sigmoid(a_o + p_o * c[t + 1] if peephole else a_o)
        m = o * np.tanh(c[t + 1])
        h[t + 1] = m @ weights["weight_hr"].T if proj_size else m
        gates.append((i, f, g, o))

    tape = {"x": x, "h": h, "c": c, "gates": gates, "cut": cut, "coupled": coupled}
    return h[1:], (h[T], c[T]), tape


def backward(weights, tape, dy, dstate, *, clip_value=None, clip_norm=None):
    x, h, c = tape["x"], tape["h"], tape["c"]
    W_ih, W_hh = weights["weight_ih"], weights["weight_hh"]
    peephole, project = "weight_ch" in weights, "weight_hr" in weights
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
        dm = dh @ weights["weight_hr"] if project else dh
        dc = dc + dm * o * (1 - tanh_c**2)
        da_o = tanh_c * dm * o * (1 - o)
        if peephole:
            p_i, p_f, p_o = np.split(weights["weight_ch"], 3)
            dc = dc + p_o * da_o
        if tape["cut"]:
            dc = np.where(tape["cut"][t], 0, dc)
        if tape["coupled"]:
            da_i, da_f = (g - c[t]) * dc * i * (1 - i), np.zeros_like(i)
        else:
            da_i, da_f = g * dc * i * (1 - i), c[t] * dc * f * (1 - f)
        da_g = i * dc * (1 - g**2)

        da = np.concatenate([da_i, da_f, da_g, da_o], axis=1)
        dx[t] = da @ W_ih
        d["weight_ih"] += da.T @ x[t]
        d["weight_hh"] += da.T @ h[t]
        if "bias_ih" in d:
            d["bias_ih"] += da.sum(axis=0)
            d["bias_hh"] += da.sum(axis=0)
        if peephole:
            seen = np.concatenate([c[t], c[t], c[t + 1]], axis=1)
            d["weight_ch"] += (np.concatenate([da_i, da_f, da_o], axis=1) * seen).sum(axis=0)
        if project:
            d["weight_hr"] += dh.T @ (o * tanh_c)
        dh = da @ W_hh  # the gradient at h[t]
        dc = f * dc  # the gradient at c[t]
        if peephole:
            dc = dc + p_i * da_i + p_f * da_f

    return Gradients(dx, (dh, dc), d, dh_norm, dc_norm, clipped)

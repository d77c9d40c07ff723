"""GRU, one layer, one direction. Rows of the weights, in blocks of H: r, z, n.

Forward, for t = 0 .. T-1 (h_{-1} is the initial state, s the sigmoid, * elementwise):

    r_t = s(W_ir x_t + b_ir + W_hr h_{t-1} + b_hr)
    z_t = s(W_iz x_t + b_iz + W_hz h_{t-1} + b_hz)

    reset_after=True:    m_t = W_hn h_{t-1} + b_hn
                         n_t = tanh(W_in x_t + b_in + r_t * m_t)
    reset_after=False:   n_t = tanh(W_in x_t + b_in + W_hn (r_t * h_{t-1}) + b_hn)

    h_t = (1 - z_t) * n_t + z_t * h_{t-1}

Backward, for t = T-1 .. 0. dh_t is the whole gradient at h_t: dy_t, plus what step t+1 hands back
(at t = T-1: the gradient of the final state). da_g is the gradient at the argument of gate g's
activation, from the input's side:

    da_n = (1 - z_t) * dh_t * (1 - n_t^2)
    da_z = (h_{t-1} - n_t) * dh_t * z_t * (1 - z_t)

    reset_after=True:    dm   = r_t * da_n
                         da_r = m_t * da_n * r_t * (1 - r_t)
                         dh_{t-1} = z_t * dh_t + W_hr^T da_r + W_hz^T da_z + W_hn^T dm
    reset_after=False:   du   = W_hn^T da_n                            the gradient at r_t * h_{t-1}
                         da_r = h_{t-1} * du * r_t * (1 - r_t)
                         dh_{t-1} = z_t * dh_t + W_hr^T da_r + W_hz^T da_z + r_t * du

    dx_t  = W_ir^T da_r + W_iz^T da_z + W_in^T da_n
    dW_ig = sum_t da_g x_t^T,  db_ig = sum_t da_g                      for g = r, z, n
    dW_hg = sum_t da_g h_{t-1}^T,  db_hg = sum_t da_g                  for g = r, z
    reset_after=True:    dW_hn = sum_t dm h_{t-1}^T,          db_hn = sum_t dm
    reset_after=False:   dW_hn = sum_t da_n (r_t * h_{t-1})^T, db_hn = sum_t da_n

Shapes: x (T, N, I), h0 (N, H), weight_ih (3H, I), weight_hh (3H, H), biases (3H,) or absent.
"""

import numpy as np

from .common import Gradients, batch_norm, clip, sigmoid


def forward(weights, x, h0, *, reset_after=True):
    W_ih, W_hh = weights["weight_ih"], weights["weight_hh"]
    T, H = len(x), h0.shape[1]
    b_ih = weights.get("bias_ih", np.zeros(3 * H, x.dtype))
    b_hh = weights.get("bias_hh", np.zeros(3 * H, x.dtype))
    W_hr, W_hz, W_hn = np.split(W_hh, 3)
    b_hr, b_hz, b_hn = np.split(b_hh, 3)

    h = np.empty((T + 1, *h0.shape), x.dtype)  # h[t] is what step t sees, h[t + 1] what it makes
    h[0] = h0
    gates = []
    for t in range(T):
        i_r, i_z, i_n = np.split(x[t] @ W_ih.T + b_ih, 3, axis=1)
        r = sigmoid(i_r + h[t] @ W_hr.T + b_hr)
        z = sigmoid(i_z + h[t] @ W_hz.T + b_hz)
        if reset_after:
            m = h[t] @ W_hn.T + b_hn
            n = np.tanh(i_n + r * m)
        else:
            m = None
            n = np.tanh(i_n + (r * h[t]) @ W_hn.T + b_hn)
        h[t + 1] = (1 - z) * n + z * h[t]
        gates.append((r, z, n, m))

    tape = {"x": x, "h": h, "gates": gates, "reset_after": reset_after}
    return h[1:], h[T], tape


def backward(weights, tape, dy, dstate, *, clip_value=None, clip_norm=None):
    x, h, reset_after = tape["x"], tape["h"], tape["reset_after"]
    W_ih, W_hh = weights["weight_ih"], weights["weight_hh"]
    W_hr, W_hz, W_hn = np.split(W_hh, 3)
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

        r, z, n, m = tape["gates"][t]
        da_n = (1 - z) * dh * (1 - n**2)
        da_z = (h[t] - n) * dh * z * (1 - z)
        if reset_after:
            dm = r * da_n
            da_r = m * da_n * r * (1 - r)
            dh = z * dh + da_r @ W_hr + da_z @ W_hz + dm @ W_hn  # the gradient at h[t]
            dW_hn, db_hn = dm.T @ h[t], dm.sum(axis=0)
        else:
            du = da_n @ W_hn
            da_r = h[t] * du * r * (1 - r)
            dh = z * dh + da_r @ W_hr + da_z @ W_hz + r * du  # the gradient at h[t]
            dW_hn, db_hn = da_n.T @ (r * h[t]), da_n.sum(axis=0)

        da = np.concatenate([da_r, da_z, da_n], axis=1)
        dx[t] = da @ W_ih
        d["weight_ih"] += da.T @ x[t]
        d["weight_hh"] += np.concatenate([da_r.T @ h[t], da_z.T @ h[t], dW_hn])
        if "bias_ih" in d:
            d["bias_ih"] += da.sum(axis=0)
            d["bias_hh"] += np.concatenate([da_r.sum(axis=0), da_z.sum(axis=0), db_hn])

    return Gradients(dx, dh, d, dh_norm, None, clipped)

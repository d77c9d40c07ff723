"""The same networks in plain NumPy: to be read, compared with and timed against.

One layer, one direction, forward and backward, vectorised over the batch. It is as fast as NumPy
allows without becoming hard to read: the input projection of all steps is one matrix product
before the loop, only the recurrence stays inside, and the weight gradients of all steps are one
matrix product after it.

Letters: ``T`` seq_len, ``N`` batch_size, ``I`` input_size, ``H`` hidden_size, ``G`` gates.
``xg`` is the input's part of the gates, ``hg`` the recurrent part; a gradient is ``d`` + name.
Parameters have the layers' names, shapes and gate order (see :class:`rnnkernel.LSTM`); without
biases they are simply absent.

Example::

    y, state, tape = forward(layer, x, (h0, c0))
    dx, dstate, dparameters = backward(tape, dy, (dh_n, dc_n))
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

__all__ = ["Tape", "backward", "forward"]

Arrays = tuple[np.ndarray, ...]


class Tape(NamedTuple):
    """What the backward pass needs of the forward pass."""

    cell: Any
    """The class with the equations: :class:`RNNCell`, :class:`GRUCell` or :class:`LSTMCell`."""

    x: np.ndarray
    """The input, (T, N, I)."""

    states: Arrays
    """Each state over time with the initial one in front: (T+1, N, H)."""

    saved: list[Arrays]
    """What the cell kept of each step."""


def forward(layer: Any, x: np.ndarray, state: Any = None) -> tuple[np.ndarray, Any, Tape]:
    """Run ``layer``, an RNN, GRU or LSTM of one layer and direction, in NumPy.

    Parameters
    ----------
    layer : rnnkernel.RNN, GRU or LSTM
        Only ``parameters`` and ``options`` are read.
    x : array (T, N, I)
    state : array (1, N, H), for LSTM a pair of them, or None for zeros

    Returns
    -------
    y : array (T, N, H)
    state : like ``state``
        After the last step.
    tape : Tape
        For :func:`backward`.

    Raises
    ------
    ValueError
        If there is no NumPy reference for the layer.
    """
    cell = _cell(layer)
    length, batch, _ = x.shape
    hidden = cell.w_hh.shape[1]
    states = tuple(np.empty((length + 1, batch, hidden), x.dtype) for _ in range(cell.num_states))
    for states_k, initial in zip(states, _unpack(state, cell.num_states), strict=True):
        states_k[0] = 0 if initial is None else initial[0]

    xg = x.reshape(length * batch, -1) @ cell.w_ih.T + cell.b_ih
    xg = xg.reshape(length, batch, -1)
    saved = []
    for t in range(length):
        after, kept = cell.step(xg[t], *(s[t] for s in states))
        for states_k, after_k in zip(states, after, strict=True):
            states_k[t + 1] = after_k
        saved.append(kept)
    return states[0][1:], _pack([s[-1:] for s in states]), Tape(cell, x, states, saved)


def backward(
    tape: Tape, dy: np.ndarray, dstate: Any = None
) -> tuple[np.ndarray, Any, dict[str, np.ndarray]]:
    """Backpropagation through time.

    Parameters
    ----------
    tape : Tape
        From :func:`forward`.
    dy : array (T, N, H)
        Gradient of the loss with respect to ``y``.
    dstate : like the state, or None for zeros
        Gradient of the loss with respect to the final state.

    Returns
    -------
    dx : array (T, N, I)
    dstate : like the state
        Gradient of the initial state.
    dparameters : dict of str to array
    """
    cell, x, states, saved = tape
    length, batch, hidden = dy.shape
    zeros = np.zeros((batch, hidden), dy.dtype)
    dnext = [zeros if d is None else d[0] for d in _unpack(dstate, cell.num_states)]
    dxg = np.empty((length, batch, cell.w_ih.shape[0]), dy.dtype)
    for t in reversed(range(length)):
        dnext[0] = dnext[0] + dy[t]  # what y shows, and what the next step used
        dnext = list(cell.step_backward(dxg[t], saved[t], [s[t] for s in states], dnext))

    flat_dxg = dxg.reshape(length * batch, -1)
    dparameters = {"weight_ih_l0": flat_dxg.T @ x.reshape(length * batch, -1)}
    dparameters["weight_hh_l0"], db_hh = cell.recurrent_gradients(dxg, saved, states[0][:-1])
    if cell.has_bias:
        dparameters["bias_ih_l0"] = flat_dxg.sum(axis=0)
        dparameters["bias_hh_l0"] = db_hh
    dx = (flat_dxg @ cell.w_ih).reshape(x.shape)
    return dx, _pack([d[np.newaxis] for d in dnext]), dparameters


class _Cell:
    """One step of a cell; knows nothing of time but its own step."""

    num_states = 1

    def __init__(self, layer: Any) -> None:
        parameters = layer.parameters
        self.w_ih = parameters["weight_ih_l0"]
        self.w_hh = parameters["weight_hh_l0"]
        self.has_bias = "bias_ih_l0" in parameters
        zero = np.zeros(self.w_ih.shape[0], self.w_ih.dtype)
        self.b_ih = parameters.get("bias_ih_l0", zero)
        self.b_hh = parameters.get("bias_hh_l0", zero)
        self.hidden = self.w_hh.shape[1]

    def recurrent_gradients(
        self, dxg: np.ndarray, saved: list[Arrays], h_prev: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """dW_hh (G*H, H) and db_hh (G*H), where the gates see xg + hg and so dhg = dxg."""
        flat = dxg.reshape(-1, dxg.shape[-1])
        return flat.T @ h_prev.reshape(-1, self.hidden), flat.sum(axis=0)


class RNNCell(_Cell):
    """h = act(xg + hg), act = tanh or relu.  (Elman 1990)"""

    def __init__(self, layer: Any) -> None:
        super().__init__(layer)
        self.relu = layer.options["nonlinearity"] == "relu"

    def step(self, xg: np.ndarray, h_prev: np.ndarray) -> tuple[Arrays, Arrays]:
        a = xg + (h_prev @ self.w_hh.T + self.b_hh)
        h = np.maximum(a, 0, out=a) if self.relu else np.tanh(a, out=a)
        return (h,), (h,)

    def step_backward(self, dxg: np.ndarray, saved: Arrays, prev: list, dnext: list) -> Arrays:
        (h,) = saved
        (dh,) = dnext
        dxg[...] = dh * (h > 0) if self.relu else dh * (1 - h * h)
        return (dxg @ self.w_hh,)


class GRUCell(_Cell):
    """r, z = s(xg + hg);  n = tanh(xg_n + r*hg_n);  h = (1-z)*n + z*h'.

    The reset gate acts after the recurrent product, as in PyTorch and cuDNN.
    """

    def step(self, xg: np.ndarray, h_prev: np.ndarray) -> tuple[Arrays, Arrays]:
        H = self.hidden
        hg = h_prev @ self.w_hh.T + self.b_hh
        rz = _sigmoid(xg[:, : 2 * H] + hg[:, : 2 * H])
        r, z, hg_n = rz[:, :H], rz[:, H:], hg[:, 2 * H :]
        n = np.tanh(xg[:, 2 * H :] + r * hg_n)
        return (n + z * (h_prev - n),), (r, z, n, hg_n)

    def step_backward(self, dxg: np.ndarray, saved: Arrays, prev: list, dnext: list) -> Arrays:
        H = self.hidden
        r, z, n, hg_n = saved
        (h_prev,), (dh,) = prev, dnext
        dn = dh * (1 - z) * (1 - n * n)
        dxg[:, :H] = dn * hg_n * r * (1 - r)
        dxg[:, H : 2 * H] = dh * (h_prev - n) * z * (1 - z)
        dxg[:, 2 * H :] = dn
        # hg_n reached n through r; r and z saw xg + hg.
        return (dh * z + dxg[:, : 2 * H] @ self.w_hh[: 2 * H] + (dn * r) @ self.w_hh[2 * H :],)

    def recurrent_gradients(
        self, dxg: np.ndarray, saved: list[Arrays], h_prev: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        dhg = dxg.copy()
        for t, (r, *_) in enumerate(saved):
            dhg[t, :, 2 * self.hidden :] *= r
        return super().recurrent_gradients(dhg, saved, h_prev)


class GRUResetBeforeCell(_Cell):
    """r, z = s(xg + hg);  n = tanh(xg_n + W_hn (r*h') + b_hn);  h = (1-z)*n + z*h'.

    The reset gate acts on the state itself, as in Cho et al. (2014).
    """

    def step(self, xg: np.ndarray, h_prev: np.ndarray) -> tuple[Arrays, Arrays]:
        H = self.hidden
        hg = h_prev @ self.w_hh[: 2 * H].T + self.b_hh[: 2 * H]
        rz = _sigmoid(xg[:, : 2 * H] + hg)
        r, z = rz[:, :H], rz[:, H:]
        rh = r * h_prev
        n = np.tanh(xg[:, 2 * H :] + (rh @ self.w_hh[2 * H :].T + self.b_hh[2 * H :]))
        return (n + z * (h_prev - n),), (r, z, n, rh)

    def step_backward(self, dxg: np.ndarray, saved: Arrays, prev: list, dnext: list) -> Arrays:
        H = self.hidden
        r, z, n, _ = saved
        (h_prev,), (dh,) = prev, dnext
        dn = dh * (1 - z) * (1 - n * n)
        drh = dn @ self.w_hh[2 * H :]
        dxg[:, :H] = drh * h_prev * r * (1 - r)
        dxg[:, H : 2 * H] = dh * (h_prev - n) * z * (1 - z)
        dxg[:, 2 * H :] = dn
        return (dh * z + drh * r + dxg[:, : 2 * H] @ self.w_hh[: 2 * H],)

    def recurrent_gradients(
        self, dxg: np.ndarray, saved: list[Arrays], h_prev: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        H = self.hidden
        rz, n = np.split(dxg.reshape(-1, 3 * H), [2 * H], axis=1)
        rh = np.stack([kept[3] for kept in saved]).reshape(-1, H)
        dw = np.concatenate([rz.T @ h_prev.reshape(-1, H), n.T @ rh])
        return dw, dxg.sum(axis=(0, 1))


class LSTMCell(_Cell):
    """i, f, g, o = s, s, tanh, s(xg + hg);  c = f*c' + i*g;  h = o*tanh(c).

    Hochreiter & Schmidhuber (1997) with the forget gate of Gers et al. (2000).
    """

    num_states = 2

    def step(self, xg: np.ndarray, h_prev: np.ndarray, c_prev: np.ndarray) -> tuple[Arrays, Arrays]:
        H = self.hidden
        a = h_prev @ self.w_hh.T
        a += self.b_hh
        a += xg
        i_f, g, o = a[:, : 2 * H], a[:, 2 * H : 3 * H], a[:, 3 * H :]
        _sigmoid(i_f, out=i_f)
        np.tanh(g, out=g)
        _sigmoid(o, out=o)
        i, f = i_f[:, :H], i_f[:, H:]
        c = f * c_prev + i * g
        tanh_c = np.tanh(c)
        return (o * tanh_c, c), (i, f, g, o, tanh_c)

    def step_backward(self, dxg: np.ndarray, saved: Arrays, prev: list, dnext: list) -> Arrays:
        H = self.hidden
        i, f, g, o, tanh_c = saved
        (_, c_prev), (dh, dc) = prev, dnext
        dc = dc + dh * o * (1 - tanh_c * tanh_c)
        dxg[:, :H] = dc * g * i * (1 - i)
        dxg[:, H : 2 * H] = dc * c_prev * f * (1 - f)
        dxg[:, 2 * H : 3 * H] = dc * i * (1 - g * g)
        dxg[:, 3 * H :] = dh * tanh_c * o * (1 - o)
        return dxg @ self.w_hh, dc * f


def _cell(layer: Any) -> _Cell:
    name = type(layer).__name__
    options = layer.options
    if options.get("num_layers", 1) != 1 or options.get("bidirectional", False):
        raise ValueError("layer: the NumPy reference has one layer and one direction")
    if name == "RNN":
        return RNNCell(layer)
    if name == "GRU":
        return GRUCell(layer) if options["reset_after"] else GRUResetBeforeCell(layer)
    if name == "LSTM":
        if options.get("proj_size") or options.get("peephole") or options.get("cell_clip"):
            raise ValueError("layer: the NumPy reference has no projection, peephole or cell_clip")
        return LSTMCell(layer)
    raise ValueError(f"layer: expected an RNN, GRU or LSTM, got {name}")


def _sigmoid(a: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    with np.errstate(over="ignore"):  # exp may reach infinity, and 1 / infinity is the right 0
        out = np.exp(np.negative(a, out=out), out=out)
    out += 1
    return np.reciprocal(out, out=out)


def _unpack(state: Any, count: int) -> list:
    if state is None:
        return [None] * count
    return [state] if count == 1 else list(state)


def _pack(states: list[np.ndarray]) -> Any:
    return states[0] if len(states) == 1 else tuple(states)

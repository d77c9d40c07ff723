"""A layer's arithmetic done by the NumPy references, to compare with and to time against.

The references themselves are `rnnkernel.reference`, one file per cell, readable beside a textbook.
They lie in tests/reference/ of the source tree and are installed from there.

    y, state, tape = forward(layer, x, (h0, c0))
    dx, dstate, dparameters = backward(tape, dy, (dh_n, dc_n))
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rnnkernel import reference

__all__ = ["Tape", "backward", "forward"]


class Tape(NamedTuple):
    """What the backward pass needs of the forward pass."""

    case: reference.Case
    weights: dict[str, np.ndarray]
    tape: Any


def forward(layer: Any, x: np.ndarray, state: Any = None) -> tuple[np.ndarray, Any, Tape]:
    """Runs `layer`, an RNN, GRU or LSTM of one layer and direction, in NumPy.

    Parameters
    ----------
    layer : rnnkernel.RNN, GRU or LSTM
        Only `hidden_size`, `parameters` and `options` are read.
    x : array (T, N, I)
    state : array (1, N, H), for LSTM a pair (h, c), or None for zeros

    Returns
    -------
    y : array (T, N, H)
    state : like `state`
        After the last step.
    tape : Tape
        For `backward`.

    Raises
    ------
    ValueError
        Where there is no reference for the layer.
    """
    case = _case(layer)
    weights = {name.removesuffix("_l0"): array for name, array in layer.parameters.items()}
    if state is None:
        widths = case.widths(layer.hidden_size)
        state = case.pack([np.zeros((1, x.shape[1], width), x.dtype) for width in widths])
    y, final, tape = case.forward(weights, x, case.pack([s[0] for s in case.unpack(state)]))
    return y, _with_layers(case, final), Tape(case, weights, tape)


def backward(
    tape: Tape, dy: np.ndarray | None, dstate: Any = None
) -> tuple[np.ndarray, Any, dict[str, np.ndarray]]:
    """Backpropagation through time.

    Parameters
    ----------
    tape : Tape
        From `forward`.
    dy : array (T, N, H), or None for zeros
        Gradient of the loss with respect to y.
    dstate : like the state, or None for zeros
        Gradient of the loss with respect to the final state.

    Returns
    -------
    dx : array (T, N, I)
    dstate : like the state
        Gradient of the initial state.
    dparameters : dict of str to array
        Like `layer.parameters`.
    """
    case, weights, kept = tape
    if dstate is not None:
        dstate = case.pack([s[0] for s in case.unpack(dstate)])
    gradients = case.backward(weights, kept, dy, dstate)
    parameters = {f"{name}_l0": array for name, array in gradients.parameters.items()}
    return gradients.x, _with_layers(case, gradients.state), parameters


def _case(layer: Any) -> reference.Case:
    if type(layer).__name__ == "LSTM":
        names = ("peephole", "cell_clip", "coupled", "proj_size")
        return reference.lstm_case(**{name: layer.options.get(name) for name in names})
    for case in reference.CASES.values():
        if case.layer == type(layer).__name__ and case.options.items() <= layer.options.items():
            return case
    raise ValueError(f"layer: expected an RNN, GRU or LSTM, got {type(layer).__name__}")


def _with_layers(case: reference.Case, state: Any) -> Any:
    """(N, H) states as (1, N, H)."""
    return case.pack([s[None] for s in case.unpack(state)])

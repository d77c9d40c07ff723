"""A layer's arithmetic done by the NumPy references, to compare with and to time against.

The references themselves are `rnnkernel.reference`, one file per cell and `stack.py` for what goes
around it, readable beside a textbook. They lie in tests/reference/ of the source tree and are
installed from there.

    y, state, tape = forward(layer, x, (h0, c0))
    gradients = backward(tape, dy, (dh_n, dc_n))
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rnnkernel import reference
from rnnkernel.reference import stack

__all__ = ["backward", "forward"]


def forward(
    layer: Any,
    x: np.ndarray,
    state: Any = None,
    *,
    lengths: np.ndarray | None = None,
    reset: np.ndarray | None = None,
    embedding: np.ndarray | None = None,
    masks: list[np.ndarray] | None = None,
) -> tuple[np.ndarray, Any, stack.Tape]:
    """Runs `layer`, an RNN, GRU or LSTM, in NumPy, time first whatever its layout.

    Parameters
    ----------
    layer : rnnkernel.RNN, GRU or LSTM
        Only its sizes, `parameters` and `options` are read.
    x : array (T, N, I), or token ids (T, N)
    state : array (L*D, N, H), for LSTM a pair (h, c), or None for zeros
    lengths : array (N,), optional
    reset : bool array (T, N), optional
    embedding : array (V, I), optional
    masks : list of L-1 arrays (T, N, D*P), optional
        What dropout multiplies the output of every layer but the last with.

    Returns
    -------
    y : array (T, N, D*P)
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
    dtype = next(iter(layer.parameters.values())).dtype
    if state is None:
        rows = len(stack.suffixes(layer.parameters))
        widths = case.widths(layer.hidden_size)
        state = case.pack([np.zeros((rows, x.shape[1], width), dtype) for width in widths])
    y, final, tape = stack.forward(
        case,
        layer.parameters,
        x,
        case.unpack(state),
        lengths=lengths,
        reset=reset,
        embedding=embedding,
        masks=masks,
    )
    return y, case.pack(final), tape


def backward(
    tape: stack.Tape, dy: np.ndarray | None, dstate: Any = None, *, clip: Any = None
) -> stack.Gradients:
    """Backpropagation through time.

    Parameters
    ----------
    tape : Tape
        From `forward`.
    dy : array (T, N, D*P), or None for zeros
        Gradient of the loss with respect to y.
    dstate : like the state, or None for zeros
        Gradient of the loss with respect to the final state.
    clip : rnnkernel.Clip, optional

    Returns
    -------
    Gradients
        `x` (None for token ids), `state`, `parameters`, `embedding` and the flow.
    """
    limits = {} if clip is None else {"clip_value": clip.value, "clip_norm": clip.norm}
    case = tape.case
    gradients = stack.backward(tape, dy, None if dstate is None else case.unpack(dstate), **limits)
    gradients.state = case.pack(gradients.state)
    return gradients


def _case(layer: Any) -> reference.Case:
    if type(layer).__name__ == "LSTM":
        names = ("peephole", "cell_clip", "coupled", "proj_size")
        return reference.lstm_case(**{name: layer.options.get(name) for name in names})
    for case in reference.CASES.values():
        if case.layer == type(layer).__name__ and case.options.items() <= layer.options.items():
            return case
    raise ValueError(f"layer: expected an RNN, GRU or LSTM, got {type(layer).__name__}")

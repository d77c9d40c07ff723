"""Pictures, with matplotlib, imported when one is drawn (`pip install 'rnnkernel[plot]'`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from rnnkernel import _check, flow

__all__ = ["gradient_flow"]

QUANTITIES = {
    "dh_norm": "norm of dL/dh_t",
    "dc_norm": "norm of dL/dc_t",
    "jacobian_norm": "spectral norm of dh_T/dh_t",
    "cell_jacobian_norm": "spectral norm of dc_T/dc_t",
}


def gradient_flow(
    layers: Any,
    x: Any = None,
    state: Any = None,
    *,
    labels: Iterable[str] | None = None,
    quantity: str = "dh_norm",
    ax: Any = None,
    **arguments: Any,
) -> Any:
    """Draws how the gradient vanishes or explodes through time, layers over one another.

    Parameters
    ----------
    layers : layer or GradientFlow, or several of them
        A sequence, or a mapping of labels to them. Layers are measured by `rnnkernel.gradient_flow`
        on `x`.
    x, state : optional
        What all layers are run on.
    labels : sequence of str, optional
        One for each; by default the layers' classes.
    quantity : "dh_norm", "dc_norm", "jacobian_norm" or "cell_jacobian_norm"
        Which attribute of the results is drawn; results without it are left out.
    ax : matplotlib Axes, optional
        Where to draw; a new figure by default.
    **arguments
        Handed to `rnnkernel.gradient_flow`.

    Returns
    -------
    matplotlib.axes.Axes
        With the steps on x, a logarithmic y, and one line for each layer and direction. A norm of
        0 has no place on it and leaves a gap.

    Raises
    ------
    TypeError, ValueError
        For a bad argument, named in the message.
    ImportError
        Where matplotlib is not installed and `ax` is None.
    """
    _check.choice("quantity", quantity, tuple(QUANTITIES))
    named = _named(layers, labels)
    if ax is not None and not hasattr(ax, "set_yscale"):
        raise TypeError(f"ax: expected an Axes of matplotlib, got {type(ax).__name__}")
    if x is None and not all(isinstance(one, flow.GradientFlow) for _, one in named):
        raise TypeError("x: expected what the layers are to be run on, got None")
    if not quantity.endswith("jacobian_norm"):
        arguments.setdefault("jacobian", False)
    results = [
        (label, one)
        if isinstance(one, flow.GradientFlow)
        else (label, flow.gradient_flow(one, x, state, **arguments))
        for label, one in named
    ]
    if ax is None:
        ax = _new_axes()
    drawn = False
    for label, result in results:
        curves = getattr(result, quantity)
        for k, norms in enumerate([] if curves is None else curves):
            drawn = True
            ax.plot(
                np.arange(len(norms)),
                np.where(norms > 0, norms, np.nan),
                label=label if len(curves) == 1 else f"{label} [{k}]",
            )
    ax.set_yscale("log")
    ax.set_xlabel("step t")
    ax.set_ylabel(QUANTITIES[quantity])
    if drawn:
        ax.legend()
    return ax


def _named(layers: Any, labels: Iterable[str] | None) -> list[tuple[str, Any]]:
    """Pairs of a label and a layer or result."""
    if isinstance(layers, Mapping):
        names, layers = [str(name) for name in layers], list(layers.values())
    else:
        if not isinstance(layers, Iterable):
            layers = [layers]
        layers = list(layers)
        names = [type(one).__name__ for one in layers]
    if labels is not None:
        if isinstance(labels, str) or not isinstance(labels, Iterable):
            raise TypeError(f"labels: expected a list of names, got {type(labels).__name__}")
        names = [str(label) for label in labels]
        if len(names) != len(layers):
            raise ValueError(f"labels: expected {len(layers)}, one for each, got {len(names)}")
    return list(zip(names, layers, strict=True))


def _new_axes() -> Any:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(
            f"drawing needs matplotlib: pip install 'rnnkernel[plot]' ({error})"
        ) from error
    return pyplot.subplots()[1]

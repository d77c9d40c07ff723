"""Recurrent neural networks on CPUs: RNN, GRU and LSTM, forward and BPTT, from NumPy arrays.

    import numpy as np, rnnkernel as rk

    layer = rk.LSTM(16, 64, rng=0)                        # I, H
    x = np.zeros((50, 32, 16), np.float32)                # T, N, I
    y, (h, c) = layer(x)                                  # inference
    out = layer.forward(x, training=True)
    grads = layer.backward(out, dy=np.ones_like(out.y))   # .x, .state, .parameters

Layers: `RNN`, `GRU`, `LSTM`; around them `Linear`, `softmax_cross_entropy`, `Adam`, `Clip`,
`clip_grad_norm`, `clip_grad_value`, `pack` and `unpack`; at rest `Frozen` and `Stream`, made by
`layer.freeze()` and `layer.stream()`; to keep a layer `save` and `load`; to see what happens
`gradient_flow`, `plot`, `gradcheck`, `profile`, `show_config`. Results do not depend on threads:
`set_num_threads`, `get_num_threads`.
"""

try:
    import rnnkernel._kernels  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "rnnkernel._kernels":
        raise
    raise ImportError(
        f"rnnkernel is imported from {__path__[0]}, where compiled modules are missing: this is "
        "the source tree, not an installation. Run `python -m pip install .` in its root, then "
        "start Python in another folder (or run the commands `rnnkernel` and `pytest`, which do "
        "not look into the current one)."
    ) from None

from rnnkernel import plot
from rnnkernel._config import show_config
from rnnkernel._threads import get_num_threads, set_num_threads
from rnnkernel._version import version as __version__
from rnnkernel.clipping import Clip, clip_grad_norm, clip_grad_value
from rnnkernel.flow import GradientFlow, gradient_flow
from rnnkernel.gradcheck import GradcheckReport, GradientError, gradcheck
from rnnkernel.inference import Frozen, Stream
from rnnkernel.layers import GRU, LSTM, RNN
from rnnkernel.optim import Adam
from rnnkernel.profiling import Profile, profile
from rnnkernel.ragged import pack, unpack
from rnnkernel.readout import Linear, LinearGradients, softmax_cross_entropy
from rnnkernel.results import Flow, Gradients, Output
from rnnkernel.serialization import load, save
from rnnkernel.trace import Trace

__all__ = [
    "Adam",
    "Clip",
    "Flow",
    "Frozen",
    "GRU",
    "GradcheckReport",
    "GradientError",
    "GradientFlow",
    "Gradients",
    "LSTM",
    "Linear",
    "LinearGradients",
    "Output",
    "Profile",
    "RNN",
    "Stream",
    "Trace",
    "__version__",
    "clip_grad_norm",
    "clip_grad_value",
    "get_num_threads",
    "gradcheck",
    "gradient_flow",
    "load",
    "pack",
    "plot",
    "profile",
    "save",
    "set_num_threads",
    "show_config",
    "softmax_cross_entropy",
    "unpack",
]

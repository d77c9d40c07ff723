"""PyTorch: nn modules under inference_mode, the cells for single steps; training by autograd."""

import numpy as np
import torch
from problems import flops
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from peers import SMALL_FLOPS

VERSION = torch.__version__

MODULES = {"lstm": "LSTM", "gru_reset_after": "GRU", "rnn_tanh": "RNN", "rnn_relu": "RNN"}


def refuses(problem, mode):
    return "" if problem.cell in MODULES else f"torch has no {problem.cell}"


def prepare(problem, mode, data, threads):
    options = {"nonlinearity": problem.cell[4:]} if problem.cell.startswith("rnn") else {}
    module = getattr(torch.nn, MODULES[problem.cell])(
        problem.I,
        problem.H,
        problem.layers,
        bidirectional=problem.bidirectional,
        dtype=getattr(torch, problem.dtype),
        **options,
    )
    module.load_state_dict({name: torch.from_numpy(w) for name, w in data.weights.items()})
    x, state = torch.from_numpy(data.x), None
    if data.states is not None:
        states = tuple(torch.from_numpy(np.ascontiguousarray(s)) for s in data.states)
        state = states if len(states) > 1 else states[0]

    def forward():
        if problem.lengths is None:
            return module(x, state)[0]
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        return pad_packed_sequence(module(packed, state)[0], total_length=problem.T)[0]

    lengths = None if problem.lengths is None else torch.tensor(problem.lengths)
    if mode == "training":
        x.requires_grad_()
        dy = torch.from_numpy(data.dy)

        def run():
            x.grad = None
            module.zero_grad(set_to_none=True)
            y = forward()
            y.backward(dy)
            return y

        def outputs(y):
            named = {"y": y.detach().numpy(), "dx": x.grad.numpy()}
            return named | {f"d_{name}": p.grad.numpy() for name, p in module.named_parameters()}

        return _by_threads({"module": (run, outputs)}, problem, mode, threads)

    module.requires_grad_(False)

    def run():
        with torch.inference_mode():
            return forward()

    variants = {"module": (run, lambda y: {"y": y.numpy()})}
    if problem.step and problem.layers == problem.directions == 1:
        cell = _cell(problem, data, options)
        row = x[0]
        first = None
        if state is not None:
            first = (state[0][0], state[1][0]) if isinstance(state, tuple) else state[0]

        def run_cell():
            with torch.inference_mode():
                h = cell(row, first)
                return h[0] if isinstance(h, tuple) else h

        variants["cell"] = (run_cell, lambda y: {"y": y.numpy()[None]})
    return _by_threads(variants, problem, mode, threads)


def _by_threads(variants, problem, mode, threads):
    """Each on all threads, and on one where that may be faster."""
    torch.set_num_threads(threads)
    chosen = {
        name: (*variant, lambda: torch.set_num_threads(threads))
        for name, variant in variants.items()
    }
    if threads > 1 and flops(problem, mode) < SMALL_FLOPS:
        for name, variant in variants.items():
            chosen[f"{name}, 1 thread"] = (*variant, lambda: torch.set_num_threads(1))
    return chosen


def _cell(problem, data, options):
    cell = getattr(torch.nn, MODULES[problem.cell] + "Cell")(
        problem.I, problem.H, dtype=getattr(torch, problem.dtype), **options
    )
    names = {name.removesuffix("_l0"): torch.from_numpy(w) for name, w in data.weights.items()}
    cell.load_state_dict(names)
    return cell.requires_grad_(False)

"""Everything around a cell: layers, directions, lengths, resets, token ids, dropout.

A stack of L layers, each in D directions, over T steps of N batch rows. With h^k_t the output of
layer k = 1 .. L at step t (of both directions side by side), and x^k_t its input:

    x^1_t = x_t                  a vector; or E[id_t], a row of the embedding E (V, I); or, without
                                 E, the one-hot vector of id_t
    x^{k+1}_t = m^k_t * h^k_t    m is dropout's mask: 0, or 1 / (1 - rate); 1 without dropout
    y_t = h^L_t

The forward direction goes t = 0 .. T-1, the reverse one t = T-1 .. 0. "Before" and "after" are
meant in the direction's own order; either starts at its initial state.

    A row of length n has the steps 0 .. n-1 and no others. Past them y is 0 and the states stand
    still: the forward direction ends at step n-1, the reverse one starts there, and with n = 0 the
    final state is the initial one.

    A reset at t cuts the row between t-1 and t: step t of the forward direction, and step t-1 of
    the reverse one, see zeros as the state before. At t = 0 it is the forward direction's initial
    state that is cut off. Past the row's length there is nothing to cut.

Backward, layers from the last to the first, each direction against its order; dh is what reaches a
state from outside its step:

    dh at a row's last step:    the gradient of the final state
    dh before a step:           what the cell hands back, or 0 where the step was cut off
    dx^k_t = the sum of both directions' dx;   dh^{k-1}_t gets m^{k-1}_t * dx^k_t
    dE[v] = the sum of dx^1_t over all t (and rows) with id_t = v

Clipping and norms are the cell's, over the rows that have the step.

So that the cells see whole sequences where they can, time is cut only where some row ends or is
reset: a stretch is what lies between, and all its rows have all of its steps.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from . import common


@dataclass
class Gradients(common.Gradients):
    """As of a cell, with states (L*D, N, .) and flow (L*D, T); `parameters` by full names."""

    embedding: np.ndarray | None = None  # (V, I), like the embedding


@dataclass
class Tape:
    case: Any
    weights: list[dict[str, np.ndarray]]  # for each layer and direction, names without suffix
    suffixes: list[str]
    x: np.ndarray  # what the caller gave
    dense: np.ndarray  # (T, N, I)
    embedding: np.ndarray | None
    masks: list[np.ndarray] | None
    directions: int
    passes: list[list]  # for each layer and direction its stretches

    def cells(self):
        """Weights and tape of every run of a cell."""
        for weights, stretches in zip(self.weights, self.passes, strict=True):
            for one in stretches:
                yield weights, one.tape


def suffixes(weights):
    """Endings of the weights' names, in the order of the states' rows."""
    return [name.removeprefix("weight_hh") for name in weights if name.startswith("weight_hh")]


def forward(case, weights, x, states, *, lengths=None, reset=None, embedding=None, masks=None):
    """y (T, N, D*P), final states (L*D, N, .), tape.

    x (T, N, I) or ids (T, N); a tuple of states (L*D, N, .); lengths (N,); reset (T, N) bool;
    embedding (V, I); L-1 masks (T, N, D*P). `weights` by full names, layers in order.
    """
    T, N = x.shape[:2]
    ends = suffixes(weights)
    D = 2 if ends[-1].endswith("_reverse") else 1
    lengths = np.full(N, T) if lengths is None else np.asarray(lengths)
    reset = np.zeros((T, N), bool) if reset is None else reset
    parts = [_without_suffix(weights, end) for end in ends]

    dense = x
    if x.dtype.kind in "iu":
        I = parts[0]["weight_ih"].shape[1]  # noqa: E741
        table = np.eye(I, dtype=states[0].dtype) if embedding is None else embedding
        valid = np.arange(T)[:, None] < lengths
        dense = table[np.where(valid, x, 0)]  # whatever stands past an end, even no id at all
    finals, passes, y = [], [], dense
    for k in range(len(ends) // D):
        if k > 0 and masks is not None:
            y = y * masks[k - 1]
        ys = []
        for d in range(D):
            row = k * D + d
            initial = [s[row] for s in states]
            y_d, final, stretches = _forward_direction(
                case, parts[row], y, initial, lengths, reset, reverse=d == 1
            )
            ys.append(y_d)
            finals.append(final)
            passes.append(stretches)
        y = np.concatenate(ys, axis=2)
    tape = Tape(case, parts, ends, x, dense, embedding, masks, D, passes)
    return y, tuple(np.stack(s) for s in zip(*finals, strict=True)), tape


def backward(tape, dy, dstates, *, clip_value=None, clip_norm=None):
    """Gradients; `dy` like y, `dstates` like the states, either None for zeros."""
    case, D = tape.case, tape.directions
    L = len(tape.passes) // D
    T, N = tape.x.shape[:2]
    clip = {"clip_value": clip_value, "clip_norm": clip_norm}
    rows = [None] * (L * D)
    for k in reversed(range(L)):
        dx = 0
        for d in range(D):
            row = k * D + d
            P = tape.weights[row]["weight_hh"].shape[1]
            dy_d = None if dy is None else dy[..., d * P : (d + 1) * P]
            dfinal = None if dstates is None else [s[row] for s in dstates]
            rows[row] = _backward_direction(
                case, tape.weights[row], tape.passes[row], (T, N), dy_d, dfinal, clip
            )
            dx = dx + rows[row].x
        dy = dx if k == 0 or tape.masks is None else dx * tape.masks[k - 1]

    dembedding = None
    if tape.embedding is not None:
        dembedding = np.zeros_like(tape.embedding)
        for stretch in tape.passes[0]:  # only steps that are there have an id
            np.add.at(dembedding, tape.x[stretch.at], dx[stretch.at])
    parameters = {
        f"{name}{end}": gradient
        for end, one in zip(tape.suffixes, rows, strict=True)
        for name, gradient in one.parameters.items()
    }
    return Gradients(
        x=dx if tape.x is tape.dense else None,
        state=tuple(np.stack(s) for s in zip(*(one.state for one in rows), strict=True)),
        parameters=parameters,
        dh_norm=np.stack([one.dh_norm for one in rows]),
        dc_norm=None if len(case.states) == 1 else np.stack([one.dc_norm for one in rows]),
        clipped=np.stack([one.clipped for one in rows]),
        embedding=dembedding,
    )


@dataclass
class Stretch:
    """Some steps of one direction, the rows that have them, which of these are cut off before."""

    steps: slice  # of time, in the direction's order
    rows: np.ndarray
    fresh: np.ndarray  # (rows, 1)
    tape: Any

    @property
    def at(self):
        """Where they are in an array (T, N, .)."""
        return self.steps, self.rows


def _forward_direction(case, weights, x, states, lengths, reset, *, reverse):
    """y (T, N, P), final states, and the stretches in the order in which they were taken."""
    T, N = x.shape[:2]
    borders = sorted({0, T, *lengths.tolist(), *np.flatnonzero(reset.any(axis=1)).tolist()})
    between = list(pairwise(borders))
    states = [s.copy() for s in states]
    y = np.zeros((T, N, states[0].shape[1]), states[0].dtype)
    stretches = []
    for begin, end in between[::-1] if reverse else between:
        rows = np.flatnonzero(lengths >= end)
        if len(rows) == 0:
            continue
        if reverse:  # the step before is that at `end`, in a row that has it
            fresh = (
                reset[end, rows] & (lengths[rows] > end) if end < T else np.zeros(len(rows), bool)
            )
            steps = slice(end - 1, begin - 1 if begin > 0 else None, -1)
        else:
            fresh, steps = reset[begin, rows], slice(begin, end)
        before = [np.where(fresh[:, None], 0, s[rows]) for s in states]
        y[steps, rows], after, tape = case.forward(weights, x[steps, rows], case.pack(before))
        for s, new in zip(states, case.unpack(after), strict=True):
            s[rows] = new
        stretches.append(Stretch(steps, rows, fresh[:, None], tape))
    return y, states, stretches


def _backward_direction(case, weights, stretches, shape, dy, dstates, clip):
    """The gradients of one direction, as of a single cell, zero where a row has no step."""
    T, N = shape
    dtype = weights["weight_ih"].dtype
    if dstates is None:
        widths = case.widths(len(weights["weight_ih"]) // case.gates)
        dstates = [np.zeros((N, width), dtype) for width in widths]
    arriving = [s.copy() for s in dstates]
    dx = np.zeros((T, N, weights["weight_ih"].shape[1]), dtype)
    parameters = {name: np.zeros_like(w) for name, w in weights.items()}
    dh_norm, dc_norm, clipped = np.zeros(T, dtype), np.zeros(T, dtype), np.zeros(T, int)
    for one in reversed(stretches):
        dafter = case.pack([s[one.rows] for s in arriving])
        grads = case.backward(weights, one.tape, None if dy is None else dy[one.at], dafter, **clip)
        for s, new in zip(arriving, case.unpack(grads.state), strict=True):
            s[one.rows] = np.where(one.fresh, 0, new)
        dx[one.at] = grads.x
        for name in parameters:
            parameters[name] += grads.parameters[name]
        dh_norm[one.steps], clipped[one.steps] = grads.dh_norm, grads.clipped
        dc_norm[one.steps] = 0 if grads.dc_norm is None else grads.dc_norm
    return common.Gradients(dx, tuple(arriving), parameters, dh_norm, dc_norm, clipped)


def trace(tape):
    """For each layer and direction its states and gates of every step by name, (T, N, .) each."""
    case, gates = tape.case, {"RNN": "", "GRU": "rzn", "LSTM": "ifgo"}[tape.case.layer]
    traces = []
    for weights, stretches in zip(tape.weights, tape.passes, strict=True):
        H = len(weights["weight_ih"]) // case.gates
        widths = dict(zip(case.states, case.widths(H), strict=True)) | dict.fromkeys(gates, H)
        dtype = weights["weight_ih"].dtype
        arrays = {name: np.zeros((*tape.x.shape[:2], w), dtype) for name, w in widths.items()}
        for one in stretches:
            for name in case.states:
                arrays[name][one.at] = one.tape[name][1:]
            for k, gate in enumerate(gates):
                arrays[gate][one.at] = np.stack([step[k] for step in one.tape["gates"]])
        traces.append(arrays)
    return traces


def _without_suffix(weights, end):
    return {name.removesuffix(end): w for name, w in weights.items() if name.endswith(end)}

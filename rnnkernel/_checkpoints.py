"""One layer and direction over all steps, in segments where training keeps checkpoints.

With checkpoints forward keeps the states before each segment and no gates. Backward takes the
segments from the last, computes the gates of one again and hands dh and dc on to the one before. A
row's bits do not depend on cuts, and the sums of the weight gradients go on in the order that they
have anyway, so all results have the bits of the run without.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rnnkernel import _backward, _forward, _stack
from rnnkernel._tape import BackwardPass, Pass


@dataclass(frozen=True)
class Checkpoints:
    """The states before every segment but the first: h (N, P) and packed c, or None."""

    every: int  # steps in a segment
    states: list[tuple[np.ndarray, np.ndarray | None]] = field(default_factory=list)


def forward(layers: list[list[tuple]], threads: int) -> None:
    """`_stack.forward` of layers and directions, each a pass with its h_n and c_n; those that have
    checkpoints are alone, and theirs are filled."""
    if layers[0][0][0].checkpoints is None:
        _stack.forward(layers, threads)
        return
    for layer in layers:
        for each in layer:
            _in_segments(*each, threads)


def _in_segments(one: Any, h_n: np.ndarray, c_n: np.ndarray | None, threads: int) -> None:
    if one.rows is not None:
        one.y[...] = 0  # past the ends
    h, c = one.h0, one.c0
    for part, rows in _segments(one):
        if part.start > 0:
            order = None if rows is None else rows.order
            h = np.array(h_n, order="C")
            c = None if c_n is None else _forward.pack_cells(one.weights, c_n, len(c_n), order)
            one.checkpoints.states.append((h, c))
        x, y = _cut(one.x, part, rows), _cut(one.y, part, rows)
        segment = Pass(one.weights, x, h, c, y, None, rows, None, one.index)
        _stack.forward([[(segment, h_n, c_n)]], threads)


def backward(given: BackwardPass, limit: float, norm_limit: float, threads: int) -> None:
    """`_backward.backward` of a direction that has checkpoints."""
    one, dx, flow = given.of, given.dx, given.flow
    if one.rows is not None and dx is not None and not given.adds:
        dx[...] = 0  # past the ends
    N, P = one.h0.shape
    reserve = _forward.allocate_reserve(one.weights, one.checkpoints.every, N)
    dh, dc = given.dh_n, given.dc_n
    h_n = np.empty_like(given.dh0)
    c_n = None if given.dc0 is None else np.empty_like(given.dc0)
    # y stands already: all steps write to one
    nowhere = np.empty((N, P), one.y.dtype)
    states = [(one.h0, one.c0), *one.checkpoints.states]
    sums = None if one.index is None else _backward.sums_of_dgates(one.weights, len(one.x))
    for (part, rows), (h, c) in reversed(list(zip(_segments(one), states, strict=True))):
        x, y = _cut(one.x, part, rows), _cut(one.y, part, rows)
        again = np.lib.stride_tricks.as_strided(nowhere, (len(y), N, P), (0, *nowhere.strides))
        segment = Pass(one.weights, x, h, c, again, reserve, rows, None, one.index)
        _stack.forward([[(segment, h_n, c_n)]], threads)
        through = BackwardPass(
            Pass(one.weights, x, h, c, y, reserve, rows, None, one.index, segment.groups),
            given.gradients,
            _cut(given.dy, part, rows),
            dh,
            dc,
            None if flow is None else tuple(a if a is None else a[part] for a in flow),
            _cut(dx, part, rows),
            given.dh0,
            given.dc0,
            given.dtable,
            given.dtable_rows,
            sums,
            part.start == 0,
            given.adds,
        )
        _backward.backward([through], limit, norm_limit, threads)
        dh, dc = given.dh0, given.dc0


def _segments(one: Any) -> Iterator[tuple[slice, Any]]:
    """The steps of each segment, in order, and its Rows, or None."""
    steps = len(one.y) if one.rows is None else one.rows.longest
    for begin in range(0, max(steps, 1), one.checkpoints.every):
        part = slice(begin, min(begin + one.checkpoints.every, steps))
        yield part, None if one.rows is None else one.rows.segment(part)


def _cut(array: np.ndarray | None, part: slice, rows: Any) -> np.ndarray | None:
    """A segment's steps of an array; all of it where rows say by themselves where theirs lie."""
    return array if array is None or rows is not None else array[part]

"""What a batch asks of the time loops beside steps and rows: unequal lengths, resets, token ids.

The loops count the steps of a row from its own first, and take the rows by position, the longest
first: so the rows that are alive at a step are the first ones. Where threads share a large batch by
rows in training, about each half of it is a section of its own, ordered by itself, so that what a
thread writes lies together and apart from what another does. The second direction sees time
reversed, and a row that is shorter than the batch begins there some steps later. Nothing of the
arrays moves for it: rows are found through offsets.

Where steps share their input, as tokens and constant inputs do, x is a table that is projected
once, and every step has the number of its row there.
"""

from dataclasses import dataclass

import numpy as np

from rnnkernel._memory import empty
from rnnkernel._rows import Rows, by_length, first_steps


class Sequence:
    """Lengths and resets of one batch; a Rows for each direction.

    Parameters
    ----------
    T, N : int
    lengths : (N,) intp, or None where all are T
    reset : (T, N) bool, or None
    sections : int
        That the rows are to stand in, of about as many steps each.
    """

    def __init__(
        self,
        T: int,
        N: int,
        lengths: np.ndarray | None,
        reset: np.ndarray | None,
        sections: int = 1,
    ):
        if lengths is None:
            lengths = np.full(N, T, np.intp)
        self.T, self.reset = T, reset
        self.order, self.lengths, self.alive, self.section = by_length(lengths, T, sections)

    def rows(self, backwards: bool) -> Rows:
        """What the loop of one direction needs."""
        start = first_steps(self.lengths, self.T, backwards)
        reset = resets = None
        if self.reset is not None:
            longest = self.alive.shape[1]
            reset = np.zeros((longest, len(self.order)), np.uint8)
            by_position = self.reset[:, self.order]
            if not backwards:
                reset[...] = by_position[:longest]
            else:
                # step s is at t = length - 1 - s, and the border behind it belongs to t + 1
                t = self.lengths - np.arange(longest)[:, None]
                s, position = np.nonzero((t > 0) & (t < self.lengths))
                reset[s, position] = by_position[t[s, position], position]
            reset &= np.arange(longest)[:, None] < self.lengths
            resets = reset.any(axis=1).astype(np.uint8)
        return Rows(
            self.T, self.order, self.lengths, start, self.alive, self.section, reset, resets
        )


@dataclass(frozen=True)
class Table:
    """x as rows of a table.

    Attributes
    ----------
    rows : (R, I) array, or None
        None is the one-hot vectors of R classes: their table is W_ih itself.
    index : (T, N) intp
        The row that each step sees; anything where a batch row has no such step.
    ids : (R,) intp, or None
        Of tokens: the id that each row stands for, ascending; None is all ids.
    """

    rows: np.ndarray | None
    index: np.ndarray
    ids: np.ndarray | None

    def x(self, input_size: int, dtype: np.dtype) -> np.ndarray:
        """What the loops take for x: (R, 1, I), or no rows at all of one-hot vectors."""
        if self.rows is None:
            classes = input_size if self.ids is None else len(self.ids)
            return np.empty((0, 1, classes), dtype)
        return self.rows[:, None]


def constant(x: np.ndarray, lengths: np.ndarray | None) -> Table:
    """An x (T, N, I) that is the same at every step. Rows without a step have zeros: whatever else
    times the sum of no gradients may be NaN."""
    T, N = x.shape[:2]
    rows = np.array(x[0], order="C")
    if lengths is not None:
        rows[lengths == 0] = 0
    return Table(rows, np.broadcast_to(np.arange(N), (T, N)), None)


def tokens(ids: np.ndarray, count: int, embedding: np.ndarray | None) -> Table:
    """Ids (T, N) below `count`: only those that occur have a row."""
    if count <= 16 * ids.size:
        seen = np.zeros(count, bool)
        seen[ids] = True
        occurring = np.flatnonzero(seen)
        place = np.empty(count, np.intp)
        place[occurring] = np.arange(len(occurring))
        index = place[ids]
    else:  # without looking at all that could occur
        occurring, index = np.unique(ids, return_inverse=True)
        index = index.reshape(ids.shape).astype(np.intp)
    rows = None
    if embedding is not None:
        rows = empty((len(occurring), embedding.shape[1]), embedding.dtype)
        if embedding.flags.c_contiguous:
            np.take(embedding, occurring, axis=0, out=rows, mode="clip")
        else:  # of which `take` would make a copy, whole
            rows[...] = embedding[occurring]
    return Table(rows, index, occurring)

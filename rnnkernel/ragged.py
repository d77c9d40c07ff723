"""Lists of sequences as one batch with lengths, and back."""

import numpy as np

from rnnkernel import _check

__all__ = ["pack", "unpack"]


def pack(sequences, *, batch_first=False) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of unequal length, side by side in one array.

    Parameters
    ----------
    sequences : iterable of arrays (T_n, I), or (T_n,) of token ids
        All of one dtype, and of one I.
    batch_first : bool
        Whether the result is (N, T, I) instead of (T, N, I).

    Returns
    -------
    x : (T, N, I) array, or (T, N) of ids
        T is the longest length; zero past the ends.
    lengths : (N,) int64 array
        What the layers take as `lengths`.

    Raises
    ------
    TypeError, ValueError
        For an empty list, or sequences that do not fit together; named in the message.
    MemoryError
        Where x does not fit.
    """
    batch_first = _check.flag("batch_first", batch_first)
    arrays = _check.sequences("sequences", sequences)
    lengths = np.array([len(array) for array in arrays], np.int64)
    shape = (int(lengths.max()), len(arrays), *arrays[0].shape[1:])
    if batch_first:
        shape = (shape[1], shape[0], *shape[2:])
    packed = _check.allocate("x", shape, arrays[0].dtype)
    packed.fill(0)
    by_row = packed if batch_first else packed.swapaxes(0, 1)
    for row, array in zip(by_row, arrays, strict=True):
        row[: len(array)] = array
    return packed, lengths


def unpack(y, lengths, *, batch_first=False) -> list[np.ndarray]:
    """The valid steps of each row.

    Parameters
    ----------
    y : (T, N, ...) array; (N, T, ...) with `batch_first`
    lengths : (N,) integers from 0 to T
    batch_first : bool

    Returns
    -------
    list of N arrays (length, ...)
        Views of y.

    Raises
    ------
    TypeError, ValueError
        For a y of fewer than two dimensions or lengths that do not fit it.
    """
    batch_first = _check.flag("batch_first", batch_first)
    y = _check.any_array("y", y)
    if y.ndim < 2:
        expected = "(N, T, ...)" if batch_first else "(T, N, ...)"
        raise ValueError(f"y: expected shape {expected}, got {y.shape}")
    by_row = y if batch_first else y.swapaxes(0, 1)
    lengths = _check.lengths("lengths", lengths, by_row.shape[1], by_row.shape[0], True)
    return [row[:length] for row, length in zip(by_row, lengths, strict=True)]

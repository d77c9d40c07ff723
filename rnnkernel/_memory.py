"""Memory for the kernels: aligned to cache lines, so that no vector straddles two."""

import numpy as np

ALIGNMENT = 64


def aligned_empty(count: int, dtype) -> np.ndarray:
    """A flat array, uninitialised, whose first element lies at a multiple of 64 bytes."""
    dtype = np.dtype(dtype)
    try:
        raw = np.empty(count * dtype.itemsize + ALIGNMENT, np.uint8)
    except ValueError:  # more bytes than a pointer counts
        raise MemoryError(f"{count} numbers of {dtype.itemsize} bytes do not fit") from None
    start = -raw.__array_interface__["data"][0] % ALIGNMENT
    return raw[start : start + count * dtype.itemsize].view(dtype)


def aligned_zeros(count: int, dtype) -> np.ndarray:
    """The same, zero."""
    array = aligned_empty(count, dtype)
    array.fill(0)
    return array


def tile_pitch(width: int, itemsize: int) -> int:
    """Elements from one row of a private tile to the next.

    Whole cache lines, and never a large power of two of them: rows at a multiple of 4 KiB
    would compete for one set of L1.
    """
    lines = -(-width * itemsize // ALIGNMENT)
    return (lines + (lines % 8 == 0)) * ALIGNMENT // itemsize

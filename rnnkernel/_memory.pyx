"""Memory for the kernels: aligned to cache lines, so that no vector straddles two."""

cimport numpy as cnp

import numpy as np

cnp.import_array()

cdef enum:
    ALIGNMENT = 64


def aligned_empty(count, dtype):
    """A flat array, uninitialised, whose first element lies at a multiple of 64 bytes."""
    cdef cnp.ndarray raw
    cdef Py_ssize_t size, start
    dtype = np.dtype(dtype)
    try:
        size = count * dtype.itemsize
        raw = np.empty(size + ALIGNMENT, np.uint8)
    except (OverflowError, ValueError):  # more bytes than a pointer counts
        raise MemoryError(f"{count} numbers of {dtype.itemsize} bytes do not fit") from None
    start = -<Py_ssize_t>cnp.PyArray_DATA(raw) % ALIGNMENT
    if start < 0:
        start += ALIGNMENT
    return raw[start : start + size].view(dtype)


def aligned_zeros(count, dtype):
    """The same, zero."""
    array = aligned_empty(count, dtype)
    array.fill(0)
    return array


def tile_pitch(Py_ssize_t width, Py_ssize_t itemsize):
    """Elements from one row of a private tile to the next.

    Whole cache lines, and never a large power of two of them: rows at a multiple of 4 KiB
    would compete for one set of L1.
    """
    cdef Py_ssize_t lines = (width * itemsize + ALIGNMENT - 1) // ALIGNMENT
    return (lines + (lines % 8 == 0)) * ALIGNMENT // itemsize

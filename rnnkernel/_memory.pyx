"""Arrays for results and for the kernels, which want them aligned to cache lines.

Large ones live in blocks of rnnkernel/_pool.pyx: NumPy lets arrays have a memory handler of their
own, so they are owned, resized and freed as any others.
"""

cimport numpy as cnp
from cpython.pycapsule cimport PyCapsule_New
from libc.string cimport memcpy, memset

import numpy as np

from rnnkernel._pool cimport block_size, give_block, poison, take_block

cnp.import_array()

cdef extern from "numpy/arrayobject.h":
    ctypedef struct PyDataMemAllocator:
        void *ctx
        void *(*malloc)(void *ctx, size_t size) noexcept nogil
        void *(*calloc)(void *ctx, size_t count, size_t size) noexcept nogil
        void *(*realloc)(void *ctx, void *memory, size_t size) noexcept nogil
        void (*free)(void *ctx, void *memory, size_t size) noexcept nogil

    ctypedef struct PyDataMem_Handler:
        char name[127]
        unsigned char version
        PyDataMemAllocator allocator

    object PyDataMem_SetHandler(object handler)

cdef enum:
    # Smaller arrays come from malloc, which does not hand as little back.
    LARGE = 1 << 15
    PAGE = 4096


cdef void *take(void *ctx, size_t size) noexcept nogil:
    return take_block(size)


cdef void *take_zeros(void *ctx, size_t count, size_t size) noexcept nogil:
    cdef char *memory = NULL
    if size == 0 or count <= <size_t>-1 // size:
        memory = take_block(count * size)
    if memory != NULL:
        memset(memory, 0, count * size)
    return memory


cdef void *take_more(void *ctx, void *memory, size_t size) noexcept nogil:
    cdef char *more = take_block(size)
    if more != NULL and memory != NULL:
        memcpy(more, memory, min(size, block_size(<char *>memory)))
        give_block(<char *>memory)
    return more


cdef void give(void *ctx, void *memory, size_t size) noexcept nogil:
    if memory != NULL:
        give_block(<char *>memory)


cdef PyDataMem_Handler handler
memset(&handler, 0, sizeof(handler))
memcpy(handler.name, b"rnnkernel", 10)
handler.version = 1
handler.allocator.malloc = take
handler.allocator.calloc = take_zeros
handler.allocator.realloc = take_more
handler.allocator.free = give
cdef object capsule = PyCapsule_New(&handler, "mem_handler", NULL)


cdef cnp.ndarray new_array(int dimensions, cnp.npy_intp *shape, int type_number):
    cdef int axis
    cdef double size = 1 if type_number == cnp.NPY_UINT8 else 8
    for axis in range(dimensions):
        size *= shape[axis]
    if size < LARGE and not poison:
        return cnp.PyArray_EMPTY(dimensions, shape, type_number, 0)
    others = PyDataMem_SetHandler(capsule)
    try:
        return cnp.PyArray_EMPTY(dimensions, shape, type_number, 0)
    finally:
        PyDataMem_SetHandler(others)


def empty(shape, dtype):
    """`np.empty` of such an array."""
    cdef cnp.npy_intp[64] sizes  # NumPy's most axes
    cdef int axis
    shape, dtype = tuple(shape), np.dtype(dtype)
    if len(shape) > 64:
        raise ValueError(f"shape: expected at most 64 axes, got {len(shape)}")
    for axis in range(len(shape)):
        sizes[axis] = shape[axis]
    return new_array(<int>len(shape), sizes, dtype.num)


def zeros(shape, dtype, Py_ssize_t rows):
    """`np.zeros` of a table, of which so many rows will be written to."""
    cdef double width = np.prod(shape[1:]) * np.dtype(dtype).itemsize
    if shape[0] * width > 4 * rows * max(width, PAGE):
        return np.zeros(shape, dtype)  # the system brings in a page where it is touched
    array = empty(shape, dtype)
    array.fill(0)
    return array


cdef cnp.ndarray aligned_empty(Py_ssize_t count, int type_number):
    cdef cnp.ndarray raw, flat
    cdef cnp.npy_intp size, shape = count
    cdef Py_ssize_t start, item = cnp.PyArray_DescrFromType(type_number).itemsize
    if not 0 <= count < (<Py_ssize_t>(<size_t>-1 >> 1) - RK_ALIGNMENT) // item:
        raise MemoryError(f"{count} numbers of {item} bytes do not fit")
    size = count * item + RK_ALIGNMENT
    raw = new_array(1, &size, cnp.NPY_UINT8)
    start = -<Py_ssize_t>cnp.PyArray_DATA(raw) % RK_ALIGNMENT
    if start < 0:
        start += RK_ALIGNMENT
    flat = cnp.PyArray_SimpleNewFromData(
        1, &shape, type_number, <char *>cnp.PyArray_DATA(raw) + start
    )
    cnp.set_array_base(flat, raw)
    return flat


cdef cnp.ndarray aligned_zeros(Py_ssize_t count, int type_number):
    cdef cnp.ndarray flat = aligned_empty(count, type_number)
    memset(cnp.PyArray_DATA(flat), 0, cnp.PyArray_NBYTES(flat))
    return flat


cdef cnp.ndarray room_for(Layout *m):
    # not aligned_empty: a view more is 2 % of a small call
    cdef cnp.npy_intp size = m.used + RK_ALIGNMENT
    cdef cnp.ndarray array = new_array(1, &size, cnp.NPY_UINT8)
    cdef Py_ssize_t begin = <Py_ssize_t>cnp.PyArray_DATA(array)
    m.base = <char *>((begin + RK_ALIGNMENT - 1) // RK_ALIGNMENT * RK_ALIGNMENT)
    m.used = 0
    return array


cdef Py_ssize_t tile_pitch(Py_ssize_t width, Py_ssize_t itemsize) noexcept:
    # Whole cache lines, and never a large power of two of them: rows at a multiple of 4 KiB would
    # compete for one set of L1.
    cdef Py_ssize_t lines = (width * itemsize + RK_ALIGNMENT - 1) // RK_ALIGNMENT
    return (lines + (lines % 8 == 0)) * RK_ALIGNMENT // itemsize

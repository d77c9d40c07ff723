cimport numpy as cnp

from rnnkernel._kernels cimport RK_ALIGNMENT

# A new array, uninitialised; large ones have a block that other calls have used.
cdef cnp.ndarray new_array(int dimensions, cnp.npy_intp *shape, int type_number)
# A flat array, uninitialised, whose first element lies at a multiple of 64 bytes.
cdef cnp.ndarray aligned_empty(Py_ssize_t count, int type_number)
# The same, zero.
cdef cnp.ndarray aligned_zeros(Py_ssize_t count, int type_number)
# Elements from one row of a private tile to the next.
cdef Py_ssize_t tile_pitch(Py_ssize_t width, Py_ssize_t itemsize) noexcept


cdef inline char *address(object array) except? NULL:
    """Where an array's elements begin. Python's way, array.ctypes.data, makes objects for it, and a
    call asks some dozen times."""
    return <char *>cnp.PyArray_DATA(<cnp.ndarray?>array)


# Memory for several parts in one piece: laid out once without a base, which counts how much that
# is, and then with one.
cdef struct Layout:
    char *base
    Py_ssize_t used


cdef inline char *place(Layout *m, Py_ssize_t size) noexcept nogil:
    """The next so many bytes, from the start of a cache line on."""
    cdef char *here = m.base + m.used if m.base != NULL else NULL
    m.used += (size + RK_ALIGNMENT - 1) // RK_ALIGNMENT * RK_ALIGNMENT
    return here


# An array with room for what a layout has counted, which begins there.
cdef cnp.ndarray room_for(Layout *m)

cimport numpy as cnp

# A new array, uninitialised; large ones have a block that other calls have used.
cdef cnp.ndarray new_array(int dimensions, cnp.npy_intp *shape, int type_number)
# A flat array, uninitialised, whose first element lies at a multiple of 64 bytes.
cdef cnp.ndarray aligned_empty(Py_ssize_t count, int type_number)
# The same, zero.
cdef cnp.ndarray aligned_zeros(Py_ssize_t count, int type_number)
# Elements from one row of a private tile to the next.
cdef Py_ssize_t tile_pitch(Py_ssize_t width, Py_ssize_t itemsize) noexcept

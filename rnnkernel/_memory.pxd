cimport numpy as cnp

# A new array, uninitialised; large ones have a block that other calls have used.
cdef cnp.ndarray new_array(int dimensions, cnp.npy_intp *shape, int type_number)

"""Packed weights that stay with a layer from call to call, while its parameters cannot change.

Parameters are live: whoever has one may write to it, and the next call computes with that. Whoever
asks a layer for them is heard (`forget`), and an array that somebody has, itself or a view or a
buffer of it, is counted by Python. Where nobody has one and nobody asks, nothing can change, and
weights need not be packed again. An address alone, without its array, is not counted.

The first call after a change packs for itself alone; weights stay from the second on, so that
training, whose every call sees other weights, keeps nothing.
"""

cimport numpy as cnp
from cpython.dict cimport PyDict_Next
from cpython.object cimport PyObject

from rnnkernel._pool cimport layer_begins, layer_ends

cnp.import_array()

cdef extern from *:
    """
    /* Counts tell who has an object where every reference is counted, by one thread at a time. */
    #if defined(PYPY_VERSION) || defined(Py_GIL_DISABLED)
    #define RK_COUNTS 0
    #else
    #define RK_COUNTS 1
    #endif

    static int rk_has_weak_reference(PyObject *o) {
        Py_ssize_t at = Py_TYPE(o)->tp_weaklistoffset;
        return at > 0 && *(PyObject **)((char *)o + at) != NULL;
    }

    /* Bytes that nobody else looks at, through this object, which has no other reference. A
       memoryview shares what it looks at with those made of it, and has no reference of theirs. */
    static int rk_is_only_view(PyObject *o) {
    #if RK_COUNTS
        if (PyMemoryView_Check(o)) {
            const PyMemoryViewObject *view = (PyMemoryViewObject *)o;
            PyObject *bytes = view->mbuf->master.obj;
            return view->mbuf->exports == 1 && bytes != NULL && PyByteArray_CheckExact(bytes) &&
                   Py_REFCNT(bytes) == 1;
        }
    #endif
        return 0;
    }
    """
    enum:
        RK_COUNTS
    Py_ssize_t Py_REFCNT(PyObject *o) nogil
    bint rk_has_weak_reference(PyObject *o)
    bint rk_is_only_view(PyObject *o)


cdef bint is_only(PyObject *array) noexcept:
    """Whether its one reference is all there is to an array's memory. An array that was pickled, by
    the protocol from 5 on, looks at a bytearray."""
    while Py_REFCNT(array) == 1 and not rk_has_weak_reference(array):
        if not cnp.PyArray_CheckExact(<object>array):
            return rk_is_only_view(array)
        if cnp.PyArray_BASE(<cnp.ndarray>array) == NULL:
            return cnp.PyArray_CHKFLAGS(<cnp.ndarray>array, cnp.NPY_ARRAY_OWNDATA)
        array = <PyObject *>cnp.PyArray_BASE(<cnp.ndarray>array)
    return False


cdef bint are_only(parameters) noexcept:
    """Whether nobody but the caller, and who gave them to it, has a dict or one of its arrays."""
    cdef PyObject *value
    cdef Py_ssize_t place = 0
    if type(parameters) is not dict or Py_REFCNT(<PyObject *>parameters) != 2:
        return False
    while PyDict_Next(parameters, &place, NULL, &value):
        if not is_only(value):
            return False
    return True


cdef class Kept:
    def __cinit__(self):  # a layer has one of these as long as it lives
        layer_begins()

    def __dealloc__(self):
        layer_ends()

    def forget(self):
        """Somebody gets to the parameters."""
        self.weights = None
        self.unreachable = False
        self.forgotten += 1

    cdef long long begin(self, layer) except -2:
        """Called before a layer's weights are read and packed: the ticket to `keep` them with, or
        -1 where they are not to stay."""
        cdef bint before = self.unreachable
        parameters = layer._parameters
        self.unreachable = RK_COUNTS and are_only(parameters)
        return self.forgotten if before and self.unreachable else -1

    cdef int keep(self, list weights, long long ticket) except -1:
        """Unless somebody has come to the parameters meanwhile."""
        if ticket == self.forgotten:
            self.weights = weights
        return 0

    def packed(self, layer, pack):
        """What is kept, made by `pack()` where that is due; else None."""
        cdef long long ticket
        if self.weights is None:
            ticket = self.begin(layer)
            if ticket >= 0:
                self.keep(pack(), ticket)
        return self.weights

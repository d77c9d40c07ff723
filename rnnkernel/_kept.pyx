"""Packed weights that stay with a layer from call to call, while its parameters cannot change.

Parameters are live: whoever has one may write to it, and the next call computes with that. Whoever
asks a layer for them is heard (`forget`), and an array that somebody has, itself or a view or a
buffer of it, is counted by Python. Where nobody has one and nobody asks, nothing can change, and
weights need not be packed again. An address alone, without its array, is not counted.

Threads may ask and call at once. Who asks has a reference before `forget`: a call that begins later
counts it, and one that began earlier finds its ticket expired.

The first call after a change packs for itself alone; weights stay from the second on, so that
training, whose every call sees other weights, keeps nothing.
"""

cimport numpy as cnp
from cpython.dict cimport PyDict_Next
from cpython.object cimport PyObject

from rnnkernel._pool cimport layer_begins, layer_ends
from rnnkernel._shared cimport rk_enter, rk_leave

cnp.import_array()

cdef extern from *:
    """
    /* How many references there are, or -1 where that cannot be told: where not every one is
       counted, and where the thread that made an object counts its own apart, as it does without
       the GIL. Another one might see that part before a reference comes, and the rest after one has
       gone. */
    static Py_ssize_t rk_references(PyObject *o) {
    #ifdef PYPY_VERSION
        return -1;
    #else
    #ifdef Py_GIL_DISABLED
        if (!_Py_IsOwnedByCurrentThread(o)) return -1;
    #endif
        return Py_REFCNT(o);
    #endif
    }

    static int rk_has_weak_reference(PyObject *o) {
        Py_ssize_t at = Py_TYPE(o)->tp_weaklistoffset;
        return at > 0 && *(PyObject **)((char *)o + at) != NULL;
    }

    /* Bytes that nobody else looks at, through this object, which has no other reference. A
       memoryview shares what it looks at with those made of it, and has no reference of theirs. */
    static int rk_is_only_view(PyObject *o) {
    #ifndef PYPY_VERSION
        if (PyMemoryView_Check(o)) {
            const PyMemoryViewObject *view = (PyMemoryViewObject *)o;
            PyObject *bytes = view->mbuf->master.obj;
            return view->mbuf->exports == 1 && bytes != NULL && PyByteArray_CheckExact(bytes) &&
                   rk_references(bytes) == 1;
        }
    #endif
        return 0;
    }
    """
    Py_ssize_t rk_references(PyObject *o)
    bint rk_has_weak_reference(PyObject *o)
    bint rk_is_only_view(PyObject *o)


cdef bint is_only(PyObject *array) noexcept:
    """Whether its one reference is all there is to an array's memory. An array that was pickled, by
    the protocol from 5 on, looks at a bytearray."""
    while rk_references(array) == 1 and not rk_has_weak_reference(array):
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
    if type(parameters) is not dict or rk_references(<PyObject *>parameters) != 2:
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
        """Somebody has got to the parameters."""
        rk_enter(&self.busy)
        _before = self.held  # freed afterwards
        self.held, self.unreachable = None, False
        self.forgotten += 1
        rk_leave(&self.busy)

    cdef list present(self):
        """What is kept, or None."""
        rk_enter(&self.busy)
        held = self.held
        rk_leave(&self.busy)
        return held

    @property
    def weights(self):
        return self.present()

    cdef long long begin(self, layer) except -2:
        """Called before a layer's weights are read and packed: the ticket to `keep` them with, or
        -1 where they are not to stay."""
        cdef long long ticket = -1
        cdef bint before
        parameters = layer._parameters
        rk_enter(&self.busy)
        before, self.unreachable = self.unreachable, are_only(parameters)
        if before and self.unreachable:
            ticket = self.forgotten
        rk_leave(&self.busy)
        return ticket

    cdef void keep(self, list weights, long long ticket) noexcept:
        """Unless somebody has come to the parameters meanwhile."""
        rk_enter(&self.busy)
        _before = self.held  # freed afterwards
        if ticket == self.forgotten:
            self.held = weights
        rk_leave(&self.busy)

    def packed(self, layer, pack):
        """What is kept, made by `pack()` where that is due; else None."""
        cdef long long ticket
        cdef list weights = self.present()
        if weights is None:
            ticket = self.begin(layer)
            if ticket >= 0:
                weights = pack()
                self.keep(weights, ticket)
        return weights

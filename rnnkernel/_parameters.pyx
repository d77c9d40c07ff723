"""A layer's parameters, looked at in C and packed: one list of arrays, as the layer names them.

All calls of a layer read its dicts: by subscripts, which take no lock where there is no GIL, as
`get` and `items` do.
"""

cimport numpy as cnp

import numpy as np

from rnnkernel._arrays cimport has_shape, is_plain
from rnnkernel._packed_weights cimport PackedWeights, pack_weights, prepare_weights
from rnnkernel._sizes cimport Sizes

cnp.import_array()


cdef list plain_parameters(layer, Sizes sizes):
    cdef object parameters = layer._parameters
    cdef list arrays
    cdef int axis
    cdef cnp.ndarray a
    if type(parameters) is not dict or len(parameters) != len(sizes.parameters):
        return None
    arrays = []
    for name, shape in sizes.parameters:
        try:
            array = parameters[name]
        except KeyError:
            return None
        axis = len(shape) - 1
        if not is_plain(array, sizes.type_number, axis + 1):
            return None
        a = <cnp.ndarray>array
        if not has_shape(a, shape) or cnp.PyArray_STRIDE(a, axis) != cnp.PyArray_ITEMSIZE(a):
            return None
        arrays.append(array)
    return arrays


# Names of one layer and direction, in their order.
cdef struct Places:
    Py_ssize_t weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, weight_ch  # or -1


cdef Places places_of(layer, Py_ssize_t first) except *:
    cdef Places at
    cdef Py_ssize_t past = first + 2
    at.weight_ih, at.weight_hh = first, first + 1
    at.bias_ih = at.bias_hh = at.weight_hr = at.weight_ch = -1
    if layer.bias:
        at.bias_ih, at.bias_hh = past, past + 1
        past += 2
    if layer._cell.projects:
        at.weight_hr = past
        past += 1
    if layer._cell.peepholes:
        at.weight_ch = past
    return at


cdef inline cell_clip_of(layer):
    options = layer.options
    return options["cell_clip"] if "cell_clip" in options else None


cdef inline at_place(list arrays, Py_ssize_t place):
    return None if place < 0 else arrays[place]


cdef PackedWeights pack_places(
    layer, list arrays, Py_ssize_t first, bint training, int threads, columns
):
    cdef Places at = places_of(layer, first)
    return pack_weights(
        layer._cell.index, arrays[at.weight_ih], arrays[at.weight_hh],
        at_place(arrays, at.bias_ih), at_place(arrays, at.bias_hh), training, threads,
        at_place(arrays, at.weight_ch), cell_clip_of(layer),
        at_place(arrays, at.weight_hr), True, columns,
    )


cdef inline Py_ssize_t first_of(layer, list arrays, Py_ssize_t index) except -1:
    return len(arrays) // <Py_ssize_t>len(layer._suffixes) * index


cdef PackedWeights prepare_one(layer, list arrays, Py_ssize_t index, bint training):
    cdef Places at = places_of(layer, first_of(layer, arrays, index))
    return prepare_weights(
        layer._cell.index, arrays[at.weight_ih], arrays[at.weight_hh],
        at_place(arrays, at.bias_ih), at_place(arrays, at.bias_hh), training,
        at_place(arrays, at.weight_ch), cell_clip_of(layer),
        at_place(arrays, at.weight_hr),
    )


def pack(layer, weights, Py_ssize_t index, bint training, int threads, columns=None):
    """One layer and direction of parameters that are known to be right, by name, packed.

    With `columns` W_ih has only these, and x no gradient.
    """
    cdef list names = list(layer._parameter_shapes)
    cdef Py_ssize_t count = len(names) // <Py_ssize_t>len(layer._suffixes)
    cdef list arrays = [
        np.ascontiguousarray(weights[name]) for name in names[index * count:(index + 1) * count]
    ]
    return pack_places(layer, arrays, 0, training, threads, columns)

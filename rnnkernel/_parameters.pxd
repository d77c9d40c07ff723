from rnnkernel._packed_weights cimport PackedWeights
from rnnkernel._sizes cimport Sizes


# A layer's parameters in the order of their names, or None where they are not plain arrays of their
# shapes, with rows without gaps.
cdef list plain_parameters(layer, Sizes sizes)
# One layer and direction of them, whose panels are yet to be packed; training's have transposed
# copies.
cdef PackedWeights prepare_one(layer, list arrays, Py_ssize_t index, bint training)

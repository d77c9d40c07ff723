from rnnkernel._packed_weights cimport PackedWeights


# A layer's parameters in the order of their names, or None where they are not plain arrays of their
# shapes, with rows without gaps.
cdef list plain_parameters(layer, int type_number)
# One layer and direction of them, whose panels are yet to be packed; training's have transposed
# copies.
cdef PackedWeights prepare_one(layer, list arrays, Py_ssize_t index, bint training)

"""A layer's sizes, as C reads them."""


cdef class Sizes:
    def __init__(self, layer):
        self.type_number = layer.dtype.num
        self.input_size, self.hidden_size = layer.input_size, layer.hidden_size
        self.projected_size = layer._widths[0]
        self.states = len(layer._widths)
        self.layers, self.directions = layer.num_layers, layer._directions
        self.parameters = tuple(layer._parameter_shapes.items())

    def __reduce__(self):
        raise TypeError("Sizes: a layer makes its own")


cdef Sizes sizes_of(layer):
    return <Sizes?>layer._sizes

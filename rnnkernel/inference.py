"""Inference at rest: a layer whose weights are packed once."""

import copy
from types import MappingProxyType

from rnnkernel import _check, _threads
from rnnkernel._stream import Stream


class Frozen:
    """An immutable copy of a layer, for inference: its weights are packed once.

    Called as the layer is, with the same checks and the same bits. `layer.freeze()` makes one.
    It may be called from several threads at once, and pickled.

    Attributes
    ----------
    input_size, hidden_size, num_layers : int
    bidirectional, batch_first : bool
    dtype : numpy.dtype
        As the layer's.
    parameters : mapping of str to array
        Copies of the layer's, read-only.
    """

    def __init__(self, layer):
        # a private layer of the same class and options knows the shapes, checks and layouts
        self._layer = copy.copy(layer)
        checked = _check.parameters("parameters", layer.parameters, layer._shapes(), layer.dtype)
        arrays = {name: _read_only_copy(array) for name, array in checked.items()}
        self._layer.parameters = MappingProxyType(arrays)
        threads = _threads.resolve(None)
        passes = len(layer._suffixes())
        self._packed = [layer._pack(arrays, index, False, threads) for index in range(passes)]

    input_size = property(lambda self: self._layer.input_size, doc="I")
    hidden_size = property(lambda self: self._layer.hidden_size, doc="H")
    num_layers = property(lambda self: self._layer.num_layers, doc="L")
    bidirectional = property(lambda self: self._layer.bidirectional)
    batch_first = property(lambda self: self._layer.batch_first)
    dtype = property(lambda self: self._layer.dtype)
    parameters = property(lambda self: self._layer.parameters)

    def __repr__(self):
        return f"{self._layer!r}.freeze()"

    def __reduce__(self):
        layer = copy.copy(self._layer)
        layer.parameters = dict(self.parameters)
        return type(self), (layer,)

    def __call__(self, x, state=None, *, lengths=None, reset=None, num_threads=None):
        """Inference: `y, state` of `forward`."""
        out = self.forward(x, state, lengths=lengths, reset=reset, num_threads=num_threads)
        return out.y, out.state

    def forward(
        self,
        x,
        state=None,
        *,
        lengths=None,
        reset=None,
        training=False,
        trace=False,
        out=None,
        num_threads=None,
    ):
        """As the layer's `forward` without training.

        Raises
        ------
        TypeError, ValueError, MemoryError
            As the layer's `forward`; ValueError for `training=True`.
        """
        if _check.flag("training", training):
            raise ValueError("training: expected False, got True: a frozen layer does inference")
        trace = _check.flag("trace", trace)
        threads = _threads.resolve(num_threads)
        return self._layer._run(
            self._packed.__getitem__,
            self.parameters,
            threads,
            x,
            state,
            lengths=lengths,
            reset=reset,
            trace=trace,
            out=out,
        )

    def stream(self, batch_size=1):
        """A `Stream` of `batch_size` sequences that go on step by step, from zero states.

        Raises
        ------
        TypeError, ValueError
            For a bad batch size, and for a bidirectional layer.
        MemoryError
            Where the states do not fit.
        """
        return Stream(self, batch_size)


def _read_only_copy(array):
    copied = array.copy(order="C")
    copied.flags.writeable = False
    return copied.view()  # who owns the memory could make it writable again, a view cannot

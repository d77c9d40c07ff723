"""Inference at rest: a layer whose weights are packed once."""

import copy
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from rnnkernel import _check, _passes, _threads, profiling
from rnnkernel._packed_weights import PackedWeights
from rnnkernel._parameters import pack
from rnnkernel._plain import infer
from rnnkernel._stream import Stream
from rnnkernel.results import Output


class Inference:
    """What a layer and its frozen copy have in common: a call is inference."""

    _packed: list[PackedWeights] | None = None  # of each layer and direction, if at rest
    forward: Callable[..., Output]

    def __call__(
        self,
        x: Any,
        state: Any = None,
        *,
        lengths: Any = None,
        reset: Any = None,
        embedding: Any = None,
        num_threads: int | None = None,
    ) -> tuple[np.ndarray, Any]:
        """Inference, as `forward` documents its arguments.

        Parameters
        ----------
        x : (T, N, I) array; (N, T, I) with `batch_first`; (T, I) unbatched; or integers, token ids
        state : (L*D, N, H) array, or for LSTM a pair h (L*D, N, P), c (L*D, N, H), optional
        lengths : (N,) integers, optional
        reset : (T, N) bool array, optional
        embedding : (V, I) array, optional
        num_threads : int, optional

        Returns
        -------
        y : (T, N, D*P) array, laid out as x
            The hidden states of the last layer.
        state : like `state`
            The final states.

        Raises
        ------
        TypeError, ValueError, IndexError, MemoryError
            As `forward`.
        """
        if reset is None and embedding is None:
            plain = infer(self, x, state, num_threads, lengths)
            if plain is not None:
                return plain
        out = self.forward(
            x,
            state,
            lengths=lengths,
            reset=reset,
            embedding=embedding,
            num_threads=num_threads,
        )
        return out.y, out.state


class Frozen(Inference):
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
        Copies of the layer's, read-only; with smaller weights, the values that they stand for.

    Notes
    -----
    `weights="float16"` stores `weight_ih` and `weight_hh` rounded to half precision; results have
    the bits of a layer with the rounded weights. `"int8"` stores each of their rows as integers
    from -127 to 127 and one float32 scale, max |w| / 127; the sum over a row is made of the
    integers, in float32, and scaled at its end. Where the processor multiplies bytes (AVX-512 VNNI,
    AVX-VNNI or AArch64's dot product), rows of x and h are made of integers too, of 23 bits with a
    common exponent, as exact as float32 for the largest of a row, and sums are of integers: much
    faster, and a row with a NaN or an infinity gives NaN. So it is with AVX2 or AVX-512 alone, but
    that these integers have 15 bits, which is far less lost than the weights have lost.
    `rk.show_config()` tells which. Everything else stays float32. Smaller weights are for small
    batches, where a step takes the time to read them.
    """

    def __init__(self, layer: Any, weights: str | None = None) -> None:
        if not hasattr(layer, "_suffixes"):
            raise TypeError(f"layer: expected an RNN, GRU or LSTM, got {type(layer).__name__}")
        if weights is not None:
            _check.choice("weights", weights, ("float16", "int8"))
            if layer.dtype != np.float32:
                raise ValueError(
                    f"weights: expected None for a {layer.dtype} layer, got {weights!r}: they have "
                    "3 digits and are summed in float32, so nothing of float64 would be left"
                )
        self._weights = weights
        # a private layer of the same class and options knows the shapes, checks and layouts
        self._layer = copy.copy(layer)
        arrays = _check.parameters(
            "parameters", layer._parameters, layer._parameter_shapes, layer.dtype
        )
        packed_from, scales = arrays, {}
        if weights == "float16":
            packed_from = arrays = _halved(arrays)
        elif weights == "int8":
            packed_from, scales = _quantised(arrays)
            arrays = {
                name: array * scales[name][:, None] if name in scales else array
                for name, array in packed_from.items()
            }
        self._layer.parameters = MappingProxyType(
            {name: _read_only_copy(array) for name, array in arrays.items()}
        )
        threads = _threads.resolve(None)
        self._packed = []
        for index, suffix in enumerate(layer._suffixes):
            packed = pack(layer, packed_from, index, False, threads)
            if weights is not None:
                packed.shrink(scales.get(f"weight_ih{suffix}"), scales.get(f"weight_hh{suffix}"))
            self._packed.append(packed)

    @property
    def input_size(self) -> int:
        """I"""
        return self._layer.input_size

    @property
    def hidden_size(self) -> int:
        """H"""
        return self._layer.hidden_size

    @property
    def num_layers(self) -> int:
        """L"""
        return self._layer.num_layers

    @property
    def bidirectional(self) -> bool:
        """Whether D is 2."""
        return self._layer.bidirectional

    @property
    def batch_first(self) -> bool:
        """Whether x and y are (N, T, ...)."""
        return self._layer.batch_first

    @property
    def dtype(self) -> np.dtype:
        """float32 or float64"""
        return self._layer.dtype

    @property
    def parameters(self) -> Mapping[str, np.ndarray]:
        """The layer's as they were, read-only, by name."""
        return MappingProxyType({name: a.view() for name, a in self._layer.parameters.items()})

    def __repr__(self):
        return f"{self._layer!r}.freeze({repr(self._weights) if self._weights else ''})"

    def __reduce__(self):
        layer = copy.copy(self._layer)
        layer.parameters = dict(self.parameters)
        return type(self), (layer, self._weights)

    def forward(
        self,
        x: Any,
        state: Any = None,
        *,
        lengths: Any = None,
        reset: Any = None,
        embedding: Any = None,
        training: bool = False,
        trace: bool = False,
        out: np.ndarray | None = None,
        num_threads: int | None = None,
    ) -> Output:
        """As the layer's `forward` without training.

        Raises
        ------
        TypeError, ValueError, IndexError, MemoryError
            As the layer's `forward`; ValueError for `training=True`.
        """
        call = profiling.begin(self, "forward()")
        if _check.flag("training", training):
            raise ValueError("training: expected False, got True: a frozen layer does inference")
        trace = _check.flag("trace", trace)
        threads = _threads.resolve(num_threads)
        result = _passes.forward(
            self._layer,
            self._packed.__getitem__,
            self.parameters,
            threads,
            x,
            state,
            lengths=lengths,
            reset=reset,
            embedding=embedding,
            trace=trace,
            out=out,
            one_hot="packed",
        )
        if call is not None:
            call.end()
        return result

    def stream(self, batch_size: int = 1) -> Stream:
        """A `Stream` of `batch_size` sequences that go on step by step, from zero states.

        Raises
        ------
        TypeError, ValueError
            For a bad batch size, and for a bidirectional layer.
        MemoryError
            Where the states do not fit.
        """
        return Stream(self, batch_size)


def _is_small(name):
    """Whether smaller weights are meant for a parameter: the matrices that every step reads."""
    return name.startswith(("weight_ih", "weight_hh"))


def _halved(arrays):
    """The matrices rounded to float16, as float32."""
    halved = dict(arrays)
    for name, array in arrays.items():
        if not _is_small(name):
            continue
        with np.errstate(all="ignore"):
            halved[name] = array.astype(np.float16).astype(np.float32)
        lost = np.isinf(halved[name]) & np.isfinite(array)
        if lost.any():
            raise ValueError(
                f"parameters[{name!r}]: expected at most 65504 in magnitude for float16, got "
                f"{array[lost][0]}"
            )
    return halved


def _quantised(arrays):
    """The matrices as integers from -127 to 127 (in float32), and a scale for each row."""
    quantised, scales = dict(arrays), {}
    for name, array in arrays.items():
        if not _is_small(name):
            continue
        if not np.isfinite(array).all():
            raise ValueError(f"parameters[{name!r}]: expected finite numbers for int8, got others")
        # not so small that a scale would be denormal, and count as zero
        largest = np.maximum(np.abs(array).max(axis=1), 256 * np.finfo(np.float32).tiny)
        scale = (largest / np.float32(127)).astype(np.float32)
        # rounded up to 16 digits, so that scale * integer is exact, and quantised again the same
        scales[name] = ((scale.view(np.uint32) + 0xFF) & 0xFFFFFF00).view(np.float32)
        integers = np.rint(array.astype(np.float64) / scales[name].astype(np.float64)[:, None])
        quantised[name] = np.clip(integers, -127, 127).astype(np.float32)
    return quantised, scales


def _read_only_copy(array):
    copied = array.copy(order="C")
    copied.flags.writeable = False
    return copied.view()  # who owns the memory could make it writable again, a view cannot

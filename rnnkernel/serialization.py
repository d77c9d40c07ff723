"""Layers in files: `save` and `load`, in the safetensors format.

A file is 8 bytes, the length of the header as an unsigned little-endian integer; the header, a JSON
object; and the data, raw, little-endian, in C order. The header maps every tensor's name to its
dtype, shape and place in the data, and `__metadata__` to strings, where the configuration stands:

    {"__metadata__": {"format": "rnnkernel", "class": "LSTM",
                      "input_size": "3", "hidden_size": "5", "dtype": "\\"float32\\"", ...},
     "weight_ih_l0": {"dtype": "F32", "shape": [20, 3], "data_offsets": [0, 240]}, ...}

Every argument of the constructor is one entry, its value as JSON. See
https://github.com/huggingface/safetensors for the format; any of its readers opens these files.
"""

from __future__ import annotations

import json
import math
import os
import stat
import sys
from collections.abc import Mapping
from io import BufferedReader
from typing import Any, NoReturn

import numpy as np

from rnnkernel import _check
from rnnkernel.layers import GRU, LSTM, RNN
from rnnkernel.readout import Linear

__all__ = ["load", "save"]

LAYERS: dict[str, Any] = {layer.__name__: layer for layer in (RNN, GRU, LSTM, Linear)}
DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8")}

FORMAT = "rnnkernel"
MAX_HEADER = 100_000_000  # the format's own limit
MAX_DIMENSIONS = 32  # NumPy's, before 2.0

Path = str | os.PathLike[str]


def save(layer: RNN | GRU | LSTM | Linear, path: Path) -> None:
    """Writes a layer, its configuration and its parameters, to a safetensors file.

    A file of that name is replaced at once and whole, or, where anything fails, left as it is. Who
    may read and write it stays as it was.

    Parameters
    ----------
    layer : RNN, GRU, LSTM or Linear
        Its `rng` is not stored.
    path : str or os.PathLike

    Raises
    ------
    TypeError, ValueError
        For a bad argument, named in the message, for parameters that do not fit the layer, and for
        a path where there is something else than a file.
    OSError
        Where the file cannot be written.
    """
    if type(layer) not in LAYERS.values():
        raise TypeError(f"layer: expected an RNN, GRU, LSTM or Linear, got {type(layer).__name__}")
    target = os.path.realpath(_check.path("path", path))
    # a recurrent layer would hear of it, and pack its weights again
    given = layer.parameters if isinstance(layer, Linear) else layer._parameters
    arrays = _check.parameters("parameters", given, layer._parameter_shapes, layer.dtype)
    name_of = {dtype.newbyteorder("="): name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {
        "__metadata__": {
            "format": FORMAT,
            "class": type(layer).__name__,
            **{
                name: json.dumps(value, allow_nan=False)
                for name, value in layer._configuration().items()
            },
        }
    }
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        header[name] = {
            "dtype": name_of[layer.dtype],
            "shape": list(array.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data are aligned for who maps the file

    before = os.stat(target) if os.path.exists(target) else None
    if before is not None and not stat.S_ISREG(before.st_mode):
        raise ValueError(f"path: expected a regular file or none, got {path!r}, something else")
    # not the name with something behind it, which may be too long
    temporary = os.path.join(os.path.dirname(target), f".{os.urandom(8).hex()}.tmp")
    try:
        with open(temporary, "xb") as file:
            if before is not None:
                os.fchmod(file.fileno(), stat.S_IMODE(before.st_mode))
            file.write(len(text).to_bytes(8, "little"))
            file.write(text)
            for array in arrays.values():
                file.write(np.ascontiguousarray(array, DTYPES[name_of[layer.dtype]]).data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def load(path: Path, *, rng: int | np.random.Generator | None = None) -> Any:
    """Reads a layer that `save` wrote.

    Parameters
    ----------
    path : str or os.PathLike
    rng : int or numpy.random.Generator, optional
        As in the layer's constructor: the source of dropout's masks.

    Returns
    -------
    RNN, GRU, LSTM or Linear
        With the class, the options, the dtype and the parameters of the layer that was saved.

    Raises
    ------
    TypeError, ValueError
        For a bad argument, named in the message; for a file that is damaged, is no safetensors file
        or holds no layer. Nothing larger than the file is allocated before that is known.
    OSError
        Where the file cannot be read.
    """
    path = _check.path("path", path)
    rng = _check.generator("rng", rng)
    try:
        with open(path, "rb", opener=_open) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                _damaged("a regular file", "something else")
            header, begin = _read_header(file, status.st_size)
            metadata = _metadata(header.pop("__metadata__", None))
            places = _places(header, status.st_size - begin)
            tensors = {
                name: _read_tensor(file, begin, *place, name) for name, place in places.items()
            }
        return _build(metadata, tensors, rng)
    except _Damaged as error:
        raise ValueError(
            f"path: expected the safetensors file of a layer, got {path!r}: {error}"
        ) from None


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # not to hang at a pipe without a writer


class _Damaged(Exception):
    """What is wrong with a file."""


def _damaged(expected: str, got: Any) -> NoReturn:
    text = str(got)
    raise _Damaged(f"expected {expected}, got {text if len(text) < 200 else text[:200] + '...'}")


def _read_header(file: BufferedReader, size: int) -> tuple[dict[str, Any], int]:
    """The header and where the data begin."""
    first = file.read(8)
    if len(first) < 8:
        _damaged("8 bytes with the length of the header", f"a file of {len(first)} bytes")
    length = int.from_bytes(first, "little")
    if length > min(size - 8, MAX_HEADER):
        _damaged(f"a header of at most {min(size - 8, MAX_HEADER)} bytes", length)
    text = file.read(length)
    if len(text) < length:
        _damaged(f"a header of {length} bytes", len(text))
    if text[:1] != b"{":
        _damaged("a header that begins with {", repr(text[:1]))
    try:
        header = json.loads(
            text.decode(), object_pairs_hook=_no_name_twice, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:  # text that is not UTF-8 is a ValueError, too
        _damaged("a header in JSON", f"{type(error).__name__}: {error}")
    return header, 8 + length


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            _damaged("names that differ", f"{name!r} twice")
        found[name] = value
    return found


def _no_constant(text: str) -> NoReturn:
    _damaged("finite numbers", text)


def _metadata(value: Any) -> dict[str, str]:
    """The configuration, still as text."""
    if value is None:
        _damaged("a configuration in __metadata__", "none: use a reader of safetensors files and "
                 "load_state_dict")  # fmt: skip
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        _damaged("strings in __metadata__", value)
    if value.get("format") != FORMAT:
        got = f"{value.get('format')!r}: use a reader of safetensors files and load_state_dict"
        _damaged(f"the format {FORMAT!r} in __metadata__", got)
    return value


def _places(header: Mapping[str, Any], size: int) -> dict[str, tuple[np.dtype, list[int], int]]:
    """Every tensor's dtype, shape and beginning; together they are exactly the data."""
    places, ranges = {}, []
    for name, entry in header.items():
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            _damaged(f"dtype, shape and data_offsets of {name!r}", entry)
        shape, offsets = entry["shape"], entry["data_offsets"]
        if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
            _damaged(f"{name!r} to be of dtype {' or '.join(DTYPES)}", entry["dtype"])
        if not _are_sizes(shape):
            _damaged(f"{name!r} to have a shape of integers >= 0", shape)
        if not _are_sizes(offsets) or len(offsets) != 2:
            _damaged(f"{name!r} to have two offsets >= 0", offsets)
        dtype, (begin, end) = DTYPES[entry["dtype"]], offsets
        if math.prod(shape) * dtype.itemsize != end - begin:
            _damaged(f"{name!r} to have {math.prod(shape) * dtype.itemsize} bytes", end - begin)
        places[name] = (dtype, shape, begin)
        ranges.append((begin, end))
    reached = 0
    for begin, end in sorted(ranges):
        if begin != reached:
            _damaged(f"data without holes or overlaps, the next at {reached}", begin)
        reached = end
    if reached != size:
        _damaged(f"{reached} bytes of data", size)
    return places


def _are_sizes(value: Any) -> bool:
    """Whether it is a list of integers that a shape or an offset may have."""
    if not isinstance(value, list) or len(value) > MAX_DIMENSIONS:
        return False
    return all(type(n) is int and 0 <= n <= sys.maxsize for n in value)


def _read_tensor(
    file: BufferedReader, data: int, dtype: np.dtype, shape: list[int], begin: int, name: str
) -> np.ndarray:
    array = _check.allocate(name, (math.prod(shape),), dtype.newbyteorder("="))
    file.seek(data + begin)
    if array.size and file.readinto(array.data) != array.nbytes:
        _damaged(f"{array.nbytes} bytes of {name!r}", "the end of the file")
    try:
        if sys.byteorder == "big":
            array.byteswap(inplace=True)
        return array.reshape(shape)
    except ValueError as error:  # too many dimensions, or a size beyond NumPy's beside one of zero
        _damaged(f"{name!r} to have a shape that NumPy can hold", error)


def _build(
    metadata: Mapping[str, str], tensors: dict[str, np.ndarray], rng: np.random.Generator
) -> Any:
    name = metadata.get("class")
    if name not in LAYERS:
        _damaged(f"one of the classes {', '.join(LAYERS)}", name)
    try:
        arguments = {
            key: json.loads(text, object_pairs_hook=_no_name_twice, parse_constant=_no_constant)
            for key, text in metadata.items()
            if key not in ("format", "class")
        }
    except (ValueError, RecursionError) as error:
        _damaged("a configuration in JSON", f"{type(error).__name__}: {error}")
    layers = arguments.get("num_layers", 1)
    if isinstance(layers, int) and layers > len(tensors):
        _damaged(f"at most as many layers as the {len(tensors)} tensors", layers)
    try:
        return LAYERS[name]._with_parameters(tensors, rng=rng, **arguments)
    except (TypeError, ValueError) as error:
        _damaged(f"the configuration of {name} and its parameters", error)

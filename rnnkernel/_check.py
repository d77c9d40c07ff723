"""What arguments are checked for, and the messages: the name, what was expected, what came.

Checks run before anything is touched; what they return is safe to hand to the kernels.
"""

from __future__ import annotations  # numpy.random, named in one, takes 20 ms to import

import math
import operator
import os
from collections.abc import Mapping, Sequence

import numpy as np

from rnnkernel._memory import empty


def _kind(value) -> str:
    return type(value).__name__


MOST_AXES = 32
"""Of an array with one axis more than another: NumPy's most, before 2.0."""


def size(name: str, value, minimum: int = 1) -> int:
    """An integer from `minimum` on."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)
    except Exception:  # the caller's object decides what it raises
        raise TypeError(f"{name}: expected an integer, got {_kind(value)} {_text(value)}") from None
    if number < minimum:
        raise ValueError(f"{name}: expected an integer >= {minimum}, got {_text(number)}")
    return number


def _text(value) -> str:
    """What it looks like, if it says so."""
    try:
        return repr(value)
    except Exception:  # Python does not write integers of thousands of digits
        return "what has no text"


def flag(name: str, value) -> bool:
    """A bool."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected a bool, got {_kind(value)} {value!r}")
    return bool(value)


def choice(name: str, value, choices: tuple):
    """One of some values."""
    if not isinstance(value, str) or value not in choices:
        kind = ValueError if isinstance(value, str) else TypeError
        raise kind(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def _number(name: str, value) -> float:
    is_array = isinstance(value, (np.ndarray, np.generic))
    if (
        value.dtype.kind not in "iuf"
        if is_array
        else isinstance(value, (bool, str, bytes, bytearray, memoryview))
    ):
        raise TypeError(f"{name}: expected a number, got {_kind(value)} {_text(value)}")
    try:
        return float(value)
    except OverflowError:  # an integer past every float
        return math.inf
    except Exception:  # the caller's object decides what it raises
        raise TypeError(f"{name}: expected a number, got {_kind(value)}") from None


def finite(name: str, value, dtype) -> float:
    """A number that is finite in a dtype, which is checked, too."""
    number = _number(name, value)
    if not abs(number) <= float(np.finfo(real_dtype("dtype", dtype)).max):  # false for NaN, too
        raise ValueError(f"{name}: expected a finite number, got {number}")
    return number


def not_negative(name: str, value, below: float = math.inf) -> float:
    """A number from 0 on, finite and below a limit."""
    number = _number(name, value)
    if not 0 <= number < below:  # false for NaN, too
        limit = "finite" if below == math.inf else f"< {below}"
        raise ValueError(f"{name}: expected a number >= 0 and {limit}, got {number}")
    return number


def share(name: str, value) -> float:
    """A number from 0 to 1."""
    number = _number(name, value)
    if not 0 <= number <= 1:
        raise ValueError(f"{name}: expected a number from 0 to 1, got {number}")
    return number


def positive(name: str, value) -> float:
    """A positive finite number."""
    number = _number(name, value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name}: expected a positive finite number, got {number}")
    return number


def path(name: str, value) -> str:
    """The name of a file."""
    try:
        text = os.fsdecode(value)
    except TypeError:
        raise TypeError(f"{name}: expected a str or os.PathLike, got {_kind(value)}") from None
    if not text or "\0" in text:
        raise ValueError(f"{name}: expected the name of a file, got {text!r}")
    return text


def real_dtype(name: str, value) -> np.dtype:
    """float32 or float64 in this machine's byte order."""
    try:
        dtype = np.dtype(value)
    except Exception:  # NumPy has a small language of its own, with errors of every kind
        raise TypeError(f"{name}: expected float32 or float64, got {value!r}") from None
    if value is None or dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise TypeError(f"{name}: expected float32 or float64, got {value!r}")
    return dtype


def generator(name: str, value) -> np.random.Generator:
    """A Generator as it is, or one made of a seed."""
    if isinstance(value, np.random.Generator):
        return value
    try:
        if isinstance(value, (float, str, bool)) or (
            isinstance(value, np.ndarray) and type(value) is not np.ndarray  # NumPy may crash
        ):
            raise TypeError
        return np.random.default_rng(value)
    except (TypeError, ValueError):
        raise TypeError(
            f"{name}: expected a seed (an integer >= 0) or a numpy.random.Generator, got {value!r}"
        ) from None


def as_array(name: str, value) -> np.ndarray:
    """An array as it is, and anything that shares its memory as an array does.

    Of a subclass (`numpy.ma`, `numpy.matrix`) the plain array: its comparisons may not be what a
    check means.
    """
    if type(value) is np.ndarray:
        return value
    try:
        if hasattr(value, "__array_interface__"):
            return np.asarray(value)
        if hasattr(value, "__dlpack__"):
            return np.from_dlpack(value)
        if hasattr(value, "__array__"):
            return np.asarray(value)
        return np.asarray(memoryview(value))
    except Exception as error:  # the caller's object decides what it raises
        reason = f": {error}" if str(error) else ""
        if isinstance(value, (list, tuple, int, float)):
            reason = "; make one with numpy.asarray"
        raise TypeError(
            f"{name}: expected an array (NumPy, __dlpack__ or the array interface), "
            f"got {_kind(value)}{reason}"
        ) from None


def array(
    name: str,
    value,
    dtype: np.dtype,
    dims: tuple[str, ...],
    sizes: tuple,
    reason: str = ", as the layer's",
) -> np.ndarray:
    """An array of exactly this dtype and shape, as the kernels can read it.

    `dims` names the dimensions for the message; a size of None takes any.
    """
    value = as_array(name, value)
    if value.dtype != dtype:
        raise TypeError(
            f"{name}: expected dtype {dtype}{reason}, got {value.dtype}; convert it "
            "yourself, nothing is cast silently"
        )
    if value.shape != sizes and (
        value.ndim != len(sizes)
        or any(
            wanted is not None and wanted != got
            for wanted, got in zip(sizes, value.shape, strict=True)
        )
    ):
        expected = ", ".join(
            dim if wanted is None else f"{dim}={wanted}" if dim else str(wanted)
            for dim, wanted in zip(dims, sizes, strict=True)
        )
        raise ValueError(f"{name}: expected shape ({expected}), got {value.shape}")
    flags = value.flags
    if not flags.aligned or (
        not flags.c_contiguous and any(stride % value.itemsize for stride in value.strides)
    ):
        return value.copy()
    return value


def rows(name: str, value, count: int) -> np.ndarray:
    """Indices of some rows of `count`: from an integer, integers, each once, or a bool for each
    row."""
    try:
        indices = np.array(value)
    except Exception:  # the caller's object decides what it raises
        indices = np.array(None)
    indices = _of_no_type(indices, value)
    if indices.dtype == bool and not isinstance(value, (bool, np.bool_)):
        if indices.shape != (count,):
            raise ValueError(f"{name}: expected a bool for each of {count}, got {indices.shape}")
        return np.flatnonzero(indices)
    if indices.dtype.kind not in "iu":
        raise TypeError(
            f"{name}: expected None, an integer, integers, or a bool for each of {count}, "
            f"got {_kind(value)} {value!r}"
        )
    if indices.ndim > 1:
        raise ValueError(f"{name}: expected one dimension, got shape {indices.shape}")
    indices = np.atleast_1d(indices)
    wrong = indices[(indices < -count) | (indices >= count)]
    if wrong.size:
        raise IndexError(f"{name}: expected indices below {count}, got {wrong[0]}")
    indices = indices.astype(np.intp) % count
    chosen, times = np.unique(indices, return_counts=True)
    if (times > 1).any():
        raise ValueError(
            f"{name}: expected each row once, got {chosen[times > 1][0]} again; a bool for each "
            "row is of dtype bool"
        )
    return indices


def _of_no_type(array: np.ndarray, given) -> np.ndarray:
    """Of what was to be integers: [] has none to tell the type by."""
    is_empty_list = array.size == 0 and not isinstance(given, np.ndarray)
    return array.astype(np.intp) if is_empty_list else array


def any_array(name: str, value) -> np.ndarray:
    """An array of any dtype and shape; lists and numbers become one."""
    if isinstance(value, (list, tuple, int, np.generic)):
        try:
            return np.asarray(value)
        except ValueError as error:  # ragged
            raise ValueError(f"{name}: expected an array, got {_kind(value)}: {error}") from None
    return as_array(name, value)


def lengths(name: str, value, T: int, N: int, batched: bool) -> np.ndarray:
    """(N,) integers from 0 to T, as a copy, which nobody changes once it is checked; unbatched, a
    single one."""
    value = _of_no_type(any_array(name, value), value)
    if value.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got dtype {value.dtype}")
    if value.shape != (N,) and (batched or value.shape != ()):
        expected = f"(N={N})" if batched else "() or (1,)"
        raise ValueError(f"{name}: expected shape {expected}, got {value.shape}")
    value = value.reshape(N).copy()
    wrong = np.flatnonzero((value < 0) | (value > T))
    if len(wrong):
        n = wrong[0]
        raise ValueError(f"{name}: expected integers from 0 to T={T}, got {value[n]} for row {n}")
    return value.astype(np.intp)


def ids(
    name: str, value: np.ndarray, count: int, lengths: np.ndarray | None, position
) -> np.ndarray:
    """A copy of token ids (T, N) from 0 to count - 1, as intp; past the lengths, where none are
    looked at, one of the others.

    `position(t, n)` is where the caller has an id.
    """
    value = value.copy()  # first: others may write to it
    wrong = (value < 0) | (value >= count)
    if lengths is not None:
        past = np.arange(len(value))[:, None] >= lengths
        wrong &= ~past
        if past.any():  # something that occurs
            value = np.where(past, 0 if past.all() else value[~past][0], value)
    if wrong.any():
        t, n = np.argwhere(wrong)[0]
        raise no_such_id(name, value[t, n], count, position(t, n))
    return value.astype(np.intp, copy=False)


def no_such_id(name: str, value, count: int, position: tuple[int, ...]) -> IndexError:
    """For an id that is not from 0 to count - 1."""
    return IndexError(
        f"{name}: expected ids from 0 to {count - 1}, got {value} at {position}; integers are "
        "token ids, numbers are floats"
    )


def embedding_of_floats(x: np.ndarray) -> ValueError:
    """For an embedding where x has no ids."""
    return ValueError(f"embedding: expected None with an x of {x.dtype}, got an embedding")


def borders(name: str, value, dims: tuple[str, ...], sizes: tuple[int, ...]) -> np.ndarray:
    """A bool array of this shape, as a copy."""
    return array(name, any_array(name, value), np.dtype(bool), dims, sizes, "").copy()


def _is_empty_list(value) -> bool:
    """Which has neither a dtype nor a shape of its own."""
    return isinstance(value, (list, tuple)) and not value


def sequences(name: str, value) -> list[np.ndarray]:
    """Arrays of one dtype and of one shape but for the first dimension; at least one."""
    if isinstance(value, (np.ndarray, memoryview)):
        value = np.atleast_1d(value)
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        raise TypeError(f"{name}: expected a list of arrays, got {_kind(value)}")
    given = list(value)
    arrays = [any_array(f"{name}[{n}]", one) for n, one in enumerate(given)]
    if not arrays:
        raise ValueError(f"{name}: expected at least one array, got none")
    typed = [one for one, of in zip(arrays, given, strict=True) if not _is_empty_list(of)]
    first = typed[0] if typed else arrays[0]
    arrays = [
        np.empty((0, *first.shape[1:]), first.dtype) if _is_empty_list(of) else one
        for one, of in zip(arrays, given, strict=True)
    ]
    for n, one in enumerate(arrays):
        if one.ndim == 0:
            raise ValueError(f"{name}[{n}]: expected shape (T, ...), got ()")
        if one.ndim >= MOST_AXES:
            raise ValueError(f"{name}[{n}]: expected fewer than {MOST_AXES} axes, got {one.ndim}")
        if one.dtype != first.dtype or one.dtype.kind not in "fiu":
            wanted = first.dtype if first.dtype.kind in "fiu" else "floats or integers"
            raise TypeError(f"{name}[{n}]: expected dtype {wanted}, got {one.dtype}")
        if one.shape[1:] != first.shape[1:]:
            expected = ", ".join(["T", *map(str, first.shape[1:])])
            raise ValueError(
                f"{name}[{n}]: expected shape ({expected}), as the first, got {one.shape}"
            )
    return arrays


def shares_memory(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays overlap; in doubt, yes."""
    if not np.may_share_memory(a, b):
        return False
    try:
        return np.shares_memory(a, b, max_work=10_000)
    except np.exceptions.TooHardError:
        return True


def _overlaps_itself(array: np.ndarray) -> bool:
    """Whether two elements may share memory: a sufficient condition that no sane layout meets."""
    if array.size == 0:
        return False
    reach = array.itemsize
    axes = ((abs(step), n) for step, n in zip(array.strides, array.shape, strict=True) if n > 1)
    for step, n in sorted(axes):
        if step < reach:
            return True
        reach += step * (n - 1)
    return False


def output(name: str, value, dtype: np.dtype, dims, sizes, inputs: dict) -> None:
    """An array to write to that overlaps neither itself nor what is read."""
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name}: expected a numpy.ndarray, got {_kind(value)}")
    if value.dtype != dtype:
        raise TypeError(f"{name}: expected dtype {dtype}, as the layer's, got {value.dtype}")
    array(name, value, dtype, dims, sizes)
    writable(name, value)
    if _overlaps_itself(value):
        raise ValueError(
            f"{name}: expected elements that lie apart, got an array that overlaps itself"
        )
    for other, read in inputs.items():
        if shares_memory(value, read):
            raise ValueError(
                f"{name}: expected memory of its own, got an array that overlaps {other}"
            )


def allocate(name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array, or a MemoryError that says what it was for."""
    try:
        return empty(shape, dtype)
    except (MemoryError, OverflowError, ValueError):
        raise does_not_fit(name, shape, dtype.itemsize) from None


def does_not_fit(name: str, shape: tuple[int, ...], item: int) -> MemoryError:
    """What to raise where there is no memory for an array with elements of `item` bytes."""
    try:
        what = f"an array of shape {shape}, {math.prod(shape) * item} bytes,"
    except ValueError:  # Python does not write integers of thousands of digits
        what = "an array of sizes past all bounds"
    return MemoryError(f"{name}: {what} does not fit in memory")


def groups(name: str, value, such_as: str) -> list[Mapping]:
    """The mappings of names to arrays: a single one, or a sequence of them."""
    several = [value] if isinstance(value, Mapping) else value
    is_list = isinstance(several, Sequence) and not isinstance(several, (str, bytes, memoryview))
    if not is_list or not all(isinstance(one, Mapping) for one in several):
        raise TypeError(
            f"{name}: expected a mapping of names to arrays, such as {such_as}, or a sequence of "
            f"such mappings, got {_kind(value)}"
        )
    return list(several)


def gradients(name: str, value) -> list[np.ndarray]:
    """The arrays of one mapping or several, all of them writable and float."""
    arrays = []
    seen: dict[int, str] = {}
    for k, group in enumerate(groups(name, value, "grads.parameters")):
        label = name if isinstance(value, Mapping) else f"{name}[{k}]"
        for key, one in group.items():
            if not isinstance(one, np.ndarray) or one.dtype.kind != "f":
                got = one.dtype if isinstance(one, np.ndarray) else _kind(one)
                raise TypeError(f"{label}[{key!r}]: expected a float array, got {got}")
            writable(f"{label}[{key!r}]", one)
            if id(one) in seen:
                raise ValueError(
                    f"{label}[{key!r}]: expected every array once, got that of {seen[id(one)]} "
                    "again"
                )
            seen[id(one)] = f"{label}[{key!r}]"
            arrays.append(np.asarray(one))  # not a subclass, with methods of its own
    return arrays


def writable(name: str, value: np.ndarray) -> None:
    """An array that may be written to."""
    if not value.flags.writeable:
        raise ValueError(f"{name}: expected a writable array, got a read-only one")


def names(name: str, value, expected: Mapping) -> dict:
    """A copy of a mapping with exactly these names."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name}: expected a mapping of names to arrays, got {_kind(value)}")
    value = dict(value)  # which others may change
    if set(value) != set(expected):
        missing, extra = (
            sorted(set(expected) - set(value)),
            sorted(map(str, set(value) - set(expected))),
        )
        raise ValueError(
            f"{name}: expected the names {', '.join(expected)}; "
            f"missing: {', '.join(missing) or 'none'}; unknown: {', '.join(extra) or 'none'}"
        )
    return value


def parameters(name: str, value, shapes: dict[str, tuple[int, ...]], dtype: np.dtype) -> dict:
    """Arrays with exactly these names, shapes and this dtype."""
    value = names(name, value, shapes)
    return {
        key: array(f"{name}[{key!r}]", value[key], dtype, ("",) * len(shape), shape)
        for key, shape in shapes.items()
    }


def values_for(name: str, value, targets: Mapping, shapes: dict, dtype: np.dtype) -> dict:
    """Arrays to copy into `targets`, which are checked, too; where they share memory, copies."""
    arrays = parameters(name, value, shapes, dtype)
    for key, target in parameters("parameters", targets, shapes, dtype).items():
        writable(f"parameters[{key!r}]", target)
        for other, array in arrays.items():
            if shares_memory(array, target):
                arrays[other] = array.copy()
    return arrays

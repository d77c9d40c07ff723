"""What a call of a layer is given: checked against the layer, and with time first.

Kernels see (T, N, .), callers what they chose.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from rnnkernel import _check
from rnnkernel._rows import all_have, plain_lengths
from rnnkernel._sequence import Table, tokens


@dataclass(frozen=True)
class Layout:
    """How one call orders the axes of x and y, and whether there is a batch."""

    batch_first: bool
    batched: bool

    def order(self, time: Any, batch: Any, *units: Any) -> tuple:
        """The names or sizes of (T, N, ...) as the caller has them."""
        if not self.batched:
            return (time, *units)
        return (batch, time, *units) if self.batch_first else (time, batch, *units)

    def time_first(self, array: np.ndarray) -> np.ndarray:
        """The caller's array as (T, N, ...)."""
        if not self.batched:
            return array[:, None]
        return array.swapaxes(0, 1) if self.batch_first else array

    def caller_view(self, array: np.ndarray) -> np.ndarray:
        """An array (T, N, ...) as the caller has it."""
        if not self.batched:
            return array[:, 0]
        return array.swapaxes(0, 1) if self.batch_first else array

    def caller_state(self, arrays: list[np.ndarray]) -> Any:
        """Arrays (L*D, N, units) as the caller has states."""
        return as_state([array if self.batched else array[:, 0] for array in arrays])

    def allocate(self, name: str, T: int, N: int, units: int, dtype: np.dtype) -> np.ndarray:
        """(T, N, units) as seen, contiguous in the caller's order."""
        return self.time_first(_check.allocate(name, self.order(T, N, units), dtype))


def as_state(arrays: list[np.ndarray]) -> Any:
    """A state as it goes by the public interface: an array, or a tuple of several."""
    return arrays[0] if len(arrays) == 1 else tuple(arrays)


def parts_of(state: Any) -> list[np.ndarray]:
    """The arrays of a state."""
    return list(state) if isinstance(state, (tuple, list)) else [state]


def check_x(layer: Any, x: Any) -> tuple[np.ndarray, Layout]:
    """x (T, N, I), or ids (T, N), and how the caller lays arrays out."""
    x = _check.as_array("x", x)
    if x.dtype.kind in "iu" and x.ndim in (1, 2):
        layout = Layout(layer.batch_first, x.ndim == 2)
    else:
        layout = Layout(layer.batch_first, x.ndim != 2)
        if x.ndim == 2 and x.dtype == layer.dtype and x.shape[1] != layer.input_size:
            # more often a batch of single numbers than one sequence of the wrong width
            wanted = f"I={layer.input_size}"
            batch = ", ".join(Layout(layer.batch_first, True).order("T", "N", wanted))
            raise ValueError(
                f"x: expected shape ({batch}), or unbatched (T, {wanted}), got {x.shape}"
            )
        dims, sizes = layout.order("T", "N", "I"), layout.order(None, None, layer.input_size)
        x = _check.array("x", x, layer.dtype, dims, sizes)
    # views: an object of the caller's that is asked later may set the shape of x
    return layout.time_first(x.view()), layout


def check_y(
    layer: Any, name: str, value: Any, T: int, N: int, layout: Layout, inputs: dict | None = None
) -> np.ndarray:
    """An array (T, N, D*P) like y; with `inputs` one to write to, that overlaps none of them."""
    dims = layout.order("T", "N", "D*P")
    sizes = layout.order(T, N, layer._directions * layer._widths[0])
    if inputs is None:
        value = _check.array(name, value, layer.dtype, dims, sizes)
    else:
        _check.output(name, value, layer.dtype, dims, sizes, inputs)
    return layout.time_first(value.view())


def check_tokens(
    layer: Any,
    ids: np.ndarray,
    embedding: np.ndarray | None,
    lengths: Any,
    layout: Layout,
    one_hot: str,
) -> Table:
    """Ids (T, N) as rows of a table; the embedding (V, I) is checked."""
    count = layer.input_size if embedding is None else len(embedding)

    def position(t, n):
        return layout.order(int(t), int(n))

    ids = _check.ids("x", ids, count, lengths, position)
    if embedding is None and one_hot == "packed":
        return Table(None, ids, None)
    return tokens(ids, count, embedding)


def check_embedding(layer: Any, embedding: Any) -> np.ndarray:
    """(V, I)."""
    sizes = (None, layer.input_size)
    embedding = _check.array("embedding", embedding, layer.dtype, ("V", "I"), sizes)
    _check.size("embedding: V", len(embedding))
    return embedding.view()


def check_rows(
    lengths: Any, reset: Any, T: int, N: int, layout: Layout
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Lengths (N,) and resets (T, N), each None where it makes no difference."""
    if lengths is not None:
        plain = plain_lengths(lengths, T, N)
        if plain is None:
            plain = _check.lengths("lengths", lengths, T, N, layout.batched)
        lengths = None if all_have(plain, T) else plain
    if reset is not None:
        reset = _check.borders("reset", reset, layout.order("T", "N"), layout.order(T, N))
        reset = layout.time_first(reset) if reset.any() else None
    return lengths, reset


def check_state(layer: Any, name: str, state: Any, N: int, batched: bool) -> list[np.ndarray]:
    """One (L*D, N, its units) array for each state."""
    names, rows = layer._cell.states, layer.num_layers * layer._directions
    if state is None:
        zeros = [_check.allocate(name, (rows, N, w), layer.dtype) for w in layer._widths]
        for array in zeros:
            array.fill(0)
        return zeros
    if len(names) == 1:
        state = (state,)
    elif not isinstance(state, (tuple, list)) or len(state) != len(names):
        kind = TypeError if not isinstance(state, (tuple, list)) else ValueError
        got = type(state).__name__ if kind is TypeError else f"{len(state)} elements"
        raise kind(f"{name}: expected a pair ({', '.join(names)}), got {got}")
    arrays = []
    for part, width, array in zip(names, layer._widths, state, strict=True):
        label = name if len(names) == 1 else f"{name} ({part})"
        if array is None:
            raise TypeError(
                f"{label}: expected an array, zeros if need be, got None for one of both"
            )
        units = "H" if width == layer.hidden_size else "P"
        dims, sizes = ("L*D", "N", units), (rows, N, width)
        if not batched:
            dims, sizes = ("L*D", units), (rows, width)
        array = _check.array(label, array, layer.dtype, dims, sizes)
        arrays.append(array.view() if batched else array[:, None])
    return arrays


def check_arrivals(tape: Any, dy: Any, dstate: Any) -> tuple[np.ndarray | None, list]:
    """What backward is given: dL/dy (T, N, D*P) or None, and the gradient of each final state,
    (L*D, N, its units) or None."""
    layer, layout, (T, N) = tape.layer, tape.layout, tape.shape
    if dy is not None:
        dy = check_y(layer, "dy", dy, T, N, layout)
    if dstate is None:
        return dy, [None] * len(layer._cell.states)
    return dy, check_state(layer, "dstate", dstate, N, layout.batched)

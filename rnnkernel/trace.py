"""What a forward pass went through: states and gates of every step, by name."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np


class Trace(Mapping[str, np.ndarray]):
    """The states and gates of one layer and direction, read-only, (T, N, H) laid out as y.

    `trace["f"]` and `trace.f` are the same array. Time is that of x in both directions; past a
    row's length there are zeros. The hidden state is a view of the output. A cell state or a gate
    is a view of what training keeps where all units lie in one block of the kernels; else, and
    for rows of unequal lengths, it is a copy that is made when it is first asked for.

    Names are "h", the hidden state before dropout, (T, N, P) with projection; "c", the cell state
    of LSTM; and the gates, r, z, n of GRU or i, f, g, o of LSTM. RNN has "h" alone.
    """

    # one trace and no other, as what holds it: arrays have no truth to compare by
    __eq__, __hash__ = object.__eq__, object.__hash__

    def __init__(self, sources: dict[str, Callable[[], np.ndarray]]):
        self._sources = sources
        self._arrays: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            array = self._sources[name]().view()
            array.flags.writeable = False
            # of two threads that ask at once both get the first one's
            self._arrays.setdefault(name, array)
        return self._arrays[name]

    def __getattr__(self, name: str) -> np.ndarray:
        if name.startswith("_"):  # _sources itself, where `copy` has not set it yet
            raise AttributeError(name)
        if name in self._sources:
            return self[name]
        raise AttributeError(f"a trace of {', '.join(self)} has no {name!r}")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self]

    def __reduce__(self) -> tuple:
        return Trace._of_arrays, (dict(self),)

    @classmethod
    def _of_arrays(cls, arrays: dict[str, np.ndarray]) -> "Trace":
        return cls({name: lambda array=array: array for name, array in arrays.items()})

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def __repr__(self) -> str:
        return f"Trace({', '.join(self)})"

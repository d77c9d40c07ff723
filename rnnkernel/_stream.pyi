from collections.abc import Sequence
from typing import Any, SupportsIndex

import numpy.typing as npt

from rnnkernel.inference import Frozen

class Stream:
    # like the layer's state: an array, or for LSTM a pair of arrays; set from these or None
    state: Any

    def __init__(self, frozen: Frozen, batch_size: int = 1) -> None: ...
    @property
    def batch_size(self) -> int: ...
    def step(
        self, x: Any, out: npt.NDArray[Any] | None = None, *, embedding: Any = None
    ) -> npt.NDArray[Any]: ...
    def reset(
        self, rows: SupportsIndex | npt.NDArray[Any] | Sequence[int] | None = None
    ) -> None: ...

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["pack", "unpack"]

def pack(
    sequences: Iterable[Any], *, batch_first: bool = False
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]: ...
def unpack(y: Any, lengths: Any, *, batch_first: bool = False) -> list[npt.NDArray[Any]]: ...

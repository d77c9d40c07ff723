from collections.abc import Mapping
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from rnnkernel.clipping import Clip
from rnnkernel.inference import Frozen, Inference, Stream
from rnnkernel.results import Gradients, Output

_Array: TypeAlias = npt.NDArray[Any]
# what comes in: NumPy's arrays, __dlpack__, the array interface
_ArrayLike: TypeAlias = Any
# a state as it comes in, and as it goes out: one array, or for LSTM a pair
_Given = TypeVar("_Given")
_State = TypeVar("_State")
_L = TypeVar("_L", bound="_Layer[Any, Any]")
_Seed: TypeAlias = int | np.integer[Any] | np.random.SeedSequence | np.random.Generator | None

class _Layer(Inference, Generic[_Given, _State]):
    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    dtype: np.dtype[Any]
    @property
    def options(self) -> Mapping[str, Any]: ...
    _parameters: dict[str, _Array]
    _parameter_shapes: dict[str, tuple[int, ...]]

    def _configuration(self) -> dict[str, Any]: ...
    @property
    def parameters(self) -> dict[str, _Array]: ...
    @parameters.setter
    def parameters(self, parameters: dict[str, _Array]) -> None: ...
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        dtype: npt.DTypeLike,
        rng: _Seed,
        **options: Any,
    ) -> None: ...
    @classmethod
    def _with_parameters(
        cls: type[_L], parameters: dict[str, _Array], *sizes: int, **options: Any
    ) -> _L: ...
    def _alone(self: _L, index: int) -> _L: ...
    def state_dict(self) -> dict[str, _Array]: ...
    def load_state_dict(self, state_dict: Any) -> None: ...
    def freeze(self, weights: Literal["float16", "int8"] | None = None) -> Frozen: ...
    def stream(self, batch_size: int = 1) -> Stream: ...
    def __call__(
        self,
        x: _ArrayLike,
        state: _Given | None = None,
        *,
        lengths: _ArrayLike | None = None,
        reset: _ArrayLike | None = None,
        embedding: _ArrayLike | None = None,
        num_threads: int | None = None,
    ) -> tuple[_Array, _State]: ...
    def forward(
        self,
        x: _ArrayLike,
        state: _Given | None = None,
        *,
        lengths: _ArrayLike | None = None,
        reset: _ArrayLike | None = None,
        embedding: _ArrayLike | None = None,
        training: bool = False,
        trace: bool = False,
        checkpoint_every: int | None = None,
        out: _Array | None = None,
        num_threads: int | None = None,
    ) -> Output: ...
    def backward(
        self,
        out: Output,
        dy: _ArrayLike | None = None,
        dstate: _Given | None = None,
        *,
        clip: Clip | None = None,
        flow: bool | Literal["states"] = False,
        input_grad: bool = True,
        num_threads: int | None = None,
    ) -> Gradients: ...

class RNN(_Layer[_ArrayLike, _Array]):
    nonlinearity: Literal["tanh", "relu"]
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        dtype: npt.DTypeLike = ...,
        rng: _Seed = None,
    ) -> None: ...

class GRU(_Layer[_ArrayLike, _Array]):
    reset_after: bool
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        reset_after: bool = True,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        dtype: npt.DTypeLike = ...,
        rng: _Seed = None,
    ) -> None: ...

class LSTM(_Layer[tuple[_ArrayLike, _ArrayLike] | list[_ArrayLike], tuple[_Array, _Array]]):
    proj_size: int
    peephole: bool
    cell_clip: float | None
    forget_bias: float
    coupled: bool
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        proj_size: int = 0,
        peephole: bool = False,
        cell_clip: float | None = None,
        forget_bias: float = 0.0,
        coupled: bool = False,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        dtype: npt.DTypeLike = ...,
        rng: _Seed = None,
    ) -> None: ...

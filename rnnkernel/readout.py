"""The readout: a linear map from hidden states to class scores, and the loss that trains it.

Shapes: ``I`` input_size (the hidden size of the layer below), ``O`` output_size (the number of
classes); ``...`` stands for any leading dimensions, usually ``(T, N)``.

The map is NumPy's products, where a BLAS is as fast as it gets; the loss is a kernel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from rnnkernel import _check, _threads
from rnnkernel._loss import cross_entropy
from rnnkernel._memory import empty
from rnnkernel._updates import sum_of_rows

__all__ = ["Linear", "LinearGradients", "softmax_cross_entropy"]

SERIAL_WORK = 1 << 18
"""Multiply-adds up to which OpenBLAS, which NumPy brings along, stays on one thread."""

FEWEST_ROWS = 16
"""Blocks of fewer rows than this are not worth their calls."""


class LinearGradients(NamedTuple):
    """What :meth:`Linear.backward` returns."""

    x: np.ndarray
    """Gradient of the input, shaped like it: (..., I)."""

    parameters: dict[str, np.ndarray]
    """Gradient of each parameter, by name."""


class Linear:
    """The affine map ``y = x W^T + b`` over the last dimension.

    A product of NumPy's: unlike those of the layers, the last bits of a row of ``y`` may depend on
    how many rows there are.

    Parameters
    ----------
    input_size, output_size : int
        ``I`` and ``O``, at least 1.
    bias : bool
        Whether there is a ``b``.
    dtype : dtype
        float32 or float64; inputs must have it, nothing is cast silently.
    rng : None, int or numpy.random.Generator
        Where the initial values, U(-1/sqrt(I), 1/sqrt(I)), are drawn from.

    Attributes
    ----------
    parameters : dict of str to ndarray
        ``weight`` (O, I) and, with a bias, ``bias`` (O,), as PyTorch's ``nn.Linear`` has them.
        Live: editing an array in place takes effect at the next call.
    """

    _given: Mapping[str, np.ndarray] | None = None  # parameters, before there is a layer

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        bias: bool = True,
        dtype: Any = np.float32,
        rng: int | np.random.Generator | None = None,
    ) -> None:
        self.input_size = _check.size("input_size", input_size)
        self.output_size = _check.size("output_size", output_size)
        self.dtype = _check.real_dtype("dtype", dtype)
        self._parameter_shapes: dict[str, tuple[int, ...]] = {
            "weight": (self.output_size, self.input_size)
        }
        if _check.flag("bias", bias):
            self._parameter_shapes["bias"] = (self.output_size,)
        generator = _check.generator("rng", rng)
        if self._given is not None:
            self.parameters = _check.parameters(
                "parameters", self._given, self._parameter_shapes, self.dtype
            )
            del self._given
            return
        self.parameters = {
            name: _check.allocate(name, shape, self.dtype)
            for name, shape in self._parameter_shapes.items()
        }
        bound = 1.0 / math.sqrt(self.input_size)
        for array in self.parameters.values():
            array[...] = generator.uniform(-bound, bound, array.shape)

    @classmethod
    def _with_parameters(cls, parameters: Mapping[str, np.ndarray], **arguments: Any) -> Linear:
        """A layer that owns these arrays; none are drawn, or allocated, before they fit."""
        layer = cls.__new__(cls)
        layer._given = parameters
        layer.__init__(**arguments)
        return layer

    def _configuration(self) -> dict[str, Any]:
        """What the constructor was given, but for rng."""
        return {
            "input_size": self.input_size,
            "output_size": self.output_size,
            "dtype": self.dtype.name,
            "bias": "bias" in self._parameter_shapes,
        }

    def __repr__(self) -> str:
        bias = "bias" in self._parameter_shapes
        return f"Linear({self.input_size}, {self.output_size}, bias={bias}, dtype={self.dtype})"

    def __call__(self, x: Any) -> np.ndarray:
        """Map ``x`` (..., I) to ``y`` (..., O).

        Raises
        ------
        TypeError
            If ``x`` has another dtype than the layer.
        ValueError
            If the last dimension of ``x`` is not ``I``.
        """
        parameters = self._checked()
        x = self._array("x", x, self.input_size)
        flat_x = x.reshape(-1, self.input_size)
        y = empty((len(flat_x), self.output_size), self.dtype)
        for rows in self._blocks(len(y)):
            np.matmul(flat_x[rows], parameters["weight"].T, out=y[rows])
        if "bias" in parameters:
            y += parameters["bias"]
        return y.reshape(*x.shape[:-1], self.output_size)

    def backward(self, x: Any, dy: Any) -> LinearGradients:
        """Gradients of a loss whose gradient with respect to ``y = self(x)`` is ``dy``.

        Parameters
        ----------
        x : array (..., I)
            The input that ``y`` was computed from.
        dy : array (..., O)
            Its leading dimensions are those of ``x``.

        Returns
        -------
        LinearGradients
            ``.x`` (..., I) and ``.parameters``, newly allocated; written, not accumulated.

        Raises
        ------
        TypeError, ValueError
            As for the call, for ``x`` and ``dy``.
        """
        x = self._array("x", x, self.input_size)
        dy = self._array("dy", dy, self.output_size)
        if dy.shape[:-1] != x.shape[:-1]:
            expected = (*x.shape[:-1], self.output_size)
            raise ValueError(f"dy: expected shape {expected} to go with x, got {dy.shape}")
        flat_x = x.reshape(-1, self.input_size)
        flat_dy = dy.reshape(-1, self.output_size)
        weight = self._checked()["weight"]
        dx = empty(flat_x.shape, self.dtype)
        first, *others = self._blocks(len(dx))
        np.matmul(flat_dy[first], weight, out=dx[first])
        dweight = np.matmul(flat_dy[first].T, flat_x[first], out=empty(weight.shape, self.dtype))
        part = empty(weight.shape, self.dtype) if others else None
        for rows in others:
            np.matmul(flat_dy[rows], weight, out=dx[rows])
            dweight += np.matmul(flat_dy[rows].T, flat_x[rows], out=part)
        gradients = {"weight": dweight}
        if "bias" in self.parameters:
            gradients["bias"] = sum_of_rows(flat_dy)
        return LinearGradients(dx.reshape(x.shape), gradients)

    def state_dict(self) -> dict[str, np.ndarray]:
        """A copy of the parameters, by name."""
        return {name: array.copy() for name, array in self.parameters.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Copy the values of ``state_dict`` into the parameters.

        Names, shapes and dtypes are checked first; on an error nothing has changed.

        Raises
        ------
        TypeError
            If ``state_dict`` is no mapping or one of its arrays has another dtype.
        ValueError
            If a name is missing or unknown, or a shape does not fit.
        """
        shapes = {name: array.shape for name, array in self.parameters.items()}
        values = _check.values_for("state_dict", state_dict, self.parameters, shapes, self.dtype)
        for name, parameter in self.parameters.items():
            parameter[...] = values[name]

    def _checked(self) -> dict[str, np.ndarray]:
        return _check.parameters("parameters", self.parameters, self._parameter_shapes, self.dtype)

    def _blocks(self, rows: int) -> list[slice]:
        """Blocks of rows for one matrix product each.

        A product that BLAS spreads over threads leaves them spinning for a while, on the cores
        that the recurrent layer needs next: where blocks that it does alone are not too small,
        training is up to three times as fast with them.
        """
        block = SERIAL_WORK // (self.input_size * self.output_size)
        if block < FEWEST_ROWS:
            return [slice(0, rows)]
        return [slice(start, start + block) for start in range(0, max(rows, 1), block)]

    def _array(self, name: str, value: Any, last: int) -> np.ndarray:
        array = _check.as_array(name, value)
        if array.dtype != self.dtype:
            raise TypeError(
                f"{name}: expected dtype {self.dtype}, got {array.dtype}; convert it "
                "yourself, nothing is cast silently"
            )
        if array.ndim == 0 or array.shape[-1] != last:
            raise ValueError(f"{name}: expected shape (..., {last}), got {array.shape}")
        return array


def softmax_cross_entropy(
    logits: Any, targets: Any, *, num_threads: int | None = None
) -> tuple[float, np.ndarray]:
    """Mean cross-entropy of a softmax over the last dimension, and its gradient.

    ``loss = mean over positions of -log softmax(logits)[target]``, in nats (divide by ``log(2)``
    for bits); ``dlogits = (softmax(logits) - onehot(targets)) / positions``.

    Parameters
    ----------
    logits : float array (..., C)
        Unnormalised log-probabilities of C classes. Any finite size is safe: the maximum of a
        position is subtracted before anything is exponentiated.
    targets : integer array (...)
        The right class at each position, ``0 <= target < C``.
    num_threads : int, optional
        The most threads to use; no result depends on them.

    Returns
    -------
    loss : float
        The mean in float64 over losses of positions, whose exponentials are of the dtype of
        ``logits``.
    dlogits : array (..., C)
        In the dtype of ``logits``.

    Raises
    ------
    TypeError
        If ``logits`` is not float32 or float64, or ``targets`` no integer array.
    ValueError
        If ``targets`` is not shaped like the positions of ``logits``, or there are none.
    IndexError
        If a target is out of range; the message names its position.

    Examples
    --------
    Of sequences of unequal length, the steps that they have::

        valid = np.arange(T)[:, None] < lengths
        dlogits = np.zeros_like(logits)
        loss, dlogits[valid] = rk.softmax_cross_entropy(logits[valid], targets[valid])
    """
    threads = _threads.resolve(num_threads)
    logits = _check.any_array("logits", logits)
    targets = _check.any_array("targets", targets)
    if logits.dtype not in (np.float32, np.float64):
        raise TypeError(f"logits: expected dtype float32 or float64, got {logits.dtype}")
    if targets.dtype.kind not in "iu":
        raise TypeError(f"targets: expected an integer dtype, got {targets.dtype}")
    if logits.ndim == 0 or logits.size == 0:
        raise ValueError(
            f"logits: expected shape (..., C) with at least one position and class, "
            f"got {logits.shape}"
        )
    if targets.shape != logits.shape[:-1]:
        raise ValueError(f"targets: expected shape {logits.shape[:-1]}, got {targets.shape}")
    targets = np.array(targets, order="C")  # which nobody changes once it is checked
    classes = logits.shape[-1]
    outside = (targets < 0) | (targets >= classes)
    if outside.any():
        position = tuple(int(i) for i in np.argwhere(outside)[0])
        raise IndexError(
            f"targets: expected 0 <= target < {classes}, got {int(targets[position])} "
            f"at position {position}"
        )

    dlogits = empty(logits.shape, logits.dtype)
    loss = cross_entropy(
        np.require(logits, requirements="CA").reshape(-1, classes),
        targets.astype(np.intp, copy=False).reshape(-1),
        dlogits.reshape(-1, classes),
        threads,
    )
    return loss, dlogits

"""Optimizers over dicts of live parameter arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rnnkernel import _check, _threads, _updates

__all__ = ["Adam"]


class Adam:
    """Adam with bias correction and, on request, decoupled weight decay (then called AdamW).

    At step ``t``, for every parameter ``p`` with gradient ``g``::

        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g^2
        p = p - lr * weight_decay * p
        p = p - lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    Kingma & Ba, *Adam: a method for stochastic optimization* (2015); Loshchilov & Hutter,
    *Decoupled weight decay regularization* (2019).

    Parameters
    ----------
    parameters : mapping of str to ndarray, or a sequence of such mappings
        The arrays to train, float32 or float64 and writable, such as ``layer.parameters`` or
        ``[layer.parameters, readout.parameters]``. They are updated in place: an array that takes
        the place of one later, in ``layer.parameters[name] = other``, is none of them.
    lr : float
        Learning rate, at least 0. An attribute: assign to it between steps for a schedule.
    betas : pair of float
        Decay of the running mean of the gradient and of its square, each in [0, 1).
    eps : float
        Added to the denominator, at least 0.
    weight_decay : float
        Share of a parameter that decays at each step, in units of ``lr``; at least 0.

    Attributes
    ----------
    steps : int
        Number of steps taken.

    Raises
    ------
    TypeError, ValueError
        For parameters or settings other than the above; the message names the argument.
    """

    def __init__(
        self,
        parameters: Mapping[str, np.ndarray] | Sequence[Mapping[str, np.ndarray]],
        lr: float = 1e-3,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.lr = _check.not_negative("lr", lr)
        self.betas = _pair(betas)
        self.eps = _check.not_negative("eps", eps)
        self.weight_decay = _check.not_negative("weight_decay", weight_decay)
        self.steps = 0

        self._is_list = not isinstance(parameters, Mapping)
        self._groups = [
            dict(group) for group in _check.groups("parameters", parameters, "layer.parameters")
        ]
        self._check_parameters()
        self._moments = [
            {
                name: (np.zeros(p.shape, p.dtype), np.zeros(p.shape, p.dtype))
                for name, p in group.items()
            }
            for group in self._groups
        ]

    def __repr__(self) -> str:
        counts = [len(group) for group in self._groups]
        return (
            f"Adam({sum(counts)} arrays, lr={self.lr}, betas={self.betas}, eps={self.eps}, "
            f"weight_decay={self.weight_decay}, steps={self.steps})"
        )

    def step(
        self,
        gradients: Mapping[str, np.ndarray] | Sequence[Mapping[str, np.ndarray]],
        *,
        num_threads: int | None = None,
    ) -> None:
        """Take one step; ``gradients`` has the structure, shapes and dtypes of the parameters.

        Everything is checked first; on an error neither a parameter nor the optimizer has
        changed. The gradients are only read. Denormals count as zero, and the result does not
        depend on ``num_threads``, the most threads to use.

        Raises
        ------
        TypeError
            If a gradient is no array of its parameter's dtype.
        ValueError
            If names or shapes are not those of the parameters.
        """
        threads = _threads.resolve(num_threads)
        groups = self._check_gradients(gradients)
        lr, eps = _check.not_negative("lr", self.lr), _check.not_negative("eps", self.eps)
        decay = 1.0 - lr * _check.not_negative("weight_decay", self.weight_decay)
        beta1, beta2 = _pair(self.betas)
        steps = _check.size("steps", self.steps, 0) + 1
        # The two corrections are moved to where they cost a scalar and not a pass over the array:
        # lr * (m/c1) / (sqrt(v/c2) + eps) = (lr*sqrt(c2)/c1) * m / (sqrt(v) + eps*sqrt(c2)).
        root2 = math.sqrt(1.0 - beta2**steps)
        rate, eps = lr * root2 / (1.0 - beta1**steps), eps * root2
        self.steps = steps
        for group, moments, gradient in zip(self._groups, self._moments, groups, strict=True):
            for name, p in group.items():
                mean, square = moments[name]
                _updates.adam(
                    p, gradient[name], mean, square, beta1, beta2, rate, eps, decay, threads
                )

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of what the next step goes on from, so that training can: ``steps``, an int64
        array (), and for every parameter the running means ``mean.NAME`` of its gradient and
        ``square.NAME`` of its square, ``NAME`` being ``k.NAME`` in mapping ``k`` of a sequence.

        Parameters and settings are not among them. ``np.savez(path, **adam.state_dict())`` keeps
        it, and ``load_state_dict(np.load(path))`` takes it.
        """
        kept = {"steps": np.array(self.steps, np.int64)}
        return kept | {name: moment.copy() for name, moment in self._named_moments().items()}

    def load_state_dict(self, state_dict: Mapping[str, np.ndarray]) -> None:
        """Goes on from what ``state_dict`` of an optimizer of such parameters returned.

        Raises
        ------
        TypeError, ValueError
            For other names, shapes or dtypes; then nothing was changed.
        """
        moments = self._named_moments()
        shapes = {"steps": ()} | {name: moment.shape for name, moment in moments.items()}
        given = _check.names("state_dict", state_dict, shapes)
        arrays = {
            name: _check.array(
                f"state_dict[{name!r}]",
                given[name],
                moments[name].dtype if name in moments else np.dtype(np.int64),
                ("",) * len(shape),
                shape,
                ", as the parameter's",
            )
            for name, shape in shapes.items()
        }
        steps = _check.size("state_dict['steps']", arrays["steps"][()], 0)
        if steps > 2**62:
            raise ValueError(f"state_dict['steps']: expected at most 2**62, got {steps}")
        for name, array in arrays.items():
            if name.startswith("square.") and (array < 0).any():
                raise ValueError(f"state_dict[{name!r}]: expected no negative numbers, got some")
        self.steps = steps
        for name, moment in moments.items():
            moment[...] = arrays[name]

    def _named_moments(self) -> dict[str, np.ndarray]:
        return {
            f"{kind}.{f'{k}.' if self._is_list else ''}{name}": moment
            for k, moments in enumerate(self._moments)
            for name, pair in moments.items()
            for kind, moment in zip(("mean", "square"), pair, strict=True)
        }

    def _check_parameters(self) -> None:
        seen: dict[str, np.ndarray] = {}
        for k, group in enumerate(self._groups):
            for name, p in group.items():
                label = self._label("parameters", k, name)
                if not isinstance(p, np.ndarray) or p.dtype not in (np.float32, np.float64):
                    raise TypeError(f"{label}: expected a float32 or float64 array, got {_what(p)}")
                _check.writable(label, p)
                for other, q in seen.items():
                    if _check.shares_memory(p, q):
                        raise ValueError(
                            f"{label}: expected every array once, got memory of {other} again"
                        )
                seen[label] = p

    def _check_gradients(self, gradients: Any) -> list[dict[str, np.ndarray]]:
        if isinstance(gradients, Mapping) is self._is_list or not isinstance(
            gradients, (Mapping, Sequence)
        ):
            expected = "a mapping of names to arrays, such as grads.parameters"
            if self._is_list:
                expected = f"a sequence of {len(self._groups)} mappings"
            raise TypeError(
                f"gradients: expected {expected}, as the parameters were given, "
                f"got {_what(gradients)}"
            )
        groups = [
            dict(group) for group in _check.groups("gradients", gradients, "grads.parameters")
        ]
        if len(groups) != len(self._groups):
            raise ValueError(f"gradients: expected {len(self._groups)} mappings, got {len(groups)}")
        for k, (group, gradient) in enumerate(zip(self._groups, groups, strict=True)):
            if set(gradient) != set(group):
                raise ValueError(
                    f"{self._label('gradients', k)}: expected the names {sorted(group)}, "
                    f"got {sorted(map(str, gradient))}"
                )
            for name, p in group.items():
                g = gradient[name]
                label = self._label("gradients", k, name)
                if not isinstance(g, np.ndarray) or g.dtype != p.dtype:
                    raise TypeError(f"{label}: expected a {p.dtype} array, got {_what(g)}")
                if g.shape != p.shape:
                    raise ValueError(f"{label}: expected shape {p.shape}, got {g.shape}")
                gradient[name] = np.asarray(g)  # not a subclass, with arithmetic of its own
                _check.writable(self._label("parameters", k, name), p)
        return groups

    def _label(self, argument: str, group: int, name: str | None = None) -> str:
        label = f"{argument}[{group}]" if self._is_list else argument
        return label if name is None else f"{label}[{name!r}]"


def _pair(betas: Any) -> tuple[float, float]:
    is_list = isinstance(betas, Sequence) or (isinstance(betas, np.ndarray) and betas.ndim == 1)
    if not is_list or len(betas) != 2:
        raise ValueError(f"betas: expected two numbers, got {betas!r}")
    first, second = (_check.not_negative(f"betas[{i}]", betas[i], 1.0) for i in range(2))
    return first, second


def _what(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}"
    return type(value).__name__

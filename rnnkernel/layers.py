"""RNN, GRU and LSTM: parameters, forward and backward over whole sequences.

Letters in shapes: T time steps, N batch rows, I input_size, H hidden_size, L num_layers,
D directions, G gates, P units of h (and of y in each direction): H, or the LSTM's proj_size.
"""

import copy
import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from rnnkernel import _check, _passes, _threads, cells, profiling
from rnnkernel._arguments import check_arrivals
from rnnkernel._differentiate import differentiate, plain_arrivals
from rnnkernel._dropout import Drawn
from rnnkernel._kept import Kept
from rnnkernel._parameters import pack
from rnnkernel._sizes import Sizes
from rnnkernel._unroll import train
from rnnkernel.clipping import Clip
from rnnkernel.inference import Frozen, Inference, Stream
from rnnkernel.results import Gradients, Output

# What a layer is made of beside its options: its parameters, and what it keeps, follow from both.
_MADE_OF = ("input_size", "hidden_size", "dtype", "options")


class _Layer(Inference):
    """What all cells share. A subclass sets `_cell` and names its options."""

    _cell: cells.Cell
    _given: dict[str, np.ndarray] | None = None  # parameters, before there is a layer

    def __init__(
        self,
        input_size,
        hidden_size,
        num_layers,
        bias,
        batch_first,
        dropout,
        bidirectional,
        dtype,
        rng,
        **options,
    ):
        self.input_size = _check.size("input_size", input_size)
        self.hidden_size = _check.size("hidden_size", hidden_size)
        self.num_layers = _check.size("num_layers", num_layers)
        self.bias = _check.flag("bias", bias)
        self.batch_first = _check.flag("batch_first", batch_first)
        self.dropout = _check.share("dropout", dropout)
        self.bidirectional = _check.flag("bidirectional", bidirectional)
        self.dtype = _check.real_dtype("dtype", dtype)
        self._options = {
            "num_layers": self.num_layers,
            "bias": self.bias,
            "batch_first": self.batch_first,
            "dropout": self.dropout,
            "bidirectional": self.bidirectional,
            **options,
        }
        self._directions = 2 if self.bidirectional else 1
        self._name_parameters()
        rng = _check.generator("rng", rng)
        self._kept = Kept()
        if self._given is None:
            self.parameters = self._initial_parameters(rng)
        else:
            self.parameters = _check.parameters(
                "parameters", self._given, self._parameter_shapes, self.dtype
            )
            del self._given
        self._sizes = Sizes(self)
        # drawn last, and only where it is used: the parameters are those without dropout
        self._dropout_seed = int(rng.integers(2**64, dtype=np.uint64)) if self.dropout else 0
        self._dropout_drawn = Drawn()
        if self.dropout and self.num_layers == 1:
            warnings.warn(
                "dropout: it acts between layers, so with num_layers=1 nothing is dropped",
                stacklevel=3,
            )

    def __setattr__(self, name, value):
        if "_sizes" in self.__dict__ and (name in _MADE_OF or name in self._options):
            raise AttributeError(
                f"{name}: expected {getattr(self, name)!r}, with which the layer was made, got "
                f"{value!r}: make another layer, and load_state_dict(layer.state_dict())"
            )
        super().__setattr__(name, value)

    @property
    def options(self) -> Mapping[str, Any]:
        """What the constructor was given beside sizes, dtype and rng, by its arguments' names."""
        return MappingProxyType(self._options)

    def _configuration(self) -> dict[str, Any]:
        """What the constructor was given, but for rng."""
        return {
            "input_size": self.input_size,
            "hidden_size": self.hidden_size,
            "dtype": self.dtype.name,
            **self._options,
        }

    @property
    def parameters(self) -> dict[str, np.ndarray]:
        """The weights and biases by name, PyTorch's: live arrays, to be written to.

        As long as somebody has the dict, one of its arrays or a view of one, every call packs the
        weights that it finds. Where nobody has, they stay packed from call to call (without the
        GIL, in the thread that made them). Who writes through a bare address
        (`array.ctypes.data`) must hold the array as well.
        """
        parameters = self._parameters
        self._kept.forget()  # only now: who calls meanwhile counts this reference
        return parameters

    @parameters.setter
    def parameters(self, parameters):
        self._parameters = parameters
        self._kept.forget()

    def __getstate__(self):
        made_anew = ("_kept", "_sizes")
        state = {name: value for name, value in self.__dict__.items() if name not in made_anew}
        state["_dropout_drawn"] = copy.copy(self._dropout_drawn)
        self._kept.forget()  # a copy may share the arrays
        return state

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._kept, self._sizes = Kept(), Sizes(self)

    def _initial_parameters(self, rng) -> dict[str, np.ndarray]:
        arrays = {
            name: _check.allocate(name, shape, self.dtype)
            for name, shape in self._parameter_shapes.items()
        }
        limit = self.hidden_size**-0.5
        for array in arrays.values():
            array[...] = rng.uniform(-limit, limit, array.shape)
        return arrays

    @classmethod
    def _with_parameters(cls, parameters, *sizes, **options):
        """A layer that owns these arrays; none are drawn, or allocated, before they fit."""

        layer = cls.__new__(cls)
        layer._given = parameters
        layer.__init__(*sizes, **options)
        return layer

    def _name_parameters(self):
        """Sets what follows from the sizes: the units of each state, of which y has the first's, a
        suffix for each layer and direction, in the order of the states' rows, and all parameters'
        shapes."""
        units_of_h = self.options.get("proj_size") or self.hidden_size
        self._widths = (units_of_h, self.hidden_size)[: len(self._cell.states)]
        rows, P = len(self._cell.gates) * self.hidden_size, self._widths[0]
        if self.num_layers > 1000:  # whose names alone may be more than the memory
            _check.allocate("num_layers", (self.num_layers, self.hidden_size, P), self.dtype)
        self._suffixes = [
            f"_l{k}{reverse}"
            for k in range(self.num_layers)
            for reverse in ("", "_reverse")[: self._directions]
        ]
        shapes: dict[str, tuple[int, ...]] = {}
        for index, suffix in enumerate(self._suffixes):
            first = index < self._directions
            inputs = self.input_size if first else self._directions * P
            shapes[f"weight_ih{suffix}"] = (rows, inputs)
            shapes[f"weight_hh{suffix}"] = (rows, P)
            if self.bias:
                shapes[f"bias_ih{suffix}"] = (rows,)
                shapes[f"bias_hh{suffix}"] = (rows,)
            if self._cell.projects:
                shapes[f"weight_hr{suffix}"] = (P, self.hidden_size)
            if self._cell.peepholes:
                shapes[f"weight_ch{suffix}"] = (len(self._cell.peepholes) * self.hidden_size,)
        self._parameter_shapes = shapes

    def _pack(self, threads):
        """The weights of every layer and direction, packed for inference."""
        weights = _check.parameters(
            "parameters", self._parameters, self._parameter_shapes, self.dtype
        )
        return [pack(self, weights, index, False, threads) for index in range(len(self._suffixes))]

    def _alone(self, index: int):
        """One layer and direction as a layer of its own, with the same parameters, time first."""
        suffix = self._suffixes[index]
        alone = copy.copy(self)
        del alone._sizes  # to be set up anew
        alone.num_layers, alone.bidirectional, alone._directions = 1, False, 1
        alone.batch_first = False
        alone.parameters = {
            name.removesuffix(suffix) + "_l0": array
            for name, array in self._parameters.items()
            if name.endswith(suffix)
        }
        alone.input_size = alone._parameters["weight_ih_l0"].shape[1]
        alone._name_parameters()
        alone._sizes = Sizes(alone)
        return alone

    def __repr__(self):
        defaults = {
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0.0,
            "bidirectional": False,
            "proj_size": 0,
            "peephole": False,
            "cell_clip": None,
            "coupled": False,
            "forget_bias": 0.0,
        }
        changed = [
            f"{name}={value!r}"
            for name, value in self.options.items()
            if value != defaults.get(name)
        ]
        arguments = [str(self.input_size), str(self.hidden_size), *changed, f"dtype={self.dtype}"]
        return f"{type(self).__name__}({', '.join(arguments)})"

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all parameters by name; PyTorch's names, shapes and gate order."""
        return {
            name: _check.as_array(f"parameters[{name!r}]", array).copy()
            for name, array in self._parameters.items()
        }

    def load_state_dict(self, state_dict) -> None:
        """Copies values into the parameters, in place.

        Raises
        ------
        TypeError, ValueError
            For other names, shapes or dtypes than the layer's; then nothing was changed.
        """
        arrays = _check.values_for(
            "state_dict", state_dict, self._parameters, self._parameter_shapes, self.dtype
        )
        parameters = self.parameters
        targets = {
            name: _check.as_array(f"parameters[{name!r}]", parameters[name]) for name in arrays
        }
        for name, array in arrays.items():
            targets[name][...] = array

    def freeze(self, weights=None) -> Frozen:
        """An immutable copy for inference whose weights are packed once, not at every call.

        Later changes of the layer do not reach it. See `Frozen`.

        Parameters
        ----------
        weights : None, "float16" or "int8"
            Stores the matrices smaller: a step of a small batch takes the time to read them.

        Raises
        ------
        TypeError, ValueError
            For other weights, for smaller ones of a float64 layer, and for parameters that they
            cannot hold.
        """
        return Frozen(self, weights)

    def stream(self, batch_size=1) -> Stream:
        """A `Stream` with the weights as they are now: `freeze().stream(batch_size)`."""
        return self.freeze().stream(batch_size)

    # -- forward ------------------------------------------------------------------------------

    def forward(
        self,
        x,
        state=None,
        *,
        lengths=None,
        reset=None,
        embedding=None,
        training=False,
        trace=False,
        checkpoint_every=None,
        out=None,
        num_threads=None,
    ) -> Output:
        """Runs the layer over sequences.

        Parameters
        ----------
        x : (T, N, I) array; (N, T, I) with `batch_first`; or (T, I), unbatched
            Of the layer's dtype, with any strides; never written. An x that is broadcast along time
            (stride 0) is projected once, and the gradient of weight_ih is summed over time before
            it meets x. Integers (T, N), (N, T) or (T,) are token ids: rows of
            `embedding`, or without one the one-hot vectors of I classes.
        state : (L*D, N, H) array, or for LSTM a pair h (L*D, N, P), c (L*D, N, H)
            Initial states, without N where x has none; None is zeros.
        lengths : (N,) integers, optional
            How many steps each row has, from 0 to T; None is T. Past them x is not looked at, y
            is 0, and nothing is computed. The final state is that of the last valid step (for
            length 0 the initial state), and the second direction begins there. An unbatched x
            takes a single integer.
        reset : (T, N) bool array, laid out as x, optional
            Where True at t, a segment begins at t: no state, and no gradient, crosses the border
            between t-1 and t in either direction. At t = 0 the forward direction drops its
            initial state.
        embedding : (V, I) array, optional
            Of the layer's dtype: what the ids in x stand for.
        training : bool
            Keeps what `backward` needs, in memory of its own: 5 H numbers per step and row for
            LSTM, 4 H for GRU, none for RNN, and a copy of x. An x that is read-only, with every
            array that it is a view of, is kept instead of copied, as the `y` of another training
            forward is: it is not to be made writeable again, nor written to through an older view,
            before `backward`. Dropout acts, and
            keeps a copy of what it leaves of every layer's output but the last's.
        trace : bool
            Keeps the states and gates of every step, for `out.trace`: no more memory than training
            takes for them.
        checkpoint_every : int, optional
            Training keeps, beside y and x, the states before every so many steps instead of the
            gates of all; `backward` computes those again, segment by segment. That takes memory for
            T / checkpoint_every + checkpoint_every steps, least at the square root of T, and up to
            a third more time. Not a bit changes. Inference keeps nothing in any case.
        out : array like y, optional
            Where y is written.
        num_threads : int, optional
            Most threads to use; None is `get_num_threads()`. Results do not depend on it.

        Returns
        -------
        Output
            `.y` (T, N, D*P), laid out as x; `.state`, the final states, like `state`; `.trace`
            with `trace=True`.

        Raises
        ------
        TypeError, ValueError, IndexError
            For a bad argument, named in the message, as an id out of range with its position;
            nothing was changed.
        MemoryError
            Where y or what training keeps does not fit.

        Notes
        -----
        Truncated BPTT is forward and backward on pieces of the sequences, one after another, each
        with `state=` the piece before's `out.state`. The outputs are the whole's, bit for bit;
        gradients stop where a piece begins. Going back through the pieces from the last, with
        `dstate=` the `grads.state` of the piece behind, adds up to the whole's gradient.
        """
        if training is not True and training is not False:
            training = _check.flag("training", training)
        call = profiling.begin(self, "forward(training=True)" if training else "forward()")
        if (
            training is True
            and trace is False
            and reset is None
            and embedding is None
            and checkpoint_every is None
            and out is None
        ):
            plain = train(self, x, state, _threads.resolve(num_threads), lengths)
            if plain is not None:
                if call is not None:
                    call.end()
                return plain
        trace = _check.flag("trace", trace)
        if checkpoint_every is not None:
            checkpoint_every = _check.size("checkpoint_every", checkpoint_every)
            if trace:
                raise ValueError(
                    f"checkpoint_every: expected None with trace=True, got {checkpoint_every}: a "
                    "trace keeps the gates of every step"
                )
        threads = _threads.resolve(num_threads)
        kept = None if training else self._kept.packed(self, lambda: self._pack(threads))
        weights = _check.parameters(
            "parameters", self._parameters, self._parameter_shapes, self.dtype
        )
        # views: an object of the caller's that is asked later may set an array's shape
        weights = {name: array.view() for name, array in weights.items()}
        result = _passes.forward(
            self,
            kept.__getitem__
            if kept is not None
            else lambda index, columns=None: pack(self, weights, index, training, threads, columns),
            weights,
            threads,
            x,
            state,
            lengths=lengths,
            reset=reset,
            embedding=embedding,
            training=training,
            trace=trace,
            checkpoint_every=checkpoint_every,
            out=out,
            one_hot="columns" if kept is None else "packed",
        )
        if call is not None:
            call.end()
        return result

    # -- backward -----------------------------------------------------------------------------

    def backward(
        self, out, dy=None, dstate=None, *, clip=None, flow=False, input_grad=True, num_threads=None
    ) -> Gradients:
        """Backpropagation through time of a `forward(..., training=True)`.

        Gradients are exact for what that forward computed, also where parameters or x have
        changed since. They are written, not accumulated.

        Parameters
        ----------
        out : Output
        dy : like out.y, optional
            dL/dy; None is zeros.
        dstate : like out.state, optional
            dL/d(final state); None is zeros. Of a pair both are to be given, one of them
            zeros if need be.
        clip : Clip, optional
            Limits the gradient at every step.
        flow : bool or "states"
            Records the norm of the gradient that reaches each state, or with "states" also the
            gradient itself.
        input_grad : bool
            Whether to compute the gradient of x.
        num_threads : int, optional
            As in `forward`; gradients do not depend on it.

        Returns
        -------
        Gradients
            `.x`, like x; `.state`, of the initial state; `.parameters`, by name, like
            `layer.parameters`; `.embedding` (V, I) where forward had one; `.flow` with `flow=True`.

        Raises
        ------
        TypeError, ValueError
            For a bad argument, named in the message.
        """
        call = profiling.begin(self, "backward()")
        if not isinstance(out, Output):
            raise TypeError(f"out: expected what forward returned, got {type(out).__name__}")
        if out._tape is None:
            raise ValueError(
                "out: expected the output of forward(..., training=True), got inference"
            )
        if out._tape.layer is not self:
            raise ValueError(
                f"out: expected an output of this layer, got one of {out._tape.layer!r}"
            )
        value = norm = np.inf
        if clip is not None:
            if not isinstance(clip, Clip):
                raise TypeError(f"clip: expected a Clip or None, got {type(clip).__name__}")
            value = np.inf if clip.value is None else clip.value
            norm = np.inf if clip.norm is None else clip.norm
        if isinstance(flow, str):
            if flow != "states":
                raise ValueError(f"flow: expected True, False or 'states', got {flow!r}")
        else:
            flow = _check.flag("flow", flow)
        input_grad = _check.flag("input_grad", input_grad)
        threads = _threads.resolve(num_threads)
        arrivals = plain_arrivals(out._tape, dy, dstate)
        if arrivals is None:
            arrivals = check_arrivals(out._tape, dy, dstate)
        gradients = differentiate(out._tape, *arrivals, value, norm, flow, input_grad, threads)
        if call is not None:
            call.end()
        return gradients


class RNN(_Layer):
    """Vanilla RNN (Elman 1990): h = act(W_ih x + b_ih + W_hh h' + b_hh).

    Parameters
    ----------
    input_size, hidden_size, num_layers : int
        I, H and L.
    nonlinearity : "tanh" or "relu"
    bias : bool
    batch_first : bool
        Whether x and y are (N, T, .) instead of (T, N, .). States are (L*D, N, H) always.
    dropout : float from 0 to 1
        With `training=True`, each element that one layer hands to the next is 0 with this
        probability and divided by 1 - dropout otherwise (Srivastava et al. 2014). What is dropped
        is a function of a seed that `rng` draws, the layer, the step, the row and the unit. Steps
        are counted over all training forwards of the layer, so that every call drops afresh and
        pieces of a sequence drop what the whole would.
    bidirectional : bool
        Whether every layer has a second direction that runs from the last step.
    dtype : float32 or float64
    rng : int or numpy.random.Generator, optional
        Draws the initial parameters from U(-1/sqrt(H), 1/sqrt(H)), then the seed of dropout.

    Attributes
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype
        As they were given, and fixed, as `nonlinearity` and other cells' options are.
    parameters : dict of str to array
        Live, and with PyTorch's names: `weight_ih_l0` (H, I), `weight_hh_l0` (H, H), `bias_ih_l0`
        and `bias_hh_l0` (H,), then those of `_l1` and of `_reverse`.

    Raises
    ------
    TypeError, ValueError
        For a bad argument, named in the message.
    MemoryError
        Where the parameters do not fit.

    Warns
    -----
    UserWarning
        For dropout with a single layer, where there is nothing that it acts on.
    """

    def __init__(
        self,
        input_size,
        hidden_size,
        num_layers=1,
        *,
        nonlinearity="tanh",
        bias=True,
        batch_first=False,
        dropout=0.0,
        bidirectional=False,
        dtype=np.float32,
        rng=None,
    ):
        self.nonlinearity = _check.choice("nonlinearity", nonlinearity, ("tanh", "relu"))
        self._cell = cells.RNN_TANH if nonlinearity == "tanh" else cells.RNN_RELU
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            dtype,
            rng,
            nonlinearity=self.nonlinearity,
        )


class GRU(_Layer):
    """Gated recurrent unit (Cho et al. 2014); gates r, z, n.

    r, z = s(W_ih x + b_ih + W_hh h' + b_hh), h = (1-z)*n + z*h', and
    `reset_after=True` (cuDNN, PyTorch, Keras): n = tanh(W_in x + b_in + r*(W_hn h' + b_hn));
    `reset_after=False` (the paper, ONNX): n = tanh(W_in x + b_in + W_hn (r*h') + b_hn).
    The two are not convertible.

    Parameters and errors are those of `RNN`, with `reset_after` for `nonlinearity`: input_size,
    hidden_size, num_layers, bias, batch_first, dropout between layers, bidirectional, dtype and
    rng. `parameters` has `weight_ih_l0` (3*H, I), `weight_hh_l0` (3*H, H), `bias_ih_l0` and
    `bias_hh_l0` (3*H,), and so on for every layer and direction.
    """

    def __init__(
        self,
        input_size,
        hidden_size,
        num_layers=1,
        *,
        reset_after=True,
        bias=True,
        batch_first=False,
        dropout=0.0,
        bidirectional=False,
        dtype=np.float32,
        rng=None,
    ):
        self.reset_after = _check.flag("reset_after", reset_after)
        self._cell = cells.GRU_RESET_AFTER if reset_after else cells.GRU_RESET_BEFORE
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            dtype,
            rng,
            reset_after=self.reset_after,
        )


class LSTM(_Layer):
    """LSTM with a forget gate (Hochreiter & Schmidhuber 1997, Gers et al. 2000); gates i, f, g, o.

    i, f, o = s(W_ih x + b_ih + W_hh h' + b_hh), g = tanh(the same),
    c = f*c' + i*g, h = o*tanh(c). The options combine freely.

    States are pairs (h, c). Parameters and errors are those of `RNN`, without `nonlinearity`:
    input_size, hidden_size, num_layers, bias, batch_first, dropout between layers, bidirectional,
    dtype and rng. `parameters` has `weight_ih_l0` (4*H, I), `weight_hh_l0` (4*H, P), `bias_ih_l0`
    and `bias_hh_l0` (4*H,), and so on for every layer and direction. Beside them there are

    proj_size : int
        P: with it h = W_hr (o*tanh(c)) with `weight_hr_l{k}` (P, H), and h, y and what the next
        step and layer see have P units; 1 <= P < H. 0 is no projection.
    peephole : bool
        Whether the gates see the cell: i and f have p*c' among their arguments, o has p*c, with p
        from `weight_ch_l{k}` (3*H: i, f, o).
    cell_clip : float, optional
        c is clipped to ±cell_clip, before o sees it, and no gradient passes where it was.
    forget_bias : float
        Where it is not 0, the forget gate's biases start at it (`bias_ih`) and at 0 (`bias_hh`)
        instead of at random: 1 keeps gradients alive over more steps from the first day
        (Jozefowicz et al. 2015). With `coupled`, i starts at -forget_bias likewise. It wants
        `bias`.
    coupled : bool
        Whether f = 1 - i (CIFG, Greff et al. 2017; `input_forget` of ONNX). The weights keep their
        shapes; the rows of f are not used and their gradient is 0.
    """

    def __init__(
        self,
        input_size,
        hidden_size,
        num_layers=1,
        *,
        proj_size=0,
        peephole=False,
        cell_clip=None,
        forget_bias=0.0,
        coupled=False,
        bias=True,
        batch_first=False,
        dropout=0.0,
        bidirectional=False,
        dtype=np.float32,
        rng=None,
    ):
        hidden_size = _check.size("hidden_size", hidden_size)
        self.proj_size = _check.size("proj_size", proj_size, 0)
        if self.proj_size >= hidden_size:
            raise ValueError(
                f"proj_size: expected less than hidden_size={hidden_size}, got {self.proj_size}"
            )
        self.peephole = _check.flag("peephole", peephole)
        self.cell_clip = None if cell_clip is None else _check.positive("cell_clip", cell_clip)
        self.coupled = _check.flag("coupled", coupled)
        self.forget_bias = _check.finite("forget_bias", forget_bias, dtype)
        if self.forget_bias and not _check.flag("bias", bias):
            raise ValueError(f"forget_bias: expected 0 with bias=False, got {self.forget_bias}")
        self._cell = cells.lstm(
            peephole=self.peephole,
            cell_clip=self.cell_clip is not None,
            coupled=self.coupled,
            projection=self.proj_size > 0,
        )
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            dtype,
            rng,
            proj_size=self.proj_size,
            peephole=self.peephole,
            cell_clip=self.cell_clip,
            forget_bias=self.forget_bias,
            coupled=self.coupled,
        )

    def _initial_parameters(self, rng):
        arrays = super()._initial_parameters(rng)
        if self.forget_bias:
            # 1 - s(a) = s(-a)
            name, start = ("i", -self.forget_bias) if self.coupled else ("f", self.forget_bias)
            gate = self._cell.gates.index(name)
            rows = slice(gate * self.hidden_size, (gate + 1) * self.hidden_size)
            for suffix in self._suffixes:
                arrays[f"bias_ih{suffix}"][rows] = start
                arrays[f"bias_hh{suffix}"][rows] = 0
        return arrays

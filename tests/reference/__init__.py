"""NumPy references of the cells, and the table of variants that the tests run over.

Every module has

    forward(weights, x, state, **options) -> y, state, tape
    backward(weights, tape, dy, dstate, *, clip_value=None, clip_norm=None) -> Gradients

where a state is an array (N, H), or a tuple of them for a cell with more than one. They compute in
the dtype that they are given, loop over nothing but time, and know one layer and one direction;
stack.py puts them together to layers and directions, with lengths, resets, token ids and dropout.
To test another cell, write its module and add its row to the table. The LSTM's options combine
freely; LSTM_VARIANTS has every combination of them, `lstm_case` makes others.
"""

from dataclasses import dataclass, field
from itertools import product
from types import ModuleType

from . import gru, lstm, rnn
from .common import Gradients

__all__ = ["CASES", "LSTM_VARIANTS", "Case", "Gradients", "lstm_case"]


@dataclass(frozen=True)
class Case:
    """One variant of one cell."""

    name: str
    reference: ModuleType
    layer: str  # name of the class in rnnkernel
    gates: int
    states: tuple[str, ...] = ("h",)
    # The reference's forward and the layer's constructor take the same options.
    options: dict = field(default_factory=dict)

    def pack(self, states):
        """The states (a sequence) as the cell's interface has them: alone, or as a tuple."""
        return tuple(states) if len(self.states) > 1 else states[0]

    def unpack(self, state):
        """The reverse of pack: always a tuple."""
        return tuple(state) if len(self.states) > 1 else (state,)

    def widths(self, H):
        """Units of each state: H, but P of h where it is projected."""
        return tuple((self.options.get("proj_size") or H) if s == "h" else H for s in self.states)

    def weight_shapes(self, I, H, bias=True):  # noqa: E741
        """Shape of each weight by name."""
        rows, P = self.gates * H, self.widths(H)[0]
        shapes = {"weight_ih": (rows, I), "weight_hh": (rows, P)}
        if bias:
            shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
        if self.options.get("proj_size"):
            shapes["weight_hr"] = (P, H)
        if self.options.get("peephole"):
            shapes["weight_ch"] = (3 * H,)
        return shapes

    def forward(self, weights, x, state):
        return self.reference.forward(weights, x, state, **self.options)

    def backward(self, weights, tape, dy, dstate, **clip):
        return self.reference.backward(weights, tape, dy, dstate, **clip)


CASES = {
    case.name: case
    for case in (
        Case("rnn_tanh", rnn, "RNN", 1, options={"nonlinearity": "tanh"}),
        Case("rnn_relu", rnn, "RNN", 1, options={"nonlinearity": "relu"}),
        Case("gru_reset_after", gru, "GRU", 3, options={"reset_after": True}),
        Case("gru_reset_before", gru, "GRU", 3, options={"reset_after": False}),
        Case("lstm", lstm, "LSTM", 4, states=("h", "c")),
    )
}


def lstm_case(**options):
    """The LSTM with some of peephole, cell_clip, coupled, proj_size."""
    on = {name: value for name, value in options.items() if value}
    name = "_".join(["lstm", *(n if v is True else f"{n}_{v:g}" for n, v in on.items())])
    return Case(name, lstm, "LSTM", 4, states=("h", "c"), options=on)


# Every combination but none. The clip is one that acts on some of the cells of unit variance; the
# projection wants more than three hidden units.
LSTM_VARIANTS = {
    case.name: case
    for case in (
        lstm_case(peephole=peephole, cell_clip=cell_clip, coupled=coupled, proj_size=proj_size)
        for coupled, peephole, cell_clip, proj_size in product(
            (False, True), (False, True), (None, 0.3), (0, 3)
        )
    )
    if case.options
}

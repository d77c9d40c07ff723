"""NumPy references of the cells, and the table of variants that the tests run over.

Every module has

    forward(weights, x, state, **options) -> y, state, tape
    backward(weights, tape, dy, dstate, *, clip_value=None, clip_norm=None) -> Gradients

where a state is an array (N, H), or a tuple of them for a cell with more than one. They compute in
the dtype that they are given, loop over nothing but time, and know one layer and one direction.
To test another cell, write its module and add its row to the table.
"""

from dataclasses import dataclass, field
from types import ModuleType

from . import gru, lstm, rnn
from .common import Gradients

__all__ = ["CASES", "Case", "Gradients"]


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

"""One frozen description per cell: what a layer must know of it.

The mathematics itself stands in csrc/cells/, and once more in tests/reference/.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """A recurrent cell.

    Attributes
    ----------
    name : str
        For messages and `repr`.
    index : int
        Its row in the C table of cells (csrc/rnnkernel.h).
    gates : tuple of str
        Gates in the order of the rows of the canonical weights, as in PyTorch.
    states : tuple of str
        What one step hands to the next.
    peepholes : tuple of str
        Gates that see the cell, in the order of their blocks in `weight_ch`; often none.
    projects : bool
        Whether h is a projection, narrower than c.
    equations : str
        `s` is the sigmoid, `h'` and `c'` are the states of the step before.
    """

    name: str
    index: int
    gates: tuple[str, ...]
    states: tuple[str, ...]
    equations: str
    peepholes: tuple[str, ...] = ()
    projects: bool = False


RNN_TANH = Cell("RNN (tanh)", 0, ("h",), ("h",), "h = tanh(W_ih x + b_ih + W_hh h' + b_hh)")
RNN_RELU = Cell("RNN (relu)", 1, ("h",), ("h",), "h = max(0, W_ih x + b_ih + W_hh h' + b_hh)")
GRU_RESET_AFTER = Cell(
    "GRU (reset after)",
    2,
    ("r", "z", "n"),
    ("h",),
    "r, z = s(W_ih x + b_ih + W_hh h' + b_hh); "
    "n = tanh(W_in x + b_in + r*(W_hn h' + b_hn)); h = (1-z)*n + z*h'",
)
GRU_RESET_BEFORE = Cell(
    "GRU (reset before)",
    3,
    ("r", "z", "n"),
    ("h",),
    "r, z = s(W_ih x + b_ih + W_hh h' + b_hh); "
    "n = tanh(W_in x + b_in + W_hn (r*h') + b_hn); h = (1-z)*n + z*h'",
)
LSTM = Cell(
    "LSTM",
    4,
    ("i", "f", "g", "o"),
    ("h", "c"),
    "i, f, o = s(W_ih x + b_ih + W_hh h' + b_hh), g = tanh(the same); "
    "c = f*c' + i*g; h = o*tanh(c)",
)


def lstm(*, peephole: bool, cell_clip: bool, coupled: bool, projection: bool) -> Cell:
    """The LSTM with these options; all gates keep their rows in the weights."""
    if not (peephole or cell_clip or coupled or projection):
        return LSTM
    c = "f*c' + i*g"
    return Cell(
        "LSTM",
        LSTM.index + peephole + 2 * cell_clip + 4 * coupled + 8 * projection,
        LSTM.gates,
        LSTM.states,
        "i, f, o = s(W_ih x + b_ih + W_hh h' + b_hh"
        + (" + p*c', for o p*c" if peephole else "")
        + "), g = tanh(W_ih x + b_ih + W_hh h' + b_hh)"
        + (" but f = 1 - i; " if coupled else "; ")
        + (f"c = clip({c})" if cell_clip else f"c = {c}")
        + ("; h = W_hr (o*tanh(c))" if projection else "; h = o*tanh(c)"),
        ("i", "f", "o") if peephole else (),
        projection,
    )

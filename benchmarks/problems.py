"""The problems that are timed: named sizes, each with where it comes from.

Letters: T steps, N batch rows, I input size, H hidden size. Cells are named as in
tests/reference: rnn_tanh, rnn_relu, gru_reset_after, gru_reset_before, lstm.

    python benchmarks/problems.py        lists them
"""

from dataclasses import dataclass, replace

import numpy as np

MODES = ("inference", "training", "rest")
GATES = {"rnn_tanh": 1, "rnn_relu": 1, "gru_reset_after": 3, "gru_reset_before": 3, "lstm": 4}


@dataclass(frozen=True)
class Problem:
    name: str
    cell: str
    T: int
    N: int
    I: int  # noqa: E741
    H: int
    layers: int = 1
    bidirectional: bool = False
    lengths: tuple[int, ...] | None = None  # valid steps of each row
    dtype: str = "float32"
    modes: tuple[str, ...] = ("inference", "training")
    source: str = ""

    def __post_init__(self):
        assert self.cell in GATES, self.cell
        assert set(self.modes) <= set(MODES), self.modes
        assert self.lengths is None or (len(self.lengths) == self.N and max(self.lengths) <= self.T)

    @property
    def directions(self):
        return 2 if self.bidirectional else 1

    @property
    def step(self):
        """Whether it is one step of a stream, which continues from a state."""
        return self.T == 1

    @property
    def sizes(self):
        text = f"T{self.T} N{self.N} I{self.I} H{self.H}"
        text += f" L{self.layers}" if self.layers > 1 else ""
        text += " bidirectional" if self.bidirectional else ""
        text += " ragged" if self.lengths else ""
        return text + (" float64" if self.dtype == "float64" else "")

    def steps(self):
        """Steps of all rows together; past a row's length there are none."""
        return self.T * self.N if self.lengths is None else sum(self.lengths)

    def layer_inputs(self):
        """The input size of each layer."""
        return [self.I] + [self.directions * self.H] * (self.layers - 1)


def flops(problem, mode="inference"):
    """Products and sums of the matrix products: 2*G*H*(I+H) a step and row; three times in BPTT."""
    G, H = GATES[problem.cell], problem.H
    step = sum(2 * G * H * (inputs + H) for inputs in problem.layer_inputs())
    return step * problem.directions * problem.steps() * (3 if mode == "training" else 1)


# -- the tables --------------------------------------------------------------------------------

_STEP = ("inference", "rest")
_SERVED = ("inference", "rest", "training")

_POLICY = "recurrent policies: CleanRL ppo_atari_lstm (H128), sb3-contrib RecurrentPPO (H256)"
_KEYWORDS = "keyword spotting, Zhang et al. 2017 (Hello Edge): 10 MFCC, 49 frames"
_NOISE = "noise suppression, Xia et al. 2020 (NSNet): three GRU layers over 257 bins"
_CHARS = "char-rnn, Karpathy 2015: its defaults on tiny Shakespeare (65 characters); H512"
_SERIES = "a week of hours, DeepAR-like (Salinas et al. 2017)"
_DEEPAR = "GluonTS DeepAR defaults: two layers of 40"
_DEEPBENCH = "DeepBench (Baidu), I = H"
_GRID = "a grid over sizes, from bound by latency to bound by arithmetic"

POLICY = [
    Problem(
        f"policy-{cell[:4].rstrip('_')}-n{N}-h{H}", cell, 1, N, H, H, modes=_STEP, source=_POLICY
    )
    for cell, N, H in (
        ("lstm", 1, 64),
        ("lstm", 1, 128),
        ("lstm", 1, 256),
        ("lstm", 4, 128),
        ("lstm", 16, 64),
        ("lstm", 16, 256),
        ("gru_reset_after", 1, 64),
        ("gru_reset_after", 16, 256),
        ("rnn_tanh", 1, 64),
        ("rnn_tanh", 16, 256),
    )
]

KEYWORDS = [
    Problem("keyword-lstm", "lstm", 49, 1, 10, 118, modes=("inference", "rest"), source=_KEYWORDS),
    Problem("keyword-gru", "gru_reset_after", 49, 100, 10, 250, source=_KEYWORDS),
]

NOISE = [
    Problem(
        "noise-gru-step", "gru_reset_after", 1, 1, 257, 256, layers=3, modes=_STEP, source=_NOISE
    ),
    Problem(
        "noise-gru", "gru_reset_after", 500, 1, 257, 256, layers=3, modes=_SERVED, source=_NOISE
    ),
]

CHARS = [
    Problem(f"char-lstm-h{H}", "lstm", 50, 50, 65, H, layers=2, source=_CHARS) for H in (128, 512)
]

SERIES = [
    Problem("series-lstm-i8-h64", "lstm", 168, 64, 8, 64, source=_SERIES),
    Problem("series-lstm-i16-h128", "lstm", 168, 64, 16, 128, source=_SERIES),
    Problem("series-gru-i16-h128", "gru_reset_after", 168, 64, 16, 128, source=_SERIES),
    Problem("deepar-lstm", "lstm", 72, 32, 16, 40, layers=2, source=_DEEPAR),
]

DEEPBENCH = [
    *(
        Problem(f"deepbench-lstm-h512-n{N}", "lstm", 25, N, 512, 512, source=_DEEPBENCH)
        for N in (1, 2, 4, 16, 32, 64, 128)
    ),
    Problem("deepbench-lstm-h256", "lstm", 150, 32, 256, 256, source=_DEEPBENCH),
    Problem("deepbench-rnn-h1760", "rnn_tanh", 50, 16, 1760, 1760, source=_DEEPBENCH),
    Problem("deepbench-gru-h1024", "gru_reset_after", 187, 32, 1024, 1024, source=_DEEPBENCH),
]

SPEECH = [
    Problem(
        "speech-lstm-h800",
        "lstm",
        300,
        20,
        800,
        800,
        source="deepspeech.pytorch: 800 units, batch 20",
    ),
    Problem(
        "translation-lstm-h1024",
        "lstm",
        50,
        128,
        1024,
        1024,
        source="GNMT, Wu et al. 2016: 1024 units, batch 128, 50 tokens",
    ),
]

ODD = [
    Problem("odd-lstm-h100", "lstm", 50, 13, 37, 100, source="no multiple of 16"),
    Problem("odd-gru-h100", "gru_reset_after", 50, 13, 37, 100, source="no multiple of 16"),
    Problem("odd-lstm-h300", "lstm", 50, 7, 300, 300, source="no multiple of 16; fastText vectors"),
]

_LENGTHS = tuple(int(n) for n in np.random.default_rng(0).integers(10, 101, 64))
_RAGGED = "packed sequences, lengths U(10, 100): sentences as they come"
RAGGED = [
    Problem(f"ragged-{name}", cell, max(_LENGTHS), 64, 128, 128, lengths=_LENGTHS, source=_RAGGED)
    for name, cell in (("lstm", "lstm"), ("gru", "gru_reset_after"))
]

BIDIRECTIONAL = [
    Problem(
        "tagger-bilstm",
        "lstm",
        50,
        32,
        100,
        100,
        bidirectional=True,
        source="BiLSTM-CRF tagger, Lample et al. 2016: 100 units a direction",
    ),
    Problem(
        "speech-bigru",
        "gru_reset_after",
        100,
        16,
        256,
        256,
        layers=2,
        bidirectional=True,
        source="Deep Speech 2, Amodei et al. 2015, in small",
    ),
]

FLOAT64 = [
    Problem(f"float64-{name}-h{H}", cell, T, N, H, H, dtype="float64", source="float64: " + _GRID)
    for name, cell, T, N, H in (
        ("lstm", "lstm", 100, 32, 128),
        ("gru", "gru_reset_after", 100, 32, 128),
        ("lstm", "lstm", 50, 64, 256),
    )
]

GRID = [
    Problem(f"{name}-t{T}-n{N}-h{H}", cell, T, N, H, H, source=_GRID)
    for name, cell in (("lstm", "lstm"), ("gru", "gru_reset_after"), ("rnn", "rnn_tanh"))
    for T, N, H in (
        (100, 1, 128),
        (100, 1, 512),
        (50, 16, 64),
        (100, 32, 128),
        (50, 64, 256),
        (25, 64, 512),
        (200, 32, 512),
        (1000, 8, 32),
    )
]


def _sweep():
    """LSTM over hidden sizes and batches: for a heat map, and to see cliffs at powers of two."""
    problems = []
    for H in (16, 32, 64, 128, 256, 512, 1024, 2048):
        for N in (1, 2, 4, 8, 16, 32, 64, 128):
            one = Problem(f"sweep-h{H}-n{N}", "lstm", 1, N, H, H, source="sweep")
            # fewer steps where one is long, so that every call stays near 2 GFLOP
            problems.append(replace(one, T=int(np.clip(2e9 // flops(one), 4, 50))))
    return problems


ALL = [
    *POLICY,
    *KEYWORDS,
    *NOISE,
    *CHARS,
    *SERIES,
    *DEEPBENCH,
    *SPEECH,
    *ODD,
    *RAGGED,
    *BIDIRECTIONAL,
    *FLOAT64,
    *GRID,
]
_BY_NAME = {problem.name: problem for problem in ALL}
assert len(_BY_NAME) == len(ALL), "names of problems are not unique"

QUICK = [
    _BY_NAME[name]
    for name in (
        "policy-lstm-n1-h64",
        "lstm-t100-n1-h128",
        "lstm-t50-n64-h256",
        "lstm-t1000-n8-h32",
        "gru-t50-n64-h256",
        "rnn-t50-n64-h256",
        "odd-lstm-h100",
        "char-lstm-h128",
        "ragged-lstm",
        "tagger-bilstm",
        "float64-lstm-h128",
    )
]

# What the pytest-benchmark files time: every cell, and the two sizes that are quoted.
DAILY = [
    _BY_NAME["lstm-t50-n64-h256"],
    _BY_NAME["lstm-t1000-n8-h32"],
    _BY_NAME["gru-t50-n16-h64"],
    _BY_NAME["rnn-t50-n16-h64"],
    _BY_NAME["odd-lstm-h100"],
    replace(_BY_NAME["odd-gru-h100"], name="odd-gru-before-h100", cell="gru_reset_before"),
    replace(_BY_NAME["rnn-t50-n16-h64"], name="rnn-relu-t50-n16-h64", cell="rnn_relu"),
    replace(_BY_NAME["odd-lstm-h100"], name="odd-lstm-h100-float64", dtype="float64"),
    _BY_NAME["policy-lstm-n1-h64"],
]

GROUPS = {"quick": QUICK, "all": ALL, "sweep": _sweep()}


def find(name):
    """A problem by its name."""
    for group in GROUPS.values():
        for problem in group:
            if problem.name == name:
                return problem
    raise KeyError(f"no problem is called {name!r}")


def main():
    width = max(len(p.name) for p in ALL)
    for p in ALL:
        print(f"{p.name:<{width}}  {p.cell:<15}  {p.sizes:<34}  {'/'.join(p.modes)}  [{p.source}]")


if __name__ == "__main__":
    main()

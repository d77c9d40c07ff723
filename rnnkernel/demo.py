"""``rnnkernel demo``: a character-level language model, trained in less than a minute.

The text is the documentation that CPython carries with itself (``pydoc_data.topics``, what
``help("for")`` shows), so that nothing is downloaded. The model reads one character after the
other and predicts the next: token ids, one recurrent layer, a linear readout. It is trained
by truncated backpropagation through time: the text is cut into ``STREAMS`` streams that are read
side by side, ``WINDOW`` characters at a time, and the state is handed on from window to window.

Everything random comes from one seeded generator: the same seed gives the same model.
"""

from __future__ import annotations

import hashlib
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

import rnnkernel as rk
from rnnkernel import numpy_reference

__all__ = ["CharModel", "Corpus", "load_text", "run", "sample", "train"]

CELLS = {"rnn": rk.RNN, "gru": rk.GRU, "lstm": rk.LSTM}
ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
"""Newline and printable ASCII, whatever the text: what is not in it is replaced."""

STREAMS = 32
WINDOW = 32
LEARNING_RATE = {"rnn": 1e-2, "gru": 6e-3, "lstm": 1.5e-2}
MAX_NORM = 1.0
LOOK_BACK = 64
"""Steps of the sequences that the gradient flow and the speed are measured on."""
PROMPT = "\nThe "
"""What the model reads before it goes on by itself."""
TURNS = 3
"""How often the kernel and the NumPy reference are timed, one after the other."""
BITS = 1 / math.log(2)
"""Bits in a nat."""


# --- the text -------------------------------------------------------------------------------------


def load_text() -> str:
    """The topics of CPython's documentation, each paragraph once.

    Topics quote one another. Without the repetitions, what is held out has not been seen in
    training.

    Raises
    ------
    SystemExit
        If this Python was installed without ``pydoc_data``.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise SystemExit(
            "rnnkernel demo: this Python has no pydoc_data.topics, the text to train on; "
            "it is part of CPython's standard library"
        ) from None
    paragraphs: dict[str, None] = {}
    for name in sorted(topics):
        for paragraph in topics[name].split("\n\n"):
            paragraphs[paragraph.strip("\n")] = None
    return "\n\n".join(p for p in paragraphs if p.strip())


@dataclass(frozen=True)
class Corpus:
    """A text as indices into ALPHABET; the last tenth is held out."""

    train: np.ndarray
    held_out: np.ndarray

    @classmethod
    def from_text(cls, text: str) -> Corpus:
        """Encode ``text``; typographic signs become their plain forms, others ``?``."""
        plain = text.translate(str.maketrans("‘’“”–—…", "''\"\"--."))
        index = {c: i for i, c in enumerate(ALPHABET)}
        ids = np.array([index.get(c, index["?"]) for c in plain], dtype=np.intp)
        border = len(ids) * 9 // 10
        return cls(ids[:border], ids[border:])

    def unigram_bits(self) -> float:
        """Bits per held-out character of a model that knows only how frequent each one is."""
        counts = np.bincount(self.train, minlength=len(ALPHABET)) + 1
        return float(-np.log2(counts / counts.sum())[self.held_out].mean())


def streams(ids: np.ndarray, count: int) -> np.ndarray:
    """``ids`` cut into ``count`` equal pieces that lie side by side: (length, count)."""
    length = len(ids) // count
    return np.ascontiguousarray(ids[: length * count].reshape(count, length).T)


def windows(text: np.ndarray, length: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(inputs, targets) of ``length`` steps each, one after the other; the last may be shorter."""
    for start in range(0, len(text) - 1, length):
        stop = min(start + length, len(text) - 1)
        yield text[start:stop], text[start + 1 : stop + 1]


def decode(ids: Any) -> str:
    """The characters of some indices."""
    return "".join(ALPHABET[i] for i in ids)


# --- the model ------------------------------------------------------------------------------------


class CharModel:
    """One recurrent layer on characters and a linear readout."""

    def __init__(self, cell: str, hidden: int, rng: np.random.Generator) -> None:
        # A forget gate that starts open lets the model remember before it has learned what.
        options = {"forget_bias": 1.0} if cell == "lstm" else {}
        self.layer = CELLS[cell](len(ALPHABET), hidden, rng=rng, **options)
        self.readout = rk.Linear(hidden, len(ALPHABET), rng=rng)

    @property
    def parameters(self) -> list[dict[str, np.ndarray]]:
        """The live arrays, as an optimizer wants them."""
        return [self.layer.parameters, self.readout.parameters]

    def loss_and_gradients(
        self, inputs: np.ndarray, targets: np.ndarray, state: Any
    ) -> tuple[float, list[dict[str, np.ndarray]], Any]:
        """Loss in nats per character, gradients like ``parameters``, and the state to hand on."""
        out = self.layer.forward(inputs, state, training=True)
        loss, dlogits = rk.softmax_cross_entropy(self.readout(out.y), targets)
        readout = self.readout.backward(out.y, dlogits)
        layer = self.layer.backward(out, readout.x)
        return loss, [layer.parameters, readout.parameters], out.state

    def bits_per_character(self, ids: np.ndarray) -> float:
        """Mean over a text, read in parallel streams from a zero state."""
        total, count, state = 0.0, 0, None
        for inputs, targets in windows(streams(ids, STREAMS), WINDOW):
            y, state = self.layer(inputs, state)
            loss, _ = rk.softmax_cross_entropy(self.readout(y), targets)
            total += loss * targets.size
            count += targets.size
        return BITS * total / count

    def checksum(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of all parameters."""
        digest = hashlib.sha256()
        for group in self.parameters:
            for name in sorted(group):
                digest.update(name.encode())
                digest.update(np.ascontiguousarray(group[name]).tobytes())
        return digest.hexdigest()[:12]


def sample(
    model: CharModel,
    length: int,
    rng: np.random.Generator,
    *,
    prompt: str = PROMPT,
    temperature: float = 0.7,
) -> str:
    """``length`` characters, each drawn from the model's prediction and fed back to it.

    The model reads ``prompt`` first, which is not empty. ``temperature`` divides the logits:
    below 1, likely characters become likelier.
    """
    stream, drawn = model.layer.stream(), []
    for heard in map(ALPHABET.index, prompt):
        y = stream.step(heard)
    for _ in range(length):
        logits = model.readout(y).astype(np.float64) / temperature
        # Adding Gumbel noise and taking the maximum draws from the softmax.
        drawn.append(np.argmax(logits + rng.gumbel(size=logits.shape)))
        y = stream.step(drawn[-1])
    return decode(drawn)


# --- training -------------------------------------------------------------------------------------


class Step(NamedTuple):
    """What :func:`train` tells of each step."""

    number: int
    bits: float
    gradient_norm: float
    characters_per_second: float


def train(model: CharModel, ids: np.ndarray, steps: int, lr: float) -> Iterator[Step]:
    """Train for ``steps`` windows of all streams, yielding after each.

    The gradient's norm is limited to MAX_NORM; the learning rate falls to zero as a half cosine.
    """
    adam = rk.Adam(model.parameters, lr=lr)
    text = streams(ids, STREAMS)
    start, done, number = time.perf_counter(), 0, 0
    while True:
        state = None  # the streams begin anew
        for inputs, targets in windows(text, WINDOW):
            if number == steps:
                return
            adam.lr = lr * 0.5 * (1 + math.cos(math.pi * number / steps))
            loss, gradients, state = model.loss_and_gradients(inputs, targets, state)
            norm = rk.clip_grad_norm(gradients, MAX_NORM)
            adam.step(gradients)
            number += 1
            done += targets.size
            yield Step(number, BITS * loss, norm, done / (time.perf_counter() - start))


# --- what becomes of the gradient -----------------------------------------------------------------


def gradient_flow(model: CharModel, ids: np.ndarray) -> np.ndarray:
    """Norm over the batch of dL/dh_t at each of LOOK_BACK steps, with a loss at the last one only.

    What arrives at t < T-1 has then come through the recurrence alone.
    """
    parallel = streams(ids, STREAMS)
    (inputs, targets), *_ = windows(parallel, LOOK_BACK)
    out = model.layer.forward(inputs, training=True)
    last = out.y[-1:]
    _, dlogits = rk.softmax_cross_entropy(model.readout(last), targets[-1:])
    dy = np.zeros_like(out.y)
    dy[-1:] = model.readout.backward(last, dlogits).x
    gradients = model.layer.backward(out, dy, flow=True)
    return np.asarray(gradients.flow.dh_norm)[0]


def log_chart(values: np.ndarray, *, rows: int = 8, unicode: bool = True) -> list[str]:
    """Positive values as a bar chart with a logarithmic axis, one column for each value.

    What is zero or not finite has no bar; neither has what lies more than 12 decades below the top.
    """
    blocks, line = (" ▁▂▃▄▅▆▇█", "│└─") if unicode else (" #", "|+-")
    levels = len(blocks) - 1
    shown = np.where(np.isfinite(values) & (values > 0), values, 0.0)
    if not shown.any():
        return ["(no gradient)"]
    high = math.ceil(math.log10(shown.max()))
    low = max(math.floor(math.log10(shown[shown > 0].min())), high - 12)
    low = min(low, high - 1)
    per_decade = max(1, round(rows / (high - low)))
    with np.errstate(divide="ignore"):
        heights = (np.log10(shown) - low) * per_decade * levels
    # The smallest bar is one block high: to be seen, and to be told from none.
    heights = np.where(shown > 0, np.maximum(np.round(heights), 1), 0)
    chart = []
    for row in reversed(range((high - low) * per_decade)):
        bars = np.clip(heights - row * levels, 0, levels).astype(int)
        # A label stands at the foot of its decade.
        label = f"1e{low + row // per_decade:+03d}" if row % per_decade == 0 else ""
        chart.append(f"{label:>7} {line[0]}" + "".join(blocks[b] for b in bars).rstrip())
    ticks = f"t = 0{f't = {len(values) - 1}':>{max(len(values) - 5, 0)}}"
    return [*chart, f"{'':7} {line[1]}{line[2] * len(values)}", f"{'':9}{ticks}"]


# --- how fast it is -------------------------------------------------------------------------------


class Speed(NamedTuple):
    """Seconds of single training steps, and how far the results are apart."""

    kernel: list[float]
    numpy: list[float]
    difference: float
    """The largest, relative to the largest entry of its array."""


def compare_speed(model: CharModel, ids: np.ndarray, *, seconds: float = 2.0) -> Speed:
    """Time forward and backward of the layer beside the NumPy reference, in turns."""
    layer = model.layer
    (inputs, _), *_ = windows(streams(ids, STREAMS), LOOK_BACK)
    x = np.eye(len(ALPHABET), dtype=np.float32)[inputs]  # vectors have a gradient
    dy = np.random.default_rng(0).standard_normal((*inputs.shape, layer.hidden_size))
    dy = dy.astype(np.float32)

    def kernel() -> tuple:
        out = layer.forward(x, training=True)
        gradients = layer.backward(out, dy)
        return out.y, gradients.x, gradients.parameters

    def reference() -> tuple:
        y, _, tape = numpy_reference.forward(layer, x)
        gradients = numpy_reference.backward(tape, dy)
        return y, gradients.x, gradients.parameters

    difference = _difference(kernel(), reference())
    times: dict[Any, list[float]] = {kernel: [], reference: []}
    end = time.perf_counter() + 2 * seconds  # of which half, at most, on an idle machine
    for turn in range(TURNS):
        for function, record in times.items():
            if turn > 0 and time.perf_counter() > end:
                break
            # Threads that have worked wait for more at full speed, for some milliseconds: let
            # those of the one fall asleep before the other is timed.
            time.sleep(0.1)
            function()
            begin = time.perf_counter()
            while len(record) <= turn or time.perf_counter() - begin < seconds / (2 * TURNS):
                start = time.perf_counter()
                function()
                record.append(time.perf_counter() - start)
    return Speed(times[kernel], times[reference], difference)


def _difference(results: tuple, expected: tuple) -> float:
    (y, dx, dp), (y_expected, dx_expected, dp_expected) = results, expected
    pairs = [(y, y_expected), (dx, dx_expected), *((dp[k], dp_expected[k]) for k in dp_expected)]
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


# --- what is seen of it ---------------------------------------------------------------------------


class Progress:
    """Training on one line of a terminal; elsewhere a few lines."""

    WIDTH = 20
    LINES = 8

    def __init__(self, steps: int, *, unicode: bool) -> None:
        self.steps = steps
        self.full, self.empty = ("█", "░") if unicode else ("#", ".")
        self.live = sys.stdout.isatty()
        self.shown_at = 0.0
        self.bits: float | None = None

    def show(self, step: Step) -> None:
        """Tell of one step, if it is time to."""
        # The loss of single windows jumps; what is shown is a running mean.
        self.bits = step.bits if self.bits is None else 0.95 * self.bits + 0.05 * step.bits
        last = step.number == self.steps
        if self.live:
            now = time.perf_counter()
            if last or now - self.shown_at > 0.1:
                self.shown_at = now
                done = self.WIDTH * step.number // self.steps
                bar = self.full * done + self.empty * (self.WIDTH - done)
                print(f"\r  {bar} {self._text(step)}", end="\n" if last else "", flush=True)
        elif last or step.number % math.ceil(self.steps / self.LINES) == 0:
            print(f"  {self._text(step)}", flush=True)

    def _text(self, step: Step) -> str:
        width = len(str(self.steps))
        return (
            f"{step.number:{width}d}/{self.steps}  {self.bits:5.3f} bits/char  "
            f"|g| {step.gradient_norm:5.2f}  {step.characters_per_second / 1000:5.0f}k chars/s"
        )


def run(cell: str, hidden: int, steps: int, seed: int) -> int:
    """Train, and show what came of it; 0, or 1 if the NumPy reference disagrees.

    Parameters
    ----------
    cell : "lstm", "gru" or "rnn"
    hidden : int
        Units of the layer.
    steps : int
        Training steps, each of STREAMS * WINDOW characters.
    seed : int
        Of everything random.
    """
    begin = time.perf_counter()
    unicode = _can_print("█▁░│└─")
    corpus = Corpus.from_text(load_text())
    # Sampling draws from a generator of its own: showing more text does not change the model.
    rng, sampling = np.random.default_rng(seed).spawn(2)
    model = CharModel(cell, hidden, rng)
    count = sum(p.size for group in model.parameters for p in group.values())

    _title(f"{cell.upper()} with {hidden} units on CPython's documentation")
    print(
        f"  {len(corpus.train):,} characters to train on, {len(corpus.held_out):,} held out; "
        f"{count:,} parameters; seed {seed}"
    )
    before = model.bits_per_character(corpus.held_out)
    _title("Text before training")
    _quote(PROMPT + sample(model, 150, sampling))

    _title(f"Training: {steps} steps of {STREAMS} streams x {WINDOW} characters")
    progress = Progress(steps, unicode=unicode)
    for step in train(model, corpus.train, steps, LEARNING_RATE[cell]):
        progress.show(step)

    _title("Text after training")
    _quote(PROMPT + sample(model, 500, sampling))

    _title("Held-out text, bits per character")
    print(f"  before training    {before:6.3f}")
    print(f"  unigram frequencies{corpus.unigram_bits():6.3f}")
    print(f"  after training     {model.bits_per_character(corpus.held_out):6.3f}")

    _title("Gradient flow: norm of dL/dh_t, with a loss at the last step only (log scale)")
    print("\n".join(log_chart(gradient_flow(model, corpus.held_out), unicode=unicode)))

    speed = compare_speed(model, corpus.train, seconds=min(3.0, 0.05 * steps))
    agrees = speed.difference < 1e-3  # false for NaN, too
    _title(f"Forward and backward of the layer, {LOOK_BACK} steps of {STREAMS} rows (median)")
    kernel, reference = np.median(speed.kernel), np.median(speed.numpy)
    print(f"  rnnkernel {1e3 * kernel:8.2f} ms   on {rk.get_num_threads()} threads")
    print(f"  NumPy     {1e3 * reference:8.2f} ms   {reference / kernel:.1f} times as long")
    if kernel > 1.5 * min(speed.kernel) or reference > 1.5 * min(speed.numpy):
        print("  (times varied: something else is running on this machine)")
    print(f"  largest relative difference {speed.difference:.1e}{'' if agrees else ': TOO LARGE'}")

    seconds = time.perf_counter() - begin
    print(f"\nchecksum of the parameters {model.checksum()}, {seconds:.1f} s in all")
    return 0 if agrees else 1


def _title(text: str) -> None:
    print(f"\n{text}", flush=True)


def _quote(text: str, width: int = 84) -> None:
    for line in text.strip("\n").split("\n"):
        for start in range(0, max(len(line), 1), width):
            print(f"  > {line[start : start + width]}".rstrip())


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True

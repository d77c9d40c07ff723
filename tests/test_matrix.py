"""Random combinations of everything a layer can be asked for, every output by value.

Hypothesis draws the combination, NumPy the numbers, from a seed that is part of it. Every output of
forward and backward is held to the reference of whole layers, in float64, on the same numbers.
"""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rnnkernel as rk
from drawn import tape_distance_to_kink
from helpers import assert_same_bits, unchanged
from reference import CASES, Case, dropout, lstm_case, stack
from rnnkernel import _backward, _plan
from tolerances import assert_output_close

EXAMPLES = 300
"""For each of the seven families of cells."""


VOCABULARY = 13


@dataclass(frozen=True)
class Combination:
    case: Case
    dtype: type
    T: int
    N: int
    I: int  # noqa: E741
    H: int
    layers: int
    bidirectional: bool
    bias: bool
    dropout: float
    lengths: bool
    reset: float  # how many of the steps begin a segment
    layout: str  # of x, y and their gradients
    x: str  # what x is, and how it lies in memory
    dy: bool  # whether there is one
    dstate: bool
    state: bool
    clip: dict
    kept: object  # "trace", or steps between checkpoints, or None for what training keeps
    out: bool  # whether y goes where the caller says
    input_grad: bool
    num_threads: int
    sharded: int  # from how many rows on the gradients of a batch are summed in shards
    sectioned: int  # and of each thread those of a batch stand in sections
    seed: int


def combinations(cases):
    return st.builds(
        Combination,
        case=cases,
        dtype=st.sampled_from((np.float32, np.float64)),
        T=st.integers(1, 9),
        N=st.integers(1, 7),
        I=st.integers(1, 40),
        H=st.integers(1, 40),
        layers=st.sampled_from((1, 3)),
        bidirectional=st.booleans(),
        bias=st.booleans(),
        dropout=st.sampled_from((0.0, 0.4)),
        lengths=st.booleans(),
        reset=st.sampled_from((0.0, 0.3)),
        layout=st.sampled_from(("time_first", "batch_first", "unbatched")),
        x=st.sampled_from(("dense", "strided", "reversed", "constant", "one-hot", "embedding")),
        dy=st.booleans(),
        dstate=st.booleans(),
        state=st.booleans(),
        clip=st.sampled_from(
            ({}, {"value": 0.3}, {"norm": 0.7}, {"value": 0.4, "norm": 0.9}),
        ),
        kept=st.sampled_from((None, "trace", 1, 2, 4)),
        out=st.booleans(),
        input_grad=st.booleans(),
        num_threads=st.integers(1, 3),
        sharded=st.sampled_from((2, 32)),
        sectioned=st.sampled_from((1, 16)),
        seed=st.integers(0, 2**32 - 1),
    ).filter(lambda c: c.case.options.get("proj_size", 0) < c.H)


@dataclass
class Problem:
    """A combination with its layer and its numbers, time first and batched."""

    combination: Combination
    layer: object
    x: np.ndarray  # (T, N, I), or ids (T, N)
    states: tuple  # (L*D, N, .) each
    dy: np.ndarray | None
    dstates: tuple | None
    masks: list | None  # of dropout
    lengths: np.ndarray | None  # (N,)
    reset: np.ndarray | None  # (T, N) bool
    embedding: np.ndarray | None  # (V, I)

    # What the tolerances depend on.
    case = property(lambda self: self.combination.case)
    dtype = property(lambda self: self.layer.dtype)
    passes = property(lambda self: len(self.states[0]))

    @property
    def sizes(self):
        """Those of the pass with the longest sums."""
        c, weights = self.combination, self.layer.parameters
        inputs = max(w.shape[1] for name, w in weights.items() if name.startswith("weight_ih"))
        return c.T, self.x.shape[1], inputs, c.H


def draw(c, seed):
    rng = np.random.default_rng([c.seed, seed])
    layer = getattr(rk, c.case.layer)(
        c.I,
        c.H,
        num_layers=c.layers,
        bidirectional=c.bidirectional,
        bias=c.bias,
        dropout=c.dropout if c.layers > 1 else 0.0,
        batch_first=c.layout == "batch_first",
        dtype=c.dtype,
        rng=rng,
        **c.case.options,
    )
    N = 1 if c.layout == "unbatched" else c.N
    rows = c.layers * (1 + c.bidirectional)
    widths = c.case.widths(c.H)
    y_shape = (c.T, N, (1 + c.bidirectional) * widths[0])

    def normal(*shape):
        return rng.standard_normal(shape).astype(c.dtype)

    x = {
        "dense": lambda: normal(c.T, N, c.I),
        "strided": lambda: normal(c.I, c.T, 2 * N).transpose(1, 2, 0)[:, ::2],
        "reversed": lambda: normal(c.T, N, c.I)[::-1, ::-1, ::-1],
        "constant": lambda: np.broadcast_to(normal(1, N, c.I), (c.T, N, c.I)),
        "one-hot": lambda: rng.integers(0, c.I, (c.T, N)),
        "embedding": lambda: rng.integers(0, VOCABULARY, (c.T, N), dtype=np.uint8),
    }[c.x]()
    embedding = normal(VOCABULARY, c.I) if c.x == "embedding" else None
    # rows of different size, so that clipping changes some and not others
    spread = np.geomspace(0.05, 2, N).astype(c.dtype)[:, None]
    masks = None
    if layer.dropout:
        place = (layer._dropout_seed, layer._dropout_drawn.steps)
        masks = [
            dropout.factors(y_shape, c.dtype, layer.dropout, place[0], k, place[1])
            for k in range(c.layers - 1)
        ]
    lengths = rng.integers(0, c.T + 1, N) if c.lengths else None
    dy = normal(*y_shape) * spread if c.dy else None
    if c.lengths and c.x != "constant":  # nothing past an end is looked at
        past = np.arange(c.T)[:, None] >= lengths
        for array in (x, dy):
            if array is not None:
                array[past] = np.nan if array.dtype == c.dtype else 99
    return Problem(
        c,
        layer,
        x,
        tuple(normal(rows, N, w) * c.dtype(c.state) for w in widths),
        dy,
        tuple(normal(rows, N, w) * spread for w in widths) if c.dstate else None,
        masks,
        lengths,
        rng.random((c.T, N)) < c.reset if c.reset else None,
        embedding,
    )


def wide(value):
    """Floats in float64, of any structure; None and ids as they are."""
    if isinstance(value, dict):
        return {name: wide(array) for name, array in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(map(wide, value))
    return value.astype(np.float64) if value is not None and value.dtype.kind == "f" else value


def reference_forward(p, masks=None):
    return stack.forward(
        p.case,
        wide(p.layer.parameters),
        wide(p.x),
        wide(p.states),
        lengths=p.lengths,
        reset=p.reset,
        embedding=wide(p.embedding),
        masks=wide(masks),
    )


def reference_backward(p, tape, margin=1.0):
    limits = {f"clip_{kind}": limit * margin for kind, limit in p.combination.clip.items()}
    return stack.backward(tape, wide(p.dy), wide(p.dstates), **limits)


def rounding_tips_nothing(p, tape, margin=2e-5):
    """No argument of relu so near 0, no gradient so near a clip, that rounding decides."""
    distances = (tape_distance_to_kink(p.case, *one) for one in tape.cells())
    if min(distances, default=np.inf) < margin:
        return False
    if not p.combination.clip:
        return True
    more, less = (reference_backward(p, tape, 1 + m).clipped for m in (-margin, margin))
    return np.array_equal(more, less)


def check(c):
    """Forward and backward of a combination: everything that they return, by value."""
    __tracebackhide__ = True
    for seed in range(1000):
        p = draw(c, seed)
        y, finals, tape = reference_forward(p, p.masks)
        if rounding_tips_nothing(p, tape):
            break
    expected = reference_backward(p, tape)

    def lay(array):
        """As the caller has it: x, y and what goes with them."""
        if array is None or c.layout == "time_first":
            return array
        return array[:, 0] if c.layout == "unbatched" else array.swapaxes(0, 1)

    def lay_state(states):
        if states is None:
            return None
        return c.case.pack([s[:, 0] if c.layout == "unbatched" else s for s in states])

    def of_states(state, pattern, laid):
        """Arrays of a state by name, beside those of the reference."""
        pairs = zip(c.case.states, c.case.unpack(state), c.case.unpack(laid), strict=True)
        return {pattern.format(name): (got, wanted) for name, got, wanted in pairs}

    layer, threads = p.layer, {"num_threads": c.num_threads}
    given = threads | {"lengths": p.lengths, "reset": lay(p.reset), "embedding": p.embedding}
    x, state = lay(p.x), lay_state(p.states) if c.state else None
    dy, dstate = lay(p.dy), lay_state(p.dstates)
    place = np.full_like(lay(y), np.nan, c.dtype) if c.out else None
    with unchanged(*callers_arrays(p)):
        inferred = layer(x, state, **given)
        frozen = layer.freeze()
        at_rest = frozen.forward(x, state, out=place, **given)
        assert not c.out or at_rest.y is place
        at_rest_y = at_rest.y.copy()
        streamed = step_by_step(frozen, p)
        out = layer.forward(
            x,
            state,
            training=True,
            trace=c.kept == "trace",
            checkpoint_every=None if c.kept == "trace" else c.kept,
            out=place,
            **given,
        )
        trained_y = out.y.copy()
        if c.out:  # backward has what it needs
            assert out.y is place
            place[...] = np.nan
        clip = rk.Clip(**c.clip) if c.clip else None
        grads = layer.backward(
            out, dy, dstate, clip=clip, flow=True, input_grad=c.input_grad, **threads
        )

    assert_same_bits(at_rest_y, inferred[0], "y of the frozen layer")
    for name, pair in of_states(at_rest.state, "{} of the frozen layer", inferred[1]).items():
        assert_same_bits(*pair, name)
    if streamed is not None:
        assert_same_bits(lay(streamed[0]), inferred[0], "y of the stream")
        laid = lay_state(c.case.unpack(streamed[1]))
        for name, pair in of_states(laid, "{} of the stream", inferred[1]).items():
            assert_same_bits(*pair, name)
    if p.masks is None:
        assert_same_bits(inferred[0], trained_y, "y of inference")
        for name, pair in of_states(inferred[1], "{} of inference", out.state).items():
            assert_same_bits(*pair, name)
    else:
        plain_y, plain_finals, _ = reference_forward(p)
        assert_output_close(inferred[0], lay(plain_y), "y", p)
        for name, pair in of_states(inferred[1], "{}", lay_state(plain_finals)).items():
            assert_output_close(*pair, name, p)

    assert list(grads.parameters) == list(layer.parameters)
    outputs = {"y": (trained_y, lay(y))}
    for name, pair in {
        "dx": (grads.x, lay(expected.x) if c.input_grad else None),
        "d_embedding": (grads.embedding, expected.embedding),
    }.items():
        if pair[1] is None:
            assert pair[0] is None, name
        else:
            outputs[name] = pair
    outputs |= of_states(out.state, "{}", lay_state(finals))
    outputs |= of_states(grads.state, "d{}0", lay_state(expected.state))
    for name, gradient in grads.parameters.items():
        outputs[f"d_{name}"] = (gradient, expected.parameters[name])
    flow = {"dh_norm": (grads.flow.dh_norm, expected.dh_norm)}
    if expected.dc_norm is None:
        assert grads.flow.dc_norm is None
    else:
        flow["dc_norm"] = (grads.flow.dc_norm, expected.dc_norm)
    outputs |= {name: (got.astype(c.dtype), wanted) for name, (got, wanted) in flow.items()}
    if c.kept == "trace":
        for got, wanted in zip(out.trace, stack.trace(tape), strict=True):
            assert list(got) == list(wanted)
            for name in got:
                assert_output_close(got[name], lay(wanted[name]), f"{name} of the trace", p)
    for name, (got, wanted) in outputs.items():
        assert_output_close(got, wanted, name, p)
    np.testing.assert_array_equal(grads.flow.clipped, expected.clipped)


def step_by_step(frozen, p):
    """y and the final state of a stream over all steps, or None where a stream is not for that."""
    c = p.combination
    if c.bidirectional or p.lengths is not None or p.x.dtype != c.dtype:
        return None
    stream = frozen.stream(p.x.shape[1])
    if c.state:
        stream.state = c.case.pack(p.states)
    y = []
    for t in range(c.T):
        if p.reset is not None:
            stream.reset(p.reset[t])
        y.append(stream.step(p.x[t]))
    return np.stack(y), stream.state


def callers_arrays(p):
    """Everything of the caller's that a call could write by mistake."""
    arrays = [
        p.x,
        *p.states,
        p.lengths,
        p.reset,
        p.dy,
        *(p.dstates or ()),
        *p.layer.parameters.values(),
    ]
    return [array for array in arrays if array is not None]


LSTM_OPTIONS = st.builds(
    lstm_case,
    peephole=st.booleans(),
    cell_clip=st.sampled_from((None, 0.2, 0.6)),
    coupled=st.booleans(),
    proj_size=st.sampled_from((0, 1, 2, 7)),
)
FAMILIES = {name: st.just(case) for name, case in CASES.items()}
FAMILIES |= {"lstm_options": LSTM_OPTIONS, "more_lstm_options": LSTM_OPTIONS}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
def test_random_combinations(family, data):
    c = data.draw(combinations(FAMILIES[family]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_backward, "SHARDED_ROWS", c.sharded)
        patch.setattr(_backward, "SHARDED_STEPS", 0)
        patch.setattr(_plan, "SECTIONED_ROWS", c.sectioned)
        check(c)

"""The reference of whole layers: held to finite differences, and to its cells put together by hand.

The cells themselves are the subject of test_reference.py.
"""

from itertools import product

import numpy as np
import pytest

import tolerances
from drawn import difference_along
from reference import CASES, lstm_case, stack

T, N, I, H, V = 5, 3, 4, 3, 6  # noqa: E741
CELLS = [*CASES.values(), lstm_case(peephole=True, coupled=True), lstm_case(proj_size=2)]
LENGTHS = np.array([5, 0, 3])
RESET = np.zeros((T, N), bool)
RESET[0, 0] = RESET[2, 0] = RESET[3, 0] = RESET[1, 2] = RESET[3, 2] = RESET[0, 1] = True


@pytest.fixture(params=CELLS, ids=lambda case: case.name)
def case(request):
    return request.param


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def draw_weights(case, layers, directions, inputs=I):
    weights = {}
    for k, end in product(range(layers), ("", "_reverse")[:directions]):
        width = inputs if k == 0 else directions * case.widths(H)[0]
        for j, (name, shape) in enumerate(case.weight_shapes(width, H).items()):
            weights[f"{name}_l{k}{end}"] = normal(*shape, seed=10 * k + j + len(end)) / np.sqrt(H)
    return weights


def draw_states(case, rows, seed, n=N):
    return tuple(normal(rows, n, width, seed=seed + j) for j, width in enumerate(case.widths(H)))


def total(y, states, dy, dstates):
    return (y * dy).sum() + sum((s * d).sum() for s, d in zip(states, dstates, strict=True))


@pytest.mark.parametrize("inputs", ["dense", "one_hot", "embedding"])
@pytest.mark.parametrize(
    ("lengths", "reset"), [(None, None), (LENGTHS, RESET)], ids=["whole", "cut"]
)
@pytest.mark.parametrize(("layers", "directions"), [(1, 2), (2, 2), (3, 1)])
def test_every_gradient_equals_central_differences(
    case, layers, directions, lengths, reset, inputs
):
    weights = draw_weights(case, layers, directions)
    x = normal(T, N, I)
    options = {"lengths": lengths, "reset": reset}
    if inputs != "dense":
        x = np.random.default_rng(0).integers(0, V if inputs == "embedding" else I, (T, N))
        if lengths is not None:
            x[LENGTHS[2] :, 2] = -1  # no id: nothing looks past an end
    if inputs == "embedding":
        options["embedding"] = normal(V, I)
    width = directions * case.widths(H)[0]
    if layers > 1:
        options["masks"] = [2.0 * (normal(T, N, width, seed=k) > 0) for k in range(layers - 1)]
    states, dstates = (draw_states(case, layers * directions, seed) for seed in (20, 30))
    dy = normal(T, N, width, seed=5)

    def function():
        y, finals, _ = stack.forward(case, weights, x, states, **options)
        return total(y, finals, dy, dstates)

    y, finals, tape = stack.forward(case, weights, x, states, **options)
    grads = stack.backward(tape, dy, dstates)
    pairs = {
        f"d{name}0": pair for name, *pair in zip(case.states, states, grads.state, strict=True)
    }
    pairs |= {name: (weights[name], grads.parameters[name]) for name in weights}
    if inputs == "dense":
        pairs["x"] = (x, grads.x)
    else:
        assert grads.x is None
    if inputs == "embedding":
        pairs["embedding"] = (options["embedding"], grads.embedding)
    else:
        assert grads.embedding is None
    rng = np.random.default_rng(1)
    for name, (array, gradient) in pairs.items():
        assert gradient.shape == array.shape
        direction = rng.standard_normal(array.shape)
        direction /= np.linalg.norm(direction)
        expected = difference_along(function, array, direction)
        error = abs(expected - (gradient * direction).sum())
        assert error <= tolerances.DIFFERENCES * np.linalg.norm(gradient), name


def test_without_options_it_is_the_cell(case):
    """One layer, one direction, whole rows: the cell's own forward and backward, flow included."""
    weights = draw_weights(case, 1, 1)
    plain = {name.removesuffix("_l0"): w for name, w in weights.items()}
    x, dy = normal(T, N, I), normal(T, N, case.widths(H)[0], seed=5)
    states, dstates = draw_states(case, 1, seed=20), draw_states(case, 1, seed=30)
    clip = {"clip_value": 0.8, "clip_norm": 1.0}
    y, finals, tape = stack.forward(case, weights, x, states)
    grads = stack.backward(tape, dy, dstates, **clip)
    expected_y, final, cell_tape = case.forward(plain, x, case.pack([s[0] for s in states]))
    expected = case.backward(plain, cell_tape, dy, case.pack([s[0] for s in dstates]), **clip)
    assert 0 < expected.clipped.sum() < T * N

    def same(got, wanted):
        np.testing.assert_allclose(got, wanted, rtol=1e-13, atol=1e-15)

    same(y, expected_y)
    for got, wanted in zip(finals, case.unpack(final), strict=True):
        same(got[0], wanted)
    same(grads.x, expected.x)
    for got, wanted in zip(grads.state, case.unpack(expected.state), strict=True):
        same(got[0], wanted)
    for name, wanted in expected.parameters.items():
        same(grads.parameters[f"{name}_l0"], wanted)
    same(grads.dh_norm[0], expected.dh_norm)
    assert (grads.clipped[0] == expected.clipped).all()
    if expected.dc_norm is None:
        assert grads.dc_norm is None
    else:
        same(grads.dc_norm[0], expected.dc_norm)


# Rows with lengths and resets are so many sequences of their own: cut them out, run the cell on
# each, put the results together. Two layers' worth of that is the stack.


def pieces(n, reverse, lengths, reset):
    """The steps of row n in the direction's order, cut where it was reset: lists of t."""
    length = T if lengths is None else int(lengths[n])
    cuts = [t for t in range(1, length) if reset is not None and reset[t, n]]
    edges = [0, *cuts, length]
    found = [list(range(a, b)) for a, b in zip(edges, edges[1:], strict=False) if a < b]
    return [p[::-1] for p in found[::-1]] if reverse else found


def by_pieces(case, weights, x, states, dy, dstates, lengths, reset, reverse, clip):
    """y, finals, dx, dinitial, dweights, squares of dh's norms and clipped rows of a direction."""
    y = np.zeros((T, N, states[0].shape[1]))
    finals, dinitial = [s.copy() for s in states], [np.zeros_like(s) for s in states]
    dx, dw = np.zeros_like(x), {name: np.zeros_like(w) for name, w in weights.items()}
    squares, clipped = np.zeros(T), np.zeros(T, int)
    for n in range(N):
        cut = pieces(n, reverse, lengths, reset)
        if not cut:  # the state passes by, and its gradient
            for s, d in zip(dinitial, dstates, strict=True):
                s[n] = d[n]
        for k, steps in enumerate(cut):
            own = k == 0 and not (not reverse and reset is not None and reset[0, n])
            start = [s[n : n + 1] if own else np.zeros_like(s[:1]) for s in states]
            y_n, end, tape = case.forward(weights, x[steps, n : n + 1], case.pack(start))
            y[steps, n] = y_n[:, 0]
            last = k == len(cut) - 1
            dend = [d[n : n + 1] if last else np.zeros_like(d[:1]) for d in dstates]
            grads = case.backward(weights, tape, dy[steps, n : n + 1], case.pack(dend), **clip)
            dx[steps, n] = grads.x[:, 0]
            for name in dw:
                dw[name] += grads.parameters[name]
            squares[steps] += grads.dh_norm**2
            clipped[steps] += grads.clipped
            if last:
                for s, e in zip(finals, case.unpack(end), strict=True):
                    s[n] = e[0]
            if own:
                for s, d in zip(dinitial, case.unpack(grads.state), strict=True):
                    s[n] = d[0]
    return y, finals, dx, dinitial, dw, squares, clipped


@pytest.mark.parametrize("reset", [None, RESET], ids=["whole", "reset"])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "lengths"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_lengths_and_resets_are_sequences_of_their_own(case, lengths, reset, reverse):
    weights = draw_weights(case, 1, 2)
    P, d = case.widths(H)[0], int(reverse)
    x, dy = normal(T, N, I), np.zeros((T, N, 2 * P))
    dy[..., d * P : (d + 1) * P] = normal(T, N, P, seed=5)  # the other direction gets none
    states, dstates = draw_states(case, 2, seed=20), draw_states(case, 2, seed=30)
    for s in dstates:
        s[1 - d] = 0
    clip = {"clip_value": 0.8, "clip_norm": 1.0}
    y, finals, tape = stack.forward(case, weights, x, states, lengths=lengths, reset=reset)
    grads = stack.backward(tape, dy, dstates, **clip)

    end = ["_l0", "_l0_reverse"][d]
    alone = {name.removesuffix(end): w for name, w in weights.items() if name.endswith(end)}
    expected = by_pieces(
        case,
        alone,
        x,
        [s[d] for s in states],
        dy[..., d * P : (d + 1) * P],
        [s[d] for s in dstates],
        lengths,
        reset,
        reverse,
        clip,
    )
    got = (
        y[..., d * P : (d + 1) * P],
        [s[d] for s in finals],
        grads.x,
        [s[d] for s in grads.state],
        {name: grads.parameters[name + end] for name in alone},
        grads.dh_norm[d] ** 2,
        grads.clipped[d],
    )
    assert 0 < grads.clipped[d].sum() < T * N
    for a, b in zip(got, expected, strict=True):
        pairs = [(a, b)]
        if isinstance(a, dict):
            pairs = [(a[name], b[name]) for name in b]
        elif isinstance(a, list):
            pairs = zip(a, b, strict=True)
        for one, other in pairs:
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)


def test_a_reset_past_the_end_cuts_nothing(case):
    """The reverse direction's initial state enters at the last step whatever follows that."""
    weights = draw_weights(case, 1, 2)
    x, states = normal(T, N, I), draw_states(case, 2, seed=20)
    late = np.arange(T)[:, None] >= LENGTHS
    y, finals, _ = stack.forward(case, weights, x, states, lengths=LENGTHS)
    y_late, finals_late, _ = stack.forward(case, weights, x, states, lengths=LENGTHS, reset=late)
    np.testing.assert_array_equal(y, y_late)
    for a, b in zip(finals, finals_late, strict=True):
        np.testing.assert_array_equal(a, b)


def test_layers_feed_one_another(case):
    """Three layers in both directions are six runs of one layer each, with dropout between."""
    weights = draw_weights(case, 3, 2)
    P = case.widths(H)[0]
    x, states = normal(T, N, I), draw_states(case, 6, seed=20)
    masks = [2.0 * (normal(T, N, 2 * P, seed=k) > 0) for k in range(2)]
    options = {"lengths": LENGTHS, "reset": RESET}
    y, finals, _ = stack.forward(case, weights, x, states, masks=masks, **options)
    fed = x
    for k in range(3):
        layer = {n.replace(f"_l{k}", "_l0"): w for n, w in weights.items() if f"_l{k}" in n}
        two = tuple(s[2 * k : 2 * k + 2] for s in states)
        out, final, _ = stack.forward(case, layer, fed, two, **options)
        for got, wanted in zip(finals, final, strict=True):
            np.testing.assert_array_equal(got[2 * k : 2 * k + 2], wanted)
        fed = out * masks[k] if k < 2 else out
    np.testing.assert_array_equal(y, fed)
    assert (
        not y[LENGTHS[2] :, 2].any()
        and not y[:, 1].any()
        and y[: LENGTHS[2], 2].all(where=case.options.get("nonlinearity") != "relu")
    )

"""Truncated BPTT: pieces have the whole's bits forward, and gradients that add up to its own."""

import numpy as np
import pytest

import rnnkernel as rk
from drawn import draw
from helpers import (
    assert_same_bits,
    layer_outputs,
    layer_state,
    make_layer,
    named_outputs,
    plain_states,
)
from tolerances import FLOAT64, assert_outputs_close

CUTS = [[5], [1, 2, 9], list(range(1, 12))]


def parts(state):
    return state if isinstance(state, tuple) else (state,)


def forward_in_pieces(layer, x, state, cuts):
    outs = []
    for piece in np.split(x, cuts):
        outs.append(layer.forward(piece, state, training=True))
        state = outs[-1].state
    return outs


def backward_in_pieces(layer, outs, dys, dstate):
    """The gradient of every piece, from the last, each handed what reached the one behind it."""
    pieces = []
    for out, dy in zip(reversed(outs), reversed(dys), strict=True):
        pieces.append(layer.backward(out, dy, dstate))
        dstate = pieces[-1].state
    return pieces[::-1]


@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_pieces_add_up_to_the_whole(case, dtype, cuts):
    problem = draw(case, 12, 3, 4, 9, dtype=dtype, seed=2)
    whole, _ = layer_outputs(problem)
    layer = make_layer(problem)
    outs = forward_in_pieces(layer, problem.x, layer_state(case, problem.states), cuts)
    dys = np.split(problem.dy, cuts)
    pieces = backward_in_pieces(layer, outs, dys, layer_state(case, problem.dstates))

    last = named_outputs(case, outs[-1])
    last["y"] = np.concatenate([out.y for out in outs])
    for name, array in last.items():
        assert_same_bits(array, whole[name], name)
    sums = {"dx": np.concatenate([grads.x for grads in pieces])}
    initial = plain_states(case, pieces[0].state)
    sums |= {f"d{s}0": array for s, array in zip(case.states, initial, strict=True)}
    for name in problem.weights:
        sums[f"d_{name}"] = sum(grads.parameters[f"{name}_l0"] for grads in pieces)
    expected = {name: whole[name].astype(np.float64) for name in sums}
    assert_outputs_close(sums, expected, problem)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_pieces_of_a_stack(case, dropout):
    def build():
        return getattr(rk, case.layer)(
            4, 9, 3, dropout=dropout, dtype=np.float64, rng=5, **case.options
        )

    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((12, 3, 4)), rng.standard_normal((12, 3, 9))
    dstate = case.pack([rng.standard_normal((3, 3, 9)) for _ in case.states])
    layer = build()
    out = layer.forward(x, training=True)
    whole = layer.backward(out, dy, dstate)

    layer = build()
    outs = forward_in_pieces(layer, x, None, [4, 7])
    pieces = backward_in_pieces(layer, outs, np.split(dy, [4, 7]), dstate)
    assert_same_bits(np.concatenate([one.y for one in outs]), out.y)
    for got, expected in zip(parts(outs[-1].state), parts(out.state), strict=True):
        assert_same_bits(got, expected)
    compared = [(np.concatenate([grads.x for grads in pieces]), whole.x)]
    compared += zip(parts(pieces[0].state), parts(whole.state), strict=True)
    compared += [
        (sum(grads.parameters[name] for grads in pieces), gradient)
        for name, gradient in whole.parameters.items()
    ]
    for got, expected in compared:
        assert np.linalg.norm(got - expected) <= FLOAT64 * np.linalg.norm(expected)


def test_without_the_handed_gradient_nothing_crosses_a_border(case, dtype):
    """What truncation leaves out: the loss of the second piece does not reach the first."""
    problem = draw(case, 12, 3, 4, 9, dtype=dtype, seed=2)
    layer = make_layer(problem)
    first, second = forward_in_pieces(layer, problem.x, layer_state(case, problem.states), [7])
    grads = layer.backward(first, np.zeros_like(problem.dy[:7]))
    assert not grads.x.any()
    carried = layer.backward(second, problem.dy[7:])
    grads = layer.backward(first, np.zeros_like(problem.dy[:7]), carried.state)
    assert grads.x.any()

"""Stacked layers and both directions are their single layers put together, bit for bit."""

import numpy as np
import pytest

import rnnkernel as rk

T, N, I, H = 7, 3, 5, 11  # noqa: E741


def build(case, dtype, **options):
    return getattr(rk, case.layer)(I, H, dtype=dtype, rng=3, **case.options, **options)


def single(case, layer, suffix):
    """One layer and direction of a stack, alone."""
    weights = {
        name.removesuffix(suffix): array
        for name, array in layer.parameters.items()
        if name.endswith(suffix)
    }
    alone = getattr(rk, case.layer)(
        weights["weight_ih"].shape[1], H, dtype=layer.dtype, **case.options
    )
    alone.load_state_dict({f"{name}_l0": array for name, array in weights.items()})
    return alone


def parts(state):
    return state if isinstance(state, tuple) else (state,)


def state_row(case, states, index):
    return case.pack([s[index : index + 1] for s in states])


def assert_same(got, expected, what):
    assert got.dtype == expected.dtype and got.shape == expected.shape, what
    assert np.array_equal(got, expected), what


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(("layers", "bidirectional"), [(1, True), (2, False), (3, True)])
def test_a_stack_is_its_layers_put_together(case, dtype, layers, bidirectional, batch_first):
    stack = build(
        case, dtype, num_layers=layers, bidirectional=bidirectional, batch_first=batch_first
    )
    D = 2 if bidirectional else 1
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.standard_normal(shape).astype(dtype)

    x, dy = normal(T, N, I), normal(T, N, D * H)
    state = [normal(layers * D, N, H) for _ in case.states]
    dstate = [normal(layers * D, N, H) for _ in case.states]

    # forward, layer by layer and direction by direction
    inputs, outs = x, []
    for k in range(layers):
        ys = []
        for d, suffix in enumerate([f"_l{k}", f"_l{k}_reverse"][:D]):
            step = -1 if d else 1
            alone = single(case, stack, suffix)
            out = alone.forward(
                inputs[::step], state_row(case, state, k * D + d), training=True, num_threads=1
            )
            outs.append((alone, out))
            ys.append(out.y[::step])
        inputs = np.concatenate(ys, axis=2)

    def caller(array):
        return array.transpose(1, 0, 2) if batch_first else array

    out = stack.forward(caller(x), case.pack(state), training=True)
    assert_same(caller(out.y), inputs, "y")
    for index, (_, one) in enumerate(outs):
        for got, expected in zip(parts(out.state), parts(one.state), strict=True):
            assert_same(got[index], expected[0], f"state {index}")
    y, final = stack(caller(x), case.pack(state))
    assert_same(y, out.y, "y of inference")
    for got, expected in zip(parts(final), parts(out.state), strict=True):
        assert_same(got, expected, "state of inference")

    # backward, from the last layer
    clip = rk.Clip(value=0.5, norm=2.0)
    grads = stack.backward(out, caller(dy), case.pack(dstate), clip=clip, flow=True)
    dinputs = dy
    for k in reversed(range(layers)):
        dx = None
        for d, suffix in enumerate([f"_l{k}", f"_l{k}_reverse"][:D]):
            step, index = -1 if d else 1, k * D + d
            alone, one = outs[index]
            got = alone.backward(
                one,
                dinputs[::step, :, d * H : (d + 1) * H],
                state_row(case, dstate, index),
                clip=clip,
                flow=True,
            )
            dx = got.x[::step] if dx is None else dx + got.x[::step]
            for name, array in got.parameters.items():
                name = name.removesuffix("_l0") + suffix
                assert_same(grads.parameters[name], array, name)
            for stacked, expected in zip(parts(grads.state), parts(got.state), strict=True):
                assert_same(stacked[index], expected[0], f"dstate {index}")
            assert_same(grads.flow.dh_norm[index], got.flow.dh_norm[0][::step], "dh_norm")
            assert_same(grads.flow.clipped[index], got.flow.clipped[0][::step], "clipped")
        dinputs = dx
    assert_same(caller(grads.x), dinputs, "dx")


def test_gradients_of_a_stack_against_finite_differences(case):
    stack = build(case, np.float64, num_layers=2, bidirectional=True)
    rng = np.random.default_rng(1)
    x, dy = rng.standard_normal((4, 2, I)), rng.standard_normal((4, 2, 2 * H))
    state = [rng.standard_normal((4, 2, H)) for _ in case.states]
    out = stack.forward(x, case.pack(state), training=True)
    grads = stack.backward(out, dy)
    arrays = [("x", x, grads.x)]
    arrays += [
        (f"state {i}", a, g) for i, (a, g) in enumerate(zip(state, parts(grads.state), strict=True))
    ]
    arrays += [(name, a, grads.parameters[name]) for name, a in stack.parameters.items()]

    def loss():
        return float(np.sum(stack(x, case.pack(state))[0] * dy))

    for name, array, gradient in arrays:
        for index in map(tuple, rng.integers(0, array.shape, (6, array.ndim))):
            kept = array[index]
            array[index] = kept + 1e-6
            above = loss()
            array[index] = kept - 1e-6
            below = loss()
            array[index] = kept
            numeric = (above - below) / 2e-6
            scale = max(1.0, np.abs(gradient).max())
            assert abs(numeric - gradient[index]) <= 1e-7 * scale, (name, index)

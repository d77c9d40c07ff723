"""`gradient_flow`: norms of gradients and Jacobians, saturated gates, clipped rows."""

import numpy as np
import pytest

import rnnkernel as rk
from drawn import draw
from helpers import assert_same_bits, layer_state, make_layer, unchanged
from rnnkernel.flow import _spectral_norms
from sequences import like, parts

T, N, I, H = 6, 3, 4, 5  # noqa: E741


def normal(*shape, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def build(case, *sizes, dtype=np.float64, scale=2.0, **options):
    layer = getattr(rk, case.layer)(*sizes, dtype=dtype, rng=1, **case.options, **options)
    for array in layer.parameters.values():
        array *= scale  # away from where everything is nearly linear
    return layer


# -- Jacobians ------------------------------------------------------------------------------------


def explicit_norms(case, weights, x, states):
    """Of dh_T/dh_t and, where there is a c, dc_T/dc_t, from the reference: (states, T)."""
    T, N = x.shape[:2]
    norms = []
    for k in range(len(case.states)):
        of_state, state = [], case.pack(states)
        for t in range(T):
            _, state, _ = case.forward(weights, x[t : t + 1], state)
            _, final, tape = case.forward(weights, x[t + 1 :], state)
            rows = []
            for unit in range(case.unpack(final)[k].shape[1]):
                ends = [np.zeros_like(s) for s in case.unpack(final)]
                ends[k][:, unit] = 1
                back = case.backward(weights, tape, None, case.pack(ends))
                rows.append(case.unpack(back.state)[k])
            jacobian = np.stack(rows, axis=1)  # (N, units of T, units of t)
            of_state.append(max(np.linalg.norm(one, 2) for one in jacobian))
        norms.append(of_state)
    return np.array(norms)


def test_jacobian_norms_against_explicit_jacobians(case):
    problem = draw(case, T, N, I, H, seed=8, scale=2.0)
    state = layer_state(case, problem.states)
    flow = rk.gradient_flow(make_layer(problem), problem.x, state)
    expected = explicit_norms(case, problem.weights, problem.x, problem.states)
    np.testing.assert_allclose(flow.jacobian_norm, expected[:1], rtol=1e-8)
    if len(case.states) > 1:
        np.testing.assert_allclose(flow.cell_jacobian_norm, expected[1:], rtol=1e-8)
    else:
        assert flow.cell_jacobian_norm is None
    np.testing.assert_array_equal(flow.jacobian_norm[:, -1], 1)


@pytest.mark.parametrize("batch_first", [False, True])
def test_jacobian_norms_of_stacks_and_directions(case, batch_first):
    layer = build(case, I, H, 2, bidirectional=True, batch_first=batch_first)
    x, state = normal(T, N, I), [normal(4, N, H, seed=k) for k in (1, 2)]
    given = x.transpose(1, 0, 2) if batch_first else x
    flow = rk.gradient_flow(layer, given, case.pack(state[: len(case.states)]))
    for k in range(2):
        outputs = []
        for d, suffix in enumerate((f"_l{k}", f"_l{k}_reverse")):
            weights = {
                name.removesuffix(suffix): array
                for name, array in layer.parameters.items()
                if name.endswith(suffix)
            }
            step, row = -1 if d else 1, 2 * k + d
            states = [s[row] for s in state[: len(case.states)]]
            expected = explicit_norms(case, weights, x[::step], states)[:, ::step]
            np.testing.assert_allclose(flow.jacobian_norm[row], expected[0], rtol=1e-8)
            if len(case.states) > 1:
                np.testing.assert_allclose(flow.cell_jacobian_norm[row], expected[1], rtol=1e-8)
            y, _, _ = case.forward(weights, x[::step], case.pack(states))
            outputs.append(y[::step])
        x = np.concatenate(outputs, axis=2)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_jacobian_norms_with_lengths_and_resets(case, bidirectional):
    """Of every row alone: its own last step; nothing passes a border."""
    layer = build(case, I, H, bidirectional=bidirectional)
    x, state = normal(T, N, I), [normal(2, N, H, seed=k) for k in (1, 2)]
    D = 2 if bidirectional else 1
    state = [s[:D] for s in state[: len(case.states)]]
    lengths, reset = np.array([4, 6, 0]), np.zeros((T, N), bool)
    reset[3, 0] = reset[4, 0] = reset[2, 1] = reset[5, 1] = reset[0, 2] = True
    for given in ({"lengths": lengths}, {"reset": reset}, {"lengths": lengths, "reset": reset}):
        flow = rk.gradient_flow(layer, x, case.pack(state), **given)
        cuts = given.get("reset", np.zeros_like(reset))
        expected = np.zeros((len(state), D, T))
        for n, d in np.ndindex(N, D):
            suffix = ("_l0", "_l0_reverse")[d]
            weights = {
                name.removesuffix(suffix): array
                for name, array in layer.parameters.items()
                if name.endswith(suffix)
            }
            length = given.get("lengths", np.full(N, T))[n]
            own = np.arange(length)[:: -1 if d else 1]
            # own steps that see zero states
            cut = [s for s, t in enumerate(own) if t + d < length and cuts[t + d, n]]
            first = [array[d, n : n + 1] * (0 if cut else 1) for array in state]
            steps = own[cut[-1] if cut else 0 :]
            if length:
                norms = explicit_norms(case, weights, x[steps, n : n + 1], first)
                expected[:, d, steps] = np.maximum(expected[:, d, steps], norms)
        np.testing.assert_allclose(flow.jacobian_norm, expected[0], rtol=1e-8)
        if len(case.states) > 1:
            np.testing.assert_allclose(flow.cell_jacobian_norm, expected[1], rtol=1e-8)


@pytest.mark.parametrize("embedded", [False, True])
def test_token_ids_are_what_they_stand_for(case, embedded):
    layer = build(case, I, H, 2, bidirectional=True)
    table = normal(9, I) if embedded else np.eye(I)
    ids = np.random.default_rng(1).integers(0, len(table), (T, N))
    given = {"embedding": table} if embedded else {}
    lengths = np.array([4, 6, 0])
    for more in ({}, {"lengths": lengths}):
        flow = rk.gradient_flow(layer, ids, **given, **more)
        dense = rk.gradient_flow(layer, table[ids], **more)
        np.testing.assert_allclose(flow.dh_norm, dense.dh_norm, rtol=1e-9)
        np.testing.assert_allclose(flow.jacobian_norm, dense.jacobian_norm, rtol=1e-8)
        for name, share in dense.saturated.items():
            np.testing.assert_array_equal(flow.saturated[name], share)


def test_saturated_gates_of_rows_that_have_the_step(case):
    layer = build(case, I, H, scale=4)
    x = normal(T, N, I)
    lengths = np.array([4, 2, 0])
    flow = rk.gradient_flow(layer, x, lengths=lengths, jacobian=False)
    for t in range(T):
        alive = lengths > t
        for name, share in flow.saturated.items():
            if not alive.any():
                assert share[0, t] == 0
            else:
                plain = rk.gradient_flow(layer, x[:, alive], jacobian=False).saturated[name]
                assert share[0, t] == pytest.approx(plain[0, t], abs=1e-12)


def test_many_rows_are_the_worst_of_them(case, monkeypatch):
    layer = build(case, I, H)
    x = normal(4, 7, I)
    flow = rk.gradient_flow(layer, x)
    rows = [rk.gradient_flow(layer, x[:, n : n + 1]).jacobian_norm for n in range(7)]
    np.testing.assert_allclose(flow.jacobian_norm, np.max(rows, axis=0), rtol=1e-8)
    # few rows at once, many times
    for at_once in (1, 4 * H):
        monkeypatch.setattr("rnnkernel.flow.BATCH_ROWS", at_once)
        few = rk.gradient_flow(layer, x).jacobian_norm
        np.testing.assert_allclose(few, flow.jacobian_norm, rtol=1e-8)


@pytest.mark.parametrize(("factor", "steps", "x", "h0"), [(1e-4, 60, 1, 1), (1e4, 18, 0, 1e-37)])
def test_nothing_overflows_or_vanishes_on_the_way(dtype, factor, steps, x, h0):
    """relu as the identity: the product of Jacobians is a power, past what float32 holds."""
    rnn = rk.RNN(1, 2, nonlinearity="relu", bias=False, dtype=dtype)
    rnn.parameters["weight_ih_l0"][...] = 1
    rnn.parameters["weight_hh_l0"][...] = np.eye(2) * factor
    flow = rk.gradient_flow(rnn, np.full((steps, 1, 1), x, dtype), np.full((1, 1, 2), h0, dtype))
    expected = np.float64(dtype(factor)) ** np.arange(steps - 1, -1, -1)
    np.testing.assert_allclose(flow.jacobian_norm[0], expected, rtol=1e-5)


def test_spectral_norms():
    rng = np.random.default_rng(0)
    matrices = rng.standard_normal((6, 20, 20))
    matrices[1] = 0
    matrices[2] = np.outer(rng.standard_normal(20), rng.standard_normal(20))
    matrices[3] = np.eye(20)
    matrices[4] = np.diag([3.0, 3.0 * (1 - 1e-6), *np.zeros(18)])
    matrices[5] = np.diag([*np.ones(19), 1.01])
    norms, vectors = _spectral_norms(matrices, None)
    expected = np.linalg.norm(matrices, 2, axis=(1, 2))
    np.testing.assert_allclose(norms, expected, rtol=1e-6)
    # from the vectors of another matrix, even orthogonal to what is looked for
    other = np.zeros_like(vectors)
    other[:, 0] = 1
    norms, _ = _spectral_norms(matrices, other)
    np.testing.assert_allclose(norms, expected, rtol=1e-6)


def test_infinite_jacobians_show():
    lstm = rk.LSTM(2, 3, rng=0)
    lstm.parameters["weight_hh_l0"][0, 0] = np.nan
    flow = rk.gradient_flow(lstm, normal(4, 2, 2, dtype=np.float32))
    assert np.isnan(flow.jacobian_norm[0, :-1]).all()


# -- the rest -------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_first", [False, True])
def test_norms_are_those_of_backward(case, dtype, batch_first):
    layer = build(case, I, H, 2, dtype=dtype, bidirectional=True, batch_first=batch_first)
    x, dy = normal(N, T, I, dtype=dtype), normal(N, T, 2 * H, dtype=dtype)
    if not batch_first:
        x, dy = x.transpose(1, 0, 2), dy.transpose(1, 0, 2)
    dstate = case.pack([normal(4, N, H, dtype=dtype) for _ in case.states])
    clip = rk.Clip(norm=1.5)
    out = layer.forward(x, training=True)
    for given in ({"dy": dy}, {"dstate": dstate}, {"dy": dy, "dstate": dstate, "clip": clip}):
        flow = rk.gradient_flow(layer, x, jacobian=False, **given)
        expected = layer.backward(out, **given, flow=True).flow
        assert_same_bits(flow.dh_norm, expected.dh_norm)
        assert_same_bits(flow.clipped, expected.clipped)
        if len(case.states) > 1:
            assert_same_bits(flow.dc_norm, expected.dc_norm)
        else:
            assert flow.dc_norm is None
        assert flow.jacobian_norm is flow.cell_jacobian_norm is None
    assert flow.clipped.any()


@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_default_loss_starts_at_one(case, dtype, bidirectional):
    layer = build(case, I, H, 2, dtype=dtype, bidirectional=bidirectional)
    flow = rk.gradient_flow(layer, normal(T, N, I, dtype=dtype), jacobian=False)
    np.testing.assert_allclose(flow.dh_norm[-1 if not bidirectional else -2, -1], 1, rtol=1e-6)
    if bidirectional:
        np.testing.assert_allclose(flow.dh_norm[-1, 0], 1, rtol=1e-6)
    assert not flow.clipped.any()


@pytest.mark.parametrize("saturation", [0.05, 0.3])
@pytest.mark.parametrize("layout", ["time first", "batch first", "unbatched"])
def test_saturated_gates_are_counted(case, dtype, layout, saturation):
    layer = build(
        case, I, H, 2, dtype=dtype, bidirectional=True, batch_first=layout == "batch first", scale=4
    )
    x = normal(T, N, I, dtype=dtype)
    x = {"time first": x, "batch first": x.transpose(1, 0, 2), "unbatched": x[:, 0]}[layout]
    flow = rk.gradient_flow(layer, x, saturation=saturation, jacobian=False)
    traces = layer.forward(x, trace=True).trace
    names = {"RNN": "h", "GRU": "rzn", "LSTM": "ifgo"}[case.layer]
    assert list(flow.saturated) == list(names)
    assert any(0 < share < 1 for array in flow.saturated.values() for share in array.flat)
    for name in names:
        assert flow.saturated[name].shape == (4, T)
        for k, trace in enumerate(traces):
            for t in range(T):
                gate = np.take(trace[name], t, axis=1 if layout == "batch first" else 0)
                if case.options.get("nonlinearity") == "relu":
                    flat = gate == 0
                elif name in "hgn":
                    flat = abs(gate) > 1 - saturation
                else:
                    flat = abs(gate - 0.5) > 0.5 - saturation
                assert flow.saturated[name][k, t] == pytest.approx(flat.mean(), abs=1e-12)


def test_nothing_of_the_layer_changes(case):
    layer = build(case, I, H, 2, dropout=0.5)
    plain = build(case, I, H, 2)
    x = normal(T, N, I)
    with unchanged(x, *layer.parameters.values()):
        flow = rk.gradient_flow(layer, x)
    assert layer._dropout_drawn.steps == 0
    assert layer.dropout == 0.5
    expected = rk.gradient_flow(plain, x)
    assert_same_bits(flow.dh_norm, expected.dh_norm)
    assert_same_bits(flow.jacobian_norm, expected.jacobian_norm)


@pytest.mark.parametrize("shape", [(0, 3, I), (4, 0, I), (1, 1, I), (T, I)], ids=str)
def test_small_and_unbatched(case, shape):
    flow = rk.gradient_flow(build(case, I, H, 2), normal(*shape))
    for array in (flow.dh_norm, flow.jacobian_norm, flow.clipped, *flow.saturated.values()):
        assert array.shape == (2, shape[0])
    if shape == (T, I):
        batched = rk.gradient_flow(build(case, I, H, 2), normal(*shape)[:, None])
        assert_same_bits(flow.jacobian_norm, batched.jacobian_norm)
        assert_same_bits(flow.dh_norm, batched.dh_norm)


# -- backward(flow="states") ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("clip", [None, rk.Clip(value=0.3, norm=0.8)], ids=["free", "clipped"])
def test_the_gradient_of_each_state_is_that_of_the_rest_s_initial_one(case, dtype, clip):
    """And dy, which arrives at h_t beside it; with the bits of backward."""
    layer = build(case, I, 21, dtype=dtype)
    x, dy = normal(7, N, I, dtype=dtype), normal(7, N, layer._widths[0], dtype=dtype, seed=1)
    out = layer.forward(x, training=True)
    dstate = like([normal(*s.shape, dtype=dtype) for s in parts(out.state)])
    flow = layer.backward(out, dy, dstate, clip=clip, flow="states").flow
    assert (flow.dc is None) == (len(parts(out.state)) == 1)
    for t in range(7):
        before = layer(x[: t + 1])[1]
        rest = layer.forward(x[t + 1 :], before, training=True)
        arrived = parts(layer.backward(rest, dy[t + 1 :], dstate, clip=clip).state)
        assert_same_bits(flow.dh[0, t], arrived[0][0] + dy[t], f"dh, step {t}")
        if flow.dc is not None:
            assert_same_bits(flow.dc[0, t], arrived[1][0], f"dc, step {t}")


@pytest.mark.parametrize("every", [None, 3])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_kept_gradients_of_stacks_directions_and_lengths(case, every, num_threads):
    """Of each row those that it has alone, and their norms over the batch."""
    layer = build(case, I, 19, dtype=np.float32, num_layers=2, bidirectional=True)
    steps, rows, lengths = 11, 6, [4, 11, 0, 7, 11, 1]
    x = normal(steps, rows, I, dtype=np.float32)
    arguments = {"checkpoint_every": every, "num_threads": num_threads}
    out = layer.forward(x, lengths=lengths, training=True, **arguments)
    dy = normal(*out.y.shape, dtype=np.float32, seed=1)
    plain = layer.backward(out, dy, flow=True, num_threads=num_threads).flow
    flow = layer.backward(out, dy, flow="states", num_threads=num_threads).flow
    for name in ("dh_norm", "dc_norm", "clipped"):
        if getattr(plain, name) is not None:
            assert_same_bits(getattr(flow, name), getattr(plain, name), name)
    assert flow.dh.shape == (4, steps, rows, layer._widths[0])
    for kept, norms in ((flow.dh, flow.dh_norm), (flow.dc, flow.dc_norm)):
        if kept is not None:
            expected = np.sqrt(np.sum(kept.astype(np.float64) ** 2, axis=(2, 3)))
            np.testing.assert_allclose(norms, expected, rtol=1e-12)
    for n, length in enumerate(lengths):
        alone = layer.forward(x[:length, n], training=True)
        single = layer.backward(alone, dy[:length, n], flow="states").flow
        assert_same_bits(flow.dh[:, :length, n], single.dh)
        assert not flow.dh[:, length:, n].any()
        if flow.dc is not None:
            assert_same_bits(flow.dc[:, :length, n], single.dc)


def test_kept_gradients_come_time_first():
    layer = rk.LSTM(I, H, batch_first=True, rng=0)
    twin = rk.LSTM(I, H, rng=0)
    x, dy = normal(T, N, I, dtype=np.float32), normal(T, N, H, dtype=np.float32, seed=1)
    expected = twin.backward(twin.forward(x, training=True), dy, flow="states").flow
    out = layer.forward(x.swapaxes(0, 1), training=True)
    flow = layer.backward(out, dy.swapaxes(0, 1), flow="states").flow
    assert_same_bits(flow.dh, expected.dh)
    assert_same_bits(flow.dc, expected.dc)


@pytest.mark.parametrize(
    ("value", "error"), [("norms", ValueError), (1, TypeError), (None, TypeError)]
)
def test_what_flow_can_be(value, error):
    layer = rk.RNN(I, H, rng=0)
    out = layer.forward(normal(T, N, I, dtype=np.float32), training=True)
    with pytest.raises(error, match="^flow: expected "):
        layer.backward(out, out.y, flow=value)


def test_bad_arguments():
    layer, x = rk.GRU(I, H), normal(T, N, I, dtype=np.float32)
    for bad in (None, layer.freeze(), rk.GRU):
        with pytest.raises(TypeError, match="^layer: expected an RNN, GRU or LSTM, got "):
            rk.gradient_flow(bad, x)
    with pytest.raises(ValueError, match="^saturation: "):
        rk.gradient_flow(layer, x, saturation=1.5)
    with pytest.raises(TypeError, match="^jacobian: "):
        rk.gradient_flow(layer, x, jacobian=1)
    with pytest.raises(ValueError, match="^x: "):
        rk.gradient_flow(layer, x[..., 1:])
    with pytest.raises(TypeError, match="^clip: "):
        rk.gradient_flow(layer, x, clip=1.0)

"""JAX: a jitted lax.scan with the input projection before it; training by value_and_grad."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if os.environ.get("OMP_NUM_THREADS") == "1":
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from data import suffixes  # noqa: E402

jax.config.update("jax_enable_x64", True)  # only permits it: float32 arrays stay float32
VERSION = jax.__version__


def refuses(problem, mode):
    if problem.lengths is not None and problem.bidirectional:
        return "reversing ragged rows is not written for JAX here"
    return ""


def prepare(problem, mode, data, threads):
    weights = {name: jnp.asarray(w) for name, w in data.weights.items()}
    x, dy = jnp.asarray(data.x), jnp.asarray(data.dy)
    N, H, D = problem.N, problem.H, problem.directions
    count = 2 if problem.cell == "lstm" else 1
    states = data.states or [np.zeros((problem.layers * D, N, H), problem.dtype)] * count
    states = tuple(jnp.asarray(s) for s in states)
    valid = None
    if problem.lengths is not None:
        valid = jnp.arange(problem.T)[:, None, None] < jnp.array(problem.lengths)[None, :, None]

    def network(weights, x, states):
        for k in range(problem.layers):
            halves = []
            for d in range(D):
                suffix = suffixes(problem)[k * D + d]
                one = {name: weights[name + suffix] for name in NAMES}
                first = tuple(s[k * D + d] for s in states)
                halves.append(_layer(problem.cell, one, x, first, d == 1, valid))
            x = halves[0] if D == 1 else jnp.concatenate(halves, axis=2)
        return x

    if mode == "training":

        def loss(weights, x, states, dy):
            y = network(weights, x, states)
            return jnp.vdot(y, dy), y

        step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        step = step.lower(weights, x, states, dy).compile()

        def run_training():
            return jax.block_until_ready(step(weights, x, states, dy))

        def outputs(result):
            (_, y), (dweights, dx) = result
            named = {f"d_{name}": np.asarray(g) for name, g in dweights.items()}
            return named | {"y": np.asarray(y), "dx": np.asarray(dx)}

        return {"scan": (run_training, outputs)}

    forward = jax.jit(network).lower(weights, x, states).compile()
    return {
        "scan": (
            lambda: jax.block_until_ready(forward(weights, x, states)),
            lambda y: {"y": np.asarray(y)},
        )
    }


NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _layer(cell, weights, x, states, reverse, valid):
    W_hh, b_hh, H = weights["weight_hh"], weights["bias_hh"], states[0].shape[1]
    projected = x @ weights["weight_ih"].T + weights["bias_ih"]

    def step(states, now):
        a, keep = now
        new = CELLS[cell](a, states, W_hh, b_hh, H)
        if keep is None:
            return new, new[0]
        new = tuple(jnp.where(keep, n, s) for n, s in zip(new, states, strict=True))
        return new, jnp.where(keep, new[0], 0)

    return jax.lax.scan(step, states, (projected, valid), reverse=reverse)[1]


def _lstm(a, states, W, b, H):
    h, c = states
    i, f, g, o = jnp.split(a + h @ W.T + b, 4, axis=1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def _gru_after(a, states, W, b, H):
    (h,) = states
    m = h @ W.T + b
    r, z = jnp.split(jax.nn.sigmoid(a[:, : 2 * H] + m[:, : 2 * H]), 2, axis=1)
    n = jnp.tanh(a[:, 2 * H :] + r * m[:, 2 * H :])
    return ((1 - z) * n + z * h,)


def _gru_before(a, states, W, b, H):
    (h,) = states
    m = h @ W[: 2 * H].T + b[: 2 * H]
    r, z = jnp.split(jax.nn.sigmoid(a[:, : 2 * H] + m), 2, axis=1)
    n = jnp.tanh(a[:, 2 * H :] + (r * h) @ W[2 * H :].T + b[2 * H :])
    return ((1 - z) * n + z * h,)


def _rnn(activation):
    return lambda a, states, W, b, H: (activation(a + states[0] @ W.T + b),)


CELLS = {
    "lstm": _lstm,
    "gru_reset_after": _gru_after,
    "gru_reset_before": _gru_before,
    "rnn_tanh": _rnn(jnp.tanh),
    "rnn_relu": _rnn(jax.nn.relu),
}

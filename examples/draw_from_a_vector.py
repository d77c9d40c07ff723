"""One to many: a whole curve from a single vector.

The layer is told at every step the same thing, what to draw, and goes on from where it is: its
state is the only clock. An input that does not change is broadcast along time, with a stride of 0,
and is then projected once instead of at every step.

    python examples/draw_from_a_vector.py
"""

import numpy as np

import rnnkernel as rk

T, N, HIDDEN, STEPS = 60, 64, 64, 400


def curves(rng, count):
    """What to draw, (N, 3): how often up and down, how high, and how fast it dies away; and the
    curves, (T, N, 1)."""
    told = rng.uniform(-1, 1, (count, 3)).astype(np.float32)
    t = np.linspace(0, 1, T)[:, np.newaxis]
    swings, height, decay = 2 + told[:, 0], 1 + 0.5 * told[:, 1], 1 + told[:, 2]
    curve = height * np.exp(-decay * t) * np.sin(2 * np.pi * swings * t)
    return told, curve[..., np.newaxis].astype(np.float32)


def along_time(told):
    """(T, N, 3) without a copy."""
    return np.broadcast_to(told, (T, *told.shape))


def main(steps=STEPS, seed=0):
    rng = np.random.default_rng(seed)
    layer = rk.GRU(3, HIDDEN, rng=rng)
    readout = rk.Linear(HIDDEN, 1, rng=rng)
    adam = rk.Adam([layer.parameters, readout.parameters])

    for step in range(1, steps + 1):
        adam.lr = 1e-2 * (1 - step / (steps + 1))
        told, curve = curves(rng, N)
        out = layer.forward(along_time(told), training=True)
        error = readout(out.y) - curve
        of_readout = readout.backward(out.y, 2 * error / error.size)
        grads = layer.backward(out, of_readout.x, input_grad=False)
        rk.clip_grad_norm(grads.parameters, 1.0)
        adam.step([grads.parameters, of_readout.parameters])
        if step % 100 == 0:
            print(f"step {step}: mean squared error {np.mean(error**2):.4f}")

    told, curve = curves(rng, 200)
    y, _ = layer(along_time(told))
    share = float(np.mean((readout(y) - curve) ** 2) / np.var(curve))
    print(f"{share:.1%} of the variance of 200 new curves is missed")
    return share


if __name__ == "__main__":
    main()

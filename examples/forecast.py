"""Many to many, on a time series: predict the next value at every step, then far ahead.

The Mackey-Glass equation (1977) describes how many blood cells there are, from how many there were
a while ago, and is chaotic: a usual test of whether a model has a memory. The layer sees each value
and predicts the next one; every step has a target, so the gradient comes in through y. It is
trained by truncated BPTT: piece by piece, with the state handed on. To look ahead, a stream is fed
its own predictions.

    python examples/forecast.py
"""

import numpy as np

import rnnkernel as rk

SERIES, LENGTH, PIECE = 32, 600, 50
HIDDEN, PASSES, AHEAD = 64, 60, 40


def mackey_glass(rng, count, length, every=3, delay=17):
    """(length, count, 1): dx/dt = 0.2 x(t - delay) / (1 + x(t - delay)^10) - 0.1 x(t), about 0."""
    steps = 10  # of Euler's method in a unit of time
    x = list(rng.uniform(0.5, 1.5, (delay * steps, count)))
    for _ in range((length + 100) * every * steps):
        before = x[-delay * steps]
        x.append(x[-1] + (0.2 * before / (1 + before**10) - 0.1 * x[-1]) / steps)
    values = np.array(x[:: every * steps])[-length:, :, np.newaxis]
    return (values - 0.9).astype(np.float32)


def train_piece(layer, readout, x, targets, state):
    """Mean squared error, gradients, and the state to hand on."""
    out = layer.forward(x, state, training=True)
    error = readout(out.y) - targets
    of_readout = readout.backward(out.y, 2 * error / error.size)
    grads = layer.backward(out, of_readout.x, input_grad=False)
    rk.clip_grad_norm(grads.parameters, 1.0)
    return np.mean(error**2), [grads.parameters, of_readout.parameters], out.state


def look_ahead(layer, readout, known, steps):
    """(steps, N, 1), after the known values (T, N, 1)."""
    y, state = layer(known)
    stream = layer.stream(batch_size=known.shape[1])
    stream.state = state
    values = [readout(y[-1])]
    while len(values) < steps:
        values.append(readout(stream.step(values[-1])))
    return np.array(values)


def main(passes=PASSES, seed=0):
    rng = np.random.default_rng(seed)
    series = mackey_glass(rng, 2 * SERIES, LENGTH)
    train, test = series[:, :SERIES], series[:, SERIES:]
    layer = rk.LSTM(1, HIDDEN, forget_bias=1.0, rng=rng)
    readout = rk.Linear(HIDDEN, 1, rng=rng)
    adam = rk.Adam([layer.parameters, readout.parameters])

    for epoch in range(passes):
        adam.lr = 1e-2 * (1 - epoch / passes)
        state, losses = None, []
        for begin in range(0, LENGTH - PIECE, PIECE):
            piece = train[begin : begin + PIECE + 1]
            # the gradient stops where the piece begins; the state comes from the one before
            loss, gradients, state = train_piece(layer, readout, piece[:-1], piece[1:], state)
            adam.step(gradients)
            losses.append(loss)
        if (epoch + 1) % 20 == 0:
            print(f"pass {epoch + 1}: mean squared error of the next value {np.mean(losses):.6f}")

    known, future = test[:-AHEAD], test[-AHEAD:]
    error = (look_ahead(layer, readout, known, AHEAD) - future)[..., 0]
    for steps in (1, 10, AHEAD):
        share = np.sqrt(np.mean(error[steps - 1] ** 2) / np.var(test))
        print(f"{steps} steps ahead, on series not seen: off by {share:.1%} of the deviation")
    return float(np.sqrt(np.mean(error[9] ** 2) / np.var(test)))


if __name__ == "__main__":
    main()

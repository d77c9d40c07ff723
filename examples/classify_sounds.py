"""Many to one, on audio: which way does the pitch of a noisy sound go?

A sound becomes frames, each the logarithm of its power in some bands. Sounds are of unequal
length: `lengths` says of how many frames each is, and the final state is that of its last one. A
linear readout makes a class of it, so the gradient comes in through the state, `dstate`, and not
through y.

    python examples/classify_sounds.py
"""

import numpy as np

import rnnkernel as rk

CLASSES = ("falling", "steady", "rising")
RATE, FRAME, BANDS = 8000, 128, 24  # samples a second, samples a frame
HIDDEN, BATCH, STEPS = 32, 32, 150


def sound(kind, frames, rng):
    """One that glides from a pitch to another, an octave apart at most, under noise."""
    glide = (kind - 1) * rng.uniform(0.4, 1.0)
    octaves = np.linspace(0, glide, frames * FRAME)
    pitch = rng.uniform(500, 1500) * 2**octaves
    wave = np.sin(2 * np.pi * np.cumsum(pitch) / RATE + rng.uniform(0, 2 * np.pi))
    return wave + 0.5 * rng.standard_normal(len(wave))


def features(wave):
    """(frames, BANDS): log power, about 0 on average."""
    frames = wave.reshape(-1, FRAME) * np.hanning(FRAME)
    power = np.abs(np.fft.rfft(frames))[:, : 2 * BANDS] ** 2
    return (np.log(power.reshape(len(frames), BANDS, 2).sum(axis=2) + 1e-3) - 2).astype(np.float32)


def batch(rng, count):
    """x (T, N, BANDS), lengths (N,) and classes (N,)."""
    kinds = rng.integers(0, len(CLASSES), count)
    sounds = [features(sound(kind, rng.integers(15, 40), rng)) for kind in kinds]
    x, lengths = rk.pack(sounds)
    return x, lengths, kinds


def main(steps=STEPS, seed=0):
    rng = np.random.default_rng(seed)
    layer = rk.GRU(BANDS, HIDDEN, rng=rng)
    readout = rk.Linear(HIDDEN, len(CLASSES), rng=rng)
    adam = rk.Adam([layer.parameters, readout.parameters], lr=1e-2)

    for step in range(1, steps + 1):
        x, lengths, kinds = batch(rng, BATCH)
        out = layer.forward(x, lengths=lengths, training=True)
        last = out.state[0]  # (N, HIDDEN): the state is (layers, N, HIDDEN)
        loss, dlogits = rk.softmax_cross_entropy(readout(last), kinds)
        of_readout = readout.backward(last, dlogits)
        grads = layer.backward(out, dstate=of_readout.x[np.newaxis], input_grad=False)
        rk.clip_grad_norm(grads.parameters, 1.0)
        adam.step([grads.parameters, of_readout.parameters])
        if step % 50 == 0:
            print(f"step {step}: loss {loss:.3f}")

    x, lengths, kinds = batch(rng, 500)
    _, state = layer(x, lengths=lengths)
    right = float(np.mean(readout(state[0]).argmax(axis=1) == kinds))
    print(f"{right:.1%} of 500 new sounds are told right")
    return right


if __name__ == "__main__":
    main()

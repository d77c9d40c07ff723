"""Whether only valid steps cost time: ragged batches, stacks, both directions and many classes.

Each is timed in turn with what plain calls take for the same steps, and ratios are of medians:

    ragged      over the padded batch's time by the share of its steps that are valid
    by rows     the same over the sum of what a step of each takes in a plain batch of the rows that
                have it; training only
    stack       two layers over one layer of x and one of y
    both        a bidirectional layer over two of one direction
    classes     ids of 10,000 classes over an x of 32 numbers; training only

    python benchmarks/valid_steps.py --threads 1 2
"""

import argparse
import os
import time
from statistics import median

import numpy as np

import rnnkernel as rk

T, N, CLASSES = 100, 64, 10_000
ROWS = [1, 2, 4, 6, 8, 12, 16, 24, 32, 40, 48, 56, 63]  # of plain batches; between them lines
LAYERS = {"RNN": rk.RNN, "GRU": rk.GRU, "LSTM": rk.LSTM}


def calls(cls, H, mode, threads):
    """By name, what to time."""
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((T, N, H)).astype(np.float32) for _ in range(2))
    x.flags.writeable = False  # training keeps it without a copy
    lengths = rng.integers(T // 10, T + 1, N)

    def call(layer, x, **options):
        gradient = dy[:, : x.shape[1]]
        if layer.bidirectional:
            gradient = np.concatenate([dy, dy], axis=2)

        def infer():
            layer(x, num_threads=threads, **options)

        def train():
            out = layer.forward(x, training=True, num_threads=threads, **options)
            layer.backward(out, gradient, num_threads=threads)

        return infer if mode == "inference" else train

    plain = cls(H, H, rng=0)
    named = {
        "plain": call(plain, x),
        "ragged": call(plain, x, lengths=lengths),
        "stack": call(cls(H, H, 2, rng=0), x),
        "both": call(cls(H, H, bidirectional=True, rng=0), x),
    }
    if mode == "training":
        narrow = rng.standard_normal((T, N, 32)).astype(np.float32)
        named["narrow"] = call(cls(32, H, rng=0), narrow)
        named["classes"] = call(cls(CLASSES, H, rng=0), rng.integers(0, CLASSES, (T, N)))
        for rows in ROWS:
            some = np.ascontiguousarray(x[:, :rows])
            some.flags.writeable = False
            named[rows] = call(plain, some)
    return named, lengths


def sum_of_steps(took, lengths):
    """What the valid steps take where each is one of a plain batch of as many rows."""
    alive = (lengths > np.arange(T)[:, None]).sum(axis=1)
    seconds = [took[rows] / T for rows in ROWS]
    return np.interp(alive, [0, *ROWS, N], [0, *seconds, took["plain"] / T]).sum()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, cores}))
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256], help="H")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()

    print(f"T{T} N{N}, I = H, float32: time over that of plain calls for the same steps")
    for threads in arguments.threads:
        for H in arguments.sizes:
            for name, cls in LAYERS.items():
                for mode in ("inference", "training"):
                    named, lengths = calls(cls, H, mode, threads)
                    times = {kind: [] for kind in named}
                    for turn in range(arguments.rounds + 1):
                        for kind, run in named.items():
                            start = time.perf_counter()
                            run()
                            if turn > 0:  # the first is for warmth
                                times[kind].append(time.perf_counter() - start)
                    took = {kind: median(seconds) for kind, seconds in times.items()}
                    ratios = {
                        "ragged": took["ragged"] / took["plain"] * T * N / lengths.sum(),
                        "stack": took["stack"] / took["plain"] / 2,
                        "both": took["both"] / took["plain"] / 2,
                    }
                    if mode == "training":
                        ratios["by rows"] = took["ragged"] / sum_of_steps(took, lengths)
                        ratios["classes"] = took["classes"] / took["narrow"]
                    line = "; ".join(f"{kind} {ratio:.2f}" for kind, ratio in ratios.items())
                    plain = f"{took['plain'] * 1e3:7.2f} ms"
                    print(f"{threads} threads H{H} {name:<4} {mode:<9} {plain}: {line}", flush=True)


if __name__ == "__main__":
    main()

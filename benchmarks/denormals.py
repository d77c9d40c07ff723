"""Whether denormal numbers cost time: calls on them beside calls on normal ones, in turn.

Denormals count as zero inside the kernels; where some thread forgot to say so, every product with
one takes a hundred cycles. Ratios are of medians, for forward alone and with backward.

    python benchmarks/denormals.py --threads 1 2
"""

import argparse
import os
import time
from statistics import median

import numpy as np

import rnnkernel as rk

T, N, SIZE = 500, 16, 64
WANTED = 1.2
LAYERS = {"RNN": rk.RNN, "GRU": rk.GRU, "LSTM": rk.LSTM}
# a denormal number, and one whose products with small weights become denormal
TINY = {"float32": (1e-40, 1e-38), "float64": (1e-310, 1e-308)}


def kinds(name, dtype):
    """(layer, x, dy) of each kind of numbers."""
    rng = np.random.default_rng(0)
    denormal, small = (np.dtype(dtype).type(value) for value in TINY[dtype])
    x, dy = rng.standard_normal((2, T, N, SIZE)).astype(dtype)
    last = np.zeros_like(dy)
    last[-1] = small

    def layer(scale=None):
        made = LAYERS[name](SIZE, SIZE, dtype=dtype, rng=0)
        for key, array in made.parameters.items():
            if scale is not None:
                # without a bias, small inputs make small states
                array[...] = 0 if key.startswith("bias") else np.sign(array) * scale
        return made

    return {
        "normal": (layer(), x, dy),
        "denormal x": (layer(0.1), np.full_like(x, denormal), dy),
        "denormal weights": (layer(denormal), x, dy),
        "denormal dy": (layer(), x, np.full_like(dy, denormal)),
        "vanishing gradient": (layer(1e-3), x, last),
    }


def measure(name, dtype, threads, rounds):
    """Seconds of every call: {kind: (forward, both)}."""
    cases = kinds(name, dtype)
    times = {kind: ([], []) for kind in cases}
    for turn in range(rounds + 1):
        for kind, (layer, x, dy) in cases.items():
            start = time.perf_counter()
            layer(x, num_threads=threads)
            middle = time.perf_counter()
            out = layer.forward(x, training=True, num_threads=threads)
            layer.backward(out, dy, num_threads=threads)
            if turn > 0:  # the first is for warmth
                times[kind][0].append(middle - start)
                times[kind][1].append(time.perf_counter() - middle)
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, cores}))
    parser.add_argument("--dtypes", nargs="+", default=list(TINY), choices=list(TINY))
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()

    worst = 0.0
    print(f"T{T} N{N} I{SIZE} H{SIZE}: ratios to the time on normal numbers, forward / both")
    for name in LAYERS:
        for dtype in arguments.dtypes:
            for threads in arguments.threads:
                times = measure(name, dtype, threads, arguments.rounds)
                normal = [median(one) for one in times.pop("normal")]
                line = f"{name:<4} {dtype}, {threads} threads: {normal[0] * 1e3:6.2f} ms"
                line += f" / {normal[1] * 1e3:6.2f} ms"
                for kind, calls in times.items():
                    ratios = [median(one) / n for one, n in zip(calls, normal, strict=True)]
                    if kind == "denormal dy":  # forward has not seen it
                        ratios.pop(0)
                    worst = max(worst, *ratios)
                    line += f"; {kind} " + " / ".join(f"{ratio:.2f}" for ratio in ratios)
                print(line, flush=True)
    print(f"largest ratio {worst:.2f}, wanted at most {WANTED}")


if __name__ == "__main__":
    main()

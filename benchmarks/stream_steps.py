"""What a step of a stream takes from Python, by size and by how the matrices are stored.

One row, I = H, the output given; all are timed in turn, round after round, and the fastest of a
batch of steps counts, since noise only slows down. int8 is multiplied in the best way that the
processor has, or in each of some. With `--ids` steps look a token up instead: as a one-hot vector
of as many classes, or in an embedding of so many rows.

    python benchmarks/stream_steps.py --threads 1 2
    python benchmarks/stream_steps.py --int8-as bytes words floats
    python benchmarks/stream_steps.py --cells LSTM --ids 96 30000
"""

import argparse
import os
import time

import numpy as np

import rnnkernel as rk
from rnnkernel import _kernels, _packed_weights

CELLS = {"RNN": rk.RNN, "GRU": rk.GRU, "LSTM": rk.LSTM}
SIZES = (64, 256, 512, 1024)


def streams(cell, threads, sizes, ways):
    """By (weights, H), a call that makes one step."""
    rk.set_num_threads(threads)
    calls = {}
    for H in sizes:
        layer = CELLS[cell](H, H, rng=0)
        x = np.random.default_rng(0).standard_normal((1, H)).astype(np.float32)
        stored = {"float32": (None, None), "float16": ("float16", None)}
        stored |= {f"int8 as {way}": ("int8", way) for way in ways}
        for name, (weights, way) in stored.items():
            _packed_weights.INT8_WAY = way
            stream, out = layer.freeze(weights).stream(), np.empty((1, H), np.float32)
            calls[name, H] = lambda s=stream, x=x, out=out: s.step(x, out=out)
    return calls


def tokens(cell, threads, sizes, classes):
    """By (what ids are, H), a call that makes one step of an id."""
    rk.set_num_threads(threads)
    calls = {}
    rng = np.random.default_rng(0)
    for H in sizes:
        table = rng.standard_normal((classes, H)).astype(np.float32)
        ids, out = np.array([classes // 2]), np.empty((1, H), np.float32)
        hot, looked_up = (CELLS[cell](width, H, rng=0).stream() for width in (classes, H))
        calls[f"one of {classes}", H] = lambda s=hot, out=out, ids=ids: s.step(ids, out=out)
        calls[f"embedding of {classes}", H] = lambda s=looked_up, out=out, ids=ids, table=table: (
            s.step(ids, out=out, embedding=table)
        )
    return calls


def best(calls, rounds, seconds):
    """Microseconds of each, the best of all rounds."""
    times = dict.fromkeys(calls, np.inf)
    for _ in range(rounds):
        for key, call in calls.items():
            call()
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                start = time.perf_counter()
                for _ in range(10):
                    call()
                times[key] = min(times[key], 1e5 * (time.perf_counter() - start))
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", nargs="+", default=["LSTM"], choices=CELLS)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--threads", nargs="+", type=int, default=[len(os.sched_getaffinity(0))])
    parser.add_argument("--ids", nargs="+", type=int, default=[], metavar="CLASSES")
    ways = _kernels.int8_ways()
    parser.add_argument("--int8-as", nargs="+", default=ways[:1], choices=ways)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=0.02, help="of each in a round")
    arguments = parser.parse_args()
    for cell in arguments.cells:
        for threads in arguments.threads:
            if arguments.ids:
                calls = {}
                for classes in arguments.ids:
                    calls |= tokens(cell, threads, arguments.sizes, classes)
            else:
                calls = streams(cell, threads, arguments.sizes, arguments.int8_as)
            times = best(calls, arguments.rounds, arguments.seconds)
            print(f"\nus a step, {cell}, {threads} threads\n")
            print("| | " + " | ".join(f"H{H}" for H in arguments.sizes) + " |")
            print("| --- |" + " --- |" * len(arguments.sizes))
            for name in dict.fromkeys(name for name, _ in times):
                cells = " | ".join(f"{times[name, H]:.1f}" for H in arguments.sizes)
                print(f"| {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()

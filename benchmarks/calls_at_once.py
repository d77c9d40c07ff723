"""What several Python threads gain that make small calls at once, each on one thread of its own.

Calls release the GIL, but for the smallest, and all their Python has it; in a Python without one
nothing is left but the counts of references that threads share. Threads share the layer and what
it froze; each has a stream, and an x.

    python benchmarks/calls_at_once.py
"""

import argparse
import os
import sys
import threading
import time
from statistics import median

import numpy as np

import rnnkernel as rk

H = 64


def makers():
    """By name, what makes the call of a thread."""
    layer = rk.LSTM(H, H, rng=0)
    frozen = layer.freeze()

    def numbers(*shape):
        return np.random.default_rng(0).standard_normal((*shape, H)).astype(np.float32)

    def call(of, *shape):
        x = numbers(*shape)
        return lambda: of(x, num_threads=1)

    def step():
        stream, x, out = frozen.stream(), numbers(1), np.empty((1, H), np.float32)
        return lambda: stream.step(x, out=out)

    def train():
        x = numbers(20, 8)

        def both():
            out = layer.forward(x, training=True, num_threads=1)
            layer.backward(out, out.y, num_threads=1)

        return both

    return {
        "step of a stream": step,
        "frozen, T1 N1": lambda: call(frozen, 1, 1),
        "layer, T1 N1": lambda: call(layer, 1, 1),
        "frozen, T20 N8": lambda: call(frozen, 20, 8),
        "training, T20 N8": train,
    }


def rate(make, threads, seconds):
    """Calls a second of all threads together."""
    counts, begin, over = [0] * threads, threading.Barrier(threads + 1), threading.Event()

    def work(k):
        call, count = make(), 0
        call()
        begin.wait()
        while not over.is_set():
            call()
            count += 1
        counts[k] = count

    workers = [threading.Thread(target=work, args=(k,)) for k in range(threads)]
    for worker in workers:
        worker.start()
    begin.wait()
    start = time.perf_counter()
    time.sleep(seconds)
    over.set()
    for worker in workers:
        worker.join()
    return sum(counts) / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each in a round")
    arguments = parser.parse_args()
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    print(f"LSTM H{H}, Python {sys.version.split()[0]} {'with' if gil else 'without'} the GIL\n")
    print(f"| call | us on one thread | calls of {arguments.threads} threads over those of one |")
    print("| --- | ---: | ---: |")
    for name, make in makers().items():
        alone, gains = [], []
        for _ in range(arguments.rounds):
            alone.append(rate(make, 1, arguments.seconds))
            gains.append(rate(make, arguments.threads, arguments.seconds) / alone[-1])
        print(f"| {name} | {1e6 / median(alone):.2f} | {median(gains):.2f} |", flush=True)


if __name__ == "__main__":
    main()

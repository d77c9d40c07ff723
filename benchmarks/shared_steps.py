"""Whether threads share steps by rows or by units as is faster.

Forward at rest, forward in training and backward, I = H, float32: by rows, by units, and as
rnnkernel itself chooses, timed in turn on all cores. The choice should take as long as the better
way. It depends on what it costs to work together, which is told with each line (0.05 to 1) and may
change while this runs.

    python benchmarks/shared_steps.py
    python benchmarks/shared_steps.py --cells LSTM --sizes 512 --rows 8 16 --steps 25
"""

import argparse
import math
import os
import time
from statistics import median

import numpy as np

import rnnkernel as rk
from rnnkernel import _backward, _plan, _teamwork

CELLS = {"RNN": rk.RNN, "GRU": rk.GRU, "LSTM": rk.LSTM}
WAYS = ("rows", "units", None)  # None is as chosen


def split(way):
    _plan.SPLIT = _backward.SPLIT = way


def calls(cls, H, T, N, threads):
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((T, N, H)).astype(np.float32) for _ in range(2))
    x.flags.writeable = False  # training keeps it without a copy
    layer = cls(H, H, rng=0)
    frozen = layer.freeze()
    out = layer.forward(x, training=True, num_threads=threads)
    return {
        "rest": lambda: frozen(x, num_threads=threads),
        "forward": lambda: layer.forward(x, training=True, num_threads=threads),
        "backward": lambda: layer.backward(out, dy, num_threads=threads),
    }


def time_ways(call, ways, force, seconds):
    """Median microseconds by way. Each goes twice: the first finds data where another left it."""
    took = {way: [] for way in ways}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(took[None]) < 3:
        for way in ways:
            force(way)
            call()
            start = time.perf_counter()
            call()
            took[way].append(1e6 * (time.perf_counter() - start))
    force(None)
    return {way: median(times) for way, times in took.items()}


def print_means(over):
    """Of the ratios of what is chosen to the best way, by call."""
    for name, ratios in over.items():
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        print(f"{name}: as chosen over the better {mean:.3f}, at most {max(ratios):.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument("--threads", type=int, default=cores)
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256], help="H")
    parser.add_argument("--rows", type=int, nargs="+", default=[2, 4, 8, 14, 32, 64], help="N")
    parser.add_argument("--steps", type=int, default=50, help="T")
    parser.add_argument("--seconds", type=float, default=0.1, help="for each line")
    arguments = parser.parse_args()

    over = {}
    for cell in arguments.cells:
        for H in arguments.sizes:
            for N in arguments.rows:
                some = calls(CELLS[cell], H, arguments.steps, N, arguments.threads)
                for name, call in some.items():
                    took = time_ways(call, WAYS, split, arguments.seconds)
                    ratio = took[None] / min(took["rows"], took["units"])
                    over.setdefault(name, []).append(ratio)
                    print(
                        f"{cell:<4} H{H:<4} N{N:<3} {name:<8} by rows {took['rows']:8.0f} us, "
                        f"by units {took['units']:8.0f}, as chosen over the better {ratio:.2f}, "
                        f"teamwork {_teamwork.cost(arguments.threads):.2f}",
                        flush=True,
                    )
    print_means(over)


if __name__ == "__main__":
    main()

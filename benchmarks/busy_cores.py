"""What calls take while other programs want the same cores.

Each row is a number of neighbours that count for ever, one core each, and then of processes that
make the same calls at once. Threads that meet at every step wait for whoever has lost its core; the
time of one thread, which waits for nobody, says what is left of the machine. Means tell more than
medians here: a call either runs undisturbed or loses whole slices of the scheduler's.

    python benchmarks/busy_cores.py
"""

import argparse
import os
import subprocess
import sys
import time
from statistics import mean, median

import numpy as np

import rnnkernel as rk

COUNT = "import os, sys\nos.sched_setaffinity(0, [int(sys.argv[1])])\nwhile True: pass"
SMALL = {"LSTM T200 N4 H64": (rk.LSTM, 200, 4, 64), "GRU T50 N1 H256": (rk.GRU, 50, 1, 256)}


def calls(problem, threads):
    """By name, what to time."""
    cls, T, N, H = SMALL[problem]
    layer = cls(H, H, rng=0)
    x = np.random.default_rng(0).standard_normal((T, N, H)).astype(np.float32)
    x.flags.writeable = False  # training keeps it without a copy
    frozen = layer.freeze()

    def train():
        out = layer.forward(x, training=True, num_threads=threads)
        layer.backward(out, x, num_threads=threads)

    return {"inference": lambda: frozen(x, num_threads=threads), "training": train}


def measure(threads, seconds):
    """Prints mean and median milliseconds of each problem and call."""
    for problem in SMALL:
        for name, call in calls(problem, threads).items():
            times = []
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                start = time.perf_counter()
                call()
                times.append(1e3 * (time.perf_counter() - start))
            print(f"{problem},{name},{mean(times)},{median(times)}", flush=True)


def run(copies, threads, seconds):
    """Lists of (mean, median) of processes that measure at once, by problem and call."""
    command = [sys.executable, __file__, "--measure", str(threads), "--seconds", str(seconds)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(copies)]
    results = {}
    for process in running:
        for line in process.communicate()[0].splitlines():
            problem, name, *numbers = line.split(",")
            results.setdefault((problem, name), []).append([float(n) for n in numbers])
    return results


def show(title, copies, cores, seconds):
    one = run(copies, 1, seconds)
    for key, alone in run(copies, cores, seconds).items():
        cells = [np.mean(values, axis=0) for values in (one[key], alone)]
        print(
            f"| {title} | {' '.join(key)} | "
            + " | ".join(f"{mean_ms:.2f} / {median_ms:.2f}" for mean_ms, median_ms in cells)
            + " |",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="of each call")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, arguments.seconds)
        return
    usable = sorted(os.sched_getaffinity(0))
    print(f"mean / median in ms; {len(usable)} cores\n")
    print(f"| beside | call | one thread | {len(usable)} threads |\n| --- | --- | --- | --- |")
    for count in range(len(usable) + 1):
        taken = usable[:count]
        neighbours = [subprocess.Popen([sys.executable, "-c", COUNT, str(core)]) for core in taken]
        try:
            show(f"{count} that count", 1, len(usable), arguments.seconds)
        finally:
            for neighbour in neighbours:
                neighbour.kill()
                neighbour.wait()
    for copies in (2, 3):
        show(f"{copies - 1} of its kind", copies, len(usable), arguments.seconds)


if __name__ == "__main__":
    main()

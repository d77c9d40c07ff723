"""Whether time grows in proportion to T, to N and to H²: a curve for each, and its cliffs.

Inference of an LSTM with I = H at rest. Time per multiply-add is drawn over H from 16 to 2048, with
the powers of two and their neighbours (rows at a multiple of 4 KiB compete for one set of L1), and
over T and N. A cliff is a size that costs a fourth more per operation than those around it.

    python benchmarks/scaling.py            writes results/scaling.json and .png
"""

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import problems
from data import draw, make_layer

import rnnkernel as rk

FOLDER = Path(__file__).resolve().parent
CLIFF = 1.25
BATCHES = (1, 8, 64)
POWERS = [2**k for k in range(4, 12)]
HIDDEN = sorted(
    {H for p in POWERS for H in (p - 16, p - 8, p, p + 8, p + 16, p * 3 // 2) if 16 <= H <= 2048}
)
STEPS = POWERS
ROWS = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024, 2048]


def series(flops):
    """{(axis, what is fixed): problems}, calls of about so many operations where H varies."""
    base = problems.Problem("scaling", "lstm", 1, 1, 1, 1)
    found = {}
    for N in BATCHES:
        found["H", f"N{N}"] = [
            replace(one, T=int(min(200, max(4, flops // problems.flops(one)))))
            for one in (replace(base, N=N, I=H, H=H) for H in HIDDEN)
        ]
    for N, H in ((1, 64), (8, 64), (16, 256)):
        found["T", f"N{N} H{H}"] = [replace(base, T=T, N=N, I=H, H=H) for T in STEPS]
    for T, H in ((20, 64), (20, 256)):
        found["N", f"T{T} H{H}"] = [replace(base, T=T, N=N, I=H, H=H) for N in ROWS]
    return found


def seconds_of(problem, threads, at_least):
    """The best call: noise only slows down."""
    layer, x = make_layer(problem, data := draw(problem)).freeze(), data.x
    times, end = [], time.perf_counter() + at_least
    layer(x, num_threads=threads)
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        layer(x, num_threads=threads)
        times.append(time.perf_counter() - start)
    return min(times)


def cliffs(curve):
    """Sizes that cost more per operation than the median of those within a third of them."""
    found = []
    for size, cost in curve.items():
        near = [c for s, c in curve.items() if s != size and 0.74 * size <= s <= 1.35 * size]
        if near and cost > CLIFF * median(near):
            found.append((size, cost / median(near)))
    return found


def picture(curves, threads, path):
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        return
    figure, axes = plt.subplots(1, 3, figsize=(17, 5), layout="constrained")
    for axis, letter in zip(axes, "HTN", strict=True):
        for (varied, fixed), curve in curves.items():
            if varied == letter:
                axis.plot(list(curve), list(curve.values()), ".-", label=fixed, linewidth=0.8)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel(letter)
        axis.set_ylabel("ns per thousand operations")
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=8)
    figure.suptitle(
        f"LSTM inference at rest, I = H, {threads} threads: flat is in proportion to T, N and H²"
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument("--threads", type=int, default=cores)
    parser.add_argument("--seconds", type=float, default=0.1, help="for each point, at least")
    parser.add_argument("--flops", type=float, default=2e8, help="of a call where H varies")
    parser.add_argument("--largest", type=int, default=POWERS[-1], help="H, T and N")
    parser.add_argument("--name", default="scaling", help="of the files that are written")
    parser.add_argument("--folder", type=Path, default=FOLDER / "results", help="for these files")
    arguments = parser.parse_args()

    rk.set_num_threads(arguments.threads)
    curves = {}
    for (varied, fixed), some in series(arguments.flops).items():
        curve = curves[varied, fixed] = {}
        for problem in some:
            if getattr(problem, varied) > arguments.largest:
                continue
            seconds = seconds_of(problem, arguments.threads, arguments.seconds)
            curve[getattr(problem, varied)] = 1e12 * seconds / problems.flops(problem)
        steep = ", ".join(f"{varied}={s} ({r:.2f} times)" for s, r in cliffs(curve)) or "none"
        values = list(curve.values())
        print(
            f"over {varied}, {fixed}: {min(values):.1f} to {max(values):.1f} ns per thousand "
            f"operations, {values[-1]:.1f} at the largest; cliffs: {steep}",
            flush=True,
        )
    arguments.folder.mkdir(exist_ok=True)
    document = [{"over": v, "fixed": f, "ns_per_1000": curve} for (v, f), curve in curves.items()]
    stem = arguments.folder / arguments.name
    stem.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    picture(curves, arguments.threads, stem.with_suffix(".png"))
    print(f"written: {stem.with_suffix('.json')}")


if __name__ == "__main__":
    main()

"""What small calls take on one thread, on all, and as rnnkernel itself chooses.

I = H, float32, frozen layers in inference; all are timed in turn, round after round, and lower
quartiles stand for them. The choice should take as long as the better way, and does where their
times differ by more than the noise.

    python benchmarks/small_calls.py
    python benchmarks/small_calls.py --cases LSTM,1,16,64 GRU,20,4,32
"""

import argparse
import os
import time

import numpy as np

import rnnkernel as rk
from rnnkernel import _plan

CELLS = {"RNN": rk.RNN, "GRU": rk.GRU, "LSTM": rk.LSTM}
CASES = [
    f"{cell},{sizes}"
    for cell, all_sizes in {
        "LSTM": "1,1,64 1,16,64 1,4,128 1,16,128 1,1,256 8,8,32 69,8,32 6,32,32 17,32,32 46,1,64 "
        "11,4,64 34,4,64 9,16,64 29,16,64 2,64,64 11,1,128 3,4,128 2,16,128 25,1,256",
        "GRU": "1,1,64 1,1,192 31,8,32 8,32,32 61,1,64 15,4,64 11,16,64 4,4,128 3,16,128",
        "RNN": "1,1,64 1,16,256 20,16,64 40,4,128",
    }.items()
    for sizes in all_sizes.split()
]
CALLS = ("inference", "forward", "backward")
# What a way may use, and whether it must.
ONE, ALL, CHOSEN = "one thread", "all", "chosen"


def timed(call):
    start = time.perf_counter()
    result = call()
    return 1e6 * (time.perf_counter() - start), result


def measure(case, threads, seconds):
    """Lower quartiles, in microseconds, by (call, way)."""
    cell, *sizes = case.split(",")
    T, N, H = map(int, sizes)
    layer, rng = CELLS[cell](H, H, rng=0), np.random.default_rng(0)
    x = rng.standard_normal((T, N, H)).astype(np.float32)
    dy = rng.standard_normal((T, N, H)).astype(np.float32)
    frozen = layer.freeze()
    times = {(call, way): [] for call in CALLS for way in (ONE, ALL, CHOSEN)}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for way in (ONE, ALL, CHOSEN):
            _plan.TEAMS_ARE_FREE = way == ALL
            n = 1 if way == ONE else threads
            for repeat in range(24):
                spent = dict.fromkeys(CALLS)
                if repeat < 12:
                    spent["inference"], _ = timed(lambda n=n: frozen(x, num_threads=n))
                else:
                    spent["forward"], out = timed(
                        lambda n=n: layer.forward(x, training=True, num_threads=n)
                    )
                    spent["backward"], _ = timed(
                        lambda n=n, out=out: layer.backward(out, dy, num_threads=n)
                    )
                if repeat % 12 >= 4:  # caches have what the way before left
                    for call, microseconds in spent.items():
                        if microseconds is not None:
                            times[call, way].append(microseconds)
    _plan.TEAMS_ARE_FREE = False
    return {key: np.percentile(values, 25) for key, values in times.items()}


def mean(ratios):
    return float(np.exp(np.mean(np.log(ratios))))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=CASES, metavar="CELL,T,N,H")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=1.0, help="for each case")
    arguments = parser.parse_args()
    print(f"us on one thread / on {arguments.threads} / as chosen\n")
    print("| | " + " | ".join(CALLS) + " |\n| --- |" + " ---: |" * len(CALLS))
    ratios = {(call, way): [] for call in CALLS for way in (ONE, ALL, "the better")}
    for case in arguments.cases:
        times = measure(case, arguments.threads, arguments.seconds)
        cells = []
        for call in CALLS:
            one, both, chosen = (times[call, way] for way in (ONE, ALL, CHOSEN))
            ratios[call, ONE].append(chosen / one)
            ratios[call, ALL].append(chosen / both)
            ratios[call, "the better"].append(chosen / min(one, both))
            cells.append(f"{one:.0f} / {both:.0f} / {chosen:.0f}")
        print(f"| {case} | " + " | ".join(cells) + " |", flush=True)
    print()
    for way in (ONE, ALL, "the better"):
        values = ", ".join(f"{call} {mean(ratios[call, way]):.2f}" for call in CALLS)
        print(f"as chosen over {way}: {values}")


if __name__ == "__main__":
    main()

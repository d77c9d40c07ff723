"""How much of this machine's FMA peak rnnkernel reaches, in one interleaved run.

Every round times a burst of pure multiply-adds, forward, another burst, forward and backward, and
the NumPy reference. Shares are of the best times (noise only slows down), ratios are of medians.

    python benchmarks/share_of_peak.py --threads 1
    RNNKERNEL_ISA=avx2 python benchmarks/share_of_peak.py --dtypes float32 float64
    python benchmarks/share_of_peak.py --problems lstm-t50-n64-h256 gru-t50-n64-h256
"""

import argparse
import time
from dataclasses import replace
from statistics import median

import problems
import roofline
from data import check, draw, layer_outputs, layer_state, make_layer, reference

NAMES = [problem.name for group in problems.GROUPS.values() for problem in group]
DEFAULTS = ("lstm-t50-n64-h256", "lstm-t1000-n8-h32")


def timed(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(problem, threads, seconds, isa, with_reference=True):
    """Times of each kind, and the rates of the bursts of multiply-adds between them."""
    data = draw(problem)
    layer, state = make_layer(problem, data), layer_state(problem, data.states)
    arguments = {"num_threads": threads}
    if problem.lengths is not None:
        arguments["lengths"] = problem.lengths

    def forward():
        return layer(data.x, state, **arguments)[0]

    def both():
        out = layer.forward(data.x, state, training=True, **arguments)
        return out, layer.backward(out, data.dy, num_threads=threads)

    calls = {"forward": forward}
    if "training" in problem.modes:
        calls["forward+backward"] = both
    mode = "training" if "training" in problem.modes else "inference"
    expected = reference(problem, data, mode)
    check(layer_outputs(forward()), {"y": expected["y"]}, problem.dtype, "forward")
    if mode == "training":
        out, grads = both()
        check(layer_outputs(out.y, grads), expected, problem.dtype, "forward+backward")
        del out, grads

    peaks, times = [], {name: [] for name in calls}
    references = {name: [] for name in calls} if with_reference else {}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(peaks) < 6:
        for name, call in calls.items():
            peaks.append(roofline.measure_peak(isa, problem.dtype, threads, 1, 0.01))
            call()  # warm: the burst may have changed the clock's frequency
            stop = time.perf_counter() + 0.05
            while time.perf_counter() < stop:
                times[name].append(timed(call))
        if len(peaks) <= 3 * len(calls):  # the reference is slow, and only its median counts
            for name in references:
                kind = "training" if name == "forward+backward" else "inference"
                references[name].append(
                    timed(lambda kind=kind: reference(problem, data, kind, problem.dtype))
                )
    return peaks, times, references


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--problems",
        nargs="+",
        default=DEFAULTS,
        choices=NAMES,
        metavar="NAME",
        help="of those that problems.py lists",
    )
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=roofline.DTYPES)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each problem")
    parser.add_argument("--no-reference", action="store_true", help="leave NumPy out")
    arguments = parser.parse_args()

    isa = roofline.isa_in_use()
    print(f"instruction set {isa}, {arguments.threads} threads")
    best = {dtype: 0.0 for dtype in arguments.dtypes}  # of the whole run
    for name in arguments.problems:
        for dtype in arguments.dtypes:
            problem = replace(problems.find(name), dtype=dtype)
            peaks, times, references = measure(
                problem, arguments.threads, arguments.seconds, isa, not arguments.no_reference
            )
            peak = best[dtype] = max(best[dtype], *peaks)
            spread = f"median burst {median(peaks):.1f}"
            print(f"{problem.cell} {problem.sizes} {dtype}: peak {peak:.1f} GFLOP/s ({spread})")
            for kind, samples in times.items():
                mode = "training" if kind == "forward+backward" else "inference"
                rate = problems.flops(problem, mode) / min(samples) * 1e-9
                line = (
                    f"  {kind:<17} best {min(samples) * 1e3:9.3f} ms, median "
                    f"{median(samples) * 1e3:9.3f} ms, {rate:6.1f} GFLOP/s, "
                    f"{100 * rate / peak:5.1f} % of the peak"
                )
                if references.get(kind):
                    ratio = median(references[kind]) / median(samples)
                    line += f", {ratio:6.1f} x NumPy reference"
                print(line, flush=True)


if __name__ == "__main__":
    main()

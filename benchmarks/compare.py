"""rnnkernel beside PyTorch, ONNX Runtime, OpenVINO, JAX and NumPy: who is ahead, and how near the
limit of the machine.

    python benchmarks/compare.py --group quick
    python benchmarks/compare.py --group all --modes inference training --threads 2
    python benchmarks/compare.py --group sweep --modes inference --peers onnxruntime

Every library runs in a process of its own and is checked against the float64 reference before it
is timed. Then they take turns, round after round, with a burst of pure multiply-adds in every
round: a machine that gets slower does so for all. While one is timed the others wait on a pipe,
and a pause before every turn lets their threads stop spinning.

Times are medians over all calls; ratios are of medians; shares of the peak and of the roofline
are of the best call over the best burst. Written to benchmarks/results/: <name>.json, .md, .png.

The JSON file:

    {"machine": {...}, "versions": {peer: version}, "threads": p, "rounds": n,
     "roofline": {"isa", "caches": {level: bytes}, "peak": {dtype: {threads: GFLOP/s}},
                  "bandwidth": {level: {threads: GB/s}}},
     "results": [{"problem": {fields of Problem}, "mode", "flops", "peak": GFLOP/s, best burst
                  "limit": seconds, of the roofline model,
                  "peers": {peer: {"median", "best": seconds, "calls", "rounds": [medians],
                                   "variant", "error": largest, relative, "memory": bytes of a
                                   first call beyond what was there}
                            or {"refused": why} or {"failed": why}},
                  "best_peer": name or null, "ratio": its median over rnnkernel's, or null,
                  "peak_share", "roofline_share": of rnnkernel, or null}],
     "skipped": [{"problem": name, "mode", "why"}],
     "summary": {mode: {"problems", "geometric_mean", "least", "behind": [names]}}}
"""

import argparse
import json
import math
import os
import platform
import select
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median

import numpy as np
import peers
import problems
import report
import roofline
from data import draw, reference

FOLDER = Path(__file__).resolve().parent
PAUSE = 0.05  # seconds: idle threads of OpenMP, TBB and Eigen are asleep by then
PEAK_BURST = 0.02
LONGEST = 600  # seconds that a worker may take for one command

# The activations of one gate of one unit take as long as this many operations of the peak.
ACTIVATION = 68
ACTIVATIONS = {"rnn_tanh": 1, "rnn_relu": 0, "gru_reset_after": 3, "gru_reset_before": 3, "lstm": 5}


class Worker:
    """A peer's process."""

    def __init__(self, name, threads):
        self.name, self.threads = name, threads
        self.process = None
        self.hello = self.start()

    def start(self):
        count = str(self.threads)
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        # OpenBLAS spins for 2^26 ticks otherwise, longer than PAUSE
        environment = os.environ | dict.fromkeys(names, count) | {"OPENBLAS_THREAD_TIMEOUT": "22"}
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [sys.executable, str(FOLDER / "worker.py"), self.name, count],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=environment,
        )
        return self.answer(120)

    def answer(self, timeout=LONGEST):
        ready, _, _ = select.select([self.process.stdout], [], [], timeout)
        line = self.process.stdout.readline() if ready else b""
        if line:
            return json.loads(line)
        self.stop()
        return {"failed": "the process died" if ready else f"no answer in {timeout} s"}

    def ask(self, do, **arguments):
        if self.process is None:
            self.start()
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self.stop()
            return {"failed": "the process died"}
        return self.answer()

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdin.close()
            self.process.stdout.close()
            self.errors.close()
            self.process = None


def least_time(problem, mode, machine, threads):
    """The roofline: seconds that the products, the streamed weights and the activations need.

    Inside the time loop a batch is split over rows (each thread streams all recurrent weights) or
    over hidden units (each streams its part); the faster of the two counts.
    """
    peak = machine["peak"][problem.dtype]
    rate = {count: float(peak[str(count)]) * 1e9 for count in (1, threads)}
    size, H, G = np.dtype(problem.dtype).itemsize, problem.H, problems.GATES[problem.cell]
    pointwise = ACTIVATION * ACTIVATIONS[problem.cell] * H
    passes = 2 if mode == "training" else 1  # forward, and dh backward
    rows = problem.steps() / problem.T  # on average, in ragged batches
    busy = threads if rows > 1 else 1
    share = math.ceil(rows / busy)  # rows of a thread
    seconds = 0.0
    for inputs in problem.layer_inputs():
        weights = size * G * H * H
        products = 2 * G * H * H
        by_rows = max(
            products * share * busy / rate[busy],
            weights * busy / _bandwidth(machine, weights, weights * busy, busy),
        )
        part = weights / threads
        by_units = max(
            products * rows / rate[threads], weights / _bandwidth(machine, part, weights, threads)
        )
        loop = problem.T * passes * min(by_rows, by_units)
        # the input's products, the gradients of both weights, and dx
        outside = 2 * G * H * inputs + (4 * G * H * inputs + 2 * G * H * H) * (passes - 1)
        rest = problem.steps() * (outside + pointwise) / rate[threads]
        if rows * problem.T < 8:  # few rows: reading W_ih, too, takes longer than its products
            both = size * G * H * inputs
            rest = max(rest, both / _bandwidth(machine, both / threads, both, threads))
        seconds += (loop + rest) * problem.directions
    return seconds


def _bandwidth(machine, of_thread, together, threads):
    """Bytes a second, of all threads, of reading weights over and over from where they fit."""
    for level, capacity in sorted(machine["caches"].items()):
        if (of_thread if level in ("L1", "L2") else together) <= capacity:
            return machine["bandwidth"][level][str(threads)] * 1e9
    return machine["bandwidth"]["DRAM"][str(threads)] * 1e9


def compare(problem, mode, workers, machine, arguments, seconds, folder):
    """One entry of "results"."""
    expected = Path(folder) / "expected.npz"
    outputs = reference(
        problem, draw(problem, mode), "training" if mode == "training" else "inference"
    )
    np.savez(expected, **outputs)
    del outputs
    entry = {"problem": asdict(problem), "mode": mode, "flops": problems.flops(problem, mode)}
    found = entry["peers"] = {}
    for name, worker in workers.items():
        found[name] = worker.ask("load", problem=asdict(problem), mode=mode, expected=str(expected))
    expected.unlink()
    running = [name for name, answer in found.items() if "seconds" in answer]

    # calls so that turns take about equally long, rounds so that the problem keeps to its seconds
    calls = {
        name: int(np.clip(arguments.burst / found[name]["seconds"], 1, 2000)) for name in running
    }
    turn = {name: PAUSE + (calls[name] + 1) * found[name]["seconds"] for name in running}
    one_round = PEAK_BURST + sum(turn.values())
    rounds = int(np.clip(seconds / one_round, 1, arguments.rounds)) if seconds else arguments.rounds
    times, bursts = {name: [] for name in running}, []
    for _ in range(rounds):
        time.sleep(PAUSE)
        bursts.append(
            roofline.measure_peak(machine["isa"], problem.dtype, arguments.threads, 1, PEAK_BURST)
        )
        for name in list(times):
            time.sleep(PAUSE)
            answer = workers[name].ask("time", calls=calls[name])
            if "times" in answer:
                times[name].append(answer["times"])
            else:
                found[name] = answer
                del times[name]
    for worker in workers.values():
        if worker.process is not None:
            worker.ask("unload")
    for name, turns in times.items():
        together = [t for one in turns for t in one]
        found[name] |= {
            "median": median(together),
            "best": min(together),
            "calls": len(together),
            "rounds": [median(one) for one in turns],
        }
        found[name].pop("seconds")
    entry["peak"] = max(bursts)
    return entry


def judge(entry, machine, threads):
    """Adds what is derived from the times, once the best burst of the whole run is known."""
    problem = problems.find(entry["problem"]["name"])
    found = entry["peers"]
    timed = {name: one for name, one in found.items() if "median" in one}
    others = {name: one["median"] for name, one in timed.items() if name != "rnnkernel"}
    ours = timed.get("rnnkernel")
    entry["limit"] = least_time(problem, entry["mode"], machine, threads)
    entry["best_peer"] = min(others, key=others.get) if others else None
    entry["ratio"] = entry["peak_share"] = entry["roofline_share"] = None
    if ours:
        peak = machine["peak"][problem.dtype][str(threads)] * 1e9
        entry["peak_share"] = entry["flops"] / ours["best"] / peak
        entry["roofline_share"] = entry["limit"] / ours["best"]
        if others:
            entry["ratio"] = others[entry["best_peer"]] / ours["median"]


def better(machine, again):
    """Keeps the better of two measurements of the machine: noise only slows down."""
    for kind in ("peak", "bandwidth"):
        for key, rates in again[kind].items():
            kept = machine[kind][key]
            kept.update({count: max(rate, kept[count]) for count, rate in rates.items()})
    for rates in machine["peak"].values():
        for count, rate in rates.items():  # a core alone is no slower than beside others
            rates["1"] = max(rates["1"], rate / int(count))


def summarise(results):
    """Geometric means of the ratios, and where a peer is ahead."""
    summary = {}
    for mode in problems.MODES:
        ratios = {
            entry["problem"]["name"]: entry["ratio"]
            for entry in results
            if entry["mode"] == mode and entry["ratio"]
        }
        if ratios:
            summary[mode] = {
                "problems": len(ratios),
                "geometric_mean": math.exp(sum(map(math.log, ratios.values())) / len(ratios)),
                "least": min(ratios.values()),
                "behind": sorted((name for name in ratios if ratios[name] < 1), key=ratios.get),
            }
    return summary


def run(arguments):
    threads = arguments.threads
    group = problems.GROUPS[arguments.group]
    if arguments.problems:
        group = [problems.find(name) for name in arguments.problems]
    workers, versions = {}, {}
    for name in ["rnnkernel", *(p for p in arguments.peers if p != "rnnkernel")]:
        worker = Worker(name, threads)
        if "version" in worker.hello:
            workers[name], versions[name] = worker, worker.hello["version"]
        else:
            print(f"{name}: left out: {worker.hello.get('missing') or worker.hello.get('failed')}")
            worker.stop()

    isa = roofline.isa_in_use()
    counts = sorted({1, threads})
    machine = roofline.measure(isa, counts)
    print(report.machine_line(machine, threads), flush=True)

    todo, skipped = [], []
    for problem in group:
        for mode in problem.modes:
            if mode not in arguments.modes:
                continue
            why = problems.missing(problem, mode) if "rnnkernel" in workers else ""
            if why:
                skipped.append({"problem": problem.name, "mode": mode, "why": why})
            else:
                todo.append((problem, mode))
    for one in skipped:
        print(f"{one['problem']} {one['mode']}: skipped: {one['why']}")

    results, end = [], time.monotonic() + (arguments.time_budget or 0)
    try:
        with tempfile.TemporaryDirectory() as folder:
            for index, (problem, mode) in enumerate(todo):
                left = end - time.monotonic()
                if arguments.time_budget and left < 0:
                    why = "the time budget is spent"
                    print(f"{problem.name} {mode}: skipped: {why}")
                    skipped.append({"problem": problem.name, "mode": mode, "why": why})
                    continue
                seconds = left / (len(todo) - index) if arguments.time_budget else None
                entry = compare(problem, mode, workers, machine, arguments, seconds, folder)
                rates = machine["peak"][problem.dtype]
                rates[str(threads)] = max(rates[str(threads)], entry["peak"])
                judge(entry, machine, threads)
                results.append(entry)
                print(report.line(entry), flush=True)
    finally:
        for worker in workers.values():
            worker.stop()
    better(machine, roofline.measure(isa, counts))
    for entry in results:  # again, with the best bursts of the whole run
        judge(entry, machine, threads)
    return {
        "machine": {
            "cpu": _cpu(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
        },
        "versions": versions,
        "threads": threads,
        "rounds": arguments.rounds,
        "roofline": machine,
        "results": results,
        "skipped": skipped,
        "summary": summarise(results),
    }


def _cpu():
    try:
        for row in Path("/proc/cpuinfo").read_text().splitlines():
            if row.startswith("model name"):
                return row.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()


def main():
    parser = argparse.ArgumentParser(
        description="rnnkernel beside other libraries, and beside the limits of the machine."
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument("--group", choices=problems.GROUPS, default="quick")
    parser.add_argument("--problems", nargs="+", help="names, instead of a group")
    parser.add_argument("--modes", nargs="+", choices=problems.MODES, default=problems.MODES)
    parser.add_argument("--rounds", type=int, default=7, help="at most, for each problem")
    parser.add_argument("--threads", type=int, default=cores)
    parser.add_argument("--peers", nargs="*", choices=peers.NAMES, default=peers.NAMES)
    parser.add_argument("--burst", type=float, default=0.15, help="seconds of one peer's turn")
    parser.add_argument(
        "--time-budget", type=float, help="seconds for all: fewer rounds, then problems left out"
    )
    parser.add_argument("--name", help="of the files in results/; default: the group")
    arguments = parser.parse_args()
    known = {problem.name for group in problems.GROUPS.values() for problem in group}
    unknown = sorted(set(arguments.problems or ()) - known)
    if unknown:
        parser.error(f"--problems: none is called {', '.join(unknown)}; see problems.py")
    if arguments.threads > cores:
        parser.error(f"--threads: this process may run on {cores} cores")

    document = run(arguments)
    folder = FOLDER / "results"
    folder.mkdir(exist_ok=True)
    stem = folder / (arguments.name or arguments.group)
    stem.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    stem.with_suffix(".md").write_text(report.markdown(document))
    print(report.summary_text(document))
    written = [".json", ".md"]
    if report.picture(document, stem.with_suffix(".png")):
        written.append(".png")
    print("written: " + ", ".join(str(stem.with_suffix(suffix)) for suffix in written))


if __name__ == "__main__":
    main()

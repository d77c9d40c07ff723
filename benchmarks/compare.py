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
                  "limits": {"arithmetic" or a level of memory: seconds} of the roofline model,
                  "limit": their sum,
                  "phases": {phase: share of rnnkernel's call, on the calling thread}, see
                            rnnkernel.profile; empty for steps of a stream
                  "memory_bound": {what for: bytes} (see limits.memory),
                  "peers": {peer: {"median", "best": seconds, "calls", "rounds": [medians],
                                   "variant", "error": largest, relative,
                                   "memory": bytes at the peak of a first call, or null}
                            or {"refused": why} or {"failed": why}},
                  "best_peer": name or null, "ratio": its median over rnnkernel's, or null,
                  "peak_share", "roofline_share": of rnnkernel, or null}],
     "skipped": [{"problem": name, "mode", "why"}],
     "summary": {mode: {"problems", "geometric_mean", "least", "behind": [names],
                        "short": [names with less than the wanted ratio],
                        "peers": {peer: {"problems", "geometric_mean", "least", "behind"}}}}}
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

import limits
import numpy as np
import peers
import pictures
import problems
import report
import roofline
from data import draw, reference

FOLDER = Path(__file__).resolve().parent
PAUSE = 0.05  # seconds: idle threads of OpenMP, TBB and Eigen are asleep by then
PEAK_BURST = 0.02
LONGEST = 600  # seconds that a worker may take for one command


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


def compare(problem, mode, workers, machine, arguments, seconds, folder):
    """One entry of "results"."""
    expected = Path(folder) / "expected.npz"
    outputs = reference(
        problem, draw(problem, mode), "training" if mode == "training" else "inference"
    )
    np.savez(expected, **outputs)
    del outputs
    entry = {"problem": asdict(problem), "mode": mode, "flops": problems.flops(problem, mode)}
    entry["memory_bound"] = limits.memory(problem, mode, arguments.threads)
    found = entry["peers"] = {}
    for name, worker in workers.items():
        found[name] = worker.ask("load", problem=asdict(problem), mode=mode, expected=str(expected))
    expected.unlink()
    running = [name for name, answer in found.items() if "seconds" in answer]
    if "rnnkernel" in running:
        entry["phases"] = workers["rnnkernel"].ask("profile").get("phases")

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
    entry["limits"] = limits.least_time(problem, entry["mode"], machine, threads)
    entry["limit"] = sum(entry["limits"].values())
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
    """By mode: geometric means of the ratios to the best peer and to each, and who is ahead."""
    summary = {}
    for mode in problems.MODES:
        entries = {entry["problem"]["name"]: entry for entry in results if entry["mode"] == mode}
        ratios = {name: entry["ratio"] for name, entry in entries.items() if entry["ratio"]}
        if not ratios:
            continue
        by_peer = {}
        for name, entry in entries.items():
            ours = entry["peers"].get("rnnkernel", {}).get("median")
            for peer, one in entry["peers"].items():
                if ours and peer != "rnnkernel" and "median" in one:
                    by_peer.setdefault(peer, {})[name] = one["median"] / ours
        summary[mode] = _mean(ratios) | {
            "short": sorted(
                (name for name in ratios if ratios[name] < report.WANTED), key=ratios.get
            ),
            "peers": {peer: _mean(theirs) for peer, theirs in by_peer.items()},
        }
    return summary


def _mean(ratios):
    return {
        "problems": len(ratios),
        "geometric_mean": math.exp(sum(map(math.log, ratios.values())) / len(ratios)),
        "least": min(ratios.values()),
        "behind": sorted((name for name in ratios if ratios[name] < 1), key=ratios.get),
    }


def failures(results):
    """Who did not come to an end, at what, and why."""
    return [
        f"{peer} at {entry['problem']['name']}, {entry['mode']}: {found['failed']}"
        for entry in results
        for peer, found in entry["peers"].items()
        if "failed" in found
    ]


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

    skipped = []
    todo = [
        (problem, mode) for problem in group for mode in problem.modes if mode in arguments.modes
    ]

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
    parser.add_argument("--name", help="of the files that are written; default: the group")
    parser.add_argument("--folder", type=Path, default=FOLDER / "results", help="for these files")
    arguments = parser.parse_args()
    known = {problem.name for group in problems.GROUPS.values() for problem in group}
    unknown = sorted(set(arguments.problems or ()) - known)
    if unknown:
        parser.error(f"--problems: none is called {', '.join(unknown)}; see problems.py")
    if arguments.threads > cores:
        parser.error(f"--threads: this process may run on {cores} cores")

    document = run(arguments)
    arguments.folder.mkdir(exist_ok=True)
    stem = arguments.folder / (arguments.name or arguments.group)
    stem.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    stem.with_suffix(".md").write_text(report.markdown(document))
    print(report.summary_text(document))
    written = [".json", ".md"]
    if pictures.picture(document, stem.with_suffix(".png")):
        written.append(".png")
    print("written: " + ", ".join(str(stem.with_suffix(suffix)) for suffix in written))
    failed = failures(document["results"])
    if failed:
        sys.exit("failed: " + "\n        ".join(failed))


if __name__ == "__main__":
    main()

"""One library in a process of its own; started by compare.py, one JSON object a line each way.

{"do": "load", "problem": {...}, "mode": ..., "expected": path}
    -> {"variant": ..., "seconds": of a call, "error": largest, "memory": bytes}
     | {"refused": why} | {"failed": why}
{"do": "time", "calls": k}  -> {"times": [seconds, ...]}
{"do": "unload"}            -> {}
"""

import gc
import importlib
import json
import os
import sys
import time
import traceback

import numpy as np


def resident():
    """Bytes of this process in memory now, and at most since `forget_peak`; Linux only."""
    try:
        with open("/proc/self/status") as status:
            fields = dict(line.split(":", 1) for line in status)
        return tuple(int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    except (OSError, KeyError):
        return 0, 0


def forget_peak():
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass


def seconds_of(run, at_least=0.02, most=200):
    """A call's median time after the first few."""
    run()
    times = []
    while sum(times) < at_least and len(times) < most:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


class Worker:
    def __init__(self, name, threads):
        if hasattr(os, "sched_setaffinity"):
            # so that no library takes more cores than the others
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
        self.name, self.threads = name, threads
        self.peer = importlib.import_module(f"peers.{name}_peer")
        self.run = None

    def load(self, problem, mode, expected):
        from data import TOLERANCE, check, draw
        from problems import Problem

        for name in ("lengths", "modes"):
            problem[name] = None if problem[name] is None else tuple(problem[name])
        problem = Problem(**problem)
        why = self.peer.refuses(problem, mode)
        if why:
            return {"refused": why}
        data = draw(problem, mode)
        expected = dict(np.load(expected))
        best = None
        for variant, (run, outputs) in self.peer.prepare(problem, mode, data, self.threads).items():
            forget_peak()
            before = resident()[0]
            result = run()
            memory = max(0, resident()[1] - before)
            who = f"{self.name} ({variant})"
            error = check(outputs(result), expected, problem.dtype, who, TOLERANCE[problem.dtype])
            del result
            seconds = seconds_of(run)
            if best is None or seconds < best["seconds"]:
                best = {"variant": variant, "seconds": seconds, "error": error, "memory": memory}
                self.run = run
        return best

    def time(self, calls):
        run, clock, times = self.run, time.perf_counter_ns, []
        run()
        gc.disable()  # a collection would hit one call by chance
        for _ in range(calls):
            start = clock()
            result = run()
            times.append((clock() - start) * 1e-9)
            del result
        gc.enable()
        return {"times": times}

    def unload(self):
        self.run = None
        gc.collect()
        return {}


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not come between the answers
    name, threads = sys.argv[1], int(sys.argv[2])
    try:
        worker = Worker(name, threads)
    except ImportError as error:
        print(json.dumps({"missing": str(error)}), file=answers, flush=True)
        return
    print(json.dumps({"version": worker.peer.VERSION}), file=answers, flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        do = command.pop("do")
        try:
            answer = getattr(worker, do)(**command)
        except Exception as error:
            traceback.print_exc()
            words = (str(error).splitlines() or [""])[0][:200]
            answer = {"failed": f"{type(error).__name__}: {words}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()

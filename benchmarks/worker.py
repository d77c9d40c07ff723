"""One library in a process of its own; started by compare.py, one JSON object a line each way.

{"do": "load", "problem": {...}, "mode": ..., "expected": path}
    -> {"variant": ..., "seconds": of a call, "error": largest, "memory": bytes}
     | {"refused": why} | {"failed": why}
{"do": "profile"}  -> {"phases": {phase: share of a call}}, where the peer tells
{"do": "time", "calls": k}  -> {"times": [seconds, ...]}
{"do": "unload"}            -> {}
"""

import ctypes
import gc
import importlib
import json
import os
import sys
import time
import traceback

import numpy as np


def _status():
    """Bytes of this process by the kernel's names; Linux only."""
    try:
        with open("/proc/self/status") as status:
            fields = dict(line.split(":", 1) for line in status)
    except OSError:
        return {}
    return {name: int(text.split()[0]) * 1024 for name, text in fields.items() if "kB" in text}


def _return_free_memory():
    gc.collect()
    try:
        # else a call that reuses what the problem before has freed seems to need nothing
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        pass


def peak_memory(run):
    """What `run` returns, and the most bytes that it had in memory beyond what was there before:
    its results, everything that it allocated on the way, and what it keeps for later calls. Pages
    of files, which are code that runs for the first time, are left out. None where the system
    does not tell; exact to some hundred KB, as the kernel counts pages."""
    _return_free_memory()
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak is that from here on
    except OSError:
        return run(), None
    before = _status()
    result = run()
    after = _status()
    try:
        code = max(0, after["RssFile"] - before["RssFile"])
        return result, max(0, after["VmHWM"] - before["VmRSS"] - code)
    except KeyError:
        return result, None


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
        self.run, self.select = None, ()

    def load(self, problem, mode, expected):
        from data import TOLERANCE, check, draw

        problem = _problem(problem)
        why = self.peer.refuses(problem, mode)
        if why:
            return {"refused": why}
        self.unload()
        data = draw(problem, mode)
        expected = dict(np.load(expected))
        variants = self.peer.prepare(problem, mode, data, self.threads)
        best = None
        for variant, (run, outputs, *select) in variants.items():
            for prepare in select:
                prepare()
            result, memory = peak_memory(run)
            who = f"{self.name} ({variant})"
            error = check(outputs(result), expected, problem.dtype, who, TOLERANCE[problem.dtype])
            del result
            seconds = seconds_of(run)
            if best is None or seconds < best["seconds"]:
                best = {"variant": variant, "seconds": seconds, "error": error, "memory": memory}
                self.run, self.select = run, select
        for prepare in self.select:
            prepare()
        return best

    def profile(self):
        return {"phases": self.peer.profile(self.run)}

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
        self.run, self.select = None, ()
        _return_free_memory()
        return {}


def _problem(fields):
    from problems import Problem

    for name in ("lengths", "modes"):
        fields[name] = None if fields[name] is None else tuple(fields[name])
    return Problem(**fields)


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

"""What rnnkernel costs before it computes anything: the time of its import, the size of its wheel.

    python benchmarks/footprint.py

Imports are whole processes, NumPy's and rnnkernel's in turn; the difference of the medians counts.
The wheel is built from this tree, with all instruction sets that its compiler knows.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
WANTED_IMPORT, WANTED_WHEEL = 60, 2e6  # ms beyond NumPy's, bytes


def import_times(rounds):
    """Milliseconds of processes that import nothing, NumPy, and rnnkernel."""
    programs = {"nothing": "pass", "numpy": "import numpy", "rnnkernel": "import rnnkernel"}
    times = {name: [] for name in programs}
    with tempfile.TemporaryDirectory() as folder:  # not where the source tree shadows the package
        for turn in range(rounds + 2):
            for name, program in programs.items():
                start = time.perf_counter()
                subprocess.run([sys.executable, "-c", program], cwd=folder, check=True)
                if turn >= 2:  # files are in the page cache, and compiled
                    times[name].append(1e3 * (time.perf_counter() - start))
    return {name: median(all_times) for name, all_times in times.items()}


def wheel_size():
    with tempfile.TemporaryDirectory() as folder:
        command = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, str(ROOT)]
        environment = {k: v for k, v in os.environ.items() if k != "RNNKERNEL_BUILD_ISAS"}
        subprocess.run([sys.executable, "-m", "pip", *command], env=environment, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        return wheel.name, wheel.stat().st_size


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--no-wheel", action="store_true", help="do not build it")
    arguments = parser.parse_args()
    times = import_times(arguments.rounds)
    print(", ".join(f"{name} {ms:.0f} ms" for name, ms in times.items()))
    beyond = times["rnnkernel"] - times["numpy"]
    print(f"import beyond NumPy's: {beyond:.0f} ms, wanted at most {WANTED_IMPORT}")
    if not arguments.no_wheel:
        name, size = wheel_size()
        print(f"{name}: {size / 1e6:.2f} MB, wanted at most {WANTED_WHEEL / 1e6:.0f}")


if __name__ == "__main__":
    main()

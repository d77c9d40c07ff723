"""What this machine can do at most: FMA peak and read bandwidth, measured by peak.c.

The C file is compiled at run time with the system's C compiler (CC, else cc). Numbers of shared
and virtual machines move by the minute: measure them in the run that they are compared with, and
take the best of many short bursts.

    python benchmarks/roofline.py
"""

import argparse
import atexit
import ctypes
import functools
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

ISAS = ("baseline", "avx2", "avx512")  # as in peak.c
DTYPES = ("float32", "float64")
BURST = 0.02  # seconds


@functools.cache
def _library():
    compiler = shlex.split(os.environ.get("CC", "cc"))
    folder = tempfile.mkdtemp(prefix="rnnkernel-peak-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder) / "peak.so"
    flags = ["-std=gnu11", "-O2", "-ffp-contract=fast", "-fPIC", "-shared", "-pthread"]
    if platform.machine() not in ("x86_64", "AMD64"):
        flags.append("-O3")  # accumulators of the generic loop into registers
    source = Path(__file__).with_name("peak.c")
    done = subprocess.run(
        [*compiler, *flags, str(source), "-o", str(path)], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"peak.c does not compile with {compiler[0]}:\n{done.stderr}")
    library = ctypes.CDLL(str(path))
    library.peak_has.argtypes = [ctypes.c_int]
    library.peak_fma.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_double]
    library.peak_fma.restype = ctypes.c_double
    library.peak_read.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_double,
    ]
    library.peak_read.restype = ctypes.c_double
    return library


def available(isa):
    return bool(_library().peak_has(ISAS.index(isa)))


def isa_in_use():
    """The instruction set that rnnkernel runs; what the peak must be measured with."""
    try:
        from rnnkernel._kernels import selected_isa
    except ImportError:
        return [isa for isa in ISAS if available(isa)][-1]
    isa = selected_isa()
    return isa if isa in ISAS else "baseline"  # NEON is the baseline of peak.c


def measure_peak(isa, dtype="float32", threads=1, bursts=5, seconds=BURST):
    """GFLOP/s of fused multiply-adds on `threads` threads, the best of some bursts."""
    dtype = np.dtype(dtype).name
    if not available(isa):
        raise ValueError(f"isa: this CPU does not run {isa}")
    arguments = (ISAS.index(isa), DTYPES.index(dtype), threads, seconds)
    return max(_library().peak_fma(*arguments) for _ in range(bursts))


@functools.lru_cache(maxsize=1)
def _memory(size):
    """Touched memory, at a multiple of 4 KiB."""
    buffer = np.ones(size + 4096, np.uint8)
    start = -buffer.ctypes.data % 4096
    return buffer[start : start + size]


def measure_bandwidth(size, isa=None, threads=1, bursts=5, seconds=BURST):
    """GB/s of reading `size` bytes again and again, in `threads` equal parts; the best burst."""
    isa = isa or isa_in_use()
    memory = _memory(size)
    arguments = (ISAS.index(isa), memory.ctypes.data, size, threads, seconds)
    rate = max(_library().peak_read(*arguments) for _ in range(bursts))
    if rate < 0:
        raise ValueError(f"size: {size} bytes are too few for {threads} threads")
    return rate


def cache_sizes():
    """Bytes of a core's L1d and L2, and of the L3, by level; what is not known is left out."""
    sizes = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            if (index / "type").read_text().strip() == "Instruction":
                continue
            level, text = (index / "level").read_text().strip(), (index / "size").read_text()
        except OSError:
            continue
        number, unit = int(text.strip().rstrip("KM")), text.strip()[-1]
        sizes[f"L{level}"] = number * {"K": 1024, "M": 1024**2}.get(unit, 1)
    return sizes


def _sizes_to_read(threads):
    """Bytes that live in each level: half of it, and four times the last one for DRAM."""
    caches = cache_sizes() or {"L1": 32 << 10, "L2": 512 << 10, "L3": 16 << 20}
    sizes = {
        level: size // 2 * (threads if level in ("L1", "L2") else 1)
        for level, size in caches.items()
    }
    sizes["DRAM"] = min(4 * max(caches.values()), 1 << 29)
    return sizes


def measure(isa=None, threads=(1,), bursts=5, memory=True):
    """All of it as one dict: {"isa", "peak": {dtype: {threads: GFLOP/s}}, "bandwidth": ...}."""
    isa = isa or isa_in_use()
    counts = sorted(set(threads))
    peak = {d: {str(p): measure_peak(isa, d, p, bursts) for p in counts} for d in DTYPES}
    bandwidth = {}
    if memory:
        for p in counts:
            for level, size in _sizes_to_read(p).items():
                rate = measure_bandwidth(size, isa, p, bursts)
                bandwidth.setdefault(level, {})[str(p)] = rate
        _memory.cache_clear()
    return {"isa": isa, "caches": cache_sizes(), "peak": peak, "bandwidth": bandwidth}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--isa", choices=ISAS, help="default: the one that rnnkernel uses")
    parser.add_argument("--threads", type=int, nargs="*", help="default: one and all cores")
    arguments = parser.parse_args()
    everything = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    )
    found = measure(arguments.isa, arguments.threads or (1, everything))
    for dtype, rates in found["peak"].items():
        for threads, rate in rates.items():
            print(f"{found['isa']:>8} {dtype} FMA, {threads} threads: {rate:8.1f} GFLOP/s")
    for level, rates in found["bandwidth"].items():
        for threads, rate in rates.items():
            print(f"{level:>8} read, {threads} threads: {rate:8.1f} GB/s")


if __name__ == "__main__":
    main()

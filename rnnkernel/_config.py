"""What was compiled, found and chosen."""

import platform
import sys

import numpy as np

from rnnkernel import _kernels, _threads
from rnnkernel._version import version

INT8 = {
    "bytes": "multiplied as integers of three bytes",
    "words": "multiplied as integers of 16 bits",
    "floats": "widened to floats",
}


def config() -> dict:
    """The facts that `show_config` prints."""
    compiler, flags, openmp = _kernels.compiler()
    threads, why = _threads.reason()
    if not openmp:
        threads, why = 1, "compiled without OpenMP"
    elif _kernels.in_forked_child():
        threads, why = 1, "forked after import: OpenMP's threads stayed in the parent"
    return {
        "version": version,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
        "compiler": compiler,
        "flags": flags,
        "openmp": openmp,
        "isa_compiled": _kernels.compiled_isas(),
        "isa_available": _kernels.available_isas(),
        "isa_used": _kernels.selected_isa(),
        "int8_as": _kernels.int8_ways()[0],
        "threads": threads,
        "threads_reason": why,
        "location": str(sys.modules["rnnkernel"].__path__[0]),
    }


def show_config() -> None:
    """Prints version, compiler and flags, instruction sets, threads and the reason for them."""
    facts = config()
    rows = [
        ("rnnkernel", facts["version"]),
        ("Python", f"{facts['python']}, NumPy {facts['numpy']}, {facts['machine']}"),
        ("compiler", facts["compiler"]),
        ("flags", facts["flags"]),
        ("OpenMP", "yes" if facts["openmp"] else "no: serial kernels"),
        ("compiled for", ", ".join(facts["isa_compiled"])),
        ("this CPU runs", ", ".join(facts["isa_available"])),
        ("in use", f"{facts['isa_used']} (RNNKERNEL_ISA forces another)"),
        ("int8 weights", INT8[facts["int8_as"]]),
        ("threads", f"{facts['threads']} ({facts['threads_reason']})"),
        ("installed in", facts["location"]),
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        # a path may have what the terminal has no letter for
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        line = f"{name:<{width}}  {value}".encode(encoding, "backslashreplace")
        print(line.decode(encoding))

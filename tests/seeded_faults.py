"""Plants faults in a copy of the sources, one at a time, and shows which test catches each.

    python tests/seeded_faults.py [WORD ...]      only faults whose title has one of the words

A script, not a test: it compiles the kernels again for every fault. It needs what building needs
(Cython, setuptools, a C compiler) and the packages of the extra `test`. Exits with 1 where a fault
survives, and stops where a fault no longer fits the sources, which is to be mended in
tests/faults.py, the list of all.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from faults import FAULTS

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("csrc", "rnnkernel", "tests", "setup.py", "pyproject.toml", "README.md", "LICENSE")


def pattern(text):
    """Finds the text whatever its line breaks and indentation."""
    return re.compile(r"\s+".join(map(re.escape, text.split())))


def planted(fault, source):
    found = pattern(fault.old).findall(source)
    if len(found) != 1:
        sys.exit(f"{fault.title}: expected once in {fault.file}, found {len(found)}: {fault.old}")
    return source.replace(found[0], fault.new)


def copy_sources(to):
    for name in COPIED:
        path = ROOT / name
        if path.is_dir():
            ignored = shutil.ignore_patterns("*.so", "__pycache__", ".*")
            shutil.copytree(path, to / name, ignore=ignored)
        else:
            shutil.copy2(path, to / name)
    # as the installed package has it
    shutil.copytree(to / "tests/reference", to / "rnnkernel/reference")


def run(tree, *command):
    # one instruction set: all are compiled from the same source; and the copy in every process
    # that a test starts, too
    environment = {
        **os.environ,
        "RNNKERNEL_BUILD_ISAS": "baseline",
        "RNNKERNEL_ISA": "baseline",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(tree), os.environ.get("PYTHONPATH")])),
    }
    return subprocess.run(
        [sys.executable, *command], cwd=tree, env=environment, capture_output=True, text=True
    )


def build(tree):
    done = run(tree, "setup.py", "build_ext", "--inplace")
    if done.returncode != 0:
        sys.exit(f"the build failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")


def failed_test(tree, tests, chosen):
    """The first test that fails, or None."""
    options = ("-x", "-q", "--no-header", "-p", "no:cacheprovider", "-k", chosen)
    done = run(tree, "-m", "pytest", *options, *tests)
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return f"a crash, signal {-done.returncode}"
    failed = re.search(r"^FAILED \S+?::(.+?)(?: - .*)?$", done.stdout, re.M)
    if done.returncode != 1 or not failed:
        sys.exit(f"pytest did not run:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return failed.group(1)


def main(words):
    faults = [f for f in FAULTS if not words or any(w.lower() in f.title.lower() for w in words)]
    if not faults:
        print(f"no title has one of the words {', '.join(words)}", file=sys.stderr)
        return 2
    width = max(len(fault.title) for fault in faults)
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        copy_sources(tree)
        sources = {f.file: (tree / f.file).read_text() for f in faults}
        changed = [planted(f, sources[f.file]) for f in faults]  # all fit, before any is built
        build(tree)
        done = run(tree, "-c", "import rnnkernel; print(rnnkernel.__path__[0])")
        if Path(done.stdout.strip()).resolve() != (tree / "rnnkernel").resolve():
            sys.exit(f"not the copy is imported, but {done.stdout}{done.stderr}")
        for tests, chosen in dict.fromkeys((f.tests, f.chosen) for f in faults):
            caught = failed_test(tree, tests, chosen)
            if caught:
                sys.exit(f"without any fault {caught} fails")
        for fault, text in zip(faults, changed, strict=True):
            start = time.monotonic()
            (tree / fault.file).write_text(text)
            build(tree)
            caught = failed_test(tree, fault.tests, fault.chosen)
            (tree / fault.file).write_text(sources[fault.file])
            survivors += caught is None
            seconds = time.monotonic() - start
            print(f"{fault.title:<{width}}  {caught or 'SURVIVED'}  ({seconds:.0f} s)", flush=True)
    print(f"{len(faults) - survivors} of {len(faults)} faults caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Builds for AArch64 with a cross compiler, and runs tests there under an emulator.

    python tests/emulated.py [--keep FOLDER] [pytest's arguments]

A script, not a test: for Debian and its like on another processor. It needs the packages
gcc-aarch64-linux-gnu and qemu-user, and installs them where it is root. Python and NumPy for
AArch64 come from the package indices into FOLDER, which a later run uses again. Without arguments
it runs CHOSEN: every kernel by value, on odd sizes, in both dtypes.

Exits with 1 where the build or a test fails, and with 2 where nothing could be run.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from seeded_faults import copy_sources

ROOT = Path(__file__).resolve().parent.parent
COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
TOOLS = ("gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross", "qemu-user")
# of the emulated machine, with what they depend on
PACKAGES = ("python3-minimal", "libpython3-dev", "libgomp1", "libstdc++6")
NOT_RUN = 2

CHOSEN = (
    "tests/test_isa.py::test_values_on_each_instruction_set[neon]",
    "tests/test_updates.py",
    "tests/test_readout.py",
    "tests/test_small_weights.py",
    "--deselect=tests/test_small_weights.py::test_the_error_on_a_trained_model",
)


class NotRunError(Exception):
    """What the emulated machine is made of is not to be had here."""


def fetched(*command, **options):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    if done.returncode != 0:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-5:])
        raise NotRunError(f"{shlex.join(map(str, command))[:200]} failed:\n{last}")


def install_tools():
    if shutil.which(COMPILER) and shutil.which(EMULATOR):
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise NotRunError(f"there is no {COMPILER} and {EMULATOR}: apt install {' '.join(TOOLS)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    fetched("apt-get", "update", env=environment)
    fetched("apt-get", "install", "-y", "--no-install-recommends", *TOOLS, env=environment)


def make_root(folder):
    """Debian's Python for AArch64, unpacked and not installed."""
    root = folder / "root"
    if root.exists():
        return root
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise NotRunError("there is no apt-get to fetch Python for AArch64")
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Debug::NoLocking": "true",
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": folder / "cache",
    }
    apt = ["apt-get", *(word for k, v in settings.items() for word in ("-o", f"{k}={v}"))]
    fetched(*apt, "update")
    fetched(*apt, "install", "-y", "--no-install-recommends", "--download-only", *PACKAGES)
    new = folder / "root.new"
    new.mkdir(exist_ok=True)
    for package in sorted((folder / "cache/archives").glob("*.deb")):
        fetched("dpkg-deb", "-x", package, new)
    return new.rename(root)


def pip_install(to, requirements, *options):
    if not to.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target"]
        fetched(*pip, to.with_suffix(".new"), *options, *requirements)
        to.with_suffix(".new").rename(to)
    return to


def listed(name):
    """A list of requirements in pyproject.toml, which alone says which versions."""
    text = (ROOT / "pyproject.toml").read_text()
    return re.findall(r'"(.*?)"', re.search(rf"^{name} = \[(.*?)\]", text, re.M | re.S).group(1))


class Machine:
    """Python on AArch64: `command` runs it, and names itself as sys.executable to what it runs."""

    def __init__(self, folder):
        install_tools()
        self.root = make_root(folder)
        (python,) = (self.root / "usr/bin").glob("python3.[0-9]*[0-9]")
        self.headers = self.root / "usr/include"
        self.python_headers = self.headers / python.name
        needed = listed("requires")
        self.native = pip_install(folder / "native", needed)
        # every glibc since CentOS 7's
        platforms = [f"manylinux{p}_aarch64" for p in ("2014", "_2_27", "_2_28", "_2_34")]
        foreign = ["--only-binary=:all:", "--python-version", python.name.removeprefix("python")]
        foreign += [word for platform in platforms for word in ("--platform", platform)]
        packages = pip_install(folder / "packages", needed + listed("test"), *foreign)
        self.command = folder / "python"
        self.command.write_text(
            "#!/bin/sh\n"
            f'export PYTHONHOME={self.root}/usr PYTHONPATH={packages}:"$PYTHONPATH"\n'
            f'exec {EMULATOR} -L {self.root} -0 {self.command} {python} "$@"\n'
        )
        self.command.chmod(0o755)

    def build(self, tree):
        # Cython's part natively: the C is the same, and a tenth of the time
        environment = {**os.environ, "PYTHONPATH": str(self.native)}
        command = [sys.executable, "setup.py", "--quiet", "--version"]
        subprocess.run(command, cwd=tree, env=environment, check=True, stdout=subprocess.DEVNULL)
        environment = {
            **os.environ,
            "PYTHONPATH": "",
            "CC": f"{COMPILER} -I{self.python_headers} -idirafter {self.headers}",
            "LDSHARED": f"{COMPILER} -shared",
            # the kernels say what is wrong with them; Python's headers are not ours
            "CFLAGS": "-Wall -Wno-psabi",
        }
        command = [self.command, "setup.py", "build_ext", "--inplace"]
        subprocess.run(command, cwd=tree, env=environment, check=True, stdout=subprocess.DEVNULL)

    def test(self, tree, arguments):
        environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [self.command, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
        return subprocess.run(command, cwd=tree, env=environment).returncode


def run(folder, arguments):
    try:
        machine = Machine(folder)
    except NotRunError as error:
        print(f"NOT RUN on AArch64: {error}", file=sys.stderr)
        return NOT_RUN
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        copy_sources(tree)
        try:
            machine.build(tree)
        except subprocess.CalledProcessError as error:
            print(f"the build for AArch64 failed: {error}", file=sys.stderr)
            return 1
        return 1 if machine.test(tree, arguments or CHOSEN) else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    options, arguments = parser.parse_known_args()
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
        return run(options.keep.resolve(), arguments)
    with tempfile.TemporaryDirectory() as folder:
        return run(Path(folder), arguments)


if __name__ == "__main__":
    sys.exit(main())

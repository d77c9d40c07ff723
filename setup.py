"""Builds the Cython modules and the C kernels; pyproject.toml holds everything else.

Each instruction set is one C file compiled with its own flags. All of them are linked into
`rnnkernel._kernels`; the other modules reach the kernels through its table of functions.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent

# Instruction sets: the C file's stem, its flags, and the machines that it is for.
ISAS = {
    "baseline": ([], {"any"}),
    "avx2": (["-mavx2", "-mfma"], {"x86_64", "AMD64"}),
    "avx512": (
        ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"],
        {"x86_64", "AMD64"},
    ),
}

# No contraction: fused multiply-adds are asked for by name. -Wno-psabi: vectors as arguments
# of inlined functions only.
C_FLAGS = ["-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-Wno-psabi"]

C_SOURCES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.[ch]"))


def compiles(compiler, source, flags, link=False):
    """Whether the C compiler accepts a program."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.c"
        path.write_text(source)
        command = [*compiler, *flags, str(path), "-o", str(Path(folder) / "probe")]
        if not link:
            command.append("-c")
        return subprocess.run(command, capture_output=True).returncode == 0


class BuildKernels(build_ext):
    def build_extensions(self):
        compiler = list(getattr(self.compiler, "compiler_so", None) or ["cc"])
        if shutil.which(compiler[0]) is None or not compiles(compiler, "int main(void){return 0;}", []):
            sys.exit(
                f"rnnkernel: no working C compiler: {' '.join(compiler)!r} failed. Building needs GCC "
                "or Clang (Debian: apt install gcc; macOS: xcode-select --install); or set CC."
            )
        openmp = ["-fopenmp"]
        probe = "#include <omp.h>\nint main(void){return omp_get_max_threads() < 1;}"
        if not compiles(compiler, probe, openmp, link=True):
            print("rnnkernel: the compiler has no OpenMP: building serial kernels", file=sys.stderr)
            openmp = []
        version = subprocess.run([compiler[0], "--version"], capture_output=True, text=True).stdout
        isas = [
            name
            for name, (flags, machines) in ISAS.items()
            if machines & {"any", platform.machine()}
            and compiles(compiler, "int main(void){return 0;}", flags)
        ]
        macros = [(f"RK_HAVE_{name.upper()}", "1") for name in isas]
        macros += [
            ("RK_COMPILER", '"' + version.splitlines()[0].replace('"', "") + '"'),
            ("RK_FLAGS", '"' + " ".join(C_FLAGS + openmp) + '"'),
        ]
        for extension in self.extensions:
            extension.extra_compile_args = C_FLAGS + openmp
            extension.extra_link_args = openmp
            if extension.name == "rnnkernel._kernels":
                extension.define_macros += macros
                extension.extra_objects = self.compile_isas(isas)
        super().build_extensions()

    def compile_isas(self, isas):
        def compile_one(name):
            return self.compiler.compile(
                [f"csrc/isa_{name}.c"],
                output_dir=self.build_temp,
                include_dirs=["csrc"],
                extra_postargs=C_FLAGS + ISAS[name][0],
                depends=C_SOURCES,
            )

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return [path for paths in pool.map(compile_one, isas) for path in paths]


def extension(name, sources=()):
    return Extension(
        f"rnnkernel.{name}",
        [f"rnnkernel/{name}.pyx", *sources],
        include_dirs=["csrc"],
        depends=C_SOURCES,
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
    )


setup(
    ext_modules=cythonize(
        [
            extension("_kernels", ["csrc/dispatch.c", "csrc/fp.c"]),
            extension("_packing"),
            extension("_forward"),
            extension("_backward"),
        ],
        build_dir="build/cython",
        compiler_directives={
            "language_level": "3",
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": False,
            "embedsignature": True,
            "freethreading_compatible": True,
        },
    ),
    cmdclass={"build_ext": BuildKernels},
)

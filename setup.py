"""Builds the Cython modules and the C kernels; pyproject.toml holds everything else.

Each instruction set is one C file compiled with its own flags. All of them are linked into
`rnnkernel._kernels`; the other modules reach the kernels through its table of functions.

What is up to date is not compiled again. The environment variables CC, CFLAGS and LDFLAGS have
their usual meaning; `RNNKERNEL_BUILD_ISAS` is a comma-separated list of the instruction sets to
compile beside `baseline`, all that the compiler and the machine know if it is not set.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import setuptools
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

if int(setuptools.__version__.split(".")[0]) < 77:  # the first to read a licence as it stands
    sys.exit(
        f"rnnkernel: building needs setuptools >= 77, got {setuptools.__version__}: `python -m pip "
        "install -U 'setuptools>=77'`, or leave out --no-build-isolation"
    )

if sys.maxsize < 2**32:
    sys.exit(
        "rnnkernel: expected a Python of 64 bits, got one of 32, whose integers hold too few sizes"
    )

ROOT = Path(__file__).parent

# Instruction sets: the C file's stem, its flags, and the machines that it is for.
ISAS = {
    "baseline": ([], {"any"}),
    "avx2": (["-mavx2", "-mfma", "-mf16c"], {"x86_64", "AMD64"}),
    "avx512": (
        ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c", "-mprefer-vector-width=512"],
        {"x86_64", "AMD64"},
    ),
    # AArch64 GCC moves all loads of a step before its FMAs and runs out of registers, 32 or not
    "neon": (["-fno-schedule-insns"], {"aarch64", "arm64"}),
}

# No contraction: fused multiply-adds are asked for by name. -Wno-psabi: vectors as arguments
# of inlined functions only. Whatever CFLAGS say, NaN is NaN and denormals are others' as they were.
C_FLAGS = ["-std=c11", "-O3", "-fno-fast-math", "-ffp-contract=off", "-fno-math-errno"]
C_FLAGS += ["-Wno-psabi"]
# Python's own flags ask for debug information, which would be most of the wheel; names of functions
# that nobody calls from elsewhere are a fifteenth of the rest.
STRIPPED = "-g" not in os.environ.get("CFLAGS", "").split()
if STRIPPED:
    C_FLAGS.append("-g0")

# Inner loops at the start of cache lines and no jump across 32 bytes, where x86 cores of some
# years decode it again at every pass: without these a product is up to a tenth slower, as its
# place in the library happens to be. Only for the kernels, and where the compiler knows them.
PLACEMENT_FLAGS = [
    "-falign-functions=64",
    "-falign-loops=64",
    "-Wa,-mbranches-within-32B-boundaries",
]
# Where floats are computed in more than their own precision GCC's vectors want it (s390x).
PRECISION_FLAGS = ["-fexcess-precision=fast"]

EMPTY_PROGRAM = "int main(void) { return 0; }\n"
# Instructions that the kernels name in assembly, and ask the processor for: not every assembler
# knows them.
INSTRUCTIONS = {
    "RK_HAVE_AVX_VNNI": (r"%{vex%} vpdpbusd %%ymm0, %%ymm1, %%ymm2", "xmm2"),
    "RK_HAVE_DOT_PRODUCT": (r".arch armv8.2-a+dotprod\n\tsdot v2.4s, v1.16b, v0.16b", "v2"),
}
INSTRUCTION_PROGRAM = 'int main(void) {{ __asm__("{}" : : : "{}"); return 0; }}\n'
OPENMP_PROGRAM = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"


def csrc(pattern):
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob(pattern))


class BuildKernels(build_ext):
    def finalize_options(self):
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def build_extensions(self):
        self.compiler_command = list(getattr(self.compiler, "compiler_so", None) or ["cc"])
        if shutil.which(self.compiler_command[0]) is None or not self.compiles(EMPTY_PROGRAM):
            sys.exit(
                f"rnnkernel: no working C compiler: {' '.join(self.compiler_command)!r} failed. "
                "Building needs GCC or Clang and a C library's headers (Debian: apt install gcc "
                "libc6-dev; macOS: xcode-select --install); CC names another compiler."
            )
        openmp = ["-fopenmp"]
        if not self.compiles(OPENMP_PROGRAM, openmp, link=True):
            print("rnnkernel: the compiler has no OpenMP: building serial kernels", file=sys.stderr)
            openmp = []
        strip = ["-Wl,--strip-all"]
        if not STRIPPED or not self.compiles(EMPTY_PROGRAM, strip, link=True):
            strip = []
        version = self.run_compiler("--version").stdout.splitlines()[0]
        isas = self.wanted_isas()
        wanted = PLACEMENT_FLAGS + PRECISION_FLAGS
        self.kernel_flags = [f for f in wanted if self.compiles(EMPTY_PROGRAM, [f])]
        for macro, instruction in INSTRUCTIONS.items():
            if self.compiles(INSTRUCTION_PROGRAM.format(*instruction)):
                self.kernel_flags.append(f"-D{macro}")
        macros = [(f"RK_HAVE_{name.upper()}", "1") for name in isas]
        macros += [
            ("RK_COMPILER", '"' + version.replace('"', "") + '"'),
            ("RK_FLAGS", '"' + " ".join(C_FLAGS + openmp) + '"'),
        ]
        settings = self.settings_file(
            self.compiler_command,
            os.environ.get("LDFLAGS"),
            macros,
            [ISAS[name][0] for name in isas],
            self.kernel_flags,
        )
        for extension in self.extensions:
            extension.extra_compile_args = C_FLAGS + openmp
            extension.extra_link_args = openmp + strip + ["-fno-fast-math"]
            extension.depends.append(settings)
            if extension.name == "rnnkernel._kernels":
                extension.define_macros += macros
                extension.extra_objects = self.compile_isas(isas, settings)
        super().build_extensions()

    def run_compiler(self, *arguments):
        return subprocess.run([*self.compiler_command, *arguments], capture_output=True, text=True)

    def compiles(self, program, flags=(), link=False):
        """Whether the C compiler accepts a program."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "probe.c"
            path.write_text(program)
            action = [] if link else ["-c"]
            arguments = [*flags, *action, str(path), "-o", str(Path(folder) / "probe")]
            return self.run_compiler(*arguments).returncode == 0

    def wanted_isas(self):
        wanted = os.environ.get("RNNKERNEL_BUILD_ISAS")
        names = set(ISAS)
        if wanted is not None:
            names = {"baseline"} | {name.strip() for name in wanted.split(",") if name.strip()}
        if not names <= set(ISAS):
            sys.exit(
                f"rnnkernel: RNNKERNEL_BUILD_ISAS={wanted!r}: expected some of {', '.join(ISAS)}"
            )
        return [
            name
            for name, (flags, machines) in ISAS.items()
            if name in names
            and machines & {"any", platform.machine()}
            and self.compiles(EMPTY_PROGRAM, flags)
        ]

    def settings_file(self, *settings):
        """A file that is newer than what was built with another compiler or other flags."""
        path = Path(self.build_temp) / "settings.txt"
        text = "\n".join(map(repr, settings))
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return str(path)

    def compile_isas(self, isas, settings):
        from setuptools.modified import newer_group  # not in those that are refused above

        def compile_one(name):
            source = f"csrc/isa_{name}.c"
            (built,) = self.compiler.object_filenames([source], output_dir=self.build_temp)
            if self.force or newer_group([source, settings, *csrc("*.h")], built):
                self.compiler.compile(
                    [source],
                    output_dir=self.build_temp,
                    include_dirs=["csrc"],
                    extra_postargs=C_FLAGS + self.kernel_flags + ISAS[name][0],
                )
            return built

        with ThreadPoolExecutor(self.parallel) as pool:
            return list(pool.map(compile_one, isas))


def extension(name, sources=(), depends=("csrc/rnnkernel.h",), macros=()):
    return Extension(
        f"rnnkernel.{name}",
        [f"rnnkernel/{name}.pyx", *sources],
        include_dirs=["csrc", "rnnkernel", numpy.get_include()],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION"), *macros],
        depends=list(depends),
    )


setup(
    ext_modules=cythonize(
        [
            extension("_kernels", ["csrc/dispatch.c", "csrc/fp.c"], csrc("*.[ch]")),
            extension("_panels"),
            extension("_packed_weights"),
            extension("_packed_gradients"),
            extension("_rows"),
            extension("_pool"),
            extension("_crowd"),
            extension("_memory", macros=[("NPY_TARGET_VERSION", "NPY_1_22_API_VERSION")]),
            extension("_scratch"),
            extension("_kept"),
            extension("_states"),
            extension("_projection"),
            extension("_recurrence"),
            extension("_cores"),
            extension("_teamwork"),
            extension("_plan"),
            extension("_forward"),
            extension("_stack"),
            extension("_tape"),
            extension("_arrays"),
            extension("_sizes"),
            extension("_clock"),
            extension("_parameters"),
            extension("_unroll"),
            extension("_plain"),
            extension("_differentiate"),
            extension("_backward"),
            extension("_bptt"),
            extension("_bptt_memory"),
            extension("_steps_back"),
            extension("_chunks"),
            extension("_gradients"),
            extension("_dropout"),
            extension("_updates"),
            extension("_loss"),
            extension("_stream"),
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

"""Every instruction set that is compiled and runs here computes the same values, within rounding.

The choice is made at import, so each gets a process of its own.
"""

import re

import numpy as np
import pytest

from drawn import draw
from helpers import TESTS, check_values, layer_outputs, run_python
from reference import CASES, LSTM_VARIANTS
from rnnkernel import _kernels

ISAS = _kernels.available_isas()
KERNELS = ("test_bits.py", "test_activations.py", "test_updates.py", "test_readout.py")


def test_the_portable_one_is_always_there():
    assert "baseline" in ISAS
    assert len(set(ISAS)) == len(ISAS)


CORE = """
import test_isa
test_isa.check_core()
print("checked")
"""


def check_core():
    """Remainders of every vector width and row tile, some threads, both dtypes, every cell."""
    for case in CASES.values():
        for dtype in (np.float32, np.float64):
            check_values(draw(case, T=5, N=3, I=7, H=11, dtype=dtype))
            check_values(draw(case, T=3, N=14, I=5, H=37, dtype=dtype, bias=False), num_threads=2)
            check_values(draw(case, T=30, N=11, I=3, H=130, dtype=dtype))
            check_values(draw(case, T=2, N=2, I=300, H=64, dtype=dtype))
            check_values(draw(case, T=1, N=1, I=1, H=1, dtype=dtype))
            for n in range(1, 20):
                check_values(draw(case, T=2, N=n, I=n, H=2 * n + 1, dtype=dtype))
    for case in LSTM_VARIANTS.values():
        for dtype in (np.float32, np.float64):
            check_values(draw(case, T=4, N=3, I=7, H=11, dtype=dtype))
            check_values(draw(case, T=2, N=14, I=5, H=37, dtype=dtype, bias=False), num_threads=2)


@pytest.mark.parametrize("isa", ISAS)
def test_values_on_each_instruction_set(isa):
    done = run_python("-c", CORE, RNNKERNEL_ISA=isa)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip() == "checked"


@pytest.mark.parametrize("isa", ISAS)
def test_bits_and_activations_on_each_instruction_set(isa, tmp_path):
    files = [str(TESTS / name) for name in KERNELS]
    # sizes that take long are left to the run on the default set
    options = ["-q", "-x", "-p", "no:cacheprovider", "-k", "not 300 and not 70 and not 67"]
    done = run_python("-m", "pytest", *options, *files, cwd=tmp_path, RNNKERNEL_ISA=isa)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("isa", ISAS)
def test_smaller_weights_on_each_instruction_set(isa, tmp_path):
    """int8 goes by sums of integers of two kinds on some of them."""
    options = ["-q", "-x", "-p", "no:cacheprovider", str(TESTS / "test_small_weights.py")]
    done = run_python("-m", "pytest", *options, cwd=tmp_path, RNNKERNEL_ISA=isa)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("isa", ISAS)
def test_the_forced_one_is_the_one_used(isa):
    """By what the package says of itself."""
    done = run_python("-c", "import rnnkernel as rk; rk.show_config()", RNNKERNEL_ISA=isa)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"(?m)^.*\bused?\b.*\b{isa}\b", done.stdout), done.stdout


@pytest.mark.parametrize("isa", ["no-such-set", "AVX9", "avx2,baseline", " "])
def test_an_unknown_one_is_an_error_that_names_the_variable(isa):
    done = run_python("-c", "import rnnkernel", RNNKERNEL_ISA=isa)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(("ImportError", "ValueError")), done.stderr
    assert "RNNKERNEL_ISA" in last
    assert isa in last
    assert "baseline" in done.stderr  # says what there is


def test_an_empty_variable_is_no_choice():
    done = run_python("-c", "import rnnkernel", RNNKERNEL_ISA="")
    assert done.returncode == 0, done.stderr


def test_a_set_that_this_machine_lacks_is_refused():
    for isa in {"avx2", "avx512", "neon"} - set(ISAS):
        done = run_python("-c", "import rnnkernel", RNNKERNEL_ISA=isa)
        assert done.returncode == 1
        assert "RNNKERNEL_ISA" in done.stderr


def test_instruction_sets_agree_with_one_another(tmp_path):
    """Not in bits, as vector widths order nothing but unit blocks: in every bit but rounding's."""
    problem = draw(CASES["lstm"], T=6, N=5, I=9, H=21)
    here, _ = layer_outputs(problem)
    script = f"""
import re

import numpy as np
from drawn import draw
from helpers import layer_outputs
from reference import CASES
outputs, _ = layer_outputs(draw(CASES["lstm"], T=6, N=5, I=9, H=21))
np.savez({str(tmp_path / "out.npz")!r}, **outputs)
"""
    for isa in ISAS:
        done = run_python("-c", script, RNNKERNEL_ISA=isa)
        assert done.returncode == 0, done.stderr
        with np.load(tmp_path / "out.npz") as there:
            for name, array in here.items():
                np.testing.assert_allclose(there[name], array, rtol=1e-11, atol=1e-13)

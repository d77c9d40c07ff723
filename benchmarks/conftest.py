"""Makes problems.py and data.py importable, and names each benchmark's group after its problem."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import problems  # noqa: E402
from data import draw  # noqa: E402


@pytest.fixture
def drawn(problem):
    """The arrays of the test's problem; skips what rnnkernel cannot run yet."""
    why = problems.missing(problem, "inference")
    if why:
        pytest.skip(why)
    return draw(problem)

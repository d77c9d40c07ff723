"""Makes problems.py and data.py importable, and names each benchmark's group after its problem."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from data import draw  # noqa: E402


@pytest.fixture
def drawn(problem):
    """The arrays of the test's problem."""
    return draw(problem)

"""The two axes that nearly every test runs over: the variants of the cells, and the dtypes; and one
small problem with its layer."""

import os
import zlib

import numpy as np
import pytest

from drawn import SMALL, draw
from helpers import make_layer
from reference import CASES
from rnnkernel import _backward, _crowd, _plan, _pool


@pytest.fixture(autouse=True, scope="session")
def poison():
    """New arrays are full of NaN: what nobody writes is seen."""
    _pool.set_poison(True)
    _pool.set_exact("EXACT_MEMORY" in os.environ)  # CONTRIBUTING.md: under sanitizers
    yield
    _pool.set_poison(False)
    _pool.set_exact(False)


@pytest.fixture(autouse=True, scope="session")
def threads_for_all():
    """Other programs may want the cores, and one thread may be faster: the tests' threads are there
    all the same."""
    _crowd.set_ignored(True)
    _plan.TEAMS_ARE_FREE = True
    yield
    _crowd.set_ignored(False)
    _plan.TEAMS_ARE_FREE = False


@pytest.fixture(autouse=True)
def as_large(request, monkeypatch):
    """Small batches as large ones: every other test sums gradients in shards, and every other has
    the rows of threads in sections."""
    kind = zlib.crc32(request.node.nodeid.encode()) % 4
    if kind % 2:
        monkeypatch.setattr(_backward, "SHARDED_ROWS", 2)
        monkeypatch.setattr(_backward, "SHARDED_STEPS", 0)
    if kind // 2:
        monkeypatch.setattr(_plan, "SECTIONED_ROWS", 1)


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    return request.param


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture
def problem(case, dtype):
    return draw(case, *SMALL, dtype=dtype)


@pytest.fixture
def layer(problem):
    return make_layer(problem)

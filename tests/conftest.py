"""The two axes that nearly every test runs over: the variants of the cells, and the dtypes."""

import numpy as np
import pytest

from reference import CASES


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    return request.param


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param

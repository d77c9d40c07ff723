"""The float64 kernels by their own public interface against finite differences: no reference."""

import numpy as np
import pytest

from drawn import draw
from helpers import check_central_differences

WANTED = [
    pytest.param({}, id="dy_and_dstate"),
    pytest.param({"dy": False}, id="dstate_only"),
    pytest.param({"dstate": False}, id="dy_only"),
]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("sizes", [(4, 3, 4, 5), (3, 2, 3, 11)], ids=str)
def test_every_gradient_equals_central_differences(case, sizes, wanted, bias):
    problem = draw(case, *sizes, dtype=np.float64, seed=1, bias=bias, **wanted)
    check_central_differences(problem)

"""What README.md shows runs as it stands there, one block after another."""

import importlib.util
import re

import numpy as np

import rnnkernel as rk
from helpers import TESTS, assert_same_bits


class Axes:
    """Where there is no matplotlib: what README asks of the lesson's."""

    def __init__(self, layers, x):
        self.figure = self
        self.flows = [rk.gradient_flow(layer, x) for layer in layers.values()]

    def savefig(self, path):
        open(path, "xb").close()


def test_its_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    if importlib.util.find_spec("matplotlib") is None:
        monkeypatch.setattr(rk.plot, "gradient_flow", Axes)
    text = (TESTS.parent / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    assert len(blocks) >= 5
    names: dict = {}
    losses = []
    for block in blocks:
        exec(block, names)
        losses.append(names.get("loss"))

    # what it says of them
    assert names["y"].shape == (50, 32, 64)
    assert names["grads"].parameters["weight_hh_l0"].shape == (256, 64)
    chance = np.log(10)
    assert min(loss for loss in losses if loss is not None) < 0.98 * chance
    assert (tmp_path / "flow.png").exists()
    flows = [rk.gradient_flow(layer, names["x"][:, :4]) for layer in names["layers"].values()]
    left = [flow.dh_norm[0, 0] for flow in flows]
    assert left[0] < 1e-12 < left[1] < 1e-10 and 0.1 < left[2] < 0.4
    # the stream went through all steps, and its second row was left alone
    y, (h, c) = names["layer"](names["x"][:, :4])
    assert_same_bits(names["y_t"], y[-1])
    assert_same_bits(names["kept"][0][0, [0, 1, 3]], h[0, [0, 1, 3]])
    assert not names["kept"][0][0, 2].any() and not names["kept"][1][0, 2].any()

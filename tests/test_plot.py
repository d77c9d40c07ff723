"""`plot.gradient_flow`: which lines it draws; and that matplotlib is imported for that alone."""

import sys
import types

import numpy as np
import pytest

import rnnkernel as rk
from helpers import run_python

X = np.random.default_rng(0).standard_normal((12, 2, 4))


class Axes:
    """What is asked of matplotlib's Axes, written down."""

    def __init__(self):
        self.lines, self.settings = {}, {}

    def plot(self, x, y, *, label):
        assert label not in self.lines
        self.lines[label] = (np.array(x), np.array(y))

    def legend(self):
        self.settings["legend"] = True

    def __getattr__(self, name):
        assert name.startswith("set_")
        return lambda value: self.settings.__setitem__(name.removeprefix("set_"), value)


def layers(**options):
    return [cell(4, 5, dtype=float, rng=0, **options) for cell in (rk.RNN, rk.GRU, rk.LSTM)]


@pytest.mark.parametrize("quantity", ["dh_norm", "jacobian_norm"])
def test_layers_over_one_another(quantity):
    ax = Axes()
    assert rk.plot.gradient_flow(layers(), X, quantity=quantity, ax=ax) is ax
    assert list(ax.lines) == ["RNN", "GRU", "LSTM"]
    for layer, (x, y) in zip(layers(), ax.lines.values(), strict=True):
        np.testing.assert_array_equal(x, np.arange(12))
        np.testing.assert_array_equal(y, getattr(rk.gradient_flow(layer, X), quantity)[0])
    assert ax.settings["yscale"] == "log"
    assert ax.settings["legend"]
    assert "dh_t" in ax.settings["ylabel"]


def test_results_and_labels():
    results = [rk.gradient_flow(layer, X) for layer in layers()]
    ax = rk.plot.gradient_flow(results, labels=["a", "b", "c"], ax=Axes())
    assert list(ax.lines) == ["a", "b", "c"]
    ax = rk.plot.gradient_flow({"first": results[0], "second": layers()[1]}, X, ax=Axes())
    assert list(ax.lines) == ["first", "second"]
    ax = rk.plot.gradient_flow(results[2], labels=["one"], ax=Axes())
    np.testing.assert_array_equal(ax.lines["one"][1], results[2].dh_norm[0])


def test_a_line_for_each_layer_and_direction():
    gru = rk.GRU(4, 5, 2, bidirectional=True, dtype=float, rng=0)
    ax = rk.plot.gradient_flow(gru, X, ax=Axes())
    assert list(ax.lines) == [f"GRU [{k}]" for k in range(4)]


def test_only_what_has_the_quantity():
    ax = rk.plot.gradient_flow(layers(), X, quantity="cell_jacobian_norm", ax=Axes())
    assert list(ax.lines) == ["LSTM"]


def test_zeros_leave_a_gap():
    rnn = layers()[0]
    rnn.parameters["weight_hh_l0"][...] = 0
    _, y = rk.plot.gradient_flow(rnn, X, ax=Axes()).lines["RNN"]
    assert np.isnan(y[:-1]).all()
    assert y[-1] == pytest.approx(1)


def test_arguments_reach_the_measurement():
    one = rk.plot.gradient_flow(layers(), X, clip=rk.Clip(norm=1e-3), ax=Axes())
    other = rk.gradient_flow(layers()[0], X, clip=rk.Clip(norm=1e-3))
    np.testing.assert_array_equal(one.lines["RNN"][1], other.dh_norm[0])


def test_a_figure_of_its_own(monkeypatch):
    """matplotlib need not be installed to test how it is asked."""
    ax = Axes()
    pyplot = types.SimpleNamespace(subplots=lambda: (None, ax))
    monkeypatch.setitem(sys.modules, "matplotlib", types.SimpleNamespace(pyplot=pyplot))
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", pyplot)
    assert rk.plot.gradient_flow(layers(), X) is ax


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'rnnkernel\[plot\]'"):
        rk.plot.gradient_flow(layers(), X)


def test_importing_does_not_import_matplotlib():
    code = "import sys, rnnkernel; sys.exit('matplotlib' in sys.modules)"
    assert run_python("-c", code).returncode == 0


def test_bad_arguments():
    with pytest.raises(ValueError, match="^quantity: expected one of 'dh_norm'"):
        rk.plot.gradient_flow(layers(), X, quantity="dx_norm")
    with pytest.raises(TypeError, match="^x: "):
        rk.plot.gradient_flow(layers())
    with pytest.raises(ValueError, match="^labels: expected 3, one for each, got 2"):
        rk.plot.gradient_flow(layers(), X, labels=["a", "b"])
    for labels in (3, "RNN"):
        with pytest.raises(TypeError, match="^labels: expected a list of names, got "):
            rk.plot.gradient_flow(layers(), X, labels=labels)
    with pytest.raises(TypeError, match="^ax: expected an Axes of matplotlib, got int"):
        rk.plot.gradient_flow(layers(), X, ax=3)
    with pytest.raises(TypeError, match="^layer: expected an RNN, GRU or LSTM, got int"):
        rk.plot.gradient_flow([1], X)
    with pytest.raises(TypeError, match="^layer: expected an RNN, GRU or LSTM, got "):
        rk.plot.gradient_flow(rk.GRU, X)

"""The command as a user runs it: in a process of its own, away from the source tree."""

import io
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

import rnnkernel as rk
from rnnkernel import _kernels, demo, verify

SCRIPT = str(Path(sysconfig.get_path("scripts"), "rnnkernel"))
MODULE = (sys.executable, "-m", "rnnkernel")


@pytest.fixture
def command(tmp_path):
    """Run a command in an empty directory; text of stdout, once the status is as expected."""

    def run(*arguments, status=0, **environment):
        done = subprocess.run(
            arguments,
            cwd=tmp_path,
            env=os.environ | {"PYTHONIOENCODING": "utf-8"} | environment,
            capture_output=True,
            encoding="utf-8",
            timeout=300,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stderr if status else done.stdout

    return run


def checksum(output):
    return re.search(r"checksum of the parameters ([0-9a-f]{12})", output)[1]


@pytest.mark.parametrize("start", [(SCRIPT,), MODULE], ids=["script", "module"])
def test_version_and_info(command, start):
    assert command(*start, "--version").strip() == f"rnnkernel {rk.__version__}"
    assert rk.__version__ in command(*start, "info")


def test_info_tells_what_becomes_of_int8(command):
    assert "widened to floats" in command(*MODULE, "info", RNNKERNEL_ISA="baseline")
    words = "widened to floats" if _kernels.int8_ways() == ["floats"] else "as integers"
    assert words in command(*MODULE, "info", RNNKERNEL_ISA=_kernels.selected_isa())


@pytest.mark.parametrize(
    "arguments", [("verify",), ("demo", "--steps", "5", "--hidden", "8")], ids=["verify", "demo"]
)
def test_who_reads_may_stop(arguments, tmp_path):
    """As head does, after a line."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": tmp_path}
    with subprocess.Popen([*MODULE, *arguments], **pipes) as running:
        assert running.stdout.readline()
        running.stdout.close()
        assert running.stderr.read() == b""
    assert running.returncode == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is Linux's")
def test_a_full_disk_is_one_line(tmp_path):
    pipes = {"stderr": subprocess.PIPE, "text": True, "cwd": tmp_path}
    with open("/dev/full", "w") as full:
        done = subprocess.run([*MODULE, "info"], stdout=full, **pipes)
    assert done.returncode == 1
    assert done.stderr.startswith("rnnkernel: ") and done.stderr.count("\n") == 1


def test_nobody_reads(tmp_path):
    def close():
        os.close(1)

    command = [*MODULE, "demo", "--steps", "5", "--hidden", "8"]
    done = subprocess.run(command, stderr=subprocess.PIPE, preexec_fn=close, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")


def test_info_where_the_terminal_lacks_a_letter(monkeypatch):
    monkeypatch.setattr(rk, "__path__", ["/\u00e9"])
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    rk.show_config()
    terminal.flush()
    assert rb"installed in   /\xe9" in terminal.buffer.getvalue()


def test_a_demo_that_does_not_fit(command):
    text = command(*MODULE, "demo", "--hidden", "1000000000000", status=1)
    assert text.startswith("rnnkernel demo: weight_")
    assert "does not fit in memory" in text and "Traceback" not in text


def test_help_names_the_commands(command):
    text = command(*MODULE, "--help")
    for name in ("info", "demo", "verify"):
        assert name in text


def test_verify_prints_a_table_and_passes(command):
    text = command(*MODULE, "verify")
    rows = [line for line in text.splitlines() if line.endswith("  ok")]
    assert len(rows) == 2 * len(verify.CASES)
    for words in ("RNN", "GRU", "LSTM", "float32", "float64", "relu", "reset before", "clip"):
        assert any(words in row for row in rows), words
    assert "FAILED" not in text
    assert f"all {len(rows)} checks passed" in text


def test_verify_fails_if_a_gradient_is_wrong(monkeypatch, capsys):
    right = rk.GRU.backward

    def wrong(self, *args, **kwargs):
        gradients = right(self, *args, **kwargs)
        gradients.parameters["bias_hh_l0"][-1] *= 1.001
        return gradients

    monkeypatch.setattr(rk.GRU, "backward", wrong)
    monkeypatch.setattr(verify, "CASES", [c for c in verify.CASES if "," not in c.option])
    monkeypatch.setattr(verify, "SIZES", [(3, 2, 3, 5)])
    assert verify.run() == 1
    text = capsys.readouterr().out
    failed = [line for line in text.splitlines() if line.endswith("  FAILED")]
    assert failed and all(line.startswith("GRU") for line in failed)
    assert "FAILED: " in text.splitlines()[-1]


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_demo_shows_everything_and_repeats_itself(command, cell):
    arguments = (*MODULE, "demo", "--cell", cell, "--hidden", "13", "--steps", "3")
    text = command(*arguments, "--seed", "5")
    for words in (
        f"{cell.upper()} with 13 units",
        "before training",
        "3/3",
        "bits/char",
        "chars/s",
        "after training",
        "unigram",
        "Gradient flow",
        "NumPy",
    ):
        assert words in text, words
    assert len(text.splitlines()) < 80
    assert checksum(command(*arguments, "--seed", "5")) == checksum(text)
    assert checksum(command(*arguments, "--seed", "6")) != checksum(text)


def test_demo_prints_to_an_ascii_terminal(command):
    text = command(
        *MODULE, "demo", "--steps", "2", "--hidden", "8", PYTHONIOENCODING="ascii", LC_ALL="C"
    )
    assert text.isascii()
    assert "1e-" in text


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((), "required"),
        (("sing",), "sing"),
        (("demo", "--cell", "elman"), "elman"),
        (("demo", "--steps", "0"), "--steps: expected at least 1, got 0"),
        (("demo", "--hidden", "-3"), "--hidden: expected at least 1, got -3"),
        (("demo", "--hidden", "many"), "many"),
        (("demo", "--seed", "-1"), "--seed: expected at least 0, got -1"),
        (("verify", "--steps", "2"), "--steps"),
    ],
)
def test_bad_options_end_with_status_2(command, arguments, words):
    assert words in command(*MODULE, *arguments, status=2)


# --- the demo's parts -----------------------------------------------------------------------------


def test_the_corpus_is_split_and_plain():
    text = "“Ω – it’s…”\n" * 100
    corpus = demo.Corpus.from_text(text)
    assert len(corpus.train) == 9 * len(corpus.held_out)
    assert demo.decode(corpus.train[:12]) == '"? - it\'s."\n'
    assert 0 < corpus.unigram_bits() < np.log2(len(demo.ALPHABET))


def test_no_paragraph_of_the_text_stands_there_twice():
    text = demo.load_text()
    paragraphs = text.split("\n\n")
    assert len(paragraphs) == len(set(paragraphs)) > 1000


def test_streams_and_windows_cover_the_text_in_order():
    ids = np.arange(3 * 11 + 2)
    parallel = demo.streams(ids, 3)
    np.testing.assert_array_equal(parallel[:, 1], np.arange(11, 22))
    inputs, targets = (
        np.concatenate(part) for part in zip(*demo.windows(parallel, 4), strict=True)
    )
    np.testing.assert_array_equal(inputs, parallel[:-1])
    np.testing.assert_array_equal(targets, parallel[1:])


def test_training_learns_what_can_be_learned():
    pattern = np.tile(np.arange(1, 6), 1000)
    model = demo.CharModel("gru", 16, np.random.default_rng(0))
    before = model.bits_per_character(pattern)
    steps = list(demo.train(model, pattern, 60, 5e-2))
    assert [s.number for s in steps] == list(range(1, 61))
    assert steps[-1].bits < 1 < before
    assert model.bits_per_character(pattern) < 1


def test_the_chart_has_a_bar_for_each_value():
    chart = demo.log_chart(np.array([0.0, 1e-3, 1e-2, 1e-1, np.nan]), unicode=False)
    assert [line[9:].ljust(5)[3] for line in chart].count("#") == 8
    assert all(line[9:].ljust(5)[0] == " " for line in chart[:-2])
    assert any(line.lstrip().startswith("1e-03") for line in chart)
    assert demo.log_chart(np.zeros(4)) == ["(no gradient)"]


@pytest.mark.parametrize("values", [[1.0], [1e-30, 1.0], [5.0, 5.0], [1e30, 1e29]])
def test_the_chart_stays_small(values):
    chart = demo.log_chart(np.array(values))
    assert 3 <= len(chart) <= 14

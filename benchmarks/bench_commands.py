"""Every command of this folder runs to its end: once, as small as it gets. Its times are not
looked at."""

import json
import subprocess
import sys
from pathlib import Path

import compare
import pytest

FOLDER = Path(__file__).resolve().parent
PROBLEM = "policy-lstm-n1-h64"
COMMANDS = {
    "busy_cores": "--seconds 0.01",
    "calls_at_once": "--threads 2 --rounds 1 --seconds 0.01",
    "compare": f"--problems {PROBLEM} rnn-t50-n16-h64 --peers numpy --rounds 1 --burst 0"
    " --name compared --folder .",
    "denormals": "--dtypes float32 --rounds 1",
    "footprint": "--rounds 1 --no-wheel",
    "problems": "",
    "report": "compared.json",
    "roofline": "--threads 1",
    "scaling": "--largest 32 --seconds 0 --folder .",
    "share_of_peak": f"--problems {PROBLEM} --seconds 0",
    "shared_layers": "--cells RNN --sizes 8 --rows 2 --steps 3 --seconds 0",
    "shared_steps": "--cells RNN --sizes 8 --rows 2 --steps 3 --seconds 0",
    "small_calls": "--cases LSTM,2,1,8 --seconds 0.01",
    "training_steps": "--models policy --rounds 1 --seconds 0",
    "stream_steps": "--sizes 8 --rounds 1 --seconds 0 --ids 5",
    "valid_steps": "--threads 1 --sizes 8 --rounds 1",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


def run(name, arguments, folder):
    command = [sys.executable, FOLDER / f"{name}.py", *arguments.split()]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_are_here():
    runs_alone = '__name__ == "__main__"'
    names = {path.stem for path in FOLDER.glob("*.py") if runs_alone in path.read_text()}
    assert names == {*COMMANDS, "worker", "bench_commands"}  # compare.py starts the workers


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - {"compare", "report"}))
def test_runs(name, folder):
    assert run(name, COMMANDS[name], folder).strip()


def test_comparison_and_its_report(folder):
    printed = run("compare", COMMANDS["compare"], folder)
    results = json.loads((folder / "compared.json").read_text())["results"]
    assert {entry["mode"] for entry in results} == {"inference", "rest", "training"}
    for entry in results:
        assert entry["ratio"] > 0 and entry["peak_share"] > 0
    assert run("report", COMMANDS["report"], folder).strip() in printed


def test_who_fails_is_told():
    """A library that fails does not end as one that was not asked."""
    found = {"jax": {"refused": "no"}, "numpy": {"failed": "MemoryError: 8 GB"}, "torch": {}}
    entry = {"problem": {"name": PROBLEM}, "mode": "rest", "peers": found}
    assert compare.failures([entry]) == [f"numpy at {PROBLEM}, rest: MemoryError: 8 GB"]

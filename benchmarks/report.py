"""What compare.py found, as lines, a Markdown table and a picture.

python benchmarks/report.py benchmarks/results/quick.json      makes them again
"""

import argparse
import json
from pathlib import Path

import numpy as np
from limits import KEPT
from peers import NAMES
from problems import find

WANTED = 1.15  # times as fast as the best peer


def seconds(value):
    """With three digits and a fitting unit."""
    for unit, scale in (("s", 1), ("ms", 1e3), ("µs", 1e6)):
        if value * scale >= 1 or unit == "µs":
            return f"{value * scale:.3g} {unit}"
    return ""


def percent(share):
    return "" if share is None else f"{100 * share:.0f} %"


def machine_line(machine, threads):
    peak = ", ".join(
        f"{dtype} {rates['1']:.0f} a core, {rates[str(threads)]:.0f} on {threads} threads"
        for dtype, rates in machine["peak"].items()
    )
    read = ", ".join(f"{level} {rates['1']:.0f}" for level, rates in machine["bandwidth"].items())
    return f"{machine['isa']}: FMA peak (GFLOP/s) {peak}; read by one core (GB/s) {read}"


def line(entry):
    """One problem for the terminal."""
    found = entry["peers"]
    text = f"{entry['problem']['name']:<24} {entry['mode']:<9}"
    ours = found.get("rnnkernel", {})
    if "median" in ours:
        text += (
            f" {seconds(ours['median']):>8}  peak {percent(entry['peak_share']):>5}"
            f"  roofline {percent(entry['roofline_share']):>5}"
        )
    elif ours:
        text += f" rnnkernel: {ours.get('failed') or ours.get('refused')}"
    if entry["ratio"]:
        text += f"  {entry['ratio']:5.2f} x {entry['best_peer']}"
        text += "  BEHIND" if entry["ratio"] < 1 else ""
    failed = [f"{name}: {one['failed']}" for name, one in found.items() if "failed" in one]
    return text + "".join(f"\n    {words}" for words in failed if not words.startswith("rnnkernel"))


def _versus(entry, name=None):
    """A peer, the best one by default, and which of its variants was timed."""
    name = name or entry["best_peer"]
    variant = entry["peers"][name]["variant"]
    return name if variant in ("module", "scan", "request", "run", "loop") else f"{name}: {variant}"


def summary_text(document):
    lines = []
    for mode, one in document["summary"].items():
        lines.append(
            f"{mode}: {one['geometric_mean']:.2f} times the best peer (geometric mean of "
            f"{one['problems']} problems), least {one['least']:.2f}"
        )
        for name, theirs in one["peers"].items():
            lines.append(
                f"  {theirs['geometric_mean']:6.2f} times {name} ({theirs['problems']} problems), "
                f"least {theirs['least']:.2f}, behind in {len(theirs['behind'])}"
            )
        behind = ", ".join(one["behind"]) or "none"
        lines.append(f"  a peer is ahead in {len(one['behind'])}: {behind}")
        lines.append(f"  less than {WANTED} times the best peer in {len(one['short'])}")
    return "\n".join(lines)


def markdown(document):
    machine, threads = document["machine"], document["threads"]
    versions = ", ".join(f"{name} {text}" for name, text in document["versions"].items())
    out = [
        f"{machine['cpu']}, {threads} threads, {machine['system']}; {versions}.",
        "",
        machine_line(document["roofline"], threads) + ".",
        "",
    ]
    if document["summary"]:
        out += ["```", summary_text(document), "```", ""]
    names = [name for name in NAMES if name in document["versions"]]
    for mode in dict.fromkeys(entry["mode"] for entry in document["results"]):
        entries = [entry for entry in document["results"] if entry["mode"] == mode]
        out += [f"## {mode}", "", "Median times; shares are of rnnkernel's best call.", ""]
        heads = ["problem", "sizes", *names, "peak", "roofline", "ratio to the best"]
        out += _table(heads, 2, [_cells(entry, names) for entry in entries])
        out += _shortfalls(entries)
        out += _memory(entries, names)
    if document["skipped"]:
        out += ["Left out:", ""]
        out += [f"- {one['problem']}, {one['mode']}: {one['why']}" for one in document["skipped"]]
        out.append("")
    return "\n".join(out)


def _table(heads, words, rows):
    """Markdown; the first `words` columns are words, the others numbers."""
    lines = ["| " + " | ".join(heads) + " |"]
    lines.append("|" + " --- |" * words + " ---: |" * (len(heads) - words))
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def _shortfalls(entries):
    """The problems that are not as far ahead as wanted, and where their time goes."""
    short = [entry for entry in entries if entry["ratio"] and entry["ratio"] < WANTED]
    if not short:
        return [f"Every problem is at least {WANTED} times as fast as the best peer.", ""]
    rows = []
    for entry in sorted(short, key=lambda entry: entry["ratio"]):
        median, spent = entry["peers"]["rnnkernel"]["median"], time_spent(entry)
        rows.append(
            [
                entry["problem"]["name"],
                _versus(entry),
                limited_by(spent),
                f"{entry['ratio']:.2f}",
                f"{seconds(median)} to {seconds(median * entry['ratio'] / WANTED)}",
                *(percent(spent[kind]) for kind in ("set-up", "packing", "waiting")),
                ", ".join(f"{percent(spent[kind])} {kind}" for kind in entry["limits"]),
                percent(spent["kernels"]),
            ]
        )
    heads = ["problem", "best peer", "limited by", "ratio", f"for {WANTED} from"]
    heads += ["set-up", "packing", "waiting", "roofline", "kernels"]
    return [
        f"Less than {WANTED} times the best peer, and where the time of the calling thread goes: "
        "*set-up* is what Python does, *packing* that of weights and their gradients, *waiting* "
        "for other threads, *roofline* what the products and the reading of weights need at "
        "least, and *kernels* what they take beyond it.",
        "",
        *_table(heads, 3, rows),
    ]


def time_spent(entry):
    """Shares of rnnkernel's median."""
    median, phases = entry["peers"]["rnnkernel"]["median"], entry["phases"] or {}
    shares = {
        "set-up": phases.get("set-up", 0.0),
        "packing": phases.get("pack", 0.0) + phases.get("unpack", 0.0),
        "waiting": phases.get("waiting", 0.0),
    }
    shares |= {kind: seconds / median for kind, seconds in entry["limits"].items()}
    return shares | {"kernels": max(0.0, 1 - sum(shares.values()))}


def limited_by(spent):
    """In words, the largest share; what bounds the roofline, where kernels are short of it."""
    words = {
        "set-up": "set-up of the call",
        "packing": "packing weights",
        "waiting": "waiting for threads",
        "arithmetic": "arithmetic",
    }
    most = max(spent, key=spent.get)
    if most == "kernels":
        bounds = [kind for kind in spent if kind not in ("set-up", "packing", "waiting", most)]
        return f"kernels ({max(bounds, key=spent.get)})"
    return words.get(most, f"reading weights from {most}")


def _memory(entries, names):
    """Peaks beside the peers', and the calls that take more than the bound."""
    training, rows, over = entries[0]["mode"] == "training", [], []
    for entry in entries:
        found, bound = entry["peers"], sum(entry["memory_bound"].values())
        peaks = [found.get(name, {}).get("memory") for name in names]
        row = [f"{peak / 1e6:.1f}" if peak is not None else "" for peak in peaks]
        row = [entry["problem"]["name"], *row, f"{bound / 1e6:.1f}"]
        if training:
            row += _numbers_kept(entry)
        ours = found.get("rnnkernel", {}).get("memory")
        if ours is not None and ours > bound:
            row[1] = f"**{row[1]}**"
            beyond = f"{entry['problem']['name']} by {(ours - bound) / 1e6:.1f} MB"
            over.append(beyond + _excuse(entry, ours - bound))
        rows.append(row)
    if not any(any(row[1 : 1 + len(names)]) for row in rows):
        return []
    words = "Peak memory of a first call in MB, its results among it, and a bound: "
    if training:
        words += (
            "gradients, packed weights, a chunk of time, and 6 H numbers a step and row for LSTM, "
            "5 H for GRU, 2 H for RNN. *Kept* is what is left for these, where it is most of it; "
            "*x* is the copy that training keeps, so that gradients are exact whatever x has "
            "become: the bound does not allow for it."
        )
    else:
        packed = "" if entries[0]["mode"] == "rest" else ", packed weights"
        words += f"y, a chunk of time{packed}."
    words += f" rnnkernel exceeds it in {len(over)}: {', '.join(over)}." if over else ""
    heads = ["problem", *names, "bound", *(["kept / H", "x / H"] if training else [])]
    return [words, "", *_table(heads, 1, rows)]


def _numbers_kept(entry):
    """In training: the peak without gradients, packed weights and a chunk, in numbers a step, row
    and unit of every layer and direction, and how many of these a copy of x is."""
    parts, problem = dict(entry["memory_bound"]), entry["problem"]
    allowed, peak = parts.pop("kept"), entry["peers"].get("rnnkernel", {}).get("memory")
    if peak is None or allowed < 0.5 * sum(entry["memory_bound"].values()):
        return ["", ""]
    most, x = KEPT[problem["cell"]], _copy_of_x(entry)
    kept = (peak - sum(parts.values())) / allowed * most
    return [f"{kept:.1f} of {most}", f"{x / allowed * most:.1f}"]


def _copy_of_x(entry):
    problem = entry["problem"]
    return problem["T"] * problem["N"] * problem["I"] * np.dtype(problem["dtype"]).itemsize


def _excuse(entry, beyond):
    """What of an excess is known."""
    problem = entry["problem"]
    if entry["mode"] == "training":
        return " (x)" if beyond <= _copy_of_x(entry) else ""
    return " (between layers)" if problem["layers"] > 1 else ""


def _cells(entry, names):
    found = entry["peers"]
    cells = [entry["problem"]["name"], find(entry["problem"]["name"]).sizes]
    for name in names:
        one = found.get(name, {})
        cells.append(
            seconds(one["median"]) if "median" in one else "failed" if "failed" in one else ""
        )
    cells += [percent(entry["peak_share"]), percent(entry["roofline_share"])]
    ratio = f"{entry['ratio']:.2f} ({_versus(entry)})" if entry["ratio"] else ""
    cells.append(f"**{ratio}**" if entry["ratio"] and entry["ratio"] < 1 else ratio)
    return cells


def main():
    import pictures

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", help="JSON files that compare.py wrote")
    for name in parser.parse_args().results:
        path = Path(name)
        document = json.loads(path.read_text())
        path.with_suffix(".md").write_text(markdown(document))
        pictures.picture(document, path.with_suffix(".png"))
        print(summary_text(document))


if __name__ == "__main__":
    main()

"""What compare.py found, as lines, a Markdown table and a picture.

python benchmarks/report.py benchmarks/results/quick.json      makes them again
"""

import json
import sys
from pathlib import Path

COLUMNS = ("rnnkernel", "torch", "onnxruntime", "openvino", "jax", "numpy")


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


def summary_text(document):
    lines = []
    for mode, one in document["summary"].items():
        lines.append(
            f"{mode}: {one['geometric_mean']:.2f} times the best peer (geometric mean of "
            f"{one['problems']} problems), least {one['least']:.2f}"
        )
        behind = ", ".join(one["behind"]) or "none"
        lines.append(f"  a peer is ahead in: {behind}")
    return "\n".join(lines)


def markdown(document):
    machine, threads = document["machine"], document["threads"]
    versions = ", ".join(f"{name} {text}" for name, text in document["versions"].items())
    out = [
        f"{machine['cpu']}, {threads} threads, {machine['system']}; {versions}.",
        "",
        machine_line(document["roofline"], threads) + ".",
        "",
        "Median times; shares of the FMA peak and of the roofline are rnnkernel's best call; "
        "memory is what a call takes beyond its arguments.",
        "",
    ]
    names = [name for name in COLUMNS if name in document["versions"]]
    for mode in dict.fromkeys(entry["mode"] for entry in document["results"]):
        heads = ["problem", "sizes", *names, "peak", "roofline", "ratio to the best", "memory (MB)"]
        out += [f"### {mode}", "", "| " + " | ".join(heads) + " |"]
        out.append("| --- | --- |" + " ---: |" * (len(heads) - 2))
        for entry in document["results"]:
            if entry["mode"] == mode:
                out.append("| " + " | ".join(_cells(entry, names)) + " |")
        out.append("")
    if document["summary"]:
        out += ["```", summary_text(document), "```", ""]
    if document["skipped"]:
        out += ["Left out:", ""]
        out += [f"- {one['problem']}, {one['mode']}: {one['why']}" for one in document["skipped"]]
        out.append("")
    return "\n".join(out)


def _cells(entry, names):
    from problems import find

    found = entry["peers"]
    cells = [entry["problem"]["name"], find(entry["problem"]["name"]).sizes]
    for name in names:
        one = found.get(name, {})
        cells.append(
            seconds(one["median"]) if "median" in one else "failed" if "failed" in one else ""
        )
    cells += [percent(entry["peak_share"]), percent(entry["roofline_share"])]
    ratio = f"{entry['ratio']:.2f} ({entry['best_peer']})" if entry["ratio"] else ""
    cells.append(f"**{ratio}**" if entry["ratio"] and entry["ratio"] < 1 else ratio)
    ours, best = found.get("rnnkernel", {}), found.get(entry["best_peer"], {})
    memory = [f"{one['memory'] / 1e6:.1f}" for one in (ours, best) if "memory" in one]
    cells.append(" / ".join(memory))
    return cells


def picture(document, path):
    """Times and shares of every problem; a heat map for the sweep. False without Matplotlib."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        return False
    results = [
        entry for entry in document["results"] if "median" in entry["peers"].get("rnnkernel", {})
    ]
    if not results:
        return False
    sweep = all(entry["problem"]["name"].startswith("sweep-") for entry in results)
    (_heat_map if sweep else _bars)(plt, results, document, path)
    return True


MARKERS = dict(zip(COLUMNS, "DosP^v", strict=True))


def _bars(plt, results, document, path):
    labels = [
        f"{entry['problem']['name']} {entry['mode'][0]}, "
        f"{seconds(entry['peers']['rnnkernel']['median'])}"
        for entry in results
    ]
    places = range(len(results))
    figure, (left, right) = plt.subplots(
        1,
        2,
        figsize=(13, 1.8 + 0.24 * len(results)),
        sharey=True,
        gridspec_kw={"width_ratios": [2, 1]},
        layout="constrained",
    )
    for name in document["versions"]:
        at = [k for k in places if "median" in results[k]["peers"].get(name, {})]
        left.scatter(
            [
                results[k]["peers"][name]["median"] / results[k]["peers"]["rnnkernel"]["median"]
                for k in at
            ],
            at,
            label=name,
            marker=MARKERS[name],
            s=26,
            zorder=3,
        )
    left.set_xscale("log")
    left.axvline(1, color="gray", linewidth=0.8)
    left.set_xlabel("median time over rnnkernel's: left of 1 is faster")
    left.set_yticks(places, labels, fontsize=8)
    left.invert_yaxis()
    left.grid(alpha=0.3, which="both", axis="x")
    figure.legend(*left.get_legend_handles_labels(), fontsize=8, loc="outside lower left", ncols=6)
    roof = [entry["roofline_share"] for entry in results]
    peak = [entry["peak_share"] for entry in results]
    right.barh(places, roof, color="lightsteelblue", label="of the roofline")
    right.barh(places, peak, height=0.4, color="steelblue", label="of the FMA peak")
    right.set_xlim(0, max(1.0, *roof))
    right.set_xlabel("rnnkernel's share")
    right.grid(alpha=0.3, axis="x")
    right.legend(fontsize=8)
    figure.suptitle(
        f"{document['machine']['cpu']}, {document['threads']} threads "
        "(i inference, t training, r at rest; rnnkernel's time)",
        fontsize=10,
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _heat_map(plt, results, document, path):
    import numpy as np

    modes = list(dict.fromkeys(entry["mode"] for entry in results))
    kinds = ("ratio", "peak_share", "roofline_share")
    titles = ("times the best peer", "share of the FMA peak", "share of the roofline")
    figure, axes = plt.subplots(
        len(modes), 3, figsize=(15, 4.4 * len(modes)), squeeze=False, layout="constrained"
    )
    hidden = sorted({entry["problem"]["H"] for entry in results})
    batches = sorted({entry["problem"]["N"] for entry in results})
    for row, mode in zip(axes, modes, strict=True):
        for axis, kind, title in zip(row, kinds, titles, strict=True):
            grid = np.full((len(hidden), len(batches)), np.nan)
            for entry in results:
                if entry["mode"] == mode and entry[kind] is not None:
                    one = entry["problem"]
                    grid[hidden.index(one["H"]), batches.index(one["N"])] = entry[kind]
            if kind == "ratio":
                shown = np.log2(grid)
                axis.imshow(shown, origin="lower", cmap="RdYlGn", vmin=-2, vmax=2, aspect="auto")
            else:
                axis.imshow(grid, origin="lower", cmap="viridis", vmin=0, vmax=1, aspect="auto")
            for (i, j), value in np.ndenumerate(grid):
                if not np.isnan(value):
                    dark = kind != "ratio" and value < 0.6
                    axis.text(
                        j,
                        i,
                        f"{value:.2g}",
                        ha="center",
                        va="center",
                        fontsize=7,
                        color="white" if dark else "black",
                    )
            axis.set_xticks(range(len(batches)), batches)
            axis.set_yticks(range(len(hidden)), hidden)
            axis.set_xlabel("N")
            axis.set_ylabel("H = I")
            axis.set_title(f"LSTM {mode}: {title}", fontsize=10)
    figure.suptitle(f"{document['machine']['cpu']}, {document['threads']} threads", fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    for name in sys.argv[1:]:
        path = Path(name)
        document = json.loads(path.read_text())
        path.with_suffix(".md").write_text(markdown(document))
        picture(document, path.with_suffix(".png"))
        print(summary_text(document))


if __name__ == "__main__":
    main()

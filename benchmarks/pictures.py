"""Pictures of what compare.py found: times and shares of every problem, heat maps of the sweep."""

from peers import NAMES
from report import WANTED, seconds


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


MARKERS = dict(zip(NAMES, "DosP^v", strict=True))


def _bars(plt, results, document, path):
    labels = [
        f"{entry['problem']['name']} {entry['mode'][0]}, "
        f"{seconds(entry['peers']['rnnkernel']['median'])}"
        for entry in results
    ]
    places = range(len(results))
    figure, (left, middle, right) = plt.subplots(
        1,
        3,
        figsize=(17, 1.8 + 0.24 * len(results)),
        sharey=True,
        gridspec_kw={"width_ratios": [3, 3, 2]},
        layout="constrained",
    )
    for name in document["versions"]:
        at = [k for k in places if "median" in results[k]["peers"].get(name, {})]
        times = [results[k]["peers"][name]["median"] for k in at]
        ours = [results[k]["peers"]["rnnkernel"]["median"] for k in at]
        ratios = [time / own for time, own in zip(times, ours, strict=True)]
        style = {"label": name, "marker": MARKERS[name], "s": 26, "zorder": 3}
        left.scatter([1e3 * time for time in times], at, **style)
        middle.scatter(ratios, at, **style)
    left.set_xlabel("median time, ms")
    left.set_yticks(places, labels, fontsize=8)
    left.invert_yaxis()
    middle.axvline(1, color="gray", linewidth=0.8)
    middle.axvline(WANTED, color="gray", linewidth=0.8, linestyle=":")
    middle.set_xlabel("median time over rnnkernel's: left of 1 is faster")
    for axis in (left, middle):
        axis.set_xscale("log")
        axis.grid(alpha=0.3, which="both", axis="x")
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

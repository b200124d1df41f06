"""Draws the speed-ups of docs/results/unseen.json, a dot for each network, as the README's picture.

python benchmarks/speed_up.py --out docs/results/unseen-speed-up.png
"""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "unseen.json"
BASELINE = "Adam, cosine"
# From the records' names to those of the picture, with a colour.
SHOWN = {
    "universal": ("unf()", "C0", "o"),
    "Muon, cosine": ("tuned Muon", "C1", "D"),
    "Adam 1e-3": ("Adam 1e-3", "0.6", "s"),
}


def draw(tasks: dict) -> Figure:
    """A row a network, from the largest gain of `unf()` to the smallest."""
    speed = {name: {task: row[name]["over"][BASELINE] for task, row in tasks.items()} for name in SHOWN}
    order = sorted(tasks, key=lambda task: speed["universal"][task])
    figure = Figure(figsize=(7.5, 5.2), layout="constrained")
    axes = figure.subplots()
    axes.axvline(1, color="0.3", linewidth=1)
    for name, (label, color, marker) in SHOWN.items():
        axes.plot([speed[name][task] for task in order], order, marker, color=color, label=label, markersize=6)
    axes.set_xscale("log")
    axes.set_xticks([0.1, 0.2, 0.5, 1, 2, 5, 10], ["0.1", "0.2", "0.5", "1", "2", "5", "10"])
    axes.xaxis.minorticks_off()
    axes.set_xlabel("steps of Adam at its best rate, with a cosine, for the same loss, over the steps taken")
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.legend(loc="lower right")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=str(RESULTS.with_name("unseen-speed-up.png")))
    out = parser.parse_args().out
    draw(json.loads(RESULTS.read_text())["tasks"]).savefig(out, dpi=110)
    print(f"Wrote {out}")


if __name__ == "__main__":
    main()

"""Plots accuracy against bytes, from the results of an experiment whose rows are `NAME, BUDGET`.

    python -m experiments.frontier EXPERIMENT

writes pictures/EXPERIMENT.png: a line for each name, and for each baseline of the rows that have
some. Bars are standard deviations between seeds.
"""

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments import rows

PICTURES = Path(__file__).parent / "pictures"
Points = dict[str, list[tuple[int, float, float]]]  # of each name: bytes, mean and sd in percent


def points(found: list[rows.Row]) -> Points:
    """What is plotted, of pooled rows."""
    lines: Points = defaultdict(list)

    def add(name: str, size: int, accuracy: dict[str, Any]) -> None:
        lines[name].append((size, 100 * accuracy["mean"], 100 * (accuracy["sd"] or 0.0)))

    for row in found:
        add(row["label"].rpartition(", ")[0], row["bytes"], row["accuracy"])
        for name, baseline in row["baselines"].items():
            add(
                name.replace("_uint8", ", uint8").replace("_solved", ", solved"),
                baseline["bytes"],
                baseline["accuracy"],
            )
    return {name: sorted(values) for name, values in lines.items()}


def picture(lines: Points) -> Figure:
    """Bytes on a logarithmic axis; baselines are dashed."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, values in lines.items():
        known = name.partition(",")[0] in ("random", "kmeans", "herding", "class_mean")
        size, mean, spread = zip(*values)
        axes.errorbar(size, mean, spread, label=name, marker="o", capsize=3,
                      linestyle="--" if known else "-", alpha=0.6 if known else 1)  # fmt: skip
    axes.set(xscale="log", xlabel="bytes", ylabel="test accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure


if __name__ == "__main__":
    experiment = sys.argv[1]
    PICTURES.mkdir(exist_ok=True)
    picture(points(rows.by_label(rows.read(experiment)))).savefig(
        PICTURES / f"{experiment}.png", dpi=110
    )

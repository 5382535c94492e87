"""Differences between rows of an experiment that share seeds, teachers and students.

    python -m experiments.pairs EXPERIMENT

prints, for each pair of rows that `PAIRS` names, and for the baselines beside a row, the mean
difference in points of test accuracy over seeds, students averaged, and its standard error.
"""

import math
import statistics
import sys
from typing import Any

from d3jax.run.tables import markdown_table
from experiments import rows

# (one, other, what the difference is of); `row: baseline` is a baseline beside a row.
PAIRS = (
    ("real start", "sre2l", "start from real images"),
    ("variance weight", "real start", "weight on variances"),
    ("dwa", "variance weight", "adjustment"),
    ("dwa", "random direction", "its direction"),
    ("dwa, radius 0.15", "variance weight", "ten times as far"),
    ("dwa, radius 1.5", "variance weight", "a hundred times"),
    ("dwa, rate 0.03", "dwa", "a smaller learning rate of images"),
    ("dwa", "sre2l", "all of DWA"),
    ("dwa", "dwa: random", "optimizing, against random images of the same labels"),
    ("dwa", "dwa: rded", "optimizing, against RDED"),
    ("dwa, rate 0.03", "dwa: random", "the same of smaller steps, against random images"),
    ("dwa: random", "dwa: random_hard", "the teacher's labels, of random images"),
    ("gaussian", "dwa", "Gaussians and a decoder for pixels"),
)


def paired(one: dict[int, float], other: dict[int, float]) -> tuple[float, float | None, int]:
    """Mean difference, its standard error (None of one seed), and how many seeds both have."""
    differences = [one[seed] - other[seed] for seed in sorted(set(one) & set(other))]
    number = len(differences)
    error = statistics.stdev(differences) / math.sqrt(number) if number > 1 else None
    return statistics.mean(differences), error, number


def by_seed(found: list[rows.Row]) -> dict[str, dict[int, float]]:
    """Accuracies by seed of every row, and of every baseline beside one."""
    known: dict[str, dict[int, float]] = {}

    def add(name: str, seeds: list[int], accuracy: dict[str, Any]) -> None:
        known.setdefault(name, {}).update(zip(seeds, accuracy["per_seed"], strict=True))

    for row in found:
        add(row["label"], row["seeds"], row["accuracy"])
        for name, baseline in row["baselines"].items():
            add(f"{row['label']}: {name}", row["seeds"], baseline["accuracy"])
    return known


def table(found: list[rows.Row]) -> str:
    """The pairs of which both have a seed in common, as Markdown."""
    known, cells = by_seed(found), []
    for one, other, what in PAIRS:
        if set(known.get(one, ())) & set(known.get(other, ())):
            mean, error, number = paired(known[one], known[other])
            spread = "" if error is None else f" ± {100 * error:.1f}"
            cells.append([f"{one} - {other}", what, f"{100 * mean:+.1f}{spread}", number])
    return markdown_table(["rows", "difference of", "points", "seeds"], cells)


if __name__ == "__main__":
    print(table(rows.read(sys.argv[1])))

"""What the examples of docs/examples.md share: their command line, and how a result is kept.

`results/NAME.json` holds a row for each point of the figure, with mean and standard deviation
between seeds, and the cells of the table that `python -m experiments.tables` puts into the page.
"""

import argparse
import datetime
import functools
import statistics
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from d3jax.host.files import write_json
from d3jax.run.tables import markdown_table
from d3jax.synthetic import pixels
from d3jax.types import PyTree, Synthetic
from experiments import rows
from experiments.overview import PICTURES
from experiments.provenance import COMMIT, hardware


def parser(doc: str | None, datasets: Sequence[str], seeds: str) -> argparse.ArgumentParser:
    """--dataset, one of `datasets` (default the first), and --seeds."""
    made = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    made.add_argument("--dataset", choices=datasets, default=datasets[0])
    made.add_argument("--seeds", type=numbers, default=seeds, help=f"default {seeds}")
    return made


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers with commas between, for argparse."""
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        said = f"give whole numbers with commas between, such as 0,1,2, not {text!r}"
        raise argparse.ArgumentTypeError(said) from None


@functools.cache  # what is compiled for it is compiled once
def _pixels(shape: tuple[int, int, int], classes: int, number: int) -> Synthetic:
    return pixels.create(
        image_shape=shape, num_classes=classes, num_items=number, label_kind="probabilities"
    )


def stored(images: np.ndarray, labels: np.ndarray, classes: int) -> tuple[Synthetic, PyTree]:
    """Normalized images f[N, H, W, C] of any classes i[N] as data that students train on."""
    theta = {"data": {"images": jnp.asarray(images)}, "labels": jax.nn.one_hot(labels, classes)}
    return _pixels(images.shape[1:], classes, len(images)), theta


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and sample standard deviation of the seeds' values; that of one seed is None."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "sd": sd, "per_seed": list(map(float, values))}


def percent(values: dict[str, Any]) -> str:
    """Mean ± standard deviation between seeds, in percent."""
    return rows.percent(values, len(values["per_seed"]))


def line(axes: Axes, x: str, points: list[rows.Row], label: str, style: str = "-") -> None:
    """Accuracy of rows against their field `x`; bars are standard deviations between seeds."""
    accuracy = [row["accuracy"] for row in points]
    axes.errorbar(
        [row[x] for row in points],
        [100 * each["mean"] for each in accuracy],
        [100 * (each["sd"] or 0) for each in accuracy],
        label=label, marker="o", capsize=3, linestyle=style,
    )  # fmt: skip
    axes.set(ylabel="test accuracy, %")
    axes.grid(alpha=0.3)


def keep(
    name: str,
    found: list[rows.Row],
    header: Sequence[str],
    cells: Sequence[Sequence[str]],
    figure: Figure,
    seeds: Sequence[int],
    remark: str,
) -> None:
    """Prints the table, and writes it, the rows and the figure."""
    machine, date = hardware(), datetime.date.today().isoformat()
    number = "1 seed" if len(seeds) == 1 else f"±: between {len(seeds)} seeds"
    note = f"{remark} {number}. {machine}; {date}; {COMMIT}."
    result = {
        "experiment": name,
        "rows": found,
        "seeds": list(seeds),
        "hardware": machine,
        "date": date,
        "commits": [COMMIT],
        "header": list(header),
        "cells": [list(row) for row in cells],
        "note": note,
    }
    rows.RESULTS.mkdir(exist_ok=True)
    write_json(rows.RESULTS / f"{name}.json", result)
    figure.savefig(PICTURES / f"{name}.png", dpi=100)
    print(f"{markdown_table(header, cells).rstrip()}\n\n{note}")

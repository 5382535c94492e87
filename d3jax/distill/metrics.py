"""What each outer step measured: a file of one JSON row a step."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from d3jax.host import clocks
from d3jax.host.files import room_for, write_text

METRICS = "metrics.jsonl"  # the file's name in a run's folder


def rows(
    values: dict[str, np.ndarray], done: int, step: int, spent: clocks.Spent
) -> list[dict[str, float]]:
    """A row for each of the `done` steps after `step`, from f[chunk] of each metric.

    Its clocks are what all steps so far took, their compilation not counted.
    """
    return [
        {"step": step + i + 1}
        | {name: round(seconds, 3) for name, seconds in spent.items()}
        | {name: float(values[name][i]) for name in sorted(values)}
        for i in range(done)
    ]


def lines(rows: list[dict[str, float]]) -> str:
    """Rows as the file's text."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def append(path: Path, rows: list[dict[str, float]]) -> None:
    """Adds rows to a file, which need not be there."""
    text = lines(rows)
    with room_for(path, len(text)), path.open("a") as file:
        file.write(text)


def read(path: Path) -> list[dict[str, float]]:
    """The whole rows of a file; a last line that a kill cut short is left out."""
    found = []
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    for line in text.splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def forget_after(path: Path, step: int) -> clocks.Spent:
    """Drops rows that will be run, and written, again; returns the time spent on the others."""
    kept = [row for row in read(path) if row["step"] <= step]
    write_text(path, lines(kept))
    return clocks.of(kept[-1]) if kept else clocks.nothing()


def measured(row: Mapping[str, float]) -> dict[str, float]:
    """What the method measured in a step, without step and clocks."""
    return {name: value for name, value in row.items() if name not in ("step", *clocks.NAMES)}


def note(rows: list[dict[str, float]]) -> str:
    """The mean of several rows in a line, without the norms of updates."""
    names = [name for name in measured(rows[0]) if "/update_" not in name]
    means = {name: float(np.mean([row[name] for row in rows])) for name in names}
    return "  ".join(f"{name} {value:.4g}" for name, value in means.items())

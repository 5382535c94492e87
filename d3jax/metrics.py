"""What each outer step measured: a file of one JSON row a step."""

import json
from pathlib import Path

import numpy as np

from d3jax.files import write_text

METRICS = "metrics.jsonl"  # the file's name in a run's folder


def rows(
    values: dict[str, np.ndarray], done: int, step: int, seconds: float
) -> list[dict[str, float]]:
    """A row for each of the `done` steps after `step`, from f[chunk] of each metric."""
    return [
        {"step": step + i + 1, "seconds": round(seconds, 3)}
        | {name: float(values[name][i]) for name in sorted(values)}
        for i in range(done)
    ]


def lines(rows: list[dict[str, float]]) -> str:
    """Rows as the file's text."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def append(path: Path, rows: list[dict[str, float]]) -> None:
    """Adds rows to a file, which need not be there."""
    with path.open("a") as file:
        file.write(lines(rows))


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


def forget_after(path: Path, step: int) -> float:
    """Drops rows that will be run, and written, again; returns the seconds spent on the others."""
    kept = [row for row in read(path) if row["step"] <= step]
    write_text(path, lines(kept))
    return kept[-1]["seconds"] if kept else 0.0


def note(rows: list[dict[str, float]]) -> str:
    """The mean of several rows in a line."""
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return "  ".join(f"{n} {v:.4g}" for n, v in means.items() if n not in ("step", "seconds"))

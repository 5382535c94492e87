"""Results as files: a row for each run, so that rows of another machine or day stay when one comes.

`results/EXPERIMENT.json` holds rows with a label, the seeds that they stand for (one, or several
where an earlier version had pooled them), and what was reached. A table pools the rows of a label:
its standard deviations are between seeds, one distillation each, students averaged.
"""

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from d3jax.host.files import write_json

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


def read(experiment: str) -> list[Row]:
    """The rows of an experiment; none if it has not been run."""
    path = RESULTS / f"{experiment}.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []


def write(experiment: str, rows: Iterable[Row], labels: Sequence[str]) -> None:
    """Adds rows to the file, in the order of `labels`.

    A row takes the place of earlier ones of the same label that stand for its seed, or that were
    run with another configuration (in a field that both name).
    """
    kept = read(experiment)
    for new in rows:
        kept = [row for row in kept if not _superseded(row, new)] + [new]
    order = {label: number for number, label in enumerate(labels)}
    kept.sort(key=lambda row: (order.get(row["label"], len(order)), row["seeds"]))
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / f"{experiment}.json", {"experiment": experiment, "rows": kept})


def _superseded(old: Row, new: Row) -> bool:
    if old["label"] != new["label"]:
        return False
    same = _agree(old["configuration"], new["configuration"])
    return not same or bool(set(old["seeds"]) & set(new["seeds"]))


def _agree(old: Any, new: Any) -> bool:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return all(_agree(old[key], new[key]) for key in set(old) & set(new))
    return old == new


def by_label(rows: Sequence[Row]) -> list[Row]:
    """One row a label: accuracies over seeds (see `pooled`), seconds averaged."""
    labels = dict.fromkeys(row["label"] for row in rows)
    return [_pooled_row([row for row in rows if row["label"] == label]) for label in labels]


def pooled(accuracies: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and sample standard deviation between seeds, from those of groups of students.

    Args:
      accuracies: {mean, sd, students, per_seed} of each group: a seed's students, or those of
        several seeds, equally many of each, as an earlier version pooled them; sd is over all
        students of the group.

    Returns:
      mean and sd of the seeds' means (sd is None of one seed); students_sd, the standard deviation
      between students of one seed (of several, the root of the mean variance; None where a seed has
      one student); students, how many in all; per_seed.
    """
    per_seed = [value for group in accuracies for value in group["per_seed"]]
    students = sum(group["students"] for group in accuracies)
    within = 0.0  # squares within seeds: all of a group, less those between its seeds
    for group in accuracies:
        each = group["students"] / len(group["per_seed"])
        between = each * sum((value - group["mean"]) ** 2 for value in group["per_seed"])
        within += max(0.0, (group["students"] - 1) * group["sd"] ** 2 - between)
    freedom = students - len(per_seed)
    return {
        "mean": statistics.mean(per_seed),
        "sd": statistics.stdev(per_seed) if len(per_seed) > 1 else None,
        "students_sd": math.sqrt(within / freedom) if freedom else None,
        "students": students,
        "per_seed": per_seed,
    }


def _pooled_row(rows: Sequence[Row]) -> Row:
    first = rows[0]
    runs = [len(row["seeds"]) for row in rows]

    def average(values: Iterable[float | None]) -> float | None:
        known = [(n, value) for n, value in zip(runs, values, strict=True) if value is not None]
        return sum(n * value for n, value in known) / sum(n for n, _ in known) if known else None

    joined = {
        "seeds": [seed for row in rows for seed in row["seeds"]],
        "experts_cpu_seconds": average(row["experts_cpu_seconds"] for row in rows),
        "student_seconds": average(row.get("seconds", {}).get("student") for row in rows),
    }
    # Older rows have but the whole run's, students and baselines too.
    exact = all("distill_cpu_seconds" in row for row in rows)
    found = [row.get("distill_cpu_seconds", row.get("cpu_seconds")) for row in rows]
    joined["distill_cpu_seconds" if exact else "cpu_seconds"] = average(found)
    for name in first:
        if name in ("accuracy", "before") or name.startswith("accuracy_"):
            joined[name] = pooled([row[name] for row in rows if name in row])
    if "attack" in first:
        joined["attack"] = {n: pooled([row["attack"][n] for row in rows]) for n in first["attack"]}
    names = dict.fromkeys(name for row in rows for name in row["baselines"])
    joined["baselines"] = {
        name: _pooled_baseline([r["baselines"][name] for r in rows if name in r["baselines"]])
        for name in names
    }
    plain = {name: value for name, value in first.items() if not name.endswith("cpu_seconds")}
    return {**plain, **joined}


def _pooled_baseline(rows: Sequence[Row]) -> Row:
    both = {
        "accuracy": pooled([row["accuracy"] for row in rows]),
        "floats": rows[0]["floats"],
        "bytes": rows[0].get("bytes"),  # of newer rows
        "learning_rates": [rate for row in rows for rate in row["learning_rates"]],
    }
    if "nearest_neighbours" in rows[0]:
        both["nearest_neighbours"] = pooled([row["nearest_neighbours"] for row in rows])
    return both


def percent(accuracy: dict[str, Any], seeds: int | None = None) -> str:
    """Mean and standard deviation between seeds, in percent; of one seed the mean, and that it is.

    seeds: how many the table's row has, as its first cell says; then only other numbers are said.
    """
    number = len(accuracy["per_seed"])
    mean = f"{100 * accuracy['mean']:.1f}"
    spread = "" if accuracy["sd"] is None else f" ± {100 * accuracy['sd']:.1f}"
    told = number == seeds if seeds is not None else number > 1
    return mean + spread + ("" if told else " (1 seed)" if number == 1 else f" ({number} seeds)")


def seconds(row: Row) -> str:
    """Of a row of `by_label`: the wall seconds of training a student; nothing where not known."""
    found = row["student_seconds"]
    return "" if found is None else f"{found:.0f}" if found >= 10 else f"{found:.1f}"

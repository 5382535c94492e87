"""Renders the tables of README, docs and experiments' docstrings from results, and draws two plots.

    python -m experiments.tables [--check]
    python -m experiments.tables --accelerator FILE

A table stands between a line that holds `table: NAME` and one that holds `end of table`; NAME is
that of a file in experiments/results/ or benchmarks/results/, accelerator_SECTION, or one of
`overview.py`, which draws the plots of docs/pictures/ too. With --check nothing is written, and the
exit code is 1 where a file is out of step. The second line prints the tables of a file that
`python -m benchmarks accelerator` has written, such as a dry run's.
"""

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks.accelerator import table as accelerator_table
from benchmarks.accelerator import tables as accelerator_tables
from benchmarks.suite import peers_table
from d3jax.host.files import write_text
from d3jax.run.tables import markdown_table
from experiments import overview
from experiments.rows import by_label, percent, seconds

ROOT = Path(__file__).parent.parent
FILES = (
    ROOT / "README.md",
    ROOT / "benchmarks" / "README.md",
    ROOT / "benchmarks" / "ACCELERATOR.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "experiments").glob("*_*.py")),
)
KNOWN = ("random", "best_random", "kmeans", "herding", "class_mean",
         "random_uint8", "kmeans_uint8", "herding_uint8",
         "random_solved", "kmeans_solved", "herding_solved", "rded", "random_hard")  # fmt: skip
_TABLE = re.compile(r"(?m)^(.*\btable: (\w+).*\n)((?:.*\n)*?)(.*\bend of table\b.*\n)")


def rendered(name: str) -> str:
    """The table of NAME.json, or of experiments/overview.py, as Markdown."""
    if name in overview.TABLES:
        return overview.TABLES[name]()
    file, _, section = name.partition("_") if name.startswith("accelerator_") else (name, "", "")
    paths = [ROOT / room / "results" / f"{file}.json" for room in ("experiments", "benchmarks")]
    found = [path for path in paths if path.exists()]
    if not found:
        return "Not measured here yet.\n"
    results = json.loads(found[0].read_text())
    if found[0] == paths[1]:
        return _measured(name, results, section.replace("_", " "))
    if "cells" in results:  # as its experiment has written them
        table = markdown_table(results["header"], results["cells"])
        return f"{table.rstrip()}\n\n{results['note']}\n"
    runs = results["rows"]
    rows = by_label(runs)
    subsets = sorted({key for row in rows for key in row if key.startswith("accuracy_")})
    baselines = [name for name in KNOWN if any(name in row["baselines"] for row in rows)]
    more = [name for name in ("before", "attack") if any(name in row for row in rows)]
    header = ["run", "floats", "bytes", "test accuracy %"]
    header += [{"before": "before the steps", "attack": "flipped; other classes"}[n] for n in more]
    header += [key.removeprefix("accuracy_").replace("_", " ") for key in subsets]
    header += [", ".join(name.rsplit("_", 1)) if name in KNOWN[5:] else name for name in baselines]
    header += ["sd of students", "seeds x students", "CPU s, experts", "CPU s, outer steps",
               "s, a student"]  # fmt: skip
    table = []
    for row in rows:
        cells = [row["label"], f"{row['floats']:,}", f"{row['bytes']:,}", percent(row["accuracy"])]
        seeds, accuracy = len(row["seeds"]), row["accuracy"]
        cells += [_more(name, row.get(name), seeds) for name in more]
        cells += [percent(row[key], seeds) if key in row else "" for key in subsets]
        cells += [_baseline(row["baselines"].get(name), seeds) for name in baselines]
        spread = accuracy["students_sd"]
        cells += ["" if spread is None else f"{100 * spread:.1f}"]
        # Older rows of pretrained networks count their seconds with the whole run's.
        trained = row["experts_cpu_seconds"] or not row["seconds"].get("experts")
        cells += [f"{seeds} x {accuracy['students'] // seeds}"]
        cells += [f"{row['experts_cpu_seconds']:,.0f}" if trained else ""]
        exact = "distill_cpu_seconds" in row
        cells += [f"{row['distill_cpu_seconds']:,.0f}" if exact else f"≤ {row['cpu_seconds']:,.0f}"]
        cells += [seconds(row)]
        table.append(cells)
    machines = sorted({row["hardware"] for row in runs})
    dates = sorted({row["date"] for row in runs})
    commits = sorted({commit for row in runs for commit in row["commits"]})
    note = ""
    if any(len(row["seeds"]) > 1 for row in rows):
        note += "±: between seeds, students averaged. "
    if any(row["accuracy"]["students_sd"] is not None for row in rows):
        note += "sd of students: of the run's, within a seed. "
    note += "s, a student: wall seconds of training, by those that train at once. "
    note += f"{', '.join(machines)}; {', '.join(dates)}; commits {', '.join(commits)}."
    if any(commit.endswith("+") for commit in commits):
        note += " +: with changes that were committed later."
    if not all("distill_cpu_seconds" in row for row in rows):
        note += " ≤: the whole run's CPU seconds: compilation, students, baselines and source"
        note += " networks too."
    compared = [baseline for row in rows for baseline in row["baselines"].values()]
    rates = {rate for baseline in compared for rate in baseline["learning_rates"]}
    if any(name.endswith("_uint8") for name in baselines):
        note += (
            " uint8: a byte a pixel, for as many bytes as the row's arrays have; other baselines"
        )
        note += " for as many floats."
    if rates:
        note += " Baselines' students train at the best of several learning rates (chosen: "
        note += ", ".join(sorted({f"{rate:g}" for rate in rates}, key=float))
        chosen = all(row["configuration"].get("choose_learning_rate") for row in runs)
        note += "), those of distilled data at the "
        note += "best of those and the learned one." if chosen else "learned one."
    return f"{markdown_table(header, table).rstrip()}\n\n{note}\n"


def _baseline(row: dict[str, Any] | None, seeds: int) -> str:
    """A baseline's accuracy; in brackets that of the nearest stored images."""
    if row is None:
        return ""
    neighbours = row.get("nearest_neighbours")
    tail = f" (kNN {100 * neighbours['mean']:.1f})" if neighbours else ""
    return percent(row["accuracy"], seeds) + tail


def _more(name: str, value: dict[str, Any] | None, seeds: int) -> str:
    if value is None:
        return ""
    if name == "before":
        return percent(value, seeds)
    return "; ".join(_of_networks(value[n], seeds) for n in ("flipped_after", "others_after"))


def _of_networks(accuracy: dict[str, Any], seeds: int) -> str:
    """An attack's success differs between networks more than a mean says."""
    spread = accuracy["students_sd"]
    tail = "" if spread is None else f" (sd of networks {100 * spread:.1f})"
    return percent(accuracy, seeds) + tail


def _measured(name: str, rows: list[dict[str, Any]], section: str) -> str:
    """A table of benchmarks/results."""
    if section:
        rows = [row for row in rows if row["section"] == section and "skipped" not in row]
    versions = {f"{k} {v}" for row in rows for k, v in row["versions"].items()}
    said = [", ".join(sorted({row[key] for row in rows})) for key in ("hardware", "date", "commit")]
    note = f"{said[0]}; {', '.join(sorted(versions))}; {said[1]}; commits {said[2]}."
    if section:
        header, cells = accelerator_table(rows, section)
    elif name in ("peers", "students"):  # their modules import torch
        header, cells = peers_table(rows)
    else:
        benchmark = importlib.import_module(f"benchmarks.{name}")
        header, cells = benchmark.table(rows)
        if hasattr(benchmark, "remarks"):
            note += f" {benchmark.remarks(rows)}"
    return f"{markdown_table(header, cells).rstrip()}\n\n{note}\n"


def in_step(text: str) -> str:
    """`text` with every table rendered afresh."""
    return _TABLE.sub(lambda m: f"{m[1]}\n{rendered(m[2])}\n{m[4]}", text)


def main(arguments: list[str]) -> None:
    """Renders every file and draws every plot, or checks them."""
    if arguments[:1] == ["--accelerator"]:
        for section, table in accelerator_tables(json.loads(Path(arguments[1]).read_text())):
            print(f"\n## {section}\n\n{markdown_table(*table)}")
        return
    stale = [path for path in FILES if in_step(path.read_text()) != path.read_text()]
    for path in stale:
        if "--check" not in arguments:
            write_text(path, in_step(path.read_text()))
        print(f"{'out of step' if '--check' in arguments else 'rendered'}: {path.name}")
    plots = overview.stale_plots()
    if "--check" not in arguments:
        overview.draw()
    if plots:
        print(f"{'out of step' if '--check' in arguments else 'drawn'}: {', '.join(plots)}")
    if (stale or plots) and "--check" in arguments:
        raise SystemExit(1)


if __name__ == "__main__":
    main(sys.argv[1:])

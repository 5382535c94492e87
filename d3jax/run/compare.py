"""Finished runs side by side: `d3jax compare`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from d3jax.host import files
from d3jax.host.progress import Reporter
from d3jax.run import pictures, tables
from d3jax.run.folder import flat
from d3jax.types import InputError


def compare(runs: Sequence[Path], picture: Path, reporter: Reporter) -> list[dict[str, Any]]:
    """Runs `d3jax compare`: how runs differ, a table of accuracies and sizes, and their plot.

    Returns the table's rows, as `tables.comparison_table` takes them.

    Raises:
      InputError: fewer than two runs, or one that is not finished.
    """
    if len(runs) < 2:
        raise InputError("compare takes the folders of two finished runs, or more")
    files.check_target(picture)
    names = _names(runs)
    reports = [read_report(run) for run in runs]
    options = [options_of(report) for report in reports]
    reporter.console.print(_differences(names, options))
    rows = _rows(names, reports)
    reporter.console.print(tables.comparison_table(rows))
    pictures.sizes(picture, rows)
    reporter.say(f"picture: {picture}")
    return rows


def _names(runs: Sequence[Path]) -> list[str]:
    """The folders' own names, where they differ."""
    short = [run.resolve().name for run in runs]
    return short if len(set(short)) == len(short) else [str(run) for run in runs]


def read_report(run: Path) -> dict[str, Any]:
    """The report of a finished run; raises InputError where there is none."""
    try:
        found = files.read_json(run / "report.json")
    except FileNotFoundError:
        raise InputError(
            f"there is no finished run in {run}: it has no report.json; the same "
            f"`d3jax distill` command goes on where it was"
        ) from None
    needed = {"method", "configuration", "accuracy", "bytes"}
    if not isinstance(found, dict) or not needed <= set(found):
        raise InputError(f"{run / 'report.json'} is no report of a run")
    return found


def options_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run by dotted names, its method first."""
    return flat({"method": report["method"], **report["configuration"]})


def _differences(names: list[str], options: list[dict[str, Any]]) -> Table:
    """The options that are not the same in all runs; one that a run does not have says nothing."""
    table = tables.plain_table("What differs")
    table.add_column("option", no_wrap=True)
    for name in names:
        table.add_column(escape(name), overflow="fold")
    for option in sorted({name for own in options for name in own}):
        values = [own.get(option) for own in options]
        if any(value != values[0] for value in values):
            table.add_row(option, *(escape(_told(value)) for value in values))
    return table


def _told(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "-" if value is None else str(value)


def _rows(names: list[str], reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each run, and then the baselines; those that several runs share once."""
    own, others = [], []
    for name, report in zip(names, reports, strict=True):
        first, *rest = tables.accuracy_rows(report)
        own.append({**first, "name": name})
        for row in rest:
            known = [(seen["accuracy"], seen["bytes"]) for seen in others]
            if (row["accuracy"], row["bytes"]) not in known:
                others.append({**row, "name": f"{row['name']} ({name})", "baseline": True})
    return [*own, *others]

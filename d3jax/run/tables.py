"""Tables, on the console, as HTML and as Markdown."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from d3jax.types import InputError

_COLUMNS = ("method", "accuracy\n%", "sd of\nstudents", "floats", "bytes", "s per\nstudent")


def plain_table(title: str, **options: Any) -> Table:
    """A table without lines: narrow, and the same in ASCII."""
    return Table(title=title, title_justify="left", box=None, pad_edge=False, **options)


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A table of methods: test accuracy, stored floats and bytes, and seconds to train a student.

    Each row is {"name": str, "accuracy": {"mean", "sd", "students"}, "floats": int, "bytes": int,
    "seconds": float}, accuracies as fractions; None where a number is not known. A `note` of a row
    stands below. One run is one seed, so that no accuracy has a standard deviation between seeds:
    what is shown is that between the students, and how many they are.
    """
    table = plain_table(
        "Students of the stored data alone, one seed",
        caption=escape(_remarks(rows)) or None,
        caption_justify="left",
    )
    name, *numbers = _COLUMNS
    table.add_column(name, overflow="fold")
    for column in numbers:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        size = "-" if row["bytes"] is None else decimal(int(row["bytes"]))
        table.add_row(*map(escape, _cells(row, size)))
    return table


def accuracy_table(finished: dict[str, Any]) -> Table:
    """A report's method and baselines, one row each."""
    return comparison_table(accuracy_rows(finished))


def accuracy_rows(finished: dict[str, Any]) -> list[dict[str, Any]]:
    """A report's method, or each network that judged it, and its baselines, as
    `comparison_table` takes them."""
    rows = [
        {
            "name": name,
            "accuracy": own["accuracy"],
            "floats": finished["floats"],
            "bytes": finished["bytes"]["total"],
            "seconds": own["seconds"]["student"],
        }
        for name, own in finished.get("networks", {finished["method"]: finished}).items()
    ]
    return rows + [{"name": name, **row} for name, row in finished.get("baselines", {}).items()]


def row_line(row: Mapping[str, Any]) -> str:
    """The accuracy of a row of `comparison_table`, in a line."""
    _, mean, spread, *_ = _cells({"floats": None, "bytes": 0, **row})
    return f"{row['name']}: test accuracy {mean} %, sd (students) {spread}"


def html_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The same table as HTML."""
    lines = [
        "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in line)
        for tag, line in (("th", _COLUMNS), *(("td", _cells(row)) for row in rows))
    ]
    remarks = f"<caption>{html.escape(_remarks(rows))}</caption>" if _remarks(rows) else ""
    return f"<table>{remarks}" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _cells(row: Mapping[str, Any], size: str | None = None) -> tuple[str, ...]:
    """A row's cells; `size` is how its bytes are written, default in full."""
    mean, sd, students = (row["accuracy"][name] for name in ("mean", "sd", "students"))
    spread = "-" if sd is None or students < 2 else f"{100 * sd:.2f}"
    return (
        row["name"],
        "-" if mean is None else f"{100 * mean:.2f}",
        f"{spread} ({students})",
        "-" if row["floats"] is None else f"{row['floats']:,}",
        f"{int(row['bytes']):,}" if size is None else size,
        "-" if row["seconds"] is None else _seconds(row["seconds"]),
    )


def _remarks(rows: Sequence[Mapping[str, Any]]) -> str:
    """What has to be said of the rows."""
    most = rows[0]["accuracy"]["students"]
    remarks = [f"{row['name']}: {row['note']}." for row in rows if row.get("note")]
    if any((row.get("asked_students") or most) < most for row in rows):
        remarks.append(
            f"Baselines have fewer students: --baseline-students {most} judges all alike."
        )
    if any(row["name"].endswith("_uint8") for row in rows):
        remarks.insert(0, "uint8: whole images of a byte a pixel, for as many bytes.")
    return " ".join(remarks)


def ledger_table(ledger: Mapping[str, int]) -> Table:
    """A table of where the bytes of an artifact go: {"total", part: bytes, ...}, total last."""
    table = plain_table("Stored bytes", show_footer=True)
    total = ledger["total"]
    table.add_column("part", footer="total")
    table.add_column("bytes", footer=f"{total:,}", justify="right")
    table.add_column("share", footer=decimal(total), justify="right")
    for part, size in ledger.items():
        if part != "total":
            table.add_row(
                escape(part), f"{size:,}", f"{100 * size / total:.1f} %" if total else "-"
            )
    return table


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table, one line each for `header` and `rows`.

    Cells are written by `str`; a column of numbers is right-aligned. Raises InputError where a row
    has not as many cells as the header.
    """
    for row in rows:
        if len(row) != len(header):
            raise InputError(f"a table of {len(header)} columns has a row of {len(row)} cells")
    numeric = [
        bool(rows) and all(isinstance(row[i], int | float | np.number) for row in rows)
        for i in range(len(header))
    ]
    lines = [header, ["---:" if right else "---" for right in numeric], *rows]
    return "".join(
        "| "
        + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in line)
        + " |\n"
        for line in lines
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f}" if seconds < 10 else f"{seconds:,.0f}"

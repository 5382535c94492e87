"""What is to be measured where an accelerator is at hand for a quarter of an hour; ACCELERATOR.md.

    python -m benchmarks accelerator --out FILE [--minutes 8] [--data cifar10.npz] [--dry]

Rows come dearest questions first, and FILE is written after each. A row that no longer fits into
the minutes is left out; one that fails says so, and the others go on. `--dry` measures every kind
of row at toy size, on a CPU within a minute. What runs here needs jax, flax, optax, chex and
matplotlib; the comparison with PyTorch needs torch; nothing needs tyro, TFDS, tensorstore or orbax.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from benchmarks.accelerator import dispatch, parts, real, steps
from benchmarks.accelerator.case import DRY, FULL, Case, Size
from benchmarks.accelerator.dispatch import smallest as smallest
from benchmarks.outer_steps import lowered_by
from benchmarks.suite import Row, Table, stamp
from d3jax.host.files import write_json
from d3jax.run.tables import markdown_table

Rows = dict[tuple[str, str], Row]  # by section and work


def cases(size: Size, data: Path | None, rows: Rows) -> list[Case]:
    """Every row, dearest first: the first of each question, then the rest of each.

    `rows` are those that have been measured; more are added to it meanwhile.
    """

    def rate(work: str) -> float:
        """Outer steps a second, 0 where they were not measured."""
        return rows.get(("outer steps", work), {}).get("steps_per_second", 0.0)

    several = [
        parts.products(size),
        steps.outer_steps(size),
        steps.peers(size),
        parts.convolutions(size),
        parts.training(size),
        dispatch.chunks(size),
        dispatch.subtasks(size),
        [] if data is None else real.cases(size, data, rate),
        dispatch.flags(size),
    ]
    found = [case for section in several for case in section]
    return sorted(found, key=lambda case: case.rank)  # stable: within a rank as listed


def measure(chosen: list[Case], rows: Rows, out: Path, minutes: float) -> None:
    """Measures the cases that fit into so many minutes, into `rows` and the file `out`."""
    begun = time.monotonic()
    guessed = taken = 0.0
    for case in chosen:
        name = case.section, case.work
        left = 60 * minutes - (time.monotonic() - begun)
        pace = max(1.0, taken / guessed) if guessed else 1.0
        row = {"benchmark": "accelerator", "section": case.section, "work": case.work, **stamp()}
        if pace * case.seconds > left:
            rows.setdefault(name, {**row, "skipped": f"not measured: {max(left, 0):.0f} s left"})
        else:
            start = time.monotonic()
            try:
                # Rows that say nothing of precision have XLA's own, TF32 for products of float32.
                with jax.default_matmul_precision("tensorfloat32"):
                    row |= case.measure()
            except (Exception, SystemExit) as error:
                row["failed"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            row["row_seconds"] = time.monotonic() - start
            guessed, taken = guessed + case.seconds, taken + row["row_seconds"]
            rows[name] = row
        write_json(out, list(rows.values()))
        print(_said(rows[name]), flush=True)


def _said(row: Row) -> str:
    numbers = {k: v for k, v in row.items() if isinstance(v, int | float) and math.isfinite(v)}
    found = {name: float(f"{value:.3g}") for name, value in numbers.items()}
    return f"{row['section']}: {row['work']} {row.get('skipped') or row.get('failed') or found}"


def main(arguments: list[str] | None = None) -> None:
    """Measures, and prints the tables."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks accelerator", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the rows")
    parser.add_argument("--minutes", type=float, default=8.0, help="begin no row that ends later")
    parser.add_argument("--data", type=Path, help="CIFAR-10 as .npz, for rows on real images")
    parser.add_argument(
        "--only", nargs="+", metavar="TEXT", help="rows whose names hold one of these"
    )
    parser.add_argument("--dry", action="store_true", help="every kind of row, at toy size")
    options = parser.parse_args(arguments)
    if options.data is not None and not options.data.exists():
        parser.error(f"there is no file {options.data}")
    rows: Rows = {}
    if options.out.exists():
        rows = {(row["section"], row["work"]): row for row in json.loads(options.out.read_text())}
    chosen = [
        case
        for case in cases(DRY if options.dry else FULL, options.data, rows)
        if not options.only or any(text in f"{case.section}: {case.work}" for text in options.only)
    ]
    if not chosen:
        parser.error(f"no row's name holds {' or '.join(options.only)}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with lowered_by("lax" if options.dry else None):  # of shortest trace, and a GPU's default
        measure(chosen, rows, options.out, options.minutes)
    for name, table in tables([*rows.values()]):
        print(f"\n{name}\n\n{markdown_table(*table)}")


# Which of a row's fields each section's table shows: (column, field, form).
Column = tuple[str, str, str]
_COMPILING: list[Column] = [("compile s", "compile_seconds", ".1f")]
_SHARE: Column = ("of the product rate", "product_share", ".1%")
_PEERS: list[Column] = [
    ("ours, ms", "ours_ms", ".2f"),
    ("PyTorch, ms", "peer_ms", ".2f"),
    ("ratio", "ratio", ".2f"),
    ("ours, MiB", "ours_mib", ".0f"),
    ("PyTorch, MiB", "peer_mib", ".0f"),
    ("losses differ by", "loss_difference", ".0e"),
    _SHARE,
]
COLUMNS: dict[str, list[Column]] = {
    "products": [("TFLOP/s", "tflops", ".1f")],
    "outer steps": [
        ("trace + lower s", "trace_lower_seconds", ".1f"),
        *_COMPILING,
        ("first call s", "first_call_seconds", ".2f"),
        ("steps/s", "steps_per_second", ".1f"),
        ("MiB", "mib", ".0f"),
        _SHARE,
        ("loss", "loss", ".4f"),
    ],
    "peers": _PEERS,
    "convolutions": [*_COMPILING, ("ms", "ms", ".3f"), _SHARE],
    "training": [
        *_COMPILING,
        ("images/s", "images_per_second", ",.0f"),
        ("s for 300 epochs", "seconds_300_epochs", ".1f"),
        ("MiB", "mib", ".0f"),
        _SHARE,
    ],
    "dispatch": [
        *_COMPILING,
        ("steps/s", "steps_per_second", ".1f"),
        ("at 10 a dispatch", "steps_per_second_10", ".1f"),
        ("at 1", "steps_per_second_1", ".1f"),
        ("MiB", "mib", ".0f"),
    ],
    "real": [
        ("outer steps", "outer_steps", ",.0f"),
        ("steps/s", "steps_per_second", ".1f"),
        ("test accuracy %", "accuracy", ".1f"),
        ("sd", "sd", ".1f"),
        ("the paper's recipe, h", "paper_hours", ".1f"),
    ],
    "flags": [*_COMPILING, ("steps/s", "steps_per_second", ".1f")],
}  # fmt: skip


def tables(rows: list[Row]) -> Iterator[tuple[str, Table]]:
    """The table of each section that has rows."""
    for section in COLUMNS:
        if any(row["section"] == section for row in rows):
            yield section, table(rows, section)


def table(rows: list[Row], section: str) -> Table:
    """A section's rows; what was left out or failed says so in the first column of numbers."""
    columns = COLUMNS[section]

    def cells(row: Row) -> list[Any]:
        wrong = "failed: " + row["failed"] if "failed" in row else row.get("skipped")
        if wrong:
            return [row["work"], wrong, *[""] * (len(columns) - 1)]
        return [row["work"], *(format(row[f], form) if f in row else "" for _, f, form in columns)]

    header = [section, *(name for name, _, _ in columns)]
    return header, [cells(row) for row in rows if row["section"] == section]

"""Measures, prints tables, and keeps rows and plots.

    python -m benchmarks [NAME ...] [--quick] [--only TEXT] [--out FILE]
    python -m benchmarks accelerator --out FILE [--minutes 8] [--data FILE] [--dry]

Without names all of them but the second line's, which is for a GPU (`benchmarks.accelerator`). Rows
are written as they come, to benchmarks/results/NAME.json (quick ones to runs/benchmarks, so that
they take the place of no full one) or all to FILE, a plot NAME.png beside them; each row says what
was measured, on what, when and with which versions. Rows of the file that are not measured again
stay in it.
"""

import argparse
import ast
import importlib
import json
import os
import sys
import time
from pathlib import Path
from types import ModuleType

from benchmarks.suite import Row, compile_quickly, stamp
from d3jax.host.files import write_json
from d3jax.host.interrupt import ended_at_once
from d3jax.host.progress import Reporter
from d3jax.run.tables import markdown_table
from d3jax.types import InputError

NAMES = (
    "compile_vs_throughput",
    "libraries",
    "memory",
    "vmap_experts",
    "sharding",
    "peers",
    "students",
    "subtasks",
    "mtt_gradient",
    "growth",
)
RESULTS = Path(__file__).parent / "results"
QUICK = Path("runs/benchmarks")
QUICK_SECONDS = 120  # of each, with --quick


def measure(name: str, benchmark: ModuleType, out: Path, quick: bool, only: str) -> list[Row]:
    """Measures the cases whose name holds `only`; returns their rows.

    quick: stops before a row that, if it takes as long as the longest before it, would end after
    two minutes.
    """
    cases = benchmark.cases(quick)
    kept = json.loads(out.read_text()) if out.exists() else []
    others = [row for row in kept if row["benchmark"] != name]
    found = {row["work"]: row for row in kept if row["benchmark"] == name and row["work"] in cases}
    chosen = {work: case for work, case in cases.items() if only in work}
    measured: list[Row] = []
    reporter = Reporter()
    begun, longest = time.monotonic(), 0.0
    for number, (work, case) in enumerate(chosen.items(), 1):
        before = time.monotonic()
        if quick and before - begun + longest > QUICK_SECONDS:
            done = f"{name}: {number - 1} of {len(chosen)} rows in {before - begun:.0f} s"
            reporter.say(f"{done}; the others would take longer than {QUICK_SECONDS} s")
            break
        reporter.say(f"{name} {number}/{len(chosen)}: {work} ...")
        row = {"benchmark": name, "work": work, **stamp(), **case()}
        row["quick"] = quick
        found[work] = row
        measured.append(row)
        write_json(out, others + [found[work] for work in cases if work in found])
        longest = max(longest, time.monotonic() - before)
        header, body = benchmark.table(measured)
        cells = [f"{column}: {cell}" for column, cell in zip(header, body[-1]) if cell != ""]
        reporter.say(f"  {'; '.join(cells)}")
    if found:
        benchmark.plot([found[work] for work in cases if work in found]).savefig(
            out.parent / f"{name}.png"
        )
    return measured


def measures(name: str) -> str:
    """What a benchmark measures: the first sentence of its docstring; it is not imported."""
    folder = Path(__file__).parent
    file = folder / f"{name}.py"
    source = (file if file.exists() else folder / name / "__init__.py").read_text()
    return str(ast.get_docstring(ast.parse(source))).partition("\n")[0]


def main() -> None:
    """Measures every named benchmark."""
    if sys.argv[1:2] == ["accelerator"]:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs some too
        if "--dry" in sys.argv:
            compile_quickly()
        importlib.import_module("benchmarks.accelerator").main(sys.argv[2:])
        return
    width = max(map(len, NAMES)) + 2
    listed = "\n".join(f"  {name:{width}}{measures(name)}" for name in NAMES)
    parser = argparse.ArgumentParser(
        "python -m benchmarks",
        description=str(__doc__).splitlines()[0],
        epilog=f"What each measures:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which; default all")
    parser.add_argument(
        "--quick", action="store_true",
        help="fewer rounds, smaller cases, and as many rows of each as two minutes allow",
    )  # fmt: skip
    parser.add_argument("--only", default="", metavar="TEXT", help="work whose name holds this")
    parser.add_argument("--out", type=Path, help="one file for all rows")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in NAMES]
    if unknown:
        parser.error(f"unknown benchmark {unknown[0]!r}; known: {', '.join(NAMES)}")
    found = {}
    for name in options.names or NAMES:
        try:
            found[name] = importlib.import_module(f"benchmarks.{name}")
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            parser.error(f"{name} compares with PyTorch: pip install '.[torch]'")
    works = [work for benchmark in found.values() for work in benchmark.cases(options.quick)]
    if not any(options.only in work for work in works):
        parser.error(f"no work's name holds {options.only!r}; known: {'; '.join(works)}")
    for name, benchmark in found.items():
        out = options.out or (QUICK if options.quick else RESULTS) / f"{name}.json"
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            rows = measure(name, benchmark, out, options.quick, options.only)
        except InputError as error:
            parser.error(str(error))
        print(markdown_table(*benchmark.table(rows)))
        if hasattr(benchmark, "remarks"):
            print(benchmark.remarks(rows))


if __name__ == "__main__":
    with ended_at_once():  # rows that were measured are kept
        main()

"""What a trace of `--profile` says: where it is, and the kernels that took longest."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from jax.profiler import ProfileData
from rich.markup import escape
from rich.table import Table

from d3jax.host.progress import Reporter
from d3jax.run.tables import plain_table

_SHOWN = 10


class Kernel(NamedTuple):
    """All calls of one compiled operation."""

    name: str
    calls: int
    seconds: float  # without those of kernels inside it, such as a loop's


@contextmanager
def told(folder: Path | None, reporter: Reporter) -> Iterator[None]:
    """Says of a trace that is written to `folder` while the block runs what is in it."""
    before = set() if folder is None else _traces(folder)
    yield
    for trace in set() if folder is None else _traces(folder) - before:
        reporter.say(f"trace: {trace}; TensorBoard or `xprof --logdir {folder}` open it")
        reporter.console.print(table(kernels(trace)))


def kernels(trace: Path) -> list[Kernel]:
    """The kernels of a trace, the dearest first."""
    spent: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for plane in ProfileData.from_file(str(trace)).planes:
        for line in plane.lines:
            computed = (event for event in line.events if _is_kernel(event))
            for name, own in _own_times((e.start_ns, e.duration_ns, e.name) for e in computed):
                spent[name] += own
                calls[name] += 1
    found = [Kernel(name, calls[name], 1e-9 * own) for name, own in spent.items()]
    return sorted(found, key=lambda kernel: -kernel.seconds)


def table(found: list[Kernel]) -> Table:
    """The dearest ten, and their share of all."""
    total = sum(kernel.seconds for kernel in found) or 1.0
    shown = plain_table("The dearest kernels of the trace")
    for column in ("kernel", "calls", "ms", "share"):
        shown.add_column(column, justify="left" if column == "kernel" else "right")
    for kernel in found[:_SHOWN]:
        share = f"{100 * kernel.seconds / total:.1f} %"
        shown.add_row(escape(kernel.name), str(kernel.calls), f"{1e3 * kernel.seconds:.2f}", share)
    return shown


def _traces(folder: Path) -> set[Path]:
    return set(folder.rglob("*.xplane.pb"))


def _is_kernel(event: Any) -> bool:
    return any(name == "hlo_op" for name, _ in event.stats)


def _own_times(events: Iterable[tuple[float, float, str]]) -> list[tuple[str, float]]:
    """(name, nanoseconds) of each event (start, duration, name) of a thread, without what runs
    inside it."""
    own: list[tuple[str, float]] = []
    inside: list[tuple[float, int]] = []  # the end and number of each that is not over yet
    for start, duration, name in sorted(events, key=lambda e: (e[0], -e[1])):
        while inside and inside[-1][0] <= start:
            inside.pop()
        if inside:
            number = inside[-1][1]
            own[number] = (own[number][0], own[number][1] - duration)
        inside.append((start + duration, len(own)))
        own.append((name, duration))
    return own

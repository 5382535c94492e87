"""What a long run shows, and how it is stopped: progress lines and signals."""

import logging
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

UNFINISHED = 75  # EX_TEMPFAIL: what a scheduler reads as "run me again"


class Interrupted(Exception):
    """The run was asked to stop, and has saved what it needs to go on."""


class Busy(Exception):
    """Another process is at work on the same files; the message says which."""


class Diverged(Exception):
    """The run met a number that is not finite, and has saved its last good state."""


class Interruption:
    """Whether SIGTERM or SIGINT has asked the run to stop; a second SIGINT stops it at once."""

    def __init__(self) -> None:
        self.requested = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def interruption() -> Iterator[Interruption]:
    """Catches SIGTERM and SIGINT while the block runs (in the main thread)."""
    asked = Interruption()
    before = {number: signal.signal(number, asked) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def notices(reporter: "Reporter") -> Iterator[None]:
    """What d3jax logs (how a data set was read, say) is said by `reporter` while the block runs."""
    logger, handler = logging.getLogger("d3jax"), logging.Handler()
    handler.emit = lambda record: reporter.say(record.getMessage())
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = True


@contextmanager
def locked(path: Path, work: str) -> Iterator[None]:
    """Holds the folder `path` for one process; the lock goes with the process, however it ends.

    Raises:
      Busy: another process holds it, doing `work`.
    """
    from filelock import FileLock, Timeout  # experts and methods that write nothing do without

    try:
        held = FileLock(path / ".lock").acquire(timeout=0)
    except Timeout:
        raise Busy(f"another process is {work} in {path}; start again when it is done") from None
    with held:
        yield


class Reporter:
    """Shows how far a stage is: a bar on a terminal, else a plain line every few seconds."""

    def __init__(self, console: Console | None = None, seconds_between_lines: float = 10.0):
        self.console = Console(stderr=False) if console is None else console
        self.pause = seconds_between_lines

    def say(self, text: str) -> None:
        """Prints one line."""
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator["Stage"]:
        """A stage of `total` steps, `done` of which an earlier run has done."""
        if self.console.is_terminal:
            with Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self.console,
            ) as bar:
                task = bar.add_task(name, total=total, completed=done, rate="", note="")

                def show(step: int, rate: float, note: str) -> None:
                    bar.update(task, completed=step, rate=f"{rate:.3g}/s", note=note)

                yield Stage(total, done, show, 0.0)
        else:

            def line(step: int, rate: float, note: str) -> None:
                left = (total - step) / rate if rate > 0 else 0.0
                self.say(f"{name} {step}/{total}, {rate:.3g}/s, {left:.0f} s left  {note}".rstrip())
                sys.stdout.flush()

            yield Stage(total, done, line, self.pause)


class Stage:
    """One stage's progress; `update` is cheap enough to call after every dispatch."""

    def __init__(self, total: int, done: int, show, pause: float):
        self.total, self.first, self.show, self.pause = total, done, show, pause
        self.start = time.monotonic()
        self.shown = self.start

    def update(self, step: int, note: str = "") -> None:
        """Says that `step` steps are done."""
        now = time.monotonic()
        if now - self.shown >= self.pause or step >= self.total:
            self.shown = now
            self.show(step, (step - self.first) / max(now - self.start, 1e-9), note)

"""What a long run shows, and how it ends; `interrupt.py` has the signals that end it."""

import datetime
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.status import Status
from rich.table import Table
from rich.text import Text

from d3jax.host import compilation

_LONG = 1.0  # seconds from which on it is said what is done


class Interrupted(Exception):
    """The run was asked to stop, and has saved what it needs to go on."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """The reader of the output has gone (`| head`): the work goes on, and says nothing more."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Busy(Exception):
    """Another process is at work on the same files; the message says which."""


class Diverged(Exception):
    """The run met a number that is not finite, and has saved its last good state."""


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
    """Shows how far a stage is: a live line on a terminal, else a line of a log now and then.

    Lines of a log begin with the time of day, unless `times` is off.
    """

    def __init__(
        self,
        console: Console | None = None,
        seconds_between_lines: float = 10.0,
        *,
        times: bool = True,
    ):
        self.console = _Console(stderr=False) if console is None else console
        self.pause = seconds_between_lines
        self.live = self.console.is_terminal and not self.console.is_dumb_terminal
        self._times = times and not self.live

    def say(self, text: str) -> None:
        """Prints one line."""
        line = f"{time.strftime('%H:%M:%S')} {text}" if self._times else text
        self.console.print(line, highlight=False, soft_wrap=True, markup=False)
        self.console.file.flush()

    @contextmanager
    def working(self, doing: str) -> Iterator[None]:
        """Says what is done where that takes longer than a second, such as compiling."""
        begun = time.monotonic()
        text = f"{doing} ..."
        live = Status(Text(text), console=self.console, spinner="line") if self.live else None
        with self._late(text) if live is None else live:
            yield
        if (seconds := time.monotonic() - begun) > _LONG:
            self.say(f"{doing} took {_lasting(seconds)}")

    @contextmanager
    def _late(self, text: str) -> Iterator[None]:
        """Says a line after a second, if the block still runs."""
        timer = threading.Timer(_LONG, self.say, [text])
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator["Stage"]:
        """A stage of `total` steps, `done` of which an earlier run has done."""
        if self.live:
            stage = Stage(name, total, done)
            with Live(stage, console=self.console, refresh_per_second=4):
                yield stage
        else:
            yield Stage(name, total, done, self.say, self.pause)


class Stage:
    """One stage's progress, which a terminal renders; `update` is cheap."""

    def __init__(
        self,
        name: str,
        total: int,
        done: int = 0,
        tell: Callable[[str], None] | None = None,  # a line of a log, where there is no terminal
        pause: float = 0.0,  # seconds between those
    ):
        self.name, self.total, self.first, self.step = name, total, done, done
        self._tell, self._pause = tell, pause
        self._begun = self._updated = self._told = time.monotonic()
        self._compiled = compilation.seconds()
        self._seconds_each, self._notes = 0.0, ""

    def update(self, step: int, notes: str = "") -> None:
        """Says that `step` steps are done; `notes` are divided by two spaces."""
        self.step, self._notes, self._updated = step, notes, time.monotonic()
        compiled = compilation.seconds() - self._compiled  # which later steps do not do again
        worked = max(self._updated - self._begun - compiled, 1e-9)
        self._seconds_each = worked / max(step - self.first, 1)
        if self._tell and (self._updated - self._told >= self._pause or step >= self.total):
            self._told = self._updated
            self._tell(self.line())

    def line(self, width: int | None = None) -> str:
        """Count, rate and time left, and as many of the notes as `width` columns have room for."""
        now = time.monotonic()
        parts = [f"{self.name} {self.step}/{self.total}"]
        each = self._seconds_each
        if each:
            parts.append(_rate(each))
        if compilation.now():
            parts.append("compiling")
        elif self.step < self.total and each:
            since = now - self._updated
            parts.append(f"{_lasting((self.total - self.step) * each - since)} left")
        else:
            parts.append(_lasting(now - self._begun))
        line = ", ".join(parts)
        for note in filter(None, self._notes.split("  ")):
            if width is not None and len(line) + 2 + len(note) > width:
                break
            line += f"  {note}"
        return line

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The line, after a bar where there is room."""
        width, bar = options.max_width, 0 if options.max_width < 72 else 12
        row: list[Any] = [Text(self.line(width - bar - 1 if bar else width), no_wrap=True)]
        if bar:
            row.insert(0, ProgressBar(self.total, self.step, width=bar))
        grid = Table.grid(padding=(0, 1))
        grid.add_row(*row)
        yield grid


def _rate(seconds_each: float) -> str:
    """Speed of steps: 1,200/s, 3.2/s, 7.5 s each."""
    rate = 1 / seconds_each
    if rate < 1:
        return f"{seconds_each:.3g} s each"
    return f"{rate:.3g}/s" if rate < 100 else f"{rate:,.0f}/s"


def _lasting(seconds: float) -> str:
    """A time: under 1 s, 12 s, 2:05, 1:02:05."""
    if seconds < 1:
        return "under 1 s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return str(datetime.timedelta(seconds=round(seconds))).lstrip("0:")

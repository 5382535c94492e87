"""How a run is stopped: SIGTERM and SIGINT are answered at once, while XLA compiles too.

Python calls a signal's handler in the main thread alone, when that has returned from compiled code.
What has to happen before is done by a thread of its own, to which Python writes each signal.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from d3jax.host.exits import UNFINISHED

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_PATIENCE = 2.0  # seconds that the main thread has to end by itself


class Interruption:
    """Whether SIGTERM or SIGINT has asked the run to stop; a second SIGINT stops it at once.

    ends: when it then stops, as `answered` says it.
    """

    def __init__(self, ends: str) -> None:
        self.ends = ends
        self.requested = False
        self.answered = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True


_blocks: list[Interruption] = []  # of `interruption`, the innermost last


@contextmanager
def interruption(ends: str) -> Iterator[Interruption]:
    """Catches SIGTERM and SIGINT while the block runs (in the main thread)."""
    asked = Interruption(ends)
    before = {number: signal.signal(number, asked) for number in _SIGNALS}
    _blocks.append(asked)
    try:
        yield asked
    finally:
        _blocks.remove(asked)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def answered() -> Iterator[None]:
    """Answers SIGTERM and SIGINT at once while the block runs, for a process that ends after it.

    To the first within an `interruption` it says what will happen. Any other ends the process, by
    KeyboardInterrupt where the main thread hears of it in time: files are whole or not there at
    all, whenever that is.
    """
    heard, hears = socket.socketpair()
    hears.setblocking(False)
    ended = threading.Event()
    before = signal.set_wakeup_fd(hears.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_answer, args=(heard, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(before)
        hears.close()  # which ends the thread


def _answer(heard: socket.socket, ended: threading.Event) -> None:
    while number := heard.recv(1):
        if number[0] not in _SIGNALS:
            continue
        asked = _blocks[-1] if _blocks else None
        if asked is not None and not asked.answered:
            asked.answered = True
            again = "; again: at once" if number[0] == signal.SIGINT else ""
            print(f"d3jax: stopping {asked.ends}{again}", file=sys.stderr, flush=True)
        elif (asked is None or number[0] == signal.SIGINT) and not ended.wait(_PATIENCE):
            if sys.stdout.isatty():
                print("\x1b[?25h")  # the cursor, which a live line hides
            end_at_once("interrupted; what was saved is whole")
    heard.close()


@contextmanager
def ended_at_once() -> Iterator[None]:
    """SIGTERM and SIGINT end the process while the block runs, which only imports.

    Not by an exception: compiled modules make an ImportError of it, or crash.
    """

    def end(number: int, frame: FrameType | None) -> NoReturn:
        end_at_once("interrupted")

    before = {number: signal.signal(number, end) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_at_once(said: str) -> NoReturn:
    """Ends the process with a line and status 75, without a wait for what XLA still compiles."""
    print(f"d3jax: {said}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(UNFINISHED)

"""A command as one of several processes: how they find each other, and what happens to the rest
when one is lost.

JAX ends a process whose peer is gone with a stack trace. So each runs below a supervising parent,
which says in one line what has happened.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import jax

from d3jax.host import processes
from d3jax.host.exits import UNFINISHED
from d3jax.host.progress import Reporter
from d3jax.types import InputError

HEARTBEAT_SECONDS = 30  # without a sign of life for so long, a process is lost
_MEETING_SECONDS = 300
_LEAVING_SECONDS = 30
_LOST = 76  # what a worker exits with when a connection to another has broken
_WORKER = "_D3JAX_WORKER"  # in a worker's environment: where it says that all have met
# How JAX's coordination service, and gloo below its collectives, tell of a process that is gone.
_BROKEN = re.compile(r"gloo|connection|coordination|unavailable|heartbeat|peer", re.IGNORECASE)


@dataclass(frozen=True)
class Processes:
    """One of several processes that run the same command, each on its own devices."""

    distributed: bool = False
    """This command is one of several processes, started by Slurm, Open MPI, Kubernetes or on a
    Cloud TPU pod, which say which one it is."""
    coordinator: str | None = None
    """HOST:PORT where the first process can be reached, in place of --distributed."""
    num_processes: int | None = None
    """How many processes there are, with --coordinator."""
    process_id: int | None = None
    """Which one this is, from 0, with --coordinator."""

    @property
    def several(self) -> bool:
        """Whether there is more to it than this process."""
        given = (self.coordinator, self.num_processes, self.process_id)
        return self.distributed or any(value is not None for value in given)

    def check(self) -> None:
        """Raises InputError for options that do not fit together."""
        given = (self.coordinator, self.num_processes, self.process_id)
        missing = [value is None for value in given]
        if self.distributed and not all(missing):
            raise InputError(
                "give --distributed, and the environment says the rest, or --coordinator, "
                "--num-processes and --process-id, not both"
            )
        if self.distributed or all(missing):
            return
        if self.coordinator is None or self.num_processes is None or self.process_id is None:
            raise InputError("--coordinator, --num-processes and --process-id go together")
        if not re.fullmatch(r"\S+:\d+", self.coordinator):
            raise InputError(f"coordinator must be HOST:PORT, not {self.coordinator!r}")
        if not 0 <= self.process_id < self.num_processes:
            raise InputError(
                f"process_id must be from 0 to {self.num_processes - 1}, not {self.process_id}"
            )


def is_worker() -> bool:
    """Whether a parent supervises this process."""
    return _WORKER in os.environ


def meet(options: Processes, reporter: Reporter) -> None:
    """Joins this process, a worker, to the others; before anything is computed.

    A signal ends it while it waits for them, when there is nothing to save.

    Raises:
      InputError: the environment does not say which processes there are.
    """
    channel = int(os.environ.pop(_WORKER))  # not for what this process starts itself
    threading.Thread(target=_end_with_parent, daemon=True).start()
    where = "the others"
    if options.coordinator is not None:
        where = f"{options.num_processes} processes to meet at {options.coordinator}"
    try:
        with _ended_by_signals():
            reporter.say(f"waiting for {where}, at most {_MEETING_SECONDS} s")
            jax.distributed.initialize(
                options.coordinator,
                options.num_processes,
                options.process_id,
                initialization_timeout=_MEETING_SECONDS,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=_LEAVING_SECONDS,
            )
    except ValueError as error:
        raise InputError(
            f"no Slurm, Open MPI, Kubernetes or Cloud TPU tells this process of others ({error}): "
            f"give --coordinator, --num-processes and --process-id"
        ) from error
    with _silent():  # gloo tells of its connections
        processes.gathered(True)
    os.write(channel, b"met")
    os.close(channel)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Signals end the process, which Python's handlers do not while JAX waits."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _silent() -> Iterator[None]:
    sys.stdout.flush()
    kept, nothing = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nothing)


def _end_with_parent() -> None:
    while os.read(0, 1):  # ends when the parent does, however that ends
        pass
    os._exit(UNFINISHED)


def leave_if_broken(error: Exception) -> None:
    """Ends this process, a worker, where an error is due to another's being gone."""
    if not jax.distributed.is_initialized():
        return
    if _BROKEN.search(str(error)):
        os._exit(_LOST)
    time.sleep(HEARTBEAT_SECONDS + 5)  # if another is gone, JAX ends this process meanwhile


def supervise(arguments: Sequence[str]) -> int:
    """Runs `d3jax` with `arguments` as a worker, and says in one line if another was lost.

    Returns:
      The exit status: the worker's own, or 75 (run again) where it has not ended by itself.
    """
    told, tells = os.pipe()
    worker = subprocess.Popen(
        [sys.executable, "-m", "d3jax", *arguments],
        env={**os.environ, _WORKER: str(tells)},
        pass_fds=(tells,),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # a terminal's Ctrl-C comes through this process alone
        text=True,
        errors="replace",
    )
    os.close(tells)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: worker.send_signal(number))
    held = _pass_on(worker)
    status = worker.wait()
    met = os.read(told, 3) == b"met"
    if status >= 0 and status != _LOST:
        sys.stderr.write("".join(held))
        return status
    if not met and status in (-signal.SIGTERM, -signal.SIGINT):
        _say("interrupted before the processes of this run had met")
    elif status == -signal.SIGKILL:
        _say("this process was killed (by the system, if memory ran out)")
    elif met:
        _say("another process of this run was lost; what was saved is whole")
    else:
        _say(f"the processes of this run have not all met within {_MEETING_SECONDS} s")
    _say("run the same command again, in every process, to go on")
    return UNFINISHED


def _pass_on(worker: subprocess.Popen[str]) -> list[str]:
    """Shows what the worker says, but for what begins when another process is gone."""
    held: list[str] = []
    assert worker.stderr is not None
    for line in worker.stderr:
        if held or re.match(r"[EF]\d{4} .*(coordination|distributed)", line):
            held.append(line)
        else:
            sys.stderr.write(line)
            sys.stderr.flush()
    return held


def _say(text: str) -> None:
    print(f"d3jax: {text}", file=sys.stderr)

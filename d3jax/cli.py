"""The command line: `d3jax distill | plan | experts | join | evaluate | show | prepare`."""

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NoReturn

import jax
import tyro

from d3jax.data.cache import cache_folder
from d3jax.data.prepare import prepare
from d3jax.host import launch
from d3jax.host.processes import Elsewhere
from d3jax.host.progress import UNFINISHED, Busy, Diverged, Interrupted, Reporter
from d3jax.run import config
from d3jax.run import judge as judging
from d3jax.run import run as jobs
from d3jax.types import InputError

Subcommand = tyro.conf.subcommand


@dataclass(frozen=True)
class Distill:
    """Distill a data set: experts, distillation, evaluation and baselines, in one folder."""

    method: config.Methods


@dataclass(frozen=True)
class Evaluate:
    """Train fresh students on an artifact and test them."""

    artifact: tyro.conf.Positional[Path]
    """The artifact to judge."""
    options: Annotated[config.Judgement, config.Inlined] = field(default_factory=config.Judgement)


@dataclass(frozen=True)
class Show:
    """Print an artifact's header and byte ledger, and write its picture."""

    artifact: tyro.conf.Positional[Path]
    """The artifact to show."""
    picture: Path | None = None
    """The picture's file; default the artifact's name with .png."""
    seed: int = 0
    """Of the samples drawn."""


@dataclass(frozen=True)
class Prepare:
    """Prepare a data set for `--dataset NAME`, through TFDS or from the official files."""

    name: tyro.conf.Positional[str]
    """The data set's TFDS name, such as mnist."""
    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Folder with the official files (idx for mnist and fashion_mnist, binary for cifar)."""
    data_dir: Path | None = None
    """Where to put it; default $D3JAX_DATA_DIR, else the TFDS default."""


Command = (
    Annotated[Distill, Subcommand("distill")]
    | Annotated[config.Plan, Subcommand("plan")]
    | Annotated[config.Experts, Subcommand("experts")]
    | Annotated[config.Join, Subcommand("join")]
    | Annotated[Evaluate, Subcommand("evaluate")]
    | Annotated[Show, Subcommand("show")]
    | Annotated[Prepare, Subcommand("prepare")]
)


def run(command: Command, reporter: Reporter) -> None:
    """Runs one command.

    Raises:
      InputError, Busy, Interrupted, Diverged: as its stages do.
    """
    match command:
        case Distill():
            jobs.run(command.method, reporter)
        case config.Plan():
            jobs.plan(command, reporter)
        case config.Experts():
            jobs.train_experts(command, reporter)
        case config.Join():
            jobs.join(command, reporter)
        case Evaluate():
            judging.judge(command.artifact, command.options, reporter)
        case Show():
            judging.show(command.artifact, command.picture, command.seed, reporter)
        case Prepare():
            reporter.say(f"prepared {prepare(command.name, command.data_dir, command.source)}")


def parse(arguments: Sequence[str] | None = None) -> Command:
    """The command that `arguments` (default this process's) say; exits with 2 if they say none."""
    return tyro.cli(
        Command,  # type: ignore[arg-type]
        prog="d3jax",
        description=__doc__,
        args=arguments,
        config=(tyro.conf.OmitSubcommandPrefixes,),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point.

    Exits with 0, 2 (bad input), 75 (interrupted, or the files are in use: run again), 1 (diverged).
    """
    # Stages that save catch signals themselves; between them, SIGTERM ends the run as SIGINT does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    command = parse(arguments)
    processes = _processes(command)
    if processes is not None and not launch.is_worker():
        raise SystemExit(launch.supervise(sys.argv[1:] if arguments is None else arguments))
    _keep_compiled(command)
    try:
        reporter = Reporter()
        if processes is not None:
            launch.meet(processes)
            reporter.console.quiet = jax.process_index() > 0
        run(command, reporter)
    except InputError as error:
        _leave(f"error: {error}", 2)
    except OSError as error:  # a folder that is a file, no permission, a full disk
        _leave(f"error: {error}", 2)
    except (Interrupted, KeyboardInterrupt):
        _leave("interrupted, all is saved: resume with the same command", UNFINISHED)
    except Busy as error:
        _leave(str(error), UNFINISHED)
    except Diverged as error:
        _leave(f"stopped: {error}", 1)
    except Elsewhere:
        raise SystemExit(2) from None
    except Exception as error:
        launch.leave_if_broken(error)
        raise


def _processes(command: object) -> launch.Processes | None:
    """How this process finds the others of a run, if there are any."""
    if isinstance(command, Distill) and isinstance(command.method, config.Divided):
        try:
            command.method.processes.check()
        except InputError as error:
            _leave(f"error: {error}", 2)
        return command.method.processes if command.method.processes.several else None
    return None


def _keep_compiled(command: object) -> None:
    """Compiled programs are kept between runs, where JAX_COMPILATION_CACHE_DIR says, or in ours."""
    if isinstance(command, Distill) and not command.method.compilation_cache:
        jax.config.update("jax_enable_compilation_cache", False)
    elif not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))


def _leave(text: str, code: int) -> NoReturn:
    """Ends with a line, said once where all processes of a run end alike."""
    one_of_many = isinstance(sys.exc_info()[1], Interrupted | Diverged)
    if not (one_of_many and jax.process_index() > 0):
        print(f"d3jax: {text}", file=sys.stderr)
    raise SystemExit(code)

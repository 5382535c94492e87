"""The command line: `d3jax distill | evaluate | train ...`; see `COMMANDS`.

What a command needs is imported when it is chosen, so that help is quick; the methods and their
flags come from `methods.registry.METHODS` and `run/options.py`, those of other commands from
`run/commands.py`.
"""

import io
import os
import signal
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import d3jax
from d3jax.host.exits import DIVERGED, MEANINGS, OUT_OF_MEMORY, REFUSED, UNFINISHED
from d3jax.host.interrupt import answered, end_at_once, ended_at_once
from d3jax.host.terminal import columns, listed, meant

if TYPE_CHECKING:
    from d3jax.host import launch
    from d3jax.host.progress import Reporter

COMMANDS = {
    "distill": "Distill a data set: experts, distillation, evaluation and baselines, in one folder",
    "plan": "Say what a run would take before it begins: disk, memory, time",
    "experts": "Train expert trajectories into a store",
    "join": "Join the artifacts of subtasks that were distilled as jobs of their own",
    "evaluate": "Train fresh students on an artifact and test them",
    "train": "Train one network on an artifact, and keep its weights",
    "compare": "Finished runs side by side: what differs, accuracies, sizes",
    "report": "Print a finished run's tables, or write them as one HTML page",
    "export": "Write an artifact's images as other projects read them",
    "import": "Make an artifact of another project's distilled images",
    "show": "Print an artifact's header and byte ledger, and write its picture",
    "prepare": "Prepare a data set for --dataset NAME, through TFDS or from the official files",
}
SAVING = ("distill", "experts")  # which go on where they were interrupted
_HELP = ("-h", "--help")


def parse(arguments: Sequence[str] | None = None) -> tuple[str, Any]:
    """The command that `arguments` (default this process's) say, and its options.

    Exits with 0 after help that was asked for, with 2 where they say no command.

    Raises:
      InputError: the method has no such preset.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["--version"]:
        print(f"d3jax {d3jax.__version__}")
        raise SystemExit(0)
    name = _chosen(given, COMMANDS, "d3jax", "COMMAND", "Dataset distillation in JAX.")
    rest, prog = given[1:], f"d3jax {name}"
    try:
        import tyro
    except ModuleNotFoundError as error:
        _say(f"error: the command line needs {_missing(error)}")
        raise SystemExit(REFUSED) from None

    from d3jax.methods.registry import METHODS
    from d3jax.run import commands, help, options
    from d3jax.synthetic.options import KINDS, of_other_kinds

    defaults, left_out = None, set()
    if name == "distill":
        lines = {method: spec.paper for method, spec in METHODS.items()}
        method = _chosen(rest, lines, prog, "METHOD", COMMANDS[name])
        preset, rest = _taken(rest[1:], "--preset")
        prog, kind = f"{prog} {method}", options.command(method)
        defaults = options.with_preset(method, preset)
        if set(rest) & set(_HELP):
            named = _taken(rest, "--parametrization")[0]
            stored = named if named in KINDS else METHODS[method].parametrization
            left_out = of_other_kinds(stored)
            print(f"What matters most:\n\n{help.summary(method, stored)}\n")
            print(f"All flags, of parametrizations those of {stored}:\n")
    elif name == "plan":
        method = next((word for word in rest if word in METHODS), None)
        preset, rest = _taken(rest, "--preset")
        kind = commands.plan_options(options.with_preset(method, preset) if method else None)
    else:
        kinds = {
            "experts": commands.Experts,
            "join": commands.Join,
            "evaluate": commands.Evaluate,
            "train": commands.Train,
            "compare": commands.Compare,
            "export": commands.Export,
            "report": commands.ReportPage,
            "import": commands.Import,
            "show": commands.Show,
            "prepare": commands.Prepare,
        }
        kind = kinds[name]
    parsed = tyro.cli(
        kind,
        prog=prog,
        description=textwrap.fill(" ".join((kind.__doc__ or "").split()), columns()),
        args=rest,
        default=defaults,
        config=(tyro.conf.OmitSubcommandPrefixes,),
        registry=help.rules(left_out),
    )
    return name, parsed


def _taken(words: Sequence[str], flag: str) -> tuple[str | None, list[str]]:
    """The value of a flag, if it is given, and the words without both."""
    for place, word in enumerate(words):
        if word == flag and place + 1 < len(words):
            return words[place + 1], [*words[:place], *words[place + 2 :]]
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}="), [*words[:place], *words[place + 1 :]]
    return None, list(words)


def _chosen(given: Sequence[str], known: dict[str, str], prog: str, what: str, about: str) -> str:
    """The first argument, where it is known; else help, or what would be right."""
    if given and given[0] in known:
        return given[0]
    usage = f"usage: {prog} {what} ...\n\n{textwrap.fill(about, columns())}\n\n"
    usage += f"{what}:\n{listed(known)}\n\n{prog} {what} --help says more of each."
    if known is COMMANDS:
        usage += f"\n\nExit status:\n{listed(MEANINGS)}"
    if given and given[0] in _HELP:
        print(usage)
        raise SystemExit(0)
    if not given:
        print(usage, file=sys.stderr)
    else:
        right = meant(given[0], known) or f"; known: {', '.join(known)}"
        _say(f"error: unknown {what.lower()} {given[0]!r}{right}")
    raise SystemExit(REFUSED)


def work_of(name: str) -> "Callable[[Any, Reporter], Any]":
    """What runs a command, of its options and a reporter; its modules are imported here."""
    if name == "distill":
        from d3jax.run.run import run

        return run
    if name == "plan":
        from d3jax.run.plan import plan

        return plan
    if name == "experts":
        from d3jax.run.experts import train_experts

        return train_experts
    if name == "join":
        from d3jax.run.join import join

        return join
    if name == "evaluate":
        from d3jax.run.judge import judge

        return lambda options, reporter: judge(options.artifact, options.options, reporter)
    if name == "train":
        from d3jax.run.train import train

        return train
    if name == "compare":
        from d3jax.run.compare import compare

        return lambda options, reporter: compare(options.runs, options.picture, reporter)
    if name == "report":
        from d3jax.run.report import report

        return lambda options, reporter: report(options.out, options.html, reporter)
    if name == "export":
        from d3jax.run.exchange import write

        return write
    if name == "import":
        from d3jax.run.exchange import import_

        return import_
    if name == "show":
        from d3jax.run.show import show

        return lambda options, reporter: show(
            options.artifact, options.picture, options.seed, reporter
        )
    from d3jax.data.prepare import prepare

    return lambda options, reporter: reporter.say(
        f"prepared {prepare(options.name, options.data_dir, options.source)}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point; it exits with one of `host.exits.MEANINGS`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal cannot show is no error
            stream.reconfigure(errors="replace")
    given = list(sys.argv[1:] if arguments is None else arguments)
    with ended_at_once():
        from d3jax.types import InputError

        try:
            name, options = parse(given)
        except InputError as error:
            _leave(f"error: {error}", REFUSED)

        import jax

        from d3jax.host import files, launch
        from d3jax.host.processes import Elsewhere
        from d3jax.host.progress import Busy, Diverged, Interrupted, Reporter, notices

    # Stages that save catch signals themselves; between them, SIGTERM ends the run as SIGINT does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    processes = _processes(options)
    if processes is not None and not launch.is_worker():
        raise SystemExit(launch.supervise(given))
    _keep_compiled(options)
    try:
        with ended_at_once():
            work = work_of(name)
        with answered():
            reporter = Reporter(times=name != "show")
            if processes is not None:
                launch.meet(processes, reporter)
                reporter.console.quiet = jax.process_index() > 0
            with notices(reporter):
                work(options, reporter)
    except InputError as error:
        _leave(f"error: {error}", REFUSED)
    except ModuleNotFoundError as error:
        _leave(f"error: this needs {_missing(error)}", REFUSED)
    except Interrupted:
        _leave("interrupted, all is saved: resume with the same command", UNFINISHED)
    except KeyboardInterrupt:
        resume = ", all is saved: resume with the same command" if name in SAVING else ""
        end_at_once(f"interrupted{resume}")
    except Busy as error:
        _leave(str(error), UNFINISHED)
    except Diverged as error:
        _leave(f"stopped: {error}", DIVERGED)
    except Elsewhere:
        raise SystemExit(REFUSED) from None
    except Exception as error:
        if files.disk_is_full(error):
            _leave(f"error: {error}", UNFINISHED)
        if isinstance(error, OSError):  # a folder that is a file, no permission
            _leave(f"error: {error}", REFUSED)
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            from d3jax.run.help import out_of_memory

            _leave(f"error: {out_of_memory(error, options)}", OUT_OF_MEMORY)
        launch.leave_if_broken(error)
        raise


def _missing(error: ModuleNotFoundError) -> str:
    """The package that is not installed, and what installs it; raises again what is of our own."""
    package = (error.name or "").partition(".")[0]
    if package in ("", "d3jax"):
        raise error
    extras = {"tensorflow": "prepare", "tensorboardX": "tensorboard", "torch": "torch"}
    extra = f"[{extras[package]}]" if package in extras else ""
    return f"the package {package}, which is not installed: pip install 'd3jax{extra}'"


def _processes(options: Any) -> "launch.Processes | None":
    """How this process finds the others of a run, if there are any."""
    from d3jax.types import InputError

    processes = getattr(options, "processes", None)
    if processes is None:
        return None
    try:
        processes.check()
    except InputError as error:
        _leave(f"error: {error}", REFUSED)
    return processes if processes.several else None


def _keep_compiled(options: Any) -> None:
    """Compiled programs are kept between runs, where JAX_COMPILATION_CACHE_DIR says, or in ours.

    Small ones too: a command that computes little has many of them. Where the environment says what
    is worth keeping, that holds.
    """
    import jax

    from d3jax.data.cache import cache_folder

    if not getattr(options, "compilation_cache", True):
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
    if not os.environ.get("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _leave(text: str, code: int) -> NoReturn:
    """Ends with a line, said once where all processes of a run end alike."""
    import jax

    from d3jax.host.progress import Diverged, Interrupted

    one_of_many = isinstance(sys.exc_info()[1], Interrupted | Diverged)
    if not (one_of_many and jax.process_index() > 0):
        _say(text)
    raise SystemExit(code)


def _say(text: str) -> None:
    print(f"d3jax: {text}", file=sys.stderr)

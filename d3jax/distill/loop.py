"""The outer loop: compiled chunks of outer steps, metrics, checkpoints, resume."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from d3jax.distill import metrics
from d3jax.distill.metrics import METRICS
from d3jax.host import clocks, compilation, processes
from d3jax.host.files import room_for
from d3jax.host.interrupt import interruption
from d3jax.host.progress import Diverged, Interrupted, Reporter
from d3jax.types import Method, PyTree, Real, State

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

Rows = list[dict[str, float]]


class Chunk(NamedTuple):
    """What one compiled chunk returns."""

    state: State
    metrics: dict[str, Array]  # f[chunk] each; rows past `done` mean nothing
    done: Array  # i32[], outer steps tried
    finite: Array  # bool[], False if the last of them was not, and so was undone


def chunk_function(method: Method, size: int) -> Callable[[Array, State, Real, Array], Chunk]:
    """Up to `size` outer steps as one function: (key, state, real, number i32[]) -> Chunk.

    At the first step whose metrics or state are not finite, the loop ends with the state before it.
    The number of steps is an argument, so that a shorter last chunk is not compiled again. Jit it
    with `donate_argnums=1`.

    Raises:
      AssertionError: while tracing, where a step's state has other shapes or dtypes than before.
    """

    def run(key: Array, state: State, real: Real, number: Array) -> Chunk:
        after, shapes = jax.eval_shape(method.step, key, state, real)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
        buffers = {name: jnp.zeros((size,), value.dtype) for name, value in shapes.items()}

        def unfinished(carry: Chunk) -> Array:
            return (carry.done < number) & carry.finite

        def body(carry: Chunk) -> Chunk:
            state, measured = method.step(key, carry.state, real)
            finite = _all_finite((measured, state))
            state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), state, carry.state)
            buffers = {n: carry.metrics[n].at[carry.done].set(v) for n, v in measured.items()}
            return Chunk(state, buffers, carry.done + 1, finite)

        start = Chunk(state, buffers, jnp.zeros((), jnp.int32), jnp.ones((), bool))
        return jax.lax.while_loop(unfinished, body, start)

    return run


def _all_finite(tree: Any) -> Array:
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(x).all() for x in floats]).all()


class Program(NamedTuple):
    """The outer steps of a run, or of several subtasks side by side, as the host sees them."""

    start: Callable[[], State]
    function: Any  # jitted, of `arguments`; gives a Chunk
    arguments: Callable[[State, int], tuple[Any, ...]]  # (state, which is consumed; step to reach)
    rows: Callable[[PyTree], PyTree]  # arrays as NumPy ones [subtasks, ...], in every process
    # False: the last rows of a state are padding, and may be more or fewer after a restart
    strict: bool = True


def start(method: Method, key: Array, real: Real) -> State:
    """The state that `run` begins with."""
    return compilation.once(method.init)(jax.random.split(key)[0], real)


def alone(method: Method, key: Array, real: Real, chunk: int) -> Program:
    """The program of one method; `key` is of the whole run."""
    for_steps = jax.random.split(key)[1]
    steps = chunk_function(method, chunk)

    def advance(key: Array, state: State, real: Real, until: Array) -> Chunk:
        return steps(key, state, real, jnp.clip(until - state.step, 0, chunk))

    return Program(
        start=lambda: start(method, key, real),
        function=jax.jit(advance, donate_argnums=1),
        arguments=lambda state, until: (for_steps, state, real, jnp.asarray(until, jnp.int32)),
        rows=lambda tree: jax.tree.map(lambda x: np.asarray(x)[None], tree),
    )


def run(
    method: Method,
    key: Array,
    real: Real,
    *,
    steps: int,
    directory: Path,
    reporter: Reporter,
    chunk: int = 10,
    checkpoint_minutes: float = 5.0,
    observe: Callable[[Rows], None] | None = None,
    profile: Path | None = None,
) -> State:
    """Runs `method` for `steps` outer steps, or what is left of them; returns the last state.

    Leaves in `directory`: `checkpoints/` (orbax; the two newest) and `metrics.jsonl`, a row per
    step. A run that is killed, in mid-save too, resumes at its newest whole checkpoint and reaches
    the same numbers as one that is not, since a step draws all it draws from key and step.

    Args:
      method: what to run.
      key: of the whole run.
      real: the real world, on device.
      steps: outer steps in all.
      directory: exists.
      reporter: shows progress.
      chunk: outer steps per dispatch; a signal is heeded after at most so many.
      checkpoint_minutes: time between checkpoints.
      observe: called with the rows of each chunk.
      profile: folder for a trace of the second chunk that is run (of the only one, if there is no
        second), which xprof or TensorBoard opens.

    Raises:
      Interrupted: SIGTERM or SIGINT arrived; the state is saved.
      Diverged: a step was not finite; the state before it is saved.
      DiskFull: there is no room for a checkpoint or for metrics; the last whole one is kept.
    """
    return drive(
        alone(method, key, real, chunk),
        steps=steps,
        directories=[directory],
        checkpoints=directory / "checkpoints",
        reporter=reporter,
        chunk=chunk,
        checkpoint_minutes=checkpoint_minutes,
        observe=None if observe is None else lambda _, rows: observe(rows),
        profile=profile,
    )


def drive(
    program: Program,
    *,
    steps: int,
    directories: Sequence[Path],
    checkpoints: Path,
    reporter: Reporter,
    chunk: int,
    checkpoint_minutes: float,
    observe: Callable[[int, Rows], None] | None = None,
    profile: Path | None = None,
) -> State:
    """`run` for a compiled program: of one run, or of several subtasks on one or many processes.

    The first process writes metrics and calls `observe`, with the number of a subtask and its rows;
    all of them write the checkpoints. Where one subtask is not finite, all stop.

    Args:
      program: what to run.
      steps: outer steps of each subtask.
      directories: of each subtask, for its metrics.
      checkpoints: folder for them.
      reporter, chunk, checkpoint_minutes: as in `run`.
      observe: as in `run`, for each subtask.
      profile: as in `run`.
    """
    files = [directory / METRICS for directory in directories]
    state = program.start()
    compiling = "when the outer step is compiled and the first chunk is done"
    with interruption(compiling) as asked, _manager(checkpoints) as manager:
        state = _restore(manager, state, reporter, program.strict)
        reached = program.rows(state.step)
        spent = clocks.nothing()
        if processes.first():
            before = [metrics.forget_after(f, int(s)) for f, s in zip(files, reached)]
            spent = {name: max(each[name] for each in before) for name in spent}
        if reached.min() >= steps:
            return state
        with reporter.working("compiling the outer step"):
            advance = program.function.lower(*program.arguments(state, 0)).compile()
        asked.ends = "after this chunk"
        saved, begun = time.monotonic(), clocks.now()
        begin = int(reached.min())
        # What a first chunk does once, such as reading pages of memory, is not of interest.
        profiled = begin + chunk if begin + chunk < steps else begin
        with reporter.stage("outer steps", steps, begin) as stage:
            while reached.min() < steps:
                until = min(int(reached.min()) + chunk, steps)
                with _traced(profile if reached.min() == profiled else None):
                    state, values, done, finite = advance(*program.arguments(state, until))
                    seen = program.rows((values, done, finite, state.step))
                rows = _rows(seen, reached, clocks.since(begun, spent))
                for number, own in enumerate(rows):
                    good = own if seen[2][number] else own[:-1]
                    if processes.first():
                        metrics.append(files[number], good)
                        if observe is not None:
                            observe(number, good)
                reached = seen[3]
                if not seen[2].all():
                    _save(manager, int(reached.min()), state)
                    _diverged(rows, seen[2])
                stage.update(int(reached.min()), metrics.note([own[-1] for own in rows if own]))
                late = time.monotonic() - saved > 60 * checkpoint_minutes
                late, stop = processes.any_of(late, asked.requested)
                if late or stop or reached.min() >= steps:
                    _save(manager, int(reached.min()), state)
                    saved = time.monotonic()
                if stop:
                    raise Interrupted
    return state


def _traced(folder: Path | None) -> AbstractContextManager[None]:
    return nullcontext() if folder is None else jax.profiler.trace(str(folder))


def _rows(seen: Any, before: np.ndarray, spent: clocks.Spent) -> list[Rows]:
    """The rows of each subtask in a chunk."""
    values, done, *_ = seen
    return [
        metrics.rows({n: v[number] for n, v in values.items()}, int(done[number]), int(s), spent)
        for number, s in enumerate(before)
    ]


def _diverged(rows: list[Rows], finite: np.ndarray) -> None:
    number = int(np.argmin(finite))
    last = rows[number][-1]
    wrong = [n for n, v in last.items() if not np.isfinite(v)] or ["the state"]
    of = f" of subtask {number + 1}" if len(rows) > 1 else ""
    raise Diverged(
        f"outer step {last['step']}{of} is not finite ({wrong[0]}); the state before it is saved. "
        f"Lower the learning rates and start in a new folder"
    )


def _manager(path: Path) -> "ocp.CheckpointManager":
    import orbax.checkpoint as ocp  # takes a second; steps alone do not need it

    options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
    # With its handler named, orbax does not guess it from what lies there, which may be damaged.
    handler = ocp.StandardCheckpointHandler()
    return ocp.CheckpointManager(path.resolve(), options=options, item_handlers=handler)


def _save(manager: "ocp.CheckpointManager", step: int, state: State) -> None:
    import orbax.checkpoint as ocp

    if step in manager.all_steps():
        return
    needed = sum(x.nbytes for x in jax.tree.leaves(state))
    with room_for(Path(manager.directory) / str(step), needed), _unlogged("absl"):
        manager.save(step, args=ocp.args.StandardSave(state))


@contextmanager
def _unlogged(name: str) -> Iterator[None]:
    """A logger is silent: orbax logs the traceback of what it raises."""
    log = logging.getLogger(name)
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _put_aside(folder: Path) -> Path:
    """Renames a checkpoint: what keeps it from being read may pass, so it is not deleted."""
    names = (folder.parent.with_name(f"unreadable-{folder.name}-{n}") for n in count(1))
    aside = next(name for name in names if not name.exists())
    with suppress(FileNotFoundError):  # another process was first
        folder.rename(aside)
    return aside


def _restore(
    manager: "ocp.CheckpointManager", state: State, reporter: Reporter, strict: bool
) -> State:
    """The newest checkpoint that every process can read, else the initial state."""
    import orbax.checkpoint as ocp

    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
    for step in sorted(manager.all_steps(), reverse=True):
        restored: Any = None
        problem: Exception | None = None
        try:
            args = ocp.args.StandardRestore(target, strict=strict)
            restored = manager.restore(step, args=args)
        except Exception as error:  # orbax raises many kinds for a damaged checkpoint
            problem = error
        # Of several processes one may fail alone; then all go back, or they would go on apart.
        if not processes.any_of(problem is not None)[0]:
            reporter.say(f"resuming at outer step {step}")
            return restored
        aside = _put_aside(Path(manager.directory) / str(step))
        said = "another process cannot read it" if problem is None else str(problem)
        reporter.say(f"the checkpoint of step {step} cannot be read, see {aside}: {said}")
        manager.reload()
    return state

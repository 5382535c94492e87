"""The outer loop: compiled chunks of outer steps, metrics, checkpoints, resume."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax import Array

from d3jax.files import write_text
from d3jax.progress import Diverged, Interrupted, Reporter, interruption
from d3jax.types import Method, Real, State

METRICS = "metrics.jsonl"


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
            state, metrics = method.step(key, carry.state, real)
            finite = _all_finite((metrics, state))
            state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), state, carry.state)
            buffers = {n: carry.metrics[n].at[carry.done].set(v) for n, v in metrics.items()}
            return Chunk(state, buffers, carry.done + 1, finite)

        start = Chunk(state, buffers, jnp.zeros((), jnp.int32), jnp.ones((), bool))
        return jax.lax.while_loop(unfinished, body, start)

    return run


def _all_finite(tree: Any) -> Array:
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(x).all() for x in floats]).all()


def start(method: Method, key: Array, real: Real) -> State:
    """The state that `run` begins with."""
    return jax.jit(method.init)(jax.random.split(key)[0], real)


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
    observe: Callable[[list[dict[str, float]]], None] | None = None,
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

    Raises:
      Interrupted: SIGTERM or SIGINT arrived; the state is saved.
      Diverged: a step was not finite; the state before it is saved.
    """
    state, for_steps = start(method, key, real), jax.random.split(key)[1]
    with _manager(directory / "checkpoints") as manager, interruption() as asked:
        state = _restore(manager, state, reporter)
        step = int(state.step)
        spent = _forget_rows_after(directory / METRICS, step)
        if step >= steps:
            return state
        advance = jax.jit(chunk_function(method, chunk), donate_argnums=1)
        size = jnp.asarray(min(chunk, steps - step), jnp.int32)
        advance = advance.lower(for_steps, state, real, size).compile()
        saved = time.monotonic()
        begun = saved - spent
        with reporter.stage("outer steps", steps, step) as stage:
            while step < steps:
                size = jnp.asarray(min(chunk, steps - step), jnp.int32)
                state, metrics, done, finite = advance(for_steps, state, real, size)
                rows = _rows(metrics, int(done), step, time.monotonic() - begun)
                step = int(state.step)
                good = rows if finite else rows[:-1]
                _append(directory / METRICS, good)
                if observe is not None:
                    observe(good)
                if not finite:
                    _save(manager, step, state)
                    wrong = [n for n, v in rows[-1].items() if not np.isfinite(v)] or ["the state"]
                    raise Diverged(
                        f"outer step {step + 1} is not finite ({wrong[0]}); the state before it is "
                        f"saved. Lower the learning rates and start in a new folder"
                    )
                stage.update(step, _note(rows[-1]))
                late = time.monotonic() - saved > 60 * checkpoint_minutes
                if late or asked.requested or step >= steps:
                    _save(manager, step, state)
                    saved = time.monotonic()
                if asked.requested:
                    raise Interrupted
    return state


def _manager(path: Path) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
    # With its handler named, orbax does not guess it from what lies there, which may be damaged.
    handler = ocp.StandardCheckpointHandler()
    return ocp.CheckpointManager(path.resolve(), options=options, item_handlers=handler)


def _save(manager: ocp.CheckpointManager, step: int, state: State) -> None:
    if step not in manager.all_steps():
        manager.save(step, args=ocp.args.StandardSave(state))


def _restore(manager: ocp.CheckpointManager, state: State, reporter: Reporter) -> State:
    """The newest checkpoint that can be read, else the initial state."""
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            restored: Any = manager.restore(step, args=ocp.args.StandardRestore(target))
        except Exception as error:  # orbax raises many kinds for a damaged checkpoint
            reporter.say(f"the checkpoint of step {step} cannot be read and is discarded: {error}")
            manager.delete(step)
            continue
        reporter.say(f"resuming at outer step {step}")
        return restored
    return state


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The whole rows of a metrics.jsonl; a last line that a kill cut short is left out."""
    rows = []
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _forget_rows_after(path: Path, step: int) -> float:
    """Drops rows that will be run, and written, again; returns the seconds spent on the others."""
    kept = [row for row in read_metrics(path) if row["step"] <= step]
    write_text(path, lines(kept))
    return kept[-1]["seconds"] if kept else 0.0


def _rows(
    metrics: dict[str, Array], done: int, step: int, seconds: float
) -> list[dict[str, float]]:
    values = {name: np.asarray(value)[:done] for name, value in sorted(metrics.items())}
    return [
        {"step": step + i + 1, "seconds": round(seconds, 3)}
        | {name: float(value[i]) for name, value in values.items()}
        for i in range(done)
    ]


def lines(rows: list[dict[str, float]]) -> str:
    """The rows of a metrics.jsonl as its text."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def _append(path: Path, rows: list[dict[str, float]]) -> None:
    with path.open("a") as file:
        file.write(lines(rows))


def _note(row: dict[str, float]) -> str:
    return "  ".join(f"{n} {v:.4g}" for n, v in row.items() if n not in ("step", "seconds"))

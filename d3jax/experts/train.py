"""Expert trajectories: networks trained on real data, one snapshot of their weights an epoch."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from rich.filesize import decimal

from d3jax.experts.epoch import epoch_function
from d3jax.experts.options import Options, check, data_defaults, descent, kinds
from d3jax.experts.store import create, store_path
from d3jax.host import clocks, compilation, processes
from d3jax.host.files import read_json, room_for, write_json, write_npz
from d3jax.host.interrupt import interruption
from d3jax.host.progress import Diverged, Interrupted, Reporter, locked
from d3jax.keys import Stage, stage_key
from d3jax.networks import initial_parameters, parameter_count
from d3jax.types import InputError, Network, Real


def stored_bytes(network: Network, options: Options) -> int:
    """How much disk the snapshots take, in bytes."""
    each = {"float32": 4, "bfloat16": 2}[options.dtype]
    kept = options.epochs + 1 if options.keep == "all" else 1
    return options.count * kept * number_of_parameters(network) * each


def written_bytes(path: Path) -> int:
    """What an interrupted training has left of them: it writes over that, or goes on after it."""
    files = (path / "snapshots").rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def number_of_parameters(network: Network) -> int:
    """P, the length of a snapshot."""
    return parameter_count(jax.eval_shape(network.init, jax.random.key(0)))


def train_experts(
    network: Network, real: Real, options: Options | None = None, *, seed: int = 0
) -> Array:
    """Trains experts in memory; their snapshots f[E, epochs + 1, P], for `Real.trajectories`.

    Args:
      network: what they are.
      real: the images.
      options: see `Options`; `keep` and `dtype` have no say, all are kept in float32.
      seed: of weights, order and augmentation.

    Raises:
      InputError: options out of range.
      Diverged: the loss is not finite.
    """
    options = Options() if options is None else options
    check(options)
    training = alone(network, options, real, stage_key(seed, Stage.EXPERTS))
    groups = []
    for first in range(0, options.count, options.at_once):
        members = jnp.arange(first, min(first + options.at_once, options.count))
        state = training.fresh(members)
        parameters = number_of_parameters(network)
        snapshots = [np.asarray(state)[:, :parameters]]
        for epoch in range(1, options.epochs + 1):
            state, losses = training.epoch(state, members, epoch)
            if not np.isfinite(np.asarray(losses)).all():
                raise Diverged(
                    f"the experts' loss is not finite in epoch {epoch}; lower their learning rate"
                )
            snapshots.append(np.asarray(state)[:, :parameters])
        groups.append(np.stack(snapshots, axis=1))
    return jnp.asarray(np.concatenate(groups))


def train(
    network: Network,
    options: Options,
    real: Real,
    store: Path,
    config: dict[str, Any],
    reporter: Reporter,
    starts: Callable[[], Array] | None = None,
) -> Path:
    """The folder with these experts' snapshots, trained if it does not hold them yet.

    `starts` makes the parameters f[count, P] to begin with; default fresh ones. What they depend on
    must be in `config`; a `subtask` there draws for itself.

    An interrupted training goes on at the last complete epoch (where snapshots are
    bfloat16 or only the last ones kept, at the last complete group of experts).

    Raises:
      InputError: options out of range, or too little disk.
      Busy: another process is training these experts.
      Interrupted: SIGTERM or SIGINT arrived; the snapshots so far are kept.
      Diverged: their loss is not finite.
    """
    check(options)
    path = store_path(store, config)
    if complete(path):
        reporter.say(f"experts: found in {path}")
        return path
    needed = stored_bytes(network, options)
    make_room(store, needed - written_bytes(path))
    reporter.say(f"experts: {options.count} x {options.epochs} epochs, {decimal(needed)}")
    images, asked = real.images.shape[0], options.batch_size
    if asked is not None and asked > images:
        reporter.say(f"experts: batches of all {images} images, not of {asked}: there are no more")
    path.mkdir(exist_ok=True)
    write_json(path / "config.json", config)
    with locked(path, "training these experts"):
        root = stage_key(config["seed"], Stage.EXPERTS, config.get("subtask"))
        training = alone(network, options, real, root, starts)
        train_side_by_side(training, options, number_of_parameters(network), {0: path}, reporter)
    return path


def complete(path: Path) -> bool:
    """Whether a folder of the store has all its snapshots."""
    return (path / "complete.json").exists()


def make_room(store: Path, needed: int) -> None:
    """Makes the folder of a store; raises InputError where it has not so many bytes to spare."""
    free = free_bytes(store)
    if needed > free:
        raise InputError(
            f"the experts need {decimal(needed)} in {store} but only {decimal(free)} are free; "
            f"choose another --experts folder, fewer experts or epochs, or bfloat16"
        )
    store.mkdir(parents=True, exist_ok=True)


def free_bytes(path: Path) -> int:
    """Bytes to spare where a folder is, or would be."""
    there = next(p for p in (path.absolute(), *path.absolute().parents) if p.is_dir())
    return shutil.disk_usage(there).free


class Training(NamedTuple):
    """How the experts of a run train, or those of several subtasks side by side.

    States are those of `epoch_function`: parameters f[E, P], f[E, 2 P] with momentum; those of
    subtasks have a leading axis [slots] on their devices. A subtask's number stands for it; without
    subtasks, 0.
    """

    fresh: Callable[[Array], Array]  # experts' numbers i32[E] -> state
    # (state, which is consumed; experts' numbers; the epoch's) -> (state, mean losses)
    epoch: Callable[[Array, Array, int], tuple[Array, Array]]
    load: Callable[[Callable[[int], np.ndarray]], Array]  # that of a subtask -> state
    own: Callable[[Array], dict[int, np.ndarray]]  # those of this process's subtasks
    rows: Callable[[Array], np.ndarray]  # losses of all subtasks f[subtasks, E], in every process
    owned: tuple[int, ...] = (0,)  # this process's subtasks
    subtasks: int = 1


def alone(
    network: Network,
    options: Options,
    real: Real,
    root: Array,
    starts: Callable[[], Array] | None = None,
) -> Training:
    """The training of one run's experts; `root` is the key of all that it draws."""
    steps = data_defaults(options, real.images.shape[0])
    one_epoch = epoch_function(network, kinds(options), *steps, descent(options))
    epoch = jax.jit(one_epoch, donate_argnums=0)
    given = None if starts is None else starts()
    freshly = compilation.once(jax.vmap(fresh_parameters(network)))

    def fresh(members: Array) -> Array:
        params = freshly(keys_of(root, members)) if given is None else given[members]
        return at_rest(params, options)

    return Training(
        fresh=fresh,
        epoch=lambda state, members, number: epoch(
            state, keys_of(root, members, number), real, jnp.asarray(number, jnp.int32)
        ),
        load=lambda read: jnp.asarray(read(0)),
        own=lambda state: {0: np.asarray(state)},
        rows=lambda losses: np.asarray(losses)[None],
    )


def at_rest(params: Array, options: Options) -> Array:
    """The state f[..., S] of parameters f[..., P] that have no velocity yet."""
    if not options.momentum:
        return params
    return jnp.concatenate([params, jnp.zeros_like(params)], axis=-1)


def keys_of(root: Array, members: Array, epoch: int | Array | None = None) -> Array:
    """The keys of experts, or of one of their epochs."""
    keys = jax.vmap(lambda expert: jax.random.fold_in(root, expert))(members)
    return keys if epoch is None else jax.vmap(lambda key: jax.random.fold_in(key, epoch))(keys)


def fresh_parameters(network: Network) -> Callable[[Array], Array]:
    """(key of an expert) -> parameters f[P] before its first epoch."""
    return lambda key: initial_parameters(network, jax.random.fold_in(key, 0))


def train_side_by_side(
    training: Training,
    options: Options,
    parameters: int,
    paths: dict[int, Path],
    reporter: Reporter,
) -> None:
    """Trains experts into the folders `paths`, where an interrupted training goes on.

    Args:
      training: of all subtasks.
      options: see `Options`.
      parameters: of an expert, P.
      paths: of the subtasks in this process's rows; those that it owns exist, and are locked.
      reporter: shows progress.

    Raises:
      Interrupted, Diverged: as `train` does, in every process.
    """
    kept = options.epochs + 1 if options.keep == "all" else 1
    shape = (options.count, kept, parameters)
    snapshots = {n: create(paths[n], options.dtype, shape) for n in training.owned}
    # Snapshots written, counted group by group: what an interrupted run has done.
    found = {n: _progress(paths[n]) for n in training.owned}
    groups = range(0, options.count, options.at_once)
    total = len(groups) * (options.epochs + 1)
    done = min((done for done, _ in found.values()), default=total)
    done = int(processes.gathered(done).min())
    resumed = options.dtype == "float32" and options.keep == "all"
    if not resumed:
        done -= done % (options.epochs + 1)

    def stored(n: int, where: slice, place: int) -> np.ndarray:
        array = snapshots.get(n) or create(paths[n], options.dtype, shape)
        params = array[where, place].read().result()
        if not options.momentum:
            return params
        with np.load(_velocity(paths[n], place)) as file:
            return np.concatenate([params, file["velocity"]], axis=1)

    begun = clocks.now()
    stopping = interruption("after this epoch")
    with stopping as asked, reporter.stage("expert epochs", total, done) as stage:
        for group, first in enumerate(groups):
            members = jnp.arange(first, min(first + options.at_once, options.count))
            where = slice(first, first + len(members))
            offset = group * (options.epochs + 1)
            begin = min(max(done - offset, 0), options.epochs + 1)
            if begin > options.epochs:
                continue
            state = (
                training.fresh(members)
                if begin == 0
                else training.load(partial(stored, where=where, place=begin - 1))
            )
            for epoch in range(begin, options.epochs + 1):
                loss = float("nan")
                if epoch > 0:
                    state, values = training.epoch(state, members, epoch)
                    loss = float(training.rows(values).mean())
                    if not np.isfinite(loss):
                        raise Diverged(
                            f"the experts' loss is not finite in epoch {epoch}; lower their "
                            f"learning rate"
                        )
                own = training.own(state.astype(options.dtype))
                done = offset + epoch + 1
                for n, rows in own.items():
                    written, velocity = rows[:, :parameters], rows[:, parameters:]
                    if options.keep == "all" or epoch == options.epochs:
                        place = epoch if options.keep == "all" else 0
                        with room_for(paths[n], written.nbytes):
                            snapshots[n][where, place].write(written).result()
                    if resumed and options.momentum:
                        write_npz(_velocity(paths[n], epoch), {"velocity": velocity})
                    here = {n: s / training.subtasks for n, s in clocks.since(begun).items()}
                    spent = clocks.total([found[n][1], here])
                    write_json(paths[n] / "progress.json", {"done": done, **spent})
                stage.update(done, f"loss {loss:.3f}" if epoch else "")
                if processes.any_of(asked.requested)[0]:
                    raise Interrupted
    for n in training.owned:
        write_json(paths[n] / "complete.json", _progress(paths[n])[1])
        for epoch in range(2):
            _velocity(paths[n], epoch).unlink(missing_ok=True)


def _velocity(path: Path, epoch: int) -> Path:
    """Where the velocity after an epoch is kept until after the next: one of two files."""
    return path / f"velocity-{epoch % 2}.npz"


def _progress(path: Path) -> tuple[int, clocks.Spent]:
    """Snapshots written, and the time that took."""
    try:
        progress = json.loads((path / "progress.json").read_text())
        return int(progress["done"]), clocks.of(progress)
    except (OSError, ValueError, KeyError):
        return 0, clocks.nothing()


def training_time(path: Path) -> clocks.Spent:
    """What training the experts in `path` took, in all its runs."""
    return clocks.of(read_json(path / "complete.json"))

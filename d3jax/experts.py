"""Expert trajectories: networks trained on real data, one snapshot of their weights an epoch."""

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

from d3jax import losses
from d3jax.augment import STRATEGIES, Transformation, augment, draw_choice
from d3jax.blocks import fit
from d3jax.files import write_json
from d3jax.networks import parameter_count, unraveler
from d3jax.progress import Diverged, Interrupted, Reporter, interruption, locked
from d3jax.snapshots import create, store_path
from d3jax.stages import Stage, stage_key
from d3jax.types import InputError, Network, Real

STORE_VERSION = 2  # of the draws and the layout: raised where either changes


@dataclasses.dataclass(frozen=True)
class Options:
    """How experts are trained: plain SGD, as in the trajectory-matching literature."""

    count: int = 4
    """How many experts."""
    epochs: int = 10
    """Epochs, one snapshot each; what distillation does not read is wasted training."""
    learning_rate: float | None = None
    """Learning rate of SGD without momentum; default 0.01, 0.02 below 5000 images."""
    batch_size: int | None = None
    """Images per step, an incomplete last batch left out; default 256, 32 below 5000 images."""
    augmentation: tuple[Transformation, ...] | None = None
    """Siamese augmentation, one of these per step; default all (digits: no flip)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """How snapshots are stored."""
    keep: Literal["all", "last"] = "all"
    """Every epoch's snapshot, or the last one only."""
    at_once: int = 4
    """Experts trained together under vmap; they share each step's kind of augmentation."""


def epoch_function(
    network: Network, options: Options
) -> Callable[[Array, Array, Real], tuple[Array, Array]]:
    """One compiled epoch of several experts.

    Returns:
      (params f[E, P], keys [E], real) -> (params f[E, P], mean loss f[E]). Each expert visits the
      images in a permutation of its own; an incomplete last batch is left out. A subtask has at
      least one batch of images (`real.number`). Experts of one call
      share the kind of augmentation of a step (drawn from the first key), not its parameters:
      so the branch stays a branch under vmap.
    """
    unravel = unraveler(network)
    strategy = STRATEGIES if options.augmentation is None else options.augmentation

    def epoch(params: Array, keys: Array, real: Real) -> tuple[Array, Array]:
        images = real.images.shape[0]
        defaults = data_defaults(options, images)
        batch_size, learning_rate = min(defaults.batch_size, images), defaults.learning_rate
        steps = images // batch_size

        def order(key: Array) -> Array:
            key = jax.random.fold_in(key, 0)
            drawn = (
                jax.random.permutation(key, images)
                if real.number is None
                else _shuffled(key, images, real.number)
            )
            return drawn[: steps * batch_size]

        indices = jax.vmap(order)(keys).reshape(-1, steps, batch_size).swapaxes(0, 1)

        def loss(params: Array, key: Array, choice: Array, index: Array) -> Array:
            batch = real.gather(index)
            if strategy:
                batch = augment(key, batch, strategy, choice=choice)
            targets = jax.nn.one_hot(
                real.labels[index], real.class_counts.shape[0], dtype=batch.dtype
            )
            return fit(network, unravel(params), batch, losses.cross_entropy, targets)[0]

        gradients = jax.vmap(jax.value_and_grad(loss), in_axes=(0, 0, None, 0))

        def step(params: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
            number, index = inputs
            step_keys = jax.vmap(lambda key: jax.random.fold_in(key, number + 1))(keys)
            choice = draw_choice(step_keys[0], strategy)
            value, gradient = gradients(params, step_keys, choice, index)
            rate = jnp.asarray(learning_rate, params.dtype)
            return params - rate * gradient, value

        numbers = jnp.arange(steps, dtype=jnp.int32)
        if real.number is None:
            params, values = jax.lax.scan(step, params, (numbers, indices))
            return params, values.mean(0)
        complete = real.number // batch_size

        def step_or_none(params: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
            """Past the complete batches there is only padding."""
            still = (params, jnp.zeros(params.shape[:1], params.dtype))
            return jax.lax.cond(inputs[0] < complete, step, lambda *_: still, params, inputs)

        params, values = jax.lax.scan(step_or_none, params, (numbers, indices))
        return params, values.sum(0) / complete.astype(values.dtype)

    return jax.jit(epoch, donate_argnums=0)


def _shuffled(key: Array, size: int, count: Array) -> Array:
    """The positions below `count`, i32[], in random order, and the rest up to `size` after them.

    The order depends on key and count alone.
    """
    positions = jnp.arange(size, dtype=jnp.int32)
    drawn = jax.vmap(lambda position: jax.random.bits(jax.random.fold_in(key, position)))(positions)
    return jnp.lexsort((drawn, positions >= count)).astype(jnp.int32)


class _Steps(NamedTuple):
    batch_size: int
    learning_rate: float


def data_defaults(options: Options, images: int) -> _Steps:
    """Batch size and learning rate for so many images: few make an epoch of only a few steps."""
    usual = _Steps(256, 0.01) if images >= 5000 else _Steps(32, 0.02)
    rate = options.learning_rate
    return _Steps(
        options.batch_size or usual.batch_size, usual.learning_rate if rate is None else rate
    )


def configuration(
    options: Options, network: dict[str, Any], data: dict[str, Any], seed: int
) -> dict[str, Any]:
    """All that the experts depend on, as a JSON object; its hash names their folder in the store.

    `data` must identify the images themselves: see `fingerprint`.
    """
    training = dataclasses.asdict(options)
    del training["at_once"]
    strategy = STRATEGIES if options.augmentation is None else options.augmentation
    training["augmentation"] = list(strategy)
    return {
        "version": STORE_VERSION,
        "training": training,
        # The kind of augmentation is shared by the experts trained together.
        "shared_augmentation": min(options.at_once, options.count),
        "network": network,
        "data": data,
        "seed": seed,
    }


def stored_bytes(network: Network, options: Options) -> int:
    """How much disk the snapshots take, in bytes."""
    parameters = parameter_count(jax.eval_shape(network.init, jax.random.key(0)))
    each = {"float32": 4, "bfloat16": 2}[options.dtype]
    kept = options.epochs + 1 if options.keep == "all" else 1
    return options.count * kept * parameters * each


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
    if (path / "complete.json").exists():
        reporter.say(f"experts: found in {path}")
        return path
    needed = stored_bytes(network, options)
    store.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(store).free
    reporter.say(f"experts: {options.count} x {options.epochs} epochs, {needed / 1e6:.1f} MB")
    if needed > free:
        raise InputError(
            f"the experts need {needed / 1e9:.1f} GB in {store} but only {free / 1e9:.1f} GB are "
            f"free; choose another --experts folder, fewer experts or epochs, or bfloat16"
        )
    path.mkdir(exist_ok=True)
    write_json(path / "config.json", config)
    with locked(path, "training these experts"):
        root = stage_key(config["seed"], Stage.EXPERTS, config.get("subtask"))
        _train(network, options, real, path, root, reporter, starts)
    return path


def check(options: Options) -> None:
    """Raises InputError where an option is out of range."""
    for name in ("count", "epochs", "batch_size", "at_once"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"experts' {name} must be at least 1, not {getattr(options, name)}")
    if options.dtype not in ("float32", "bfloat16"):
        raise InputError(f"experts' dtype must be float32 or bfloat16, not {options.dtype!r}")
    if options.learning_rate is not None and not options.learning_rate > 0:
        raise InputError(f"experts' learning_rate must be positive, not {options.learning_rate}")


def _train(
    network: Network,
    options: Options,
    real: Real,
    path: Path,
    root: Array,
    reporter: Reporter,
    starts: Callable[[], Array] | None,
) -> None:
    parameters = parameter_count(jax.eval_shape(network.init, jax.random.key(0)))
    kept = options.epochs + 1 if options.keep == "all" else 1
    snapshots = create(path, options.dtype, (options.count, kept, parameters))
    epoch = epoch_function(network, options)
    # Snapshots written, counted group by group: what an interrupted run has done.
    done, before = _progress(path)
    groups = range(0, options.count, options.at_once)
    total = len(groups) * (options.epochs + 1)
    exact = options.dtype == "float32" and options.keep == "all"
    if not exact:
        done -= done % (options.epochs + 1)
    loss = float("nan")
    begun = _clocks()
    given = None if starts is None else starts()
    with interruption() as asked, reporter.stage("expert epochs", total, done) as stage:
        for number, first in enumerate(groups):
            members = jnp.arange(first, min(first + options.at_once, options.count))
            keys = jax.vmap(lambda expert: jax.random.fold_in(root, expert))(members)
            offset = number * (options.epochs + 1)
            begin = min(max(done - offset, 0), options.epochs + 1)
            if begin > options.epochs:
                continue
            part = snapshots[first : first + len(members)]
            if begin == 0 and given is not None:
                params = given[members]
            elif begin == 0:
                fresh = jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys)
                params = jax.jit(jax.vmap(lambda key: ravel_pytree(network.init(key))[0]))(fresh)
            else:
                params = jnp.asarray(part[:, begin - 1].read().result())
            for number_of_epoch in range(begin, options.epochs + 1):
                if number_of_epoch > 0:
                    epoch_keys = jax.vmap(
                        lambda key, fold=number_of_epoch: jax.random.fold_in(key, fold)
                    )(keys)
                    params, values = epoch(params, epoch_keys, real)
                    loss = float(values.mean())
                    if not np.isfinite(loss):
                        raise Diverged(
                            f"the experts' loss is not finite in epoch {number_of_epoch}; "
                            f"lower their learning rate"
                        )
                if options.keep == "all" or number_of_epoch == options.epochs:
                    written = np.asarray(params.astype(options.dtype))
                    place = number_of_epoch if options.keep == "all" else 0
                    part[:, place].write(written).result()
                done = offset + number_of_epoch + 1
                spent = {name: before[name] + now - begun[name] for name, now in _clocks().items()}
                write_json(path / "progress.json", {"done": done, **spent})
                stage.update(done, f"loss {loss:.3f}" if number_of_epoch else "")
                if asked.requested:
                    raise Interrupted
    write_json(path / "complete.json", _progress(path)[1])


def _clocks() -> dict[str, float]:
    return {"seconds": time.monotonic(), "cpu_seconds": time.process_time()}


def _progress(path: Path) -> tuple[int, dict[str, float]]:
    """Snapshots written, and the time that took."""
    try:
        progress = json.loads((path / "progress.json").read_text())
        return int(progress.pop("done")), {n: float(progress[n]) for n in _clocks()}
    except (OSError, ValueError, KeyError):
        return 0, dict.fromkeys(_clocks(), 0.0)


def training_seconds(path: Path, clock: Literal["seconds", "cpu_seconds"] = "seconds") -> float:
    """Wall or CPU seconds that training the experts in `path` took, in all its runs."""
    return float(json.loads((path / "complete.json").read_text())[clock])

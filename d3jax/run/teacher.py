"""A teacher is looked at before images are optimized under it: what it learned, and still knows."""

import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax import Array

from d3jax.evaluate import classify, population
from d3jax.host import files
from d3jax.host.progress import Reporter
from d3jax.run.job import World
from d3jax.types import HeldOut, InputError

_IMAGES = 2000  # at most so many training images
_CLOSE = 0.02  # what other hardware may change of an accuracy


def check(path: Path, params: Array, world: World, reporter: Reporter) -> None:
    """Says how many of its training images a teacher f[P] is right on, and refuses a bad one.

    The accuracy is kept in the teacher's folder `path`; whenever it is used again, it must be the
    same again.

    Raises:
      InputError: it is no better than chance, or not what it was.
    """
    accuracy, chance = _accuracy(params, world)
    share = f"{accuracy:.1%} of its training images"
    if accuracy <= chance:
        raise InputError(
            f"the teacher is right on {share}, no better than chance: train it longer "
            f"(--expert.epochs), or at another --expert.learning-rate"
        )
    kept = path / "teacher.json"
    if kept.exists():
        before = files.read_json(kept)["accuracy"]
        if abs(accuracy - before) > _CLOSE:
            raise InputError(
                f"the teacher in {path} is right on {share}, and was on {before:.1%} when it was "
                f"trained: its snapshots are damaged, so remove that folder to train it again"
            )
    else:
        files.write_json(kept, {"accuracy": accuracy})
    reporter.say(f"the teacher is right on {share}")


def _accuracy(params: Array, world: World) -> tuple[float, float]:
    """On its training images, by its population statistics; and what is still chance."""
    real = world.real
    number = len(world.dataset.train_labels)
    chosen = np.linspace(0, number - 1, min(number, _IMAGES)).astype(np.int32)
    labels = real.labels[chosen]
    some = HeldOut(real.images[chosen], labels, real.mean, real.sd)
    statistics = population.of_images(world.network, params[None], real)
    accuracy = classify.accuracy(world.network, params[None], some, statistics)
    largest = float(np.bincount(np.asarray(labels)).max()) / len(chosen)
    error = math.sqrt(largest * (1 - largest) / len(chosen))
    return float(jnp.mean(accuracy)), largest + 3 * error

"""Networks trained on a source data set, which distilled steps then adapt or attack."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from d3jax import data, experts
from d3jax.data import subtasks
from d3jax.data.given import DEFAULT, Reading
from d3jax.experts.store import Snapshots, fingerprint
from d3jax.host import clocks
from d3jax.host.progress import Reporter
from d3jax.networks.own import identified
from d3jax.types import InputError, Network, Real


class Source(NamedTuple):
    """What the networks are trained on, and how."""

    options: experts.Options
    real: Real
    images: str  # their fingerprint
    seed: int


def recipe(
    dataset: str,
    train_limit: int | None,
    validation: int,
    options: experts.Options,
    seed: int,
    reading: Reading = DEFAULT,
) -> dict[str, Any]:
    """All that the networks depend on but their architecture, as a JSON object."""
    return {
        **({"reading": reading.chosen()} if reading.chosen() else {}),
        "dataset": dataset,
        "train_limit": train_limit,
        "validation": validation,
        "training": {**dataclasses.asdict(options), "augmentation": options.augmentation},
        "seed": seed,
    }


def load(
    recipe: dict[str, Any],
    image_shape: tuple[int, int, int],
    class_names: Sequence[str],
    data_dir: Path | None,
    path: str | None = None,
) -> Source:
    """The source data of a recipe: images resized to `image_shape`, normalized by their own sd.

    class_names: of the data that networks are adapted to. Where the source has the same names in
      another order (folders sorted otherwise), its classes are numbered as these.
    path: where the data set lies, if its name in the recipe does not say it.

    Raises:
      InputError: the source cannot be loaded or does not fit, or the recipe is not one.
    """
    try:
        training = dict(recipe["training"])
        if training["augmentation"] is not None:
            training["augmentation"] = tuple(training["augmentation"])
        options = experts.Options(**training)
        name, seed = recipe["dataset"], recipe["seed"]
        reading = Reading(**recipe.get("reading", {})).chosen()
        limit, validation = recipe["train_limit"], recipe["validation"]
        experts.check(options)
        whole = [type(number) is int for number in (seed, validation, limit or 0)]
        if not isinstance(name, str) or not all(whole):
            raise TypeError("a name and whole numbers are needed")
    except (KeyError, TypeError) as error:
        raise InputError(f"the recipe of the pretrained networks is not one: {error}") from None
    name = name if path is None else path
    source = data.load(
        name, data_dir, train_limit=limit, validation=validation, seed=seed, **reading
    )
    if source.num_classes != len(class_names) or source.image_shape[2] != image_shape[2]:
        raise InputError(
            f"{name} has {source.num_classes} classes and {source.image_shape[2]} channels, which "
            f"do not fit {len(class_names)} and {image_shape[2]}"
        )
    source = subtasks.in_order(class_names, source) or source
    source = source._replace(train_images=data.resize(source.train_images, image_shape[0]))
    images = fingerprint(source.train_images, source.train_labels)
    return Source(options, source.real(), images, seed)


def train(
    source: Source,
    network: Network,
    architecture: dict[str, Any],
    store: Path,
    reporter: Reporter,
) -> tuple[Array, clocks.Spent]:
    """The parameter vectors f[count, P] of the networks, and the time that training them took.

    From the store where it has them.

    Raises:
      Busy, Interrupted, Diverged: as `experts.train`.
    """
    images = {"images": source.images, "zca": False}
    _, height, width, channels = source.real.images.shape
    fields = identified(architecture, network, (height, width, channels))
    configuration = experts.configuration(source.options, fields, images, source.seed)
    path = experts.train(network, source.options, source.real, store, configuration, reporter)
    snapshots = Snapshots(path)
    last = snapshots.read_all(epochs=slice(snapshots.shape[1] - 1, snapshots.shape[1]))
    return jnp.asarray(np.asarray(last[:, 0]), jnp.float32), experts.training_time(path)


def as_trajectories(weights: Array) -> Array:
    """Parameter vectors f[E, P] as the only snapshots of trajectories f[E, 1, P]."""
    return jax.lax.expand_dims(weights, (1,))

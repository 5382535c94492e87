"""What distilled data is compared with: baselines as artifacts, judged as the artifact is."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from d3jax import artifact, baselines, data, evaluate, judging
from d3jax.evaluate import Protocol
from d3jax.progress import Reporter
from d3jax.stages import Stage, stage_key
from d3jax.types import InputError, Network, Real

_CHOOSING = 2000  # at most so many images choose a learning rate


def check(names: Sequence[str], floats: int, dataset: data.Dataset) -> None:
    """Looks, before anything is trained, whether the baselines can be made.

    Raises:
      InputError: a class has fewer images than `floats` buy.
    """
    number = baselines.images_per_class(floats, dataset.image_shape, dataset.num_classes)
    smallest = int(np.bincount(dataset.train_labels, minlength=dataset.num_classes).min())
    if number > smallest and {"random", "kmeans"} & set(names):
        raise InputError(
            f"as many floats are {number} whole images per class, and the smallest class has "
            f"{smallest}; leave random and kmeans out of --baselines"
        )


def compare(
    names: Sequence[str],
    learning_rates: Sequence[float],
    distilled: artifact.Artifact,
    dataset: data.Dataset,
    normalization: data.Normalization,
    network: Network,
    test: Real,
    protocol: Protocol,
    seed: int,
    reporter: Reporter,
) -> dict[str, dict[str, Any]]:
    """Each baseline's accuracy and size, at no fewer floats than `distilled`.

    Its students' learning rate is that of `learning_rates` which serves it best on the validation
    images or, where none are set aside, on training images: where D3 learns its own.
    """
    protocol = dataclasses.replace(protocol, learning_rate=None, with_means=False)
    per_class = baselines.images_per_class(
        distilled.ledger["floats"], dataset.image_shape, dataset.num_classes
    )
    choosing = _choosing(dataset, normalization, seed)
    rows = {}
    for name in names:
        number = 1 if name == "class_mean" else per_class
        reporter.say(f"baseline {name}: {number} images per class")
        images = baselines.create(name, dataset, normalization, number, seed)
        stored = _as_artifact(name, images, distilled)
        reached, found = evaluate.evaluate_best(
            network,
            stored.synthetic,
            stored.decodable(),
            choosing,
            test,
            protocol,
            learning_rates,
            stage_key(seed, Stage.STUDENTS),
            reporter,
        )
        tried = ", ".join(f"{r:g}: {a:.3f}" for r, a in zip(learning_rates, found, strict=True))
        reporter.say(f"baseline {name}: learning rate {reached.learning_rate:g} of {tried}")
        rows[name] = {
            "accuracy": reached.summary(),
            "floats": stored.ledger["floats"],
            "bytes": stored.ledger["bytes"]["total"],
            "seconds": reached.seconds,
            "learning_rate": reached.learning_rate,
        }
    return rows


def _choosing(dataset: data.Dataset, normalization: data.Normalization, seed: int) -> Real:
    """The images that choose learning rates."""
    images, labels = dataset.validation_images, dataset.validation_labels
    if not len(labels):
        images, labels = dataset.train_images, dataset.train_labels
    drawn = np.random.default_rng(seed).permutation(len(labels))[:_CHOOSING]
    return judging.held_out(images[drawn], labels[drawn], dataset, normalization)


def _as_artifact(name: str, images: np.ndarray, distilled: artifact.Artifact) -> artifact.Artifact:
    """Normalized images f32[N, H, W, C], sorted by class, stored as `distilled` is."""
    header = distilled.header
    half = any(array.dtype == np.float16 for array in jax.tree.leaves(distilled.theta))
    return artifact.create(
        {"data": {"images": jnp.asarray(images)}},
        method=name,
        dataset=header["dataset"],
        class_names=tuple(header["class_names"]),
        normalization=header["normalization"],
        architecture=header["architecture"],
        parametrization={
            "kind": "pixels",
            "image_shape": header["parametrization"]["image_shape"],
            "num_classes": header["parametrization"]["num_classes"],
            "num_items": len(images),
        },
        student_learning_rate=header["student_learning_rate"],
        protocol=header["protocol"],
        seed=header["seed"],
        dtype="float16" if half else "float32",
    )

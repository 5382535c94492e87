"""The real data that an artifact is judged on, read and normalized as the artifact says."""

from typing import Any

import numpy as np

from d3jax import data
from d3jax.data import subtasks
from d3jax.experts.store import fingerprint
from d3jax.run.commands import Judgement
from d3jax.types import InputError


def real_data(
    header: dict[str, Any],
    options: Judgement,
    dataset: data.Dataset | None = None,
    *,
    training_images: bool = False,
) -> tuple[data.Dataset, data.Normalization]:
    """The data set whose test images judge an artifact, and how its images are normalized.

    dataset: instead of the one that the options, or the header, name.
    training_images: read them too; else only where ZCA is computed from them again.

    Raises:
      InputError: it cannot be read, or is not of the artifact's classes and image shape.
    """
    specification = header["parametrization"]
    name = options.dataset or header["dataset"]
    if dataset is None:
        zca = header["normalization"]["zca"]
        dataset = data.load(
            name,
            options.data_dir,
            test_limit=options.test_limit,
            **_chosen_images(zca, header["seed"], options.validation, training_images),
            **header.get("reading", {}),
        )
    normalization = stored_normalization(header, dataset)
    if header.get("subtask") is not None:
        dataset = own_classes(header["subtask"], dataset)
    dataset = in_colour(specification["image_shape"], dataset)
    if list(dataset.image_shape) != specification["image_shape"]:
        raise InputError(
            f"{name} has images of shape {list(dataset.image_shape)}, the artifact of "
            f"{specification['image_shape']}; name the data set that it was distilled from"
        )
    if dataset.num_classes != specification["num_classes"]:
        raise InputError(
            f"{name} has {dataset.num_classes} classes, the artifact "
            f"{specification['num_classes']}; name the data set that it was distilled from"
        )
    return in_order(header["class_names"], dataset), normalization


def _chosen_images(
    zca: dict[str, Any] | None, seed: int, validation: int, training_images: bool
) -> dict[str, Any]:
    """What `load` reads besides test images. ZCA fixes the split that it was computed from."""
    if zca is not None:
        return {name: zca[name] for name in ("train_limit", "validation", "seed")}
    if training_images:
        return {"validation": validation, "seed": seed}
    return {"test_only": True}


def own_classes(subtask: dict[str, Any], dataset: data.Dataset) -> data.Dataset:
    """The images of the classes that an artifact has.

    Raises:
      InputError: it is of another data set.
    """
    if list(dataset.class_names) != subtask["class_names"]:
        raise InputError(
            f"the artifact is of {len(subtask['classes'])} classes of another data set than "
            f"{dataset.name}; name the one that it was distilled from"
        )
    return subtasks.of(dataset, subtask["classes"])


def in_colour(image_shape: list[int], dataset: data.Dataset) -> data.Dataset:
    """The data set in colour, where only its test images were read, which happen to be all grey."""
    if len(dataset.train_labels) or (dataset.image_shape[2], image_shape[2]) != (1, 3):
        return dataset
    train, test = (np.repeat(x, 3, axis=3) for x in (dataset.train_images, dataset.test_images))
    return dataset._replace(train_images=train, test_images=test)


def in_order(class_names: list[str], dataset: data.Dataset) -> data.Dataset:
    """The data set with its classes numbered as in an artifact.

    Raises:
      InputError: they have other names.
    """
    ordered = subtasks.in_order(class_names, dataset)
    if ordered is None:
        names = dataset.class_names
        theirs = next(n for n, (a, b) in enumerate(zip(class_names, names)) if a != b)
        raise InputError(
            f"{dataset.name} has other classes than the artifact: class {theirs} is "
            f"{names[theirs]!r} there, {class_names[theirs]!r} here; name the data set that it was "
            f"distilled from"
        )
    return ordered


def stored_normalization(header: dict[str, Any], dataset: data.Dataset) -> data.Normalization:
    """The normalization that the artifact was made with, a ZCA matrix recomputed.

    Raises:
      InputError: it was whitened with other images than these.
    """
    recipe = header["normalization"]["zca"]
    if recipe is not None:
        images = fingerprint(dataset.train_images, dataset.train_labels)
        if images != recipe["images"]:
            raise InputError(
                "the artifact was whitened with other images than this data set's; name the data "
                "set that it was distilled from"
            )
    plain = data.Normalization.of_header(header["normalization"])
    if recipe is None:
        return plain
    return plain.whitened(dataset.train_images, recipe["epsilon"], recipe.get("kind", "mtt"))

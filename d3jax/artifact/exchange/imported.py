"""Another project's distilled images as an artifact."""

from typing import Any

import jax
import numpy as np

from d3jax.artifact.exchange.published import Published
from d3jax.artifact.file import Artifact, create
from d3jax.data import Dataset, Normalization
from d3jax.types import InputError


def imported(
    found: Published,
    dataset: Dataset,
    normalization: Normalization,
    zca: dict[str, Any] | None,
    *,
    method: str,
    architecture: dict[str, Any],
    protocol: dict[str, Any],
    learning_rate: float,
    subtask: dict[str, Any] | None = None,
    hard_labels: bool = False,
) -> Artifact:
    """An artifact of plain images, stored as float32, as they were published.

    Args:
      found: the images.
      dataset: the data set that they were distilled from; its class names and image shape are read.
      normalization: what normalized images are normalized by, and pixels will be.
      zca: the recipe of its whitening, for the header.
      method, architecture, protocol, learning_rate: for the header; see `artifact.create`.
      hard_labels: take the class of the largest label where labels are soft.

    Labels f[N, K] are probabilities where each row has none below zero and sums to 1, else logits,
    of which the softmax is stored, so that a temperature softens them as an expert's; those of KIP
    and FRePo, which are targets of a regression, count as classes. Images are sorted by class.
    Where classes have different numbers of images, each stores its class.

    Raises:
      InputError: images of another shape or labels of other classes than the data set's.
    """
    check_shape(found, dataset)
    classes, soft = _classes(found, dataset, hard_labels)
    order = np.argsort(classes, kind="stable")
    images = found.images[order]
    if images.dtype == np.uint8:
        images = normalization.apply(images)
    number = dataset.num_classes
    counts = np.bincount(classes, minlength=number)
    theta: dict[str, Any] = {"data": {"images": images}}
    kind = "hard"
    if soft is not None:
        rows = soft[order]
        shares = rows.min() >= 0 and np.abs(rows.sum(1) - 1).max() < 1e-3
        theta["labels"] = rows if shares else np.asarray(jax.nn.softmax(rows))
        kind = "probabilities"
    elif (counts != counts[0]).any():
        kind = "probabilities"
        theta["labels"] = np.eye(number, dtype=np.float32)[classes[order]]
    made = create(
        theta,
        method=method,
        dataset=dataset.name,
        class_names=dataset.class_names,
        normalization={
            "mean": [float(v) for v in normalization.mean],
            "sd": [float(v) for v in normalization.sd],
            "zca": zca,
        },
        architecture=architecture,
        parametrization={
            "kind": "pixels",
            "image_shape": list(dataset.image_shape),
            "num_classes": number,
            "num_items": len(images),
            "label_kind": kind,
        },
        student_learning_rate=learning_rate,
        protocol=protocol,
        seed=0,
        dtype="float32",
        reading=dataset.reading.chosen(),
        subtask=subtask,
    )
    made.header["published"] = {
        "layout": found.layout,
        "files": [file.name for file in found.files[:4]],
        "bytes": found.stored_bytes,
    }
    return made


def check_shape(found: Published, dataset: Dataset) -> None:
    """Raises InputError where images have another shape than the data set's."""
    if found.images.shape[1:] != dataset.image_shape:
        raise InputError(
            f"the images have shape {list(found.images.shape[1:])}, those of {dataset.name} "
            f"{list(dataset.image_shape)}; name the data set that they were distilled from"
        )


def _classes(
    found: Published, dataset: Dataset, hard_labels: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """The class i64[N] of each image, and soft labels f32[N, K] if it has some."""
    number, targets = dataset.num_classes, found.targets
    if targets is None:
        if len(found.images) % number:
            raise InputError(
                f"{len(found.images)} images without labels are not as many for each of {number} "
                f"classes; name their labels with --labels"
            )
        return np.repeat(np.arange(number), len(found.images) // number), None
    if targets.ndim == 2:
        if targets.shape[1] != number:
            raise InputError(
                f"labels are of {targets.shape[1]} classes, {dataset.name} has {number}"
            )
        hard = hard_labels or found.layout in ("kip", "frepo")
        return targets.argmax(1), None if hard else targets
    names = found.class_names
    if names is not None and list(names) != list(dataset.class_names):
        unknown = sorted(set(names) - set(dataset.class_names))
        if unknown:
            raise InputError(f"{dataset.name} has no class {unknown[0]!r}, which the images have")
        targets = np.asarray([dataset.class_names.index(name) for name in names])[targets]
    if targets.min() < 0 or targets.max() >= number:
        raise InputError(
            f"labels go from {targets.min()} to {targets.max()}, {dataset.name} has {number} "
            f"classes"
        )
    return targets, None

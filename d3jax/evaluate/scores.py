"""Scores of distilled data between accuracies, as DD-Ranking defines them, in fractions of 1.

DD-Ranking (Li et al., arXiv 2505.13300) puts a method's accuracy between what all real data reaches
and what random real images reach under the same protocol, so that soft labels and augmentation are
not taken for distillation. Its package, version 0.2.0, computes them in per cent: see
`in_per_cent`, and docs/scores.md.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from d3jax import artifact
from d3jax.data import Dataset, Normalization
from d3jax.evaluate import baselines
from d3jax.types import Batch, InputError, PyTree, Synthetic

RATES = (0.001, 0.005, 0.01, 0.05, 0.1)  # of students, those of DD-Ranking


def hard_label_recovery(real: float, synthetic: float) -> float:
    """HLR: accuracy on all real data less that on distilled images, both with hard labels.

    Fractions; what distillation lost, so that lower is better.
    """
    return real - synthetic


def improvement_over_random(synthetic: float, random: float) -> float:
    """IOR: accuracy of distilled data less that of as many random real images, both with the same
    labels and protocol. Fractions."""
    return synthetic - random


def label_robust_score(ior: float, hlr: float, weight: float = 0.5) -> float:
    """LRS: w IOR - (1 - w) HLR, which is in [-1, 1], put on [0, 1] by (e^x - 1/e) / (e - 1/e).

    Examples:
      >>> round(label_robust_score(ior=0.20, hlr=0.30), 4)
      0.2482
    """
    return _on_unit(weight * ior - (1 - weight) * hlr)


def augmentation_robust_score(augmented: float, plain: float, weight: float = 0.5) -> float:
    """ARS: g times the gain over random images with augmentation and 1 - g times that without, put
    on [0, 1] as the label-robust score is. Fractions."""
    return _on_unit(weight * augmented + (1 - weight) * plain)


def in_per_cent(score: Callable[..., float], *parts: float, weight: float = 0.5) -> float:
    """What DD-Ranking 0.2.0 gives for these parts (fractions): per cents go into the exponent.

    It is not in [0, 1]: an IOR of 20 % and an HLR of 30 % give -0.154.
    """
    return score(*(100 * part for part in parts), weight)


def _on_unit(value: float) -> float:
    return (math.exp(value) - math.exp(-1)) / (math.e - math.exp(-1))


def hardened(synthetic: Synthetic) -> Synthetic:
    """The same images; of each label the largest, as one-hot."""

    def sample(theta: dict[str, PyTree], key: Array | None, indices: Array | None = None) -> Batch:
        images, targets = synthetic.sample(theta, key, indices)
        classes = jnp.argmax(targets, axis=1)
        return Batch(images, jax.nn.one_hot(classes, targets.shape[1], dtype=targets.dtype))

    return synthetic._replace(sample=sample, label_kind="hard")


def random_images(
    distilled: artifact.Artifact, dataset: Dataset, normalization: Normalization, seed: int
) -> artifact.Artifact:
    """Random real images with the labels of the distilled data: as many of each class.

    Of plain images that is their number; of a generator as many whole images as its stored numbers
    are worth, rounded up. An image of a class gets the label of an item of the class, in turn.

    Raises:
      InputError: fewer items than classes, a class without items, or more images than a class has.
    """
    header, number = distilled.header, dataset.num_classes
    items = distilled.synthetic.num_items
    if items < number:
        raise InputError(
            f"scores compare with random images of every class, and the artifact has {items} items "
            f"for {number} classes"
        )
    per_class = -(-items // number)
    if distilled.kind != "pixels":
        per_class = baselines.bought("random", baselines.stored(distilled.theta), dataset)
    images = baselines.create("random", dataset, normalization, per_class, seed)
    specification: dict[str, Any] = {
        "kind": "pixels",
        "image_shape": header["parametrization"]["image_shape"],
        "num_classes": number,
        "num_items": len(images),
    }
    theta: dict[str, PyTree] = {"data": {"images": images}}
    kind = distilled.synthetic.label_kind
    if kind != "hard":
        # Students meet them as they meet the artifact's; logits have become what they stand for.
        specification["label_kind"] = "probabilities" if kind == "logits" else kind
        targets = np.asarray(distilled.sample().targets)
        classes = targets.argmax(1)
        # What was imported is in the order of its labels, a class may have more items than another.
        if (np.diff(classes) < 0).any() or len(np.unique(classes)) < number:
            if items % number:
                raise InputError(f"no item of the artifact is of some of the {number} classes")
            classes = np.repeat(np.arange(number), items // number)
        own = [np.flatnonzero(classes == label) for label in range(number)]
        turns = [np.resize(positions, per_class) for positions in own]
        theta["labels"] = targets[np.concatenate(turns)]
    return artifact.Artifact({**header, "parametrization": specification}, theta)

"""Synthetic data as plain images."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from d3jax.synthetic import labels, starts
from d3jax.synthetic.arguments import converting
from d3jax.types import Batch, InputError, PyTree, Real, Synthetic, check_known


def create(
    *,
    image_shape: Sequence[int],
    num_classes: int,
    num_items: int,
    label_kind: str = "hard",
    start: str = "real",
) -> Synthetic:
    """Images themselves, normalized: `theta["data"]["images"]` f[N, H, W, C].

    Args:
      image_shape: (H, W, C).
      num_classes: K.
      num_items: N; with hard labels a multiple of K, sorted by class.
      label_kind: one of `labels.KINDS`.
      start: `real` (random real images of the classes, all different), `kmeans` (centres within
        each class, see `starts.centres`) or `noise` (standard normal).

    Raises:
      InputError: N is not positive, or not a multiple of K where labels are hard.

    Examples:
      >>> data = create(image_shape=(8, 8, 1), num_classes=2, num_items=4, start="noise")
      >>> batch = data.sample(data.init(jax.random.key(0), None), None)
      >>> print(batch.images.shape, batch.targets.argmax(1))
      (4, 8, 8, 1) [0 0 1 1]
    """
    shape = (num_items, *image_shape)
    check_known("label kind", label_kind, labels.KINDS)
    check_known("start", start, starts.STARTS)
    if num_classes < 1 or num_items < 1 or (label_kind == "hard" and num_items % num_classes):
        raise InputError(
            f"the number of images must be a positive multiple of the {num_classes} classes, "
            f"not {num_items}"
        )

    def init(key: Array, real: Real) -> dict[str, PyTree]:
        if start == "noise":
            images = jax.random.normal(key, shape, jnp.float32)
        else:
            per_class = -(-num_items // num_classes)
            classes = labels.item_classes(num_items, num_classes)
            turns = jnp.arange(num_items, dtype=jnp.int32) % per_class
            images = starts.images(start, key, real, per_class)[classes, turns]
        theta: dict[str, PyTree] = {"data": {"images": images}}
        if label_kind != "hard":
            theta["labels"] = labels.start(num_items, num_classes)
        return theta

    def sample(theta: dict[str, PyTree], key: Array | None, indices: Array | None = None) -> Batch:
        del key  # images are what they are
        images = theta["data"]["images"]
        classes = labels.item_classes(num_items, num_classes, indices)
        targets = labels.targets(theta, label_kind, classes, indices, num_classes)
        return Batch(
            images if indices is None else images[indices],
            targets.astype(images.dtype),
        )

    groups = ("data", *labels.groups(label_kind))
    made = Synthetic(
        init, sample, lambda theta, key: theta, num_items, num_classes, groups,
        clip=clip, label_kind=label_kind,
    )  # fmt: skip
    return converting(made)


def clip(theta: dict[str, PyTree], real: Real) -> dict[str, PyTree]:
    """Images between black and white as `real` normalizes them; whitened ones as they are."""
    if real.images.dtype != jnp.uint8:
        return theta
    images = theta["data"]["images"]
    black, white = (((level - real.mean) / real.sd).astype(images.dtype) for level in (0, 1))
    return {**theta, "data": {"images": jnp.clip(images, black, white)}}

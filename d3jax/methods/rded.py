"""RDED: real patches that a teacher finds easy, put together as images (arXiv 2312.03526).

Sun et al., "On the Diversity and Realism of Distilled Dataset", CVPR 2024. Nothing is optimized.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from d3jax import experts
from d3jax.data import Dataset
from d3jax.data.patches import select_patches, tile
from d3jax.data.views import draw_box, resized_crop
from d3jax.distill.compose import compose
from d3jax.methods.registry import TINY, Setting, Spec, reads_teacher, register
from d3jax.networks import unraveler
from d3jax.synthetic import pixels
from d3jax.synthetic.labels import teacher, teacher_labels
from d3jax.types import InputError, Method, Network, PyTree, Real, Synthetic, check_at_least_one

_AT_ONCE = 64  # images whose crops the teacher scores together


@dataclasses.dataclass(frozen=True)
class RDEDOptions:
    """How patches are chosen; there are no outer steps (--outer-steps says nothing)."""

    images: int | None = None
    """Real images of each class that patches are cut from, one of each at most; default 300, or
    all of the smallest class."""
    crops: int = 5
    """Random crops of each, of which the best is kept."""
    factor: int = 1
    """Patches side by side and above each other in an image (224 pixels: 2)."""
    smallest: float = 0.08
    """The smallest crop's share of its image."""


def rded(network: Network, synthetic: Synthetic, options: RDEDOptions) -> Method:
    """Of real images the square crops that a teacher classifies best, as images.

    Args:
      network: the teacher's architecture; `real.trajectories[0, -1]` are its weights.
      synthetic: pixels.
      options: see `RDEDOptions`.

    A crop's score is the teacher's cross entropy at its true class; crops smaller than an image are
    padded with zeros to it for that. Batch norm normalizes by the teacher's training data. Of each
    image the best crop stays, of these the best of each class.

    Raises:
      InputError: options out of range; a parametrization that is not pixels.
    """
    _check(options)
    number, classes = synthetic.num_items, synthetic.num_classes
    per_class = number // classes
    count = per_class * options.factor**2
    images = max(300, count) if options.images is None else options.images

    def init(key: Array, real: Real) -> dict[str, PyTree]:
        for_theta, for_teacher, for_images, for_crops = jax.random.split(key, 4)
        theta = synthetic.init(for_theta, real)
        shape = real.images.shape[1:]
        if theta["data"].keys() != {"images"} or "labels" in synthetic.groups:
            raise InputError("RDED chooses pixels with hard labels, or an expert's")
        if shape[0] % options.factor or shape[1] % options.factor:
            raise InputError(
                f"{options.factor} patches a side do not divide {shape[0]}x{shape[1]} pixels; "
                f"choose another --factor"
            )
        size = (shape[0] // options.factor, shape[1] // options.factor)
        params, statistics = teacher(network, for_teacher, real)
        params = unraveler(network)(params)
        positions = real.sample_different(for_images, images)

        def scores(label: Array, position: Array, boxes: Array) -> Array:
            """f[R] of one image's crops."""
            image = real.gather(position)
            crops = jax.vmap(lambda box: resized_crop(image, box, size))(boxes)
            logits = teacher_labels(network, params, statistics or None, padded(crops, shape))
            return -jax.nn.log_softmax(logits)[:, label]

        def of_class(inputs: tuple[Array, Array, Array]) -> Array:
            label, position, key = inputs
            keys = jax.random.split(key, images * options.crops)
            square = (1.0, 1.0)
            draw = jax.vmap(lambda k: draw_box(k, shape[:2], options.smallest, square))
            boxes = draw(keys).reshape(images, options.crops, 4)
            found = jax.lax.map(
                lambda own: scores(label, *own), (position, boxes), batch_size=_AT_ONCE
            )
            chosen, crop = select_patches(found, count)
            patches = jax.vmap(lambda image, box: resized_crop(image, box, size))(
                real.gather(position[chosen]), boxes[chosen, crop]
            )
            return tile(patches, options.factor)

        labels = jnp.arange(classes, dtype=jnp.int32)
        keys = jax.random.split(for_crops, classes)
        made = jax.lax.map(of_class, (labels, positions, keys))
        return {**theta, "data": {"images": made.reshape(number, *shape)}}

    return compose(synthetic, (), {}, init)


def padded(crops: Array, shape: tuple[int, ...]) -> Array:
    """`crops` f[B, h, w, C] in the middle of zeros, f[B, H, W, C]."""
    rows, columns = (whole - part for whole, part in zip(shape[:2], crops.shape[1:3]))
    room = ((rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2))
    return jnp.pad(crops, ((0, 0), *room, (0, 0)))


def _check(options: RDEDOptions) -> None:
    check_at_least_one(options, "images", "crops", "factor")
    if not 0 < options.smallest <= 1:
        raise InputError(f"smallest must be above 0, up to 1, not {options.smallest}")


def _resolve(run: Any, dataset: Dataset) -> Any:
    """As many images as there are, one outer step that does nothing."""
    own = run.rded
    _check(own)
    if run.parametrization.kind != "pixels" or run.parametrization.labels == "learned":
        raise InputError(
            "RDED chooses pixels with hard labels, or an expert's: leave out --parametrization, "
            "and --labels learned"
        )
    smallest = int(np.bincount(dataset.train_labels, minlength=dataset.num_classes).min())
    count = run.synthetic_items(dataset) // dataset.num_classes * own.factor**2
    images = min(smallest, max(300, count)) if own.images is None else own.images
    if not count <= images <= smallest:
        raise InputError(
            f"{count} patches a class are cut from as many different images at least, and the "
            f"smallest class has {smallest}: take --images from {count} to {smallest}, or fewer "
            f"--images-per-class"
        )
    return dataclasses.replace(run, rded=dataclasses.replace(own, images=images), outer_steps=1)


def _build(options: RDEDOptions, setting: Setting) -> Method:
    return rded(setting.network, setting.synthetic, options)


def _tiny(network: Network) -> Method:
    options = RDEDOptions(images=8, crops=2, factor=2)
    return rded(network, pixels.create(**TINY, num_items=6), options)


SPEC = register(
    Spec(
        name="rded",
        options=RDEDOptions,
        build=_build,
        tiny=_tiny,
        paper="RDED, real patches, nothing optimized, arXiv 2312.03526",
        figure="CIFAR-10, 10 / 50 images per class: 37.1 / 62.1 % (ResNet18, soft labels)",
        resolve=_resolve,
        experts=reads_teacher,
        labels="end",
        baselines=("random", "random_hard"),
        norm="batch",
        trained=experts.TEACHER,
    )
)

"""Views of training images for a teacher to label: crop, mirror and mix, all drawn from one key.

The same key gives the same view again, in any process, so that labels of views need no file of
coordinates beside them: the key of (epoch, batch) says where a view was cut and what was mixed.
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from d3jax.data.augment import augment
from d3jax.types import InputError

_RATIO = (3 / 4, 4 / 3)  # of width to height
_TRIES = 10


@dataclasses.dataclass(frozen=True)
class Views:
    """What a view of a batch is; the defaults are those for small images without a mix."""

    crop: Literal["none", "padded", "resized"] = "padded"
    """After padding by an eighth with zeros; or of a random area and ratio, resized."""
    smallest: float = 0.08
    """Resized: the smallest share of the area; the largest is 1."""
    flip: bool = True
    """Mirror, one in two."""
    mix: Literal["none", "mixup", "cutmix"] = "none"
    """With the same batch in another order."""
    concentration: float = 1.0
    """Mix: a of Beta(a, a), which an image's own share is drawn from, once a batch (SRe2L on
    CIFAR-100: mixup, 0.8; on ImageNet: cutmix, 1)."""


def check(views: Views) -> None:
    """Raises InputError where a view is out of range."""
    if not 0 < views.smallest <= 1:
        raise InputError(f"a crop's smallest share must be above 0, up to 1, not {views.smallest}")
    if not 0 < views.concentration < math.inf:
        raise InputError(f"a mix's concentration must be positive, not {views.concentration}")


def view(
    key: Array,
    images: Array,
    views: Views,
    *,
    shared: bool = False,
    smallest: Array | None = None,
) -> Array:
    """A view of normalized `images` f[B, H, W, C], as f[B, H, W, C].

    shared: one crop and one flip of the whole batch, not of each image. smallest: f[], in place of
    `views.smallest`.
    """
    return labelled_view(key, images, None, views, shared=shared, smallest=smallest)[0]


def labelled_view(
    key: Array,
    images: Array,
    targets: Any,
    views: Views,
    *,
    shared: bool = False,
    smallest: Array | None = None,
) -> tuple[Array, Any]:
    """`view`, and targets f[B, K], or None, mixed as its images are.

    Of cutmix the share is that of the pixels, after what lies outside was cut off. Only labels of
    images need it: a teacher labels the view itself.
    """
    check(views)
    for_crop, for_flip, for_mix = jax.random.split(key, 3)
    if views.crop == "padded":
        images = augment(for_crop, images, ("crop",), shared=shared)
    elif views.crop == "resized":
        number = 1 if shared else len(images)
        least = views.smallest if smallest is None else smallest
        boxes = jax.vmap(lambda k: draw_box(k, images.shape[1:3], least))(
            jax.random.split(for_crop, number)
        )
        boxes = jnp.broadcast_to(boxes, (len(images), 4))
        images = jax.vmap(resized_crop)(images, boxes.astype(images.dtype))
    if views.flip:
        images = augment(for_flip, images, ("flip",), shared=shared)
    return (images, targets) if views.mix == "none" else _mixed(for_mix, images, targets, views)


def rolled(key: Array, images: Array, most: int) -> Array:
    """`images` f[B, H, W, C] moved down and right by 0 to `most` pixels, round the edges.

    One draw of each direction for the batch: SRe2L's jitter.
    """
    return jnp.roll(images, jax.random.randint(key, (2,), 0, most + 1, jnp.int32), (1, 2))


def draw_box(
    key: Array,
    shape: tuple[int, ...],
    smallest: float | Array,
    ratio: tuple[float, float] = _RATIO,
) -> Array:
    """A box (top, left, height, width) f32[4] in pixels, whole numbers, within (H, W).

    Its area is a share of the image's that is uniform from `smallest` to 1, and the logarithm of
    its width over its height is uniform in `ratio`. Of ten tries the first that fits; else the
    largest central box of such a ratio. As torchvision's RandomResizedCrop.
    """
    for_area, for_ratio, for_place = jax.random.split(key, 3)
    size = jnp.asarray(shape, jnp.float32)
    area = jax.random.uniform(for_area, (_TRIES,), jnp.float32, smallest, 1) * jnp.prod(size)
    low, high = (math.log(value) for value in ratio)
    sides = jnp.exp(jax.random.uniform(for_ratio, (_TRIES,), jnp.float32, low, high))
    tries = jnp.round(jnp.sqrt(jnp.stack([area / sides, area * sides], axis=1)))
    fits = ((tries > 0) & (tries <= size)).all(1)
    height, width = shape
    largest = (round(min(height, width / ratio[0])), round(min(width, height * ratio[1])))
    chosen = jnp.where(fits.any(), tries[jnp.argmax(fits)], jnp.asarray(largest, jnp.float32))
    place = jnp.floor(jax.random.uniform(for_place, (2,), jnp.float32) * (size - chosen + 1))
    place = jnp.minimum(place, size - chosen)  # rounding
    place = jnp.where(fits.any(), place, jnp.floor((size - chosen) / 2))
    return jnp.concatenate([place, chosen])


def resized_crop(image: Array, box: Array, size: tuple[int, int] | None = None) -> Array:
    """The part `box` (top, left, height, width) f[4] of an `image` f[H, W, C], resized to `size`.

    Bilinear, smoothed where it shrinks, and of nothing outside the box, as Pillow and torchvision
    resize what was cut out. Default size the image's own.
    """
    out = image.shape[:2] if size is None else size

    def weights(axis: int) -> Array:
        """f[out, in], rows that sum to 1."""
        start, length = box[axis], box[2 + axis]
        factor = length / out[axis]
        centres = start + (jnp.arange(out[axis], dtype=box.dtype) + 0.5) * factor - 0.5
        places = jnp.arange(image.shape[axis], dtype=box.dtype)
        distances = jnp.abs(centres[:, None] - places) / jnp.maximum(factor, 1)
        inside = (places >= start) & (places < start + length)
        found = jnp.where(inside, jnp.maximum(1 - distances, 0), 0)
        return (found / found.sum(1, keepdims=True)).astype(image.dtype)

    # Products with two small matrices: see `warps.scale`.
    exact = jax.lax.Precision.HIGHEST
    image = jnp.einsum("ih,hwc->iwc", weights(0), image, precision=exact)
    return jnp.einsum("jw,iwc->ijc", weights(1), image, precision=exact)


def mixup(images: Array, others: Array, share: Array) -> Array:
    """`share` f[] of `images` f[B, H, W, C], and the rest of `others` (arXiv 1710.09412)."""
    return share * images + (1 - share) * others


def cutmix(images: Array, others: Array, share: Array, centre: Array) -> Array:
    """`images` f[B, H, W, C] with a rectangle of `others` around `centre` i32[2].

    Its sides are sqrt(1 - share) of the image's, rounded down to whole numbers of pixels on either
    side of the centre; what lies outside is cut off (arXiv 1905.04899).
    """
    rows, columns = _rectangle(images.shape[1:3], share, centre)
    return jnp.where(rows[:, None, None] & columns[:, None], others, images)


def _rectangle(sizes: tuple[int, ...], share: Array, centre: Array) -> tuple[Array, Array]:
    """Which rows bool[H] and columns bool[W] cutmix's rectangle covers."""
    ratio = jnp.sqrt(1 - share)

    def covered(size: int, middle: Array) -> Array:
        half = jnp.floor(size * ratio).astype(jnp.int32) // 2
        place = jnp.arange(size, dtype=jnp.int32)
        return (place >= middle - half) & (place < middle + half)

    return covered(sizes[0], centre[0]), covered(sizes[1], centre[1])


def _mixed(key: Array, images: Array, targets: Any, views: Views) -> tuple[Array, Any]:
    for_order, for_share, *for_centre = jax.random.split(key, 4)
    order = jax.random.permutation(for_order, jnp.arange(len(images), dtype=jnp.int32))
    a = views.concentration
    share = jax.random.beta(for_share, a, a, dtype=images.dtype)
    if views.mix == "mixup":
        images = mixup(images, images[order], share)
    else:
        sizes = images.shape[1:3]
        drawn = [jax.random.randint(k, (), 0, n, jnp.int32) for k, n in zip(for_centre, sizes)]
        centre = jnp.stack(drawn)
        images = cutmix(images, images[order], share, centre)
        rows, columns = (jnp.mean(x.astype(share.dtype)) for x in _rectangle(sizes, share, centre))
        share = 1 - rows * columns
    return images, None if targets is None else mixup(targets, targets[order], share)

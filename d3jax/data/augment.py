"""Differentiable augmentation: keyed, pure, and linear (up to a constant) in the images.

One kind of transformation is drawn for a batch, and parameters for each of its images. The kinds
and their ranges are those in common use since Zhao and Bilen, "Dataset Condensation with
Differentiable Siamese Augmentation" (ICML 2021, arXiv 2102.08259). Theirs is siamese in that real
and synthetic images get the same parameters: two batches do here where they get the same key.

Here the parameters are drawn; `warps` apply them to one image.
"""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array, lax

from d3jax.data.warps import color, crop, cutout, flip, rotate, scale
from d3jax.types import InputError

Transformation = Literal["color", "crop", "cutout", "flip", "scale", "rotate"]

BRIGHTNESS = 1.0  # width of the range of what is added, centred at 0
SATURATION = 2.0  # largest factor on the deviation from the pixel's mean over channels
CONTRAST = 0.5  # smallest factor on the deviation from the image's mean; the largest is 1 more
SCALE = 1.2  # largest factor; the smallest is its inverse
ANGLE = math.pi / 12  # largest rotation either way, in radians


class _Transformation(NamedTuple):
    draw: Callable[[Array, tuple[int, ...], jnp.dtype], tuple[Array, ...]]  # for one image
    apply: Callable[..., Array]  # (image f[H, W, C], *parameters)


def _draw_color(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> tuple[Array, ...]:
    brightness, saturation, contrast = jax.random.uniform(key, (3,), dtype)
    return (brightness - 0.5) * BRIGHTNESS, saturation * SATURATION, contrast + CONTRAST


def _draw_crop(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> tuple[Array, ...]:
    largest = [(size + 4) // 8 for size in shape[:2]]  # an eighth, rounded
    return (_draw_whole(key, [(-size, size) for size in largest]),)


def _draw_cutout(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> tuple[Array, ...]:
    # Where the side is even, the last centre is one past the last pixel, as the first is the first:
    # equally much of the square is then left inside.
    last = [size - (size + 1) // 2 % 2 for size in shape[:2]]
    return (_draw_whole(key, [(0, size) for size in last]),)


def _draw_whole(key: Array, bounds: list[tuple[int, int]]) -> Array:
    """A whole number within each of `bounds`, both inclusive, i32[2]."""
    # Not one draw with an array of bounds: `vmap` within `shard_map` refuses that (JAX 0.10.2).
    keys = jax.random.split(key, len(bounds))
    return jnp.stack(
        [
            jax.random.randint(key, (), low, high + 1, jnp.int32)
            for key, (low, high) in zip(keys, bounds)
        ]
    )


def _draw_flip(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> tuple[Array, ...]:
    return (jax.random.bernoulli(key),)


def _draw_scale(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> tuple[Array, ...]:
    return (jax.random.uniform(key, (2,), dtype, minval=1 / SCALE, maxval=SCALE),)


def _draw_rotate(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> tuple[Array, ...]:
    return (jax.random.uniform(key, (), dtype, minval=-ANGLE, maxval=ANGLE),)


_TRANSFORMATIONS = {
    "color": _Transformation(_draw_color, color),
    "crop": _Transformation(_draw_crop, crop),
    "cutout": _Transformation(_draw_cutout, cutout),
    "flip": _Transformation(_draw_flip, flip),
    "scale": _Transformation(_draw_scale, scale),
    "rotate": _Transformation(_draw_rotate, rotate),
}

STRATEGIES: tuple[Transformation, ...] = get_args(Transformation)


# Data sets of characters, which a mirror would confuse, whatever the names of their classes.
_CHARACTERS = {"digits", "moved_digits", "mnist", "usps", "svhn", "svhn_cropped", "kmnist"}
_CHARACTERS |= {"emnist", "qmnist"}
# Data sets of things, in up to ten classes, which a file without names numbers as digits are named.
_THINGS = {"cifar10", "cifar_10", "fashion_mnist", "fashionmnist", "stl10", "cinic10", "imagenette"}
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def default_strategy(dataset: str, class_names: Sequence[str] = ()) -> tuple[Transformation, ...]:
    """All kinds, but no flip for digits and letters, as is the field's habit.

    See `why_not_flipped` for what are taken for such.
    """
    flipped = why_not_flipped(dataset, class_names) is None
    return tuple(name for name in STRATEGIES if flipped or name != "flip")


def why_not_flipped(dataset: str, class_names: Sequence[str] = ()) -> str | None:
    """Why images of a data set should not be mirrored; None where they may be.

    They are taken for digits or letters by the data set's name, where it is a known one (`emnist/
    letters`, `data/mnist.npz`); else by the names of its classes, where each is a digit, in figures
    or words ("3", "three", "3 - three"), or a single letter. So up to ten classes that a file has
    no names for, which are numbered then, count as digits: a needless flip of digits costs more
    than one that is left out.
    """
    path = PurePath(dataset.lower().replace("-", "_"))
    known = {*path.parts[:1], path.stem}
    if known & _CHARACTERS:
        return "the data set is one of digits or letters"
    if known & _THINGS or not class_names or not all(map(_is_character, class_names)):
        return None
    return (
        f"its classes, {class_names[0]} to {class_names[-1]}, are named like digits or letters; "
        f"options such as --student.augmentation say otherwise"
    )


def _is_character(class_name: str) -> bool:
    """Whether a class is named as a digit or a letter."""
    words = re.findall(r"[^\W_]+", class_name.lower())
    if len(words) == 2 and words[0].isdigit():  # 3 - three
        return words[0] == str(_DIGITS.index(words[1])) if words[1] in _DIGITS else False
    return len(words) == 1 and (len(words[0]) == 1 or words[0] in _DIGITS)


def draw_choice(key: Array, strategy: tuple[str, ...] = STRATEGIES) -> Array:
    """Which of `strategy` a batch gets, i32[], drawn uniformly; 0 of an empty strategy.

    It is what `augment` draws from the same `key`. Raises InputError as `augment` does.
    """
    _check(strategy)
    # Of its own fold of the key: parameters drawn from the same key do not depend on it.
    return jax.random.randint(jax.random.fold_in(key, 0), (), 0, max(len(strategy), 1), jnp.int32)


def augment(
    key: Array,
    images: Array,
    strategy: tuple[str, ...] = STRATEGIES,
    *,
    choice: Array | None = None,
    shared: bool = False,
) -> Array:
    """Transform `images` f[B, H, W, C] by one of `strategy`, drawn for the batch, as f[B, H, W, C].

    The parameters of image i follow from `key`, i and the image's shape alone, so that two batches
    get the same ones from the same key, also batches of different size; `shared` gives those of
    image 0 to every image (the siamese augmentation of the paper). An empty strategy changes
    nothing.

    `choice` i32[] is an index into `strategy` that replaces the draw. Under `vmap` with an
    unbatched choice, students keep their own parameters and one branch runs; with none, each
    student draws its own kind, and all branches run for all of them.

    Twice differentiable in the images. 16-bit images are transformed in float32.

    Raises InputError for an unknown name in `strategy`, or images that are not f[B, H, W, C].

    Zhao and Bilen (arXiv 2102.08259), section 3; ranges as in the code in common use (color:
    brightness +-0.5, saturation 0 to 2, contrast 0.5 to 1.5; crop: an eighth of the size; cutout:
    half the size; flip: one in two; scale: 1/1.2 to 1.2 per axis; rotate: +-15 degrees).
    Deviations: that code saves and sets a global seed where this takes a key, and see `rotate`.
    """
    _check(strategy)
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(
            "augmentation takes floating-point images of shape [batch, height, width, channels], "
            f"not {images.dtype}{list(images.shape)}"
        )
    if not strategy:
        return images
    if choice is None:
        choice = draw_choice(key, strategy)
    dtype = images.dtype if images.dtype == jnp.float64 else jnp.dtype(jnp.float32)
    parameters_key = jax.random.fold_in(key, 1)
    if shared:
        keys = jax.random.fold_in(parameters_key, 0)
    else:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            parameters_key, jnp.arange(images.shape[0], dtype=jnp.int32)
        )

    def branch(name: str) -> Callable[[Array, Array], Array]:
        transformation = _TRANSFORMATIONS[name]

        def draw(key: Array) -> tuple[Array, ...]:
            return transformation.draw(key, images.shape[1:], dtype)

        def transform(keys: Array, images: Array) -> Array:
            parameters = draw(keys) if shared else jax.vmap(draw)(keys)
            return jax.vmap(
                lambda image, parameters: transformation.apply(image, *parameters),
                in_axes=(0, None if shared else 0),
            )(images, parameters)

        return transform

    result = lax.switch(choice, [branch(name) for name in strategy], keys, images.astype(dtype))
    return result.astype(images.dtype)


def _check(strategy: tuple[str, ...]) -> None:
    names = (strategy,) if isinstance(strategy, str) else strategy
    unknown = [name for name in names if name not in _TRANSFORMATIONS]
    if unknown or isinstance(strategy, str):
        raise InputError(
            f"an augmentation strategy is a tuple of names among {', '.join(STRATEGIES)}, "
            f"not {strategy!r}"
        )

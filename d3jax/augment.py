"""Differentiable siamese augmentation: keyed, pure, and linear (up to a constant) in the images.

One kind of transformation is drawn for a batch, and parameters for each of its images. The kinds
and their ranges are those in common use since Zhao and Bilen, "Dataset Condensation with
Differentiable Siamese Augmentation" (ICML 2021, arXiv 2102.08259).

The functions named after a transformation take one image f[H, W, C] and explicit parameters;
`augment` draws the parameters. Positions are in pixels, pixel centres at whole numbers, and the
centre of the image is at ((H - 1) / 2, (W - 1) / 2): what PyTorch calls `align_corners=False`.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array, lax

from d3jax.types import InputError

Transformation = Literal["color", "crop", "cutout", "flip", "scale", "rotate"]

BRIGHTNESS = 1.0  # width of the range of what is added, centred at 0
SATURATION = 2.0  # largest factor on the deviation from the pixel's mean over channels
CONTRAST = 0.5  # smallest factor on the deviation from the image's mean; the largest is 1 more
SCALE = 1.2  # largest factor; the smallest is its inverse
ANGLE = math.pi / 12  # largest rotation either way, in radians


def color(image: Array, brightness: Array, saturation: Array, contrast: Array) -> Array:
    """Change brightness, then saturation, then contrast of an `image` f[H, W, C].

    `brightness` f[] is added; `saturation` f[] multiplies each pixel's deviation from its mean over
    channels (nothing happens to a grey image); `contrast` f[] multiplies the deviation from the
    mean of the whole image. The result is not clipped: images are normalized, and know no bounds.
    """
    image = image + brightness
    grey = image.mean(axis=-1, keepdims=True)
    image = grey + (image - grey) * saturation
    mean = image.mean()
    return mean + (image - mean) * contrast


def crop(image: Array, shift: Array) -> Array:
    """Pad an `image` f[H, W, C] with zeros and crop H x W of it, `shift` i32[2] off centre.

    `shift` is in rows and columns, and padding as wide as it takes: the result's pixel (i, j) is
    the image's pixel (i + shift[0], j + shift[1]), zero outside.
    """
    return _linear(_shifted, lambda image, shift: _shifted(image, -shift), image, shift)


def _shifted(image: Array, shift: Array) -> Array:
    rows = jnp.arange(image.shape[0], dtype=shift.dtype)[:, None] + shift[0]
    columns = jnp.arange(image.shape[1], dtype=shift.dtype)[None, :] + shift[1]
    return _pixels(image, rows, columns, jnp.ones(image.shape[:2], image.dtype))


def cutout(image: Array, centre: Array) -> Array:
    """Set a rectangle of half the height and width of an `image` f[H, W, C] to zero.

    The rectangle reaches from `centre` - side // 2 to `centre` + side - side // 2, exclusive, where
    `centre` i32[2] is in rows and columns and side is half the size, rounded up; what lies outside
    the image is cut off.
    """
    height, width, _ = image.shape
    rows = _covered(height, centre[0])
    columns = _covered(width, centre[1])
    hidden = rows[:, None, None] & columns[None, :, None]
    return jnp.where(hidden, jnp.zeros_like(image), image)


def flip(image: Array, flipped: Array) -> Array:
    """Mirror an `image` f[H, W, C], left for right, where `flipped` bool[] is true."""
    return jnp.where(flipped, image[:, ::-1], image)


def scale(image: Array, factors: Array) -> Array:
    """Sample an `image` f[H, W, C] bilinearly at `factors` f[2] times the distance from its centre.

    A factor above 1 (rows, columns) shrinks what is seen, one below 1 enlarges it; outside the
    image is zero.
    """
    height, width, _ = image.shape
    dtype = image.dtype

    # Bilinear sampling at a grid is a product with two small matrices: faster than gathering, and
    # its transpose is again such a product. Default precision would round pixels to bfloat16 on a
    # TPU.
    def weights(size: int, factor: Array) -> Array:
        positions = _centred(size, dtype) * factor + (size - 1) / 2
        return _tent(positions[:, None] - jnp.arange(size, dtype=dtype))

    rows, columns = weights(height, factors[0]), weights(width, factors[1])
    image = jnp.einsum("ih,hwc->iwc", rows, image, precision=lax.Precision.HIGHEST)
    return jnp.einsum("jw,iwc->ijc", columns, image, precision=lax.Precision.HIGHEST)


def rotate(image: Array, angle: Array) -> Array:
    """Rotate an `image` f[H, W, C] counter-clockwise about its centre by `angle` f[], in radians.

    Sampled bilinearly, zero outside the image. Rotation is in pixels, so that an image that is not
    square is not sheared (the common code rotates in units of half the height and width). Not
    differentiable in the angle: its gradient is zero.
    """
    return _linear(_rotate_sample, _rotate_spread, image, lax.stop_gradient(angle))


def _rotate_sample(image: Array, angle: Array) -> Array:
    """The rotated image: each pixel a weighted mean of the four around its origin."""
    height, width, _ = image.shape
    dtype = image.dtype
    rows, columns = jnp.meshgrid(
        jnp.arange(height, dtype=dtype), jnp.arange(width, dtype=dtype), indexing="ij"
    )
    from_rows, from_columns = _origin(rows, columns, angle, image.shape)
    result = jnp.zeros_like(image)
    for i in (0, 1):
        for j in (0, 1):
            row, column = jnp.floor(from_rows) + i, jnp.floor(from_columns) + j
            weight = _tent(from_rows - row) * _tent(from_columns - column)
            result = result + _pixels(image, row, column, weight)
    return result


def _rotate_spread(image: Array, angle: Array) -> Array:
    """The transpose of `_rotate_sample`: each pixel collects from those that it was a part of.

    Their origins are within 1 of it, per axis, so that they lie within sqrt(2) of where it goes:
    among the nine nearest.
    """
    height, width, _ = image.shape
    dtype = image.dtype
    rows, columns = jnp.meshgrid(
        jnp.arange(height, dtype=dtype), jnp.arange(width, dtype=dtype), indexing="ij"
    )
    to_rows, to_columns = _origin(rows, columns, -angle, image.shape)
    result = jnp.zeros_like(image)
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            row, column = jnp.round(to_rows) + i, jnp.round(to_columns) + j
            from_row, from_column = _origin(row, column, angle, image.shape)
            weight = _tent(from_row - rows) * _tent(from_column - columns)
            result = result + _pixels(image, row, column, weight)
    return result


def _linear(
    forward: Callable[[Array, Array], Array],
    transpose: Callable[[Array, Array], Array],
    image: Array,
    parameter: Array,
) -> Array:
    """`forward(image, parameter)`, linear in the image, with its `transpose` for the derivatives.

    For gathers. JAX's own transpose of a gather is a scatter-add: some twenty times slower on a
    CPU, and different from run to run on a GPU. The transpose of a shift or a rotation is a gather
    as well, nearly the way back.
    """
    # Under `shard_map` both must be seen to vary over the same axes of the mesh.
    parameter, image = (
        parameter + jnp.zeros_like(image, shape=(), dtype=parameter.dtype),
        image + jnp.zeros_like(parameter, shape=(), dtype=image.dtype),
    )
    # Of the ways to tell JAX a transpose, this is the only one that vmap, forward mode, reverse
    # mode and both of these upon each other take (a custom_vjp has no forward mode, a linear_call
    # no vmap): the result as "solution" of a linear system, of which only the two solvers are ever
    # run.
    return lax.custom_linear_solve(
        lambda image: transpose(image, parameter),
        image,
        solve=lambda _, image: forward(image, parameter),
        transpose_solve=lambda _, image: transpose(image, parameter),
    )


def _origin(
    rows: Array, columns: Array, angle: Array, shape: tuple[int, ...]
) -> tuple[Array, Array]:
    """Where a rotation by `angle` takes the pixels at `rows` and `columns` from."""
    y, x = (shape[0] - 1) / 2, (shape[1] - 1) / 2
    rows, columns = rows - y, columns - x
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    return cos * rows + sin * columns + y, cos * columns - sin * rows + x


def _pixels(image: Array, rows: Array, columns: Array, weight: Array) -> Array:
    """`weight` f[H, W] times the pixels at whole-numbered `rows` and `columns`, zero outside."""
    height, width, _ = image.shape
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    row = jnp.clip(rows, 0, height - 1).astype(jnp.int32)
    column = jnp.clip(columns, 0, width - 1).astype(jnp.int32)
    pixels = image.at[row, column].get(mode="promise_in_bounds")
    return jnp.where(inside, weight, jnp.zeros_like(weight))[:, :, None] * pixels


def _tent(distance: Array) -> Array:
    """The weight of a pixel at a signed `distance` in bilinear sampling."""
    return jnp.maximum(1 - jnp.abs(distance), jnp.zeros_like(distance))


def _centred(size: int, dtype: jnp.dtype) -> Array:
    return jnp.arange(size, dtype=dtype) - (size - 1) / 2


def _covered(size: int, centre: Array) -> Array:
    side = (size + 1) // 2
    position = jnp.arange(size, dtype=centre.dtype) - (centre - side // 2)
    return (position >= 0) & (position < side)


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


# Data sets whose classes a mirror would confuse.
_NOT_MIRRORED = ("digits", "mnist", "usps", "svhn_cropped", "kmnist", "emnist", "qmnist")


def default_strategy(dataset: str) -> tuple[Transformation, ...]:
    """All kinds, but no flip for data sets of digits and letters, as is the field's habit."""
    family = dataset.split("/")[0]
    return tuple(n for n in STRATEGIES if n != "flip" or family not in _NOT_MIRRORED)


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

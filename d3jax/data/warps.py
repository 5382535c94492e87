"""Transformations of one image f[H, W, C] by explicit parameters, differentiable in the image.

Positions are in pixels, pixel centres at whole numbers, and the centre of the image is at
((H - 1) / 2, (W - 1) / 2): what PyTorch calls `align_corners=False`.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax


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

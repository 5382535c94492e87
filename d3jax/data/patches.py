"""Real patches as distilled images: RDED's selection and tiling (arXiv 2312.03526)."""

import jax.numpy as jnp
from jax import Array

from d3jax.types import InputError


def select_patches(scores: Array, count: int) -> tuple[Array, Array]:
    """Which patches of a class to keep: of each image its best, and of these the best `count`.

    Args:
      scores: f[M, R], of R crops of each of M images; the lowest is the best (RDED: a teacher's
        cross entropy).
      count: at most M.

    Returns:
      The images i32[count], best first, and the crop i32[count] of each.

    Raises:
      InputError: there are fewer images than are to be kept.
    """
    if not 0 < count <= scores.shape[0]:
        raise InputError(
            f"one patch of each of {scores.shape[0]} images a class can be kept, not {count}; take "
            f"more images, or fewer or larger patches"
        )
    best = jnp.argmin(scores, axis=1).astype(jnp.int32)
    images = jnp.argsort(jnp.min(scores, axis=1))[:count].astype(jnp.int32)
    return images, best[images]


def tile(patches: Array, factor: int) -> Array:
    """Images f[n, factor h, factor w, C] of factor^2 patches each, f[n factor^2, h, w, C].

    Image j has patches j, j + n, j + 2 n ... row by row: if the best come first, each image has one
    of the n best at its top left.

    Raises:
      InputError: the patches are not a multiple of factor^2.
    """
    total, height, width, channels = patches.shape
    number, rest = divmod(total, factor**2)
    if rest:
        raise InputError(f"{total} patches do not make images of {factor} x {factor} each")
    grid = patches.reshape(factor, factor, number, height, width, channels)
    rows = grid.transpose(2, 0, 3, 1, 4, 5)
    return rows.reshape(number, factor * height, factor * width, channels)

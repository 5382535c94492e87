"""Pooling that differentiates twice cheaply."""

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax

from d3jax.networks.convolution import view


def average_pool(images: Array) -> Array:
    """The mean of each 2x2 block, odd edges dropped: f[B, H, W, C] -> f[B, H // 2, W // 2, C]."""
    return _block_mean(_even(images))


def max_pool(images: Array, window: int = 2, *, padding: int = 0) -> Array:
    """The maximum of windows of stride 2: f[B, H, W, C] -> f[B, H', W', C].

    Written as a maximum of blocks or, where windows overlap, of shifted views, which (unlike
    `lax.reduce_window`) differentiate twice cheaply. Where pixels tie they share the gradient,
    PyTorch gives it to the first.
    """
    if window == 2 and padding == 0:
        return _block_max(_even(images))
    _, height, width, _ = images.shape
    if window == 3 and padding == 1 and height % 2 == width % 2 == 0:
        return _max_of_three(_max_of_three(images, axis=1), axis=2)
    if padding:
        sides = ((0, 0), (padding, padding), (padding, padding), (0, 0))
        images = jnp.pad(images, sides, constant_values=-jnp.inf)
    views = [view(images, window, i, j, 2) for i in range(window) for j in range(window)]
    return functools.reduce(jnp.maximum, views)


def _max_of_three(images: Array, axis: int) -> Array:
    """The maximum of each pixel of even index along an axis and its two neighbours.

    From neighbours in pairs, since views of every second pixel are strided, both ways.
    """
    shape = images.shape
    pairs = images.reshape(*shape[:axis], shape[axis] // 2, 2, *shape[axis + 1 :])
    even, odd = (lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in range(2))
    before = [(0, 0, 0)] * images.ndim
    before[axis] = (1, -1, 0)  # the odd pixel of the pair before
    left = lax.pad(odd, jnp.asarray(-jnp.inf, images.dtype), before)
    return jnp.maximum(jnp.maximum(even, odd), left)


@jax.custom_jvp
def _block_mean(images: Array) -> Array:
    """The mean of each 2x2 block of an image with even sides."""
    # A sum of views is one loop with the activation before it; a reduction would be handed whole
    # arrays, and so write them down: a fifteenth of MTT's outer step.
    half = jnp.finfo(images.dtype).bits < 32  # is summed in float32
    blocks = _in_blocks(images.astype(jnp.float32) if half else images)
    views = [blocks[:, :, i, :, j] for i in range(2) for j in range(2)]
    return (functools.reduce(jnp.add, views) / len(views)).astype(images.dtype)


@_block_mean.defjvp
def _block_mean_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # The way back from a reduction copies each mean's cotangent to its block; that from views, see
    # `_block_max_jvp`.
    return _block_mean(*primals), _in_blocks(*tangents).mean((2, 4))


@jax.custom_jvp
def _block_max(images: Array) -> Array:
    """The maximum of each 2x2 block of an image with even sides."""
    return _in_blocks(images).max((2, 4))


@_block_max.defjvp
def _block_max_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # A share of the tangent for each largest pixel: products of whole arrays in both directions,
    # where the derivative of a view is an array of zeros with strided writes.
    largest = _block_max(*primals)
    still, top = jax.lax.stop_gradient((_in_blocks(*primals), largest[:, :, None, :, None]))
    share = (still == top).astype(largest.dtype)
    share = share / share.sum((2, 4), keepdims=True)
    return largest, (_in_blocks(*tangents) * share).sum((2, 4))


def _even(images: Array) -> Array:
    """Without the last row and column where their number is odd."""
    _, height, width, _ = images.shape
    return images[:, : height // 2 * 2, : width // 2 * 2]


def _in_blocks(images: Array) -> Array:
    """2x2 blocks of an image with even sides, f[B, H // 2, 2, W // 2, 2, C]."""
    batch, height, width, channels = images.shape
    return images.reshape(batch, height // 2, 2, width // 2, 2, channels)

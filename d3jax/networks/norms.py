"""Normalization of images, and of responses across channels."""

import jax.numpy as jnp
from jax import Array, lax

Statistics = tuple[Array, Array]  # mean f[C], variance f[C]


def group_norm(
    images: Array, scale: Array, bias: Array, groups: int, *, epsilon: float = 1e-5
) -> Array:
    """Group normalization of f[B, H, W, C] with `groups` groups of channels (Wu and He, 2018).

    groups = C is instance normalization, groups = 1 layer normalization over H, W and C.
    """
    batch, height, width, channels = images.shape
    if channels % groups:
        raise ValueError(f"{channels} channels cannot be split into {groups} groups")
    if groups == channels:  # without the reshape XLA's CPU code is twice as fast
        grouped, axes = images, (1, 2)
    else:
        grouped, axes = images.reshape(batch, height, width, groups, channels // groups), (1, 2, 4)
    centred = grouped - grouped.mean(axes, keepdims=True)
    variance = jnp.square(centred).mean(axes, keepdims=True)
    factor = lax.rsqrt(variance + jnp.asarray(epsilon, images.dtype))
    if groups == channels:  # one product of whole arrays, not two
        return centred * (factor * scale) + bias
    return (centred * factor).reshape(images.shape) * scale + bias


def batch_norm(
    images: Array,
    scale: Array,
    bias: Array,
    statistics: Statistics | None = None,
    *,
    epsilon: float = 1e-5,
) -> tuple[Array, Statistics]:
    """Batch normalization of f[B, H, W, C]; returns the images and this batch's (mean, variance).

    The images are normalized by the batch's own statistics (biased variance) or, where they are
    given, by `statistics`, so that an image's result does not depend on its neighbours. What is
    returned is the batch's own either way; compiled, it costs nothing where nobody reads it.
    Nothing is averaged over batches here.

    Ioffe and Szegedy, arXiv 1502.03167, algorithm 1.
    """
    mean = images.mean((0, 1, 2))
    variance = jnp.square(images - mean).mean((0, 1, 2))
    own = mean, variance
    if statistics is not None:
        mean, variance = statistics
    factor = scale * lax.rsqrt(variance + jnp.asarray(epsilon, images.dtype))
    return (images - mean) * factor + bias, own


def local_response_norm(
    images: Array, size: int = 4, alpha: float = 0.001 / 9, beta: float = 0.75, k: float = 1.0
) -> Array:
    """Local response normalization of f[B, H, W, C] across channels (AlexNet, section 3.3).

    As PyTorch has it: alpha is divided by the window's size, which reaches size // 2 channels back.
    """
    squares = jnp.square(images)
    before, after = size // 2, (size - 1) // 2
    padded = jnp.pad(squares, ((0, 0), (0, 0), (0, 0), (before, after)))
    channels = images.shape[-1]
    window = sum(padded[..., i : i + channels] for i in range(1, size)) + padded[..., :channels]
    dtype = images.dtype
    base = jnp.asarray(k, dtype) + jnp.asarray(alpha / size, dtype) * window
    # Not base**-beta, each derivative of which is another power.
    return images * jnp.exp(jnp.asarray(-beta, dtype) * jnp.log(base))

"""Rounding of stored numbers to float16 or int8, inside training too: then storage costs nothing.

int8 is for the arrays of the groups `data` and `decoder` that have two axes or more: latents,
kernels, images. Each entry of the last axis (a coordinate of latents, an output channel of a
kernel, a channel of images) has a float16 scale of its own, its largest magnitude over 127. All
other arrays (biases, batch norm's scales, labels, statistics) are float16.

Standard normal latents f[600, 32] are 1.4 times as exact with a scale for each latent as with one
for each coordinate, and take half a bit a number more, which is worth the same factor; of f[300, 8]
coordinates are better by a bit a number, of f[10, 64] latents are.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from d3jax.types import PyTree

KINDS = ("none", "float16", "int8")
_GROUPS = ("data", "decoder")
_LEVELS = 127
_LARGEST = 65504.0  # of float16
_SMALLEST = 2.0**-14  # of float16, with all its digits; below are multiples of the next
_SUBNORMAL_STEP = 2.0**-24


class Int8(NamedTuple):
    """An array in a byte a number: levels times scale."""

    levels: Array  # i8[..., C], from -127 to 127
    scale: Array  # f16[C]


def quantize(array: Array) -> Int8:
    """The nearest levels of f[..., C]: each number is wrong by at most half its channel's scale."""
    levels, scale = _nearest(array)
    return Int8(levels.astype(jnp.int8), scale.astype(jnp.float16))


def dequantize(stored: Int8) -> Array:
    """f32[..., C]."""
    return jnp.asarray(stored.levels, jnp.float32) * jnp.asarray(stored.scale, jnp.float32)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def fake_quantize(array: Array, kind: str) -> Array:
    """The array as it reads when it was stored, with the gradient of the identity.

    Args:
      array: f[...].
      kind: of `KINDS`; float16 leaves numbers beyond 65504 as they are (arrays that have such are
        stored in float32).

    Twice rounded is once rounded, to the bit. The straight-through estimator: Bengio et al., arXiv
    1308.3432.
    """
    if kind == "none":
        return array
    if kind == "int8":
        levels, scale = _nearest(array)
        return levels * scale
    # Not a cast to float16 and back, which XLA may leave out; it does not keep subnormal numbers.
    rounded = lax.reduce_precision(array, exponent_bits=5, mantissa_bits=10)
    subnormal = jnp.round(array / _SUBNORMAL_STEP) * _SUBNORMAL_STEP
    rounded = jnp.where(jnp.abs(array) < _SMALLEST, subnormal, rounded)
    return jnp.where(jnp.abs(array) <= _LARGEST, rounded, array)


@fake_quantize.defjvp
def _identity(kind: str, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return fake_quantize(primals[0], kind), tangents[0]


def as_stored(theta: dict[str, PyTree], kind: str, groups: Sequence[str]) -> dict[str, PyTree]:
    """theta with `groups` rounded as they will be stored, straight-through (`fake_quantize`)."""
    if kind == "none":
        return theta

    def rounded(path: Any, array: Array) -> Array:
        if path[0].key not in groups:
            return array
        in_bytes = kind == "int8" and is_int8(path, array)
        return fake_quantize(array, "int8" if in_bytes else "float16")

    return jax.tree.map_with_path(rounded, theta)


def in_int8(theta: dict[str, PyTree]) -> dict[str, PyTree]:
    """theta with those of its arrays that take it as `Int8`."""
    return jax.tree.map_with_path(lambda p, x: quantize(x) if is_int8(p, x) else x, theta)


def is_int8(path: Any, array: Any) -> bool:
    """Whether the array at `path` in a theta that is stored in int8 is one that takes it."""
    return path[0].key in _GROUPS and array.ndim > 1


def _nearest(array: Array) -> tuple[Array, Array]:
    """(levels, scale), both of the array's dtype."""
    largest = jnp.abs(array).max(tuple(range(array.ndim - 1)))
    scale = lax.reduce_precision(largest / _LEVELS, exponent_bits=5, mantissa_bits=10)
    scale = jnp.maximum(scale, jnp.asarray(_SMALLEST, array.dtype))
    return jnp.clip(jnp.round(array / scale), -_LEVELS, _LEVELS), scale

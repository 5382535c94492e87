"""Convolution with fewer multiplications: Winograd's minimal filtering (Lavin and Gray, CVPR 2016).

m outputs of a row and k taps are two polynomials; multiplied at m + k - 1 points they cost as many
multiplications, not m * k. For a tile of 2x2 outputs and a 3x3 kernel that is 16 for 36, and the
16 products of matrices (one for each pair of points, pixels by channels with channels by features)
read arrays 4 times as large as the images, where patches are 9 times as large. All that surrounds
the products are sums of contiguous views, so that every derivative is again such sums and products.

One batched product of stacked arrays would be fewer operations to compile, but it writes each stack
once more: in a trial second derivatives took longer by a fifth to a half.
"""

from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

_POINTS = {3: (0, 1, -1), 5: (0, 1, -1, 2, -0.5)}  # and infinity, by the size of the kernel
_TILE = 2  # outputs a side
SIZES = tuple(_POINTS)  # of kernels

Taps = list[list[Array]]  # f[C, D] at each pair of points


def transformed(kernel: Array) -> Taps:
    """What `convolution` multiplies with, of a kernel f[k, k, C, D], k = 3 or 5."""
    _, at_taps, _ = _matrices(kernel.shape[0])
    return [_sums(list(row), at_taps) for row in _sums(list(kernel), at_taps)]


def convolution(padded: Array, taps: Taps) -> Array:
    """Cross-correlation of padded images f[B, H, W, C] with `transformed` kernels, stride 1.

    Returns:
      f[B, H - k + 1, W - k + 1, D]. In float32 the errors are about those of patches times a matrix
      for k = 3, and twice as large for k = 5.
    """
    size = len(taps) + 1 - _TILE
    channels, features = taps[0][0].shape
    batch, height, width, _ = padded.shape
    rows, columns = height - size + 1, width - size + 1
    at_outputs, _, at_inputs = _matrices(size)
    high, wide = -(-rows // _TILE), -(-columns // _TILE)
    reach = size - 1 + (size - 1) % _TILE  # beyond the outputs, in whole tiles
    sides = (_TILE * high + reach - height, _TILE * wide + reach - width)
    if any(sides):
        padded = jnp.pad(padded, ((0, 0), (0, sides[0]), (0, sides[1]), (0, 0)))
    inputs = [
        _sums(_tiles(row, wide, size, axis=2), at_inputs)
        for row in _sums(_tiles(padded, high, size, axis=1), at_inputs)
    ]
    products = [
        [(x.reshape(-1, channels) @ t).reshape(batch, high, wide, features) for x, t in zip(*both)]
        for both in zip(inputs, taps)
    ]
    outputs = _sums([jnp.stack(_sums(row, at_outputs), axis=3) for row in products], at_outputs)
    whole = jnp.stack(outputs, axis=2).reshape(batch, _TILE * high, _TILE * wide, features)
    return whole[:, :rows, :columns]


@lru_cache
def _matrices(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What sums products to outputs [m, t], taps [t, k] and inputs [t, t] to values at t points.

    Toom's and Cook's multiplication of polynomials, transposed: where a_j is a point, taps are
    evaluated there (and divided by all its distances), inputs interpolated. The last is infinity.
    """
    points = np.asarray(_POINTS[size], float)
    number = len(points) + 1
    distances = [np.prod(points[j] - np.delete(points, j)) for j in range(number - 1)]
    at_outputs = np.vander(points, _TILE, increasing=True).T
    at_outputs = np.c_[at_outputs, np.eye(_TILE)[-1]]
    at_taps = np.vander(points, size, increasing=True) / np.asarray(distances)[:, None]
    at_taps = np.r_[at_taps, np.eye(size)[-1:]]
    at_inputs = np.zeros((number, number))
    for j in range(number - 1):
        at_inputs[j, :-1] = np.poly(np.delete(points, j))[::-1]
    at_inputs[-1] = np.poly(points)[::-1]
    return at_outputs, at_taps, at_inputs


def _tiles(images: Array, number: int, size: int, axis: int) -> list[Array]:
    """Pixel i of every tile along an axis, for each i of a tile's inputs."""
    shape = images.shape
    split = images.reshape(*shape[:axis], shape[axis] // _TILE, _TILE, *shape[axis + 1 :])
    phases = [lax.index_in_dim(split, i, axis + 1, keepdims=False) for i in range(_TILE)]
    return [
        lax.slice_in_dim(phases[i % _TILE], i // _TILE, i // _TILE + number, axis=axis)
        for i in range(_TILE + size - 1)
    ]


def _sums(arrays: list[Array], matrix: np.ndarray) -> list[Array]:
    """The sums of arrays weighted by each row of a matrix."""
    found = []
    for row in matrix:
        terms = [a if w == 1 else -a if w == -1 else a * float(w) for a, w in zip(arrays, row) if w]
        found.append(sum(terms[1:], terms[0]))
    return found

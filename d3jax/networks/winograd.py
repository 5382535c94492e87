"""Convolution with fewer multiplications: Winograd's minimal filtering (Lavin and Gray, CVPR 2016).

m outputs of a column and k taps are two polynomials; multiplied at m + k - 1 points they cost as
many multiplications, not m * k: 6 for 12, where 4 outputs and 3 taps are. Along a row the windows
are side by side, as in patches, so that there are m + k - 1 products of matrices, tiles by k * C
with k * C by features. All that surrounds the products are sums of contiguous views, so that every
derivative is again such sums and products.

Tiles in both dimensions would multiply a ninth less (16 products for 2x2 outputs of 3x3 taps), in
more and narrower products: MTT's step has 1.7 times as many kernels to compile then, takes as long
or a fifth longer at width 32, and a tenth less at width 128. One batched product of stacked arrays
would be one kernel for m + k - 1, and write each stack once more: in a trial second derivatives
took longer by a fifth to a half.
"""

from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

SIZES = (3, 5)  # of kernels
_POINTS = (0, 0.5, -0.5, 1.5, -1.5, 1, -1)  # as many as it takes, in this order, and infinity


def transformed(kernel: Array, rows: int) -> list[Array]:
    """A kernel f[k, k, C, D] at each of m + k - 1 points, f[k C, D], for columns of `rows` outputs.

    m is 4, but 2 for one or two rows.
    """
    size, _, channels, features = kernel.shape
    taps = [kernel[i].reshape(size * channels, features) for i in range(size)]
    return _sums(taps, _matrices(4 if rows > 2 else 2, size)[1])


def convolution(padded: Array, taps: list[Array]) -> Array:
    """Cross-correlation of padded images f[B, H, W, C] with a `transformed` kernel, stride 1.

    Returns:
      f[B, H - k + 1, W - k + 1, D]. In float32 the errors are one and a half times those of patches
      times a matrix for k = 3, and two and a half times for k = 5.
    """
    batch, height, width, channels = padded.shape
    size = taps[0].shape[0] // channels
    tile = len(taps) + 1 - size
    rows, columns = height - size + 1, width - size + 1
    at_outputs, _, at_inputs = _matrices(tile, size)
    tiles = -(-rows // tile)
    beyond = -(-(size - 1) // tile)  # tiles that only inputs of the last outputs are in
    lack = tile * (tiles + beyond) - height
    padded = jnp.pad(padded, ((0, 0), (0, lack), (0, 0), (0, 0))) if lack else padded
    windows = jnp.concatenate([padded[:, :, j : j + columns] for j in range(size)], axis=-1)
    split = windows.reshape(batch, tiles + beyond, tile, *windows.shape[2:])
    # By `lax.split`, whose transpose is a concatenation; that of `split[:, :, i]`, a sum of padded
    # arrays, took eight times as long.
    phases = [lax.squeeze(phase, (2,)) for phase in lax.split(split, (1,) * tile, axis=2)]
    inputs = [phases[i % tile][:, i // tile : i // tile + tiles] for i in range(tile + size - 1)]
    products = [
        (x.reshape(-1, x.shape[-1]) @ t).reshape(batch, tiles, columns, -1)
        for x, t in zip(_sums(inputs, at_inputs), taps)
    ]
    outputs = jnp.stack(_sums(products, at_outputs), axis=2)
    return outputs.reshape(batch, tile * tiles, columns, -1)[:, :rows]


@lru_cache
def _matrices(tile: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What sums products to outputs [m, t], taps [t, k] and inputs [t, t] to values at t points.

    Toom's and Cook's multiplication of polynomials, transposed: where a_j is a point, taps are
    evaluated there (and divided by all its distances), inputs interpolated. The last is infinity.
    """
    number = tile + size - 1
    points = np.asarray(_POINTS[: number - 1], float)
    distances = [np.prod(points[j] - np.delete(points, j)) for j in range(number - 1)]
    at_outputs = np.vander(points, tile, increasing=True).T
    at_outputs = np.c_[at_outputs, np.eye(tile)[-1]]
    at_taps = np.vander(points, size, increasing=True) / np.asarray(distances)[:, None]
    at_taps = np.r_[at_taps, np.eye(size)[-1:]]
    at_inputs = np.zeros((number, number))
    for j in range(number - 1):
        at_inputs[j, :-1] = np.poly(np.delete(points, j))[::-1]
    at_inputs[-1] = np.poly(points)[::-1]
    return at_outputs, at_taps, at_inputs


def _sums(arrays: list[Array], matrix: np.ndarray) -> list[Array]:
    """The sums of arrays weighted by each row of a matrix."""
    found = []
    for row in matrix:
        terms = [a if w == 1 else -a if w == -1 else a * float(w) for a, w in zip(arrays, row) if w]
        found.append(sum(terms[1:], terms[0]))
    return found

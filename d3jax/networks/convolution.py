"""Convolution that differentiates twice and vmaps over weights, fast.

XLA's CPU convolution is one to two orders of magnitude slower inside `lax.scan` than a matrix
product, and under `vmap` over weights it becomes a grouped convolution, slow everywhere.
So a convolution here is, by default on CPU, sums of shifted views times matrices (`winograd.py`):
every derivative of it is again matrix products, and `vmap` makes them batched ones. On a GPU that
is faster too where images are few, as in an inner loop (`benchmarks/ACCELERATOR.md`).
"""

import math
from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

from d3jax.networks import winograd
from d3jax.types import PyTree

_PRODUCT = "product"

products = jax.checkpoint_policies.save_only_these_names(_PRODUCT)  # the policy for jax.checkpoint


def keep(x: Array) -> Array:
    """`x` as it is, and kept by a step that is rematerialized with `products`."""
    return checkpoint_name(x, _PRODUCT)


Lowering = Literal["winograd", "patches", "rows", "banded", "lax"]


def default_lowering() -> Lowering:
    """The convolution lowering of the current backend: XLA's own but on CPUs and GPUs."""
    return {"cpu": "winograd", "gpu": "patches"}.get(jax.default_backend(), "lax")  # type: ignore


def _default(images: Array, kernel: Array, stride: int) -> Lowering:
    """The lowering of one convolution, by what it is given; see `convolution`."""
    size, _, channels, features = kernel.shape
    lowering = default_lowering()
    if lowering == "winograd":
        # Products with so few columns are slow: LeNet's gradient is 3 times as fast by bands. And
        # patches of few channels are many short copies.
        narrow = size > 1 and (features <= 16 or channels <= _FEW)
        half = jnp.finfo(images.dtype).bits < 32  # has no digits to spare for sums of inputs
        tiles = stride == 1 and size in winograd.SIZES
        if narrow or half or not tiles:
            return "banded" if narrow else "patches"
    elif lowering == "patches" and jax.default_backend() == "gpu":
        seen = images.size * size**2 // stride**2 * images.dtype.itemsize
        return "patches" if seen <= _GPU_BYTES else "lax"
    return lowering


def default_block(image_size: int) -> int | None:
    """How many images a CPU's cache holds the intermediate arrays of; None for no limit.

    4 images of 32x32 pixels at width 32 are about 1 MB of patches, a core's second-level cache.
    """
    if jax.default_backend() != "cpu":
        return None
    return max(1, 4096 // image_size**2)


def map_blocks(function: Callable[[Array], PyTree], images: Array, block: int | None) -> PyTree:
    """`function` of images f[B, ...], applied to at most `block` of them at a time.

    Equal to `function(images)` where each row of the result depends on its own image alone. Blocks
    are recomputed on the way back, so that in both directions the intermediate arrays stay in the
    cache: on CPU the gradient of a ConvNet's features is 4 times faster than for a whole batch of
    300, which is bound by memory. None: the whole batch at once.
    """
    number = images.shape[0]
    if block is None or number <= block:
        return function(images)
    blocks = -(-number // block)
    size = -(-number // blocks)
    sides = [(0, blocks * size - number)] + [(0, 0)] * (images.ndim - 1)
    padded = jnp.pad(images, sides, mode="edge") if sides[0][1] else images
    results = lax.map(
        jax.checkpoint(function, prevent_cse=False),
        padded.reshape(blocks, size, *images.shape[1:]),
    )
    return jax.tree.map(lambda x: x.reshape(blocks * size, *x.shape[2:])[:number], results)


def convolution(
    images: Array,
    kernel: Array,
    *,
    stride: int = 1,
    padding: int | None = None,
    lowering: Lowering | None = None,
) -> Array:
    """Cross-correlation of images f[B, H, W, C] with a kernel f[k, k, C, D]: f[B, H', W', D].

    Args:
      images: f[B, H, W, C].
      kernel: f[k, k, C, D].
      stride: the step between outputs, in pixels.
      padding: zeros on every side, in pixels; default (k - 1) // 2, which keeps the size.
      lowering: `winograd` (products of transformed tiles, for stride 1 and kernels of 3 or 5
        pixels: fewest multiplications), `patches` (one product with all k*k shifted views side by
        side), `rows` (k products, a row of views each: less memory), `banded` (some outputs of a
        row at a time with a banded matrix: wider products), or `lax` (XLA's convolution). Default
        on CPU banded for few features or channels, else winograd where it can be, and patches where
        not or in half precision; on a GPU patches while they take at most 80 MiB (of few images),
        else lax; elsewhere lax.

    Of many images a CPU convolves a few at a time (`map_blocks`), by all lowerings but `lax`: a
    decoder's gradient on 300 images takes half as long, and a third of the memory.

    Raises:
      ValueError: an unknown lowering, or winograd for another stride or kernel.
    """
    size = kernel.shape[0]
    padding = (size - 1) // 2 if padding is None else padding
    tiles = stride == 1 and size in winograd.SIZES
    if lowering is None:
        lowering = _default(images, kernel, stride)
    elif lowering == "winograd" and not tiles:
        known = " or ".join(map(str, winograd.SIZES))
        raise ValueError(
            f"winograd is for stride 1 and kernels of {known} pixels, not {stride} and {size}"
        )
    taps = None
    if lowering == "winograd":  # here, so that blocks of images share it
        taps = winograd.transformed(kernel, rows=images.shape[1] + 2 * padding - size + 1)

    def convolve(images: Array) -> Array:
        if taps is not None:
            return winograd.convolution(_zeros_around(images, padding), taps)
        return _convolution(images, kernel, stride, padding, lowering)

    block = None
    on_cpu = jax.default_backend() == "cpu"
    if on_cpu and lowering != "lax" and images.shape[0] >= _MANY:
        seen = 4 * math.prod(images.shape[1:]) * size**2 // stride**2
        block = max(1, _SEEN_BYTES // seen)
    out = map_blocks(convolve, images, block)
    return out if size**2 * kernel.shape[-2] < _LONG else keep(out)  # others are not dear enough


def _convolution(
    images: Array, kernel: Array, stride: int, padding: int, lowering: Lowering
) -> Array:
    size = kernel.shape[0]
    if lowering == "lax":
        return lax.conv_general_dilated(
            images,
            kernel,
            (stride, stride),
            [(padding, padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    padded = _zeros_around(images, padding)
    if lowering == "patches":
        views = [view(padded, size, i, j, stride) for i in range(size) for j in range(size)]
        patches = views[0] if size == 1 else jnp.concatenate(views, axis=-1)
        return _product(patches, kernel.reshape(-1, kernel.shape[-1]))
    if lowering == "rows":
        rows = []
        for i in range(size):
            views = [view(padded, size, i, j, stride) for j in range(size)]
            row = jnp.concatenate(views, axis=-1)
            rows.append(_product(row, kernel[i].reshape(-1, kernel.shape[-1])))
        return sum(rows[1:], rows[0])
    if lowering == "banded":
        return _banded(padded, kernel, stride)
    raise ValueError(f"unknown lowering {lowering!r}; known: {', '.join(get_args(Lowering))}")


def _zeros_around(images: Array, padding: int) -> Array:
    return jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))


def _product(rows: Array, matrix: Array) -> Array:
    """f[B, H, W, n] @ f[n, m] as products of two matrices.

    XLA's CPU code for the derivatives of a product with several leading axes takes half as long
    again. The gradient of a narrow matrix contracts long columns, at half the rate of other
    products; where each image has a copy of the matrix, transposed, it is a product for each image
    with the long side last, at the full rate.
    """
    batch, height, width, size = rows.shape
    features = matrix.shape[-1]
    if features <= _NARROW and height * width >= _LONG:
        copies = jnp.broadcast_to(matrix.T, (batch, features, size))
        flat = rows.reshape(batch, height * width, size)
        out = lax.dot_general(flat, copies, (((2,), (2,)), ((0,), (0,))))
    else:
        out = rows.reshape(-1, size) @ matrix
    return out.reshape(batch, height, width, features)


_NARROW, _LONG = 64, 256  # columns and rows of a product, or what it sums
_FEW = 4  # channels, as an image has
_MANY, _SEEN_BYTES = 64, 1 << 18  # images, and bytes of patches to have in the cache
_GPU_BYTES = 80 << 20  # of patches that an H100 multiplies faster than it convolves


def _banded(padded: Array, kernel: Array, stride: int) -> Array:
    """Some neighbouring outputs of a row as one product, with a banded matrix of the kernel.

    `tile` outputs see k rows of a few inputs; patches of single outputs overlap k times instead.
    More multiplications (each of those inputs with each output), wider products, less memory.
    """
    size, _, channels, features = kernel.shape
    batch, height, width, _ = padded.shape
    rows, columns = (height - size) // stride + 1, (width - size) // stride + 1
    # A product of fewer columns fills no vector registers, one of more multiplies zeros.
    widest = max(1, (32 if size >= 5 else 64) // features)
    tile = max(t for t in range(1, widest + 1) if columns % t == 0)
    seen = (tile - 1) * stride + size
    # band[x, w, j]: output w of a tile sees its input x through the kernel's column j.
    offset = np.arange(seen)[:, None] - stride * np.arange(tile)
    band = jnp.asarray(offset[..., None] == np.arange(size), kernel.dtype)
    matrix = jnp.einsum("xwj,ijcd->ixcwd", band, kernel).reshape(-1, tile * features)
    # A tile's inputs are a few chunks of the row: its own, and the first of those that follow.
    number, chunk = columns // tile, tile * stride
    parts = -(-seen // chunk)
    short = max(0, (number + parts - 1) * chunk - width)
    wide = jnp.pad(padded, ((0, 0), (0, 0), (0, short), (0, 0))) if short else padded
    wide = wide[:, :, : (number + parts - 1) * chunk]
    chunks = wide.reshape(batch, height, number + parts - 1, chunk * channels)
    pieces = [chunks[:, :, part : part + number] for part in range(parts)]
    tiles = jnp.concatenate(pieces, axis=-1)[..., : seen * channels]
    last = (rows - 1) * stride + 1
    views = [tiles[:, i : i + last : stride] for i in range(size)]
    out = _product(jnp.concatenate(views, axis=-1), matrix)
    return out.reshape(batch, rows, columns, features)


def view(padded: Array, window: int, i: int, j: int, stride: int) -> Array:
    """What the window's pixel (i, j) sees at every output position: f[B, H', W', C]."""
    batch, height, width, channels = padded.shape
    return lax.slice(
        padded,
        (0, i, j, 0),
        (batch, height - window + i + 1, width - window + j + 1, channels),
        (1, stride, stride, 1),
    )


def upsampling_convolution(
    images: Array, kernel: Array, *, lowering: Lowering | None = None
) -> Array:
    """Transposed convolution of stride 2 and padding 1: f[B, H, W, C] -> f[B, 2H, 2W, D].

    `kernel` is f[k, k, C, D] with k = 3 or 4, in PyTorch's orientation: input pixel i adds
    kernel tap t to output pixel 2i - 1 + t (k = 3 with one more output row, as its
    `output_padding=1`).

    But for `lax` the four output phases are the features of one 2x2 convolution with 4 D, of whose
    pixels each phase takes its own H x W, followed by depth-to-space: four multiplications for an
    output (but for the edge), in two products, and exact. By rows instead of `winograd`, which has
    no tiles for that. On an H100 that takes a quarter of lax's time.
    """
    size, _, channels, features = kernel.shape
    lowering = default_lowering() if lowering is None else lowering
    if lowering == "lax":
        # The transposed convolution as a convolution of the dilated input with the flipped kernel.
        low, high = size - 2, 2
        return lax.conv_general_dilated(
            images,
            kernel[::-1, ::-1],
            (1, 1),
            [(low, high)] * 2,
            lhs_dilation=(2, 2),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    # Output pixel 2m + a sees inputs m + a - 1 + i by taps 3 - a - 2i, i = 0, 1.
    taps = jnp.pad(kernel, [(0, 4 - size)] * 2 + [(0, 0)] * 2)[::-1, ::-1]
    taps = taps.reshape(2, 2, 2, 2, channels, features).transpose(0, 2, 4, 1, 3, 5)
    windows = taps.reshape(2, 2, channels, 4 * features)
    lowering = "rows" if lowering == "winograd" else lowering
    out = convolution(images, windows, padding=1, lowering=lowering)
    batch, height, width, _ = images.shape
    quarters = lax.split(out, (features,) * 4, axis=3)
    phases = [
        [quarters[2 * a + b][:, a : a + height, b : b + width] for b in range(2)] for a in range(2)
    ]
    whole = jnp.stack([jnp.stack(row, axis=3) for row in phases], axis=2)
    return whole.reshape(batch, 2 * height, 2 * width, features)


def no_cotangent(x: Array) -> Array | np.ndarray:
    """The cotangent of an argument that a custom derivative leaves out."""
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    return jnp.zeros_like(x) if floating else np.zeros(x.shape, jax.dtypes.float0)

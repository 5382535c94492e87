"""A network on a whole batch, a block of images at a time that fits the processor's cache."""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from d3jax.networks import convolution
from d3jax.types import Network, Outputs, PyTree

# From so many images a step on, a GPU trains networks one after another: convolutions with a kernel
# for each fill it less. 4 experts of width 128 on 256 images take three times as long under vmap.
MANY_IMAGES = 128
_BLOCK_BYTES = 11 << 20  # 4 images of 32x32 pixels in a ConvNet of width 32


def forward_blocks(network: Network, params: PyTree, images: Array) -> Outputs:
    """`network.forward`, a cache-sized block of images at a time (`convolution.map_blocks`).

    Batch norm's statistics are those of the whole batch, so a network that has it is not split.
    """

    def forward(images: Array) -> Outputs:
        return network.forward(params, images)

    return convolution.map_blocks(forward, images, _block(network, images))


def features_of(
    network: Network, params: PyTree, images: Array, others: Array
) -> tuple[Array, Array]:
    """Features f[n, F] of distilled images, and f[m, F] of others, these without derivative.

    With batch norm both are normalized by the distilled images' statistics, without derivative.
    """
    others = jax.lax.stop_gradient(others)
    if has_statistics(network, images.shape[1:]):
        found = jax.lax.stop_gradient(network.forward(params, images).statistics)
        features = [network.forward(params, x, statistics=found).features for x in (images, others)]
    else:
        features = [forward_blocks(network, params, x).features for x in (images, others)]
    own, of_others = (x.reshape(x.shape[0], -1) for x in features)
    return own, jax.lax.stop_gradient(of_others)


def batch_loss(
    network: Network, params: PyTree, images: Array, loss: Callable[[Array, PyTree], Array],
    targets: PyTree,
) -> tuple[Array, Array]:  # fmt: skip
    """The mean of `loss` over a batch, and its logits f[B, K], a block of images at a time.

    As `forward_blocks` and then the loss, but what the gradient needs of a block is used while the
    block is at hand: nothing is recomputed or kept, which is a quarter faster. In return it is
    differentiable in `params` alone, and once; the logits carry no derivative.

    Args:
      loss: (logits f[b, K], targets of these) -> the mean over them, f[].
      targets: a pytree whose leaves have the leading axis B.
    """
    number = images.shape[0]
    block = _block(network, images)
    size = number
    if block is not None and number > block:
        divisor = max(d for d in range(1, block + 1) if number % d == 0)
        size = divisor if 4 * divisor >= block else number  # a prime number of images stays whole
    blocks = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), (images, targets))
    share = size / number

    def of_block(params: PyTree, images: Array, targets: PyTree) -> tuple[Array, Array]:
        logits = network.forward(params, images).logits
        return loss(logits, targets) * jnp.asarray(share, logits.dtype), logits

    def gather(values: Array, logits: Array) -> tuple[Array, Array]:
        return jnp.sum(values), logits.reshape(number, -1)

    @jax.custom_vjp
    def total(params: PyTree, blocks: PyTree) -> tuple[Array, Array]:
        return gather(*jax.lax.map(lambda block: of_block(params, *block), blocks))

    def forward(params: PyTree, blocks: PyTree) -> tuple[tuple[Array, Array], PyTree]:
        def accumulate(gradient: PyTree, block: PyTree) -> tuple[PyTree, tuple[Array, Array]]:
            (value, logits), of_this = jax.value_and_grad(of_block, has_aux=True)(params, *block)
            return jax.tree.map(jnp.add, gradient, of_this), (value, logits)

        start = jax.tree.map(jnp.zeros_like, params)
        gradient, parts = jax.lax.scan(accumulate, start, blocks)
        return gather(*parts), (gradient, blocks)

    def backward(kept: PyTree, cotangents: tuple[Array, Array]) -> tuple[PyTree, PyTree]:
        gradient, blocks = kept
        return (
            jax.tree.map(lambda g: g * cotangents[0].astype(g.dtype), gradient),
            jax.tree.map(convolution.no_cotangent, blocks),
        )

    total.defvjp(forward, backward)
    return total(params, jax.lax.stop_gradient(blocks))


def _block(network: Network, images: Array) -> int | None:
    """How many of `images` to look at together; None for all."""
    shape = images.shape[1:]
    block = convolution.default_block(shape[0])
    if block is None or has_statistics(network, shape):
        return None
    # A light network takes more images at a time.
    return max(block, _BLOCK_BYTES // _bytes_per_image(network, shape))


@lru_cache(maxsize=32)
def has_statistics(network: Network, image_shape: tuple[int, ...]) -> bool:
    """Whether there is batch norm, whose statistics are those of the whole batch."""
    params = jax.eval_shape(network.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return bool(jax.eval_shape(network.forward, params, image).statistics)


@lru_cache(maxsize=32)
def _bytes_per_image(network: Network, image_shape: tuple[int, ...]) -> int:
    """The bytes of all arrays that one image's forward pass writes down, in float32."""
    params = jax.eval_shape(network.init, jax.random.key(0))

    def written(images: int) -> int:
        batch = jax.ShapeDtypeStruct((images, *image_shape), jnp.float32)
        return _written(jax.make_jaxpr(network.forward)(params, batch).jaxpr)

    return max(1, written(2) - written(1))  # the weights' own arrays cancel


def _written(program: Any) -> int:
    number = 0
    for equation in program.eqns:
        inner = [getattr(p, "jaxpr", p) for p in equation.params.values()]
        inner = [p for p in inner if hasattr(p, "eqns")]
        outputs = sum(4 * math.prod(out.aval.shape) for out in equation.outvars)
        number += sum(_written(p) for p in inner) if inner else outputs
    return number

"""Floating-point operations of plain products, not what a lowering adds or saves."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.outer_steps import lowered_by
from d3jax.types import Network, Synthetic


def flops(function: Callable[..., Any], *arguments: Any) -> float:
    """Of one call, as XLA counts them before it optimizes; convolutions multiply no zeros.

    The body of a loop is counted once, so there must be none. Arguments are shapes
    (`jax.ShapeDtypeStruct`): a CPU's compiler counts, whatever computes.
    """
    cpu = jax.local_devices(backend="cpu")[0]
    with lowered_by("lax"), jax.default_device(cpu):
        analysis = jax.jit(function).lower(*arguments).cost_analysis()
    assert analysis is not None
    return float(analysis["flops"])


def forward_flops(network: Network, image_shape: tuple[int, int, int]) -> float:
    """Of a network's forward pass, for each image."""
    params = jax.eval_shape(network.init, jax.random.key(0))
    return _of_each(
        lambda n: flops(network.apply, params, jax.ShapeDtypeStruct((n, *image_shape), jnp.float32))
    )


def decoder_flops(synthetic: Synthetic, theta: Any) -> float:
    """Of one image's decoding."""
    theta = jax.eval_shape(lambda x: x, theta)

    def decode(theta: Any, items: Any) -> Any:
        return synthetic.sample(theta, None, items).images

    return _of_each(lambda n: flops(decode, theta, jax.ShapeDtypeStruct((n,), jnp.int32)))


def mtt_flops(forward: float, inner_steps: int, items: int) -> float:
    """Of trajectory matching's outer step: an inner step on an item is a forward and a backward
    pass, 3 forward passes' products; their derivatives are 6 more."""
    return 9 * inner_steps * items * forward


def d3_flops(
    forward: float, decoder: float, inner_steps: int, items: int, mmd_images: int
) -> float:
    """Of D3's outer step: trajectory matching through the decoder, of which each image takes 3
    decodings' products, and then the MMD: of a real image a forward pass, of a decoded one that and
    its way back to the pixels."""
    trajectory = mtt_flops(forward, inner_steps, items) + 3 * decoder * inner_steps * items
    return trajectory + 3 * mmd_images * (forward + decoder)


def dd_flops(
    forward: float, inner_steps: int, items_a_step: int, networks: int, real_batch: int
) -> float:
    """Of Dataset Distillation's outer step: as `mtt_flops`, and the gradient on real images."""
    return networks * (mtt_flops(forward, inner_steps, items_a_step) + 3 * real_batch * forward)


def _of_each(count: Callable[[int], float]) -> float:
    return (count(9) - count(1)) / 8

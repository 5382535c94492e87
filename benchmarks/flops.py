"""Floating-point operations of a network's plain products, not what a lowering adds or saves."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.outer_steps import lowered_by
from d3jax.types import Network


def flops(function: Callable[..., Any], *arguments: Any) -> float:
    """Of one call, as XLA counts them before it optimizes; convolutions multiply no zeros.

    The body of a loop is counted once, so there must be none.
    """
    with lowered_by("lax"):
        analysis = jax.jit(function).lower(*arguments).cost_analysis()
    assert analysis is not None
    return float(analysis["flops"])


def forward_flops(network: Network, image_shape: tuple[int, int, int]) -> float:
    """Of a network's forward pass, for each image."""
    params = jax.eval_shape(network.init, jax.random.key(0))
    one, nine = (
        flops(network.apply, params, jax.ShapeDtypeStruct((n, *image_shape), jnp.float32))
        for n in (1, 9)
    )
    return (nine - one) / 8

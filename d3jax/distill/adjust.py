"""Moving a network's weights a short way before data is optimized under it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import Array

from d3jax.types import PyTree


def adjust(
    loss: Callable[[PyTree, PyTree], Array],
    params: PyTree,
    batch: PyTree,
    steps: int,
    radius: float,
) -> PyTree:
    """`params` after `steps` ascent steps on `loss(params, batch)`, each of length radius / steps.

    Args:
      loss: (params, batch) -> f[].
      params: any pytree of floats.
      batch: what `loss` takes.
      steps: K; 0 returns `params` as they are.
      radius: rho, the most that they move: in the Euclidean norm over all leaves together, exactly
        so far where all steps have one direction.

    Returns:
      The moved params, without a derivative.

    The directed weight adjustment of DWA, arXiv 2409.17612. Deviation: each batch starts from the
    given params, where the authors' code goes on from those of the batch before.
    """
    if steps == 0:
        return params
    length = radius / steps

    def step(moved: PyTree, _: None) -> tuple[PyTree, None]:
        return _towards(moved, jax.grad(loss)(moved, batch), length), None

    return jax.lax.stop_gradient(jax.lax.scan(step, params, length=steps)[0])


def adjust_randomly(key: Array, params: PyTree, radius: float) -> PyTree:
    """`params` moved by `radius` in a direction drawn uniformly: the control of `adjust`."""
    direction = optax.tree.random_like(key, params, jax.random.normal)
    return jax.lax.stop_gradient(_towards(params, direction, radius))


def _towards(params: PyTree, direction: PyTree, length: float) -> PyTree:
    norm = optax.tree.norm(direction)
    factor = jnp.asarray(length, norm.dtype) / (norm + jnp.asarray(1e-12, norm.dtype))
    return jax.tree.map(lambda p, d: p + factor.astype(p.dtype) * d, params, direction)

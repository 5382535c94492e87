"""What trained networks answer on images that judge or choose, and how often that is right."""

from collections.abc import Callable
from functools import lru_cache

import jax
import jax.numpy as jnp
from jax import Array

from d3jax.networks import unraveler
from d3jax.networks.blocks import forward_blocks, has_statistics
from d3jax.types import HeldOut, InputError, Network, PyTree

_TOGETHER = 5  # networks whose layers are in memory at once


def accuracy(
    network: Network,
    params: Array,
    real: HeldOut,
    statistics: PyTree = (),
    *,
    batch_size: int = 500,
) -> Array:
    """The fraction f[S] of `real`'s images that each of S networks classifies correctly.

    Args:
      network: their architecture.
      params: parameter vectors f[S, P].
      real: the images; all of them are used.
      statistics: what batch norm normalizes by, of each of S networks: those of `population`.
      batch_size: images per dispatch; it changes nothing of what is returned.

    Raises:
      InputError: a network with batch norm, and no statistics.
    """
    classify = answers(network, batch_size)
    groups = []
    for first in range(0, len(params), _TOGETHER):
        few = slice(first, first + _TOGETHER)
        own = jax.tree.map(lambda x, few=few: x[few], statistics)
        groups.append(classify(params[few], real, own) == real.labels)
    return jnp.mean(jnp.concatenate(groups).astype(jnp.float32), axis=1)


@lru_cache(maxsize=8)  # compiled once for all that ask the same network
def answers(network: Network, batch_size: int = 500) -> Callable[..., Array]:
    """(parameters f[S, P], real, statistics=()) -> the class i32[S, N] that each gives each image.

    Compiled. A network whose weights are not finite answers 0. `batch_size` images are looked at
    together. Statistics are as in `accuracy`, and so is the error where they are needed.
    """
    unravel = unraveler(network)

    def classify(params: Array, real: HeldOut, statistics: PyTree = ()) -> Array:
        if not statistics and has_statistics(network, real.images.shape[1:]):
            raise InputError(
                "a network with batch norm is tested with population statistics, never those of "
                "the test images; give the statistics of what it was trained on (see population)"
            )
        images = real.images.shape[0]
        batches = -(-images // batch_size)
        size = -(-images // batches)  # the last repeats as few images as can be
        index = jnp.minimum(jnp.arange(batches * size, dtype=jnp.int32), images - 1)

        def logits(params: Array, own: PyTree, batch: Array) -> Array:
            if own:  # an image's answer is its own: there is no batch to keep whole
                return network.forward(unravel(params), batch, statistics=own).logits
            return forward_blocks(network, unravel(params), batch).logits

        def one(index: Array) -> Array:
            found = jax.vmap(logits, (0, 0, None))(params, statistics, real.gather(index))
            return jnp.argmax(found, -1).astype(jnp.int32)

        found = jax.lax.map(one, index.reshape(batches, size))  # [batches, S, size]
        return found.swapaxes(0, 1).reshape(params.shape[0], -1)[:, :images]

    return jax.jit(classify)

"""Statistics of batch norm's inputs, averaged over batches with final weights.

What they are for: `evaluate.population`, which tests networks by them, and statistics matching, in
which distilled data should have them.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from d3jax.networks.architectures import unraveler
from d3jax.types import Network, PyTree


def over(
    network: Network,
    params: Array,
    parts: Sequence[PyTree],
    images: Callable[[PyTree], Array],
) -> PyTree:
    """The statistics of networks f[S, P] over batches; a pure function, to be compiled.

    By the law of total variance: the mean of the batches' means; the mean of their variances, and
    the variance of their means. A batch counts by its images.

    Args:
      network: the architecture.
      params: f[S, P].
      parts: batches, stacked: pytrees whose leaves have the batches as leading axis. Those of one
        part have equally many images.
      images: of a batch, f[B, H, W, C].
    """
    unravel = unraveler(network)

    def of_batch(batch: PyTree) -> PyTree:
        seen = images(batch)
        return jax.vmap(lambda p: network.forward(unravel(p), seen).statistics)(params)

    sizes: list[int] = []
    for part in parts:
        shape = jax.eval_shape(lambda part: images(jax.tree.map(lambda x: x[0], part)), part).shape
        sizes += [shape[0]] * len(jax.tree.leaves(part)[0])
    found = [jax.lax.map(of_batch, part) for part in parts]
    joined = jax.tree.map(lambda *x: jnp.concatenate(x), *found)
    shares = np.asarray(sizes) / np.sum(sizes)

    def pooled(mean: Array, variance: Array) -> tuple[Array, Array]:
        weights = jnp.asarray(shares, mean.dtype).reshape(-1, 1, 1)
        centre = jnp.sum(weights * mean, 0)
        return centre, jnp.sum(weights * (variance + jnp.square(mean - centre)), 0)

    return tuple(pooled(*pair) for pair in joined)

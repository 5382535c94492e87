"""Population statistics of batch norm: what a trained network normalizes test images by.

In training, batch norm uses each batch's own statistics and keeps none. For a test, those of its
inputs are averaged over the data that the network was trained on, with its final weights: so what
it says of an image does not depend on the other images of the test. Wu and Johnson, "Rethinking
'Batch' in BatchNorm" (arXiv 2105.07576), section 3; they find some thousand images enough.

Statistics are stacked here: of S networks a pair (mean f[S, C], variance f[S, C]) for each batch
norm, and an empty tuple of networks without any, for which nothing is computed.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from d3jax.evaluate import lessons
from d3jax.networks.blocks import has_statistics
from d3jax.networks.statistics import over as over
from d3jax.types import Network, PyTree, Real, Synthetic

_TOGETHER = 5  # networks whose layers are in memory at once
_FEWEST = 2048  # images, where distilled items can be visited again
_MOST = 10_000  # real images
_BATCH = 500  # real images in a batch


def of_items(
    network: Network,
    params: Array,
    synthetic: Synthetic,
    theta: dict[str, PyTree],
    key: Array,
    *,
    batch_size: int,
    with_means: bool = False,
) -> PyTree:
    """The statistics of students over the distilled items that they were trained on.

    All items are visited equally often, in batches of random order as in training, but without
    augmentation, as test images are. There are as many visits as make 2048 images, each with fresh
    samples where the data is a distribution. All students see the same.

    Args:
      network: the students' architecture.
      params: their final weights, f[S, P].
      synthetic, theta: the distilled data, frozen.
      key: order and samples follow from it.
      batch_size: at most so many items make a batch. It matters from the second batch norm on: what
        reaches that was normalized by the batch's own statistics, as in training.
      with_means: visit the deterministic decodes too, as `evaluate.Protocol` says.

    Returns:
      A pair (mean f[S, C], variance f[S, C]) for each batch norm.
    """
    if not has_batch_norm(network, synthetic, theta, key):
        return ()
    look = _over_items(network, synthetic, batch_size, with_means)
    return in_groups(lambda group: look(group, theta, key), params, _TOGETHER)


def has_batch_norm(
    network: Network, synthetic: Synthetic, theta: dict[str, PyTree], key: Array
) -> bool:
    """Whether a network of this data has statistics; nothing is computed. key: of any sample."""
    one = jax.ShapeDtypeStruct((1,), jnp.int32)
    image = jax.eval_shape(lambda theta, item: synthetic.sample(theta, key, item), theta, one)[0]
    return has_statistics(network, image.shape[1:])


@lru_cache(maxsize=8)  # compiled once for all that ask the same
def _over_items(
    network: Network, synthetic: Synthetic, batch_size: int, with_means: bool
) -> Callable[[Array, PyTree, Array], PyTree]:
    number = synthetic.num_items
    slots = number * (2 if with_means else 1)
    visits = -(-_FEWEST // slots)

    def look(params: Array, theta: PyTree, key: Array) -> PyTree:
        def images(batch: PyTree) -> Array:
            slot, key = batch
            return lessons.decoded(synthetic, theta, key, slot, with_means)[0]

        for_order, for_samples = jax.random.split(key)
        orders = jax.vmap(lambda k: jax.random.permutation(k, slots))(
            jax.random.split(for_order, visits)
        )
        parts = [
            (part, jax.random.split(jax.random.fold_in(for_samples, place), len(part)))
            for place, part in enumerate(_cut(orders, batch_size))
        ]
        return over(network, params, parts, images)

    return jax.jit(look)


def of_images(network: Network, params: Array, real: Real) -> PyTree:
    """The statistics of networks over the real images that they were trained on.

    In batches of 500, without augmentation; of more than 10,000 images, over a random 10,000.

    Args:
      network: their architecture.
      params: their weights, f[S, P].
      real: the images; a shuffle that is always the same mixes them, in case they are sorted.

    Returns:
      A pair (mean f[S, C], variance f[S, C]) for each batch norm.
    """
    if not has_statistics(network, real.images.shape[1:]):
        return ()
    number = real.images.shape[0] if real.number is None else int(real.number)
    order = np.random.default_rng(0).permutation(number)[:_MOST].astype(np.int32)
    parts = _cut(jnp.asarray(order)[None], _BATCH)
    real = real._replace(trajectories=None)
    look = _over_images(network)
    return in_groups(lambda group: look(group, real, parts), params, _TOGETHER)


@lru_cache(maxsize=8)
def _over_images(network: Network) -> Callable[[Array, Real, Sequence[Array]], PyTree]:
    return jax.jit(lambda params, real, parts: over(network, params, parts, real.gather))


def in_groups(function: Callable[[Array], PyTree], params: Array, together: int) -> PyTree:
    """`function` of so many networks' weights at a time, joined: f[S, P] -> leaves [S, ...].

    The last group is filled up, so that one program serves all.
    """
    number = len(params)
    size = min(together, number)
    groups = -(-number // size)
    padded = jnp.resize(params, (groups * size, params.shape[1]))
    found = [function(group) for group in jnp.split(padded, groups)]
    return jax.tree.map(lambda *x: jnp.concatenate(x)[:number], *found)


def _cut(orders: Array, batch_size: int) -> list[Array]:
    """Each of `orders` i32[V, n] cut into batches of sizes that differ by at most one.

    Returns:
      The larger batches i32[b, size + 1], if any, and the others i32[b, size].
    """
    number = orders.shape[1]
    batches = -(-number // batch_size)
    size, larger = divmod(number, batches)
    end = larger * (size + 1)
    parts = [orders[:, :end].reshape(-1, size + 1), orders[:, end:].reshape(-1, size)]
    return [part for part in parts if part.size]

"""A world of random images and weights: the arithmetic does not depend on them."""

import jax
import jax.numpy as jnp
import numpy as np

from d3jax import networks
from d3jax.types import Network, Real

CLASSES = 10


def random_real(
    image_shape: tuple[int, int, int],
    images: int = 1000,
    network: Network | None = None,
    classes: int = CLASSES,
) -> Real:
    """`images` random ones of all classes and, of a network, two experts of three epochs."""
    generator = np.random.default_rng(0)
    labels = np.arange(images, dtype=np.int32) % classes
    each = images // classes
    index = np.stack([np.flatnonzero(labels == k)[:each] for k in range(classes)])
    trajectories = None
    if network is not None:
        shapes = jax.eval_shape(network.init, jax.random.key(0))
        size = (2, 4, networks.parameter_count(shapes))
        snapshots = 0.05 * generator.standard_normal(size).astype(np.float32)
        trajectories = jnp.asarray(np.cumsum(snapshots, axis=1))
    return Real(
        images=jnp.asarray(generator.integers(0, 256, (images, *image_shape)), jnp.uint8),
        labels=jnp.asarray(labels),
        class_index=jnp.asarray(index, jnp.int32),
        class_counts=jnp.full((classes,), each, jnp.int32),
        mean=jnp.full((image_shape[2],), 0.5, jnp.float32),
        sd=jnp.full((image_shape[2],), 0.25, jnp.float32),
        trajectories=trajectories,
    )

"""Real images that distilled data starts from: random ones of each class, or centres of k-means."""

import jax
import jax.numpy as jnp
from jax import Array

from d3jax.types import Real

STARTS = ("noise", "real", "kmeans")
_STEPS = 20  # of Lloyd's algorithm


def images(start: str, key: Array, real: Real, per_class: int) -> Array:
    """Normalized images f[K, per_class, H, W, C] of the start `real` or `kmeans`.

    real: random ones, all different. kmeans: `centres` that begin there.
    """
    drawn = real.sample_different(key, per_class)
    return centres(real, drawn) if start == "kmeans" else real.gather(drawn)


def centres(real: Real, begin: Array) -> Array:
    """The centres f[K, k, H, W, C] of k-means within each class, on normalized pixels.

    Lloyd's algorithm, 20 steps from the images at positions `begin` i32[K, k]; a centre that no
    image is nearest to stays where it is. Classes are in memory one after another, and of a class
    all images.
    """

    def of_class(own: tuple[Array, Array, Array]) -> Array:
        members, count, first = own
        points = real.gather(members)
        shape = points.shape[1:]
        points = points.reshape(len(members), -1).astype(jnp.float32)
        there = (jnp.arange(len(members), dtype=count.dtype) < count).astype(points.dtype)

        def step(_: Array, centre: Array) -> Array:
            # |x - c|^2, less |x|^2, which is the same for all centres.
            distances = jnp.sum(jnp.square(centre), 1) - 2 * points @ centre.T
            nearest = jax.nn.one_hot(distances.argmin(1), len(centre), dtype=points.dtype)
            nearest = nearest * there[:, None]
            number = nearest.sum(0)[:, None]
            mean = nearest.T @ points / jnp.maximum(number, jnp.ones_like(number))
            return jnp.where(number > 0, mean, centre)

        centre = real.gather(first).reshape(len(first), -1).astype(jnp.float32)
        return jax.lax.fori_loop(0, _STEPS, step, centre).reshape(len(first), *shape)

    return jax.lax.map(of_class, (real.class_index, real.class_counts, begin))

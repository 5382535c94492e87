"""Maximum mean discrepancy of synthetic and real images in an expert's features."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from d3jax import losses
from d3jax.networks import forward_blocks, unraveler
from d3jax.types import Network, Objective, Real


def feature_mmd(
    network: Network,
    num_items: int,
    num_classes: int,
    *,
    samples: int,
    epoch: int = -1,
    bandwidths: Sequence[float] = losses.BANDWIDTHS,
    updates: tuple[str, ...],
) -> Objective:
    """Decoded and real images of each class should be alike in the features of an expert.

    Args:
      network: the experts' architecture.
      num_items, num_classes: of the parametrization; items are sorted by class.
      samples: decoded, and as many real, images per class; the class's items take turns,
        beginning with a random one.
      epoch: the snapshot whose features are compared, -1 for the last.
      bandwidths: of the kernel (`losses.mmd2`).
      updates: the groups of theta that it moves.

    The loss is the sum over classes of the unbiased MMD^2. Update 2 of D3, arXiv 2403.00999. All
    classes are decoded as one batch, where the authors' code decodes (and so batch-normalizes) each
    class alone: a saved artifact's frozen statistics then mean the same as those of training.
    """
    unravel = unraveler(network)
    per_class = num_items // num_classes

    def loss(theta, sample, aux, key, real: Real):
        assert real.trajectories is not None
        for_expert, for_turn, for_sample, for_real = jax.random.split(key, 4)
        expert = jax.random.randint(for_expert, (), 0, real.trajectories.shape[0])
        # From a random one on, so that no item is drawn more often than another in the long run.
        first_turn = jax.random.randint(for_turn, (), 0, per_class, jnp.int32)
        turns = (first_turn + jnp.arange(samples, dtype=jnp.int32)) % per_class
        first = jnp.arange(num_classes, dtype=jnp.int32) * per_class
        index = (first[:, None] + turns).reshape(-1)
        images = sample(theta, for_sample, index).images
        params = unravel(real.trajectories[expert, epoch].astype(images.dtype))
        # Real features need no gradient; keeping them out of the decoded batch avoids storing it.
        picked = real.sample_classes(for_real, samples).reshape(-1)
        real_images = real.gather(picked).astype(images.dtype)
        target = forward_blocks(network, params, real_images).features
        features = forward_blocks(network, params, images).features

        def by_class(x: Array) -> Array:
            return x.reshape(num_classes, samples, -1)

        per_class_mmd = jax.vmap(lambda x, y: losses.mmd2(x, y, bandwidths))(
            by_class(features), by_class(jax.lax.stop_gradient(target))
        )
        total = jnp.sum(per_class_mmd)
        return total, (aux, {"loss": total})

    return Objective("mmd", lambda key, real: (), loss, updates)

"""Maximum mean discrepancy of synthetic and real images in an expert's features."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from d3jax import losses
from d3jax.networks import unraveler
from d3jax.networks.blocks import forward_blocks
from d3jax.types import InputError, Network, Objective, Real


def feature_mmd(
    network: Network,
    num_items: int,
    num_classes: int,
    *,
    samples: int,
    epoch: int = -1,
    classes_at_once: int | None = None,
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
      classes_at_once: classes whose images are in memory together, a divisor of `num_classes`;
        default all. Fewer are a random group, computed again on the way back.
      bandwidths: of the kernel (`losses.mmd2`).
      updates: the groups of theta that it moves.

    The loss is the sum over classes of the unbiased MMD^2. Update 2 of D3, arXiv 2403.00999. All
    classes (of a group) are decoded as one batch, where the authors' code decodes (and so
    batch-normalizes) each class alone: a saved artifact's frozen statistics then mean the same as
    those of training.

    Raises:
      InputError: `classes_at_once` does not divide the classes.
    """
    if classes_at_once is not None and (classes_at_once < 1 or num_classes % classes_at_once):
        raise InputError(
            f"the MMD's classes at once must divide the {num_classes} classes, "
            f"not be {classes_at_once}"
        )
    groups = num_classes // (classes_at_once or num_classes)
    unravel = unraveler(network)
    per_class = num_items // num_classes

    def loss(theta, sample, aux, step, key, real: Real):
        del step
        assert real.trajectories is not None
        for_expert, for_turn, for_sample, for_real = jax.random.split(key, 4)
        expert = jax.random.randint(for_expert, (), 0, real.trajectories.shape[0])
        # From a random one on, so that no item is drawn more often than another in the long run.
        first_turn = jax.random.randint(for_turn, (), 0, per_class, jnp.int32)
        turns = (first_turn + jnp.arange(samples, dtype=jnp.int32)) % per_class
        picked = real.sample_classes(for_real, samples)
        dtype = jax.eval_shape(sample, theta, None).images.dtype
        params = unravel(real.trajectories[expert, epoch].astype(dtype))

        def group_mmd(key: Array, classes: Array) -> Array:
            """The sum over `classes` i32[k]."""
            index = classes[:, None] * per_class + turns
            images = sample(theta, key, index.reshape(-1)).images
            # Real features need no gradient; out of the decoded batch they are not stored.
            real_images = real.gather(picked[classes].reshape(-1)).astype(dtype)
            target = forward_blocks(network, params, real_images).features
            features = forward_blocks(network, params, images).features

            def by_class(x: Array) -> Array:
                return x.reshape(classes.shape[0], samples, -1)

            per_class_mmd = jax.vmap(lambda x, y: losses.mmd2(x, y, bandwidths))(
                by_class(features), by_class(jax.lax.stop_gradient(target))
            )
            return jnp.sum(per_class_mmd)

        if groups == 1:
            total = group_mmd(for_sample, jnp.arange(num_classes, dtype=jnp.int32))
        else:
            for_order, for_groups = jax.random.split(for_sample)
            order = jax.random.permutation(for_order, num_classes).astype(jnp.int32)
            inputs = (jax.random.split(for_groups, groups), order.reshape(groups, -1))
            total = jnp.sum(jax.lax.map(jax.checkpoint(lambda x: group_mmd(*x)), inputs))
        return total, (aux, {"loss": total})

    return Objective("mmd", lambda key, real: (), loss, updates)

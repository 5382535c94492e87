"""Kernel ridge regression on synthetic images, in an expert's features, should tell real ones."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from d3jax import losses
from d3jax.data.augment import augment
from d3jax.networks import unraveler
from d3jax.networks.blocks import features_of
from d3jax.types import InputError, Network, Objective, Real


def kernel_ridge(
    network: Network,
    num_items: int,
    num_classes: int,
    *,
    batch_size: int,
    items: int | None = None,
    regularization: float = 1e-6,
    strategy: Sequence[str] = (),
    updates: tuple[str, ...],
) -> Objective:
    """A last layer that is solved for on the distilled data should be good on real images.

    Args:
      network: the experts' architecture.
      num_items, num_classes: of the parametrization.
      batch_size: real images, drawn uniformly with replacement.
      items: distilled items of a step, drawn without replacement; default all.
      regularization: of `losses.kernel_ridge_regression`.
      strategy: augmentation of the distilled images (`augment.STRATEGIES`).
      updates: the groups of theta that it moves.

    Features are of a snapshot of an expert, each epoch from the untrained one on as likely as any
    other. The loss is half the squared error of one-hot labels, summed over classes and averaged
    over real images; targets, the distilled ones too, are less 1 / K. Metrics: that loss, and the
    `accuracy` of its predictions.

    After FRePo (Zhou et al., NeurIPS 2022, arXiv 2206.00719), whose networks are trained on the
    distilled data, where ours are the experts' snapshots.

    Raises:
      InputError: no real images, or items that there are not; by the step, no experts.
    """
    if batch_size < 1:
        raise InputError(f"kernel ridge regression needs real images, not {batch_size}")
    if items is not None and not 1 <= items <= num_items:
        raise InputError(f"kernel ridge regression takes 1 to {num_items} items, not {items}")
    unravel = unraveler(network)

    def loss(theta, sample, aux, step, key, real: Real):
        del step
        trajectories = real.snapshots()
        keys = jax.random.split(key, 6)
        expert = jax.random.randint(keys[0], (), 0, trajectories.shape[0])
        epoch = jax.random.randint(keys[1], (), 0, trajectories.shape[1])
        index = None
        if items is not None and items < num_items:
            index = jax.random.permutation(keys[2], num_items)[:items].astype(jnp.int32)
        images, targets = sample(theta, keys[3], index)
        if strategy:
            images = augment(keys[4], images, tuple(strategy))
        params = unravel(trajectories[expert, epoch].astype(images.dtype))
        drawn = real.sample(keys[5], batch_size)
        others = real.gather(drawn).astype(images.dtype)
        own, of_others = features_of(network, params, images, others)
        true = jax.nn.one_hot(real.labels[drawn], num_classes, dtype=images.dtype)
        targets = targets - jnp.asarray(1 / num_classes, images.dtype)
        predicted = losses.kernel_ridge_regression(own, targets, of_others, regularization)
        distance = losses.squared_error(predicted, true)
        right = jnp.argmax(predicted, -1).astype(jnp.int32) == real.labels[drawn]
        return distance, (aux, {"loss": distance, "accuracy": jnp.mean(right.astype(images.dtype))})

    return Objective("kernel_ridge", lambda key, real: (), loss, updates)

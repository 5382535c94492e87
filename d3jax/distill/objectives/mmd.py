"""Maximum mean discrepancy of synthetic and real images in an expert's features."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from d3jax import losses
from d3jax.data.augment import augment
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
    experts: int = 1,
    bandwidth: Literal["absolute", "median"] = "absolute",
    bandwidths: Sequence[float] | None = None,
    strategy: Sequence[str] = (),
    updates: tuple[str, ...],
) -> Objective:
    """Decoded and real images of each class should be alike in the features of an expert.

    Args:
      network: the experts' architecture.
      num_items, num_classes: of the parametrization; items are sorted by class.
      samples: decoded, and as many real, images per class, of its items `stratified_items` and of
        its real images independently, with replacement.
      epoch: the snapshot whose features are compared, -1 for the last.
      classes_at_once: classes whose images are in memory together, a divisor of `num_classes`;
        default all. Fewer are a random group, computed again on the way back.
      experts: drawn experts whose features are compared, on the same images; the loss is the mean.
        Two of them are different ones, where there are as many.
      bandwidth: in which unit bandwidths are: that of the features, or the median distance of each
        class's decoded and real images in them (`losses.median_distance`).
      bandwidths: of the kernel (`losses.mmd2`); default `losses.BANDWIDTHS`, or of the median
        `losses.RELATIVE_BANDWIDTHS`.
      strategy: augmentation of both (`augment.STRATEGIES`), siamese: the i-th decoded and the i-th
        real image of a class get the same; D3 has none.
      updates: the groups of theta that it moves.

    The loss is the sum over classes of an unbiased estimate of the MMD^2 between the mixture of the
    class's items, in equal shares, and its real images in `real`. (Unbiased as far as decodes do
    not depend on each other, as through batch norm; bandwidths do not depend on the draws, as the
    median does; and images are not augmented, since the parameters that the i-th decoded and the
    i-th real image share make it smaller by a part of order 1 / `samples`.)

    Update 2 of D3, arXiv 2403.00999, whose code has one item per class in it. All classes (of a
    group) are decoded as one batch, where the authors' code decodes (and so batch-normalizes) each
    class alone: a saved artifact's frozen statistics then mean the same as those of training.
    Features are those before the classifier, the only ones that a `Network` gives. With batch norm
    in the network decoded and real images are each normalized by their own batch, of all classes
    (of a group): means and variances over all classes are not compared.

    Raises:
      InputError: `classes_at_once` does not divide the classes, or no experts are asked for.
    """
    if experts < 1:
        raise InputError(f"the MMD's experts must be at least 1, not {experts}")
    if classes_at_once is not None and (classes_at_once < 1 or num_classes % classes_at_once):
        raise InputError(
            f"the MMD's classes at once must divide the {num_classes} classes, "
            f"not be {classes_at_once}"
        )
    groups = num_classes // (classes_at_once or num_classes)
    unravel = unraveler(network)
    per_class = num_items // num_classes
    strata = _strata(per_class, samples)
    if bandwidths is None:
        bandwidths = losses.BANDWIDTHS if bandwidth == "absolute" else losses.RELATIVE_BANDWIDTHS

    def distance(x: Array, y: Array) -> Array:
        if bandwidth == "median":
            unit = losses.median_distance(x, y)
            x, y = x / unit, y / unit
        return losses.mmd2(x, y, bandwidths, strata=strata)

    def drawn(key: Array, pool: int) -> Array:
        """Numbers of the experts: i32[experts], or i32[] of one."""
        if experts == 1:
            return jax.random.randint(key, (), 0, pool)
        return jax.random.choice(key, pool, (experts,), replace=experts > pool)

    def loss(theta, sample, aux, step, key, real: Real):
        del step
        trajectories = real.snapshots(max(epoch, 0))
        for_experts, for_items, for_sample, for_real = jax.random.split(key, 4)
        chosen = drawn(for_experts, trajectories.shape[0])
        items = stratified_items(for_items, num_classes, samples, per_class)
        picked = real.sample_classes(for_real, samples)
        dtype = jax.eval_shape(sample, theta, None).images.dtype

        def snapshot(expert: Array) -> Array:
            return trajectories[expert, epoch].astype(dtype)

        snapshots = snapshot(chosen) if experts == 1 else jax.lax.map(snapshot, chosen)

        def group_mmd(key: Array, classes: Array) -> Array:
            """The sum over `classes` i32[k]."""
            index = classes[:, None] * per_class + items[classes]
            for_sample, for_augmentation = jax.random.split(key) if strategy else (key, key)
            images = sample(theta, for_sample, index.reshape(-1)).images
            # Real features need no gradient; out of the decoded batch they are not stored.
            real_images = real.gather(picked[classes].reshape(-1)).astype(dtype)
            if strategy:
                images = augment(for_augmentation, images, tuple(strategy))
                real_images = augment(for_augmentation, real_images, tuple(strategy))

            def by_class(x: Array) -> Array:
                return x.reshape(classes.shape[0], samples, -1)

            def seen_by(snapshot: Array) -> Array:
                params = unravel(snapshot)
                target = forward_blocks(network, params, real_images).features
                features = forward_blocks(network, params, images).features
                per_class_mmd = jax.vmap(distance)(
                    by_class(features), by_class(jax.lax.stop_gradient(target))
                )
                return jnp.sum(per_class_mmd)

            if experts == 1:
                return seen_by(snapshots)
            return jnp.mean(jax.lax.map(jax.checkpoint(seen_by), snapshots))

        if groups == 1:
            total = group_mmd(for_sample, jnp.arange(num_classes, dtype=jnp.int32))
        else:
            for_order, for_groups = jax.random.split(for_sample)
            order = jax.random.permutation(for_order, num_classes).astype(jnp.int32)
            inputs = (jax.random.split(for_groups, groups), order.reshape(groups, -1))
            total = jnp.sum(jax.lax.map(jax.checkpoint(lambda x: group_mmd(*x)), inputs))
        return total, (aux, {"loss": total})

    return Objective("mmd", lambda key, real: (), loss, updates)


def _strata(per_class: int, samples: int) -> int:
    """Parts of a class's mixture, of two draws at least: its items, if there are draws enough."""
    return max(1, min(per_class, samples // 2))


def stratified_items(key: Array, num_classes: int, samples: int, per_class: int) -> Array:
    """Items i32[K, samples] of each class, counted within it, for `losses.mmd2` with strata.

    A class's items in their order are cut into equal strata: single items, or with fewer than two
    draws for each item, as many strata as there are pairs of draws. Draws take turns at the strata,
    beginning with a random one, and each is an item at random of its stratum, in proportion to how
    much of the item is in it. So each draw is of each item with the same probability.

    Half the standard deviation of independent draws where both distributions are equal (30 draws of
    10 items).
    """
    strata = _strata(per_class, samples)
    for_first, for_place = jax.random.split(key)
    first = jax.random.randint(for_first, (num_classes, 1), 0, strata, jnp.int32)
    stratum = (first + jnp.arange(samples, dtype=jnp.int32)) % strata
    # All items, `strata` places each, side by side are `strata` strata of `per_class` places.
    place = jax.random.randint(for_place, (num_classes, samples), 0, per_class, jnp.int32)
    return (stratum * per_class + place) // strata

"""Trajectory matching: a student on synthetic data should go where an expert on real data went."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from d3jax import losses
from d3jax.data.augment import augment
from d3jax.distill.inner import direct_unroll, positive_learning_rates, unroll
from d3jax.networks import unraveler
from d3jax.types import InputError, Network, Objective, PyTree, Real


def trajectory_matching(
    network: Network,
    num_items: int,
    *,
    inner_steps: int,
    expert_epochs: int,
    max_start_epoch: int,
    min_start_epoch: int = 0,
    first_max_start_epoch: int | None = None,
    growth_steps: int = 0,
    batch_size: int | None = None,
    strategy: Sequence[str] = (),
    gradient: Literal["exact", "tesla"] = "exact",
    updates: tuple[str, ...],
    rematerialize: bool = True,
    scan_unroll: int = 1,
) -> Objective:
    """From an expert's epoch t, `inner_steps` steps on synthetic data should reach epoch t + M.

    Args:
      network: the student, of the experts' architecture.
      num_items: how many items the parametrization has.
      inner_steps: T, gradient steps on freshly sampled images.
      expert_epochs: M, epochs of the expert to be matched.
      max_start_epoch: start epochs t are drawn uniformly from min_start_epoch ..
        max_start_epoch - 1.
      min_start_epoch: the earliest start epoch.
      first_max_start_epoch, growth_steps: max_start_epoch grows linearly from the former to its
        full value over so many outer steps (difficulty-aligned matching, DATM: Guo et al., ICLR
        2024); default at once.
      batch_size: items per inner step, drawn by permutations; None for all of them.
      strategy: augmentation inside the student's steps, of synthetic images alone
        (`augment.STRATEGIES`); D3 has none.
      gradient: `exact` backpropagation through all steps, or `tesla`: without the path by which
        data of earlier steps moves later weights, at the memory of one step
        (`inner.direct_unroll`).
      updates: the groups of theta that it moves.
      rematerialize, scan_unroll: see `inner.unroll`; of the exact gradient.

    theta["learning_rates"] holds the logarithms f[] or f[T] of the student's learning rates.
    `real.trajectories` f[E, epochs + 1, P] needs epochs >= max_start_epoch - 1 + M.

    Cazenavette et al., CVPR 2022; update 1 of D3, arXiv 2403.00999. Where the authors' codes learn
    the learning rate itself (which can turn negative), we learn its logarithm.

    Raises:
      InputError: a window of start epochs that is empty, or does not grow.
    """
    first = max_start_epoch if first_max_start_epoch is None else first_max_start_epoch
    if not 0 <= min_start_epoch < first <= max_start_epoch:
        raise InputError(
            f"start epochs need 0 <= min_start_epoch < first_max_start_epoch <= max_start_epoch, "
            f"not {min_start_epoch}, {first}, {max_start_epoch}"
        )
    unravel = unraveler(network)
    growing = first < max_start_epoch and growth_steps > 0

    def latest(step: Array) -> Array | int:
        """The current max_start_epoch."""
        if not growing:
            return max_start_epoch
        return first + (max_start_epoch - first) * jnp.minimum(step, growth_steps) // growth_steps

    def loss(theta, sample, aux, step, key, real: Real):
        trajectories = real.snapshots(max_start_epoch - 1 + expert_epochs)
        for_expert, for_epoch, for_batches, for_steps = jax.random.split(key, 4)
        expert = jax.random.randint(for_expert, (), 0, trajectories.shape[0])
        epoch = jax.random.randint(for_epoch, (), min_start_epoch, latest(step))
        learning_rates = positive_learning_rates(theta["learning_rates"], inner_steps)
        dtype = learning_rates.dtype
        start = unravel(trajectories[expert, epoch].astype(dtype))
        target = unravel(trajectories[expert, epoch + expert_epochs].astype(dtype))

        # Batches are made inside the step, from keys: recomputed on the way back, never stored.
        batches: dict[str, Array] = {"key": jax.random.split(for_steps, inner_steps)}
        if batch_size is not None and batch_size < num_items:
            batches["index"] = cycled_batches(for_batches, num_items, inner_steps, batch_size)

        def student_loss(params: PyTree, batch: PyTree, theta: PyTree) -> Array:
            for_sample, for_augmentation = jax.random.split(batch["key"])
            images, targets = sample(theta, for_sample, batch.get("index"))
            if strategy:
                images = augment(for_augmentation, images, tuple(strategy))
            return losses.cross_entropy(network.apply(params, images), targets)

        if gradient == "tesla":
            student = direct_unroll(student_loss, start, theta, batches, learning_rates)
        else:
            student = unroll(
                lambda params, batch: student_loss(params, batch, theta),
                start,
                batches,
                learning_rates,
                rematerialize=rematerialize,
                scan_unroll=scan_unroll,
            )
        distance = losses.trajectory_distance(student, target, start)
        metrics = {"distance": distance, "learning_rate": jnp.mean(learning_rates)}
        return distance, (aux, metrics)

    return Objective("trajectory", lambda key, real: (), loss, updates)


def cycled_batches(key: Array, num_items: int, steps: int, batch_size: int) -> Array:
    """Item indices i32[steps, batch_size]: random permutations of all items, end to end."""
    passes = -(-steps * batch_size // num_items)
    permutations = jax.vmap(lambda k: jax.random.permutation(k, num_items))(
        jax.random.split(key, passes)
    )
    return permutations.reshape(-1)[: steps * batch_size].reshape(steps, batch_size)

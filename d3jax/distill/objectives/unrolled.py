"""The unrolled objective: a network trained on synthetic data should suit real data."""

from collections.abc import Mapping
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jax import Array

from d3jax import losses
from d3jax.distill.inner import limit_gradient, positive_learning_rates, truncated_unroll, unroll
from d3jax.networks import initial_parameters, unraveler
from d3jax.networks.blocks import batch_loss
from d3jax.types import InputError, Network, Objective, PyTree, Real

Initialization = Literal["fixed", "random", "pretrained"]


def step_items(num_items: int, steps: int, passes: int) -> Array:
    """Which items i32[steps * passes, num_items / steps] each inner step trains on.

    Items are sorted by class, so every `steps`-th of them makes a step of all classes alike (where
    each class has a multiple of `steps` items; else steps have different ones). The steps follow
    each other, `passes` times over.

    Raises:
      InputError: items cannot be dealt out to steps evenly.
    """
    if steps < 1 or passes < 1 or num_items % steps:
        raise InputError(
            f"{num_items} items cannot be dealt out evenly to {steps} steps of {passes} passes"
        )
    order = jnp.arange(num_items, dtype=jnp.int32).reshape(-1, steps).T
    return jnp.tile(order, (passes, 1))


def descent(name: Literal["sgd", "adam"]) -> optax.GradientTransformation:
    """The inner optimizer at unit learning rate."""
    # Without eps_root Adam's meta-gradient is NaN where a gradient is exactly zero.
    return optax.sgd(1.0) if name == "sgd" else optax.adam(1.0, eps_root=1e-12)


def unrolled(
    network: Network,
    num_items: int,
    *,
    steps: int,
    passes: int,
    initialization: Initialization,
    weights_key: Array | None = None,
    number_of_networks: int = 1,
    batch_size: int = 1024,
    window: int | None = None,
    optimizer: Literal["sgd", "adam"] = "sgd",
    relabel: tuple[int, int] | None = None,
    clip: Mapping[str, float] | None = None,
    rematerialize: bool = True,
    scan_unroll: int = 1,
    updates: tuple[str, ...],
) -> Objective:
    """A network trained on the distilled items for `steps * passes` steps should suit real data.

    Args:
      network: the student.
      num_items: how many items the parametrization has, a multiple of `steps`.
      steps: S, distilled batches (`step_items`).
      passes: P, times that they are gone through.
      initialization: `fixed`: always the weights that `weights_key` draws; `random`: fresh ones in
        each outer step; `pretrained`: drawn from the last snapshots in `real.trajectories`.
      weights_key: for `fixed`.
      number_of_networks: starts per outer step, side by side under vmap (on CPU in turn); 1 for
        `fixed`.
      batch_size: real images of the outer loss, drawn with replacement, for each network its own.
      window: unroll only so many inner steps, at a random place (`inner.truncated_unroll`); the
        outer loss is then that of the network at the window's end.
      optimizer: of the inner steps.
      relabel: (a, b): real images of class a count as class b (the attack).
      clip: largest norm of the meta-gradient of these groups of theta, each network's share alone
        (`inner.limit_gradient`). Where it limits all that is moved, a network that diverges moves
        nothing, and the metric `loss` is of the others; a run stops where all diverge.
      rematerialize, scan_unroll: see `inner.unroll`.
      updates: the groups of theta that it moves.

    theta["learning_rates"] holds the logarithms f[S * P], or f[] for all steps, of the inner
    learning rates. The loss is the mean cross entropy, in nats. Wang et al., arXiv 1811.10959,
    algorithm 1; where the authors learn softplus of a raw rate, we learn exp (the same for small
    rates). The window: Feng et al., arXiv 2310.07506. With batch norm the outer loss normalizes
    real images by their own batch, where a test normalizes them by what the network was trained on.

    Raises:
      InputError: steps that do not divide the items, a window out of range, or no `weights_key`.
    """
    items = step_items(num_items, steps, passes)
    inner_steps = steps * passes
    if window is not None and not 0 < window <= inner_steps:
        raise InputError(f"window must be from 1 to {inner_steps} inner steps, not {window}")
    if initialization == "fixed" and (weights_key is None or number_of_networks != 1):
        raise InputError("a fixed initialization is one network, drawn from one key")
    unravel = unraveler(network)

    draw = partial(initial_parameters, network)

    def init(key: Array, real: Real) -> PyTree:
        del key, real
        if initialization != "fixed":
            return ()
        assert weights_key is not None
        return {"weights": draw(weights_key)}

    def starts(aux: PyTree, key: Array, real: Real) -> Array:
        if initialization == "fixed":
            return aux["weights"][None]
        if initialization == "random":
            return jax.vmap(draw)(jax.random.split(key, number_of_networks))
        trajectories = real.snapshots()
        pool, number = trajectories.shape[0], number_of_networks
        chosen = jax.random.choice(key, pool, (number,), replace=number > pool)
        return trajectories[chosen, -1]

    def loss(theta, sample, aux, step, key, real: Real):
        del step
        for_starts, for_window, for_steps, for_real = jax.random.split(key, 4)
        rates = positive_learning_rates(theta["learning_rates"], inner_steps)
        dtype = rates.dtype
        batches = {"items": items, "key": jax.random.split(for_steps, inner_steps)}

        def student_loss(params: PyTree, batch: PyTree, theta: PyTree) -> Array:
            distilled = sample(theta, batch["key"], batch["items"])
            return losses.cross_entropy(network.apply(params, distilled.images), distilled.targets)

        def trained(start: Array, shared: dict[str, PyTree]) -> PyTree:
            limited = {
                group: limit_gradient(shared[group], norm / number_of_networks)
                for group, norm in (clip or {}).items()
            }
            shared = {**shared, **limited}
            rates = positive_learning_rates(shared["learning_rates"], inner_steps)
            params = unravel(start.astype(dtype))
            if window is None or window == inner_steps:
                return unroll(
                    lambda params, batch: student_loss(params, batch, shared),
                    params,
                    batches,
                    rates,
                    optimizer=descent(optimizer),
                    rematerialize=rematerialize,
                    scan_unroll=scan_unroll,
                )
            return truncated_unroll(
                student_loss,
                params,
                shared,
                batches,
                rates,
                jax.random.randint(for_window, (), 0, inner_steps - window + 1, jnp.int32),
                window,
                optimizer=descent(optimizer),
                rematerialize=rematerialize,
                scan_unroll=scan_unroll,
            )

        def outer(start: Array, key: Array, shared: dict[str, PyTree]) -> tuple[Array, Array]:
            index = real.sample(key, batch_size)
            images, labels = real.gather(index).astype(dtype), real.labels[index]
            if relabel is not None:
                target = jnp.asarray(relabel[1], labels.dtype)
                labels = jnp.where(labels == relabel[0], target, labels)
            targets = jax.nn.one_hot(labels, real.class_counts.shape[0], dtype=dtype)
            student = trained(start, shared)
            value, logits = batch_loss(network, student, images, losses.cross_entropy, targets)
            right = jnp.mean((jnp.argmax(logits, -1).astype(labels.dtype) == labels).astype(dtype))
            return value, right

        inputs = (starts(aux, for_starts, real), jax.random.split(for_real, number_of_networks))
        if jax.default_backend() == "cpu":  # a tenth faster: one network's arrays fit the cache
            values, right = jax.lax.map(lambda x: outer(x[0], x[1], theta), inputs)
        else:
            copies = jax.tree.map(
                lambda x: jnp.broadcast_to(x, (number_of_networks, *x.shape)), theta
            )
            values, right = jax.vmap(outer)(*inputs, copies)
        mean = jnp.mean(values)
        if set(updates) <= set(clip or {}):  # what a network that diverges moves is limited to zero
            finite = jnp.isfinite(values)
            mean = jnp.sum(jnp.where(finite, values, 0)) / jnp.sum(finite).astype(dtype)
        metrics = {"loss": mean, "accuracy": jnp.mean(right), "learning_rate": jnp.mean(rates)}
        return jnp.mean(values), (aux, metrics)

    return Objective("unrolled", init, loss, updates)

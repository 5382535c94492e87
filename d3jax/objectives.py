"""Objectives that several methods share; each knows theta only through `sample`."""

from collections.abc import Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.flatten_util import ravel_pytree

from d3jax import losses
from d3jax.augment import augment
from d3jax.inner import limit_gradient, positive_learning_rates, truncated_unroll, unroll
from d3jax.networks import fit, forward_blocks, unraveler
from d3jax.types import InputError, Network, Objective, PyTree, Real


def _cycled_batches(key: Array, num_items: int, steps: int, batch_size: int) -> Array:
    """Item indices i32[steps, batch_size]: random permutations of all items, end to end."""
    passes = -(-steps * batch_size // num_items)
    permutations = jax.vmap(lambda k: jax.random.permutation(k, num_items))(
        jax.random.split(key, passes)
    )
    return permutations.reshape(-1)[: steps * batch_size].reshape(steps, batch_size)


def trajectory_matching(
    network: Network,
    num_items: int,
    *,
    inner_steps: int,
    expert_epochs: int,
    max_start_epoch: int,
    batch_size: int | None = None,
    strategy: Sequence[str] = (),
    updates: tuple[str, ...],
    rematerialize: bool = True,
) -> Objective:
    """From an expert's epoch t, `inner_steps` steps on synthetic data should reach epoch t + M.

    Args:
      network: the student, of the experts' architecture.
      num_items: how many items the parametrization has.
      inner_steps: T, gradient steps on freshly sampled images.
      expert_epochs: M, epochs of the expert to be matched.
      max_start_epoch: start epochs t are drawn uniformly from 0 .. max_start_epoch - 1.
      batch_size: items per inner step, drawn by permutations; None for all of them.
      strategy: siamese augmentation inside the student's steps (`augment.STRATEGIES`); D3 has none.
      updates: the groups of theta that it moves.
      rematerialize: see `inner.unroll`.

    theta["learning_rates"] holds the logarithms f[] or f[T] of the student's learning rates.
    `real.trajectories` f[E, epochs + 1, P] needs epochs >= max_start_epoch - 1 + M.

    Cazenavette et al., CVPR 2022; update 1 of D3, arXiv 2403.00999. Where the authors' codes learn
    the learning rate itself (which can turn negative), we learn its logarithm.
    """
    unravel = unraveler(network)

    def loss(theta, sample, aux, key, real: Real):
        assert real.trajectories is not None
        for_expert, for_epoch, for_batches, for_steps = jax.random.split(key, 4)
        expert = jax.random.randint(for_expert, (), 0, real.trajectories.shape[0])
        epoch = jax.random.randint(for_epoch, (), 0, max_start_epoch)
        learning_rates = positive_learning_rates(theta["learning_rates"], inner_steps)
        dtype = learning_rates.dtype
        start = unravel(real.trajectories[expert, epoch].astype(dtype))
        target = unravel(real.trajectories[expert, epoch + expert_epochs].astype(dtype))

        # Batches are made inside the step, from keys: recomputed on the way back, never stored.
        batches: dict[str, Array] = {"key": jax.random.split(for_steps, inner_steps)}
        if batch_size is not None and batch_size < num_items:
            batches["index"] = _cycled_batches(for_batches, num_items, inner_steps, batch_size)

        def student_loss(params: PyTree, batch: PyTree) -> Array:
            for_sample, for_augmentation = jax.random.split(batch["key"])
            images, targets = sample(theta, for_sample, batch.get("index"))
            if strategy:
                images = augment(for_augmentation, images, tuple(strategy))
            return losses.cross_entropy(network.apply(params, images), targets)

        student = unroll(student_loss, start, batches, learning_rates, rematerialize=rematerialize)
        distance = losses.trajectory_distance(student, target, start)
        rate = jnp.mean(learning_rates)
        return distance, (aux, {"distance": distance, "learning_rate": rate})

    return Objective("trajectory", _no_aux, loss, updates)


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

    return Objective("mmd", _no_aux, loss, updates)


Initialization = Literal["fixed", "random", "pretrained"]


def step_items(num_items: int, steps: int, passes: int) -> Array:
    """Which items i32[steps * passes, num_items / steps] each inner step trains on.

    Items are sorted by class, so every `steps`-th of them makes a step of all classes alike; the
    steps follow each other, `passes` times over.

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
        (`inner.limit_gradient`).
      updates: the groups of theta that it moves.

    theta["learning_rates"] holds the logarithms f[S * P], or f[] for all steps, of the inner
    learning rates. The loss is the mean cross entropy, in nats. Wang et al., arXiv 1811.10959,
    algorithm 1; where the authors learn softplus of a raw rate, we learn exp (the same for small
    rates). The window: Feng et al., arXiv 2310.07506.

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

    def draw(key: Array) -> Array:
        return ravel_pytree(network.init(key))[0]

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
        assert real.trajectories is not None
        pool, number = real.trajectories.shape[0], number_of_networks
        chosen = jax.random.choice(key, pool, (number,), replace=number > pool)
        return real.trajectories[chosen, -1]

    def loss(theta, sample, aux, key, real: Real):
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
            )

        def outer(start: Array, key: Array, shared: dict[str, PyTree]) -> tuple[Array, Array]:
            index = jax.random.randint(key, (batch_size,), 0, real.labels.shape[0], jnp.int32)
            images, labels = real.gather(index).astype(dtype), real.labels[index]
            if relabel is not None:
                target = jnp.asarray(relabel[1], labels.dtype)
                labels = jnp.where(labels == relabel[0], target, labels)
            targets = jax.nn.one_hot(labels, real.class_counts.shape[0], dtype=dtype)
            student = trained(start, shared)
            value, logits = fit(network, student, images, losses.cross_entropy, targets)
            right = jnp.mean((jnp.argmax(logits, -1).astype(labels.dtype) == labels).astype(dtype))
            return value, right

        inputs = (starts(aux, for_starts, real), jax.random.split(for_real, number_of_networks))
        if jax.default_backend() == "cpu":  # a tenth faster: one network's arrays fit the cache
            values, right = jax.lax.map(lambda x: outer(*x, theta), inputs)
        else:
            copies = jax.tree.map(
                lambda x: jnp.broadcast_to(x, (number_of_networks, *x.shape)), theta
            )
            values, right = jax.vmap(outer)(*inputs, copies)
        value = jnp.mean(values)
        metrics = {
            "loss": value,
            "accuracy": jnp.mean(right),
            "learning_rate": jnp.mean(rates),
        }
        return value, (aux, metrics)

    return Objective("unrolled", init, loss, updates)


def _no_aux(key: Array, real: Real) -> PyTree:
    del key, real
    return ()

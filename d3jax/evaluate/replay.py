"""Replay what Dataset Distillation learned: its very steps, on networks that it has not seen."""

import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

from d3jax import artifact, evaluate, losses, networks
from d3jax.distill import objectives
from d3jax.distill.inner import unroll
from d3jax.evaluate import Evaluation, population
from d3jax.evaluate.recipe import Recipe, recipe_of
from d3jax.host.progress import Reporter
from d3jax.networks import unraveler
from d3jax.types import HeldOut, InputError, Network, PyTree, Real, Synthetic


def train(
    network: Network,
    synthetic: Synthetic,
    theta: dict[str, PyTree],
    recipe: Recipe,
    weights: Array,
    key: Array,
    *,
    at_once: int = 20,
) -> tuple[Array, float]:
    """The networks after the recipe's steps, f[N, P], and the seconds per network.

    Args:
      network: the architecture of all of them.
      synthetic, theta: the distilled data.
      weights: f[N, P], where they start.
      key: of samples, where the data is a distribution; the same for all networks.
      at_once: networks side by side under vmap; the last group is padded, so that one program
        serves all.
    """
    rates = jnp.asarray(recipe.learning_rates, jnp.float32)
    together = _stepper(network, synthetic, recipe.steps, recipe.passes, recipe.optimizer)
    jax.block_until_ready(together(weights[:at_once], theta, rates, key))  # compiles
    begun = time.monotonic()
    trained = population.in_groups(
        lambda group: together(group, theta, rates, key), weights, at_once
    )
    return jax.block_until_ready(trained), (time.monotonic() - begun) / len(weights)


@lru_cache(maxsize=8)  # compiled once for all learning rates, and all data of one parametrization
def _stepper(
    network: Network,
    synthetic: Synthetic,
    steps: int,
    passes: int,
    optimizer: Literal["sgd", "adam"],
) -> Callable[[Array, PyTree, Array, Array], Array]:
    unravel = unraveler(network)
    items = objectives.step_items(synthetic.num_items, steps, passes)

    def one(start: Array, theta: PyTree, rates: Array, key: Array) -> Array:
        def loss(params: PyTree, batch: PyTree) -> Array:
            images, targets = synthetic.sample(theta, batch["key"], batch["items"])
            return losses.cross_entropy(network.apply(params, images), targets)

        batches = {"items": items, "key": jax.random.split(key, steps * passes)}
        descent = objectives.descent(optimizer)
        return ravel_pytree(unroll(loss, unravel(start), batches, rates, optimizer=descent))[0]

    return jax.jit(jax.vmap(one, in_axes=(0, None, None, None)))


def step_statistics(
    network: Network,
    synthetic: Synthetic,
    theta: dict[str, PyTree],
    recipe: Recipe,
    params: Array,
    key: Array,
    *,
    at_once: int = 20,
) -> PyTree:
    """Batch norm's population statistics of networks f[N, P], over what the recipe's steps see.

    As `population` stacks them. The arguments are those of `train`, with the networks' final
    weights: with its key the samples are the very ones that the networks were trained on.
    """
    if not population.has_batch_norm(network, synthetic, theta, key):
        return ()
    look = _looker(network, synthetic, recipe.steps, recipe.passes)
    return population.in_groups(lambda group: look(group, theta, key), params, at_once)


@lru_cache(maxsize=8)
def _looker(
    network: Network, synthetic: Synthetic, steps: int, passes: int
) -> Callable[[Array, PyTree, Array], PyTree]:
    items = objectives.step_items(synthetic.num_items, steps, passes)

    def look(params: Array, theta: PyTree, key: Array) -> PyTree:
        def images(batch: PyTree) -> Array:
            return synthetic.sample(theta, batch["key"], batch["items"]).images

        batches = {"items": items, "key": jax.random.split(key, steps * passes)}
        return population.over(network, params, [batches], images)

    return jax.jit(look)


def replayed(
    network: Network,
    synthetic: Synthetic,
    theta: dict[str, PyTree],
    recipe: Recipe,
    weights: Array,
    test: HeldOut,
    key: Array,
    reporter: Reporter | None = None,
) -> tuple[Evaluation, np.ndarray]:
    """The test accuracy of each network after the recipe's steps, and its confusion.

    Batch norm's statistics are those of `step_statistics`.

    Returns:
      The accuracies, and how often class k was taken for class j: f[N, K, K].
    """
    params, seconds = train(network, synthetic, theta, recipe, weights, key)
    own = step_statistics(network, synthetic, theta, recipe, params, key)
    counts = confusion(network, params, test, reporter, statistics=own)
    right = _accuracies(counts)
    diverged = int(np.sum(~np.isfinite(np.asarray(params)).all(1)))
    rate = float(np.mean(recipe.learning_rates))
    return Evaluation(right, rate, diverged, seconds), counts


def judge(
    distilled: artifact.Artifact,
    network: Network,
    weights: Array,
    test: HeldOut,
    key: Array,
    reporter: Reporter,
    seen: Real | None = None,
) -> tuple[Evaluation, dict[str, Any]]:
    """What `weights` f[N, P] reach after an artifact's steps, and what they were before.

    seen: the images that `weights` were trained on (`unseen.images`), which batch norm's statistics
    are of before the steps. Where there are none, they are of what the steps see then too.

    Returns:
      Their accuracy, and `before`, its summary without the steps; of an attack also `attack`: the
      share of the attacked class's images that are taken for the target, before and after, and the
      accuracy on the other classes.
    """
    recipe = recipe_of(distilled.header["replay"])
    classes = range(len(distilled.header["class_names"]))
    if recipe.attack is not None and not all(label in classes for label in recipe.attack):
        raise InputError(f"the artifact attacks classes {recipe.attack}, which it does not have")
    synthetic, theta = distilled.synthetic, distilled.decodable()
    reached, after = replayed(network, synthetic, theta, recipe, weights, test, key, reporter)
    if seen is None:
        first = step_statistics(network, synthetic, theta, recipe, weights, key)
    else:
        first = population.of_images(network, weights, seen)
    before = confusion(network, weights, test, statistics=first)

    def summary(values: np.ndarray) -> dict[str, Any]:
        return reached._replace(per_student=values, diverged=0).summary()

    more: dict[str, Any] = {"before": summary(_accuracies(before))}
    if recipe.attack is not None:
        attacked, target = recipe.attack
        others = [k for k in range(before.shape[1]) if k != attacked]
        found: dict[str, Any] = {"class": attacked, "target": target}
        for name, counts in (("before", before), ("after", after)):
            flipped = counts[:, attacked, target] / counts[:, attacked].sum(1)
            rest = counts[:, others]
            right = counts[:, others, others].sum(1) / rest.sum((1, 2))
            found[f"flipped_{name}"] = summary(flipped)
            found[f"others_{name}"] = summary(right)
        more["attack"] = found
    return reached, more


def _accuracies(counts: np.ndarray) -> np.ndarray:
    return np.trace(counts, axis1=1, axis2=2) / counts.sum((1, 2))


def evaluate_best(
    network: Network,
    synthetic: Synthetic,
    theta: dict[str, PyTree],
    recipe: Recipe,
    weights: Array,
    choosing: HeldOut,
    test: HeldOut,
    candidates: Sequence[float],
    key: Array,
    *,
    choosing_networks: int = 20,
) -> tuple[Evaluation, tuple[float, ...]]:
    """As `replayed`, with all learning rates equal: that of `candidates` which is best elsewhere.

    Args:
      choosing: images that choose, so not those of the test.
      candidates: learning rates.
      choosing_networks: how many of the networks choose.

    Returns:
      What all networks reached at the best rate, and the mean accuracy of each on `choosing`.
    """

    few = weights[:choosing_networks]
    found = [
        score(network, synthetic, theta, recipe.at(rate), few, choosing, key) for rate in candidates
    ]
    best = recipe.at(candidates[int(np.argmax(found))])
    return replayed(network, synthetic, theta, best, weights, test, key)[0], tuple(found)


def score(
    network: Network,
    synthetic: Synthetic,
    theta: dict[str, PyTree],
    recipe: Recipe,
    weights: Array,
    choosing: HeldOut,
    key: Array,
) -> float:
    """The mean accuracy of networks `weights` on `choosing` after the recipe's steps."""
    params, _ = train(network, synthetic, theta, recipe, weights, key)
    own = step_statistics(network, synthetic, theta, recipe, params, key)
    return float(np.mean(evaluate.accuracy(network, params, choosing, own)))


def confusion(
    network: Network,
    params: Array,
    real: HeldOut,
    reporter: Reporter | None = None,
    *,
    statistics: PyTree = (),
    at_once: int = 20,
) -> np.ndarray:
    """How often each of N networks takes an image of class k for class j: i[N, K, K].

    Args:
      network: their architecture.
      params: parameter vectors f[N, P].
      real: the images; all of them are used.
      reporter: shows progress.
      statistics: what batch norm normalizes by, of each network: see `evaluate.accuracy`.
      at_once: networks side by side.

    Raises:
      InputError: networks with batch norm, and no statistics.
    """
    answers = evaluate.answers(network)
    classes = networks.number_of_classes(network, real.images.shape[1:])
    labels = np.asarray(real.labels)
    size = min(at_once, len(params))
    groups = -(-len(params) // size)
    padded = jnp.resize(params, (groups * size, params.shape[1]))
    filled = jax.tree.map(lambda x: x[np.arange(groups * size) % len(params)], statistics)
    counts = np.zeros((groups * size, classes, classes), np.int64)

    def count(group: int) -> None:
        few = slice(group * size, (group + 1) * size)
        own = jax.tree.map(lambda x: x[few], filled)
        predicted = np.asarray(answers(padded[few], real, own))
        for row, prediction in zip(counts[few], predicted):
            np.add.at(row, (labels, prediction), 1)

    if reporter is None:
        for group in range(groups):
            count(group)
    else:
        with reporter.stage("networks tested", len(params)) as stage:
            for group in range(groups):
                count(group)
                stage.update(min((group + 1) * size, len(params)))
    return counts[: len(params)]

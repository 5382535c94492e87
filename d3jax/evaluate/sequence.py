"""Students that train on subsets of distilled data in turn, each with those before it."""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from d3jax import evaluate
from d3jax.evaluate import Evaluation, Protocol, population
from d3jax.host.progress import Reporter
from d3jax.synthetic.subsets import nested
from d3jax.types import HeldOut, InputError, Network, PyTree, Synthetic


class Recipe(NamedTuple):
    """How students are trained through a sequence."""

    subsets: int
    learning_rates: tuple[float, ...]  # one a stage


def recipe_of(entry: Any) -> Recipe:
    """The recipe in an artifact's header.

    Raises:
      InputError: it is not one.
    """
    rates = entry.get("learning_rates") if isinstance(entry, dict) else None
    if not isinstance(rates, list) or not rates or entry.get("subsets") != len(rates):
        raise InputError("the artifact's sequence needs one learning rate for each subset")
    if not all(type(rate) is float and 0 < rate < float("inf") for rate in rates):
        raise InputError("the artifact's sequence has a learning rate that is not positive")
    return Recipe(len(rates), tuple(rates))


def train(
    network: Network,
    synthetic: Synthetic,
    theta: dict[str, PyTree],
    recipe: Recipe,
    protocol: Protocol,
    stages: int,
    key: Array,
    reporter: Reporter | None = None,
) -> tuple[Array, float]:
    """Parameter vectors f[S, P] of students after the first `stages` stages, and the seconds.

    The protocol's epochs are divided among all stages of the recipe; only in the last of them does
    the learning rate fall. Momentum starts anew in each stage, which draws with a key
    of its own.

    Sequential Subset Matching (arXiv 2311.01570): S_1, then S_1 and S_2, and so on.
    """
    spent, params = 0.0, None
    epochs = [len(part) for part in np.array_split(np.arange(protocol.epochs), recipe.subsets)]
    for number, data in enumerate(nested(synthetic, recipe.subsets)[:stages]):
        last = number == recipe.subsets - 1
        part = dataclasses.replace(protocol, epochs=epochs[number])
        if not last:
            part = dataclasses.replace(part, schedule="step", decay=1.0)
        named = protocol.learning_rate
        rate = recipe.learning_rates[number] if named is None else named
        own = jax.random.fold_in(key, number + 1)
        params, seconds = evaluate.train_students(
            network, data, theta, part, rate, own, reporter, starts=params
        )
        spent += seconds
    assert params is not None
    return params, spent


def judge(
    network: Network,
    synthetic: Synthetic,
    theta: dict[str, PyTree],
    test: HeldOut,
    recipe: Recipe,
    protocol: Protocol,
    key: Array,
    reporter: Reporter | None = None,
) -> Evaluation:
    """The test accuracy of fresh students trained through the whole sequence.

    The arguments as in `train` and `evaluate.evaluate`, as the errors.
    """
    evaluate.check(protocol)
    if protocol.epochs < recipe.subsets:
        raise InputError(
            f"{protocol.epochs} epochs are too few for {recipe.subsets} subsets in turn"
        )
    if protocol.steps is not None or protocol.views != "none":
        raise InputError("a sequence's students count epochs, and see no views: leave out steps")
    params, seconds = train(
        network, synthetic, theta, recipe, protocol, recipe.subsets, key, reporter
    )
    statistics = population.of_items(  # the last stage trains on all items
        network,
        params,
        synthetic,
        theta,
        jax.random.fold_in(key, 0),  # `train` folds with numbers from 1 on
        batch_size=protocol.batch_size,
        with_means=protocol.with_means,
    )
    rate, each = protocol.learning_rate or recipe.learning_rates[-1], seconds / protocol.students
    return evaluate.tested(network, params, test, rate, each, reporter, statistics)

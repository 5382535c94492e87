"""`d3jax evaluate --scores`: the accuracies that scores need, each measured alike."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from rich.table import Table

from d3jax import artifact, evaluate, experts
from d3jax.data import Dataset, Normalization
from d3jax.data.augment import default_strategy
from d3jax.evaluate import Protocol, comparison, population, scores
from d3jax.experts.store import Snapshots
from d3jax.host.progress import Reporter
from d3jax.keys import Stage, stage_key
from d3jax.run import tables
from d3jax.run.commands import Judgement
from d3jax.run.experts import stored_experts
from d3jax.run.job import make_world
from d3jax.run.options import Architecture
from d3jax.types import HeldOut, Network

_TENTH = 10  # of the training images are set aside where the options say none
Entries = dict[str, Any]


def set_aside(dataset: Dataset, seed: int) -> Dataset:
    """The data set with validation images: where it has none, a tenth of its training images."""
    if len(dataset.validation_labels):
        return dataset
    order = np.random.default_rng(seed).permutation(len(dataset.train_labels))
    drawn, kept = np.sort(order[: len(order) // _TENTH]), np.sort(order[len(order) // _TENTH :])
    images, labels = dataset.train_images, dataset.train_labels
    return dataset._replace(
        train_images=images[kept],
        train_labels=labels[kept],
        validation_images=images[drawn],
        validation_labels=labels[drawn],
    )


def scored(
    distilled: artifact.Artifact,
    dataset: Dataset,
    normalization: Normalization,
    architecture: Architecture,
    network: Network,
    protocol: Protocol,
    options: Judgement,
    reporter: Reporter,
) -> Entries:
    """The scores of an artifact, and every accuracy that they are made of.

    Distilled data and random real images train students at the same learning rates, of which the
    best on validation images is taken for each; the test images are met once, after the last epoch.

    dataset: with validation images, see `set_aside`.

    Raises:
      InputError: it has fewer items than classes, or random images are more than there are.
    """
    seed = distilled.header["seed"]
    choosing = comparison.choosing(dataset, normalization, seed)
    test = dataset.held_out(normalization)
    key = stage_key(options.seed, Stage.STUDENTS)
    learned = distilled.header["student_learning_rate"]
    rates = tuple(dict.fromkeys((learned, *(options.learning_rates or scores.RATES))))
    protocol = dataclasses.replace(protocol, learning_rate=None)
    plainly = dataclasses.replace(protocol, augmentation=())
    random = scores.random_images(distilled, dataset, normalization, options.seed)
    own, theta = distilled.synthetic, distilled.decodable()
    trials = {
        "synthetic": (own, theta, protocol),
        "random": (random.synthetic, random.decodable(), protocol),
        "synthetic, no augmentation": (own, theta, plainly),
        "random, no augmentation": (random.synthetic, random.decodable(), plainly),
    }
    soft = own.label_kind != "hard"
    if soft:
        trials["synthetic, hard labels"] = (scores.hardened(own), theta, protocol)
    accuracies: dict[str, Entries] = {}
    for name, (data, arrays, how) in trials.items():
        reporter.say(f"scores: {name}")
        found, tried = evaluate.evaluate_best(
            network, data, arrays, choosing, test, how, rates, key, reporter
        )
        accuracies[name] = {
            **found.summary(),
            "learning_rate": found.learning_rate,
            "tried": dict(zip(rates, tried)),
        }
    if not soft:
        accuracies["synthetic, hard labels"] = accuracies["synthetic"]
    stored = distilled.header["normalization"]
    accuracies["real, hard labels"] = _real(
        dataset, normalization, stored, architecture, network, test, options, reporter
    )
    return {
        **of_accuracies({name: own["mean"] for name, own in accuracies.items()}),
        "random_images_per_class": random.synthetic.num_items // dataset.num_classes,
        "accuracies": accuracies,
    }


def of_accuracies(means: dict[str, float]) -> Entries:
    """The scores of accuracies, fractions by the names that `scored` has."""
    hlr = scores.hard_label_recovery(means["real, hard labels"], means["synthetic, hard labels"])
    ior = scores.improvement_over_random(means["synthetic"], means["random"])
    unaided = scores.improvement_over_random(
        means["synthetic, no augmentation"], means["random, no augmentation"]
    )
    robust: Callable[..., float] = scores.label_robust_score
    augmented: Callable[..., float] = scores.augmentation_robust_score
    return {
        "hlr": hlr,
        "ior": ior,
        "ior_without_augmentation": unaided,
        "lrs": robust(ior, hlr),
        "ars": augmented(ior, unaided),
        "ddranking_0.2.0": {
            "lrs": scores.in_per_cent(robust, ior, hlr),
            "ars": scores.in_per_cent(augmented, ior, unaided),
        },
    }


def _real(
    dataset: Dataset,
    normalization: Normalization,
    stored: dict[str, Any],
    architecture: Architecture,
    network: Network,
    test: HeldOut,
    options: Judgement,
    reporter: Reporter,
) -> Entries:
    """What a network reaches that is trained on all real images, as a teacher is; or as given.

    stored: the normalization in the artifact's header, which another project may have chosen.
    """
    if options.real_accuracy is not None:
        return {"mean": options.real_accuracy, "given": True}
    reporter.say("scores: real, hard labels")
    kinds = experts.kinds(experts.TEACHER, default_strategy(dataset.name, dataset.class_names))
    training = dataclasses.replace(experts.TEACHER, epochs=options.real_epochs, augmentation=kinds)
    world = make_world(dataset, normalization, architecture)
    world = world._replace(network=network)
    told = {"normalization": stored}
    path = stored_experts(
        world, architecture, training, options.experts, options.seed, reporter, told
    )
    snapshots = Snapshots(path)
    params: Array = jnp.asarray(snapshots.read(0, snapshots.shape[1] - 1), jnp.float32)[None]
    statistics = population.of_images(network, params, world.real)
    reached = np.asarray(evaluate.accuracy(network, params, test, statistics))
    return {**evaluate.Evaluation(reached, 0.1, 0, 0.0).summary(), "epochs": options.real_epochs}


def scores_table(found: Entries) -> Table:
    """The scores, in fractions, and DD-Ranking 0.2.0's numbers of the two that it has."""
    table = tables.plain_table("Scores, fractions of 1")
    table.add_column("score")
    table.add_column("value", justify="right")
    table.add_column("DD-Ranking 0.2.0", justify="right")
    rows = {
        "hlr": "HLR, lost against all real data",
        "ior": "IOR, gained over random images",
        "lrs": "LRS, label-robust",
        "ars": "ARS, augmentation-robust",
    }
    for name, told in rows.items():
        theirs = found["ddranking_0.2.0"].get(name)
        table.add_row(told, f"{found[name]:.4f}", "" if theirs is None else f"{theirs:.4g}")
    return table

"""One network, trained on an artifact and kept: `d3jax train`."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from d3jax import artifact, evaluate
from d3jax.artifact.model import Model, save_model
from d3jax.evaluate import replay, sequence, unseen
from d3jax.evaluate.lessons import teaching_of
from d3jax.evaluate.recipe import recipe_of
from d3jax.host import files
from d3jax.host.progress import Diverged, Reporter
from d3jax.keys import Stage, check_seed, stage_key
from d3jax.networks import unraveler
from d3jax.run.commands import Judgement, Train
from d3jax.run.judge import stored_architecture, stored_protocol
from d3jax.run.options import plain
from d3jax.run.real import real_data
from d3jax.types import InputError, Network, PyTree


def train(options: Train, reporter: Reporter) -> Model:
    """Runs `d3jax train`: the artifact's protocol, or its own steps, for one network.

    Raises:
      InputError: the artifact cannot be used alone, or bad options.
      Diverged: weights are not finite; nothing is written.
    """
    files.check_target(options.out)
    check_seed(options.seed)
    path = artifact.located(options.artifact)
    made = artifact.load(path)
    header = made.header
    if header["normalization"]["zca"] is not None:
        raise InputError(
            f"{path} was made of whitened images; what whitens them is not in it, so that its "
            f"network would be of no use alone: distill without --zca"
        )
    specification = header["parametrization"]
    shape = tuple(specification["image_shape"])
    test = None
    if options.dataset is not None:
        named = Judgement(dataset=options.dataset, data_dir=options.data_dir)
        test, _ = real_data(header, named)
    architecture = stored_architecture(header, options.architecture, path)
    network = architecture.create(shape, specification["num_classes"])
    params, statistics = _trained(made, network, plain(architecture), path, options, reporter)
    if not all(np.isfinite(x).all() for x in jax.tree.leaves((params, statistics))):
        raise Diverged("the network's weights are not finite: give a lower --learning-rate")
    model = Model(
        {
            "architecture": plain(architecture),
            "image_shape": list(shape),
            "class_names": header["class_names"],
            "normalization": {n: header["normalization"][n] for n in ("mean", "sd")},
            "dataset": header["dataset"],
            "method": header["method"],
            "seed": options.seed,
            "versions": artifact.versions(),
        },
        network,
        unraveler(network)(params[0]),
        jax.tree.map(lambda x: x[0], statistics),
    )
    if test is not None:
        right = float(np.mean(model(np.asarray(test.test_images)) == test.test_labels))
        model.header["test"] = {"dataset": test.name, "accuracy": right}
        images = len(test.test_labels)
        reporter.say(f"test accuracy {100 * right:.2f} % on {images} images of {test.name}")
    save_model(model, options.out)
    reporter.say(f"written to {options.out}; d3jax.load_model reads it")
    return model


def _trained(
    made: artifact.Artifact,
    network: Network,
    architecture: dict[str, Any],
    path: Path,
    options: Train,
    reporter: Reporter,
) -> tuple[Array, PyTree]:
    """Weights f[1, P] of one network, and batch norm's statistics."""
    header, data_, theta = made.header, made.synthetic, made.decodable()
    if header.get("replay") is not None:
        if options.epochs is not None or options.learning_rate is not None:
            raise InputError(f"{path} brings its own steps and learning rates; leave out yours")
        recipe, key = recipe_of(header["replay"]), stage_key(options.seed, Stage.REPLAY)
        if recipe.initialization == "pretrained":
            raise InputError(
                f"the steps in {path} change networks that were trained before; `d3jax evaluate` "
                f"judges them, there is none to keep"
            )
        weights = unseen.weights(
            made, network, architecture, 1, options.seed, None, Path(), reporter
        )
        params, _ = replay.train(network, data_, theta, recipe, weights, key)
        return params, replay.step_statistics(network, data_, theta, recipe, params, key)
    said = Judgement(students=1, epochs=options.epochs, learning_rate=options.learning_rate)
    protocol = stored_protocol(header, said, path)
    evaluate.check(protocol)
    key = stage_key(options.seed, Stage.STUDENTS)
    if header.get("sequence") is not None:
        turns = sequence.recipe_of(header["sequence"])
        params, _ = sequence.train(
            network, data_, theta, turns, protocol, turns.subsets, key, reporter
        )
        key = jax.random.fold_in(key, 0)  # `train` folds with numbers from 1 on
    else:
        rate = protocol.learning_rate or header["student_learning_rate"]
        params, _ = evaluate.train_students(
            network, data_, theta, protocol, rate, key, reporter, teaching=teaching_of(made)
        )
    return params, evaluate.population_statistics(network, params, data_, theta, protocol, key)

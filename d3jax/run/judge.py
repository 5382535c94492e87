"""Judging an artifact by fresh students: `d3jax evaluate`."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from jax import Array
from rich.table import Table

from d3jax import artifact, data, evaluate
from d3jax.data import subtasks
from d3jax.evaluate import Protocol, replay, sequence, unseen
from d3jax.experts.store import fingerprint
from d3jax.host import files
from d3jax.host.progress import Reporter
from d3jax.keys import Stage, stage_key
from d3jax.networks.blocks import has_statistics
from d3jax.networks.own import is_own
from d3jax.run import pictures
from d3jax.run.options import Architecture, Judgement, plain
from d3jax.run.resolve import resolved_architecture
from d3jax.run.show import dataset_name
from d3jax.types import HeldOut, InputError, Network, Real


def judge(
    path: Path | artifact.Artifact,
    options: Judgement,
    reporter: Reporter,
    dataset: data.Dataset | None = None,
) -> dict[str, Any]:
    """Runs `d3jax evaluate`: trains fresh students on the artifact at `path` and tests them.

    path: of the artifact, or of the folder of the run that made it.
    dataset: instead of the one that the options, or the artifact, name.

    Raises:
      InputError: the artifact, the data set or the protocol cannot be used, or do not fit.
    """
    distilled = artifact.load(path) if isinstance(path, Path) else path
    path = artifact.located(path) if isinstance(path, Path) else Path("artifact")
    ledger = distilled.ledger  # of the file, whatever is left out below
    if options.json is not None and not options.json.parent.is_dir():
        raise InputError(f"there is no folder {options.json.parent} to write {options.json} to")
    if options.batch_statistics:
        theta = {name: group for name, group in distilled.theta.items() if name != "statistics"}
        distilled = distilled._replace(theta=theta)
    header = distilled.header
    specification = header["parametrization"]
    name = options.dataset or header["dataset"]
    zca = header["normalization"]["zca"]
    if dataset is None:
        dataset = data.load(
            name,
            options.data_dir,
            test_limit=options.test_limit,
            **_training_images(zca),
            **header.get("reading", {}),
        )
    normalization = stored_normalization(header, dataset)
    if header.get("subtask") is not None:
        dataset = _own_classes(header["subtask"], dataset)
    dataset = in_colour(specification["image_shape"], dataset)
    if list(dataset.image_shape) != specification["image_shape"]:
        raise InputError(
            f"{name} has images of shape {list(dataset.image_shape)}, the artifact of "
            f"{specification['image_shape']}; name the data set that it was distilled from"
        )
    if dataset.num_classes != specification["num_classes"]:
        raise InputError(
            f"{name} has {dataset.num_classes} classes, the artifact "
            f"{specification['num_classes']}; name the data set that it was distilled from"
        )
    dataset = in_order(header["class_names"], dataset)
    architecture = stored_architecture(header, options.architecture, path)
    network = architecture.create(dataset.image_shape, dataset.num_classes)
    test = dataset.held_out(normalization)
    key = stage_key(options.seed, Stage.STUDENTS)
    more: dict[str, Any] = {}
    if options.students is not None and options.students < 1:
        raise InputError(f"students must be at least 1, not {options.students}")
    if header.get("replay") is None or options.ordinary:
        protocol = stored_protocol(header, options, path)
        reached = by_students(distilled, network, test, protocol, key, reporter)
    else:
        if options.epochs is not None or options.learning_rate is not None:
            raise InputError(
                f"{path} brings its own steps and learning rates; with --ordinary students train "
                f"on it for --epochs at --learning-rate"
            )
        source = _source(header["replay"], options)
        weights = unseen.weights(
            distilled,
            network,
            plain(architecture),
            unseen.NETWORKS if options.students is None else options.students,
            options.seed,
            options.data_dir,
            options.experts,
            reporter,
            source=source,
        )
        seen = seen_before(distilled, network, architecture, options.data_dir, source)
        samples = stage_key(options.seed, Stage.REPLAY)
        reached, more = replay.judge(distilled, network, weights, test, samples, reporter, seen)
    finished = {
        "artifact": path.name,
        "method": header["method"],
        "dataset": dataset_name(name),
        "network": architecture.network,
        "accuracy": reached.summary(),
        **more,
        **ledger,
        "seconds": {"student": reached.seconds},
        "seed": options.seed,
        "versions": artifact.versions(),
    }
    if options.json is not None:
        files.write_json(options.json, finished)
    reporter.console.print(accuracy_table({**finished, "baselines": {}}))
    return finished


def _training_images(zca: dict[str, Any] | None) -> dict[str, Any]:
    """Which training images `load` reads: those that ZCA is computed from again, or none."""
    if zca is None:
        return {"test_only": True}
    return {name: zca[name] for name in ("train_limit", "validation", "seed")}


def seen_before(
    distilled: artifact.Artifact,
    network: Network,
    architecture: Architecture,
    data_dir: Path | None,
    source: str | None,
) -> Real | None:
    """What pretrained networks with batch norm have seen before an artifact's steps."""
    if not has_statistics(network, tuple(distilled.header["parametrization"]["image_shape"])):
        return None
    return unseen.images(distilled, plain(architecture), data_dir, source)


def _source(recipe: dict[str, Any], options: Judgement) -> str | None:
    """Where the data set lies that networks were pretrained on, if the command line says it."""
    if options.adapt_from is not None or options.dataset is None:
        return options.adapt_from
    source = recipe.get("source")
    stored = source.get("dataset") if isinstance(source, dict) else None
    return options.dataset if dataset_name(options.dataset) == stored else None


def _own_classes(subtask: dict[str, Any], dataset: data.Dataset) -> data.Dataset:
    """The images of the classes that an artifact has."""
    if list(dataset.class_names) != subtask["class_names"]:
        raise InputError(
            f"the artifact is of {len(subtask['classes'])} classes of another data set than "
            f"{dataset.name}; name the one that it was distilled from"
        )
    return subtasks.of(dataset, subtask["classes"])


def in_colour(image_shape: list[int], dataset: data.Dataset) -> data.Dataset:
    """The data set in colour, where only its test images were read, which happen to be all grey."""
    if len(dataset.train_labels) or (dataset.image_shape[2], image_shape[2]) != (1, 3):
        return dataset
    train, test = (np.repeat(x, 3, axis=3) for x in (dataset.train_images, dataset.test_images))
    return dataset._replace(train_images=train, test_images=test)


def in_order(class_names: list[str], dataset: data.Dataset) -> data.Dataset:
    """The data set with its classes numbered as in an artifact.

    Raises:
      InputError: they have other names.
    """
    names = list(dataset.class_names)
    if names == class_names:
        return dataset
    if sorted(names) != sorted(class_names) or len(set(names)) < len(names):
        theirs = next(n for n, (a, b) in enumerate(zip(class_names, names)) if a != b)
        raise InputError(
            f"{dataset.name} has other classes than the artifact: class {theirs} is "
            f"{names[theirs]!r} there, {class_names[theirs]!r} here; name the data set that it was "
            f"distilled from"
        )
    return subtasks.of(dataset, [names.index(name) for name in class_names])


def stored_normalization(header: dict[str, Any], dataset: data.Dataset) -> data.Normalization:
    """The normalization that the artifact was made with, a ZCA matrix recomputed.

    Raises:
      InputError: it was whitened with other images than these.
    """
    recipe = header["normalization"]["zca"]
    if recipe is not None:
        images = fingerprint(dataset.train_images, dataset.train_labels)
        if images != recipe["images"]:
            raise InputError(
                "the artifact was whitened with other images than this data set's; name the data "
                "set that it was distilled from"
            )
        return data.Normalization.of(dataset.train_images, True, recipe["epsilon"])
    mean, sd = (np.asarray(header["normalization"][n], np.float32) for n in ("mean", "sd"))
    return data.Normalization(mean, sd)


def stored_architecture(header: dict[str, Any], wanted: Architecture, path: Path) -> Architecture:
    """The network in the header, with what the command line says otherwise of it; or another.

    A network of the user's own is never taken from the header alone: it would run code that a file
    names.

    Raises:
      InputError: the header names none that can be built, or one of the user's own.
    """
    said = dataclasses.asdict(wanted)
    said = {name: value for name, value in said.items() if value is not None}
    stored = header["architecture"]
    if "network" not in said and is_own(stored.get("network")):
        raise InputError(
            f"{path} was distilled with a network that is not d3jax's, {stored['network']}; a file "
            f"must not run code that it names, so say yourself --network {stored['network']}, or "
            f"another network"
        )
    if said.get("network", stored.get("network")) != stored.get("network"):
        stored = {}
    kinds = {f.name: str for f in dataclasses.fields(Architecture)}
    kinds |= {"width": int, "depth": int}
    for name, value in stored.items():
        if name not in kinds or (value is not None and type(value) is not kinds[name]):
            raise InputError(f"the network in {path} cannot be built: its {name} is {value!r}")
    image_shape = header["parametrization"]["image_shape"]
    return resolved_architecture(Architecture(**{**stored, **said}), image_shape)


def stored_protocol(header: dict[str, Any], options: Judgement, path: Path) -> Protocol:
    """The protocol in the header, with what the command line says otherwise."""
    stored = dict(header["protocol"])
    if isinstance(stored.get("augmentation"), list):
        stored["augmentation"] = tuple(stored["augmentation"])
    said = {n: getattr(options, n) for n in ("students", "epochs", "learning_rate")}
    try:
        return Protocol(**{**stored, **{n: v for n, v in said.items() if v is not None}})
    except TypeError as error:
        raise InputError(f"the training protocol in {path} cannot be followed: {error}") from None


def by_students(
    distilled: artifact.Artifact,
    network: Network,
    test: HeldOut,
    protocol: Protocol,
    key: Array,
    reporter: Reporter,
) -> evaluate.Evaluation:
    """What fresh students of `network` reach on an artifact, as it is stored."""
    if distilled.header.get("sequence") is not None:
        return sequence.judge(
            network,
            distilled.synthetic,
            distilled.decodable(),
            test,
            sequence.recipe_of(distilled.header["sequence"]),
            protocol,
            key,
            reporter,
        )
    return evaluate.evaluate(
        network,
        distilled.synthetic,
        distilled.decodable(),
        test,
        protocol,
        distilled.header["student_learning_rate"],
        key,
        reporter,
    )


def accuracy_table(finished: dict[str, Any]) -> Table:
    """A report's method and baselines, one row each."""
    return pictures.comparison_table(accuracy_rows(finished))


def accuracy_rows(finished: dict[str, Any]) -> list[dict[str, Any]]:
    """A report's method and baselines, as `pictures.comparison_table` takes them."""
    rows = [
        {
            "name": finished["method"],
            "accuracy": finished["accuracy"],
            "floats": finished["floats"],
            "bytes": finished["bytes"]["total"],
            "seconds": finished["seconds"]["student"],
        }
    ]
    return rows + [{"name": name, **row} for name, row in finished.get("baselines", {}).items()]

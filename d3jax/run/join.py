"""The artifacts of all subtasks as one, labelled by an expert of all classes: `d3jax join`."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from d3jax import artifact, data, evaluate, experts
from d3jax.artifact import join as joining
from d3jax.data.sources import dataset_name
from d3jax.evaluate import population
from d3jax.experts.store import Snapshots
from d3jax.host import files
from d3jax.host.clocks import Spent
from d3jax.host.progress import Reporter
from d3jax.methods.registry import METHODS
from d3jax.networks import unraveler
from d3jax.run import tables
from d3jax.run.commands import Join
from d3jax.run.experts import stored_experts
from d3jax.run.job import World, make_world
from d3jax.run.judge import stored_architecture
from d3jax.run.options import Architecture
from d3jax.run.real import stored_normalization
from d3jax.run.resolve import resolved_experts
from d3jax.types import InputError


def join(options: Join, reporter: Reporter) -> artifact.Artifact:
    """Runs `d3jax join`: reads the artifacts of all subtasks and writes the whole.

    Raises:
      InputError: they cannot be joined, or the data set for their labels is not theirs.
    """
    files.check_target(options.out)
    parts = [artifact.load(path) for path in options.artifacts]
    whole = joining.join(parts, options.artifacts)
    if options.labels == "expert":
        kinds = {part.header["parametrization"].get("label_kind", "hard") for part in parts}
        if kinds != {"hard"}:
            raise InputError("an expert labels parts with hard labels; these bring their own")
        dataset = options.data.read(options.seed)
        names = list(dataset.class_names)
        if dataset_name(options.data.dataset) != whole.header["dataset"] or (
            names != whole.header["class_names"]
        ):
            raise InputError(
                f"the artifacts are of {whole.header['dataset']}, not of {options.data.dataset}; "
                f"name their data set with --dataset"
            )
        architecture = stored_architecture(
            whole.header, Architecture(options.network), options.artifacts[0]
        )
        normalization = _normalization(whole.header, dataset)
        world = make_world(dataset, normalization, architecture, on_device=False)
        usual = METHODS[whole.header["method"]].expert_learning_rate
        expert = resolved_experts(options.expert, dataset, (), usual)
        filled = dataclasses.replace(options, expert=expert)
        whole, _ = labelled(whole, world, architecture, filled, reporter)
    elif options.label_storage != "float":
        raise InputError("--label-storage int8 is for labels of an expert: add --labels expert")
    artifact.save(whole, options.out)
    reporter.console.print(tables.ledger_table(whole.ledger["bytes"]))
    reporter.say(f"{len(parts)} subtasks joined: {options.out}")
    return whole


def _normalization(header: dict[str, Any], dataset: data.Dataset) -> data.Normalization:
    """That of the parts; refused where it is not of these images, which the expert shall see."""
    stored = stored_normalization(header, dataset)
    found = data.Normalization.of(dataset.train_images)
    if not np.allclose([*stored.mean, *stored.sd], [*found.mean, *found.sd], rtol=1e-5):
        raise InputError(
            "the artifacts were normalized by other images than these; give the --train-limit, "
            "--validation and --seed that they were distilled with"
        )
    return stored


def labelled(
    whole: artifact.Artifact,
    world: World,
    architecture: Architecture,
    options: Any,
    reporter: Reporter,
) -> tuple[artifact.Artifact, Spent]:
    """With labels of one expert of all classes, and the time that its training took."""
    one = dataclasses.replace(options.expert, count=1)
    assert options.experts is not None
    dataset, normalization = world.dataset, world.normalization
    on_device = make_world(dataset, normalization, architecture)
    path = stored_experts(on_device, architecture, one, options.experts, options.seed, reporter)
    stored, chooses = Snapshots(path), len(dataset.validation_labels) > 0
    first = 0 if chooses else stored.shape[1] - 1  # of the epochs that may label
    snapshots = jnp.asarray(stored.read_all(epochs=slice(first, None))[0], jnp.float32)
    epoch = 0
    statistics = population.of_images(world.network, snapshots, on_device.real)
    del on_device
    if chooses:
        choosing = data.held_out(
            dataset.validation_images, dataset.validation_labels, normalization
        )
        found = evaluate.accuracy(world.network, snapshots, choosing, statistics)
        epoch = int(jnp.argmax(found))
        reporter.say(f"labels: an expert's after epoch {epoch}, the best on validation images")
    else:
        reporter.say("labels: an expert's after its last epoch; no validation images to choose by")
    params, own = jax.tree.map(lambda x: x[epoch], (snapshots, statistics))
    params = unraveler(world.network)(params)
    made = joining.labelled(whole, world.network, params, options.label_storage, own)
    return made, experts.training_time(path)

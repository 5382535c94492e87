"""What the runs of all methods have in common: one folder, one artifact, one report."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from d3jax import artifact, data, distill, experts, networks
from d3jax.distill import metrics
from d3jax.evaluate import Evaluation
from d3jax.evaluate import baselines as comparison
from d3jax.experts.store import fingerprint
from d3jax.host import clocks, files
from d3jax.host.events import EventWriter, check_installed
from d3jax.host.progress import Reporter, locked
from d3jax.keys import Stage, stage_key
from d3jax.run import config, resolve
from d3jax.run import judge as judging
from d3jax.run import pictures as report
from d3jax.run.folder import claim
from d3jax.types import HeldOut, Method, Network, PyTree, Real, State, Synthetic


class Part(NamedTuple):
    """One of several subtasks."""

    number: int
    classes: tuple[int, ...]  # in the whole
    whole: data.Dataset


class World(NamedTuple):
    """The real data of a run, and its network."""

    dataset: data.Dataset
    normalization: data.Normalization
    network: Network
    real: Real  # the training images
    part: Part | None = None  # where these are not all classes

    def key(self, seed: int, stage: Stage) -> Array:
        """The key of one stage of a run."""
        return stage_key(seed, stage, None if self.part is None else self.part.number)


def make_world(
    dataset: data.Dataset,
    normalization: data.Normalization,
    architecture: config.Architecture,
    part: Part | None = None,
    *,
    on_device: bool = True,
) -> World:
    """The images on the device, or only their shapes, and the network for them."""
    network = architecture.create(dataset.image_shape, dataset.num_classes)
    make = data.device_arrays if on_device else data.abstract_arrays
    real = make(
        dataset.train_images,
        dataset.train_labels,
        dataset.num_classes,
        normalization,
        dataset.class_names,
    )
    if part is not None:
        real = real._replace(number=jnp.asarray(len(dataset.train_labels), jnp.int32))
    return World(dataset, normalization, network, real, part)


def stored_experts(
    world: World,
    architecture: config.Architecture,
    options: experts.Options,
    store: Path,
    seed: int,
    reporter: Reporter,
    told: dict[str, Any] | None = None,
    starts: Callable[[], Array] | None = None,
) -> Path:
    """The folder of a run's experts in `store`, trained if it does not hold exactly these.

    `starts` makes weights f[E, P] that they begin with, and `told` says what those depend on.
    """
    number = None if world.part is None else world.part.number
    recipe = expert_recipe(world.dataset, world.normalization, architecture, options, seed, number)
    recipe |= {"starts": told} if told else {}
    return experts.train(world.network, options, world.real, store, recipe, reporter, starts)


def expert_recipe(
    dataset: data.Dataset,
    normalization: data.Normalization,
    architecture: config.Architecture,
    options: experts.Options,
    seed: int,
    subtask: int | None,
) -> dict[str, Any]:
    """All that a run's, or a subtask's, experts depend on; see `experts.configuration`."""
    images: dict[str, Any] = {
        "images": fingerprint(dataset.train_images, dataset.train_labels),
        "zca": normalization.zca is not None,
    }
    if subtask is not None:  # normalized by the images of other classes too
        images["normalization"] = fingerprint(normalization.mean, normalization.sd)
    recipe = experts.configuration(options, dataclasses.asdict(architecture), images, seed)
    return recipe if subtask is None else {**recipe, "subtask": subtask}


def in_folder(
    options: config.Distillation,
    world: World,
    data_: Synthetic,
    distilled: Callable[[], tuple[artifact.Artifact, clocks.Spent]],
    judge: Callable[[artifact.Artifact, HeldOut], tuple[Evaluation, dict[str, Any]]],
    compare: Callable[[artifact.Artifact, HeldOut], dict[str, Any]],
    reporter: Reporter,
) -> dict[str, Any]:
    """What all methods have in common: one folder, one artifact, one report.

    `distilled` makes the artifact, and says what time its experts took; `judge` gives its
    accuracy, and what else belongs into the report; `compare` gives the baselines' rows.
    """
    out, dataset, name = options.out, world.dataset, resolve.name(options)
    _check_baselines(options.baselines, data_, world)
    if options.tensorboard:
        check_installed()
    # After nearly all that can be refused, before all that is written.
    with claim(out, name, options, dataset), locked(out, "distilling"):
        if (out / "report.json").exists():
            reporter.say(f"{out} is finished; this is its report")
            finished = json.loads((out / "report.json").read_text())
            reporter.console.print(judging.accuracy_table(finished))
            return finished
        made, trained = distilled()
        artifact.save(made, out / "artifact.safetensors")
        made = artifact.load(out / "artifact.safetensors")
        rows = metrics.read(out / metrics.METRICS)
        report.curves(out / "curves.png", rows)
        key = stage_key(options.seed, Stage.STUDENTS)
        judging.decoded_picture(out / "images.png", made, world.normalization, key)
        test = data.held_out(dataset.test_images, dataset.test_labels, world.normalization)
        reached, more = judge(made, test)
        finished = {
            "method": name,
            "dataset": judging.dataset_name(options.data.dataset),
            "network": options.architecture.network,
            "accuracy": reached.summary(),
            **more,
            "baselines": compare(made, test),
            **made.ledger,
            "seconds": {
                "experts": trained["seconds"],
                "distill": rows[-1]["seconds"],
                "student": reached.seconds,
            },
            "cpu_seconds": {
                "experts": trained["cpu_seconds"],
                "distill": clocks.of(rows[-1])["cpu_seconds"],
            },
            "seed": options.seed,
            "versions": artifact.versions(),
        }
        files.write_json(out / "report.json", finished)
        reporter.console.print(judging.accuracy_table(finished))
        reporter.say(f"written to {out}")
        return finished


def _check_baselines(names: Sequence[str], data_: Synthetic, world: World) -> None:
    shapes = jax.eval_shape(
        lambda k, real: data_.freeze(data_.init(k, real), k), jax.random.key(0), world.real
    )
    comparison.check(names, networks.parameter_count(shapes), world.dataset)


def frozen(data_: Synthetic, theta: dict[str, PyTree], key: Array) -> dict[str, PyTree]:
    """theta as an artifact stores it: complete, without the learning rates."""
    return data_.freeze({k: v for k, v in theta.items() if k != "learning_rates"}, key)


def outer_loop(
    options: config.Run,
    out: Path,
    method: Method,
    real: Real,
    reporter: Reporter,
    key: Array | None = None,
) -> State:
    """The outer loop in `out`, with event files if they are wanted; the last state."""
    with observer(options.tensorboard, out) as observe:
        return distill.run(
            method,
            stage_key(options.seed, Stage.DISTILL) if key is None else key,
            real,
            steps=options.outer_steps,
            directory=out,
            reporter=reporter,
            chunk=options.chunk,
            checkpoint_minutes=options.checkpoint_minutes,
            observe=observe,
            profile=options.profile,
        )


@contextmanager
def observer(wanted: bool, out: Path) -> Iterator[Callable[[distill.Rows], None]]:
    """What writes rows of metrics as event files into OUT/events, if that is wanted."""
    writer: EventWriter | None = None

    def observe(rows: distill.Rows) -> None:
        nonlocal writer
        if not wanted or not rows:
            return
        if writer is None:  # first_step hides what an interrupted run wrote after its checkpoint
            writer = EventWriter(out / "events", first_step=int(rows[0]["step"]))
        for row in rows:
            writer.write(int(row["step"]), metrics.measured(row))

    try:
        yield observe
    finally:
        if writer is not None:
            writer.close()


def provenance(options: config.Run, world: World) -> dict[str, Any]:
    """What an artifact's header says of where it comes from."""
    whole = world.dataset if world.part is None else world.part.whole
    names = world.dataset.class_names
    return origin(options, names, world.normalization, whole, world.part)


def origin(
    options: config.Run,
    class_names: Sequence[str],
    normalization: data.Normalization,
    whole: data.Dataset,
    part: Part | None = None,
) -> dict[str, Any]:
    """The same without the images' being on the device; `whole` is what all classes are of."""
    recipe, subtask = None, None
    if part is not None:
        names = list(part.whole.class_names)
        subtask = {"classes": list(part.classes), "class_names": names}
    if normalization.zca is not None:
        # Recomputed from the same images, not stored: 38 MB at 32x32x3. The matrix is not hashed,
        # since its last digits depend on the linear algebra library; the images are.
        recipe = {
            "epsilon": 0.1,
            "images": fingerprint(whole.train_images, whole.train_labels),
            "train_limit": options.data.train_limit,
            "validation": options.data.validation,
            "seed": options.seed,
        }
    return {
        "dataset": judging.dataset_name(options.data.dataset),
        "class_names": class_names,
        "normalization": {
            "mean": [float(v) for v in normalization.mean],
            "sd": [float(v) for v in normalization.sd],
            "zca": recipe,
        },
        "architecture": config.plain(options.architecture),
        "seed": options.seed,
        "subtask": subtask,
    }

"""The experts of a run, of its subtasks, or alone: `d3jax experts`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax import Array

from d3jax import experts
from d3jax.data import subtasks
from d3jax.experts import source as pretrained
from d3jax.experts.store import Snapshots, fingerprint
from d3jax.host import clocks
from d3jax.host.clocks import Spent
from d3jax.host.progress import Reporter
from d3jax.networks.own import identified
from d3jax.run import augmented, teacher
from d3jax.run.commands import Experts
from d3jax.run.job import Job, Part, World, make_world, parts_of, reads_of
from d3jax.run.options import Architecture, plain
from d3jax.run.resolve import resolved_architecture, resolved_experts
from d3jax.types import PyTree, Trajectories


def train_experts(options: Experts, reporter: Reporter) -> list[Path]:
    """Runs `d3jax experts`; returns the folders of the snapshots, one for each subtask."""
    dataset, normalization = options.data.load(options.seed)
    parts: list[Part | None] = [None]
    if options.subtasks is not None:
        parts = [*parts_of(options.subtasks, dataset)]
    architecture = resolved_architecture(options.architecture, dataset.image_shape)
    classes = [part.classes for part in parts if part is not None]
    expert = resolved_experts(options.expert, dataset, classes)
    strategies = {"experts": augmented.strategy(expert.augmentation)}
    reporter.say(augmented.told(strategies, dataset))
    paths = []
    for part in parts:
        own = dataset if part is None else subtasks.of(dataset, part.classes)
        world = make_world(own, normalization, architecture, part)
        paths.append(
            stored_experts(world, architecture, expert, options.experts, options.seed, reporter)
        )
        reporter.say(f"experts: {paths[-1]}")
    return paths


def trained(
    job: Job,
    turn: int,
    theta: dict[str, PyTree] | None,
    rates: list[float],
    reporter: Reporter,
) -> tuple[Trajectories | None, Spent]:
    """The snapshots that a turn reads, trained if the store does not hold them, and their time.

    Raises:
      InputError: a teacher that is no better than chance, or not what it was.
    """
    options, world, store = job.options, job.world, job.options.experts
    assert store is not None
    reads = reads_of(options, world.dataset, turn)
    if reads is None:
        return None, clocks.nothing()
    if job.source is not None:
        architecture = plain(options.architecture)
        pool, spent = pretrained.train(job.source, world.network, architecture, store, reporter)
        return pretrained.as_trajectories(pool[: len(pool) - reads.kept]), spent
    told, starts = {}, None
    if turn > 0 and job.spec.starts is not None:
        what, starts = job.spec.starts(options, job.setting(turn, theta), rates, reporter)
        told = {"starts": what}
    path = stored_experts(
        world, options.architecture, reads.experts, store, options.seed, reporter, told, starts
    )
    stored = Snapshots(path)
    if reads.teacher:
        first = jnp.asarray(stored.read(0, stored.shape[1] - 1), jnp.float32)
        teacher.check(path, first, world, reporter)
    if getattr(options, "snapshots", "device") == "disk":
        return stored.streamed(), experts.training_time(path)
    return jnp.asarray(stored.read_all(), jnp.float32), experts.training_time(path)


def stored_experts(
    world: World,
    architecture: Architecture,
    options: experts.Options,
    store: Path,
    seed: int,
    reporter: Reporter,
    told: dict[str, Any] | None = None,
    starts: Callable[[], Array] | None = None,
) -> Path:
    """The folder of a run's experts in `store`, trained if it does not hold exactly these.

    `starts` makes weights f[E, P] that they begin with; `told` says what they depend on beside what
    `recipe_of` says.
    """
    recipe = recipe_of(world, architecture, options, seed) | (told or {})
    return experts.train(world.network, options, world.real, store, recipe, reporter, starts)


def recipe_of(
    world: World, architecture: Architecture, options: experts.Options, seed: int
) -> dict[str, Any]:
    """All that a run's, or a subtask's, experts depend on; see `experts.configuration`."""
    dataset, normalization = world.dataset, world.normalization
    images: dict[str, Any] = {
        "images": fingerprint(dataset.train_images, dataset.train_labels),
        "zca": normalization.zca is not None,
    }
    if world.part is not None:  # normalized by the images of other classes too
        images["normalization"] = fingerprint(normalization.mean, normalization.sd)
    fields = identified(dataclasses.asdict(architecture), world.network, dataset.image_shape)
    recipe = experts.configuration(options, fields, images, seed)
    return recipe if world.part is None else {**recipe, "subtask": world.part.number}

"""What a teacher gives, once data is distilled: labels of it, and the same labels to baselines."""

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import numpy as np
from jax import Array

from d3jax.artifact import Artifact
from d3jax.data import Dataset
from d3jax.evaluate import Protocol, lessons
from d3jax.evaluate.baselines import EXPERT, SOLVED
from d3jax.evaluate.comparison import Teacher
from d3jax.host import compilation
from d3jax.host.progress import Reporter
from d3jax.keys import Stage, stage_key
from d3jax.methods.rded import RDEDOptions, rded
from d3jax.run.experts import trained
from d3jax.run.job import Job, reads_of
from d3jax.run.options import Run, Studied, plain
from d3jax.synthetic import labels, pixels
from d3jax.types import InputError, Network, PyTree, Real, Synthetic

# The kinds of labels that a teacher gives; and of a protocol, what its views depend on.
GIVEN = {"expert": "a label an item", "views": "a label a view", "teacher": "the teacher itself"}
_OF_VIEWS = ("views", "mix", "augmentation", "epochs", "steps", "batch_size", "with_means")


def has_teacher(options: Run, dataset: Dataset) -> bool:
    """Whether a run's data is made under a teacher."""
    reads = reads_of(options, dataset, 0)
    return reads is not None and reads.teacher


def lends_labels(options: Run, dataset: Dataset) -> bool:
    """Whether baselines get the labels of the data's teacher too: then these count on no side."""
    return has_teacher(options, dataset) and options.parametrization.labels in GIVEN


def labelled(
    kind: str,
    network: Network,
    real: Real,
    synthetic: Synthetic,
    theta: dict[str, PyTree],
    protocol: Protocol,
    seed: int,
) -> tuple[dict[str, PyTree], dict[str, Any] | None]:
    """Groups of theta, and the header's entry `teaching`, for labels of a kind.

    Args:
      kind: expert (a label an item), views (one for each view that students see) or teacher (the
        teacher itself).
      network, real: the teacher's; its weights are the first expert's, at its end.
      synthetic, theta: the data, frozen.
      protocol: of the students.
      seed: of the artifact, which views are drawn by.
    """
    if kind == "expert":
        return {"labels": labels.by_expert(network, synthetic, theta, real)}, None
    params, statistics = labels.teacher(network, jax.random.key(0), real)
    teacher = {"params": params, "statistics": statistics}
    if kind == "teacher":
        return {lessons.TEACHER: teacher}, {"labels": "teacher"}
    key = stage_key(seed, Stage.VIEWS)
    found = lessons.view_labels(network, teacher, synthetic, theta, protocol, key)
    epochs, visits, _ = found.shape
    return {lessons.VIEW_LABELS: found}, {"labels": "views", "epochs": epochs, "visits": visits}


def check_views(made: Artifact, protocol: Protocol) -> None:
    """Raises InputError where students would see other views than stored labels are of."""
    stored, own = made.header["protocol"], plain(protocol)
    other = [name for name in _OF_VIEWS if stored.get(name) != own[name]]
    if lessons.VIEW_LABELS in made.theta and other:
        name = other[0]
        raise InputError(
            f"the labels that are stored are of views with student.{name} {stored.get(name)}, and "
            f"students would see {own[name]}; choose another --out, or the same options"
        )


def of_baselines(
    job: Job, reporter: Reporter
) -> dict[str, Callable[[Synthetic, dict[str, PyTree]], Array]]:
    """What labels baselines, by the ending of their names; experts are read from the store."""

    def by_expert(data_: Synthetic, theta: dict[str, PyTree]) -> Array:
        trajectories, _ = trained(job, 0, None, [], reporter)
        real = job.world.real._replace(trajectories=trajectories)
        return labels.by_expert(job.world.network, data_, theta, real)

    return {SOLVED: job.solved_labels, EXPERT: by_expert}


def lent(job: Job, made: Artifact, reporter: Reporter) -> Teacher:
    """A run's teacher, lent to its baselines; read from the store when it is first needed."""
    options, world = job.options, job.world

    @cache
    def real() -> Real:
        trajectories, _ = trained(job, 0, None, [], reporter)
        return world.real._replace(trajectories=trajectories)

    def by_rded(per_class: int) -> np.ndarray:
        """At factor 1."""
        classes = world.dataset.num_classes
        smallest = int(np.bincount(world.dataset.train_labels, minlength=classes).min())
        stored = pixels.create(
            image_shape=world.dataset.image_shape,
            num_classes=classes,
            num_items=classes * per_class,
        )
        own = RDEDOptions(images=min(smallest, max(300, per_class)))
        method = rded(world.network, stored, own)
        state = compilation.once(method.init)(world.key(options.seed, Stage.DISTILL), real())
        return np.asarray(state.theta["data"]["images"])

    def label(baseline: Artifact) -> Artifact:
        assert isinstance(options, Studied)
        kind = options.parametrization.labels
        if kind not in GIVEN:
            return baseline
        header = dict(baseline.header)
        if kind == "teacher":
            header["teaching"] = made.header["teaching"]
            return Artifact(header, {**baseline.theta, lessons.TEACHER: made.theta["teacher"]})
        more, teaching = labelled(
            kind,
            world.network,
            real(),
            baseline.synthetic,
            baseline.decodable(),
            dataclasses.replace(options.student, with_means=False),  # as baselines are judged
            header["seed"],
        )
        if teaching is not None:
            header["teaching"] = teaching
        else:
            header["parametrization"] = {
                **header["parametrization"], "label_kind": "probabilities"
            }  # fmt: skip
        stored = np.float32 if options.storage == "float32" else np.float16
        if options.label_storage == "int8" and kind == "expert":
            more = {"labels": labels.in_bytes(np.asarray(more["labels"]))}
        else:
            more = jax.tree.map(lambda x: np.asarray(x, stored), more)
        return Artifact(header, {**baseline.theta, **more})

    return Teacher(options.parametrization.labels in GIVEN, by_rded, label)


def as_told(options: Studied, made: Artifact) -> str:
    """One line of what is stored of the teacher, and in how many bytes."""
    held = made.ledger["bytes"]
    kind = options.parametrization.labels or ""
    size = held["teacher"] if kind == "teacher" else held["labels"]
    return f"{GIVEN[kind]}: {size:,} bytes beside {held['images'] + held['latents']:,} of data"

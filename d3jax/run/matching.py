"""Runs of methods that match expert trajectories: `d3jax distill d3` and `d3jax distill mtt`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from d3jax import artifact, data, evaluate, experts, synthetic
from d3jax.data import subtasks
from d3jax.evaluate import Evaluation
from d3jax.evaluate import baselines as comparison
from d3jax.experts.store import Snapshots
from d3jax.host.clocks import Spent
from d3jax.host.progress import Reporter
from d3jax.keys import Stage, stage_key
from d3jax.methods import d3, mtt
from d3jax.run import config, resolve
from d3jax.run import judge as judging
from d3jax.run.frame import (
    Part,
    World,
    frozen,
    in_folder,
    make_world,
    outer_loop,
    provenance,
    stored_experts,
)
from d3jax.synthetic import labels
from d3jax.types import HeldOut, Method, Network, Synthetic, Trajectories


class Task(NamedTuple):
    """A run, or one of its subtasks, that may begin."""

    options: config.Federated
    world: World
    specification: dict[str, Any]
    data: Synthetic
    method: Method


def distill(options: config.Federated, reporter: Reporter) -> dict[str, Any]:
    """Runs `d3jax distill d3` or `d3jax distill mtt`; see `jobs.run`."""
    dataset, normalization = options.data.load(options.seed)
    options = resolve.matching(options, dataset)
    part = None
    if options.subtasks is not None and options.subtask is not None:
        part = divided(options.subtasks, dataset)[options.subtask]
    task = prepared(options, dataset, normalization, part)

    def distilled() -> tuple[artifact.Artifact, Spent]:
        return distill_task(task, options.out, reporter)

    judge, compare = by_students(options, task.world, reporter)
    return in_folder(options, task.world, task.data, distilled, judge, compare, reporter)


def divided(text: str, dataset: data.Dataset) -> list[Part]:
    """The subtasks that `--subtasks` cuts a data set into."""
    parts = subtasks.split(text, dataset.num_classes)
    return [Part(number, classes, dataset) for number, classes in enumerate(parts)]


def prepared(
    options: config.Federated,
    dataset: data.Dataset,
    normalization: data.Normalization,
    part: Part | None,
) -> Task:
    """Everything that a run needs, refused where it does not fit together."""
    if part is not None:
        dataset = subtasks.of(dataset, part.classes)
    specification = options.parametrization.specification(dataset, normalization)
    data_ = synthetic.create(specification)
    world = make_world(dataset, normalization, options.architecture, part)
    method = method_of(world.network, data_, options)
    experts.check(options.expert)
    evaluate.check(options.student)
    return Task(options, world, specification, data_, method)


def distill_task(task: Task, out: Path, reporter: Reporter) -> tuple[artifact.Artifact, Spent]:
    """The artifact of a run or subtask, and the time that its experts took; resumes in `out`."""
    options, world, specification, data_, method = task
    assert options.experts is not None
    snapshots = stored_experts(
        world, options.architecture, options.expert, options.experts, options.seed, reporter
    )
    real = world.real._replace(trajectories=trajectories(options, snapshots))
    key = world.key(options.seed, Stage.DISTILL)
    state = outer_loop(options, out, method, real, reporter, key)
    theta = frozen(data_, state.theta, world.key(options.seed, Stage.FREEZE))
    if options.parametrization.labels == "expert" and not labels_at_start(options):
        theta["labels"] = labels.by_expert(world.network, data_, theta, real)
    made = artifact.create(
        theta,
        method=resolve.name(options),
        parametrization=specification,
        student_learning_rate=float(jnp.exp(jnp.mean(state.theta["learning_rates"]))),
        protocol=config.plain(options.student),
        dtype=options.storage,
        label_dtype=options.label_storage,
        **provenance(options, world),
    )
    return made, experts.training_time(snapshots)


def method_of(network: Network, data_: Synthetic, options: config.Federated) -> Method:
    """The method that the options describe."""
    if isinstance(options, config.DistillD3):
        return d3.d3(network, data_, options.d3, options.outer_steps)
    assert isinstance(options, config.DistillMTT)
    return mtt.mtt(
        network, data_, options.mtt, options.outer_steps, expert_labels=labels_at_start(options)
    )


def labels_at_start(options: config.Matching) -> bool:
    """Whether an expert labels what the data starts from: real images (but for D3, which labels
    what was distilled)."""
    real = options.parametrization.start == "real" and not isinstance(options, config.DistillD3)
    return real and options.parametrization.labels == "expert"


def trajectories(options: config.Matching, snapshots: Path) -> Trajectories:
    """The experts' snapshots, where the options want them."""
    stored = Snapshots(snapshots)
    if options.snapshots == "disk":
        return stored.streamed()
    return jnp.asarray(stored.read_all(), jnp.float32)


def by_students(
    options: config.Matching, world: World, reporter: Reporter
) -> tuple[
    Callable[[artifact.Artifact, HeldOut], tuple[Evaluation, dict[str, Any]]],
    Callable[[artifact.Artifact, HeldOut], dict[str, Any]],
]:
    """How `in_folder` judges an artifact and its baselines: by the same ordinary students."""
    key = stage_key(options.seed, Stage.STUDENTS)

    def judge(made: artifact.Artifact, test: HeldOut) -> tuple[Evaluation, dict[str, Any]]:
        return judging.by_students(made, world.network, test, options.student, key, reporter), {}

    def judge_baseline(
        made: artifact.Artifact, choosing: HeldOut, test: HeldOut
    ) -> comparison.Judged:
        return evaluate.evaluate_best(
            world.network,
            made.synthetic,
            made.decodable(),
            choosing,
            test,
            dataclasses.replace(options.student, learning_rate=None, with_means=False),
            options.baseline_learning_rates,
            key,
            reporter,
        )

    def compare(made: artifact.Artifact, test: HeldOut) -> dict[str, Any]:
        return comparison.compare(
            options.baselines, options.baseline_learning_rates, made, world.dataset,
            world.normalization, test, judge_baseline, options.seed, reporter,
        )  # fmt: skip

    return judge, compare

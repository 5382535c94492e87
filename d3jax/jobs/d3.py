"""A run of `d3jax distill d3`."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from d3jax import (
    artifact,
    comparison,
    config,
    evaluate,
    experts,
    judging,
    networks,
    resolve,
    synthetic,
)
from d3jax.evaluate import Evaluation
from d3jax.jobs.frame import (
    frozen,
    in_folder,
    make_world,
    outer_loop,
    provenance,
    stored_experts,
)
from d3jax.methods import d3
from d3jax.progress import Reporter
from d3jax.stages import Stage, stage_key
from d3jax.types import Real


def distill_d3(options: config.DistillD3, reporter: Reporter) -> dict[str, Any]:
    """Runs `d3jax distill d3`; see `run`."""
    dataset, normalization = options.data.load(options.seed)
    specification = options.parametrization.specification(dataset, normalization)
    options = resolve.d3(options, dataset, specification)
    data_ = synthetic.create(specification)
    world = make_world(dataset, normalization, options.architecture)
    method = d3.d3(world.network, data_, options.d3, options.outer_steps)
    experts.check(options.expert)
    evaluate.check(options.student)

    def distilled() -> tuple[artifact.Artifact, float]:
        assert options.experts is not None
        snapshots = stored_experts(
            world, options.architecture, options.expert, options.experts, options.seed, reporter
        )
        stored = experts.Trajectories(snapshots)
        trajectories = (
            jnp.asarray(stored.read_all(), jnp.float32)
            if options.snapshots == "device"
            else stored.streamed()
        )
        real = world.real._replace(trajectories=trajectories)
        state = outer_loop(options, options.out, method, real, reporter)
        theta = frozen(method, state, options.seed)
        if options.parametrization.labels == "expert":
            first = networks.unraveler(world.network)(trajectories[0, -1])
            theta["labels"] = d3.expert_labels(world.network, first, data_, theta)
        made = artifact.create(
            theta,
            method="d3",
            parametrization=specification,
            student_learning_rate=float(jnp.exp(jnp.mean(state.theta["learning_rates"]))),
            protocol=config.plain(options.student),
            dtype=options.storage,
            **provenance(options, world),
        )
        return made, experts.training_seconds(snapshots)

    key = stage_key(options.seed, Stage.STUDENTS)

    def judge(made: artifact.Artifact, test: Real) -> tuple[Evaluation, dict[str, Any]]:
        return judging.by_students(made, world.network, test, options.student, key, reporter), {}

    def judge_baseline(made: artifact.Artifact, choosing: Real, test: Real) -> comparison.Judged:
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

    def compare(made: artifact.Artifact, test: Real) -> dict[str, Any]:
        return comparison.compare(
            options.baselines, options.baseline_learning_rates, made, dataset, normalization,
            test, judge_baseline, options.seed, reporter,
        )  # fmt: skip

    return in_folder("d3", options, world, method, distilled, judge, compare, reporter)

"""The stages that the command line runs, from a configuration to files in a folder."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from d3jax import (
    artifact,
    comparison,
    config,
    data,
    distill,
    evaluate,
    experts,
    files,
    judging,
    networks,
    report,
    synthetic,
)
from d3jax.events import EventWriter, check_installed
from d3jax.methods import d3
from d3jax.progress import Reporter, locked
from d3jax.stages import Stage, stage_key
from d3jax.types import Method, Network, Real, State


def train_experts(options: config.Experts, reporter: Reporter) -> Path:
    """Runs `d3jax experts`; returns the folder of the snapshots."""
    dataset, normalization = options.data.load(options.seed)
    options = dataclasses.replace(
        options,
        architecture=config.resolved_architecture(options.architecture, dataset),
        expert=config.resolved_experts(options.expert, dataset),
    )
    real = _train_arrays(dataset, normalization)
    path = _experts(options, dataset, normalization, real, reporter)
    reporter.say(f"experts: {path}")
    return path


def _train_arrays(dataset: data.Dataset, normalization: data.Normalization) -> Real:
    return data.device_arrays(
        dataset.train_images,
        dataset.train_labels,
        dataset.num_classes,
        normalization,
        dataset.class_names,
    )


def _experts(
    options: config.Experts | config.DistillD3,
    dataset: data.Dataset,
    normalization: data.Normalization,
    real: Real,
    reporter: Reporter,
) -> Path:
    network = options.architecture.create(dataset.image_shape, dataset.num_classes)
    recipe = experts.configuration(
        options.expert,
        dataclasses.asdict(options.architecture),
        {
            "images": experts.fingerprint(dataset.train_images, dataset.train_labels),
            "zca": normalization.zca is not None,
        },
        options.seed,
    )
    store = options.experts
    assert store is not None
    return experts.train(network, options.expert, real, store, recipe, reporter)


def distill_d3(options: config.DistillD3, reporter: Reporter) -> dict[str, Any]:
    """Runs `d3jax distill d3`; returns the report, which is also in OUT/report.json.

    Raises:
      InputError, Interrupted, Diverged: as the stages do.
    """
    out = options.out
    dataset, normalization = options.data.load(options.seed)
    specification = options.parametrization.specification(dataset, normalization)
    options = config.resolved(options, dataset, specification)
    network = options.architecture.create(dataset.image_shape, dataset.num_classes)
    data_ = synthetic.create(specification)
    method = d3.d3(network, data_, options.d3, options.outer_steps)
    experts.check(options.expert)
    evaluate.check(options.student)
    real = _train_arrays(dataset, normalization)
    shapes = jax.eval_shape(lambda k: data_.freeze(data_.init(k, real), k), jax.random.key(0))
    comparison.check(options.baselines, networks.parameter_count(shapes), dataset)
    if options.tensorboard:
        check_installed()
    config.claim(out, options, dataset)  # after all that can be refused, before all that is written
    with locked(out, "distilling"):
        return _distill_d3(
            options, dataset, normalization, network, method, specification, real, reporter
        )


def _distill_d3(
    options: config.DistillD3,
    dataset: data.Dataset,
    normalization: data.Normalization,
    network: Network,
    method: Method,
    specification: dict[str, Any],
    real: Real,
    reporter: Reporter,
) -> dict[str, Any]:
    out, data_ = options.out, method.synthetic
    if (out / "report.json").exists():
        reporter.say(f"{out} is finished; this is its report")
        finished = json.loads((out / "report.json").read_text())
        reporter.console.print(judging.accuracy_table(finished))
        return finished

    snapshots = _experts(options, dataset, normalization, real, reporter)
    trajectories = jnp.asarray(experts.Trajectories(snapshots).read_all(), jnp.float32)
    state = _distill(
        options,
        method,
        stage_key(options.seed, Stage.DISTILL),
        real._replace(trajectories=trajectories),
        reporter,
    )

    theta = {k: v for k, v in state.theta.items() if k != "learning_rates"}
    theta = data_.freeze(theta, stage_key(options.seed, Stage.FREEZE))
    if options.parametrization.labels == "expert":
        first = networks.unraveler(network)(trajectories[0, -1])
        theta["labels"] = d3.expert_labels(network, first, data_, theta)
    distilled = artifact.create(
        theta,
        method="d3",
        parametrization=specification,
        student_learning_rate=float(jnp.exp(jnp.mean(state.theta["learning_rates"]))),
        dtype=options.parametrization.storage,
        **_provenance(options, dataset, normalization),
    )
    artifact.save(distilled, out / "artifact.safetensors")
    distilled = artifact.load(out / "artifact.safetensors")
    report.curves(out / "curves.png", distill.read_metrics(out / distill.METRICS))
    for_students = stage_key(options.seed, Stage.STUDENTS)
    judging.decoded_picture(out / "images.png", distilled, normalization, for_students)
    test = judging.held_out(dataset.test_images, dataset.test_labels, dataset, normalization)
    reached = judging.evaluate_artifact(
        distilled,
        network,
        test,
        options.student,
        for_students,
        reporter,
    )
    rows = comparison.compare(
        options.baselines,
        options.baseline_learning_rates,
        distilled,
        dataset,
        normalization,
        network,
        test,
        options.student,
        options.seed,
        reporter,
    )
    ledger = distilled.ledger
    finished = {
        "method": "d3",
        "dataset": judging.dataset_name(options.data.dataset),
        "network": options.architecture.network,
        "accuracy": reached.summary(),
        "baselines": rows,
        **ledger,
        "seconds": {
            "experts": experts.training_seconds(snapshots),
            "distill": distill.read_metrics(out / distill.METRICS)[-1]["seconds"],
            "student": reached.seconds,
        },
        "seed": options.seed,
        "versions": artifact.versions(),
    }
    files.write_json(out / "report.json", finished)
    reporter.console.print(judging.accuracy_table(finished))
    reporter.say(f"written to {out}")
    return finished


def _distill(
    options: config.DistillD3, method: Method, key: Array, real: Real, reporter: Reporter
) -> State:
    writer: EventWriter | None = None

    def observe(rows: list[dict[str, float]]) -> None:
        nonlocal writer
        if not options.tensorboard or not rows:
            return
        if writer is None:  # first_step hides what an interrupted run wrote after its checkpoint
            writer = EventWriter(options.out / "events", first_step=int(rows[0]["step"]))
        for row in rows:
            scalars = {n: v for n, v in row.items() if n not in ("step", "seconds")}
            writer.write(int(row["step"]), scalars)

    try:
        return distill.run(
            method,
            key,
            real,
            steps=options.outer_steps,
            directory=options.out,
            reporter=reporter,
            chunk=options.chunk,
            checkpoint_minutes=options.checkpoint_minutes,
            observe=observe,
        )
    finally:
        if writer is not None:
            writer.close()


def _provenance(
    options: config.DistillD3, dataset: data.Dataset, normalization: data.Normalization
) -> dict[str, Any]:
    """What an artifact's header says of where it comes from."""
    recipe = None
    if normalization.zca is not None:
        # Recomputed from the same images, not stored: 38 MB at 32x32x3. The matrix is not hashed,
        # since its last digits depend on the linear algebra library; the images are.
        recipe = {
            "epsilon": 0.1,
            "images": experts.fingerprint(dataset.train_images, dataset.train_labels),
            "train_limit": options.data.train_limit,
            "validation": options.data.validation,
            "seed": options.seed,
        }
    return {
        "dataset": judging.dataset_name(options.data.dataset),
        "class_names": dataset.class_names,
        "normalization": {
            "mean": [float(v) for v in normalization.mean],
            "sd": [float(v) for v in normalization.sd],
            "zca": recipe,
        },
        "architecture": config.plain(options.architecture),
        "protocol": config.plain(options.student),
        "seed": options.seed,
    }

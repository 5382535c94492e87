"""Runs whose classes are cut into subtasks, distilled apart and joined."""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from d3jax import artifact, config, evaluate, experts, joining, judging, report, resolve, synthetic
from d3jax import distill as outer
from d3jax.distill import METRICS
from d3jax.files import write_text
from d3jax.jobs.frame import World, in_folder, make_world, stored_experts
from d3jax.jobs.matching import by_students, distill_task, divided, prepared
from d3jax.networks import unraveler
from d3jax.progress import Reporter
from d3jax.snapshots import Snapshots
from d3jax.types import InputError


def distill(options: config.Federated, reporter: Reporter) -> dict[str, Any]:
    """Runs `d3jax distill d3|mtt --subtasks ...`: each in a folder below OUT, then all joined.

    A subtask's folder holds its artifact, as a job of its own would have made it.
    """
    dataset, normalization = options.data.load(options.seed)
    options = resolve.matching(options, dataset)
    soft = options.parametrization.labels == "expert"
    hard = dataclasses.replace(options.parametrization, labels="hard")
    each = dataclasses.replace(options, parametrization=hard) if soft else options
    assert options.subtasks is not None
    parts = divided(options.subtasks, dataset)
    world = make_world(dataset, normalization, options.architecture)
    tasks = [prepared(each, dataset, normalization, part) for part in parts]
    specification = joining.specification(
        [task.specification for task in tasks], [part.classes for part in parts]
    )
    joined = synthetic.create(specification)

    def distilled() -> tuple[artifact.Artifact, float]:
        made, seconds, folders = [], 0.0, []
        for part, task in zip(parts, tasks, strict=True):
            reporter.say(f"subtask {part.number + 1} of {len(parts)}: {len(part.classes)} classes")
            folders.append(options.out / f"subtask-{part.number}")
            folders[-1].mkdir(exist_ok=True)
            one, spent = distill_task(task, folders[-1], reporter)
            artifact.save(one, folders[-1] / "artifact.safetensors")
            made.append(one)
            seconds += spent
        _mean_metrics(options.out, folders)
        whole = joining.join(made)
        if soft:
            assert options.experts is not None
            whole, spent = _labelled(
                whole, world, options.architecture, options.expert, options.experts, options.seed,
                reporter,
            )  # fmt: skip
            seconds += spent
        return whole, seconds

    judge, compare = by_students(options, world, reporter)
    return in_folder(options, world, joined, distilled, judge, compare, reporter)


def join(options: config.Join, reporter: Reporter) -> artifact.Artifact:
    """Runs `d3jax join`: reads the artifacts of all subtasks and writes the whole.

    Raises:
      InputError: they cannot be joined, or the data set for their labels is not theirs.
    """
    if not options.out.parent.is_dir():
        raise InputError(f"there is no folder {options.out.parent} to write {options.out} to")
    parts = [artifact.load(path) for path in options.artifacts]
    whole = joining.join(parts, options.artifacts)
    if options.labels == "expert":
        dataset, normalization = options.data.load(options.seed)
        names = list(dataset.class_names)
        if judging.dataset_name(options.data.dataset) != whole.header["dataset"] or (
            names != whole.header["class_names"]
        ):
            raise InputError(
                f"the artifacts are of {whole.header['dataset']}, not of {options.data.dataset}; "
                f"name their data set with --dataset"
            )
        architecture = judging.stored_architecture(
            whole.header, config.Architecture(), dataset, options.artifacts[0]
        )
        world = make_world(dataset, normalization, architecture)
        expert = resolve.expert(options.expert, dataset)
        whole, _ = _labelled(
            whole, world, architecture, expert, options.experts, options.seed, reporter
        )
    artifact.save(whole, options.out)
    reporter.console.print(report.ledger_table(whole.ledger["bytes"]))
    reporter.say(f"{len(parts)} subtasks joined: {options.out}")
    return whole


def _labelled(
    whole: artifact.Artifact,
    world: World,
    architecture: config.Architecture,
    expert: experts.Options,
    store: Path,
    seed: int,
    reporter: Reporter,
) -> tuple[artifact.Artifact, float]:
    """With labels of one expert of all classes, and the seconds that its training took."""
    one = dataclasses.replace(expert, count=1)
    path = stored_experts(world, architecture, one, store, seed, reporter)
    stored = Snapshots(path)
    dataset, normalization = world.dataset, world.normalization
    epoch = stored.shape[1] - 1
    if len(dataset.validation_labels):
        choosing = judging.held_out(
            dataset.validation_images, dataset.validation_labels, dataset, normalization
        )
        found = evaluate.accuracy(world.network, jnp.asarray(stored.read_all()[0]), choosing)
        epoch = int(jnp.argmax(found))
        reporter.say(f"labels: an expert's after epoch {epoch}, the best on validation images")
    else:
        reporter.say("labels: an expert's after its last epoch; no validation images to choose by")
    params = unraveler(world.network)(jnp.asarray(stored.read(0, epoch), jnp.float32))
    return joining.labelled(whole, world.network, params), experts.training_seconds(path)


def _mean_metrics(out: Path, folders: list[Path]) -> None:
    """OUT/metrics.jsonl: means over the subtasks of each step, and seconds of all of them."""
    rows = []
    for same in zip(*(outer.read_metrics(folder / METRICS) for folder in folders), strict=True):
        means = {name: sum(row[name] for row in same) / len(same) for name in same[0]}
        seconds = round(sum(row["seconds"] for row in same), 3)
        rows.append({**means, "step": same[0]["step"], "seconds": seconds})
    write_text(out / METRICS, outer.lines(rows))

"""A run of any method: load, experts, distill, save, evaluate."""

from pathlib import Path

from d3jax.data import Dataset, subtasks
from d3jax.host.progress import Reporter
from d3jax.run import augmented
from d3jax.run import subtasks as divided
from d3jax.run.options import Experts, Run, resolved_architecture, resolved_experts
from d3jax.run.stages import (
    Part,
    Report,
    distilled,
    judged,
    load,
    make_world,
    opened,
    parts_of,
    stored_experts,
)


def run(options: Run, reporter: Reporter, dataset: Dataset | None = None) -> Report:
    """Runs `d3jax distill`; returns the report, which is also in OUT/report.json.

    dataset: instead of the one that the options name.

    Raises:
      InputError, Busy, Interrupted, Diverged: as the stages do.
    """
    if divided.wanted(options):
        return divided.run(options, reporter, dataset)
    job = load(options, dataset)
    with opened(job.options, job.world, job.synthetic, reporter) as finished:
        if finished is not None:
            return finished
        made, spent = distilled(job, reporter)
        return judged(job, made, spent, reporter)


def train_experts(options: Experts, reporter: Reporter) -> list[Path]:
    """Runs `d3jax experts`; returns the folders of the snapshots, one for each subtask."""
    dataset, normalization = options.data.load(options.seed)
    parts: list[Part | None] = [None]
    if options.subtasks is not None:
        parts = [*parts_of(options.subtasks, dataset)]
    architecture = resolved_architecture(options.architecture, dataset)
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

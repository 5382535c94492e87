"""The stages that the command line runs, from a configuration to files in a folder."""

import dataclasses
from pathlib import Path
from typing import Any

from d3jax.data import subtasks
from d3jax.host.progress import Reporter
from d3jax.run import config, matching, resolve
from d3jax.run import subtasks as federated
from d3jax.run.dd import distill_dd
from d3jax.run.frame import Part, make_world, stored_experts
from d3jax.run.join import join as join
from d3jax.run.plan import plan as plan
from d3jax.run.seqmatch import distill_seqmatch


def run(options: config.Distillation, reporter: Reporter) -> dict[str, Any]:
    """Runs `d3jax distill`; returns the report, which is also in OUT/report.json.

    Raises:
      InputError, Busy, Interrupted, Diverged: as the stages do.
    """
    match options:
        case config.DistillD3() | config.DistillMTT():
            if options.subtasks is not None and options.subtask is None:
                return federated.distill(options, reporter)
            return matching.distill(options, reporter)
        case config.DistillSeqMatch():
            return distill_seqmatch(options, reporter)
        case config.DistillDD():
            return distill_dd(options, reporter)


def train_experts(options: config.Experts, reporter: Reporter) -> list[Path]:
    """Runs `d3jax experts`; returns the folders of the snapshots, one for each subtask."""
    dataset, normalization = options.data.load(options.seed)
    parts: list[Part | None] = [None]
    if options.subtasks is not None:
        parts = [*matching.divided(options.subtasks, dataset)]
    options = dataclasses.replace(
        options,
        architecture=resolve.architecture(options.architecture, dataset),
        expert=resolve.expert(
            options.expert, dataset, [part.classes for part in parts if part is not None]
        ),
    )
    paths = []
    for part in parts:
        own = dataset if part is None else subtasks.of(dataset, part.classes)
        world = make_world(own, normalization, options.architecture, part)
        paths.append(
            stored_experts(
                world, options.architecture, options.expert, options.experts, options.seed, reporter
            )
        )
        reporter.say(f"experts: {paths[-1]}")
    return paths

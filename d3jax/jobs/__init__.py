"""The stages that the command line runs, from a configuration to files in a folder."""

import dataclasses
from pathlib import Path
from typing import Any

from d3jax import config, resolve
from d3jax.jobs import federated, matching
from d3jax.jobs.dd import distill_dd
from d3jax.jobs.federated import join as join
from d3jax.jobs.frame import make_world, stored_experts
from d3jax.jobs.seqmatch import distill_seqmatch
from d3jax.progress import Reporter


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


def train_experts(options: config.Experts, reporter: Reporter) -> Path:
    """Runs `d3jax experts`; returns the folder of the snapshots."""
    dataset, normalization = options.data.load(options.seed)
    options = dataclasses.replace(
        options,
        architecture=resolve.architecture(options.architecture, dataset),
        expert=resolve.expert(options.expert, dataset),
    )
    world = make_world(dataset, normalization, options.architecture)
    path = stored_experts(
        world, options.architecture, options.expert, options.experts, options.seed, reporter
    )
    reporter.say(f"experts: {path}")
    return path

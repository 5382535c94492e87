"""A run of any method: load, experts and distill, save and evaluate."""

from functools import partial

from d3jax.data import Dataset
from d3jax.host.progress import Reporter
from d3jax.run import subtasks
from d3jax.run.commands import Plan
from d3jax.run.job import load
from d3jax.run.options import Run
from d3jax.run.plan import plan
from d3jax.run.result import Report, judged, save
from d3jax.run.stages import distilled, opened


def run(options: Run, reporter: Reporter, dataset: Dataset | None = None) -> Report:
    """Runs `d3jax distill`; returns the report, which is also in OUT/report.json; of a dry run what
    it would take.

    dataset: instead of the one that the options name.

    Raises:
      InputError, Busy, Interrupted, Diverged: as the stages do.
    """
    if options.dry_run:
        return plan(Plan(options), reporter, dataset)
    if subtasks.wanted(options):
        return subtasks.run(options, reporter, dataset)
    job = load(options, dataset)
    judge = partial(judged, job, reporter=reporter)
    with opened(job.options, job.world, job.synthetic, reporter, judge) as finished:
        if finished is not None:
            return finished
        made, spent = distilled(job, reporter)
        return judge(save(job, made), spent)

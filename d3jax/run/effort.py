"""How many students a baseline gets: baselines take no longer than the distillation did.

Both are counted, not timed, so that the same command does the same again: in images that go
forward through the network, of which a backward pass is worth two.
"""

from typing import NamedTuple

from d3jax.artifact import Artifact
from d3jax.data import Dataset, subtasks
from d3jax.evaluate import baselines
from d3jax.run.job import reads_of
from d3jax.run.options import Divided, Run, Studied

_GRADIENT = 3  # forward and backward


class Effort(NamedTuple):
    """How a baseline is judged."""

    students: int
    learning_rates: tuple[float, ...]  # those that are tried
    reduced: bool = False  # whether that is less than the artifact gets

    @property
    def rows(self) -> int:
        """Networks side by side, in each of the two trainings of a baseline."""
        rates = len(self.learning_rates)
        return max(self.students, rates * max(1, self.students // rates))


def of_baselines(options: Run, made: Artifact, dataset: Dataset) -> Effort:
    """As many students as the artifact gets and all learning rates; or, where baselines would take
    longer than the distillation and no flag says how many, a student a rate, or one at the middle
    rate."""
    rates = options.baseline_learning_rates
    if not isinstance(options, Studied):
        return Effort(1, rates)
    if options.baseline_students is not None:
        return Effort(options.baseline_students, rates)
    full = Effort(options.student.students, rates)
    allowed = distillation(options, dataset)
    if allowed is None:
        return full
    fewer = [Effort(min(full.students, len(rates)), rates, True)]
    if rates == options.spec.baseline_learning_rates:  # no flag says which
        fewer.append(Effort(1, (sorted(rates)[len(rates) // 2],), True))
    cost = sum(judging(options, name, made, dataset) for name in options.baselines)
    fit = (effort for effort in (full, *fewer) if effort.rows * cost <= allowed)
    return next(fit, fewer[-1])


def judging(options: Studied, name: str, made: Artifact, dataset: Dataset) -> int:
    """Images through one of a baseline's networks, which are trained twice."""
    images = dataset.num_classes * baselines.bought(name, made, dataset)
    return 2 * _GRADIENT * options.student.epochs * images


def distillation(options: Run, dataset: Dataset) -> int | None:
    """Images through networks in a run of resolved options, experts included; None where its method
    does not say how many an outer step has."""
    if options.spec.passes is None:
        return None
    trained = 0
    for turn in range(options.spec.turns(options.method)):
        reads = reads_of(options, dataset, turn)
        if reads is not None:
            trained += reads.experts.count * reads.experts.epochs * len(dataset.train_labels)
    parts = 1
    if isinstance(options, Divided) and options.subtasks is not None and options.subtask is None:
        parts = len(subtasks.split(options.subtasks, dataset.num_classes))
    steps = options.outer_steps * options.spec.passes(options.method, dataset.num_classes)
    return _GRADIENT * trained + parts * steps

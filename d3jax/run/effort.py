"""What a run costs, and how many students a baseline gets: all take no longer than distillation.

It is counted, not timed, so that the same command does the same again: in images that go forward
through the network, of which a backward pass is worth two.
"""

from typing import NamedTuple

from d3jax import experts
from d3jax.data import Dataset, subtasks
from d3jax.evaluate import baselines
from d3jax.evaluate.baselines import Stored
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


def of_baselines(options: Run, size: Stored, dataset: Dataset) -> Effort:
    """As many students as the artifact gets and all learning rates; or, where baselines would take
    longer than the distillation and no flag says how many, a student a rate, or one at the middle
    rate.

    size: of the distilled data.
    """
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
    cost = of_all_baselines(options, Effort(1, rates[:1]), size, dataset)
    fit = (effort for effort in (full, *fewer) if effort.rows * cost <= allowed)
    return next(fit, fewer[-1])


def of_all_baselines(options: Studied, effort: Effort, size: Stored, dataset: Dataset) -> int:
    """Images through all networks that are trained on a run's baselines."""
    each = [baselines.bought(name, size, dataset) for name in options.baselines]
    return _trained(options, dataset.num_classes * sum(each), effort)


def of_students(options: Studied, items: int) -> int:
    """Images through all networks that are trained on so many distilled items."""
    chosen = options.choose_learning_rate and options.student.learning_rate is None
    rates = (0.0, *options.baseline_learning_rates) if chosen else (0.0,)
    visits = items * (2 if options.student.with_means else 1)
    return _trained(options, visits, Effort(options.student.students, rates))


def _trained(options: Studied, visits: int, effort: Effort) -> int:
    """Networks are trained twice, where they choose a learning rate."""
    return 2 * _GRADIENT * options.student.epochs * visits * effort.rows


def distillation(options: Run, dataset: Dataset) -> int | None:
    """Images through networks while a run of resolved options distills, experts included; None
    where its method does not say how many an outer step has."""
    if options.spec.passes is None:
        return None
    found = 0
    for turn in range(options.spec.turns(options.method)):
        reads = reads_of(options, dataset, turn)
        if reads is not None:
            found += of_experts(reads.experts, len(dataset.train_labels))
    parts = 1
    if isinstance(options, Divided) and options.subtasks is not None and options.subtask is None:
        parts = len(subtasks.split(options.subtasks, dataset.num_classes))
    steps = options.outer_steps * options.spec.passes(options.method, dataset.num_classes)
    return found + parts * steps


def of_experts(options: experts.Options, images: int) -> int:
    """Images through all experts."""
    return _GRADIENT * options.count * options.epochs * images

"""What a run costs, and how many students a baseline gets.

It is counted, not timed, so that the same command does the same again: in images that go forward
through the network, of which a backward pass is worth two.
"""

from d3jax import experts
from d3jax.data import Dataset, subtasks
from d3jax.evaluate import baselines
from d3jax.evaluate.baselines import Stored
from d3jax.run.job import reads_of
from d3jax.run.options import Divided, Run, Studied

_GRADIENT = 3  # forward and backward


def students_of_baselines(options: Studied, size: Stored, dataset: Dataset) -> int:
    """As many students as the artifact gets; or, where baselines would take longer than the
    distillation and no flag says how many, one for each learning rate.

    All learning rates are tried in any case: a baseline that had no choice would be a weaker one.

    size: of the distilled data.
    """
    if options.baseline_students is not None:
        return options.baseline_students
    full, allowed = options.student.students, distillation(options, dataset)
    if allowed is None or of_all_baselines(options, full, size, dataset) <= allowed:
        return full
    return min(full, len(options.baseline_learning_rates))


def of_all_baselines(options: Studied, students: int, size: Stored, dataset: Dataset) -> int:
    """Images through all networks that are trained on a run's baselines."""
    each = [baselines.bought(name, size, dataset) for name in options.baselines]
    rates = len(options.baseline_learning_rates)
    visits = [dataset.num_classes * number for number in each]
    return sum(_trained(options, number, students, rates) for number in visits)


def of_students(options: Studied, items: int) -> int:
    """Images through all networks that are trained on so many distilled items."""
    chosen = options.choose_learning_rate and options.student.learning_rate is None
    rates = 1 + len(options.baseline_learning_rates) if chosen else 1
    visits = items * (2 if options.student.with_means else 1)
    return _trained(options, visits, options.student.students, rates)


def _trained(options: Studied, visits: int, students: int, rates: int) -> int:
    """To choose a learning rate networks are trained twice, the second time at the best."""
    times = 2 if rates > 1 else 1
    networks = max(students, rates * max(1, students // rates))
    return times * _GRADIENT * options.student.epochs_of(visits) * visits * networks


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

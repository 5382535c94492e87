"""Defaults of a run that depend on the data, and options that do not fit together."""

import dataclasses
import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from d3jax import data, experts, networks
from d3jax.artifact.checks import teacher_shapes
from d3jax.data import subtasks
from d3jax.data.augment import default_strategy
from d3jax.evaluate import baselines
from d3jax.experts import Options as ExpertOptions
from d3jax.networks.own import is_own
from d3jax.run.options import Architecture, Divided, Matching, Run, Studied
from d3jax.types import InputError, check_at_least_one

_log = logging.getLogger(__name__)


def resolved(options: Run, dataset: data.Dataset) -> Run:
    """The options of a run with every default that depends on the data filled in.

    Raises:
      InputError: options that do not fit together.
    """
    replace, spec = dataclasses.replace, options.spec
    if options.parametrization.labels is None:
        usual = replace(options.parametrization, labels=spec.labels_by_default)
        options = replace(options, parametrization=usual)
    _check(options, dataset)
    parts = _subtasks(options, dataset)
    architecture = resolved_architecture(
        options.architecture,
        dataset.image_shape,
        network=spec.network(dataset.image_shape),
        initialization=spec.initialization,
        norm=spec.norm,
    )
    teacher = None
    if options.parametrization.labels == "teacher":
        network = architecture.create(dataset.image_shape, dataset.num_classes)
        teacher = teacher_shapes(network, dataset.image_shape)
    parametrization = options.parametrization.resolved(
        dataset,
        kind=spec.parametrization,
        items=spec.items(options.method, dataset.num_classes),
        least=spec.turns(options.method),
        storage=options.storage,
        classes=min((len(part) for part in parts), default=None),
        beside=teacher,
    )
    changes: dict[str, Any] = {
        "parametrization": parametrization,
        "architecture": architecture,
        "experts": options.experts or options.out / "experts",
    }
    if options.baselines == spec.baselines and _labelled_by_experts(options, dataset):
        changes["baselines"] = (*options.baselines, "random_expert")
    if isinstance(options, Matching):
        _check_reads(options, dataset)
        changes["expert"] = resolved_experts(
            options.expert, dataset, parts, spec.expert_learning_rate
        )
    if isinstance(options, Studied):
        student = options.student
        if student.augmentation is None:
            by_default = default_strategy(dataset.name, dataset.class_names)
            student = replace(student, augmentation=by_default)
        soft = parametrization.labels in ("expert", "solved")
        if soft and parametrization.kind == "gaussian":
            student = replace(student, with_means=True)
        changes["student"] = student
    return spec.resolve(replace(options, **changes), dataset)


def _check_reads(options: Matching, dataset: data.Dataset) -> None:
    reads = options.spec.experts and options.spec.experts(options, dataset, 0)
    if not reads:
        return
    if options.expert.epochs < reads.last_epoch:
        raise InputError(
            f"distillation reads expert epochs up to {reads.last_epoch}, and experts are trained "
            f"for {options.expert.epochs}: give --expert.epochs {reads.last_epoch}"
            + "".join(f", or lower --{name.replace('_', '-')}" for name in reads.until)
        )
    if reads.last_epoch and options.expert.keep != "all":
        raise InputError("experts are read epoch by epoch: leave out --expert.keep last")


def labels_at_start(options: Run) -> bool:
    """Whether an expert labels what the data starts from: real images."""
    stored = options.parametrization
    real = options.spec.labels == "start" and stored.start == "real"
    return real and stored.labels == "expert"


def resolved_architecture(
    options: Architecture,
    image_shape: Sequence[int],
    *,
    network: str = "convnet",
    initialization: str = "uniform_fan_in",
    norm: str = "instance",
) -> Architecture:
    """The network with its defaults filled in; what it does not have stays None.

    `network`, `initialization` and `norm` are those to take where none is named. A network of the
    user's own has no defaults.
    """
    name = options.network or network
    if is_own(name):
        return options
    defaults: dict[str, dict[str, Any]] = {
        "convnet": {
            "width": 32,
            "depth": networks.default_depth(image_shape[0]),
            "norm": norm,
            "pooling": "average",
        },
        "resnet18": {"width": 64, "norm": norm},
        "mlp": {"width": 128},
    }
    said = {key: value for key, value in dataclasses.asdict(options).items() if value is not None}
    filled = {"initialization": initialization, **defaults.get(name, {}), **said}
    return Architecture(**{**filled, "network": name})  # type: ignore[arg-type]


def resolved_experts(
    options: ExpertOptions,
    dataset: data.Dataset,
    parts: Sequence[Sequence[int]] = (),
    usual_rate: float = 0.01,
) -> ExpertOptions:
    """The experts' options with every default that depends on the data filled in.

    `parts` are the classes of subtasks, if there are any: their experts all train alike, as suits
    the smallest.
    """
    images = len(dataset.train_labels)
    if parts:
        counts = np.bincount(dataset.train_labels, minlength=dataset.num_classes)
        images = int(min(counts[list(part)].sum() for part in parts))
    steps = experts.data_defaults(options, images, usual_rate)
    if parts and steps.batch_size > images:
        _log.warning(
            f"experts: batches of all {images} images of the smallest subtask, not of "
            f"{steps.batch_size}"
        )
        steps = steps._replace(batch_size=max(1, images))
    return dataclasses.replace(
        options,
        **steps._asdict(),
        augmentation=experts.kinds(options, default_strategy(dataset.name, dataset.class_names)),
    )


def _subtasks(options: Run, dataset: data.Dataset) -> Sequence[Sequence[int]]:
    """The classes of each subtask, if there are any."""
    if not isinstance(options, Divided):
        return ()
    options.processes.check()
    if options.processes.several and (options.subtasks is None or options.subtask is not None):
        raise InputError(
            "several processes share the subtasks: give --subtasks, at least as many as devices, "
            "without --subtask"
        )
    if options.subtasks is None:
        if options.subtask is not None:
            raise InputError("--subtask is one of --subtasks; say how many there are")
        return ()
    if options.parametrization.labels == "solved":
        raise InputError(
            "labels are solved for all classes at once: leave out --subtasks, or --labels solved"
        )
    parts = subtasks.split(options.subtasks, dataset.num_classes)
    number = len(parts)
    if min(len(part) for part in parts) < 2:
        raise InputError(
            "a subtask needs two classes or more to tell apart: give --subtasks a smaller number, "
            "or parts of two classes and more"
        )
    if options.subtask is not None and not 0 <= options.subtask < number:
        raise InputError(f"subtask must be from 0 to {number - 1}, not {options.subtask}")
    if options.subtask is not None and options.parametrization.labels == "expert":
        raise InputError(
            "an expert of all classes labels what is joined: leave --labels expert out of a single "
            "subtask, and give it to `d3jax join`"
        )
    return parts


def _labelled_by_experts(options: Run, dataset: data.Dataset) -> bool:
    """Whether the first of the experts that the data is distilled with labels it."""
    reads = options.spec.experts and options.spec.experts(options, dataset, 0)
    own = isinstance(options, Matching) and bool(reads) and not reads.teacher
    parts = isinstance(options, Divided) and options.subtasks is not None
    return own and not parts and options.parametrization.labels == "expert"


def _check_labels(options: Run, dataset: data.Dataset) -> None:
    """Labels of a teacher, and baselines that need one."""
    reads = options.spec.experts and options.spec.experts(options, dataset, 0)
    teacher, kind = bool(reads and reads.teacher), options.parametrization.labels
    of_views = kind in ("views", "teacher")
    if of_views and not teacher:
        raise InputError(
            f"--labels {kind} are those of a teacher, which {options.spec.name} has none of: give "
            f"--labels expert, or distill with dwa or rded"
        )
    unmade = [name for name in options.baselines if name in baselines.TAUGHT]
    if unmade and not teacher:
        raise InputError(
            f"{unmade[0]} is a baseline of methods with a teacher, such as dwa; leave it out of "
            f"--baselines"
        )
    by_expert = any(name.endswith(baselines.EXPERT) for name in options.baselines)
    if by_expert and not _labelled_by_experts(options, dataset):
        raise InputError(
            "random_expert has the labels of the data's experts: add --labels expert, or leave it "
            "out of --baselines (dwa, rded and runs with --subtasks do not have it)"
        )
    if kind == "teacher" and is_own(options.architecture.network):
        raise InputError(
            "a network of your own cannot be stored as a teacher, since an artifact runs no code: "
            "give --labels views"
        )
    if not isinstance(options, Studied):
        return
    if of_views and options.student.views == "none":
        raise InputError(
            f"--labels {kind} label views of images: say which, such as --student.views padded"
        )
    if kind == "solved" and options.student.temperature != 1:
        raise InputError(
            "solved labels are met by squared error, which has no temperature: leave out "
            "--student.temperature"
        )
    if options.label_storage == "int8" and options.student.temperature != 1:
        raise InputError(
            "a byte keeps too little of an unlikely class for a temperature to soften: leave out "
            "--label-storage int8 or --student.temperature"
        )


def _check(options: Run, dataset: data.Dataset) -> None:
    items = options.spec.items(options.method, dataset.num_classes)
    uneven = items is not None and items % dataset.num_classes
    if uneven and options.parametrization.labels != "learned":
        raise InputError(
            f"{items} images are not as many for each of {dataset.num_classes} classes: give "
            f"--labels learned, or a multiple"
        )
    solved = [name for name in options.baselines if name.endswith(baselines.SOLVED)]
    if options.spec.judge == "replay" and (solved or options.parametrization.labels == "solved"):
        raise InputError(
            f"the steps that {options.spec.name} learns take labels by cross entropy, solved ones "
            f"are met by squared error: leave out --labels solved and such baselines"
        )
    if isinstance(options, Studied) and "best_random" in options.baselines:
        raise InputError(
            f"best_random is no baseline of {options.spec.name}, whose students take too long to "
            f"compare 20 draws; leave it out of --baselines"
        )
    _check_labels(options, dataset)
    if isinstance(options, Studied):
        check_at_least_one(options, "baseline_students")
    baseline_learning_rates = options.baseline_learning_rates
    if options.label_storage == "int8" and options.parametrization.labels != "expert":
        raise InputError("--label-storage int8 is for labels that are given: add --labels expert")
    if not (0 < options.outer_steps < 1 << 31 and 0 < options.chunk < 1 << 31):
        raise InputError(f"outer_steps and chunk must be from 1 to {(1 << 31) - 1}")
    if not baseline_learning_rates:
        raise InputError("baselines need a learning rate: give --baseline-learning-rates 0.01")
    if not all(0 < rate < math.inf for rate in baseline_learning_rates):
        raise InputError(
            f"baseline learning rates must be positive, they are {baseline_learning_rates}"
        )

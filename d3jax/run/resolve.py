"""Configurations with every default filled in."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from d3jax import data, experts, networks
from d3jax.data import subtasks
from d3jax.data.augment import default_strategy
from d3jax.methods import mtt
from d3jax.run.config import (
    Architecture,
    Distillation,
    DistillD3,
    DistillDD,
    DistillMTT,
    DistillSeqMatch,
    Divided,
    ExpertOptions,
    Matching,
    Run,
)
from d3jax.types import InputError


def architecture(
    options: Architecture, dataset: data.Dataset, *, network: str = "convnet"
) -> Architecture:
    """The network with its defaults filled in; what it does not have stays None.

    `network` is the one to take where none is named.
    """
    name = options.network or network
    defaults: dict[str, dict[str, Any]] = {
        "convnet": {
            "width": 32,
            "depth": networks.default_depth(dataset.image_shape[0]),
            "norm": "instance",
            "pooling": "average",
        },
        "resnet18": {"width": 64, "norm": "instance"},
        "mlp": {"width": 128},
    }
    said = {key: value for key, value in dataclasses.asdict(options).items() if value is not None}
    filled = {"initialization": "uniform_fan_in", **defaults.get(name, {}), **said}
    return Architecture(**{**filled, "network": name})  # type: ignore[arg-type]


def paper_network(image_shape: tuple[int, int, int]) -> str:
    """The network of Dataset Distillation for images of this shape, else a convnet."""
    size, _, channels = image_shape
    if size in (28, 32) and channels == 1:
        return "lenet"
    return "alexcifarnet" if size == 32 else "convnet"


def expert(
    options: ExpertOptions, dataset: data.Dataset, parts: Sequence[Sequence[int]] = ()
) -> ExpertOptions:
    """The experts' options with every default that depends on the data filled in.

    `parts` are the classes of subtasks, if there are any: their experts all train alike, as suits
    the smallest.
    """
    images = len(dataset.train_labels)
    if parts:
        counts = np.bincount(dataset.train_labels, minlength=dataset.num_classes)
        images = int(min(counts[list(part)].sum() for part in parts))
    steps = experts.data_defaults(options, images)
    if parts and steps.batch_size > images:
        steps = steps._replace(batch_size=max(1, images))
    return dataclasses.replace(
        options,
        **steps._asdict(),
        augmentation=default_strategy(dataset.name)
        if options.augmentation is None
        else options.augmentation,
    )


def name(options: Distillation) -> str:
    """The method's name on the command line."""
    match options:
        case DistillD3():
            return "d3"
        case DistillMTT():
            return "mtt"
        case DistillSeqMatch():
            return "seqmatch"
        case DistillDD():
            return "dd"


M = TypeVar("M", bound=Matching)  # one of its subclasses


def matching(options: M, dataset: data.Dataset) -> M:
    """The options of trajectory matching, every default that depends on the data filled in.

    Raises:
      InputError: options that do not fit together.
    """
    replace = dataclasses.replace
    is_d3 = isinstance(options, DistillD3)
    parametrization = options.parametrization.resolved(
        dataset,
        kind="gaussian" if is_d3 else "pixels",
        least=options.subsets if isinstance(options, DistillSeqMatch) else 1,
    )
    read = _last_epoch(options)
    if options.expert.epochs < read:
        raise InputError(
            f"distillation reads expert epochs up to {read} (max_start_epoch - 1 + expert_epochs"
            f"{', mmd_epoch' if is_d3 else ''}) but experts are trained for "
            f"{options.expert.epochs}; raise --expert.epochs to {read}"
        )
    if options.expert.keep != "all":
        raise InputError("experts are read epoch by epoch: leave out --expert.keep last")
    _check_run(options, options.baseline_learning_rates)
    student = options.student
    if student.augmentation is None:
        student = replace(student, augmentation=default_strategy(dataset.name))
    if parametrization.labels == "expert" and parametrization.kind == "gaussian":
        student = replace(student, with_means=True)
    filled = replace(
        options,
        parametrization=parametrization,
        architecture=architecture(options.architecture, dataset),
        expert=expert(options.expert, dataset, _subtasks(options, dataset)),
        student=student,
        experts=options.experts or options.out / "experts",
    )
    return _method(filled, dataset)


def _subtasks(options: Matching, dataset: data.Dataset) -> Sequence[Sequence[int]]:
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
    parts = subtasks.split(options.subtasks, dataset.num_classes)
    number = len(parts)
    if options.subtask is not None and not 0 <= options.subtask < number:
        raise InputError(f"subtask must be from 0 to {number - 1}, not {options.subtask}")
    if options.subtask is not None and options.parametrization.labels == "expert":
        raise InputError(
            "an expert of all classes labels what is joined: leave --labels expert out of a single "
            "subtask, and give it to `d3jax join`"
        )
    return parts


def _last_epoch(options: Matching) -> int:
    """The last expert epoch that distillation reads."""
    if isinstance(options, DistillD3):
        own = options.d3
        needed = own.max_start_epoch - 1 + own.expert_epochs if own.trajectory else 1
        return max(own.mmd_epoch or 0, needed)
    assert isinstance(options, DistillMTT | DistillSeqMatch)
    return options.mtt.max_start_epoch - 1 + options.mtt.expert_epochs


def _method(options: M, dataset: data.Dataset) -> M:
    """The method's own defaults that depend on the data filled in."""
    replace = dataclasses.replace
    parametrization, classes = options.parametrization, dataset.num_classes
    each = {
        "gaussian": parametrization.latents_per_class,
        "pixels": parametrization.images_per_class,
        "spectral": (parametrization.spectra_per_class or 0)
        * (parametrization.transformations or 0),
    }
    items = classes * (each[parametrization.kind or "pixels"] or 0)

    def batch(size: int | None) -> int:
        return items if size is None else min(size, items)

    if isinstance(options, DistillD3):
        own = options.d3
        epoch = options.expert.epochs if own.mmd_epoch is None else own.mmd_epoch
        own = replace(own, mmd_epoch=epoch, inner_batch_size=batch(own.inner_batch_size))
        return replace(options, d3=own)
    assert isinstance(options, DistillMTT | DistillSeqMatch)
    own = options.mtt
    turn = options.outer_steps
    if isinstance(options, DistillSeqMatch):
        turn //= options.subsets
    inner = own.inner_augmentation
    own = replace(
        own,
        growth_steps=mtt.growth_steps(own, turn),
        inner_batch_size=batch(own.inner_batch_size),
        inner_augmentation=default_strategy(dataset.name) if inner is None else inner,
    )
    return replace(options, mtt=own)


def seqmatch(options: DistillSeqMatch, dataset: data.Dataset) -> DistillSeqMatch:
    """The options of SeqMatch, every default that depends on the data filled in.

    Raises:
      InputError: options that do not fit together.
    """
    if not 1 <= options.subsets <= options.outer_steps:
        raise InputError(
            f"subsets must be from 1 to the {options.outer_steps} outer steps, "
            f"not {options.subsets}"
        )
    if options.student.epochs < options.subsets:
        raise InputError(
            f"{options.student.epochs} epochs of students are too few for {options.subsets} subsets"
        )
    later, read = options.later_expert_epochs, _last_epoch(options)
    if later is not None and later < read:
        raise InputError(
            f"distillation reads expert epochs up to {read}, but those of later subsets are "
            f"trained for {later}; raise --later-expert-epochs to {read}"
        )
    return matching(options, dataset)


def dd(options: DistillDD, dataset: data.Dataset) -> DistillDD:
    """The options of Dataset Distillation with every default filled in."""
    replace = dataclasses.replace
    _check_run(options, options.baseline_learning_rates)
    if options.unseen < 1:
        raise InputError(f"unseen must be at least 1, not {options.unseen}")
    if options.adapt_from is not None and options.attack is not None:
        raise InputError("adapt_from and attack both say which networks to take; choose one")
    pretrained = options.adapt_from is not None or options.attack is not None
    if pretrained and options.source.count <= options.unseen:
        raise InputError(
            f"of {options.source.count} pretrained networks {options.unseen} are kept to judge by; "
            f"raise --source.count above that"
        )
    if options.distilled.images is not None and options.distilled.images < 1:
        raise InputError(f"images must be at least 1, not {options.distilled.images}")
    if pretrained and options.data.zca:
        raise InputError(
            "--zca whitens images, which the networks of --adapt-from and --attack are not trained "
            "on; leave it out"
        )
    total = options.distilled.images
    if total is None:
        total = options.distilled.images_per_step * options.dd.steps * dataset.num_classes
    parametrization, soft = options.parametrization, options.distilled.soft_labels
    if soft:
        if parametrization.labels == "expert":
            raise InputError("give --soft-labels, which are learned, or --labels expert, not both")
        parametrization = replace(parametrization, labels="learned")
    if total % dataset.num_classes and parametrization.labels != "learned":
        raise InputError(
            f"{total} images are not as many for each of {dataset.num_classes} classes: give "
            f"--soft-labels, or a multiple"
        )
    parametrization = parametrization.resolved(dataset, items=total)
    if parametrization.labels == "expert" and (pretrained or parametrization.start != "real"):
        raise InputError(
            "an expert labels real images that distillation starts from: --labels expert needs "
            "--parametrization pixels or spectral, --start real, and no --adapt-from or --attack"
        )
    fixed = options.dd.init == "fixed" and not pretrained
    if options.store_weights and not fixed:
        raise InputError("store_weights is for a fixed initialization: add --init fixed")
    count = 1 if fixed else options.dd.networks
    batch, window = options.dd.real_batch, options.dd.window
    return replace(
        options,
        architecture=architecture(
            replace(
                options.architecture,
                initialization=options.architecture.initialization or "xavier_normal",
            ),
            dataset,
            network=paper_network(dataset.image_shape),
        ),
        parametrization=parametrization,
        distilled=replace(
            options.distilled, images=total, soft_labels=parametrization.labels == "learned"
        ),
        dd=replace(
            options.dd,
            networks=count,
            real_batch=max(1, 1024 // max(1, count)) if batch is None else batch,
            window=options.dd.steps * options.dd.passes if window is None else window,
        ),
        unseen=1 if fixed else options.unseen,
        experts=options.experts or options.out / "experts",
    )


def attack(text: str | None, num_classes: int) -> tuple[int, int] | None:
    """The two classes of CLASS:CLASS.

    Raises:
      InputError: it is not that.
    """
    if text is None:
        return None
    parts = text.split(":")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise InputError(f"attack is two classes, such as 0:1, not {text!r}")
    first, second = (int(part) for part in parts)
    if first == second or max(first, second) >= num_classes:
        raise InputError(
            f"an attack needs two different classes from 0 to {num_classes - 1}, not {text}"
        )
    return first, second


def _check_run(options: Run, baseline_learning_rates: tuple[float, ...]) -> None:
    if options.label_storage == "int8" and options.parametrization.labels != "expert":
        raise InputError("--label-storage int8 is for labels that are given: add --labels expert")
    if options.outer_steps < 1 or options.chunk < 1:
        raise InputError("outer_steps and chunk must be at least 1")
    if not baseline_learning_rates:
        raise InputError("baselines need a learning rate: give --baseline-learning-rates 0.01")
    if not all(0 < rate < math.inf for rate in baseline_learning_rates):
        raise InputError(
            f"baseline learning rates must be positive, they are {baseline_learning_rates}"
        )

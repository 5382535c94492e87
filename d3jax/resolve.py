"""Configurations with every default filled in, and the folder that holds one."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import yaml

from d3jax import config, data, experts, files, networks
from d3jax.augment import default_strategy
from d3jax.config import Architecture, DistillD3, DistillDD, ExpertOptions, Run
from d3jax.experts import fingerprint
from d3jax.types import InputError

# What may differ between the runs of one folder: it does not change a number.
_FREE = ("out", "experts", "chunk", "checkpoint_minutes", "tensorboard", "data_dir")


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


def expert(options: ExpertOptions, dataset: data.Dataset) -> ExpertOptions:
    """The experts' options with every default that depends on the data filled in."""
    steps = experts.data_defaults(options, len(dataset.train_labels))
    return dataclasses.replace(
        options,
        **steps._asdict(),
        augmentation=default_strategy(dataset.name)
        if options.augmentation is None
        else options.augmentation,
    )


def d3(options: DistillD3, dataset: data.Dataset, specification: dict[str, Any]) -> DistillD3:
    """The options with every default that depends on the data filled in."""
    replace = dataclasses.replace
    parametrization = replace(
        options.parametrization,
        latents_per_class=specification["latents_per_class"],
        latent_size=specification["latent_size"],
        decoder_width=specification["width"],
    )
    needed = options.d3.max_start_epoch - 1 + options.d3.expert_epochs
    read = max(options.d3.mmd_epoch or 0, needed if options.d3.trajectory else 1)
    if options.expert.epochs < read:
        raise InputError(
            f"distillation reads expert epochs up to {read} (max_start_epoch - 1 + expert_epochs, "
            f"mmd_epoch) but experts are trained for {options.expert.epochs}; raise "
            f"--expert.epochs to {read}"
        )
    _check_run(options, options.baseline_learning_rates)
    student = options.student
    if student.augmentation is None:
        student = replace(student, augmentation=default_strategy(dataset.name))
    if options.parametrization.labels == "expert":
        student = replace(student, with_means=True)
    items = specification["latents_per_class"] * dataset.num_classes
    batch = options.d3.inner_batch_size
    method = replace(
        options.d3,
        mmd_epoch=options.expert.epochs if options.d3.mmd_epoch is None else options.d3.mmd_epoch,
        inner_batch_size=items if batch is None else min(batch, items),
    )
    return replace(
        options,
        parametrization=parametrization,
        d3=method,
        architecture=architecture(options.architecture, dataset),
        expert=expert(options.expert, dataset),
        student=student,
        experts=options.experts or options.out / "experts",
    )


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
    total = options.distilled.images
    if total is None:
        total = options.distilled.images_per_step * options.dd.steps * dataset.num_classes
    elif total % dataset.num_classes and not options.distilled.soft_labels:
        raise InputError(
            f"{total} images are not as many for each of {dataset.num_classes} classes: give "
            f"--soft-labels, or a multiple"
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
        distilled=replace(options.distilled, images=total),
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
    if options.outer_steps < 1 or options.chunk < 1:
        raise InputError("outer_steps and chunk must be at least 1")
    if not baseline_learning_rates:
        raise InputError("baselines need a learning rate: give --baseline-learning-rates 0.01")
    if not all(0 < rate < math.inf for rate in baseline_learning_rates):
        raise InputError(
            f"baseline learning rates must be positive, they are {baseline_learning_rates}"
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        elif name not in _FREE:
            flat[prefix + name] = value
    return flat


def claim(out: Path, method: str, options: Run, dataset: data.Dataset) -> None:
    """Writes config.yaml, or refuses a folder that holds another configuration's run."""
    values = {
        "method": method,
        **config.plain(options),
        "images": fingerprint(dataset.train_images, dataset.train_labels),
    }
    path = out / "config.yaml"
    if path.exists():
        try:
            there = yaml.safe_load(path.read_text())
        except yaml.YAMLError:
            there = None
        if not isinstance(there, dict):
            raise InputError(f"{path} is not a configuration; choose another --out")
        ours, theirs = _flat(values), _flat(there)
        for name in sorted(set(ours) | set(theirs)):
            if ours.get(name) != theirs.get(name):
                raise InputError(
                    f"{out} holds a run with {name} = {theirs.get(name)}, this one has "
                    f"{ours.get(name)}; choose another --out or the same options"
                )
        return
    out.mkdir(parents=True, exist_ok=True)
    files.write_text(path, yaml.safe_dump(values, sort_keys=False))

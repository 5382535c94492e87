"""How experts are trained, and all that they depend on."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import optax
from jax import Array

from d3jax.data.augment import STRATEGIES, Transformation
from d3jax.types import InputError

STORE_VERSION = 2  # of the draws and the layout: raised where either changes


@dataclasses.dataclass(frozen=True)
class Options:
    """How experts are trained: plain SGD, as in the trajectory-matching literature; or, with the
    options that are off by default, as a good classifier is, a teacher (see `TEACHER`)."""

    count: int = 4
    """How many experts."""
    epochs: int = 10
    """Epochs, one snapshot each; what distillation does not read is wasted training."""
    learning_rate: float | None = None
    """Learning rate of SGD; default 0.01, for d3 0.1; 0.02 below 5000 images."""
    batch_size: int | None = None
    """Images per step, an incomplete last batch left out; default 256, 32 below 5000 images."""
    augmentation: tuple[Transformation, ...] | None = None
    """Differentiable augmentation, one of these per step; default all (crop and flip where all are
    applied), but no flip where the data set or its classes are named as digits or letters."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """How snapshots are stored."""
    keep: Literal["all", "last"] = "all"
    """Every epoch's snapshot, or the last one only."""
    at_once: int = 4
    """Experts trained together under vmap; they share each step's kind of augmentation."""
    momentum: float = 0.0
    """Momentum of SGD."""
    weight_decay: float = 0.0
    """Weight decay, added to the gradient."""
    schedule: Literal["constant", "cosine"] = "constant"
    """The learning rate from epoch to epoch: cosine falls to zero after the last one."""
    warmup_epochs: int = 0
    """Cosine: epochs in which the learning rate first rises, from a hundredth."""
    all_augmentations: bool = False
    """Each step applies all of --augmentation, one after another, not one of them."""


# The defaults of what was added after experts were stored: they leave no trace in a configuration.
_PLAIN = {
    "momentum": 0.0,
    "weight_decay": 0.0,
    "schedule": "constant",
    "warmup_epochs": 0,
    "all_augmentations": False,
}

TEACHER = Options(
    count=1,
    epochs=30,
    learning_rate=0.1,
    batch_size=128,
    keep="last",
    momentum=0.9,
    weight_decay=5e-4,
    schedule="cosine",
    all_augmentations=True,
)
"""A teacher of small images as SRe2L and DWA train theirs, for 30 epochs where they take 200."""


class Descent(NamedTuple):
    """How a step goes on from the gradient; the default is plain SGD."""

    momentum: float = 0.0
    weight_decay: float = 0.0
    # (the epoch's number i32[], from 0) -> factor f[] on the learning rate
    factor: Callable[[Array], Any] | None = None
    all_augmentations: bool = False


def descent(options: Options) -> Descent:
    """The part of the options that says how a step goes on from the gradient."""
    factor: Callable[[Array], Any] | None = None
    if options.schedule == "cosine":
        rise, epochs = options.warmup_epochs, options.epochs
        factor = (
            optax.warmup_cosine_decay_schedule(0.01, 1.0, rise, epochs)
            if rise
            else optax.cosine_decay_schedule(1.0, epochs)
        )
    return Descent(options.momentum, options.weight_decay, factor, options.all_augmentations)


class _Steps(NamedTuple):
    batch_size: int
    learning_rate: float


def kinds(
    options: Options, allowed: tuple[Transformation, ...] = STRATEGIES
) -> tuple[Transformation, ...]:
    """The kinds of augmentation that the options mean, where none are given of those `allowed`."""
    if options.augmentation is not None:
        return options.augmentation
    every = not options.all_augmentations
    return tuple(kind for kind in allowed if every or kind in ("crop", "flip"))


def data_defaults(options: Options, images: int, usual_rate: float = 0.01) -> _Steps:
    """Batch size and learning rate for so many images: few make an epoch of only a few steps.

    usual_rate: where they are not few.
    """
    usual = _Steps(256, usual_rate) if images >= 5000 else _Steps(32, 0.02)
    size, rate = options.batch_size, options.learning_rate
    return _Steps(
        usual.batch_size if size is None else size, usual.learning_rate if rate is None else rate
    )


def configuration(
    options: Options, network: dict[str, Any], data: dict[str, Any], seed: int
) -> dict[str, Any]:
    """All that the experts depend on, as a JSON object; its hash names their folder in the store.

    `network` are the fields of its configuration, `data` must identify the images themselves: see
    `fingerprint`.
    """
    training = dataclasses.asdict(options)
    del training["at_once"]
    training = {n: v for n, v in training.items() if n not in _PLAIN or v != _PLAIN[n]}
    training["augmentation"] = list(kinds(options))
    return {
        "version": STORE_VERSION,
        "training": training,
        # The kind of augmentation is shared by the experts trained together.
        "shared_augmentation": min(options.at_once, options.count),
        # Float32 says nothing, as before there was a choice.
        "network": {n: v for n, v in network.items() if (n, v) != ("compute", None)},
        "data": data,
        "seed": seed,
    }


def check(options: Options) -> None:
    """Raises InputError where an option is out of range."""
    for name in ("count", "epochs", "batch_size", "at_once"):
        value = getattr(options, name)
        if value is not None and (type(value) is not int or value < 1):
            raise InputError(f"experts' {name} must be a number from 1 on, not {value!r}")
    if options.dtype not in ("float32", "bfloat16"):
        raise InputError(f"experts' dtype must be float32 or bfloat16, not {options.dtype!r}")
    rate = options.learning_rate
    if rate is not None and not (type(rate) in (int, float) and 0 < rate < math.inf):
        raise InputError(f"experts' learning_rate must be positive, not {rate!r}")
    for name, end in (("momentum", 1), ("weight_decay", math.inf)):
        value = getattr(options, name)
        if type(value) not in (int, float) or not 0 <= value < end:
            raise InputError(f"experts' {name} must be from 0 to below {end}, not {value!r}")
    if options.schedule not in ("constant", "cosine"):
        raise InputError(f"experts' schedule must be constant or cosine, not {options.schedule!r}")
    rise = options.warmup_epochs
    if type(rise) is not int or not 0 <= rise < options.epochs:
        raise InputError(
            f"experts' warmup_epochs must be from 0 to below their {options.epochs} epochs, "
            f"not {rise!r}"
        )
    if rise and options.schedule != "cosine":
        raise InputError("experts' warmup_epochs are those of the cosine schedule: give both")

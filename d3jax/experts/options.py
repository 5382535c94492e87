"""How experts are trained, and all that they depend on."""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

from d3jax.data.augment import STRATEGIES, Transformation
from d3jax.types import InputError

STORE_VERSION = 2  # of the draws and the layout: raised where either changes


@dataclasses.dataclass(frozen=True)
class Options:
    """How experts are trained: plain SGD, as in the trajectory-matching literature."""

    count: int = 4
    """How many experts."""
    epochs: int = 10
    """Epochs, one snapshot each; what distillation does not read is wasted training."""
    learning_rate: float | None = None
    """Learning rate of SGD without momentum; default 0.01, for d3 0.1; 0.02 below 5000 images."""
    batch_size: int | None = None
    """Images per step, an incomplete last batch left out; default 256, 32 below 5000 images."""
    augmentation: tuple[Transformation, ...] | None = None
    """Differentiable augmentation, one of these per step; default all, but no flip where the data
    set or its classes are named as digits or letters."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """How snapshots are stored."""
    keep: Literal["all", "last"] = "all"
    """Every epoch's snapshot, or the last one only."""
    at_once: int = 4
    """Experts trained together under vmap; they share each step's kind of augmentation."""


class _Steps(NamedTuple):
    batch_size: int
    learning_rate: float


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
    strategy = STRATEGIES if options.augmentation is None else options.augmentation
    training["augmentation"] = list(strategy)
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

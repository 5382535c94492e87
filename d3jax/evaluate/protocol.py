"""How students are trained."""

import dataclasses
import math

from d3jax.data.augment import STRATEGIES, Transformation
from d3jax.types import InputError


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a student is trained; the field's, with the last epoch's accuracy instead of the best."""

    students: int = 5
    """How many fresh students, trained together."""
    epochs: int = 300
    """Epochs; each visits every distilled item once, freshly sampled."""
    batch_size: int = 256
    """Items per step."""
    learning_rate: float | None = None
    """Learning rate of SGD; default the one that the distilled data brings."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """Weight decay of SGD, added to the gradient."""
    decay: float = 0.1
    """The learning rate is multiplied by this at half time."""
    augmentation: tuple[Transformation, ...] | None = None
    """Differentiable augmentation, one of these per step; default all, but no flip where the data
    set or its classes are named as digits or letters."""
    with_means: bool = False
    """Visit the deterministic decodes in each epoch too (the paper's protocol for soft labels)."""


def check(protocol: Protocol) -> None:
    """Looks at every value, types too: a protocol may come from a file.

    Raises:
      InputError: a protocol that cannot be followed.
    """
    for name in ("students", "epochs", "batch_size"):
        value = getattr(protocol, name)
        if type(value) is not int or not 0 < value < 1 << 31:
            raise InputError(f"the protocol's {name} must be a positive number, not {value!r}")
    for name in ("momentum", "weight_decay", "decay", "learning_rate"):
        value = getattr(protocol, name)
        if name == "learning_rate" and value is None:
            continue
        if type(value) not in (int, float) or not 0 <= value < math.inf:
            raise InputError(f"the protocol's {name} must not be negative, it is {value!r}")
    if protocol.learning_rate == 0:
        raise InputError("the protocol's learning_rate must be positive, not 0")
    kinds = STRATEGIES if protocol.augmentation is None else protocol.augmentation
    if not isinstance(kinds, tuple) or not all(kind in STRATEGIES for kind in kinds):
        raise InputError(
            f"the protocol's augmentation must be some of {', '.join(STRATEGIES)}, "
            f"not {protocol.augmentation!r}"
        )
    if type(protocol.with_means) is not bool:
        raise InputError(f"the protocol's with_means is {protocol.with_means!r}, not true or false")

"""How students are trained."""

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp
import optax
from jax import Array

from d3jax.data.augment import STRATEGIES, Transformation
from d3jax.data.views import Views
from d3jax.types import InputError


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a student is trained; the field's, with the last epoch's accuracy instead of the best."""

    students: int = 5
    """How many fresh students, trained together."""
    epochs: int = 300
    """Epochs; each visits every distilled item once, freshly sampled."""
    steps: int | None = None
    """So many steps instead of --student.epochs, however many items there are: as many whole epochs
    as are nearest."""
    batch_size: int = 256
    """Items per step."""
    learning_rate: float | None = None
    """Learning rate; default the one that the distilled data brings."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD, or AdamW (0.9, 0.999), as SRe2L, DWA and RDED have it for CIFAR and ImageNet."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """Weight decay: of SGD added to the gradient, of AdamW decoupled (the papers: 0.01)."""
    schedule: Literal["step", "cosine", "half_cosine"] = "step"
    """The learning rate from epoch to epoch: multiplied by --student.decay at half time; a cosine
    to zero (SRe2L, DWA); or one twice as long, which ends at a half (RDED)."""
    decay: float = 0.1
    """The learning rate is multiplied by this at half time."""
    augmentation: tuple[Transformation, ...] | None = None
    """Differentiable augmentation, one of these per step; default all, but no flip where the data
    set or its classes are named as digits or letters."""
    with_means: bool = False
    """Visit the deterministic decodes in each epoch too (the paper's protocol for soft labels)."""
    views: Literal["none", "whole", "padded", "resized"] = "none"
    """Instead of that augmentation, the views that a teacher labels: whole images, crops after
    padding (SRe2L and DWA on CIFAR), or random parts resized (Tiny-ImageNet, ImageNet); mirrored
    one time in two, where flip is among --student.augmentation. All students see the same."""
    mix: Literal["none", "mixup", "cutmix"] = "none"
    """Views: mixed with others of the batch, by a share of Beta(0.8, 0.8) (mixup, as on CIFAR) or
    Beta(1, 1) (cutmix, as on ImageNet)."""
    temperature: float = 1.0
    """Temperature of an expert's labels and of the student that learns them; SGD's loss is
    multiplied by its square (SRe2L, DWA: 30 on CIFAR-100; RDED, ImageNet: 20)."""

    def epochs_of(self, visits: int) -> int:
        """The epochs where each has so many visits."""
        if self.steps is None:
            return self.epochs
        return max(1, round(self.steps / -(-visits // min(self.batch_size, visits))))

    def factor(self, epoch: Array, epochs: int, dtype: jnp.dtype) -> Array:
        """What the learning rate is multiplied by in epoch i32[], counted from 0: f[]."""
        if self.schedule == "step":
            late = 2 * epoch >= epochs + epochs % 2
            return jnp.where(late, self.decay, 1.0).astype(dtype)
        whole = epochs if self.schedule == "cosine" else 2 * epochs
        return jnp.asarray(optax.cosine_decay_schedule(1.0, whole)(epoch.astype(dtype)), dtype)

    def descent(self) -> optax.GradientTransformation:
        """From gradients to what, times the learning rate, is subtracted from the parameters."""
        decay = optax.add_decayed_weights(self.weight_decay)
        if self.optimizer == "adamw":
            return optax.chain(optax.scale_by_adam(), decay)
        return optax.chain(decay, optax.trace(self.momentum))

    def seen(self) -> Views | None:
        """What students see of a batch, where they see views."""
        if self.views == "none":
            return None
        flip = self.augmentation is None or "flip" in self.augmentation
        concentration = 0.8 if self.mix == "mixup" else 1.0
        crop = "none" if self.views == "whole" else self.views
        return Views(crop, flip=flip, mix=self.mix, concentration=concentration)

    @property
    def scale(self) -> float:
        """The factor on a loss at that temperature: SGD needs it, AdamW does not see it."""
        return self.temperature**2 if self.optimizer == "sgd" else 1.0


def check(protocol: Protocol) -> None:
    """Looks at every value, types too: a protocol may come from a file.

    Raises:
      InputError: a protocol that cannot be followed.
    """
    for name in ("students", "epochs", "batch_size", "steps"):
        value = getattr(protocol, name)
        if name == "steps" and value is None:
            continue
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
    for name, known in (
        ("optimizer", ("sgd", "adamw")),
        ("schedule", ("step", "cosine", "half_cosine")),
        ("views", ("none", "whole", "padded", "resized")),
        ("mix", ("none", "mixup", "cutmix")),
    ):
        if (value := getattr(protocol, name)) not in known:
            raise InputError(
                f"the protocol's {name} must be one of {', '.join(known)}, not {value!r}"
            )
    if protocol.mix != "none" and protocol.views == "none":
        raise InputError("views are mixed: give --student.views beside --student.mix")
    warmth = protocol.temperature
    if type(warmth) not in (int, float) or not 0 < warmth < math.inf:
        raise InputError(f"the protocol's temperature must be positive, not {warmth!r}")
    if type(protocol.with_means) is not bool:
        raise InputError(f"the protocol's with_means is {protocol.with_means!r}, not true or false")

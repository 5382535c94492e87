"""The steps that Dataset Distillation learned, as an artifact's header keeps them."""

import dataclasses
from typing import Any, Literal

from d3jax.distill import objectives
from d3jax.types import InputError


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The S x P steps, and the networks that they are for."""

    steps: int  # S
    passes: int  # P
    learning_rates: tuple[float, ...]  # of each of the S * P steps
    initialization: objectives.Initialization
    optimizer: Literal["sgd", "adam"] = "sgd"
    attack: tuple[int, int] | None = None  # class a is to be taken for class b

    def at(self, rate: float) -> "Recipe":
        """The same steps, all at one learning rate."""
        return dataclasses.replace(self, learning_rates=(rate,) * len(self.learning_rates))

    def dealt(self, num_items: int, num_classes: int) -> "Recipe":
        """As many steps on `num_items` items: on all at once, where they cannot be dealt out to
        steps that have an item for each class."""
        if num_items % self.steps == 0 and num_items // self.steps >= num_classes:
            return self
        return dataclasses.replace(self, steps=1, passes=self.steps * self.passes)


def recipe_of(header: dict[str, Any]) -> Recipe:
    """The recipe in an artifact's header.

    Raises:
      InputError: it is not one.
    """
    stored = {f.name: header.get(f.name) for f in dataclasses.fields(Recipe)}
    steps, passes, rates, attack = (
        stored[name] for name in ("steps", "passes", "learning_rates", "attack")
    )
    good = (
        all(type(n) is int and 0 < n < 1 << 20 for n in (steps, passes))
        and isinstance(rates, list)
        and len(rates) == header["steps"] * header["passes"]
        and all(type(rate) is float and 0 < rate < 1e9 for rate in rates)
        and stored["initialization"] in ("fixed", "random", "pretrained")
        and stored["optimizer"] in ("sgd", "adam")
        and (
            attack is None
            or (isinstance(attack, list) and [type(label) for label in attack] == [int, int])
        )
    )
    weights, kind = header.get("weights"), stored["initialization"]
    if kind == "fixed" and header.get("stored_weights") is not True:
        good = (
            good
            and isinstance(weights, dict)
            and type(weights.get("seed")) is int
            and all(type(value) in (int, float) for value in weights.values())
        )
    if kind == "pretrained":
        good = good and isinstance(header.get("source"), dict)
        good = good and type(header.get("unseen")) is int and header["unseen"] > 0
    if not good:
        raise InputError("the artifact's recipe of steps cannot be replayed")
    return Recipe(
        header["steps"],
        header["passes"],
        tuple(header["learning_rates"]),
        header["initialization"],
        header["optimizer"],
        None if attack is None else (attack[0], attack[1]),
    )

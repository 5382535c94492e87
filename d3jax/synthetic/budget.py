"""How large a parametrization may be under a budget of stored numbers, or of bytes."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from d3jax import synthetic
from d3jax.synthetic import rounding
from d3jax.types import InputError, PyTree

DECODER_SHARE = 0.75  # of a Gaussian parametrization's budget
FEWEST_LATENTS = 5  # of a class: for fewer, or a narrower decoder, latents become shorter first
NARROWEST_DECODER = 16
_BYTES = {"float16": 2, "float32": 4}


def stored_size(
    specification: dict[str, Any], storage: str, beside: PyTree = None, other_classes: int = 0
) -> tuple[int, int]:
    """How many numbers a frozen theta of this specification holds, and the bytes of its arrays.

    storage: as the artifact stores them: float16, float32 or int8 (a parametrization that rounds in
      training is stored as it rounds). Labels that are given are counted as the rest.
    beside: shapes of more groups of theta, such as a teacher.
    other_classes: classes that are not in the specification, but in the labels, since an expert of
      all classes will give them.
    """
    theta = {**_shapes(specification), **(beside or {})}
    if other_classes:
        items, classes = theta["labels"].shape
        theta["labels"] = jax.ShapeDtypeStruct((items, classes + other_classes), jnp.float32)
    kind = specification.get("rounding", "none")
    kind = storage if kind == "none" else kind
    if kind != "int8":
        numbers = sum(x.size for x in jax.tree.leaves(theta))
        return numbers, numbers * _BYTES[kind]
    arrays = jax.tree.leaves(jax.eval_shape(rounding.in_int8, theta))
    held = sum(x.size * (1 if x.dtype == jnp.int8 else _BYTES["float16"]) for x in arrays)
    return sum(x.size for x in arrays), held


def _shapes(specification: dict[str, Any]) -> PyTree:
    """Shapes of a frozen theta; its start makes no difference to them."""
    start = {"start": "noise"} if "start" in specification else {}
    plain = {n: v for n, v in specification.items() if n != "start_steps"}
    made = synthetic.create({**plain, **start})
    nothing: Any = None
    return jax.eval_shape(lambda key: made.freeze(made.init(key, nothing), key), jax.random.key(0))


def items(taken: Callable[[int], int], limit: int) -> int:
    """The most items of a class whose size `taken(items)`, which grows evenly, is within a budget.

    Raises:
      InputError: not even one fits.
    """
    one, two = taken(1), taken(2)
    if one > limit:
        raise InputError(_too_small(limit, one))
    return 1 + (limit - one) // (two - one)


def gaussians(
    taken: Callable[[int, int, int], int],
    limit: int,
    *,
    latents: int | None = None,
    latent_sizes: Sequence[int] = (64, 32, 16, 8),
    width: int | None = None,
    multiple: int = 8,
) -> tuple[int, int, int]:
    """Latents per class, their length and the decoder's width within a budget.

    The decoder takes three quarters, as near as its width allows, and latents what is left. Of the
    latents' lengths it is the first that leaves room for `FEWEST_LATENTS` and for a decoder of
    `NARROWEST_DECODER`; where none does, that with the widest decoder, if there is one with enough
    latents.

    Args:
      taken: (latents per class, latent size, width) -> size, in the budget's unit.
      limit: the budget.
      latents: how many there are, where that is given.
      latent_sizes: to be tried.
      width: of the decoder, where that is given.
      multiple: what a width must be a multiple of.

    Raises:
      InputError: not even the smallest fits.
    """
    found, least = [], 0
    for size in latent_sizes:
        each = taken(2, size, width or multiple) - taken(1, size, width or multiple)
        room = DECODER_SHARE * limit + each if latents is None else limit - (latents - 1) * each
        wide = width
        if wide is None:  # the narrowest, where that takes more than its share
            most = _most(partial(_of_width, taken, size, multiple), min(room, limit))
            wide = multiple * max(1, most)
        least = taken(latents or 1, size, wide)
        if least > limit:
            continue
        number = latents or 1 + (limit - least) // each
        found.append((number, size, wide))
        if (latents or number >= FEWEST_LATENTS) and (width or wide >= NARROWEST_DECODER):
            return found[-1]
    if not found:
        raise InputError(_too_small(limit, least))
    return max(found, key=lambda s: (s[2], s[0] >= FEWEST_LATENTS, s[1]))


def _of_width(taken: Callable[[int, int, int], int], size: int, multiple: int, number: int) -> int:
    return taken(1, size, multiple * number)


def _most(taken: Callable[[int], int], room: float) -> int:
    """The largest number, from 0 on, that takes no more than there is room for."""
    high = 1
    while taken(high) <= room:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if taken(middle) <= room else (low, middle)
    return low


def _too_small(limit: int, least: int) -> str:
    return (
        f"a budget of {limit:,} is too small: this parametrization, labels or a teacher included, "
        f"takes {least:,} at least"
    )

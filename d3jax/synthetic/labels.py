"""Targets of synthetic items: implied by their class, or stored in the group `labels` of theta."""

import jax
import jax.numpy as jnp
from jax import Array

from d3jax.types import InputError, PyTree

KINDS = ("hard", "probabilities", "logits")


def check_kind(kind: str) -> str:
    """`kind`, if it is one of `KINDS`.

    Raises:
      InputError: it is not.
    """
    if kind not in KINDS:
        raise InputError(f"unknown label kind {kind!r}; known: {', '.join(KINDS)}")
    return kind


def item_classes(num_items: int, num_classes: int, index: Array | None = None) -> Array:
    """The classes i32[B] of the items `index` (default all): items are sorted by class, equally."""
    index = jnp.arange(num_items, dtype=jnp.int32) if index is None else index
    return index * num_classes // num_items


def targets(
    theta: dict[str, PyTree], kind: str, classes: Array, index: Array | None, num_classes: int
) -> Array:
    """What a student learns for items `index`: f[B, K], rows of probabilities.

    Args:
      theta: holds `labels` f[N, K] unless `kind` is hard.
      kind: `hard` (one-hot of the class, nothing stored), `probabilities`, or `logits`.
      classes: i32[B], the items' classes.
      index: i32[B], which items; None for all.
      num_classes: K.
    """
    if kind == "hard":
        return jax.nn.one_hot(classes, num_classes, dtype=jnp.float32)
    stored = theta["labels"] if index is None else theta["labels"][index]
    return stored if kind == "probabilities" else jax.nn.softmax(stored)

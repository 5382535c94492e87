"""Subsets of distilled data: which items each has, and data of which only some are sampled."""

import jax.numpy as jnp
import numpy as np
from jax import Array

from d3jax.types import Batch, InputError, PyTree, Synthetic


def split(synthetic: Synthetic, subsets: int) -> list[np.ndarray]:
    """The items i32[n] of each subset: every class's, in order, cut as evenly as can be.

    Raises:
      InputError: not so many rows of data in each class.
    """
    shared = synthetic.items_per_row
    rows = synthetic.num_items // shared
    each, rest = divmod(rows, synthetic.num_classes)
    if not 0 < subsets <= each or rest:
        raise InputError(
            f"{rows} stored items of {synthetic.num_classes} classes cannot be split into "
            f"{subsets} subsets; give each class at least {max(subsets, 1)}, all as many"
        )
    by_class = np.arange(synthetic.num_items, dtype=np.int32).reshape(-1, each, shared)
    return [by_class[:, part].reshape(-1) for part in np.array_split(np.arange(each), subsets)]


def restricted(synthetic: Synthetic, items: np.ndarray) -> Synthetic:
    """The same data, of which only `items` i32[n] are sampled: sorted, as many of each class."""
    if len(items) == synthetic.num_items:
        return synthetic
    kept = jnp.asarray(items)

    def sample(theta: dict[str, PyTree], key: Array | None, indices: Array | None = None) -> Batch:
        return synthetic.sample(theta, key, kept if indices is None else kept[indices])

    return synthetic._replace(sample=sample, num_items=len(items))


def nested(synthetic: Synthetic, subsets: int) -> list[Synthetic]:
    """Stage k's data: the subsets up to and with the k-th."""
    parts = split(synthetic, subsets)
    return [
        restricted(synthetic, np.sort(np.concatenate(parts[: number + 1])))
        for number in range(subsets)
    ]

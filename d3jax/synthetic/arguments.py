"""What a user may give where a parametrization takes keys and item numbers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from d3jax.keys import as_key
from d3jax.types import Batch, InputError, PyTree, Real, Synthetic


def converting(made: Synthetic) -> Synthetic:
    """The same, but a seed stands for its key, and a list of numbers for an array of them.

    Its functions raise InputError for what is neither, and for items that are not there (of an
    array on the device that is not looked at).
    """

    def init(key: Array | int, real: Real) -> dict[str, PyTree]:
        return made.init(as_key(key), real)

    def sample(theta: dict[str, PyTree], key: Array | int | None, indices: Any = None) -> Batch:
        key = None if key is None else as_key(key)
        return made.sample(theta, key, as_items(indices, made.num_items))

    def freeze(theta: dict[str, PyTree], key: Array | int) -> dict[str, PyTree]:
        return made.freeze(theta, as_key(key))

    return made._replace(init=init, sample=sample, freeze=freeze)


def as_items(indices: Any, num_items: int) -> Array | None:
    """Item numbers i32[B]; None stands for all.

    Raises:
      InputError: they are no numbers of items.
    """
    if indices is None or isinstance(indices, jax.Array):
        return indices
    items = np.asarray(indices)
    if items.ndim != 1 or items.dtype.kind not in "iu":
        raise InputError(f"indices are a list of item numbers, such as [0, 1], not {indices!r}")
    if items.size and not 0 <= items.min() <= items.max() < num_items:
        raise InputError(
            f"items are numbered from 0 to {num_items - 1}; indices go from {items.min()} to "
            f"{items.max()}"
        )
    return jnp.asarray(items, jnp.int32)

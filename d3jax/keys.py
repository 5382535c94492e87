"""What each stage of a run draws follows from the run's seed and the stage's number."""

import enum

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from d3jax.types import InputError

DRAWS = 5  # raised where a run draws otherwise than before, so that its folder is not resumed


class Stage(enum.IntEnum):
    """The stages that draw; a new one takes a free number, so that the others' draws stay."""

    EXPERTS = 0
    DISTILL = 1
    FREEZE = 2
    STUDENTS = 3
    INITIAL = 4  # the fixed initialization of Dataset Distillation
    REPLAY = 6  # samples that networks see in an artifact's own steps
    PARTLY_TRAINED = 7  # networks trained through a sequence's earlier subsets
    TURNS = 8  # a sequence's outer steps after the first subset
    VIEWS = 9  # what students see whose protocol has views
    LABELS = 10  # networks and images that labels are solved in


def check_seed(seed: int) -> None:
    """Raises InputError for a seed of which JAX would use only a part, or that is none."""
    if not 0 <= seed < 1 << 31:
        raise InputError(f"a seed is a number from 0 to {(1 << 31) - 1}, not {seed}")


def as_key(key: Array | int) -> Array:
    """A key: `key` itself, or the key of the seed that it is.

    Raises:
      InputError: it is neither.
    """
    if isinstance(key, int | np.integer) and not isinstance(key, bool):
        check_seed(int(key))
        return jax.random.key(int(key))
    if isinstance(key, jax.Array):
        raw = key.dtype == jnp.uint32 and key.ndim == 1  # as of jax.random.PRNGKey
        if raw or jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            return key
        if key.ndim == 0 and jnp.issubdtype(key.dtype, jnp.integer):  # a seed under jit
            return jax.random.key(key)
    raise InputError(f"a key is jax.random.key(SEED), or a seed such as 0, not {key!r}")


def stage_key(seed: int, stage: Stage, subtask: int | Array | None = None) -> Array:
    """The key of one stage of a run, or of one of its subtasks there.

    Raises:
      InputError: the seed is out of range.
    """
    check_seed(seed)
    key = jax.random.fold_in(jax.random.key(seed), stage)
    return key if subtask is None else jax.random.fold_in(key, subtask)

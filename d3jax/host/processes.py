"""What the processes of one run say to each other; with one process, nothing.

Every process calls these at the same place.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from d3jax.types import InputError, PyTree

T = TypeVar("T")


class Elsewhere(Exception):
    """Another process of the run was given what cannot be used, and says so."""


def several() -> bool:
    """Whether other processes take part."""
    return jax.process_count() > 1


def first() -> bool:
    """Whether this is the process that writes files and talks to the user."""
    return jax.process_index() == 0


def everywhere(tree: PyTree) -> PyTree:
    """Sharded arrays as whole NumPy arrays in every process."""
    if not several():
        return jax.tree.map(np.asarray, tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def gathered(value: Any) -> np.ndarray:
    """What each process gave, of equal shapes: [processes, ...]."""
    if not several():
        return np.asarray(value)[None]
    return np.asarray(multihost_utils.process_allgather(np.asarray(value)))


def agreed(work: Callable[[], T]) -> T:
    """What `work` gives in this process, once it has succeeded in all.

    Raises:
      InputError, OSError: as `work` does, in the first process where it does.
      Elsewhere: it failed in another process.
    """
    result, error = None, None
    try:
        result = work()
    except (InputError, OSError) as raised:
        error = raised
    failed = np.flatnonzero(gathered(error is not None))
    if failed.size:
        if error is not None and jax.process_index() == failed[0]:
            raise error
        raise Elsewhere
    return cast(T, result)


def wait_for(path: Path) -> None:
    """Waits until another process has written a file; should it end before, so does this one."""
    while not path.exists():
        time.sleep(1)


def any_of(*flags: bool) -> tuple[bool, ...]:
    """For each flag, whether any process raised it."""
    return tuple(map(bool, np.any(gathered(np.array(flags)), axis=0).tolist()))

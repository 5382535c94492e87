"""Snapshots of experts on disk, in a folder found by a hash of all that they depend on."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from d3jax.types import InputError

_BLOCK = 4096  # rows hashed at a time


def fingerprint(*arrays: np.ndarray) -> str:
    """A hash of arrays' contents, shapes and dtypes."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape}{array.dtype}".encode())
        array = array.reshape(1) if array.ndim == 0 else array
        for start in range(0, len(array), _BLOCK):  # images may be in a file
            digest.update(np.ascontiguousarray(array[start : start + _BLOCK]).tobytes())
    return digest.hexdigest()[:16]


def store_path(store: Path, config: dict[str, Any]) -> Path:
    """The folder of exactly these experts in a store that several runs may share."""
    text = json.dumps(config, sort_keys=True)
    return store / hashlib.sha256(text.encode()).hexdigest()[:16]


def create(path: Path, dtype: str, shape: tuple[int, int, int]) -> Any:
    """The array [experts, epochs + 1, P] in `path`, to be written; what is there already stays."""
    import tensorstore

    return tensorstore.open(
        _zarr(path),
        create=True,
        open=True,
        dtype=getattr(tensorstore, dtype),
        shape=list(shape),
        chunk_layout=tensorstore.ChunkLayout(chunk_shape=[1, 1, shape[2]]),
    ).result()


class Snapshots:
    """The snapshots of a finished store: one array [experts, epochs + 1, P], read by piece.

    Raises:
      InputError: some of them are not there.
    """

    def __init__(self, path: Path):
        import tensorstore

        self._array = tensorstore.open(_zarr(path), open=True, read=True).result()
        self.shape: tuple[int, ...] = tuple(self._array.shape)
        # A piece that is not there would be read as zeros.
        pieces = [f for f in (path / "snapshots").iterdir() if not f.name.startswith(".")]
        number = self.shape[0] * self.shape[1]
        if len(pieces) < number:
            raise InputError(
                f"{path} holds {len(pieces)} of {number} snapshots, though it was finished; remove "
                f"it, and they are trained again"
            )

    def read(self, expert: int, epoch: int) -> np.ndarray:
        """Parameters f[P] of one expert after one epoch; nothing else is read."""
        return self._array[expert, epoch].read().result()

    def streamed(self) -> "Streamed":
        """The snapshots for `Real.trajectories`, without taking memory on the device."""
        return Streamed({0: self}, np.asarray(0, np.int32))

    def read_all(self, experts: slice = slice(None), epochs: slice = slice(None)) -> np.ndarray:
        """Parameters f[experts, epochs, P]."""
        return self._array[experts, epochs].read().result()


@jax.tree_util.register_pytree_node_class
class Streamed:
    """Snapshots that stay on disk: indexed like an array, but each is read when a step needs it.

    The host reads it (the operating system keeps what it read lately) while the device waits:
    milliseconds for ten million parameters, against gigabytes of device memory for all snapshots.
    """

    def __init__(self, stores: dict[int, Snapshots], which: Array | np.ndarray):
        """`stores` of several subtasks, by their numbers, and the number i32[] of this one."""
        self._stores, self._which = stores, which

    @property
    def shape(self) -> tuple[int, ...]:
        """(E, epochs + 1, P)."""
        return next(iter(self._stores.values())).shape

    def __getitem__(self, index: tuple[Array | int, Array | int]) -> Array:
        """Parameters f32[P] at (expert, epoch), traced or not; a negative epoch is from the end."""
        result = jax.ShapeDtypeStruct(self.shape[2:], jnp.float32)
        return jax.pure_callback(self._read, result, self._which, *index, vmap_method="sequential")

    def _read(self, which: Any, expert: Any, epoch: Any) -> np.ndarray:
        snapshot = self._stores[int(which)].read(int(expert), int(epoch) % self.shape[1])
        return np.asarray(snapshot, np.float32)

    def tree_flatten(self) -> tuple[tuple[Array | np.ndarray], "_Same"]:
        """A number for the device; the stores stay with the host."""
        return (self._which,), _Same(self._stores)

    @classmethod
    def tree_unflatten(cls, stores: "_Same", leaves: tuple[Any]) -> "Streamed":
        """The inverse of `tree_flatten`."""
        return cls(stores.value, leaves[0])


class _Same:
    """A value that equals itself alone, as a compiled function's cache needs it."""

    def __init__(self, value: dict[int, Snapshots]):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def _zarr(path: Path) -> dict[str, Any]:
    return {"driver": "zarr", "kvstore": {"driver": "file", "path": str(path / "snapshots")}}

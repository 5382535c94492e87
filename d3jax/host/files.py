"""Files that are whole or not there at all."""

import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from rich.filesize import decimal

from d3jax.types import InputError

_FULL = {errno.ENOSPC: "No space left on device", errno.EDQUOT: "Disk quota exceeded"}


def check_parent(path: Path) -> None:
    """Raises InputError where the folder that a file is to be written to does not exist."""
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent} to write {path} to")


def check_target(path: Path) -> None:
    """As `check_parent`, of a file: raises InputError where a folder is in its place too."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file in it")
    check_parent(path)


def disk_is_full(error: Exception) -> bool:
    """Whether a disk, or a user's share of it, is full: the same will do with more room."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    return any(text in str(error) for text in _FULL.values())  # of libraries that are not Python


class DiskFull(OSError):
    """A disk has no room for a file; the message says which, and for how many bytes."""

    def __init__(self, path: str | os.PathLike[str], needed: int | None = None) -> None:
        wants = "" if needed is None else f" needs {decimal(needed)}"
        super().__init__(
            errno.ENOSPC,
            f"the disk is full: {os.fspath(path)}{wants or ' cannot be written'}; what was saved "
            f"before is whole, so make room and run the same command again",
        )

    def __str__(self) -> str:
        return str(self.strerror)


@contextmanager
def room_for(path: str | os.PathLike[str], needed: int | None = None) -> Iterator[None]:
    """Raises DiskFull where what writes so many bytes to `path` finds no room for them."""
    try:
        yield
    except Exception as error:
        if isinstance(error, DiskFull) or not disk_is_full(error):
            raise
        raise DiskFull(path, needed) from error


@contextmanager
def whole(path: str | os.PathLike[str], needed: int | None = None) -> Iterator[IO[bytes]]:
    """A stream that becomes the file `path` when the block ends well: a reader sees old or new.

    Raises:
      DiskFull: there is no room, for `needed` bytes if that is known.
    """
    path = Path(path)
    # In the same folder, as a rename across file systems is a copy; with the process in its name,
    # as two may write at once.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with room_for(path, needed), open(temporary, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes `data`, whole or not at all."""
    with whole(path, len(data)) as stream:
        stream.write(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes `text` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Writes `obj` as indented JSON, whole or not at all.

    Arrays become lists, paths strings, and numbers that are not finite null: JSON has none of
    those.
    """
    write_text(path, json.dumps(_jsonable(obj), indent=2, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """What `write_json` wrote.

    Raises:
      InputError: the file is damaged.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except ValueError:
        raise InputError(
            f"{os.fspath(path)} is damaged, it holds no JSON: remove it, and run the same command "
            f"again"
        ) from None


def write_npz(path: Path, arrays: Mapping[str, np.ndarray], *, compress: bool = False) -> None:
    """Writes `arrays`, whole or not at all, in a folder that need not exist; raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as stream:
        save = np.savez_compressed if compress else np.savez
        save(stream, allow_pickle=False, **arrays)


def _jsonable(obj: Any) -> Any:
    if isinstance(obj, Mapping):
        return {str(key): _jsonable(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [_jsonable(value) for value in obj]
    if isinstance(obj, float):
        return float(obj) if math.isfinite(obj) else None
    if hasattr(obj, "tolist"):  # NumPy's and JAX's arrays and scalars
        return _jsonable(np.asarray(obj).tolist())
    if isinstance(obj, os.PathLike):
        return os.fspath(obj)
    return obj

"""Decoded images kept on disk.

The cache lies under $D3JAX_CACHE_DIR, else $XDG_CACHE_HOME/d3jax, else ~/.cache/d3jax: one
uncompressed .npz per data set, as large as its images. It may be deleted at any time.
"""

import hashlib
import importlib.util
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import PIL

from d3jax.data.mapped import Mapped, map_member
from d3jax.host.files import write_npz
from d3jax.types import InputError

# What NumPy, zipfile and Pillow raise on a truncated, foreign or lying file.
UNREADABLE = (
    *(OSError, ValueError, EOFError, KeyError, MemoryError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error, SyntaxError, RuntimeError, OverflowError),
)
_FORMAT = 1


def cached(
    title: str,
    files: Sequence[Path],
    decode: Callable[[], Mapping[str, np.ndarray]],
    told: Sequence[Any] = (),
) -> Mapping[str, np.ndarray]:
    """What `decode` gives, kept on disk for as long as `files` keep name, size and time.

    told: what else it depends on, as JSON holds it.

    A damaged cache file is decoded again and replaced; where the cache cannot be written, nothing
    is kept. Raises what `decode` raises, and InputError for a file that is not there.
    """
    # Decoders differ in the last bit of a JPEG, so they are part of the key (TFDS prefers OpenCV).
    decoders = [PIL.__version__, importlib.util.find_spec("cv2") is not None]
    text = json.dumps([_FORMAT, decoders, *told, *(_identity(file) for file in files)])
    key = hashlib.sha256(text.encode()).hexdigest()[:24]
    kept = cache_folder() / f"{title.replace('/', '-')}-{key}.npz"
    with suppress(*UNREADABLE):
        return _read(kept)
    arrays = decode()
    with suppress(OSError):
        write_npz(kept, arrays)
    return arrays


def _read(kept: Path) -> dict[str, np.ndarray]:
    """Images stay in the file: a process may need few of them, and several may share the rest."""
    with open_npz(kept) as file:
        large = [name for name in file.files if name.endswith("_images")]
        arrays = {name: file[name] for name in file.files if name not in large}
        for name in large:
            found = map_member(kept, name)
            arrays[name] = file[name] if found is None else cast(np.ndarray, Mapped(found))
    return arrays


def cache_folder() -> Path:
    """Where decoded images are kept; it need not exist."""
    chosen = os.environ.get("D3JAX_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "d3jax"


@contextmanager
def open_npz(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """The arrays of an .npz, read when asked for, without pickle; raises one of UNREADABLE."""
    # np.load given a path leaves it open where the zip file is damaged, and reads .npy as well.
    with open(path, "rb") as stream:
        if not zipfile.is_zipfile(stream):
            raise ValueError("it is no .npz file, or not a whole one")
        stream.seek(0)
        with np.load(stream, allow_pickle=False) as file:
            yield file


def _identity(file: Path) -> list[str | int]:
    try:
        status = file.stat()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    return [str(file.absolute()), status.st_size, status.st_mtime_ns]

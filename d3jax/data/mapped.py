"""Images that stay in their file and are read as they are indexed."""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np


class Mapped:
    """Some rows of an array in a file, in some order; what is indexed becomes a NumPy array."""

    def __init__(self, array: np.ndarray, index: np.ndarray | None = None):
        self._array = array
        self._index = np.arange(len(array)) if index is None else index
        self.shape = (len(self._index), *array.shape[1:])
        self.dtype = array.dtype
        self.ndim = array.ndim

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        """What NumPy gives for one index of rows, or for a tuple that begins with one."""
        first, *rest = index if isinstance(index, tuple) else (index,)
        rows = self._index[first]
        return np.asarray(self._array[(rows, *rest)])

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def pick(self, index: Any) -> "Mapped":
        """The same, but for rows `index`; nothing is read."""
        return Mapped(self._array, self._index[index])


def pick(images: np.ndarray, index: Any) -> np.ndarray:
    """Rows `index` of an array, without reading them where it is mapped."""
    return cast(np.ndarray, images.pick(index)) if isinstance(images, Mapped) else images[index]


def map_member(path: Path, name: str) -> np.ndarray | None:
    """The array `name` of an .npz as an array in its file; None where it is compressed.

    What is read of it later is not compared with its checksum.
    """
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo(f"{name}.npy")
        if member.compress_type != zipfile.ZIP_STORED:
            return None
        with archive.open(member) as stream:
            version = np.lib.format.read_magic(stream)
            read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
            shape, fortran, dtype = read[version[0]](stream)
            header = stream.tell()
    if fortran or dtype.hasobject:
        return None
    with open(path, "rb") as file:
        file.seek(member.header_offset + 26)  # the local header's lengths of name and extra field
        lengths = np.frombuffer(file.read(4), "<u2")
    start = member.header_offset + 30 + int(lengths.sum()) + header
    return np.memmap(path, dtype, "r", start, shape)

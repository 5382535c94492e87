"""Turning a data set's official files into what `load` reads: once per data set, all or nothing."""

import gzip
import importlib.util
import os
import re
import zlib
from pathlib import Path

import numpy as np

from d3jax.data.digits import EMBEDDED
from d3jax.data.sources import data_root
from d3jax.data.splits import Splits, checked
from d3jax.data.tfds import quiet_tfds
from d3jax.host.files import DiskFull, write_npz
from d3jax.types import InputError

_IDX_IMAGES, _IDX_LABELS = 0x00000803, 0x00000801  # unsigned bytes, of 3 dimensions and of 1
# Of which kind the official files of a data set are, where its name is known; how each is told.
_IDX, _CIFAR10, _CIFAR100 = "idx files", "CIFAR-10's binary files", "CIFAR-100's binary files"
_KINDS = {
    **dict.fromkeys(("mnist", "fashion_mnist", "kmnist", "emnist", "qmnist"), _IDX),
    "cifar10": _CIFAR10,
    "cifar100": _CIFAR100,
}
_MARKS = {
    **dict.fromkeys(("train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"), _IDX),
    "data_batch_1.bin": _CIFAR10,
    "train.bin": _CIFAR100,
}
_CLASS_NAMES = {
    "fashion_mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )
}


def prepare(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    source: str | os.PathLike[str] | None = None,
) -> Path:
    """Prepares data set `name` under the data directory and returns what it wrote.

    Without `source` TFDS downloads it, which needs TensorFlow this once. With `source`, a folder
    of official files, it needs neither network nor TensorFlow and writes data/NAME.npz: idx files
    as of MNIST and Fashion-MNIST (.gz or not), or the binary version of CIFAR-10 or CIFAR-100.
    Raises InputError for an unknown name, missing or damaged files, or no room to write.
    """
    if name in EMBEDDED:
        raise InputError(f"the data set {name} is built in and needs no preparation")
    if not re.fullmatch(r"\w+(/[\w.-]+)?", name):
        raise InputError(f"{name!r} is not the name of a data set")
    root = data_root(data_dir)
    if source is None:
        # A d3jax data directory keeps TFDS's sets in tfds/; TFDS's own holds them directly.
        own = not (data_dir or os.environ.get("D3JAX_DATA_DIR"))
        return _download(name, root if own else root / "tfds")
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    splits = checked(_read_official(folder, name), name)
    target = root / "data" / f"{name}.npz"
    try:
        write_npz(target, splits.arrays(), compress=True)
    except DiskFull:
        raise
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror or error}") from error
    return target


def read_idx(path: Path, magic: int) -> np.ndarray:
    """The u8 array of an idx file, gzipped or not; InputError if its magic or size is wrong."""
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    dimensions = magic & 0xFF
    header = 4 + 4 * dimensions
    if len(data) < header or int.from_bytes(data[:4]) != magic:
        raise InputError(f"{path} is not an idx file of magic number {magic:#010x}")
    shape = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i]) for i in range(dimensions)]
    expected = header + int(np.prod(shape, dtype=object))
    if len(data) != expected:
        raise InputError(f"{path} holds {len(data)} bytes where its header says {expected}")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _download(name: str, root: Path) -> Path:
    if importlib.util.find_spec("tensorflow") is None:
        raise InputError(
            f"preparing {name} through TFDS needs TensorFlow this once: "
            "`pip install 'd3jax[prepare]'`, or give the official files with --from DIR"
        )
    try:
        with quiet_tfds() as tfds:
            builder = tfds.builder(name, data_dir=root, file_format="array_record")
            builder.download_and_prepare()
    except Exception as error:  # registry, network, checksum and disk each raise their own
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"TFDS could not prepare {name}: {reason}") from error
    return Path(builder.data_path)


def _read_official(folder: Path, name: str) -> Splits:
    kind = next((kind for file, kind in _MARKS.items() if (folder / file).is_file()), None)
    if _KINDS.get(name, kind) != kind:
        raise InputError(
            f"{folder} has {kind or 'no official files'}, where {name} has {_KINDS[name]}"
        )
    if kind == _CIFAR10:
        trains = [folder / f"data_batch_{i}.bin" for i in range(1, 6)]
        return _read_cifar(trains, folder / "test_batch.bin", folder / "batches.meta.txt", 1)
    if kind == _CIFAR100:
        names = folder / "fine_label_names.txt"
        return _read_cifar([folder / "train.bin"], folder / "test.bin", names, 2)
    parts = []
    for split in ("train", "t10k"):
        images = read_idx(_idx_file(folder, f"{split}-images", "idx3-ubyte"), _IDX_IMAGES)
        labels = read_idx(_idx_file(folder, f"{split}-labels", "idx1-ubyte"), _IDX_LABELS)
        if len(images) != len(labels):
            raise InputError(
                f"{folder} has {len(images)} {split} images and {len(labels)} {split} labels"
            )
        parts += [images[..., None], labels]
    classes = int(max(parts[1].max(initial=0), parts[3].max(initial=0))) + 1
    names = _CLASS_NAMES.get(name, tuple(str(k) for k in range(classes)))
    return Splits(parts[0], parts[1], parts[2], parts[3], names)


def _idx_file(folder: Path, stem: str, kind: str) -> Path:
    for file in (f"{stem}-{kind}{end}" for end in ("", ".gz")):
        if (folder / file).is_file():
            return folder / file
    raise InputError(f"{folder} has no {stem}-{kind} or {stem}-{kind}.gz, the official idx files")


def _read_cifar(trains: list[Path], test: Path, names: Path, label_bytes: int) -> Splits:
    """CIFAR's binary version: per record its labels, the fine one last, then u8[3, 32, 32]."""
    try:
        class_names = tuple(names.read_text().split())
        data = [b"".join(path.read_bytes() for path in trains), test.read_bytes()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{test.parent} lacks one of CIFAR's binary files: {error}") from error
    parts = []
    for split in data:
        if len(split) % (label_bytes + 3072):
            raise InputError(f"{test.parent} has a CIFAR binary file that is not whole")
        rows = np.frombuffer(split, np.uint8).reshape(-1, label_bytes + 3072)
        images = rows[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        parts += [np.ascontiguousarray(images), rows[:, label_bytes - 1]]
    return Splits(parts[0], parts[1], parts[2], parts[3], class_names)

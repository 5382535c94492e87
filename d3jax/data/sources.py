"""Where real images come from: TFDS records, .npz files, image folders, embedded digits.

Every reader gives `Splits` of decoded uint8 images and refuses what it cannot trust with an
InputError. TensorFlow is imported by none of them: TFDS reads its array_record files without it.
What takes decoding (records, JPEG bytes, folders) is cached.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from d3jax.data.cache import UNREADABLE, open_npz
from d3jax.data.decoding import decode_all, unreadable
from d3jax.data.digits import EMBEDDED
from d3jax.data.folders import is_image_folder, read_image_folder
from d3jax.data.given import DEFAULT, Reading, as_labels, numbered
from d3jax.data.mapped import pick
from d3jax.data.splits import Splits, cached_splits, checked, in_turn, sized
from d3jax.data.tfds import newest_version, read_tfds
from d3jax.host.terminal import meant
from d3jax.types import InputError

_log = logging.getLogger(__name__)


def dataset_name(name: str) -> str:
    """How a data set is named in files: as given, but without the folders of a path."""
    is_path = name.endswith(".npz") or name.startswith((".", "/", "~")) or Path(name).exists()
    return Path(name).name if is_path else name


def data_root(data_dir: str | os.PathLike[str] | None) -> Path:
    """The folder that holds prepared data: the argument, else $D3JAX_DATA_DIR, else TFDS's own."""
    chosen = data_dir or os.environ.get("D3JAX_DATA_DIR") or os.environ.get("TFDS_DATA_DIR")
    return Path(chosen or "~/tensorflow_datasets").expanduser()


def read(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    reading: Reading = DEFAULT,
) -> Splits:
    """All images of `name`: an embedded data set ("digits", "moved_digits"), a prepared one, an
    .npz file or an image folder.

    Where a split's labels come sorted, its images are put one of each class in turn, so that the
    first n of them are of all classes. What is left out of an image folder, and how it is split, is
    logged as a warning. Raises InputError where there is no such data or it is bad.
    """
    splits = _found(name, data_dir, reading)
    if reading.test_fraction is not None and not splits.drawn:
        _log.warning(f"{name} has test images of its own: --test-fraction is not used")
    if splits.unreadable:
        number = len(splits.train_labels) + len(splits.test_labels) + len(splits.unreadable)
        _log.warning(f"{name}: {unreadable(splits.unreadable, number)}; they are left out")
    if reading.test_only:
        splits = splits._replace(
            train_images=pick(splits.train_images, slice(0)), train_labels=splits.train_labels[:0]
        )
    return in_turn(checked(splits, name, test_only=reading.test_only))


def _found(name: str, data_dir: str | os.PathLike[str] | None, reading: Reading) -> Splits:
    path, root = Path(name).expanduser(), data_root(data_dir)
    if name in EMBEDDED:
        return _read_embedded(name, reading)
    if path.suffix == ".npz":
        return read_npz(path, reading)
    if path.is_absolute() or name.startswith("."):
        return read_image_folder(path, reading)
    for folder in (root / "tfds" / name, root / name):
        version = newest_version(folder)
        if version:
            return read_tfds(version, name, reading.image_size)
    if (root / name / "train").is_dir():
        return read_image_folder(root / name, reading)
    for file in (root / "data" / f"{name}.npz", root / f"{name}.npz"):
        if file.is_file():
            return read_npz(file, reading)
    if is_image_folder(path):
        return read_image_folder(path, reading)
    near = meant(name, [*EMBEDDED, *_prepared(root)])
    raise InputError(
        f"{name!r} is no path, and no data set of that name is prepared under {root}"
        f"{f'{near} Or' if near else ':'} prepare it with `d3jax prepare {name}`, or from its "
        f"official files, offline, with `d3jax prepare {name} --from DIR`"
    )


def _prepared(root: Path) -> list[str]:
    """The names of what may be a data set there."""
    folders = [path.name for there in (root / "tfds", root) for path in there.glob("[!.]*/")]
    return folders + [path.stem for there in (root / "data", root) for path in there.glob("*.npz")]


def _read_embedded(name: str, reading: Reading) -> Splits:
    splits = EMBEDDED[name]()
    return splits if reading.image_size is None else sized(splits, reading.image_size)


def read_npz(path: Path, reading: Reading) -> Splits:
    """An .npz with train_images, train_labels, test_images, test_labels (and class_names).

    Images are as `given.as_images` takes them. Or the JPEG layout: train_jpeg u8[bytes],
    train_offsets i[N + 1], train_labels, the same three for test_ or val_, and names.
    Raises InputError for a file that lacks one of them, is damaged, or would need pickle.
    """
    try:
        with open_npz(path) as file:
            jpeg = "train_jpeg" in file
            held_out = "val" if "val_jpeg" in file else "test"
            parts = ("jpeg", "offsets", "labels") if jpeg else ("images", "labels")
            first = held_out if reading.test_only and not jpeg else "train"
            needed = [f"{split}_{part}" for split in (first, held_out) for part in parts]
            missing = [key for key in needed if key not in file]
            if missing:
                raise InputError(f"{path} lacks {', '.join(missing)}")
            if jpeg:
                told = [reading.image_size, reading.skip_unreadable]
                return cached_splits(
                    path.stem, [path], lambda: _jpeg_layout(path, file, held_out, reading), told
                )
            if reading.image_size is None:
                return _plain_layout(path, file, first)
            size, told = reading.image_size, [first, reading.image_size]
            return cached_splits(
                path.stem, [path], lambda: sized(_plain_layout(path, file, first), size), told
            )
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except UNREADABLE as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _plain_layout(path: Path, file: np.lib.npyio.NpzFile, first: str) -> Splits:
    """The images of a file; `first` is the split that stands for train."""
    arrays = [file[f"{s}_{part}"] for s in (first, "test") for part in ("images", "labels")]
    names = _names(file, arrays[1], f"{path}: {first}_labels")
    return Splits(arrays[0], arrays[1], arrays[2], arrays[3], names)


def _jpeg_layout(path: Path, file: np.lib.npyio.NpzFile, held_out: str, reading: Reading) -> Splits:
    encoded: list[bytes] = []
    titles, labels = [], []
    for split in ("train", held_out):
        data, offsets = file[f"{split}_jpeg"], file[f"{split}_offsets"]
        if (
            (data.dtype != np.uint8 or data.ndim != 1)
            or (offsets.dtype.kind not in "iu" or offsets.ndim != 1 or len(offsets) < 2)
            or (offsets[0] != 0 or offsets[-1] != len(data) or (offsets[1:] < offsets[:-1]).any())
        ):
            raise InputError(f"{path}: {split}_offsets do not divide the bytes of {split}_jpeg")
        bounds = list(zip(offsets[:-1].tolist(), offsets[1:].tolist()))
        encoded += [data[start:end].tobytes() for start, end in bounds]
        titles += [f"{path}: {split} image {i}" for i in range(len(bounds))]
        labels.append(as_labels(file[f"{split}_labels"], len(bounds), f"{path}: {split}_labels"))
    images, kept, reasons = decode_all(
        titles,
        encoded,
        mode="RGB",
        image_size=reading.image_size,
        skip_unreadable=reading.skip_unreadable,
    )
    names = _names(file, labels[0], f"{path}: train_labels")
    number, own = int((kept < len(labels[0])).sum()), np.concatenate(labels)[kept]
    return Splits(images[:number], own[:number], images[number:], own[number:], names, reasons)


def _names(file: Mapping[str, np.ndarray], labels: np.ndarray, what: str) -> tuple[str, ...]:
    """The class names that a file gives, else its labels as names."""
    for key in ("class_names", "names"):
        if key in file and file[key].ndim == 1:
            return tuple(str(name) for name in file[key])
    return numbered(labels, what)

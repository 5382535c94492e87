"""Image folders: one folder for each class, with or without a test split of their own."""

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from d3jax.data.decoding import SUFFIXES, decode_all
from d3jax.data.given import TEST_FRACTION, Reading
from d3jax.data.splits import Splits, cached_splits
from d3jax.types import InputError

_Rows = list[tuple[Path, int]]  # image files and their labels
_log = logging.getLogger(__name__)


def is_image_folder(path: Path) -> bool:
    """Whether there is a folder train in it, or a folder with an image in it."""
    if not path.is_dir():
        return False
    return (path / "train").is_dir() or any(
        file.suffix.lower() in SUFFIXES
        for folder in _visible(path)
        if folder.is_dir()
        for file in _visible(folder)
    )


def read_image_folder(path: Path, reading: Reading) -> Splits:
    """A folder train/CLASS/IMAGE with test/ (or val/) beside train/; classes by name.

    Without test/ and val/, or as CLASS/IMAGE alone, `reading.test_fraction` of each class are test
    images: those whose names have the smallest hashes. So the split is the same for every seed
    and on every machine, and an image that is added or removed hardly changes it.

    Grey where every image is, else RGB. Raises InputError for images of different sizes, an
    unknown class, no images, or files that cannot be read, and names them.
    """
    train, test = _split_folders(path, reading.test_only)
    names = tuple(folder.name for folder in _visible(train) if folder.is_dir())
    others: Counter[str] = Counter()
    rows = [] if reading.test_only and test is not None else _listed(train, names, others)
    if test is None:
        fraction = reading.test_fraction or TEST_FRACTION
        rows, tests = _drawn(rows, names, fraction)
        _log.warning(
            f"{path} has no folder test or val: {len(tests)} of its {len(rows) + len(tests)} "
            f"images, drawn by name, are test images (--test-fraction {fraction:g})"
        )
    else:
        unknown = {folder.name for folder in _visible(test) if folder.is_dir()} - set(names)
        if unknown:
            raise InputError(f"{test} has the class {min(unknown)}, which {train} has not")
        tests = _listed(test, names, others)
    if others:
        found = ", ".join(f"{number} {kind}" for kind, number in sorted(others.items()))
        _log.warning(f"{path}: left out {found}, which are not read as images")
    read = _decoded(path, [] if reading.test_only else rows, tests, names, reading)
    return read._replace(drawn=test is None)


def _split_folders(path: Path, test_only: bool) -> tuple[Path, Path | None]:
    """The folders of the classes for training and for the test; one, where they are the same."""
    if not path.is_dir():
        raise InputError(f"there is no folder {path}")
    train = path / "train"
    test = next((path / name for name in ("test", "val") if (path / name).is_dir()), None)
    if train.is_dir():
        return train, test
    if test is None:
        return path, None
    if test_only:
        return test, test
    raise InputError(f"{path} has a folder {test.name}, but no folder train beside it")


def _listed(folder: Path, names: Sequence[str], others: Counter[str]) -> _Rows:
    """The images of all classes, by name; what else there is, is counted."""
    others.update(_kind(entry) for entry in _visible(folder) if not entry.is_dir())
    rows = []
    for label, name in enumerate(names):
        for file in _visible(folder / name) if (folder / name).is_dir() else []:
            if file.suffix.lower() in SUFFIXES:
                rows.append((file, label))
            else:
                others[_kind(file)] += 1
    if not rows:
        raise InputError(f"{folder} has no images CLASS/*{', *'.join(SUFFIXES)}")
    return rows


def _kind(entry: Path) -> str:
    return "folders in a class" if entry.is_dir() else entry.suffix.lower() or "without a suffix"


def _drawn(rows: _Rows, names: Sequence[str], fraction: float) -> tuple[_Rows, _Rows]:
    """Those to train on and those to test on, at least one of each class."""
    parts: tuple[_Rows, _Rows] = ([], [])
    for label, group in groupby(rows, key=lambda row: row[1]):
        own = list(group)
        number = max(1, round(fraction * len(own)))
        if number >= len(own):
            raise InputError(
                f"class {names[label]} has {len(own)} images, too few to take {fraction:g} of them "
                f"as test images: add some, or make folders train and test"
            )
        test = set(sorted(own, key=lambda row: _hash(f"{names[label]}/{row[0].name}"))[:number])
        for row in own:
            parts[row in test].append(row)
    return parts


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _decoded(
    path: Path, train: _Rows, test: _Rows, names: tuple[str, ...], reading: Reading
) -> Splits:
    files = [file for file, _ in train + test]
    labels = np.array([label for _, label in train + test], np.int32)

    def decode() -> Splits:
        images, kept, reasons = decode_all(
            [str(file) for file in files],
            files,
            image_size=reading.image_size,
            skip_unreadable=reading.skip_unreadable,
        )
        number, own = int((kept < len(train)).sum()), labels[kept]
        return Splits(images[:number], own[:number], images[number:], own[number:], names, reasons)

    told = [names, len(train), reading.image_size, reading.skip_unreadable]
    return cached_splits(path.name, files, decode, told)


def _visible(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if not file.name.startswith("."))

"""Where real images come from: TFDS records, .npz files, image folders, the embedded digits.

Every reader gives `Splits` of decoded uint8 images and refuses what it cannot trust with an
InputError. TensorFlow is imported by none of them: TFDS reads its array_record files without it.
What takes decoding (records, JPEG bytes, folders) is cached.
"""

import hashlib
import io
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from d3jax.cache import UNREADABLE, cached, open_npz
from d3jax.mapped import pick
from d3jax.types import InputError

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
_GREY_MODES = ("1", "L", "LA")
_COLOUR_MODES = ("P", "RGB", "RGBA", "CMYK", "YCbCr")
_TFDS_BLOCK = 1000  # records per batched read, 2-3 times faster than one by one


class Splits(NamedTuple):
    """A data set's official parts, decoded: images u8[N, H, W, C], labels i32[N]."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]

    def arrays(self) -> dict[str, np.ndarray]:
        """The same as named arrays, as an .npz holds them."""
        return {**self._asdict(), "class_names": np.array(self.class_names)}


def data_root(data_dir: str | os.PathLike[str] | None) -> Path:
    """The folder that holds prepared data: the argument, else $D3JAX_DATA_DIR, else TFDS's own."""
    chosen = data_dir or os.environ.get("D3JAX_DATA_DIR") or os.environ.get("TFDS_DATA_DIR")
    return Path(chosen or "~/tensorflow_datasets").expanduser()


def read(name: str, data_dir: str | os.PathLike[str] | None = None) -> Splits:
    """All images of `name`: "digits", a prepared data set, an .npz file or an image folder.

    Where a split's labels come sorted, its images are put one of each class in turn, so that the
    first n of them are of all classes. Raises InputError where there is no such data or it is bad.
    """
    if name == "digits":
        return read_digits()
    path = Path(name).expanduser()
    if path.suffix == ".npz":
        return _in_turn(checked(read_npz(path), name))
    if path.is_absolute() or name.startswith("."):
        return _in_turn(checked(read_image_folder(path), name))
    root = data_root(data_dir)
    for folder in (root / "tfds" / name, root / name):
        version = _tfds_version(folder)
        if version:
            return _in_turn(checked(read_tfds(version, name), name))
    if (root / name / "train").is_dir():
        return _in_turn(checked(read_image_folder(root / name), name))
    for file in (root / "data" / f"{name}.npz", root / f"{name}.npz"):
        if file.is_file():
            return _in_turn(checked(read_npz(file), name))
    if (path / "train").is_dir():
        return _in_turn(checked(read_image_folder(path), name))
    raise InputError(
        f"{name!r} is no path, and no data set of that name is prepared under {root}: prepare it "
        f"with `d3jax prepare {name}`, or from its official files, offline, with "
        f"`d3jax prepare {name} --from DIR`"
    )


def read_digits() -> Splits:
    """scikit-learn's 1797 digits, u8[N, 8, 8, 1], in 1437 for training and 360 for testing.

    Pixels 0..16 become rint(v * 255 / 16). The order is the same for everybody and depends on no
    random generator: images of a class by the SHA-256 of their pixels, classes spread evenly, so
    that the test images, and the first n of any split, hold every class in its proportion.
    """
    from sklearn.datasets import load_digits  # takes a second to import

    pixels, labels = load_digits(return_X_y=True)
    images = np.rint(np.asarray(pixels) * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = np.asarray(labels, np.int32)
    hashes = [hashlib.sha256(image.tobytes()).digest() for image in images]
    by_hash = np.array(sorted(range(len(images)), key=lambda i: (hashes[i], i)))
    rank = _rank_in_class(labels[by_hash])
    quantile = (rank + 0.5) / np.bincount(labels)[labels[by_hash]]
    order = by_hash[np.argsort(quantile, kind="stable")]
    train, test = order[:1437], order[1437:]
    names = tuple(str(digit) for digit in range(10))
    return Splits(images[train], labels[train], images[test], labels[test], names)


def read_npz(path: Path) -> Splits:
    """An .npz with train_images, train_labels, test_images, test_labels (and class_names).

    Images are u8[N, H, W, C] or u8[N, H, W]. Or the JPEG layout: train_jpeg u8[bytes],
    train_offsets i[N + 1], train_labels, the same three for test_ or val_, and names.
    Raises InputError for a file that lacks one of them, is damaged, or would need pickle.
    """
    try:
        with open_npz(path) as file:
            jpeg = "train_jpeg" in file
            held_out = "val" if "val_jpeg" in file else "test"
            parts = ("jpeg", "offsets", "labels") if jpeg else ("images", "labels")
            needed = [f"{split}_{part}" for split in ("train", held_out) for part in parts]
            missing = [key for key in needed if key not in file]
            if missing:
                raise InputError(f"{path} lacks {', '.join(missing)}")
            if jpeg:
                return _cached(path.stem, [path], lambda: _jpeg_layout(path, file, held_out))
            arrays = {key: file[key] for key in needed}
            names = _names(file, arrays["train_labels"])
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except UNREADABLE as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    images = [arrays[key] for key in ("train_images", "test_images")]
    images = [array[..., None] if array.ndim == 3 else array for array in images]
    return Splits(images[0], arrays["train_labels"], images[1], arrays["test_labels"], names)


def read_image_folder(path: Path) -> Splits:
    """A folder train/CLASS/*.png|jpg|jpeg with test/ (or val/) beside train/; classes by name.

    Grey where every image is, else RGB. Raises InputError for images of different sizes, an
    unknown class, no images, or a file that cannot be decoded, and names the file.
    """
    train, test = path / "train", path / "test"
    if not test.is_dir():
        test = path / "val"
    for folder, wanted in ((train, "train"), (test, "test or val")):
        if not folder.is_dir():
            raise InputError(f"{path} has no folder {wanted} with one folder per class in it")
    names = tuple(sorted(folder.name for folder in _visible(train) if folder.is_dir()))
    unknown = {folder.name for folder in _visible(test) if folder.is_dir()} - set(names)
    if unknown:
        raise InputError(f"{test} has the class {min(unknown)}, which {train} has not")
    files: list[list[Path]] = []
    labels = []
    for split in (train, test):
        rows = [
            (file, label)
            for label, name in enumerate(names)
            for file in (_visible(split / name) if (split / name).is_dir() else [])
            if file.suffix.lower() in _IMAGE_SUFFIXES
        ]
        if not rows:
            raise InputError(f"{split} has no CLASS/*.png, *.jpg or *.jpeg")
        files.append([file for file, _ in rows])
        labels.append(np.array([label for _, label in rows], np.int32))

    def decode() -> Splits:
        headers = [(file, *_header(file)) for split in files for file in split]
        size = headers[0][1]
        for file, other, _ in headers:
            if other != size:
                raise InputError(
                    f"{file} is {other[0]}x{other[1]} pixels and {headers[0][0].name} is "
                    f"{size[0]}x{size[1]}: all images of a folder must be of one size"
                )
        mode = "L" if all(header[2] in _GREY_MODES for header in headers) else "RGB"
        train_images, test_images = (
            _decode([str(file) for file in split], map(Path.read_bytes, split), size, mode)
            for split in files
        )
        return Splits(train_images, labels[0], test_images, labels[1], names)

    return _cached(path.name, [file for split in files for file in split], decode)


def read_tfds(folder: Path, name: str) -> Splits:
    """A prepared TFDS image classification set in `folder` (NAME/VERSION), without TensorFlow.

    The test split is `test`, else `validation`. Records come in TFDS's fixed shuffled order,
    except where an `id` ends in the official index (as in cifar10): then in official order.
    Raises InputError for other features, a format that needs TensorFlow, or damaged records.
    """

    def decode() -> Splits:
        try:
            with quiet_tfds() as tfds:
                builder = tfds.builder_from_directory(folder)
                features, splits = builder.info.features, set(builder.info.splits)
                held_out = "test" if "test" in splits else "validation"
                if not {"train", held_out} <= splits:
                    raise InputError(f"{name} has no split train, or neither test nor validation")
                if not {"image", "label"} <= set(features):
                    raise InputError(f"{name} has no features image and label: it is not of images")
                names = tuple(str(class_name) for class_name in features["label"].names or ())
                train, test = (
                    _tfds_split(builder.as_data_source(split=split), name)
                    for split in ("train", held_out)
                )
        except InputError:
            raise
        except Exception as error:  # array_record, protobuf and TFDS each raise their own
            reason = str(error).strip().partition("\n")[0]
            raise InputError(
                f"{folder} cannot be read ({reason}): remove it and run `d3jax prepare {name}`"
            ) from error
        return Splits(train[0], train[1], test[0], test[1], names)

    return _cached(name, sorted(file for file in folder.iterdir() if file.is_file()), decode)


def checked(splits: Splits, name: str) -> Splits:
    """`splits` with labels as i32[N], or InputError where types, shapes or labels are wrong."""
    labels = []
    classes = len(splits.class_names)
    for split in ("train", "test"):
        images, label = getattr(splits, f"{split}_images"), getattr(splits, f"{split}_labels")
        where = f"{name}: {split}"
        if images.dtype != np.uint8 or images.ndim != 4:
            raise InputError(
                f"{where}_images must be uint8 [N, H, W, C], not {images.dtype} "
                f"{list(images.shape)}"
            )
        number, height, width, channels = images.shape
        if height != width or height < 8 or channels not in (1, 3):
            raise InputError(
                f"{where}_images are {height}x{width}x{channels}: images must be square, of at "
                "least 8x8 pixels, with 1 or 3 channels"
            )
        if images.shape[1:] != splits.train_images.shape[1:]:
            raise InputError(f"{where}_images are of another size than train_images")
        if label.dtype.kind not in "iu" or label.shape != (number,):
            raise InputError(
                f"{where}_labels must be {number} integers, not {label.dtype} {list(label.shape)}"
            )
        if number == 0:
            raise InputError(f"{where}_images holds no image")
        if label.min() < 0 or label.max() >= classes:
            raise InputError(
                f"{where}_labels go from {label.min()} to {label.max()}, but the {classes} "
                f"classes are numbered from 0 to {classes - 1}"
            )
        labels.append(label.astype(np.int32))
    return splits._replace(train_labels=labels[0], test_labels=labels[1])


@contextmanager
def quiet_tfds() -> Iterator[Any]:
    """tensorflow_datasets, imported here because that is slow, its advice kept off the terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what importing it warns of is not the user's to mend
        import tensorflow_datasets as tfds
    logger = logging.getLogger("absl")  # TFDS recommends OpenCV there, at every reading

    def only_errors(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    logger.addFilter(only_errors)
    try:
        yield tfds
    finally:
        logger.removeFilter(only_errors)


def _cached(title: str, files: Sequence[Path], decode: Callable[[], Splits]) -> Splits:
    arrays = cached(title, files, lambda: decode().arrays())
    names = tuple(str(name) for name in arrays["class_names"])
    return Splits(*(arrays[field] for field in Splits._fields[:4]), class_names=names)


def _tfds_version(folder: Path) -> Path | None:
    """The newest prepared version (such as 3.0.1) in a TFDS folder, or None."""
    versions = [
        (tuple(int(part) for part in file.parent.name.split(".")), file.parent)
        for file in folder.glob("*/dataset_info.json")
        if re.fullmatch(r"\d+\.\d+\.\d+", file.parent.name)
    ]
    return max(versions)[1] if versions else None


def _tfds_split(source: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images u8[N, H, W, C] and labels i32[N] of a TFDS data source, by official index if known."""
    number = len(source)
    images, labels = np.empty(0, np.uint8), np.empty(number, np.int32)
    places = []
    for start in range(0, number, _TFDS_BLOCK):
        block = source.__getitems__(list(range(start, min(start + _TFDS_BLOCK, number))))
        for position, record in enumerate(block, start):
            image = record["image"]
            if position == 0:
                images = np.empty((number, *image.shape), image.dtype)
            if image.shape != images.shape[1:]:
                raise InputError(
                    f"{name} has images of {list(image.shape)} and of {list(images.shape[1:])}: "
                    "all images of a data set must be of one size"
                )
            images[position], labels[position] = image, record["label"]
            place = re.search(rb"_(\d+)$", record.get("id", b""))
            places.append(int(place[1]) if place else -1)
    if min(places, default=-1) >= 0 and len(set(places)) == number:
        order = np.argsort(places)
        return images[order], labels[order]
    return images, labels


def _jpeg_layout(path: Path, file: np.lib.npyio.NpzFile, held_out: str) -> Splits:
    parts = []
    for split in ("train", held_out):
        data, offsets = file[f"{split}_jpeg"], file[f"{split}_offsets"]
        if (
            (data.dtype != np.uint8 or data.ndim != 1)
            or (offsets.dtype.kind not in "iu" or offsets.ndim != 1 or len(offsets) < 2)
            or (offsets[0] != 0 or offsets[-1] != len(data) or (offsets[1:] < offsets[:-1]).any())
        ):
            raise InputError(f"{path}: {split}_offsets do not divide the bytes of {split}_jpeg")
        bounds = list(zip(offsets[:-1].tolist(), offsets[1:].tolist()))
        names = [f"{path}: {split} image {i}" for i in range(len(bounds))]
        size = _header(io.BytesIO(data[: bounds[0][1]].tobytes()), names[0])[0]
        bytes_of_each = (data[start:end].tobytes() for start, end in bounds)
        parts += [_decode(names, bytes_of_each, size, "RGB"), file[f"{split}_labels"]]
    return Splits(parts[0], parts[1], parts[2], parts[3], _names(file, parts[1]))


def _decode(
    names: Sequence[str], encoded: Iterable[bytes], size: tuple[int, int], mode: str
) -> np.ndarray:
    """u8[N, H, W, C] of encoded images of `size` (width, height); InputError names a bad one."""
    images = np.empty((len(names), size[1], size[0], 1 if mode == "L" else 3), np.uint8)
    for i, (name, data) in enumerate(zip(names, encoded)):
        found = _header(io.BytesIO(data), name)[0]
        if found != size:
            raise InputError(
                f"{name} is {found[0]}x{found[1]} pixels and the first is {size[0]}x{size[1]}: "
                "all images of a data set must be of one size"
            )
        try:
            with Image.open(io.BytesIO(data)) as image:
                images[i] = np.asarray(image.convert(mode)).reshape(images.shape[1:])
        except UNREADABLE as error:
            raise InputError(f"{name} cannot be decoded: {error}") from error
    return images


def _header(file: Path | io.BytesIO, name: str | None = None) -> tuple[tuple[int, int], str]:
    """Size (width, height) and mode of an image, read without decoding it."""
    name = name or str(file)
    try:
        with Image.open(file) as image:
            size, mode = image.size, image.mode
    except (*UNREADABLE, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{name} cannot be read as an image") from error
    if mode not in _GREY_MODES + _COLOUR_MODES:
        raise InputError(f"{name} has pixels of mode {mode}: they must be of 8 bits, grey or RGB")
    return size, mode


def _names(file: Mapping[str, np.ndarray], labels: np.ndarray) -> tuple[str, ...]:
    """The class names that a file gives, else the numbers up to the largest label."""
    for key in ("class_names", "names"):
        if key in file and file[key].ndim == 1:
            return tuple(str(name) for name in file[key])
    if labels.dtype.kind not in "iu" or not labels.size:
        return ()
    # More classes than images is a wrong label, not a list of a billion names.
    return tuple(str(k) for k in range(min(int(labels.max()) + 1, labels.size)))


def _in_turn(splits: Splits) -> Splits:
    """Splits that are sorted by class, reordered to one image of each class in turn."""
    parts = []
    for images, labels in (splits[0:2], splits[2:4]):
        if (labels[1:] >= labels[:-1]).all():
            order = np.lexsort((labels, _rank_in_class(labels)))
            images, labels = pick(images, order), labels[order]
        parts += [images, labels]
    return Splits(parts[0], parts[1], parts[2], parts[3], splits.class_names)


def _rank_in_class(labels: np.ndarray) -> np.ndarray:
    """For every image, how many of its class come before it: i[N]."""
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    rank = np.empty(len(labels), np.int64)
    rank[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rank


def _visible(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if not file.name.startswith("."))

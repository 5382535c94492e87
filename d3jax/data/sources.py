"""Where real images come from: TFDS records, .npz files, image folders, embedded digits.

Every reader gives `Splits` of decoded uint8 images and refuses what it cannot trust with an
InputError. TensorFlow is imported by none of them: TFDS reads its array_record files without it.
What takes decoding (records, JPEG bytes, folders) is cached.
"""

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from d3jax.data.cache import UNREADABLE, open_npz
from d3jax.data.digits import EMBEDDED
from d3jax.data.splits import Splits, cached_splits, checked, in_turn
from d3jax.data.tfds import newest_version, read_tfds
from d3jax.types import InputError

GREY_MODES = ("1", "L", "LA")
_COLOUR_MODES = ("P", "RGB", "RGBA", "CMYK", "YCbCr")


def decode_all(
    names: Sequence[str], encoded: Iterable[bytes], size: tuple[int, int], mode: str
) -> np.ndarray:
    """u8[N, H, W, C] of encoded images of `size` (width, height); InputError names a bad one."""
    images = np.empty((len(names), size[1], size[0], 1 if mode == "L" else 3), np.uint8)
    for i, (name, data) in enumerate(zip(names, encoded)):
        found = image_header(io.BytesIO(data), name)[0]
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


def image_header(file: Path | io.BytesIO, name: str | None = None) -> tuple[tuple[int, int], str]:
    """Size (width, height) and mode of an image, read without decoding it."""
    name = name or str(file)
    try:
        with Image.open(file) as image:
            size, mode = image.size, image.mode
    except (*UNREADABLE, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{name} cannot be read as an image") from error
    if mode not in GREY_MODES + _COLOUR_MODES:
        raise InputError(f"{name} has pixels of mode {mode}: they must be of 8 bits, grey or RGB")
    return size, mode


_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


def data_root(data_dir: str | os.PathLike[str] | None) -> Path:
    """The folder that holds prepared data: the argument, else $D3JAX_DATA_DIR, else TFDS's own."""
    chosen = data_dir or os.environ.get("D3JAX_DATA_DIR") or os.environ.get("TFDS_DATA_DIR")
    return Path(chosen or "~/tensorflow_datasets").expanduser()


def read(name: str, data_dir: str | os.PathLike[str] | None = None) -> Splits:
    """All images of `name`: an embedded data set ("digits", "moved_digits"), a prepared one, an
    .npz file or an image folder.

    Where a split's labels come sorted, its images are put one of each class in turn, so that the
    first n of them are of all classes. Raises InputError where there is no such data or it is bad.
    """
    if name in EMBEDDED:
        return EMBEDDED[name]()
    path = Path(name).expanduser()
    if path.suffix == ".npz":
        return in_turn(checked(read_npz(path), name))
    if path.is_absolute() or name.startswith("."):
        return in_turn(checked(read_image_folder(path), name))
    root = data_root(data_dir)
    for folder in (root / "tfds" / name, root / name):
        version = newest_version(folder)
        if version:
            return in_turn(checked(read_tfds(version, name), name))
    if (root / name / "train").is_dir():
        return in_turn(checked(read_image_folder(root / name), name))
    for file in (root / "data" / f"{name}.npz", root / f"{name}.npz"):
        if file.is_file():
            return in_turn(checked(read_npz(file), name))
    if (path / "train").is_dir():
        return in_turn(checked(read_image_folder(path), name))
    raise InputError(
        f"{name!r} is no path, and no data set of that name is prepared under {root}: prepare it "
        f"with `d3jax prepare {name}`, or from its official files, offline, with "
        f"`d3jax prepare {name} --from DIR`"
    )


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
                return cached_splits(path.stem, [path], lambda: _jpeg_layout(path, file, held_out))
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
        headers = [(file, *image_header(file)) for split in files for file in split]
        size = headers[0][1]
        for file, other, _ in headers:
            if other != size:
                raise InputError(
                    f"{file} is {other[0]}x{other[1]} pixels and {headers[0][0].name} is "
                    f"{size[0]}x{size[1]}: all images of a folder must be of one size"
                )
        mode = "L" if all(header[2] in GREY_MODES for header in headers) else "RGB"
        train_images, test_images = (
            decode_all([str(file) for file in split], map(Path.read_bytes, split), size, mode)
            for split in files
        )
        return Splits(train_images, labels[0], test_images, labels[1], names)

    return cached_splits(path.name, [file for split in files for file in split], decode)


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
        size = image_header(io.BytesIO(data[: bounds[0][1]].tobytes()), names[0])[0]
        bytes_of_each = (data[start:end].tobytes() for start, end in bounds)
        parts += [decode_all(names, bytes_of_each, size, "RGB"), file[f"{split}_labels"]]
    return Splits(parts[0], parts[1], parts[2], parts[3], _names(file, parts[1]))


def _names(file: Mapping[str, np.ndarray], labels: np.ndarray) -> tuple[str, ...]:
    """The class names that a file gives, else the numbers up to the largest label."""
    for key in ("class_names", "names"):
        if key in file and file[key].ndim == 1:
            return tuple(str(name) for name in file[key])
    if labels.dtype.kind not in "iu" or not labels.size:
        return ()
    # More classes than images is a wrong label, not a list of a billion names.
    return tuple(str(k) for k in range(min(int(labels.max()) + 1, labels.size)))


def _visible(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if not file.name.startswith("."))

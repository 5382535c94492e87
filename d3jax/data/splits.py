"""A data set's official splits: what every source gives, and what is refused of them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from d3jax.data.cache import cached
from d3jax.data.mapped import pick
from d3jax.types import InputError


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


def cached_splits(title: str, files: Sequence[Path], decode: Callable[[], Splits]) -> Splits:
    """The splits that `decode` makes of `files`, from the cache where they lie there."""
    arrays = cached(title, files, lambda: decode().arrays())
    names = tuple(str(name) for name in arrays["class_names"])
    return Splits(*(arrays[field] for field in Splits._fields[:4]), class_names=names)


def in_turn(splits: Splits) -> Splits:
    """Splits that are sorted by class, reordered to one image of each class in turn."""
    parts = []
    for images, labels in (splits[0:2], splits[2:4]):
        if (labels[1:] >= labels[:-1]).all():
            order = np.lexsort((labels, rank_in_class(labels)))
            images, labels = pick(images, order), labels[order]
        parts += [images, labels]
    return Splits(parts[0], parts[1], parts[2], parts[3], splits.class_names)


def rank_in_class(labels: np.ndarray) -> np.ndarray:
    """For every image, how many of its class come before it: i[N]."""
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    rank = np.empty(len(labels), np.int64)
    rank[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rank

"""A data set's official splits: what every source gives, and what is refused of them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from d3jax.data.cache import cached
from d3jax.data.decoding import fitted
from d3jax.data.given import SMALLEST, as_images, as_labels
from d3jax.data.mapped import pick
from d3jax.types import InputError

_PARTS = ("images", "labels")


class Splits(NamedTuple):
    """A data set's official parts, decoded: images u8[N, H, W, C], labels i32[N]."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    unreadable: tuple[str, ...] = ()  # why images are left out, each by name
    drawn: bool = False  # whether test images were drawn from all, for want of others

    def arrays(self) -> dict[str, np.ndarray]:
        """The same as named arrays, as an .npz holds them."""
        arrays = {name: getattr(self, name) for name in self._fields[:4]}
        names = {"class_names": self.class_names, "unreadable": self.unreadable}
        return arrays | {name: np.array(value) for name, value in names.items() if value}


def checked(splits: Splits, name: str, *, test_only: bool = False) -> Splits:
    """`splits` with images as `given.as_images` and labels as i32[N].

    test_only: there may be no training images.

    Raises:
      InputError: types, shapes or labels are wrong, or there is one class.
    """
    classes, first = len(splits.class_names), None
    if classes == 1:
        raise InputError(
            f"{name} has one class, {splits.class_names[0]}: a network that tells classes apart "
            f"needs two"
        )
    parts = []
    for split in ("train", "test"):
        where = f"{name}: {split}"
        images = as_images(getattr(splits, f"{split}_images"), f"{where}_images")
        number, height, width, channels = images.shape
        if height != width or height < SMALLEST or channels not in (1, 3):
            raise InputError(
                f"{where}_images are {height}x{width}x{channels}: images must be square, of at "
                f"least {SMALLEST}x{SMALLEST} pixels, with 1 or 3 channels; --image-size 32 cuts "
                f"and resizes them"
            )
        if images.shape[1:] != (first := first or images.shape[1:]):
            raise InputError(
                f"{where}_images are of another size than train_images, which --image-size 32 "
                f"makes them"
            )
        labels = as_labels(getattr(splits, f"{split}_labels"), number, f"{where}_labels")
        if number == 0 and not (test_only and split == "train"):
            raise InputError(f"{where}_images holds no image")
        if number and not 0 <= labels.min() <= labels.max() < classes:
            raise InputError(
                f"{where}_labels go from {labels.min()} to {labels.max()}, but the {classes} "
                f"classes are numbered from 0 to {classes - 1}"
            )
        parts += [images, labels]
    return splits._replace(
        train_images=parts[0], train_labels=parts[1], test_images=parts[2], test_labels=parts[3]
    )


def sized(splits: Splits, size: int) -> Splits:
    """The same with images u8[N, size, size, C]: resized, and their centre cut out."""
    train, test = (
        fitted(as_images(images, what), size)
        for images, what in (
            (splits.train_images, "train_images"),
            (splits.test_images, "test_images"),
        )
    )
    return splits._replace(train_images=train, test_images=test)


def cached_splits(
    title: str, files: Sequence[Path], decode: Callable[[], Splits], told: Sequence[Any] = ()
) -> Splits:
    """The splits that `decode` makes of `files`, from the cache where they lie there.

    told: what else they depend on, as JSON holds it.
    """
    arrays = cached(title, files, lambda: decode().arrays(), told)
    names, unreadable = (
        tuple(str(name) for name in arrays.get(key, ())) for key in ("class_names", "unreadable")
    )
    images, labels = ([arrays[f"{s}_{of}"] for s in ("train", "test")] for of in _PARTS)
    return Splits(images[0], labels[0], images[1], labels[1], names, unreadable)


def in_turn(splits: Splits) -> Splits:
    """Splits that are sorted by class, reordered to one image of each class in turn."""
    parts = []
    for images, labels in (splits[0:2], splits[2:4]):
        if (labels[1:] >= labels[:-1]).all():
            order = np.lexsort((labels, rank_in_class(labels)))
            images, labels = pick(images, order), labels[order]
        parts += [images, labels]
    return splits._replace(
        train_images=parts[0], train_labels=parts[1], test_images=parts[2], test_labels=parts[3]
    )


def rank_in_class(labels: np.ndarray) -> np.ndarray:
    """For every image, how many of its class come before it: i[N]."""
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    rank = np.empty(len(labels), np.int64)
    rank[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rank

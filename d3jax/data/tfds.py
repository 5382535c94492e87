"""Prepared TFDS data sets, read from their array_record files without TensorFlow."""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from d3jax.data.decoding import fitted
from d3jax.data.splits import Splits, cached_splits
from d3jax.types import InputError

_BLOCK = 1000  # records per batched read, 2-3 times faster than one by one


def read_tfds(folder: Path, name: str, image_size: int | None) -> Splits:
    """A prepared TFDS image classification set in `folder` (NAME/VERSION), without TensorFlow.

    The test split is `test`, else `validation`. Records come in TFDS's fixed shuffled order,
    except where an `id` ends in the official index (as in cifar10): then in official order. They
    are resized to `image_size`, if any, and their centre cut out.
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
                    _split(builder.as_data_source(split=split), name, image_size)
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

    files = sorted(file for file in folder.iterdir() if file.is_file())
    return cached_splits(name, files, decode, [] if image_size is None else [image_size])


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


def newest_version(folder: Path) -> Path | None:
    """The newest prepared version (such as 3.0.1) in a TFDS folder, or None."""
    versions = [
        (tuple(int(part) for part in file.parent.name.split(".")), file.parent)
        for file in folder.glob("*/dataset_info.json")
        if re.fullmatch(r"\d+\.\d+\.\d+", file.parent.name)
    ]
    return max(versions)[1] if versions else None


def _split(source: Any, name: str, image_size: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Images u8[N, H, W, C] and labels i32[N] of a TFDS data source, by official index if known."""
    number = len(source)
    images, labels = np.empty(0, np.uint8), np.empty(number, np.int32)
    places = []
    for start in range(0, number, _BLOCK):
        block = source.__getitems__(list(range(start, min(start + _BLOCK, number))))
        for position, record in enumerate(block, start):
            image = record["image"]
            if image_size is not None:
                image = fitted(image[None], image_size)[0]
            if position == 0:
                images = np.empty((number, *image.shape), image.dtype)
            if image.shape != images.shape[1:]:
                raise InputError(
                    f"{name} has images of {list(image.shape)} and of {list(images.shape[1:])}: "
                    "all images of a data set must be of one size, which --image-size 32 makes them"
                )
            images[position], labels[position] = image, record["label"]
            place = re.search(rb"_(\d+)$", record.get("id", b""))
            places.append(int(place[1]) if place else -1)
    if min(places, default=-1) >= 0 and len(set(places)) == number:
        order = np.argsort(places)
        return images[order], labels[order]
    return images, labels

"""Subtasks: the classes cut into parts, each of which is distilled by itself.

D3, arXiv 2403.00999, section 3.3: experts, latents and decoder of a subtask depend on the images of
its own classes only.
"""

import re
from collections.abc import Sequence

import numpy as np

from d3jax import data
from d3jax.data.mapped import pick
from d3jax.types import InputError


def split(text: str, num_classes: int) -> tuple[tuple[int, ...], ...]:
    """The classes of each subtask.

    Args:
      text: a number K of contiguous ranges, as even as can be (`3`: 10 classes as 4, 3 and 3); or
        the subtasks themselves, colons between them, each a list of classes and ranges:
        `0-4,9:5-8`.
      num_classes: every class from 0 to this, exclusive, has to be in one subtask.

    Raises:
      InputError: it is neither, or not every class is in exactly one subtask.
    """
    if re.fullmatch(r"\d+", text):
        number = int(text)
        if not 0 < number <= num_classes:
            raise InputError(
                f"{num_classes} classes can be cut into 1 to {num_classes} subtasks, not {number}"
            )
        return tuple(
            tuple(int(k) for k in part) for part in np.array_split(np.arange(num_classes), number)
        )
    parts = tuple(tuple(_classes(part, text, num_classes)) for part in text.split(":"))
    counts = np.bincount([k for part in parts for k in part], minlength=num_classes)
    if (counts != 1).any():
        wrong = int(np.argmax(counts != 1))
        raise InputError(
            f"every class belongs to one subtask; class {wrong} is in {counts[wrong]} of {text!r}"
        )
    return parts


def _classes(part: str, text: str, num_classes: int) -> list[int]:
    found: list[int] = []
    for piece in part.split(","):
        ends = re.fullmatch(r"(\d+)(?:-(\d+))?", piece)
        if ends is None:
            raise InputError(
                f"subtasks are a number, or lists of classes such as 0-4,9:5-8, not {text!r}"
            )
        first = int(ends[1])
        last = int(ends[2] or first)
        if max(first, last) >= num_classes:
            raise InputError(
                f"subtasks name class {max(first, last)}; the last is {num_classes - 1}"
            )
        found += range(first, last + 1)
    return found


def of(dataset: data.Dataset, classes: Sequence[int]) -> data.Dataset:
    """The images of `classes` alone, which are numbered anew, in the order given.

    Images in a file are not read before they are indexed.
    """
    numbers = np.full(dataset.num_classes, -1, np.int32)
    numbers[list(classes)] = np.arange(len(classes))

    def part(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        kept = np.flatnonzero(numbers[labels] >= 0)
        return pick(images, kept), numbers[labels[kept]]

    train = part(dataset.train_images, dataset.train_labels)
    validation = part(dataset.validation_images, dataset.validation_labels)
    test = part(dataset.test_images, dataset.test_labels)
    names = tuple(dataset.class_names[k] for k in classes)
    return data.Dataset(dataset.name, *train, *validation, *test, names, dataset.reading)


def in_order(class_names: Sequence[str], dataset: data.Dataset) -> data.Dataset | None:
    """The data set with its classes numbered by these names; None where it has others."""
    names, wanted = list(dataset.class_names), list(class_names)
    if names == wanted:
        return dataset
    if sorted(names) != sorted(wanted) or len(set(names)) < len(names):
        return None
    return of(dataset, [names.index(name) for name in wanted])

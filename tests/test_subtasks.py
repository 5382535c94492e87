"""d3jax.data.subtasks: which classes, and their images."""

import numpy as np
import pytest

from d3jax import data
from d3jax.data import subtasks
from d3jax.types import InputError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", ((0, 1, 2, 3, 4, 5, 6),)),
        ("3", ((0, 1, 2), (3, 4), (5, 6))),
        ("7", ((0,), (1,), (2,), (3,), (4,), (5,), (6,))),
        ("0-4,6:5", ((0, 1, 2, 3, 4, 6), (5,))),
        ("6,5,4:0-3", ((6, 5, 4), (0, 1, 2, 3))),
    ],
)
def test_split(text, expected):
    assert subtasks.split(text, 7) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0", "cut into 1 to 7"),
        ("8", "cut into 1 to 7"),
        ("0-5:5,6", "class 5 is in 2"),
        ("0-5:", "a number, or lists"),
        ("0-5", "class 6 is in 0"),
        ("0-7", "class 7; the last is 6"),
        ("0-99999999999:1", "class 99999999999; the last is 6"),
        ("-1", "a number, or lists"),
        ("a:b", "a number, or lists"),
    ],
)
def test_split_that_cannot_be(text, message):
    with pytest.raises(InputError, match=message):
        subtasks.split(text, 7)


def test_images_of_some_classes():
    whole = data.load("digits", train_limit=100, test_limit=40, validation=30)
    part = subtasks.of(whole, (7, 2))
    assert part.class_names == ("7", "2")
    turned = subtasks.in_order(("2", "7"), part)
    np.testing.assert_array_equal(turned.train_labels, 1 - part.train_labels)
    assert subtasks.in_order(("2", "8"), part) is None
    for split in ("train", "validation", "test"):
        images, labels = getattr(whole, f"{split}_images"), getattr(whole, f"{split}_labels")
        kept = [k for k in range(len(labels)) if labels[k] in (7, 2)]
        np.testing.assert_array_equal(getattr(part, f"{split}_images"), images[kept])
        expected = [{7: 0, 2: 1}[labels[k]] for k in kept]
        np.testing.assert_array_equal(getattr(part, f"{split}_labels"), expected)
        assert getattr(part, f"{split}_labels").dtype == np.int32

"""The embedded data sets: scikit-learn's digits, and the same moved about on a larger canvas.

Neither needs a download, and both are the same for everybody: they depend on no random generator.
"""

import hashlib
import math

import numpy as np

from d3jax.data.splits import Splits, rank_in_class

CANVAS = 16  # pixels of a side
COPIES = 3  # of each training digit
SIZES = (1.1, 1.5)  # the digit's 8 pixels become 8.8 to 12
ANGLE = 15.0  # largest rotation either way, in degrees

_SIDE = 8  # of scikit-learn's digits
_BLOCK = 2000  # images drawn at a time


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
    rank = rank_in_class(labels[by_hash])
    quantile = (rank + 0.5) / np.bincount(labels)[labels[by_hash]]
    order = by_hash[np.argsort(quantile, kind="stable")]
    train, test = order[:1437], order[1437:]
    names = tuple(str(digit) for digit in range(10))
    return Splits(images[train], labels[train], images[test], labels[test], names)


def read_moved_digits() -> Splits:
    """The digits moved, resized and turned, u8[N, 16, 16, 1]: 4311 to train on, 360 to test.

    So k-means on pixels blurs, where a few centres all but cover the plain digits: this is where
    learned data shows what it is for.

    A digit's square of 8x8 pixels is enlarged by a factor of 1.1 to 1.5, put wherever it fits into
    the 16x16 canvas, and turned about its centre by up to 15 degrees either way; all three are
    uniform. Pixels are interpolated linearly; outside the square it is black. Training images are
    three copies of each training digit of `read_digits`, drawn apart, one after another; a test
    digit is drawn once. The order is that of the digits: the first n of any split hold every class
    in its proportion, and no test image is of a digit that is trained on. Of validation images this
    is true only where `train_limit` is a multiple of 3 and leaves enough for them.
    """
    digits = read_digits()
    train = np.repeat(digits.train_images, COPIES, axis=0)
    return Splits(
        moved(train, _draws("train", len(train))),
        np.repeat(digits.train_labels, COPIES),
        moved(digits.test_images, _draws("test", len(digits.test_labels))),
        digits.test_labels,
        digits.class_names,
    )


def _draws(split: str, number: int) -> np.ndarray:
    """Uniform numbers in [0, 1), f64[number, 4]: of hashes, which no version of NumPy changes."""
    names = (f"moved_digits {split} {position}".encode() for position in range(number))
    hashes = b"".join(hashlib.sha256(name).digest() for name in names)
    return (np.frombuffer(hashes, "<u8").reshape(number, 4) >> np.uint64(11)) * 2.0**-53


def moved(images: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Images u8[N, 8, 8, 1] on a canvas u8[N, 16, 16, 1].

    draws: f64[N, 4] in [0, 1): of each image's size, angle, and place down and across.
    """
    blocks = range(0, len(images), _BLOCK)
    return np.concatenate([_moved(images[i : i + _BLOCK], draws[i : i + _BLOCK]) for i in blocks])


def _moved(images: np.ndarray, draws: np.ndarray) -> np.ndarray:
    size, angle, down, across = draws.T[:, :, None, None]
    size = SIZES[0] + (SIZES[1] - SIZES[0]) * size
    angle = math.radians(ANGLE) * (2 * angle - 1)
    room = CANVAS - _SIDE * size
    # Of the canvas's pixel centres, how far they are from the centre of the digit's square.
    centre = np.arange(CANVAS) + 0.5
    y = centre[:, None] - (_SIDE * size / 2 + room * down)
    x = centre[None, :] - (_SIDE * size / 2 + room * across)
    # Where they lie among the digit's pixels: turned and shrunk.
    row = (np.cos(angle) * y - np.sin(angle) * x) / size + (_SIDE - 1) / 2
    column = (np.sin(angle) * y + np.cos(angle) * x) / size + (_SIDE - 1) / 2
    black = np.pad(images[..., 0].astype(np.float64), ((0, 0), (1, 1), (1, 1)))
    number = np.arange(len(images))[:, None, None]
    found = np.zeros(row.shape)
    top, left = np.floor(row).astype(int), np.floor(column).astype(int)
    for i in (top, top + 1):
        for j in (left, left + 1):
            weight = (1 - np.abs(row - i)) * (1 - np.abs(column - j))
            inside = black[number, np.clip(i + 1, 0, _SIDE + 1), np.clip(j + 1, 0, _SIDE + 1)]
            found += weight * inside
    return np.rint(found).astype(np.uint8)[..., None]


EMBEDDED = {"digits": read_digits, "moved_digits": read_moved_digits}

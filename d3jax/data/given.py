"""What users give as images and labels, made what everything else reads, or refused."""

from typing import Any, NamedTuple

import numpy as np

from d3jax.types import InputError

SMALLEST = 8  # pixels of an image's side
TEST_FRACTION = 0.2  # of an image folder without test images


class Reading(NamedTuple):
    """How a data set is read where its files leave a choice."""

    image_size: int | None = None  # None: as images are
    test_fraction: float | None = None  # None: TEST_FRACTION
    skip_unreadable: bool = False
    test_only: bool = False  # without training images, which need not be there

    def check(self) -> None:
        """Raises InputError where a choice is out of range."""
        size, fraction = self.image_size, self.test_fraction
        if size is not None and (type(size) is not int or size < SMALLEST):
            raise InputError(f"image_size must be a number from {SMALLEST} on, not {size!r}")
        if fraction is not None and not (type(fraction) is float and 0 < fraction < 1):
            raise InputError(f"test_fraction must be between 0 and 1, not {fraction!r}")
        if type(self.skip_unreadable) is not bool:
            raise InputError(f"skip_unreadable is true or false, not {self.skip_unreadable!r}")

    def chosen(self) -> dict[str, Any]:
        """What differs from the default, but `test_only`: for an artifact's header."""
        said = self._replace(test_only=False)._asdict()
        return {name: value for name, value in said.items() if value != getattr(DEFAULT, name)}


DEFAULT = Reading()


def as_pixels(images: np.ndarray, what: str = "images") -> np.ndarray:
    """Images as u8: they are, or are floats from 0 to 1, of which 1 becomes 255.

    Raises:
      InputError: other types; or other floats, which may be normalized already or go to 255.
    """
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind != "f":
        raise InputError(
            f"{what} must be uint8, or floats from 0 to 1, not {images.dtype} {list(images.shape)}"
        )
    if images.size and not (images.min() >= 0 and images.max() <= 1):
        raise InputError(
            f"{what} are floats from {images.min():.4g} to {images.max():.4g}: give uint8, or "
            f"floats from 0 to 1, not normalized"
        )
    return np.rint(images * 255).astype(np.uint8)


def as_images(images: np.ndarray, what: str) -> np.ndarray:
    """Images u8[N, H, W, C] of pixels that may be floats, without channels, or channels first.

    Raises:
      InputError: they are no images.
    """
    images = as_pixels(images, what)
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4:
        raise InputError(f"{what} must be [N, H, W, C], not {list(images.shape)}")
    if images.shape[1] in (1, 3) and images.shape[3] not in (1, 3):
        return np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    return images


def as_labels(labels: Any, number: int, what: str = "labels") -> np.ndarray:
    """Labels i32[N] of `number` images.

    Raises:
      InputError: they are no whole numbers, or not as many.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu" or labels.shape != (number,):
        raise InputError(
            f"{what} must be {number} integers, not {labels.dtype} {list(labels.shape)}"
        )
    return labels.astype(np.int32)


def numbered(labels: np.ndarray, what: str) -> tuple[str, ...]:
    """Names of classes that have only numbers: all that are in `labels` i[N].

    Raises:
      InputError: they do not start at 0, or some are left out.
    """
    if labels.dtype.kind not in "iu" or not labels.size:
        return ()
    present = np.unique(labels)
    if present[0] != 0:
        raise InputError(f"{what} start at {present[0]}: number the classes from 0 on")
    if present[-1] >= len(present):
        gap = int(np.argmax(present != np.arange(len(present))))
        raise InputError(
            f"{what} go up to {present[-1]}, but there is no {gap}: number the classes without gaps"
        )
    return tuple(map(str, range(len(present))))

"""Encoded images to pixels, all of one size and of 8 bits, or the name of the one that is not."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from d3jax.cache import UNREADABLE
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

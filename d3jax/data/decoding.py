"""Encoded images as arrays: upright, on white, of one size, grey or RGB."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from d3jax.data.cache import UNREADABLE
from d3jax.types import InputError

# What Pillow decodes by itself; of several frames the first is read.
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".avif", ".ppm", ".pgm"),
)
_GREY_MODES = ("1", "L", "LA")
_COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_ON_ITS_SIDE = range(5, 9)  # EXIF's orientations that exchange height and width
_LISTED = 10  # files that a message names
Encoded = Path | bytes


def decode_all(
    names: Sequence[str],
    encoded: Sequence[Encoded],
    *,
    mode: str | None = None,
    image_size: int | None = None,
    skip_unreadable: bool = False,
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Images u8[N, H, W, C], their positions i[N] in `encoded`, and why others are left out.

    They are turned as EXIF says, and what is transparent is white.

    Args:
      names: for messages.
      encoded: files, or their contents.
      mode: L or RGB; default L where all images are grey.
      image_size: the short side is resized to it (Lanczos), and the centre cut out.
      skip_unreadable: leave out what cannot be read.

    Raises:
      InputError: images of several sizes, where `image_size` does not make them one; images that
        cannot be read, ten of them by name.
    """
    headers: dict[int, tuple[tuple[int, int], str]] = {}
    bad: dict[int, str] = {}
    for i, (name, file) in enumerate(zip(names, encoded)):
        try:
            headers[i] = _header(file)
        except InputError as error:
            bad[i] = f"{name} {error}"
    if mode is None:
        grey = all(found in _GREY_MODES for _, found in headers.values())
        mode = "L" if grey else "RGB"
    if image_size is None:
        _check_sizes(names, {i: size for i, (size, _) in headers.items()})
    sizes = [size for size, _ in headers.values()]
    width, height = (image_size,) * 2 if image_size is not None else (sizes or [(0, 0)])[0]
    images = np.empty((len(headers), height, width, 1 if mode == "L" else 3), np.uint8)
    positions: list[int] = []
    for i in headers:
        try:
            images[len(positions)] = _decoded(encoded[i], mode, (width, height), image_size)
            positions.append(i)
        except InputError as error:
            bad[i] = f"{names[i]} {error}"
    reasons = tuple(bad[i] for i in sorted(bad))
    if reasons and not skip_unreadable:
        raise InputError(
            f"{unreadable(reasons, len(names))}; --skip-unreadable goes on without them"
        )
    return images[: len(positions)], np.asarray(positions, np.int64), reasons


def unreadable(reasons: Sequence[str], number: int) -> str:
    """What is said of images, of `number`, that cannot be read."""
    more = len(reasons) - _LISTED
    named = "; ".join(reasons[:_LISTED]) + (f"; and {more} more" if more > 0 else "")
    return f"{len(reasons)} of {number} images cannot be read: {named}"


def fitted(images: np.ndarray, size: int) -> np.ndarray:
    """Images u8[N, H, W, C] as u8[N, size, size, C], as `decode_all` makes them."""
    if images.shape[1:3] == (size, size):
        return images
    made = np.empty((len(images), size, size, images.shape[-1]), np.uint8)
    for i, image in enumerate(images):
        picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
        made[i] = _pixels(_fitted(picture, size))
    return made


def _header(file: Encoded) -> tuple[tuple[int, int], str]:
    """Size (width, height) when upright, and mode, read without decoding."""
    try:
        with _opened(file) as image:
            (width, height), mode = image.size, image.mode
            # Only where it stands before the pixels: Pillow would decode them to look further.
            exif = image.getexif() if "exif" in image.info else {}
    except (*UNREADABLE, Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError("cannot be read as an image") from None
    if mode not in _GREY_MODES + _COLOUR_MODES:
        raise InputError(f"has pixels of mode {mode}: they must be of 8 bits, grey or RGB")
    turned = exif.get(ExifTags.Base.Orientation) in _ON_ITS_SIDE
    return ((height, width) if turned else (width, height)), mode


def _check_sizes(names: Sequence[str], sizes: dict[int, tuple[int, int]]) -> None:
    first = next(iter(sizes), 0)
    for i, size in sizes.items():
        if size != sizes[first]:
            raise InputError(
                f"{names[i]} is {size[0]}x{size[1]} pixels and {names[first]} is "
                f"{sizes[first][0]}x{sizes[first][1]}: all images of a data set must be of one "
                f"size, which --image-size 32 makes them"
            )


def _decoded(file: Encoded, mode: str, size: tuple[int, int], image_size: int | None) -> np.ndarray:
    try:
        with _opened(file) as image:
            if image_size is not None:  # a large JPEG is decoded to a fraction, four times faster
                image.draft(mode, (2 * image_size, 2 * image_size))
            upright = _on_white(ImageOps.exif_transpose(image)).convert(mode)
    except (*UNREADABLE, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"cannot be decoded: {error}") from None
    if image_size is not None:
        upright = _fitted(upright, image_size)
    if upright.size != size:
        raise InputError(f"is {upright.size[0]}x{upright.size[1]} pixels when it is upright")
    return _pixels(upright)


def _opened(file: Encoded) -> Image.Image:
    return Image.open(file if isinstance(file, Path) else io.BytesIO(file))


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image.convert("RGBA"))
    return white.convert("RGB")


def _fitted(image: Image.Image, size: int) -> Image.Image:
    return ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).reshape(image.height, image.width, -1)

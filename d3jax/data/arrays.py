"""A data set by name or path, and what of it goes to the device.

`load` takes "digits" or "moved_digits" (embedded), the name of a prepared TFDS set, an .npz file or
an image folder. Pixels stay uint8 until they are used; `Normalization` says how they are used.
"""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from d3jax.data.given import DEFAULT, Reading, as_labels, as_pixels, numbered
from d3jax.data.mapped import pick
from d3jax.data.normalization import Normalization
from d3jax.keys import check_seed
from d3jax.types import HeldOut, InputError, Real


class Dataset(NamedTuple):
    """Images u8[N, H, W, C] and labels i32[N] of three splits; validation may be empty.

    Made by `load`, or in Python by `from_arrays`, which take other types and refuse bad ones.

    Images may lie in a file (`mapped.Mapped`): indexing reads them, `mapped.pick` does not.
    """

    name: str  # as given to `load`
    train_images: np.ndarray
    train_labels: np.ndarray
    validation_images: np.ndarray
    validation_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    reading: Reading = DEFAULT  # how it was read; an artifact says it, to be judged alike

    @classmethod
    def from_arrays(
        cls,
        train_images: np.ndarray,
        train_labels: np.ndarray,
        test_images: np.ndarray,
        test_labels: np.ndarray,
        *,
        class_names: Sequence[str] | None = None,
        name: str = "arrays",
        validation: int = 0,
        seed: int = 0,
        image_size: int | None = None,
    ) -> "Dataset":
        """A data set of images [N, H, W, C] and labels i[N] from 0 on, all from Python.

        Args:
          train_images, test_images: uint8, or floats from 0 to 1, which are rounded to uint8: not
            normalized, since runs do that by the training images. Without channels, [N, H, W], or
            channels first, [N, C, H, W] with 1 or 3 of them, too.
          train_labels, test_labels: integers; a list will do.
          class_names: default the labels.
          name: of the data set.
          validation: so many images, drawn by `seed`, are set aside from the training images.
          seed: of that.
          image_size: the images' short side is resized to it (Lanczos), and the centre cut out.

        Raises:
          InputError: arrays that are none, differ in length or shape, or labels out of range.

        Examples:
          >>> images, labels = np.linspace(0, 1, 6 * 64).reshape(6, 8, 8), [0, 1] * 3
          >>> data = Dataset.from_arrays(images[:4], labels[:4], images[4:], labels[4:])
          >>> data.image_shape, data.num_classes, data.train_images.dtype
          ((8, 8, 1), 2, dtype('uint8'))
        """
        from d3jax.data.splits import Splits, checked, sized

        Reading(image_size).check()
        arrays = [np.asarray(x) for x in (train_images, train_labels, test_images, test_labels)]
        names = numbered(arrays[1], "train_labels") if class_names is None else tuple(class_names)
        splits = Splits(arrays[0], arrays[1], arrays[2], arrays[3], names)
        splits = checked(splits if image_size is None else sized(splits, image_size), name)
        images = len(splits.train_labels)
        if not 0 <= validation < images:
            raise InputError(
                f"validation must be from 0 to below the {images} training images, not {validation}"
            )
        kept, drawn = _split(images, None, validation, seed)
        return cls(
            name,
            splits.train_images[kept],
            splits.train_labels[kept],
            splits.train_images[drawn],
            splits.train_labels[drawn],
            splits.test_images,
            splits.test_labels,
            splits.class_names,
        )

    def real(self, normalization: Normalization | None = None) -> Real:
        """The training images on the device, for `Method.init` and `Method.step`; see `on_host`."""
        return jax.tree.map(jnp.asarray, self.on_host(normalization))

    def on_host(self, normalization: Normalization | None = None) -> Real:
        """The training images as NumPy arrays, indexed by class.

        They stay uint8 and are normalized where they are gathered; whitened ones are float32.

        Raises:
          InputError: a label out of range, or a class without images, by its name.
        """
        chosen = Normalization.of(self.train_images) if normalization is None else normalization
        return host_arrays(
            self.train_images, self.train_labels, self.num_classes, chosen, self.class_names
        )

    def shapes(self, normalization: Normalization) -> Real:
        """Shapes and types of `real` alone, for `jax.eval_shape`; raises as `on_host` does."""
        pixel = np.uint8 if normalization.zca is None else np.float32
        unread = self._replace(train_images=np.broadcast_to(np.uint8(0), self.train_images.shape))
        arrays = unread.on_host(normalization._replace(zca=None))
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arrays)
        return shapes._replace(images=jax.ShapeDtypeStruct(self.train_images.shape, pixel))

    def held_out(self, normalization: Normalization) -> HeldOut:
        """The test images on the device."""
        return held_out(self.test_images, self.test_labels, normalization)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        _, height, width, channels = self.train_images.shape
        return height, width, channels

    @property
    def num_classes(self) -> int:
        """The number of classes, K; labels go from 0 to K - 1."""
        return len(self.class_names)


def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    train_limit: int | None = None,
    test_limit: int | None = None,
    validation: int = 0,
    seed: int = 0,
    image_size: int | None = None,
    test_fraction: float | None = None,
    skip_unreadable: bool = False,
    test_only: bool = False,
) -> Dataset:
    """A data set, cut to the first `train_limit` and `test_limit` images of its fixed order.

    name: "digits" or "moved_digits" (see `data.digits`); a data set prepared with `d3jax prepare`,
      such as "mnist" or "imagenet_resized/64x64"; a path to an .npz (see `sources.read_npz`); or to
      an image folder (see `folders.read_image_folder`): train/CLASS/*.jpg, *.png ... with test/ or
      val/ beside it, or CLASS/*.jpg, *.png ... alone.
    data_dir: where names are looked up, as tfds/NAME, NAME, data/NAME.npz and NAME.npz; default
      $D3JAX_DATA_DIR, else the TFDS default.
    validation: so many images, drawn by `seed` from the official training images and never
      trained on: from those beyond `train_limit` where they suffice, so that the training set is
      the same with and without validation; else from all of them, the training set taking
      what is left, up to `train_limit`.
    image_size: the images' short side is resized to it (Lanczos), and the centre cut out; default
      images are as they are, and have to be square and of one size.
    test_fraction: of each class of an image folder without test images, so many are test images,
      drawn by name: the same ones for every seed; default 0.2.
    skip_unreadable: leave out images of a folder that cannot be read; default refuse them.
    test_only: no training images: of folders and .npz files they need not be there.

    The order is TFDS's, the file's, or the official one where the records say it; a split that
    comes sorted by class is taken one image of each class in turn. Where the official test labels
    are withheld (no test split) the official validation split serves as test. Raises InputError
    where there is no such data, it is damaged, or the numbers cannot be had.
    """
    for what, limit in (("train_limit", train_limit), ("test_limit", test_limit)):
        if limit is not None and limit < 1:
            raise InputError(f"{what} must be at least 1, not {limit}")
    if validation < 0:
        raise InputError(f"validation must not be negative, it is {validation}")
    check_seed(seed)
    reading = Reading(image_size, test_fraction, skip_unreadable, test_only)
    reading.check()
    if test_only:
        train_limit, validation = None, 0
    from d3jax.data import sources  # needs Pillow and more

    splits = sources.read(name, data_dir, reading)
    available, tests = len(splits.train_labels), len(splits.test_labels)
    for what, limit, most in (
        ("train_limit", train_limit, available),
        ("test_limit", test_limit, tests),
    ):
        if limit is not None and limit > most:
            raise InputError(f"{what} {limit} is more than the {most} images that {name} has")
    if validation and validation >= available:
        raise InputError(
            f"validation {validation} leaves none of the {available} training images of {name}"
        )
    train_index, validation_index = _split(available, train_limit, validation, seed)
    _check_classes(splits.train_labels, train_index, splits.class_names, train_limit)
    return Dataset(
        name,
        splits.train_images
        if len(train_index) == available
        else pick(splits.train_images, train_index),
        splits.train_labels[train_index],
        pick(splits.train_images, validation_index),
        splits.train_labels[validation_index],
        pick(splits.test_images, slice(test_limit)),
        splits.test_labels[:test_limit],
        splits.class_names,
        reading,
    )


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Images u8[N, H, W, C] as u8[N, size, size, C], bilinearly, without aliasing."""
    if images.shape[1] == size:
        return images
    from PIL import Image

    resized = [
        np.asarray(
            Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).resize(
                (size, size), Image.Resampling.BILINEAR
            )
        )
        for image in images
    ]
    return np.stack(resized).reshape(len(images), size, size, images.shape[-1])


def host_arrays(
    images: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    normalization: Normalization,
    class_names: tuple[str, ...] | None = None,
) -> Real:
    """Training images [N, H, W, C] and labels i[N] as `Dataset.on_host` has them.

    images: uint8, or floats from 0 to 1 (`given.as_pixels`); not normalized.
    """
    images, labels = as_pixels(images), as_labels(labels, len(images))
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise InputError(
            f"labels go from {labels.min()} to {labels.max()}, outside 0 to {num_classes - 1}"
        )
    counts = np.bincount(labels, minlength=num_classes)
    if not counts.all():
        empty = int(np.argmin(counts))
        name = f" ({class_names[empty]})" if class_names else ""
        raise InputError(f"class {empty}{name} has no training image")
    by_class = np.argsort(labels, kind="stable")
    starts = np.cumsum(counts) - counts
    column = np.arange(counts.max())
    # Past its count a class repeats its first image: a valid position, never drawn.
    index = by_class[starts[:, None] + np.where(column < counts[:, None], column, 0)]
    arrays: Any = dict(
        images=np.asarray(images) if normalization.zca is None else normalization.apply(images),
        labels=labels,
        class_index=index.astype(np.int32),
        class_counts=counts.astype(np.int32),
        mean=normalization.mean.astype(np.float32),
        sd=normalization.sd.astype(np.float32),
    )
    return Real(**arrays)


def held_out(images: np.ndarray, labels: np.ndarray, normalization: Normalization) -> HeldOut:
    """Images as `host_arrays` takes them that are not trained on, on the device, normalized as the
    artifact says."""
    images, labels = as_pixels(images), as_labels(labels, len(images))
    return HeldOut(
        images=jnp.asarray(images if normalization.zca is None else normalization.apply(images)),
        labels=jnp.asarray(labels),
        mean=jnp.asarray(normalization.mean, jnp.float32),
        sd=jnp.asarray(normalization.sd, jnp.float32),
    )


def padded(real: Real, images: int, longest: int) -> Real:
    """Host arrays with room for so many images, and so many positions of each class."""
    more = images - len(real.labels)
    room = ((0, more), *((0, 0),) * (real.images.ndim - 1))
    index = np.asarray(real.class_index)
    # Past its count a class repeats its first image: a valid position, never drawn.
    first = np.repeat(index[:, :1], longest - index.shape[1], axis=1)
    arrays: Any = dict(
        images=np.pad(real.images, room),
        labels=np.pad(real.labels, (0, more)),
        class_index=np.concatenate([index, first], axis=1),
    )
    return real._replace(**arrays)


def _check_classes(
    labels: np.ndarray, kept: np.ndarray, class_names: tuple[str, ...], train_limit: int | None
) -> None:
    """Raises InputError where no image of a class is kept, though there are some."""
    there, left = (np.bincount(x, minlength=len(class_names)) > 0 for x in (labels, labels[kept]))
    if (there & ~left).any():
        lost = class_names[int(np.argmax(there & ~left))]
        advice = "lower validation" if train_limit is None else "raise train_limit"
        raise InputError(f"class {lost} has no training image left: {advice}")


def _split(
    available: int, train_limit: int | None, validation: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ascending positions of the training and of the validation images."""
    limit = available if train_limit is None else train_limit
    spare = available - limit >= validation
    pool = np.arange(limit, available) if spare else np.arange(available)
    drawn = np.random.default_rng(seed).permutation(pool)[:validation]
    kept = np.arange(limit) if spare else np.setdiff1d(pool, drawn)[:limit]
    return kept, np.sort(drawn)

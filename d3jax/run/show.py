"""The pictures of an artifact, and `d3jax show`."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from d3jax import artifact, data
from d3jax.data.sources import dataset_name
from d3jax.host import files
from d3jax.host.progress import Reporter
from d3jax.keys import check_seed
from d3jax.run import pictures, tables


def show(path: Path, picture: Path | None, seed: int, reporter: Reporter) -> None:
    """Runs `d3jax show`: the artifact's header, ledger and picture.

    Where the artifact's folder cannot be written, and no other is named for the picture, there is
    none.

    Raises:
      InputError: the artifact cannot be used.
    """
    path = artifact.located(path)
    distilled = artifact.load(path)
    target = path.with_suffix(".png") if picture is None else picture
    files.check_target(target)
    check_seed(seed)
    reporter.console.print_json(data=distilled.header)
    ledger = distilled.ledger
    reporter.console.print(tables.ledger_table(ledger["bytes"]))
    ipc = ledger["ipc_equivalent"]
    reporter.say(
        f"{ledger['floats']} stored floats; as many bytes as {ipc['float32']:.2f} float32 or "
        f"{ipc['uint8']:.2f} uint8 images per class"
    )
    normalization = distilled.header["normalization"]
    if normalization["zca"] is not None:
        reporter.say("the picture shows whitened images: their colours are not those of pixels")
    try:
        own = data.Normalization.of_header(normalization)
        decoded_picture(target, distilled, own, jax.random.key(seed))
    except OSError as error:
        if picture is not None:
            raise
        reporter.say(
            f"no picture: {target} cannot be written ({error.strerror}); --picture FILE writes it "
            f"elsewhere"
        )
        return
    reporter.say(f"picture: {target}")


def decoded_picture(
    path: Path, distilled: artifact.Artifact, normalization: data.Normalization, key: Array
) -> None:
    """Writes what `_decoded` shows of an artifact."""
    _by_class(path, *_decoded(distilled, key), normalization)


def decoded_figure(distilled: artifact.Artifact, seed: int) -> pictures.Picture:
    """The same as a figure; whitened images keep their colours."""
    check_seed(seed)
    normalization = data.Normalization.of_header(distilled.header["normalization"])
    images, names, title = _decoded(distilled, jax.random.key(seed))
    return pictures.drawn(*_rows(images, names, normalization), title)


def _decoded(distilled: artifact.Artifact, key: Array) -> tuple[Array, tuple[str, ...], str]:
    """One row a class: its first deterministic decodes, then samples (none of plain images).

    Where there are fewer images than classes, one row an image.
    """
    header = distilled.header
    names, title = tuple(header["class_names"]), f"{header['method']} on {header['dataset']}"
    images = distilled.sample().images
    if distilled.kind != "gaussian":
        return images, names, title
    items = len(images) // len(names)
    columns = min(items, 4)
    means = images.reshape(len(names), items, *images.shape[1:])[:, :columns]
    draws = jax.random.split(key, math.ceil((10 - columns) / items))
    samples = [distilled.sample(draw).images.reshape(len(names), items, *images.shape[1:])
               for draw in draws]  # fmt: skip
    rows = jnp.concatenate([means, *samples], axis=1)[:, :10]
    title += f": decoded means (first {columns}), then samples"
    return rows.reshape(-1, *images.shape[1:]), names, title


def start_picture(
    path: Path, images: Array, dataset: data.Dataset, normalization: data.Normalization
) -> None:
    """What the images were before the first outer step."""
    title = f"{dataset_name(dataset.name)}: before the first outer step"
    _by_class(path, images, dataset.class_names, title, normalization)


def _by_class(
    path: Path,
    images: Array,
    names: tuple[str, ...],
    title: str,
    normalization: data.Normalization,
) -> None:
    pictures.picture(path, *_rows(images, names, normalization), title)


def _rows(
    images: Array, names: tuple[str, ...], normalization: data.Normalization
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Pixels u8[rows, columns, H, W, C], and the rows' names."""
    pixels = normalization.invert(np.asarray(images))
    if len(pixels) % len(names):
        names = tuple(f"image {number}" for number in range(len(pixels)))
    return pixels.reshape(len(names), -1, *pixels.shape[1:])[:, :10], names

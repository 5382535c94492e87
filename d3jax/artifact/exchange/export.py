"""Writes an artifact's images as other projects read them, with a card."""

import io
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from d3jax.artifact.exchange import card
from d3jax.artifact.exchange.conventions import field_name, normalization_of
from d3jax.artifact.file import NAME, Artifact, save
from d3jax.data import Normalization
from d3jax.host import files
from d3jax.keys import as_key
from d3jax.types import InputError, check_known

FORMATS = ("torch", "mtt", "dc", "folder", "npz", "hub")
TENSORS = ("torch", "mtt", "dc")


class Drawn(NamedTuple):
    """What is written: images and labels, in the order of the classes."""

    levels: np.ndarray  # f32[N, H, W, C], pixels in [0, 1], or beyond
    targets: np.ndarray  # i64[N], or f32[N, K] probabilities
    draws: int  # of each item; 0: the deterministic decodes


def export(
    made: Artifact,
    folder: str | Path,
    format: str,
    *,
    draws: int | None = None,
    seed: int = 0,
    normalization: Normalization,
    whitened: Normalization | None = None,
    hard_labels: bool = False,
) -> dict[str, Any]:
    """Writes a folder, whole or not at all.

    Args:
      made: the artifact.
      folder: must not be there, or be empty.
      format: `torch` (images.pt, labels.pt, lr.pt, as DD-Ranking reads them), `mtt`
        (images_best.pt, labels_best.pt, lr_best.pt: MTT, DATM), `dc` (res_METHOD_DATASET_ConvNet_
        Nipc.pt: DC, DSA, DM), `folder` (PNG by class as RDED has them, and labels.npy), `npz`
        (images u8[N, H, W, C], labels), or `hub` (parquet as the package datasets loads it, and the
        artifact itself).
      draws: images of each item of a generator; 0: its deterministic decodes; default 1.
      seed: of the draws.
      normalization: what the artifact's images are normalized by.
      whitened: MTT's whitening of the data set (mean 0, sd 1, then ZCA), where it is to be used.
      hard_labels: write classes where labels are soft.

    Tensors are float32 [N, C, H, W], normalized as the readers of the format normalize test images
    (`normalization_of`), or as the artifact is where they know no such data set; labels are int64,
    or the logarithms of probabilities. Others are rounded to bytes.

    Returns:
      What header.json says: the artifact's header and, in `export`, what was written.

    Raises:
      InputError: an unknown format, labels that it cannot say, or a folder that is in use.
    """
    folder = Path(folder)
    check_known("format", format, FORMATS)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there already; name a folder that is not, or is empty")
    files.check_parent(folder)
    drawn = draw(made, draws, seed, normalization, hard_labels=hard_labels)
    if format == "dc" and drawn.targets.ndim == 2:
        raise InputError("the format dc has classes alone; --hard-labels takes the largest label")
    used = _used(made, format, normalization, whitened)
    told = {
        "format": format,
        "images": len(drawn.levels),
        "draws": drawn.draws,
        "seed": seed,
        "labels": "classes" if drawn.targets.ndim == 1 else "soft",
        "normalization": {
            "mean": [float(v) for v in used.mean],
            "sd": [float(v) for v in used.sd],
            "zca": "mtt" if used.zca is not None else None,
        },
    }
    if format not in TENSORS:
        told["rounding"] = rounding(drawn.levels)
    about = {"artifact": made.header, "ledger": made.ledger, "export": told}
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        partial.mkdir()
        _write(made, drawn, used, format, partial)
        card.write(partial, about)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return about


def draw(
    made: Artifact,
    draws: int | None,
    seed: int,
    normalization: Normalization,
    *,
    hard_labels: bool = False,
) -> Drawn:
    """An artifact's images, each item's draws one after another, and what students learn of them.

    Raises:
      InputError: several draws of what does not draw; or labels that are no probabilities.
    """
    specification = made.header["parametrization"]
    if not _random(specification):
        if draws not in (None, 0, 1):
            raise InputError(
                f"this artifact holds {specification['kind']}, which are the same in every draw; "
                f"leave out --draws"
            )
        draws = 0
    draws = 1 if draws is None else draws
    if draws < 0:
        raise InputError(f"draws must not be negative, they are {draws}")
    keys = jax.random.split(as_key(seed), draws) if draws else [None]
    batches = [made.sample(key) for key in keys]
    images = np.stack([np.asarray(batch.images, np.float32) for batch in batches], 1)
    targets = np.stack([np.asarray(batch.targets, np.float32) for batch in batches], 1)
    images, targets = (x.reshape(-1, *x.shape[2:]) for x in (images, targets))
    kind = made.synthetic.label_kind
    if kind in ("free", "solved", "values") and not hard_labels:
        raise InputError(
            f"the labels are {kind} vectors, no probabilities, which other projects do not read; "
            f"--hard-labels takes the largest"
        )
    if kind == "hard" or hard_labels:
        targets = targets.argmax(1).astype(np.int64)
        order = np.argsort(targets, kind="stable")  # soft labels may have been of other classes
        images, targets = images[order], targets[order]
    return Drawn(normalization.levels(images), targets, draws)


def rounding(levels: np.ndarray) -> dict[str, float]:
    """What bytes cost: the share of values that are clipped, and the change in levels of 255."""
    exact = levels.astype(np.float64) * 255
    change = np.abs(np.clip(np.rint(exact), 0, 255) - exact)
    clipped = (exact < -0.5) | (exact > 255.5)
    return {
        "clipped": float(clipped.mean()),
        "mean_change": float(change.mean()),
        "largest_change": float(change.max()),
    }


def _random(specification: dict[str, Any]) -> bool:
    """Whether a sample with a key differs from the deterministic decode."""
    return any(
        part["kind"] == "gaussian" and part.get("variance") != "none"
        for part in specification.get("parts", [specification])
    )


def _used(
    made: Artifact, format: str, own: Normalization, whitened: Normalization | None
) -> Normalization:
    """What tensors are normalized by."""
    if whitened is not None and format in TENSORS:
        return whitened
    channels = made.header["parametrization"]["image_shape"][2]
    known = normalization_of(made.header["dataset"], channels, format)
    if known is None or format not in TENSORS:
        return Normalization(own.mean, own.sd)
    mean, sd = (np.asarray(values, np.float32) for values in known)
    return Normalization(mean, sd)


def _write(made: Artifact, drawn: Drawn, used: Normalization, format: str, folder: Path) -> None:
    if format in TENSORS:
        _write_tensors(made, drawn, used, format, folder)
        return
    pixels = np.rint(np.clip(drawn.levels * 255, 0, 255)).astype(np.uint8)
    if format == "folder":
        _write_pictures(pixels, drawn.targets, folder)
    elif format == "npz":
        np.savez_compressed(
            folder / "distilled.npz",
            images=pixels,
            labels=drawn.targets,
            class_names=np.asarray(made.header["class_names"]),
        )
    else:
        _write_parquet(pixels, drawn.targets, made.header["class_names"], folder / "data")
        save(made, folder / NAME)


def _write_tensors(
    made: Artifact, drawn: Drawn, used: Normalization, format: str, folder: Path
) -> None:
    import torch  # extra `torch`

    images = used.of_levels(drawn.levels).astype(np.float32).transpose(0, 3, 1, 2)
    images = torch.from_numpy(np.ascontiguousarray(images))
    soft = drawn.targets.ndim == 2
    written = np.log(np.maximum(drawn.targets, 1e-12)) if soft else drawn.targets
    labels = torch.from_numpy(written)
    rate = torch.tensor(made.header["student_learning_rate"], dtype=torch.float32)
    if format == "dc":
        header = made.header
        per_class = len(images) // len(header["class_names"])
        network = "ConvNetD4" if header["architecture"].get("depth") == 4 else "ConvNet"
        name = f"res_{header['method'].upper()}_{field_name(header['dataset'])}_{network}"
        data = {"data": [[images, labels]], "accs_all_exps": {}}
        _save(data, folder / f"{name}_{per_class}ipc.pt")
        return
    end = "_best" if format == "mtt" else ""
    for name, tensor in (("images", images), ("labels", labels), ("lr", rate)):
        _save(tensor, folder / f"{name}{end}.pt")


def _save(tensors: Any, path: Path) -> None:
    import torch

    stream = io.BytesIO()  # torch does not say that a disk is full
    torch.save(tensors, stream)
    files.write_bytes(path, stream.getvalue())


def _pictures(pixels: np.ndarray) -> list[Any]:
    from PIL import Image

    return [Image.fromarray(x.squeeze(-1) if x.shape[-1] == 1 else x) for x in pixels]


def _write_pictures(pixels: np.ndarray, targets: np.ndarray, folder: Path) -> None:
    """RDED's names, as PNG: CLASS/classCLASS_idNUMBER.png; labels in the order of the names."""
    classes = targets if targets.ndim == 1 else targets.argmax(1)
    order = np.argsort(classes, kind="stable")
    numbers = np.arange(len(order)) - np.searchsorted(classes[order], classes[order])
    pictures = _pictures(pixels[order])
    for picture, label, number in zip(pictures, classes[order], numbers, strict=True):
        own = folder / f"{label:05d}"
        own.mkdir(exist_ok=True)
        picture.save(own / f"class{label:05d}_id{number:05d}.png")
    np.save(folder / "labels.npy", targets[order])


def _write_parquet(pixels: np.ndarray, targets: np.ndarray, names: list[str], folder: Path) -> None:
    """image, label and perhaps soft_label, with the types that the package datasets gives them."""
    import io
    import json

    import pyarrow
    import pyarrow.parquet

    def encoded(picture: Any) -> dict[str, Any]:
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        return {"bytes": stream.getvalue(), "path": None}

    soft = targets.ndim == 2
    kinds: dict[str, Any] = {
        "image": {"_type": "Image"},
        "label": {"names": names, "_type": "ClassLabel"},
    }
    columns: dict[str, Any] = {
        "image": pyarrow.array(
            [encoded(picture) for picture in _pictures(pixels)],
            pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}),
        ),
        "label": pyarrow.array(targets.argmax(1) if soft else targets, pyarrow.int64()),
    }
    if soft:
        kinds["soft_label"] = {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "List"}
        columns["soft_label"] = pyarrow.array(targets.tolist(), pyarrow.list_(pyarrow.float32()))
    said = {"huggingface": json.dumps({"info": {"features": kinds}})}
    table = pyarrow.table(columns).replace_schema_metadata(said)
    folder.mkdir()
    pyarrow.parquet.write_table(table, folder / "train-00000-of-00001.parquet")

"""The distilled data as one safe file, with a ledger of its bytes.

A `.safetensors` file: the arrays of theta, and a JSON header under the metadata key `d3jax` that
says how to decode them. No pickle: a file is checked against its header before any array is read.
"""

import html
import json
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jax import Array

from d3jax import synthetic
from d3jax.artifact.checks import (
    FORMAT_VERSION,
    MAGIC,
    check_table,
    expected,
    flatten,
    header_of,
    parse,
)
from d3jax.host import files
from d3jax.keys import as_key
from d3jax.synthetic import labels, rounding
from d3jax.synthetic.arguments import as_items
from d3jax.types import Batch, InputError, PyTree, Synthetic

NAME = "artifact.safetensors"  # in a run's folder
_LONGEST_HEADER = 16 << 20


class Artifact(NamedTuple):
    """Distilled data that knows how to decode itself."""

    header: dict[str, Any]
    # As stored: float16, float32, `rounding.Int8`; given labels perhaps in bytes.
    theta: dict[str, PyTree]

    def _repr_html_(self) -> str:
        """For notebooks; `d3jax.show` draws the images."""
        ledger = self.ledger
        rows = {
            "method": self.header["method"],
            "data set": self.header["dataset"],
            "parametrization": self.kind,
            "classes": len(self.header["class_names"]),
            "stored floats": f"{ledger['floats']:,}",
            "stored bytes": f"{ledger['bytes']['total']:,}",
        }
        cells = (f"<tr><th>{n}</th><td>{html.escape(str(v))}</td></tr>" for n, v in rows.items())
        return f"<table>{''.join(cells)}</table>"

    @property
    def synthetic(self) -> Synthetic:
        """The parametrization of `theta`."""
        return synthetic.create(self.header["parametrization"])

    @property
    def kind(self) -> str:
        """The kind of parametrization; of what is joined, that of its parts."""
        specification = self.header["parametrization"]
        return specification.get("parts", [specification])[0]["kind"]

    def decodable(self) -> dict[str, PyTree]:
        """theta in float32, as `synthetic.sample` takes it."""
        return _decodable(self.theta)

    def sample(
        self, key: Array | int | None = None, indices: Array | Sequence[int] | None = None
    ) -> Batch:
        """Normalized images and targets of the items `indices` (default all).

        Without a key the deterministic decodes, with one (or a seed) a fresh sample of each item.
        Compiled, once for all artifacts of one parametrization and number of items.
        """
        data, key = self.synthetic, None if key is None else as_key(key)
        return _sampling(data)(self.theta, key, as_items(indices, data.num_items))

    @property
    def ledger(self) -> dict[str, Any]:
        """Where the bytes of the file go, the floats stored, and what the bytes would buy raw.

        `bytes` has total, images, latents, decoder (its frozen statistics included), labels (of
        items, or of views), teacher (where the artifact brings one that labels views), and other
        (header and file format); `floats` counts array elements, the scales of int8 arrays
        too; `ipc_equivalent` is the images per class that the total would hold as raw float32 and
        as raw uint8 images.
        """
        data = "images" if self.kind in ("pixels", "generated") else "latents"
        rooms = {"data": data, "decoder": "decoder", "statistics": "decoder", "labels": "labels",
                 "view_labels": "labels", "teacher": "teacher"}  # fmt: skip
        held: dict[str, int] = dict.fromkeys(("images", "latents", "decoder", "labels"), 0)
        held |= {"teacher": 0} if "teacher" in self.theta else {}
        floats = 0
        for name, array in flatten(self.theta).items():
            room = rooms.get(name.split("/")[0])  # an initialization counts as other
            if room is not None:
                held[room] += array.nbytes
            floats += array.size
        total = len(_serialize(self))
        pixels = math.prod(self.header["parametrization"]["image_shape"])
        raw = pixels * len(self.header["class_names"])
        return {
            "bytes": {"total": total, **held, "other": total - sum(held.values())},
            "floats": floats,
            "ipc_equivalent": {"float32": total / (4 * raw), "uint8": total / raw},
        }


def _decodable(theta: dict[str, PyTree]) -> dict[str, PyTree]:
    def read(x: Any) -> Array:
        if isinstance(x, rounding.Int8):
            return rounding.dequantize(x)
        in_bytes = x.dtype == np.uint8
        return labels.from_bytes(x) if in_bytes else jnp.asarray(x, jnp.float32)

    return jax.tree.map(read, theta, is_leaf=lambda x: isinstance(x, rounding.Int8))


@lru_cache(maxsize=32)  # as many as `synthetic.create` keeps
def _sampling(data: Synthetic) -> Callable[..., Batch]:
    return jax.jit(lambda theta, key, indices: data.sample(_decodable(theta), key, indices))


def create(
    theta: dict[str, PyTree],
    *,
    method: str,
    dataset: str,
    class_names: tuple[str, ...],
    normalization: dict[str, Any],
    architecture: dict[str, Any],
    parametrization: dict[str, Any],
    student_learning_rate: float,
    protocol: dict[str, Any],
    seed: int,
    dtype: str = "float16",
    label_dtype: str = "float",
    replay: dict[str, Any] | None = None,
    sequence: dict[str, Any] | None = None,
    subtask: dict[str, Any] | None = None,
    reading: dict[str, Any] | None = None,
    teaching: dict[str, Any] | None = None,
) -> Artifact:
    """An artifact of `theta`, which must be frozen (`Synthetic.freeze`).

    Args:
      theta: the groups data, decoder, statistics, labels; learning rates go into the header.
      method, dataset, class_names, seed: say where it comes from.
      normalization: {"mean": [C], "sd": [C], "zca": None or its recipe and hash}.
      architecture: of experts and students, as `networks.create` takes it, the name as "network".
      parametrization: the specification for `synthetic.create`.
      student_learning_rate: the learned one.
      protocol: how students were meant to be trained (`evaluate.Protocol` as a dictionary).
      dtype: float16, float32 or int8 (`synthetic.rounding`: latents, kernels, images; the rest
        float16). Arrays whose values float16 cannot hold stay float32, as does `weights`, the
        stored initialization of a network. A parametrization that rounds while it learns is stored
        as it rounds, whatever is given here.
      label_dtype: `float` (as the rest), or `int8` for labels that are given: a byte each.
      replay: the steps that the data was learned for, if any (`recipe.Recipe`).
      sequence: the subsets that students train on in turn, if any (`sequence.Recipe`).
      subtask: {"classes": their numbers in the whole, "class_names": of the whole}, where these are
        some of a data set's classes (`artifact.join.join`).
      teaching: what of a teacher theta holds, if anything: {"labels": "teacher"}, itself, as group
        `teacher`; or {"labels": "views", "epochs": E, "visits": V}, its logits f[E, V, K] of all
        views that students see, as group `view_labels`.
      reading: how the data set was read, where it left a choice (`data.given.Reading.chosen`).
    """
    if dtype not in ("float16", "float32", "int8"):
        raise InputError(f"artifact arrays are stored as float16, float32 or int8, not {dtype!r}")
    rounded = parametrization.get("rounding", "none")
    dtype = dtype if rounded == "none" else rounded
    check_label_dtype(label_dtype, parametrization)

    def stored(path: Any, array: Array) -> Any:
        if dtype == "int8" and rounding.is_int8(path, array):
            return jax.tree.map(np.asarray, rounding.quantize(jnp.asarray(array, jnp.float32)))
        full = np.asarray(array, np.float32)
        if label_dtype == "int8" and path[0].key == "labels":
            return labels.in_bytes(full)
        half = dtype != "float32" and path[0].key != "weights"
        fits = half and np.abs(full).max(initial=0) <= np.finfo(np.float16).max
        return full.astype(np.float16) if fits else full

    header = {
        "format_version": FORMAT_VERSION,
        "method": method,
        "dataset": dataset,
        "class_names": list(class_names),
        "normalization": normalization,
        "architecture": architecture,
        "parametrization": parametrization,
        "student_learning_rate": float(student_learning_rate),
        "protocol": protocol,
        "seed": seed,
        "versions": versions(),
    }
    if dtype == "int8":
        header["storage"] = dtype
    if replay is not None:
        header["replay"] = replay
    if sequence is not None:
        header["sequence"] = sequence
    if subtask is not None:
        header["subtask"] = subtask
    if teaching is not None:
        header["teaching"] = teaching
    if reading:
        header["reading"] = reading
    return Artifact(header, jax.tree.map_with_path(stored, theta))


def check_label_dtype(label_dtype: str, parametrization: dict[str, Any]) -> None:
    """Raises InputError for a way to store labels that is none, or not for labels of this kind."""
    if label_dtype not in ("float", "int8"):
        raise InputError(f"labels are stored as float or int8, not {label_dtype!r}")
    if label_dtype == "int8" and parametrization.get("label_kind") != "probabilities":
        raise InputError(
            "int8 is for labels that are given: add --labels expert, or store them as float"
        )


def versions() -> dict[str, str]:
    """The versions of the packages that numbers depend on."""
    return {name: metadata.version(name) for name in ("d3jax", "jax", "flax", "optax", "numpy")}


def save(artifact: Artifact, path: str | Path) -> None:
    """Writes the artifact as one file, whole or not at all."""
    files.write_bytes(path, _serialize(artifact))


def located(path: str | Path) -> Path:
    """The artifact's file: `path`, or what a run left in that folder."""
    path = Path(path)
    return path / NAME if path.is_dir() else path


def load(path: str | Path) -> Artifact:
    """The artifact in the file at `path`, or in that folder of a run, after checking all of it.

    Raises:
      InputError: the file is missing, truncated, oversized, of another kind or version, or its
        arrays are not those that its header promises.
    """
    path = located(path)
    if not path.is_file():
        raise InputError(f"there is no artifact at {path}")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            raise InputError(f"{path} is not a safetensors file, or it is cut off")
        table = parse(file.read(length), path)
    header = header_of(table.pop("__metadata__", None), path)
    names, structure = expected(header, path)
    label_kind = header["parametrization"].get("label_kind")
    check_table(table, names, label_kind, size - 8 - length, path)
    try:
        arrays = safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:  # overlapping or unordered arrays, among others
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not a sound safetensors file: {reason}") from None
    for name, array in arrays.items():
        if array.dtype == np.uint8 and not array.any(1).all():
            raise InputError(f"array {name} in {path} has an item without a label")
        if not np.isfinite(array).all():
            raise InputError(f"array {name} in {path} holds values that are not finite")
        if array.dtype == np.int8 and (arrays[name[: -len("levels")] + "scale"] <= 0).any():
            raise InputError(f"array {name} in {path} has a scale that is not positive")
        # Frozen statistics are pairs of mean and variance.
        of_norms = name.startswith(("statistics/", "teacher/statistics/"))
        if of_norms and name.endswith("/1") and (array < 0).any():
            raise InputError(f"array {name} in {path} holds a negative variance")
    return Artifact(header, jax.tree.unflatten(structure, [arrays[name] for name in names]))


def _serialize(artifact: Artifact) -> bytes:
    text = json.dumps(artifact.header, sort_keys=True, allow_nan=False)
    return safetensors.numpy.save(flatten(artifact.theta), metadata={MAGIC: text})

"""Whether an artifact's file is what it says, before any of its arrays is read.

Each raises InputError with one sentence that names the file.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from d3jax import networks, synthetic
from d3jax.data.given import Reading
from d3jax.data.normalization import WHITENINGS
from d3jax.synthetic import rounding
from d3jax.types import InputError, Network, PyTree, Real

FORMAT_VERSION = 1
MAGIC = "d3jax"
_DTYPES = {"F16": np.float16, "F32": np.float32, "U8": np.uint8, "I8": np.int8}
_ALLOWED = {"int8": ("I8",), "float16": ("F16",), "float32": ("F16", "F32")}
_REQUIRED = {
    "format_version": int,
    "method": str,
    "dataset": str,
    "class_names": list,
    "normalization": dict,
    "architecture": dict,
    "parametrization": dict,
    "student_learning_rate": float,
    "protocol": dict,
    "seed": int,
    "versions": dict,
}


def parse(text: bytes | str, path: Path) -> dict[str, Any]:
    """The JSON object of a safetensors file's table, or of its header."""

    def refuse(constant: str) -> None:  # NaN and infinities, which JSON has not, and Python reads
        raise ValueError(constant)

    try:
        table = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict):
        raise InputError(f"{path} is not a safetensors file: its table is not JSON")
    return table


def header_of(entry: Any, path: Path) -> dict[str, Any]:
    """The header in the table's `__metadata__`, every field of its type and in range."""
    if not isinstance(entry, dict) or not isinstance(entry.get(MAGIC), str):
        raise InputError(f"{path} is a safetensors file, but not one that d3jax wrote")
    header = parse(entry[MAGIC], path)
    check_fields(header, _REQUIRED, FORMAT_VERSION, path)
    spec = header["parametrization"]
    shape = spec.get("image_shape")
    sizes = [*shape, spec.get("num_classes")] if isinstance(shape, list) else []
    if len(sizes) != 4 or not all(type(n) is int and 0 < n < 1 << 20 for n in sizes):
        raise InputError(f"the header of {path} has no usable image shape and number of classes")
    if len(header["class_names"]) != sizes[3]:
        raise InputError(
            f"the header of {path} names {len(header['class_names'])} classes, "
            f"its parametrization has {sizes[3]}"
        )
    if not all(isinstance(name, str) for name in header["class_names"]):
        raise InputError(f"the class names in {path} are not all strings")
    check_normalization(header["normalization"], shape[2], path)
    if not isinstance(header["normalization"].get("zca", 0), dict | None):
        raise InputError(f"the normalization in {path} needs zca, a recipe or null")
    recipe = header["normalization"]["zca"]
    if recipe is not None:
        check_zca(recipe, path)
    if not isinstance(header.get("replay"), dict | None):
        raise InputError(f"the header of {path} has a replay that is no recipe of steps")
    if not isinstance(header.get("sequence"), dict | None):
        raise InputError(f"the header of {path} has a sequence that is no recipe of subsets")
    if header.get("storage", "int8") != "int8":
        raise InputError(f"the header of {path} has a storage that is not int8")
    if "reading" in header:
        _check_reading(header["reading"], path)
    if "subtask" in header:
        check_subtask(header, path)
    if not 0 < header["student_learning_rate"] < math.inf:
        raise InputError(f"the student learning rate in {path} is not a positive number")
    return header


def check_fields(
    header: dict[str, Any], required: dict[str, type], version: int, path: Path
) -> None:
    """That a header has its fields, each of its type, and a format version that is read here."""
    for name, kind in required.items():
        if type(header.get(name)) is not kind:
            raise InputError(f"the header of {path} has no {name}, or one of the wrong type")
    if header["format_version"] != version:
        raise InputError(
            f"{path} has format version {header['format_version']}; this d3jax reads {version}"
        )


def check_normalization(normalization: dict[str, Any], channels: int, path: Path) -> None:
    """That it has a mean and a positive sd of each channel."""
    for name in ("mean", "sd"):
        values = normalization.get(name)
        listed = values if isinstance(values, list) else []
        if len(listed) != channels or not all(
            type(value) is float and math.isfinite(value) for value in listed
        ):
            raise InputError(f"the normalization in {path} needs one {name} for each channel")
    if min(normalization["sd"]) <= 0:
        raise InputError(f"the normalization in {path} has an sd that is not positive")


def _check_reading(reading: Any, path: Path) -> None:
    try:
        read = Reading(**reading)
        read.check()
    except (TypeError, InputError) as error:
        raise InputError(f"{path} does not say how its data set is read: {error}") from None
    if read.chosen() != reading:
        raise InputError(f"{path} does not say how its data set is read")


def check_zca(recipe: dict[str, Any], path: Path) -> None:
    """Raises InputError where a header's ZCA recipe cannot be followed."""
    missing = {"epsilon", "images", "train_limit", "validation", "seed"} - set(recipe)
    if missing:
        raise InputError(f"the ZCA recipe in {path} lacks {sorted(missing)[0]}")
    limit, epsilon = recipe["train_limit"], recipe["epsilon"]
    good = (
        (type(recipe["seed"]) is int and recipe["seed"] >= 0)
        and (type(recipe["validation"]) is int and recipe["validation"] >= 0)
        and (limit is None or (type(limit) is int and limit > 0))
        and (type(epsilon) is float and 0 < epsilon < math.inf)
        and isinstance(recipe["images"], str)
        and recipe.get("kind", "mtt") in WHITENINGS
    )
    if not good:
        raise InputError(f"the ZCA recipe in {path} cannot be followed")


def check_subtask(header: dict[str, Any], path: Path) -> None:
    """Raises InputError where a header's subtask is none of classes that it has."""
    subtask = header["subtask"]
    classes = subtask.get("classes") if isinstance(subtask, dict) else None
    whole = subtask.get("class_names") if isinstance(subtask, dict) else None
    if (
        not isinstance(classes, list)
        or not isinstance(whole, list)
        or not all(type(k) is int and 0 <= k < len(whole) for k in classes)
    ):
        raise InputError(f"the subtask in {path} does not say which classes of which it has")
    if [whole[k] for k in classes] != header["class_names"] or len(set(classes)) != len(classes):
        raise InputError(f"the subtask in {path} has other classes than the artifact")


def expected(header: dict[str, Any], path: Path) -> tuple[dict[str, Any], Any]:
    """The arrays that the header promises: by name, in order, their shapes and dtypes (float32 for
    float32 or float16), and the tree's structure."""
    spec = header["parametrization"]
    height, width, channels = spec["image_shape"]
    classes = spec["num_classes"]

    def abstract(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    real = Real(
        images=abstract(jnp.uint8, 1, height, width, channels),
        labels=abstract(jnp.int32, 1),
        class_index=abstract(jnp.int32, classes, 1),
        class_counts=abstract(jnp.int32, classes),
        mean=abstract(jnp.float32, channels),
        sd=abstract(jnp.float32, channels),
    )
    try:
        data = synthetic.create(spec)
        key = jax.random.key(0)
        tree = jax.eval_shape(lambda k, r: data.freeze(data.init(k, r), k), key, real)
        decoded = jax.eval_shape(data.sample, tree, key).images.shape
        if (header.get("replay") or {}).get("stored_weights") is True:
            network = network_of(header)
            number = networks.parameter_count(jax.eval_shape(network.init, key))
            tree = {**tree, "weights": abstract(jnp.float32, number)}
        if "teaching" in header:
            tree = {**tree, **_of_teacher(header, path)}
        if "storage" in header:
            tree = jax.eval_shape(rounding.in_int8, tree)
    except InputError as error:
        raise InputError(f"the parametrization in {path} is wrong: {error}") from None
    except (KeyError, TypeError, ValueError, OverflowError, MemoryError):
        raise InputError(f"the parametrization in {path} describes no possible arrays") from None
    if decoded != (data.num_items, height, width, channels):
        raise InputError(f"the parametrization in {path} decodes to {decoded}, not to its images")
    return flatten(tree), jax.tree.structure(tree)


def network_of(header: dict[str, Any]) -> Network:
    """The network that the header names, one of d3jax's."""
    spec = header["parametrization"]
    options = {n: v for n, v in header["architecture"].items() if v is not None}
    return networks.create(
        options.pop("network"),
        image_shape=tuple(spec["image_shape"]),
        num_classes=spec["num_classes"],
        **options,
    )


def _of_teacher(header: dict[str, Any], path: Path) -> dict[str, PyTree]:
    """Shapes of what an artifact holds of a teacher: its weights, or its labels of views."""
    teaching, spec = header["teaching"], header["parametrization"]
    own = teaching.get("labels") if isinstance(teaching, dict) else None
    if own == "views":
        sizes = [teaching.get("epochs"), teaching.get("visits")]
        if all(type(n) is int and 0 < n < 1 << 31 for n in sizes):
            shape = (*sizes, spec["num_classes"])
            return {"view_labels": jax.ShapeDtypeStruct(shape, jnp.float32)}
    if own != "teacher":
        raise InputError(f"the header of {path} does not say what a teacher labels")
    return teacher_shapes(network_of(header), spec["image_shape"])


def teacher_shapes(network: Network, image_shape: Sequence[int]) -> dict[str, PyTree]:
    """Shapes of the group that a teacher is stored as: weights, and batch norms' statistics."""
    params = jax.eval_shape(network.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    vector = jax.ShapeDtypeStruct((networks.parameter_count(params),), jnp.float32)
    statistics = jax.eval_shape(network.forward, params, image).statistics
    return {"teacher": {"params": vector, "statistics": statistics}}


def check_table(
    table: dict[str, Any],
    expected: dict[str, Any],
    label_kind: str | None,
    room: int,
    path: Path,
) -> None:
    """That the table lists the expected arrays, each with the bytes of its shape, `room` in all."""
    if set(table) != set(expected):
        strange = sorted(set(table) ^ set(expected))[0]
        raise InputError(f"{path} does not hold the arrays of its header: see {strange!r}")
    used = 0
    for name, entry in table.items():
        shape, kind = expected[name].shape, entry.get("dtype") if isinstance(entry, dict) else None
        if kind == "U8" and not (name == "labels" and label_kind == "probabilities"):
            raise InputError(f"array {name} in {path} is in bytes, which only given labels can be")
        allowed = _ALLOWED[jnp.dtype(expected[name].dtype).name]
        if not isinstance(kind, str) or kind not in (*allowed, "U8"):
            names = " or ".join(np.dtype(_DTYPES[k]).name for k in allowed)
            raise InputError(f"array {name} in {path} is {kind}, not {names}")
        if entry.get("shape") != list(shape):
            raise InputError(
                f"array {name} in {path} has shape {entry.get('shape')}, not {list(shape)} as its "
                f"header says"
            )
        offsets = entry.get("data_offsets")
        size = math.prod(shape) * np.dtype(_DTYPES[kind]).itemsize
        if (
            not isinstance(offsets, list)
            or [type(n) for n in offsets] != [int, int]
            or offsets[1] - offsets[0] != size
        ):
            raise InputError(f"array {name} in {path} does not have the bytes of its shape")
        used += size
    if used != room:
        raise InputError(
            f"{path} holds {room} bytes of arrays where its table says {used}; "
            f"it is cut off or was added to"
        )


def flatten(theta: PyTree) -> dict[str, Any]:
    """The arrays of theta by the names that they have in a file."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(theta)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}

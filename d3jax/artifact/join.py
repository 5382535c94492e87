"""The artifacts of all subtasks as one."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from d3jax import artifact
from d3jax.artifact import Artifact
from d3jax.synthetic import joined, labels
from d3jax.types import InputError, Network, PyTree

# What has to be equal in all parts, and how a user would say it.
_SHARED = ("method", "dataset", "normalization", "architecture", "protocol", "seed", "storage")


def join(parts: Sequence[Artifact], names: Sequence[str | Path] | None = None) -> Artifact:
    """One artifact of all classes, from one of each subtask, in any order.

    Every array stays as it is. The student's learning rate is the geometric mean of the parts',
    weighted by their classes.

    Args:
      parts: what runs with `--subtask` left, each of its own classes.
      names: what to call the parts in errors; default by their numbers.

    Raises:
      InputError: a part is not of a subtask; classes are missing or there twice; or parts were
        distilled differently, so that they do not fit together.
    """
    called = [str(name) for name in names] if names else [f"part {n}" for n in range(len(parts))]
    if not parts:
        raise InputError("name the artifacts of all subtasks")
    for part, name in zip(parts, called, strict=True):
        if "subtask" not in part.header:
            raise InputError(f"{name} is of all its classes, not of a subtask; there is no joining")
    first = parts[0].header
    for part, name in zip(parts[1:], called[1:], strict=True):
        for field in _SHARED:
            own, other = part.header.get(field), first.get(field)
            if own != other:
                raise InputError(
                    f"{name} differs from {called[0]} in its {field}: {own} instead of {other}; "
                    f"distill all subtasks with the same options"
                )
        if part.header["subtask"]["class_names"] != first["subtask"]["class_names"]:
            raise InputError(f"{name} and {called[0]} are of different classes as a whole")
        for field in ("image_shape", "kind", "label_kind"):
            own, other = (h["parametrization"].get(field) for h in (part.header, first))
            if own != other:
                raise InputError(f"{name} has {field} {own}, but {called[0]} has {other}")
    class_names = first["subtask"]["class_names"]
    _check_classes(parts, called, class_names)
    ordered = sorted(parts, key=lambda part: min(part.header["subtask"]["classes"]))
    joint = specification(
        [part.header["parametrization"] for part in ordered],
        [part.header["subtask"]["classes"] for part in ordered],
    )
    logarithms = [
        len(part.header["class_names"]) * math.log(part.header["student_learning_rate"])
        for part in ordered
    ]
    header: dict[str, Any] = {name: value for name, value in first.items() if name != "subtask"}
    header |= {
        "class_names": class_names,
        "parametrization": joint,
        "student_learning_rate": math.exp(sum(logarithms) / len(class_names)),
        "versions": artifact.versions(),
    }
    made = Artifact(header, joined.combine([part.theta for part in ordered]))
    made.synthetic  # noqa: B018 - refuses parts of unequal sizes
    return made


def specification(
    parts: Sequence[dict[str, Any]], classes: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """The joined parametrization of the parts' specifications, each with its classes."""
    return {
        "kind": "joined",
        "parts": list(parts),
        "classes": [list(own) for own in classes],
        "image_shape": parts[0]["image_shape"],
        "num_classes": sum(len(own) for own in classes),
    }


def labelled(
    whole: Artifact,
    network: Network,
    params: PyTree,
    label_dtype: str = "float",
    statistics: PyTree = (),
) -> Artifact:
    """The joined artifact with soft labels f[N, K]: what a network of all classes says of it.

    Each label is the softmax of the network's logits on an item's deterministic decode, and serves
    its random samples too (D3, arXiv 2403.00999, section 3.3): students of Gaussians visit the
    deterministic decodes as well. Labels are stored as the other arrays are, or a byte each (int8).
    `statistics` are what batch norms normalize by, see `labels.by_network`.
    """
    theta = {name: group for name, group in whole.theta.items() if name != "labels"}
    plain = whole._replace(theta=theta)
    found = labels.by_network(network, params, plain.synthetic, plain.decodable(), statistics)
    soft = np.asarray(found)
    half = all(leaf.dtype != np.float32 for leaf in jax.tree.leaves(theta))
    soft_kind = {**whole.header["parametrization"], "label_kind": "probabilities"}
    protocol = whole.header["protocol"]
    protocol = {**protocol, "with_means": True} if whole.kind == "gaussian" else protocol
    artifact.check_label_dtype(label_dtype, soft_kind)
    stored = soft.astype(np.float16 if half else np.float32)
    return Artifact(
        {**whole.header, "parametrization": soft_kind, "protocol": protocol},
        {**theta, "labels": labels.in_bytes(soft) if label_dtype == "int8" else stored},
    )


def _check_classes(parts: Sequence[Artifact], called: list[str], class_names: list[str]) -> None:
    owner: dict[int, str] = {}
    for part, name in zip(parts, called, strict=True):
        for k in part.header["subtask"]["classes"]:
            if k in owner:
                raise InputError(f"class {k} ({class_names[k]}) is in {owner[k]} and in {name}")
            owner[k] = name
    missing = sorted(set(range(len(class_names))) - set(owner))
    if missing:
        raise InputError(
            f"no part has class {missing[0]} ({class_names[missing[0]]})"
            + (f", and {len(missing) - 1} more are missing" if len(missing) > 1 else "")
        )

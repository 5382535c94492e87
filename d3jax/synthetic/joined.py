"""Synthetic data of several subtasks, joined: each has classes, and a way to decode, of its own."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from d3jax.synthetic import labels
from d3jax.synthetic.arguments import converting
from d3jax.types import Batch, InputError, PyTree, Real, Synthetic, check_known

LABELS = ("parts", "probabilities")
_MOST_ITEMS = 1 << 24  # far beyond any use: a file that lies should not fill the memory


def create(
    parts: Sequence[Synthetic],
    classes: Sequence[Sequence[int]],
    *,
    image_shape: Sequence[int],
    num_classes: int,
    label_kind: str = "parts",
) -> Synthetic:
    """Data of all classes out of parts that know only their own.

    theta: each group of the parts' with their numbers as keys, `data` = {"0": ..., "1": ...}; with
    `probabilities`, `labels` f[N, K] besides.

    Args:
      parts: the subtasks' parametrizations, all with as many items per class.
      classes: of each part, in its own order.
      image_shape: (H, W, C).
      num_classes: K, of all parts together.
      label_kind: `parts`: what a part says of its own classes, nothing of the others; or
        `probabilities` over all classes, given.

    A batch of chosen items is decoded by every part, and each item taken from its own: so decoding
    costs as many times more as there are parts (all items in order cost nothing more).

    Raises:
      InputError: classes that are not all of them, each once, or parts of unequal sizes.
    """
    check_known("label kind", label_kind, LABELS)
    sizes = [part.num_classes for part in parts]
    if sizes != [len(own) for own in classes]:
        raise InputError(f"parts of {sizes} classes do not have {[len(c) for c in classes]}")
    named = [k for own in classes for k in own]
    if any(type(k) is not int for k in named) or sorted(named) != list(range(num_classes)):
        raise InputError(f"the parts' classes are not all of {num_classes}, each once")
    per_class = {part.num_items // part.num_classes for part in parts}
    if len(per_class) != 1 or any(part.num_items % part.num_classes for part in parts):
        raise InputError("parts can be joined where all have as many items for each class")
    each = per_class.pop()
    num_items = each * num_classes
    if num_items > _MOST_ITEMS:
        raise InputError(f"{num_items} items are more than the {_MOST_ITEMS} that can be joined")

    owner = np.empty(num_items, np.int32)  # the part of each item
    own_item = np.empty(num_items, np.int32)  # its number there
    for number, own in enumerate(classes):
        items = (np.asarray(own)[:, None] * each + np.arange(each)).reshape(-1)
        owner[items], own_item[items] = number, np.arange(len(items))
    firsts = np.cumsum([0, *(part.num_items for part in parts[:-1])])
    in_order = firsts[owner] + own_item  # where each item is, the parts end to end

    def share(theta: dict[str, PyTree], number: int) -> dict[str, PyTree]:
        groups = (g for g in theta if g != "labels" or label_kind == "parts")
        return {g: theta[g][str(number)] for g in groups if str(number) in theta[g]}

    def widened(targets: Array, own: Sequence[int]) -> Array:
        nothing = jnp.zeros((targets.shape[0], num_classes), targets.dtype)
        return nothing.at[:, jnp.asarray(own)].set(targets)

    def of_part(theta: PyTree, key: Array | None, number: int, indices: Array | None) -> Batch:
        part_key = None if key is None else jax.random.fold_in(key, number)
        batch = parts[number].sample(share(theta, number), part_key, indices)
        return Batch(batch.images, widened(batch.targets, classes[number]))

    def sample(theta: dict[str, PyTree], key: Array | None, indices: Array | None = None) -> Batch:
        if indices is None:
            batches = [of_part(theta, key, number, None) for number in range(len(parts))]
            joined = jax.tree.map(lambda *x: jnp.concatenate(x)[jnp.asarray(in_order)], *batches)
        else:
            owners = jnp.asarray(owner)[indices]
            joined = None
            for number in range(len(parts)):
                mine = owners == number
                chosen = jnp.where(mine, jnp.asarray(own_item)[indices], 0)
                batch = of_part(theta, key, number, chosen)
                joined = batch if joined is None else _where(mine, batch, joined)
            assert joined is not None
        if label_kind == "probabilities":
            given = theta["labels"] if indices is None else theta["labels"][indices]
            joined = joined._replace(targets=given.astype(joined.targets.dtype))
        return joined

    def init(key: Array, real: Real) -> dict[str, PyTree]:
        thetas = []
        for number, own in enumerate(classes):
            index = jnp.asarray(own)
            seen = real._replace(
                class_index=real.class_index[index], class_counts=real.class_counts[index]
            )
            thetas.append(parts[number].init(jax.random.fold_in(key, number), seen))
        theta = combine(thetas)
        if label_kind == "probabilities":
            theta["labels"] = labels.start(num_items, num_classes)
        return theta

    def freeze(theta: dict[str, PyTree], key: Array) -> dict[str, PyTree]:
        thetas = [
            part.freeze(share(theta, number), jax.random.fold_in(key, number))
            for number, part in enumerate(parts)
        ]
        given = {"labels": theta["labels"]} if label_kind == "probabilities" else {}
        return {**combine(thetas), **given}

    learned = {g for part in parts for g in part.groups if g != "labels" or label_kind == "parts"}
    groups = tuple(g for g in ("data", "decoder", "labels") if g in learned)
    kind = parts[0].label_kind if label_kind == "parts" else label_kind
    made = Synthetic(init, sample, freeze, num_items, num_classes, groups)
    return converting(made._replace(label_kind=kind))


def combine(thetas: Sequence[dict[str, PyTree]]) -> dict[str, PyTree]:
    """The parts' thetas as one: each group by the part's number."""
    groups = sorted({group for theta in thetas for group in theta})
    return {
        group: {str(n): theta[group] for n, theta in enumerate(thetas) if group in theta}
        for group in groups
    }


def _where(mine: Array, batch: Batch, other: Batch) -> Batch:
    def choose(x: Array, y: Array) -> Array:
        return jnp.where(mine.reshape(-1, *(1,) * (x.ndim - 1)), x, y)

    return jax.tree.map(choose, batch, other)

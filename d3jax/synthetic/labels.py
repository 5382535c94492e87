"""Targets of synthetic items: implied by their class, or stored in the group `labels` of theta."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from d3jax import losses
from d3jax.networks import statistics, unraveler
from d3jax.networks.blocks import features_of, has_statistics
from d3jax.types import Network, PyTree, Real, Synthetic

KINDS = ("hard", "probabilities", "logits", "free", "solved", "values")
_AT_ONCE = 256  # items that a network labels together
_BATCH, _BATCHES = 128, 40  # real images that a teacher's statistics are averaged over
_REAL = 5000  # images that labels are solved on, at most
_RIDGE = 1e-3  # of those labels; see `losses.solved_labels`


def groups(kind: str) -> tuple[str, ...]:
    """The group that holds the labels, if they are learned; others that are stored are given."""
    return ("labels",) if kind in ("logits", "free", "values") else ()


def student_loss(kind: str) -> Callable[[Array, tuple[Array, Array]], Array]:
    """(logits f[B, K], (targets f[B, K], weights f[B] of mean 1)) -> f[]: what students minimize.

    Cross entropy; of `solved` labels and of `values`, which sum to about 0, the squared error.
    """
    if kind not in ("solved", "values"):
        return lambda logits, batch: losses.cross_entropy(logits, batch[0] * batch[1][:, None])

    def loss(logits: Array, batch: tuple[Array, Array]) -> Array:
        targets, weights = batch
        roots = jnp.sqrt(weights)[:, None]
        return losses.squared_error(logits * roots, targets * roots)

    return loss


def teacher_labels(
    network: Network, params: PyTree, statistics: PyTree | None, images: Array
) -> Array:
    """What a teacher says of normalized images f[B, H, W, C]: logits f[B, K], without derivative.

    statistics: what its batch norms normalize by, a pair for each, so that an image's label does
      not depend on its neighbours; None for the batch's own (as the authors' CIFAR scripts of SRe2L
      and DWA have it, which leave the teacher in training mode).
    """
    return jax.lax.stop_gradient(network.forward(params, images, statistics=statistics).logits)


def teacher(network: Network, key: Array, real: Real) -> tuple[Array, PyTree]:
    """The weights f[P] of the first expert at its end, and what its batch norms normalize by.

    These are averages over random training images, without augmentation; an empty tuple of a
    network without batch norm.
    """
    params = real.snapshots()[0, -1].astype(real.mean.dtype)
    if not has_statistics(network, real.images.shape[1:]):
        return params, ()
    index = real.sample(key, _BATCHES * _BATCH).reshape(_BATCHES, _BATCH)
    found = statistics.over(network, params[None], [index], real.gather)
    return params, jax.tree.map(lambda x: x[0], found)


def by_network(
    network: Network,
    params: PyTree,
    synthetic: Synthetic,
    theta: dict[str, PyTree],
    statistics: PyTree = (),
) -> Array:
    """Soft labels f[N, K]: a network's softmax on every item's deterministic decode.

    statistics: what its batch norms normalize by, so that labels are each item's own; without them,
      by those of the items that it labels together.

    A Gaussian's label also serves its random samples (D3, arXiv 2403.00999, section 3.3). TESLA
    (Cui et al., ICML 2023) labels the real images that pixels start from.

    Many items are decoded and looked at a block at a time, each of items of all classes (which
    statistics of batch norm are then of), so that memory does not grow with them.
    """
    number, own = synthetic.num_items, statistics or None
    if number <= _AT_ONCE:
        images = synthetic.sample(theta, None).images
        return jax.nn.softmax(teacher_labels(network, params, own, images))
    blocks = -(-number // _AT_ONCE)
    size = -(-number // blocks)
    items = jnp.arange(size * blocks, dtype=jnp.int32).reshape(size, blocks).T

    def logits(indices: Array) -> Array:
        images = synthetic.sample(theta, None, jnp.minimum(indices, number - 1)).images
        return teacher_labels(network, params, own, images)

    found = jax.jit(lambda items: jax.lax.map(logits, items))(items)
    return jax.nn.softmax(found.swapaxes(0, 1).reshape(size * blocks, -1)[:number])


def by_expert(
    network: Network, synthetic: Synthetic, theta: dict[str, PyTree], real: Real
) -> Array:
    """`by_network` of the first of the real world's experts, after its last epoch.

    Its batch norms, if there are any, normalize by its training images (`teacher`).
    """
    params, found = teacher(network, jax.random.key(0), real)
    return by_network(network, unraveler(network)(params), synthetic, theta, found)


def by_solving(
    network: Network,
    synthetic: Synthetic,
    theta: dict[str, PyTree],
    real: Real,
    key: Array,
    *,
    networks: int = 10,
) -> Array:
    """Labels f[N, K] with which kernel ridge regression on every item's deterministic decode
    predicts real images best, by least squares, in features of untrained networks.

    The normal equations of `losses.solved_labels` are averaged over `networks` fresh ones, since
    labels that are solved for one network suit no other; real images are at most 5000, drawn with
    `key` as the networks are. Students meet these labels by squared error (`student_loss`).
    """
    for_networks, for_images = jax.random.split(key)
    images = synthetic.sample(theta, None).images
    number = real.labels.shape[0] if real.number is None else int(real.number)
    index = jax.random.permutation(for_images, number)[:_REAL]

    @jax.jit
    def solved(images: Array, others: Array, classes: Array) -> Array:
        targets = jax.nn.one_hot(classes, synthetic.num_classes, dtype=images.dtype)
        targets = targets - jnp.mean(targets, -1, keepdims=True)

        def equations(key: Array) -> tuple[Array, Array]:
            own, of_others = features_of(network, network.init(key), images, others)
            return losses.label_equations(own, of_others, targets, _RIDGE)

        grams, products = jax.lax.map(equations, jax.random.split(for_networks, networks))
        return losses.solve_ridge(jnp.mean(grams, 0), jnp.mean(products, 0), _RIDGE)

    return solved(images, real.gather(index), real.labels[index])


def item_classes(num_items: int, num_classes: int, index: Array | None = None) -> Array:
    """The classes i32[B] of the items `index` (default all): items are sorted by class, equally."""
    index = jnp.arange(num_items, dtype=jnp.int32) if index is None else index
    if num_items % num_classes == 0:
        return index // (num_items // num_classes)
    return index * num_classes // num_items


def targets(
    theta: dict[str, PyTree], kind: str, classes: Array, index: Array | None, num_classes: int
) -> Array:
    """What a student learns for items `index`: f[B, K].

    Args:
      theta: holds `labels` f[N, K] unless `kind` is hard.
      kind: `hard` (one-hot of the class, nothing stored), `probabilities`, `logits`, `free` (any
        vectors: what cross entropy makes of them), or what students meet by squared error:
        `values`, which are learned, and `solved` ones, which are given.
      classes: i32[B], the items' classes.
      index: i32[B], which items; None for all.
      num_classes: K.
    """
    if kind == "hard":
        return jax.nn.one_hot(classes, num_classes, dtype=jnp.float32)
    stored = theta["labels"] if index is None else theta["labels"][index]
    return jax.nn.softmax(stored) if kind == "logits" else stored


def in_bytes(given: np.ndarray) -> np.ndarray:
    """Probabilities f[N, K] as u8[N, K]: of 255 levels up to each row's largest.

    Read by `from_bytes`, each is wrong by less than 1/255 of its row's largest, times 1 + K / 255.
    """
    largest = given.max(1, keepdims=True)
    return np.rint(given / largest * 255).astype(np.uint8)


def from_bytes(stored: Array) -> Array:
    """The probabilities f32[N, K] of `in_bytes`, rows of which sum to 1."""
    levels = jnp.asarray(stored, jnp.float32)
    return levels / levels.sum(1, keepdims=True)


def start(num_items: int, num_classes: int) -> Array:
    """Labels f[N, K] to start from: an item's class; with fewer items than classes, its share.

    Where N < K an item stands for all the classes between its own and the next item's, equally.
    """
    if num_items >= num_classes:
        classes = item_classes(num_items, num_classes)
        return jax.nn.one_hot(classes, num_classes, dtype=jnp.float32)
    own = item_classes(num_items, num_classes)
    classes = jnp.arange(num_classes, dtype=jnp.int32)
    owners = jnp.searchsorted(own, classes, side="right") - 1
    shares = jax.nn.one_hot(owners, num_items, dtype=jnp.float32).T
    return shares / shares.sum(1, keepdims=True)

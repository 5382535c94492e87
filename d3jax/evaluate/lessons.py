"""What students see whose protocol has views: batches, all theirs, and whose labels these get.

Order, samples and views follow from one key, epoch and batch alone, not from the students: so a
teacher labels each view once for all of them, and its labels may be stored without any coordinates.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from d3jax.artifact import Artifact
from d3jax.artifact.checks import network_of
from d3jax.data.views import labelled_view
from d3jax.evaluate.protocol import Protocol
from d3jax.keys import Stage, stage_key
from d3jax.networks import unraveler
from d3jax.synthetic.labels import teacher_labels
from d3jax.types import InputError, Network, PyTree, Synthetic

VIEW_LABELS = "view_labels"  # group of theta: a teacher's logits f[epochs, visits, K] of all views
TEACHER = "teacher"  # group of theta: {"params": f[P], "statistics": a pair for each batch norm}


class Teaching(NamedTuple):
    """What students' views are drawn with, and the network of the `teacher` in theta, if it is."""

    key: Array
    teacher: Network | None = None


class Lesson(NamedTuple):
    """A batch that all students see."""

    images: Array  # f[B, H, W, C]
    targets: Array  # f[B, K], softened where they are an expert's
    weights: Array  # f[B], 0 past the epoch's end


def teaching_of(made: Artifact) -> Teaching:
    """What the views of an artifact's students are drawn with, by its own seed, not theirs."""
    key = stage_key(made.header["seed"], Stage.VIEWS)
    return Teaching(key, network_of(made.header) if TEACHER in made.theta else None)


def sizes(synthetic: Synthetic, protocol: Protocol) -> tuple[int, int, int, int]:
    """Epochs, steps in each, visits of an item or its mean in a step, and in an epoch."""
    visits = synthetic.num_items * (2 if protocol.with_means else 1)
    size = min(protocol.batch_size, visits)
    return protocol.epochs_of(visits), -(-visits // size), size, visits


def lessons(
    synthetic: Synthetic, protocol: Protocol, teacher: Network | None = None
) -> Callable[[PyTree, Array, Array, Array], Lesson]:
    """(theta, key, epoch i32[], batch i32[]) -> what students see, a pure function.

    Labels of views are those that theta stores, else those of its teacher, else the items' own,
    mixed as the view is. A teacher's batch norms normalize by its training data (`teacher_labels`).
    """
    views = protocol.seen()
    assert views is not None
    _, steps, size, visits = sizes(synthetic, protocol)

    def lesson(theta: PyTree, key: Array, epoch: Array, batch: Array) -> Lesson:
        of_epoch = jax.random.fold_in(key, epoch)
        of_batch = jax.random.fold_in(of_epoch, batch + 1)
        for_samples, for_views = jax.random.split(of_batch)
        order = jax.random.permutation(jax.random.fold_in(of_epoch, 0), visits)
        slots = batch * size + jnp.arange(size, dtype=jnp.int32)
        visit = order[slots % visits]
        images, targets = decoded(synthetic, theta, for_samples, visit, protocol.with_means)
        weights = (slots < visits).astype(images.dtype)
        targets = own_targets(synthetic, theta, targets, protocol.temperature)
        images, targets = labelled_view(for_views, images, targets, views)
        if VIEW_LABELS in theta:
            rows = theta[VIEW_LABELS][epoch].reshape(steps, size, -1)
            return Lesson(images, softened(rows[batch], protocol.temperature), weights)
        if TEACHER in theta:
            assert teacher is not None
            own = theta[TEACHER]
            params, statistics = unraveler(teacher)(own["params"]), own["statistics"] or None
            logits = teacher_labels(teacher, params, statistics, images)
            return Lesson(images, softened(logits, protocol.temperature), weights)
        return Lesson(images, targets, weights)

    return lesson


def decoded(
    synthetic: Synthetic, theta: PyTree, key: Array, visit: Array, with_means: bool
) -> tuple[Array, Array]:
    """Images and targets of visits i32[B]: of items' samples or, below their number, of means."""
    item = visit % synthetic.num_items
    images, targets = synthetic.sample(theta, key, item)
    if with_means:
        means, _ = synthetic.sample(theta, None, item)
        images = jnp.where((visit < synthetic.num_items)[:, None, None, None], means, images)
    return images, targets


def are_an_experts(synthetic: Synthetic, theta: PyTree) -> bool:
    """Whether an expert gave the labels, of items or of views: a temperature softens those."""
    given = synthetic.label_kind == "probabilities" and "labels" not in synthetic.groups
    return given or VIEW_LABELS in theta or TEACHER in theta


def own_targets(synthetic: Synthetic, theta: PyTree, targets: Array, temperature: float) -> Array:
    """The items' own targets f[B, K], softened where they are an expert's probabilities."""
    if temperature == 1 or not are_an_experts(synthetic, theta):
        return targets
    smallest = jnp.asarray(2.0**-24, targets.dtype)  # that float16 has
    return softened(jnp.log(jnp.maximum(targets, smallest)), temperature)


def softened(logits: Array, temperature: float) -> Array:
    """softmax(logits / T), f[B, K]."""
    return jax.nn.softmax(logits / jnp.asarray(temperature, logits.dtype))


def view_labels(
    network: Network,
    teacher: dict[str, PyTree],
    synthetic: Synthetic,
    theta: PyTree,
    protocol: Protocol,
    key: Array,
) -> Array:
    """A teacher's logits f[epochs, visits, K] of all views that students of a protocol see.

    teacher: as `TEACHER` in theta.
    """
    plain = {name: group for name, group in theta.items() if name not in (VIEW_LABELS, TEACHER)}
    lesson = lessons(synthetic, protocol)
    epochs, steps, _, _ = sizes(synthetic, protocol)
    unravel = unraveler(network)

    @jax.jit
    def label(theta: PyTree, teacher: PyTree, key: Array) -> Array:
        params, statistics = unravel(teacher["params"]), teacher["statistics"] or None

        def of_epoch(epoch: Array) -> Array:
            def of_batch(batch: Array) -> Array:
                images = lesson(theta, key, epoch, batch).images
                return teacher_labels(network, params, statistics, images)

            found = jax.lax.map(of_batch, jnp.arange(steps, dtype=jnp.int32))
            return found.reshape(-1, found.shape[-1])

        return jax.lax.map(of_epoch, jnp.arange(epochs, dtype=jnp.int32))

    return label(plain, teacher, key)


def check(synthetic: Synthetic, theta: PyTree, protocol: Protocol) -> None:
    """Raises InputError for a protocol whose views have no labels in theta, or other ones."""
    of_views = VIEW_LABELS in theta or TEACHER in theta
    if of_views and protocol.views == "none":
        raise InputError(
            "the labels are of views: give students some, such as --student.views padded"
        )
    if VIEW_LABELS in theta:
        epochs, steps, size, _ = sizes(synthetic, protocol)
        stored = theta[VIEW_LABELS].shape[:2]
        if stored != (epochs, steps * size):
            raise InputError(
                f"the stored labels are of {stored[0]} epochs of {stored[1]} views, and students "
                f"would see {epochs} of {steps * size}: train them as the artifact says"
            )

"""Statistics matching: to a trained network, synthetic data should look like its training data."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from d3jax import losses
from d3jax.networks import unraveler
from d3jax.synthetic.labels import item_classes, teacher
from d3jax.types import InputError, Network, Objective, PyTree, Real


def statistics_matching(
    network: Network,
    num_items: int,
    num_classes: int,
    *,
    statistics_weight: float = 0.01,
    variance_weight: float = 1.0,
    first_weight: float = 10.0,
    batch_classes: int | None = None,
    view: Callable[[Array, Array, Array], Array] = lambda key, images, step: images,
    updates: tuple[str, ...],
) -> Objective:
    """A teacher should name the class of synthetic images, and find its training data's statistics.

    Args:
      network: the teacher's architecture, with batch norm; its weights are those of the first of
        `real.trajectories`, at its end.
      num_items, num_classes: of the parametrization; items are sorted by class. The j-th items of
        all classes are one batch, whose statistics are matched together.
      batch_classes: only of so many classes, in order; the others' make more batches.
      statistics_weight: the factor on the statistics' distance, beside the cross entropy.
      variance_weight, first_weight: as `losses.statistics_distance` takes them.
      view: (key, images f[K, H, W, C], outer step i32[]) -> the images that the teacher sees.
      updates: the groups of theta that it moves.

    `aux` holds the teacher's `statistics` of random training images, without augmentation, and its
    `params` f[1, P]: or f[batches, P], as a method may make it, each batch's own.

    The loss is the sum over batches, so that the gradient of one is that of the batch alone. It is
    differentiable once: each batch's gradient is taken while the batch is at hand, so that memory
    is one batch's.

    SRe2L's recover step (arXiv 2306.13092, equations 6 and 7), DWA's with a weight on variances
    (arXiv 2409.17612). Deviation: statistics are averages over training images with the final
    weights, where PyTorch has moving averages of the last steps' training batches.

    Raises:
      InputError: items are not as many for each class; the teacher has no batch norm (by `init`).
    """
    rows = batch_items(num_items, num_classes, batch_classes)
    classes = item_classes(num_items, num_classes, rows)
    unravel = unraveler(network)

    def init(key: Array, real: Real) -> PyTree:
        params, found = teacher(network, key, real)
        if not found:
            raise InputError(
                "statistics matching needs a teacher with batch norm: a convnet or resnet18 with "
                "--norm batch"
            )
        return {"params": params[None], "statistics": found}

    def loss(theta, sample, aux, step, key, real: Real):
        del real
        for_sample, for_views = jax.random.split(key)
        decoded = sample(theta, for_sample, rows.reshape(-1)).images
        images = decoded.reshape(*rows.shape, *decoded.shape[1:])

        def of_batch(params: Array, key: Array, batch: Array, own: Array) -> tuple[PyTree, Array]:
            """(loss and metrics, gradient f[K, H, W, C])."""
            targets = jax.nn.one_hot(own, num_classes, dtype=images.dtype)

            def value(batch: Array) -> tuple[Array, PyTree]:
                outputs = network.forward(
                    unravel(params), view(key, batch, step), statistics=aux["statistics"]
                )
                error = losses.cross_entropy(outputs.logits, targets)
                distance = losses.statistics_distance(
                    outputs.statistics, aux["statistics"], variance_weight, first_weight
                )
                total = error + jnp.asarray(statistics_weight, error.dtype) * distance
                right = outputs.logits.argmax(-1).astype(own.dtype) == own
                accuracy = jnp.mean(right.astype(error.dtype))
                return total, {
                    "cross_entropy": error, "statistics": distance, "accuracy": accuracy
                }  # fmt: skip

            (total, measured), gradient = jax.value_and_grad(value, has_aux=True)(batch)
            return {"loss": total, **measured}, gradient

        keys = jax.random.split(for_views, len(rows))
        inputs = (keys, jax.lax.stop_gradient(images), classes)
        params = aux["params"]
        if params.shape[0] == 1:
            found = jax.lax.map(lambda own: of_batch(params[0], *own), inputs)
        else:
            found = jax.lax.map(lambda own: of_batch(*own), (params, *inputs))
        measured, gradient = found
        total = jnp.sum(measured["loss"])
        # Of value zero, and of the gradient that the batches have found.
        linear = jnp.sum(gradient * images)
        total = total + (linear - jax.lax.stop_gradient(linear))
        return total, (aux, {name: jnp.mean(values) for name, values in measured.items()})

    return Objective("statistics", init, loss, updates)


def batch_items(num_items: int, num_classes: int, batch_classes: int | None = None) -> Array:
    """Items i32[batches, batch_classes] of each batch: one of each class, classes in order.

    batch_classes: default all; else batches are of so many of them, and more.

    Raises:
      InputError: items are not as many for each class, or classes not as many for each batch.
    """
    together = num_classes if batch_classes is None else batch_classes
    if num_items % num_classes:
        raise InputError(
            f"batches of one image per class need as many items for each: {num_items} are not a "
            f"multiple of {num_classes} classes"
        )
    if together < 1 or num_classes % together:
        raise InputError(
            f"batches of {together} classes do not divide {num_classes}: choose another "
            f"--batch-classes"
        )
    return jnp.arange(num_items, dtype=jnp.int32).reshape(num_classes, -1).T.reshape(-1, together)

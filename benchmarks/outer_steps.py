"""The outer steps that are measured, built from objectives, so that every part can be chosen."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import optax

from benchmarks.world import CLASSES, random_real
from d3jax import networks
from d3jax.distill import objectives
from d3jax.distill.compose import compose
from d3jax.networks import convolution
from d3jax.synthetic import gaussian, pixels
from d3jax.types import Method, Real, Synthetic

CIFAR, MNIST = (32, 32, 3), (28, 28, 1)


def trajectory(
    name: str = "mtt",
    *,
    width: int = 32,
    inner_steps: int = 10,
    images_per_class: int = 1,
    classes: int = CLASSES,
    samples: int = 30,
    image_shape: tuple[int, int, int] = CIFAR,
    decoder_width: int = 64,
    compute: str = "float32",
    **options: Any,
) -> tuple[Method, Real]:
    """MTT on pixels, or `d3`: Gaussians with the small decoder, and the MMD after it.

    `options` are of `objectives.trajectory_matching`.
    """
    network = networks.create(
        "convnet", image_shape=image_shape, num_classes=classes, width=width, compute=compute
    )
    items = classes * images_per_class
    shape: dict[str, Any] = {"image_shape": image_shape, "num_classes": classes}
    data = (
        gaussian.create(
            **shape,
            latents_per_class=images_per_class,
            latent_size=64,
            decoder="small",
            width=decoder_width,
        )
        if name == "d3"
        else pixels.create(**shape, num_items=items)
    )
    chosen = [
        objectives.trajectory_matching(
            network,
            items,
            inner_steps=inner_steps,
            expert_epochs=2,
            max_start_epoch=2,
            updates=(*data.groups, "learning_rates"),
            **options,
        )
    ]
    if name == "d3":
        chosen.append(
            objectives.feature_mmd(network, items, classes, samples=samples, updates=data.groups)
        )
    real = random_real(image_shape, 100 * classes, network=network, classes=classes)
    return _composed(data, chosen, jnp.log(jnp.asarray(0.01, jnp.float32))), real


def unrolled(
    *,
    steps: int = 10,
    passes: int = 3,
    number_of_networks: int = 1,
    batch_size: int = 256,
    width: int | None = None,
    image_shape: tuple[int, int, int] = MNIST,
    compute: str = "float32",
    **options: Any,
) -> tuple[Method, Real]:
    """DD with LeNet, or a ConvNet of some width, random initialization; `options` are of
    `objectives.unrolled`."""
    network = networks.create(
        "lenet" if width is None else "convnet",
        image_shape=image_shape,
        num_classes=CLASSES,
        width=width,
        initialization="xavier_normal",
        compute=compute,
    )
    items = CLASSES * steps
    data = pixels.create(image_shape=image_shape, num_classes=CLASSES, num_items=items)
    objective = objectives.unrolled(
        network,
        items,
        steps=steps,
        passes=passes,
        initialization="random",
        number_of_networks=number_of_networks,
        batch_size=batch_size,
        updates=("data", "learning_rates"),
        **options,
    )
    rates = jnp.full((steps * passes,), jnp.log(0.02), jnp.float32)
    return _composed(data, [objective], rates), random_real(image_shape, 2000)


def _composed(data: Synthetic, chosen: list[Any], rates: jax.Array) -> Method:
    optimizers = {group: optax.adam(1e-3) for group in (*data.groups, "learning_rates")}
    return compose(
        data,
        tuple(chosen),
        optimizers,
        lambda key, real: {**data.init(key, real), "learning_rates": rates},
    )


@contextmanager
def lowered_by(lowering: convolution.Lowering | None) -> Iterator[None]:
    """Convolutions traced in this context are lowered so; None: by the backend's default."""
    if lowering is None:
        yield
    else:
        with mock.patch.object(convolution, "default_lowering", return_value=lowering):
            yield

"""Synthetic data as images that do not change, and a small generator that changes all of them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from d3jax.networks import pools
from d3jax.networks.layers import Convolution, Normalization
from d3jax.synthetic import labels, pixels
from d3jax.synthetic.arguments import converting
from d3jax.types import Batch, InputError, PyTree, Real, Synthetic


class Generator(nn.Module):
    """Images plus what a fully convolutional encoder and decoder makes of each of them.

    Three scales, of `width`, twice and twice as many channels, with skips; group norm of each image
    alone, so that what an image becomes does not depend on its neighbours. The last layer starts at
    zero: at first images are what they are. It takes images of any size.
    """

    width: int

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """f[B, H, W, C] -> the same shape."""

        def layer(x: Array, features: int) -> Array:
            out, _ = Normalization("group")(Convolution(features)(x), None)
            return nn.relu(out)

        def enlarged(x: Array, like: Array) -> Array:
            shape = (*like.shape[:3], x.shape[3])
            return jnp.concatenate([jax.image.resize(x, shape, "nearest"), like], -1)

        fine = layer(images, self.width)
        middle = layer(pools.average_pool(fine), 2 * self.width)
        coarse = layer(pools.average_pool(middle), 2 * self.width)
        up = layer(enlarged(coarse, middle), 2 * self.width)
        up = layer(enlarged(up, fine), self.width)
        return images + Convolution(images.shape[-1], initialization="zeros")(up)


class Generating(NamedTuple):
    """A generator seen as pure functions."""

    init: Callable[[Array], PyTree]  # key -> params
    forward: Callable[[PyTree, Array], Array]  # (params, f[B, H, W, C]) -> the same shape


def generator(channels: int, width: int) -> Generating:
    """A `Generator` for images of so many channels, of any size.

    Raises:
      InputError: a width that is not a positive multiple of 4.
    """
    if width < 1 or width % 4:
        raise InputError(f"a generator's width is a positive multiple of 4, not {width}")
    module = Generator(width)

    def init(key: Array) -> PyTree:
        return module.init(key, jnp.zeros((1, 4, 4, channels), jnp.float32))["params"]

    def forward(params: PyTree, images: Array) -> Array:
        return module.apply({"params": params}, images)  # type: ignore[return-value]

    return Generating(init, forward)


def create(
    *,
    image_shape: Sequence[int],
    num_classes: int,
    num_items: int,
    generator_width: int = 32,
    label_kind: str = "hard",
    start: str = "real",
) -> Synthetic:
    """Images that do not change, f[N, H, W, C], each through one generator that is learned.

    theta: `data` = {images}; `decoder`, the generator's parameters. At first what is sampled is
    the images themselves.

    Args:
      image_shape: (H, W, C); at least 4 pixels.
      num_classes, num_items, label_kind, start: as for `pixels.create`.
      generator_width: channels of the finest of three scales.

    Raises:
      InputError: as `pixels.create` and `generator`.

    The conditional generation of MGDD (Liu and Wang, NeurIPS 2023), of which only the abstract
    could be read: the network, and that it learns by any method's objective, are ours.
    """
    shape = (image_shape[0], image_shape[1], image_shape[2])
    if min(shape[:2]) < 4:
        raise InputError(f"a generator needs images of 4 pixels, not {shape[0]}x{shape[1]}")
    plain = pixels.create(
        image_shape=shape,
        num_classes=num_classes,
        num_items=num_items,
        label_kind=label_kind,
        start=start,
    )
    network = generator(shape[2], generator_width)

    def init(key: Array, real: Real) -> dict[str, PyTree]:
        for_images, for_generator = jax.random.split(key)
        return {**plain.init(for_images, real), "decoder": network.init(for_generator)}

    def sample(theta: dict[str, PyTree], key: Array | None, indices: Array | None = None) -> Batch:
        images, targets = plain.sample(theta, key, indices)
        return Batch(network.forward(theta["decoder"], images), targets)

    groups = ("decoder", *labels.groups(label_kind))
    made = plain._replace(init=init, sample=sample, groups=groups, clip=lambda theta, real: theta)
    return converting(made)

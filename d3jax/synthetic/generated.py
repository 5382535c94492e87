"""Synthetic data as images that do not change, and a small generator that changes all of them."""

from collections.abc import Callable, Sequence
from functools import lru_cache
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
    zero: at first images are what they are. It takes images of any size. Grey ones are repeated to
    three channels, and what is added to them is averaged: a generator is for both.
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

        grey = images.shape[-1] == 1
        fine = layer(jnp.repeat(images, 3, -1) if grey else images, self.width)
        middle = layer(pools.average_pool(fine), 2 * self.width)
        coarse = layer(pools.average_pool(middle), 2 * self.width)
        up = layer(enlarged(coarse, middle), 2 * self.width)
        up = layer(enlarged(up, fine), self.width)
        added = Convolution(working_channels(images.shape[-1]), initialization="zeros")(up)
        return images + (jnp.mean(added, -1, keepdims=True) if grey else added)


def working_channels(of_images: int) -> int:
    """The channels that a generator of images of so many works on."""
    return 3 if of_images == 1 else of_images


class Generating(NamedTuple):
    """A generator seen as pure functions."""

    init: Callable[[Array], PyTree]  # key -> params
    forward: Callable[[PyTree, Array], Array]  # (params, f[B, H, W, C]) -> the same shape


@lru_cache(maxsize=32)  # the same functions for the same sizes: nothing compiles twice
def generator(channels: int, width: int) -> Generating:
    """A `Generator` for images of so many channels, of any size; one for 3 is for 1 too.

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
    store: str = "generator",
) -> Synthetic:
    """Images that do not change, f[N, H, W, C], each through one generator that is learned.

    theta: `data` = {images}; `decoder`, the generator's parameters. At first what is sampled is
    the images themselves. Frozen, it may hold what they have become, and no generator.

    Args:
      image_shape: (H, W, C); at least 4 pixels.
      num_classes, num_items, label_kind, start: as for `pixels.create`.
      generator_width: channels of the finest of three scales.
      store: what a frozen theta holds: `images` that the generator has made, which are then plain
        pixels; or the `generator` and the images that it started from, to make others with.

    Raises:
      InputError: as `pixels.create` and `generator`, or something else to store.

    The conditional generation of MGDD (Liu and Wang, NeurIPS 2023), of which only the abstract
    could be read: the network, and that it learns by any method's objective, are ours.
    """
    shape = (image_shape[0], image_shape[1], image_shape[2])
    if min(shape[:2]) < 4:
        raise InputError(f"a generator needs images of 4 pixels, not {shape[0]}x{shape[1]}")
    if store not in ("images", "generator"):
        raise InputError(f"stored are images or the generator, not {store!r}")
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
        if "decoder" not in theta:
            return Batch(images, targets)
        return Batch(network.forward(theta["decoder"], images), targets)

    def freeze(theta: dict[str, PyTree], key: Array) -> dict[str, PyTree]:
        del key
        if store == "generator":
            return theta
        images = jax.jit(network.forward)(theta["decoder"], theta["data"]["images"])
        kept = {name: group for name, group in theta.items() if name != "decoder"}
        return {**kept, "data": {"images": images}}

    groups = ("decoder", *labels.groups(label_kind))
    made = plain._replace(
        init=init, sample=sample, freeze=freeze, groups=groups, clip=lambda theta, real: theta
    )
    return converting(made)

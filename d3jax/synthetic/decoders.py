"""Decoders: small generators from a latent vector to an image in (-1, 1)."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from d3jax.networks import convolution
from d3jax.networks.layers import (
    Convolution,
    Linear,
    Normalization,
    fan_in_initializers,
    lowering_while_initializing,
)
from d3jax.types import InputError, PyTree


class Decoder(NamedTuple):
    """A decoder seen as pure functions."""

    init: Callable[[Array], PyTree]  # key -> params
    # (params, latents f[B, z], *, statistics=None) -> (images f[B, H, W, C] in (-1, 1), statistics)
    # and with a class embedding classes=i32[B]
    forward: Callable[..., tuple[Array, PyTree]]


class _Recipe(NamedTuple):
    width: int  # channels of the first, 2x2 stage
    narrowest: int  # the last stages have width / narrowest channels
    kernel: int  # size of the transposed convolutions
    project: bool  # a linear layer from the latent to the first stage


_RECIPES = {
    "small": _Recipe(128, 8, 4, True),
    "medium": _Recipe(512, 16, 3, True),
    "large": _Recipe(1024, 16, 3, False),
}
NAMES = tuple(_RECIPES)


class Upsampling(nn.Module):
    """A transposed convolution of stride 2, with bias."""

    features: int
    size: int

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """f[B, H, W, C] -> f[B, 2H, 2W, features]."""
        shape = (self.size, self.size, images.shape[-1], self.features)
        # PyTorch computes a transposed convolution's fan-in from its output channels.
        kernel_init, bias_init = fan_in_initializers(self.features * self.size**2)
        kernel = self.param("kernel", kernel_init, shape, jnp.float32)
        bias = self.param("bias", bias_init, (self.features,), jnp.float32)
        return (
            convolution.upsampling_convolution(
                images, kernel, lowering=lowering_while_initializing(self)
            )
            + bias
        )


class DecoderModule(nn.Module):
    """Latent -> 2x2 -> doubled stage by stage -> 3x3 convolution -> tanh -> cropped to size."""

    image_shape: tuple[int, int, int]
    recipe: _Recipe
    num_classes: int | None = None
    """Classes of the class embedding; None: there is none."""

    @nn.compact
    def __call__(
        self, latents: Array, statistics: PyTree = None, classes: Array | None = None
    ) -> tuple[Array, PyTree]:
        """f[B, z] -> (f[B, H, W, C] in (-1, 1), batch norm's (mean, variance) per stage)."""
        height, width, channels = self.image_shape
        first, narrowest, kernel, project = self.recipe
        x = Linear(first * 4)(latents) if project else latents
        if self.num_classes is not None:
            # As large as the projection of standard normal latents.
            shape, (initial, _) = (self.num_classes, first * 4), fan_in_initializers(1)
            x = x + self.param("class_embedding", initial, shape, jnp.float32)[classes]
        x = x.reshape(-1, 2, 2, first)
        used = []
        for stage in range(stages(height)):
            x = Upsampling(first // min(2 ** (stage + 1), narrowest), kernel)(x)
            frozen = statistics[stage] if statistics else None
            x, statistic = Normalization("batch")(x, frozen)
            used.extend(statistic)
            x = nn.leaky_relu(x)
        x = jnp.tanh(Convolution(channels)(x))
        top, left = (x.shape[1] - height) // 2, (x.shape[2] - width) // 2
        return x[:, top : top + height, left : left + width], tuple(used)


def stages(image_size: int) -> int:
    """How many doublings of 2 reach at least `image_size` pixels."""
    return (image_size - 1).bit_length() - 1


def create(
    name: str,
    *,
    image_shape: tuple[int, int, int],
    latent_size: int,
    width: int | None = None,
    num_classes: int | None = None,
) -> Decoder:
    """A decoder by name: small, medium or large (D3, arXiv 2403.00999, and its code).

    Args:
      name: one of `decoders.NAMES`.
      image_shape: (H, W, C), H = W; a size that doubling 2 does not reach is cropped, about the
        centre, from the next one that it does (28 from 32).
      latent_size: z; for `large`, which has no linear layer, 4 * width.
      width: k, channels of the first stage; default 128, 512, 1024.
      num_classes: K, of a class embedding: a learned vector f[K, 4 * width] for each class, added
        to the projection of its latents, which need not carry the class then (ours; one-hot
        classes beside the latent are the same). Default none.

    Raises:
      InputError: an unknown name, images that are not square, a width that the later stages cannot
        divide, a wrong z, or a class embedding of `large`, which projects nothing.

    Batch normalization uses the statistics of the decoded batch (as the authors' code does in all
    but one script), unless frozen `statistics` are passed, as a saved artifact does.
    """
    if name not in _RECIPES:
        raise InputError(f"unknown decoder {name!r}; known decoders: {', '.join(NAMES)}")
    if image_shape[0] != image_shape[1]:
        raise InputError(f"a decoder's images are square, not {image_shape[0]}x{image_shape[1]}")
    recipe = _RECIPES[name]
    recipe = recipe if width is None else recipe._replace(width=width)
    if recipe.width < recipe.narrowest or recipe.width % recipe.narrowest:
        raise InputError(
            f"decoder {name} needs a width divisible by {recipe.narrowest}, not {recipe.width}"
        )
    if latent_size < 1 or (not recipe.project and latent_size != 4 * recipe.width):
        needed = "at least 1" if recipe.project else f"{4 * recipe.width}, four times its width"
        raise InputError(f"decoder {name} needs a latent size of {needed}, not {latent_size}")
    if num_classes is not None and not recipe.project:
        raise InputError(f"decoder {name} has no linear layer to add a class embedding to")
    module = DecoderModule(image_shape, recipe, num_classes)

    @jax.jit  # one program: op by op, each is compiled for its shapes
    def init(key: Array) -> PyTree:
        latents, classes = jnp.zeros((1, latent_size), jnp.float32), jnp.zeros((1,), jnp.int32)
        return module.init(key, latents, None, classes)["params"]

    def forward(
        params: PyTree, latents: Array, *, statistics: PyTree = None, classes: Array | None = None
    ):
        return module.apply({"params": params}, latents, statistics, classes)

    return Decoder(init, forward)

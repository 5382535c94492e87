"""Flax layers of networks and decoders, on `convolution` and `norms`, with PyTorch's defaults."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from d3jax.networks import convolution, norms

Initializer = Callable[..., Array]


def fan_in_initializers(fan_in: int) -> tuple[Initializer, Initializer]:
    """U(-1, 1) / sqrt(fan_in) for kernel and bias: PyTorch's default."""
    bound = 1 / math.sqrt(fan_in)

    def uniform(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return uniform, uniform


def _initializers(name: str, fan_in: int) -> tuple[Initializer, Initializer]:
    """(kernel, bias) initializers.

    Raises:
      ValueError: nothing comes in.
    """
    if fan_in < 1:
        raise ValueError("no inputs are left for a layer")
    if name == "zeros":
        return nn.initializers.zeros, nn.initializers.zeros
    if name == "xavier_normal":
        return nn.initializers.xavier_normal(), nn.initializers.zeros
    return fan_in_initializers(fan_in)


def lowering_while_initializing(module: nn.Module) -> convolution.Lowering | None:
    """The one of shortest trace: the compiler throws away what is computed then.

    Of a module that has its parameters the default, None.
    """
    return "lax" if module.is_initializing() else None


def _like(param: Array, images: Array) -> Array:
    """A parameter in the precision of bfloat16 images; otherwise as it is."""
    return param.astype(images.dtype) if images.dtype == jnp.bfloat16 else param


class Convolution(nn.Module):
    """A convolution with bias on `convolution.convolution`."""

    features: int
    size: int = 3
    stride: int = 1
    padding: int | None = None
    bias: bool = True
    cancelled: bool = False
    """What follows subtracts each image's mean of each feature, and the bias with it: it is there,
    its gradient is zero, and nothing is added."""
    initialization: str = "uniform_fan_in"

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """f[B, H, W, C] -> f[B, H', W', features]."""
        channels = images.shape[-1]
        kernel_init, bias_init = _initializers(self.initialization, channels * self.size**2)
        shape = (self.size, self.size, channels, self.features)
        kernel = self.param("kernel", kernel_init, shape, jnp.float32)
        kernel = _like(kernel, images)
        out = convolution.convolution(
            images,
            kernel,
            stride=self.stride,
            padding=self.padding,
            lowering=lowering_while_initializing(self),
        )
        if self.bias:
            bias = self.param("bias", bias_init, (self.features,), jnp.float32)
            out = out if self.cancelled else out + _like(bias, images)
        return out


class Linear(nn.Module):
    """An affine map of vectors."""

    features: int
    initialization: str = "uniform_fan_in"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """f[B, n] -> f[B, features]."""
        kernel_init, bias_init = _initializers(self.initialization, x.shape[-1])
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", kernel_init, shape, jnp.float32)
        bias = self.param("bias", bias_init, (self.features,), jnp.float32)
        return x @ _like(kernel, x) + _like(bias, x)


class Normalization(nn.Module):
    """Instance, group, layer or batch normalization with scale and bias, or none.

    Of bfloat16 images it computes in float32.
    """

    kind: str

    @nn.compact
    def __call__(
        self, images: Array, statistics: norms.Statistics | None
    ) -> tuple[Array, tuple[norms.Statistics, ...]]:
        """f[B, H, W, C] -> the same shape, and this batch's statistics (none but of batch norm).

        `statistics`: what batch norm normalizes by instead of them.
        """
        if self.kind == "none":
            return images, ()
        channels = images.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        wide = images.astype(jnp.float32) if images.dtype == jnp.bfloat16 else images
        if self.kind == "batch":
            out, own = norms.batch_norm(wide, scale, bias, statistics)
            return out.astype(images.dtype), (own,)
        groups = {"instance": channels, "group": min(4, channels), "layer": 1}[self.kind]
        return norms.group_norm(wide, scale, bias, groups).astype(images.dtype), ()

"""The student and expert networks of the field, as Flax modules behind `types.Network`.

Nothing here keeps hidden state: batch norm runs on the batch's own statistics, returned in
`Outputs.statistics`, unless frozen ones are passed in.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from d3jax import ops
from d3jax.types import InputError, Network, Outputs, PyTree

Initializer = Callable[..., Array]
NORMS = ("instance", "group", "layer", "batch", "none")
POOLINGS = ("average", "max", "none")
INITIALIZATIONS = ("uniform_fan_in", "xavier_normal")


def fan_in_initializers(fan_in: int) -> tuple[Initializer, Initializer]:
    """U(-1, 1) / sqrt(fan_in) for kernel and bias: PyTorch's default."""
    bound = 1 / math.sqrt(fan_in)

    def uniform(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return uniform, uniform


def _initializers(name: str, fan_in: int) -> tuple[Initializer, Initializer]:
    """(kernel, bias) initializers."""
    if name == "xavier_normal":
        return nn.initializers.xavier_normal(), nn.initializers.zeros
    return fan_in_initializers(fan_in)


class Convolution(nn.Module):
    """A convolution with bias on `ops.convolution`."""

    features: int
    size: int = 3
    stride: int = 1
    padding: int | None = None
    bias: bool = True
    initialization: str = "uniform_fan_in"

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """f[B, H, W, C] -> f[B, H', W', features]."""
        channels = images.shape[-1]
        kernel_init, bias_init = _initializers(self.initialization, channels * self.size**2)
        shape = (self.size, self.size, channels, self.features)
        kernel = self.param("kernel", kernel_init, shape, jnp.float32)
        out = ops.convolution(images, kernel, stride=self.stride, padding=self.padding)
        if self.bias:
            out = out + self.param("bias", bias_init, (self.features,), jnp.float32)
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
        return x @ kernel + self.param("bias", bias_init, (self.features,), jnp.float32)


class Normalization(nn.Module):
    """Instance, group, layer or batch normalization with scale and bias, or none."""

    kind: str

    @nn.compact
    def __call__(
        self, images: Array, statistics: ops.Statistics | None
    ) -> tuple[Array, tuple[ops.Statistics, ...]]:
        """f[B, H, W, C] -> the same shape, and the statistics used (none but for batch norm)."""
        if self.kind == "none":
            return images, ()
        channels = images.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        if self.kind == "batch":
            images, used = ops.batch_norm(images, scale, bias, statistics)
            return images, (used,)
        groups = {"instance": channels, "group": min(4, channels), "layer": 1}[self.kind]
        return ops.group_norm(images, scale, bias, groups), ()


class _Statistics:
    """Hands frozen statistics to the normalization layers in order, and collects what they used."""

    def __init__(self, frozen: PyTree):
        self.frozen = list(frozen) if frozen else []
        self.used: list[ops.Statistics] = []

    def __call__(self, layer: Normalization, images: Array) -> Array:
        position = len(self.used)
        images, used = layer(images, self.frozen[position] if self.frozen else None)
        self.used.extend(used)
        return images


class ConvNet(nn.Module):
    """The field's standard network: blocks of 3x3 convolution, norm, ReLU, pooling; then linear.

    The first convolution pads a one-channel 28x28 image to 32x32, as everywhere in the field.
    """

    num_classes: int
    width: int = 128
    depth: int = 3
    norm: str = "instance"
    pooling: str = "average"
    activation: Callable[[Array], Array] = nn.relu
    initialization: str = "uniform_fan_in"

    @nn.compact
    def __call__(self, images: Array, statistics: PyTree = None) -> Outputs:
        """Normalized images f[B, H, W, C] -> Outputs."""
        norms = _Statistics(statistics)
        x = images
        for layer in range(self.depth):
            padding = 3 if layer == 0 and images.shape[1:] == (28, 28, 1) else 1
            x = Convolution(self.width, padding=padding, initialization=self.initialization)(x)
            x = self.activation(norms(Normalization(self.norm), x))
            if self.pooling == "average":
                x = ops.average_pool(x)
            elif self.pooling == "max":
                x = ops.max_pool(x)
        features = x.reshape(x.shape[0], -1)
        logits = Linear(self.num_classes, self.initialization)(features)
        return Outputs(logits, features, tuple(norms.used))


class LeNet(nn.Module):
    """LeNet-5 with ReLU and max pooling, as in Dataset Distillation (28x28 and 32x32 images)."""

    num_classes: int
    activation: Callable[[Array], Array] = nn.relu
    initialization: str = "uniform_fan_in"

    @nn.compact
    def __call__(self, images: Array, statistics: PyTree = None) -> Outputs:
        """Normalized images f[B, H, W, C] -> Outputs."""
        act, init = self.activation, self.initialization
        # 28x28 images are padded to 32x32, the size LeNet-5 was drawn for.
        padding = 2 if images.shape[1] == 28 else 0
        x = ops.max_pool(act(Convolution(6, 5, padding=padding, initialization=init)(images)))
        x = ops.max_pool(act(Convolution(16, 5, padding=0, initialization=init)(x)))
        x = x.reshape(x.shape[0], -1)
        x = act(Linear(120, init)(x))
        features = act(Linear(84, init)(x))
        return Outputs(Linear(self.num_classes, init)(features), features, ())


class AlexCifarNet(nn.Module):
    """The small AlexNet of Dataset Distillation's CIFAR-10 runs (cuda-convnet's), for 32x32."""

    num_classes: int
    activation: Callable[[Array], Array] = nn.relu
    initialization: str = "uniform_fan_in"

    @nn.compact
    def __call__(self, images: Array, statistics: PyTree = None) -> Outputs:
        """Normalized images f[B, H, W, C] -> Outputs."""
        act, init = self.activation, self.initialization
        x = act(Convolution(64, 5, initialization=init)(images))
        x = ops.local_response_norm(ops.max_pool(x, 3, padding=1))
        x = ops.local_response_norm(act(Convolution(64, 5, initialization=init)(x)))
        x = ops.max_pool(x, 3, padding=1)
        x = x.reshape(x.shape[0], -1)
        x = act(Linear(384, init)(x))
        features = act(Linear(192, init)(x))
        return Outputs(Linear(self.num_classes, init)(features), features, ())


class MLP(nn.Module):
    """Two hidden layers of `width` units."""

    num_classes: int
    width: int = 128
    activation: Callable[[Array], Array] = nn.relu
    initialization: str = "uniform_fan_in"

    @nn.compact
    def __call__(self, images: Array, statistics: PyTree = None) -> Outputs:
        """Normalized images f[B, H, W, C] -> Outputs."""
        x = images.reshape(images.shape[0], -1)
        for _ in range(2):
            x = self.activation(Linear(self.width, self.initialization)(x))
        return Outputs(Linear(self.num_classes, self.initialization)(x), x, ())


class ResNet18(nn.Module):
    """ResNet-18 for small images (3x3 stem, no stem pooling); width 64 is the usual one."""

    num_classes: int
    width: int = 64
    norm: str = "instance"
    activation: Callable[[Array], Array] = nn.relu
    initialization: str = "uniform_fan_in"

    @nn.compact
    def __call__(self, images: Array, statistics: PyTree = None) -> Outputs:
        """Normalized images f[B, H, W, C] -> Outputs."""
        norms = _Statistics(statistics)

        def convolve(x: Array, features: int, size: int = 3, stride: int = 1) -> Array:
            layer = Convolution(
                features, size, stride, bias=False, initialization=self.initialization
            )
            return norms(Normalization(self.norm), layer(x))

        x = self.activation(convolve(images, self.width))
        for stage in range(4):
            features = self.width * 2**stage
            for block in range(2):
                stride = 2 if stage > 0 and block == 0 else 1
                y = self.activation(convolve(x, features, stride=stride))
                y = convolve(y, features)
                shortcut = x if x.shape == y.shape else convolve(x, features, 1, stride)
                x = self.activation(y + shortcut)
        x = x.mean((1, 2))
        return Outputs(Linear(self.num_classes, self.initialization)(x), x, tuple(norms.used))


_MODULES = {
    "convnet": ConvNet,
    "lenet": LeNet,
    "alexcifarnet": AlexCifarNet,
    "mlp": MLP,
    "resnet18": ResNet18,
}
NAMES = tuple(_MODULES)


def default_depth(image_size: int) -> int:
    """The field's usual ConvNet depth: 3 at 28 to 32 pixels, 4 at 64, 5 at 128; 2 below 28."""
    return max(2, round(math.log2(image_size)) - 2)


def create(
    name: str,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    width: int | None = None,
    depth: int | None = None,
    norm: str | None = None,
    pooling: str | None = None,
    activation: Callable[[Array], Array] = nn.relu,
    initialization: str = "uniform_fan_in",
) -> Network:
    """A network by name: convnet, lenet, alexcifarnet, mlp or resnet18.

    Args:
      name: one of `networks.NAMES`.
      image_shape: (H, W, C), in pixels and channels.
      num_classes: K.
      width: channels per layer (convnet 128, resnet18 64) or hidden units (mlp 128).
      depth: convnet's number of blocks; default by image size (`default_depth`).
      norm: instance (default), group (4 groups), layer, batch or none; convnet and resnet18.
      pooling: average (default), max or none; convnet.
      activation: any smooth or piecewise function of an array.
      initialization: `uniform_fan_in` (PyTorch's default, which the field's figures rest on) or
        `xavier_normal` with zero biases (Dataset Distillation).

    Raises:
      InputError: an unknown name, or an option that the network does not have.
    """
    if name not in _MODULES:
        raise InputError(f"unknown network {name!r}; known networks: {', '.join(NAMES)}")
    for option, value, known in (
        ("norm", norm, NORMS),
        ("pooling", pooling, POOLINGS),
        ("initialization", initialization, INITIALIZATIONS),
    ):
        if value is not None and value not in known:
            raise InputError(f"unknown {option} {value!r}; known: {', '.join(known)}")
    options = {"width": width, "depth": depth, "norm": norm, "pooling": pooling}
    options = {key: value for key, value in options.items() if value is not None}
    for option in ("width", "depth"):
        if options.get(option, 1) < 1:
            raise InputError(f"{option} must be at least 1, not {options[option]}")
    module = _MODULES[name]
    foreign = [key for key in options if key not in module.__dataclass_fields__]
    if foreign:
        raise InputError(f"network {name} has no option {foreign[0]!r}; leave it out")
    if name == "convnet":
        options.setdefault("depth", default_depth(image_shape[0]))
        if image_shape[0] >> options["depth"] < 1 and pooling != "none":
            raise InputError(
                f"depth {options['depth']} halves a {image_shape[0]} pixel image away; "
                f"use at most depth {int(math.log2(image_shape[0]))}"
            )
    module = module(num_classes, activation=activation, initialization=initialization, **options)
    network = from_module(module, image_shape)
    try:
        jax.eval_shape(network.init, jax.random.key(0))
    except (TypeError, ValueError):  # a layer that nothing is left for, or channels not divisible
        raise InputError(
            f"network {name} with these options cannot take images of "
            f"{image_shape[0]}x{image_shape[1]} pixels; convnet and mlp take any size"
        ) from None
    return network


def from_module(module: nn.Module, image_shape: tuple[int, int, int]) -> Network:
    """A `Network` of any Flax module whose call is (images, statistics=None) -> Outputs.

    Parameters start in float32, also where 64-bit types are enabled; to compute in float64, cast
    parameters and images.
    """

    def init(key: Array) -> PyTree:
        return module.init(key, jnp.zeros((1, *image_shape), jnp.float32))["params"]

    def forward(params: PyTree, images: Array, *, statistics: PyTree = None) -> Outputs:
        return module.apply({"params": params}, images, statistics)  # type: ignore[return-value]

    return Network(init, forward)


def parameter_count(params: PyTree) -> int:
    """The number of floats in a pytree of arrays (or of their shapes)."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def unraveler(network: Network) -> Callable[[Array], PyTree]:
    """The function that turns a parameter vector f[P] of `network` back into its pytree.

    Vectors are in the order of `jax.flatten_util.ravel_pytree`.
    """
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    leaves, structure = jax.tree.flatten(shapes)
    sizes = [math.prod(leaf.shape) for leaf in leaves]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]

    def unravel(vector: Array) -> PyTree:
        parts = [
            vector[end - size : end].reshape(leaf.shape)
            for leaf, size, end in zip(leaves, sizes, ends)
        ]
        return jax.tree.unflatten(structure, parts)

    return unravel


def forward_blocks(network: Network, params: PyTree, images: Array) -> Outputs:
    """`network.forward`, a cache-sized block of images at a time (`ops.map_blocks`).

    Batch norm's statistics are those of the whole batch, so a network that has it is not split.
    """

    def forward(images: Array) -> Outputs:
        return network.forward(params, images)

    return ops.map_blocks(forward, images, _block(network, images))


def fit(
    network: Network, params: PyTree, images: Array, loss: Callable[[Array, PyTree], Array],
    targets: PyTree,
) -> tuple[Array, Array]:  # fmt: skip
    """The mean of `loss` over a batch, and its logits f[B, K], a block of images at a time.

    As `forward_blocks` and then the loss, but what the gradient needs of a block is used while the
    block is at hand: nothing is recomputed or kept, which is a quarter faster. In return it is
    differentiable in `params` alone, and once; the logits carry no derivative.

    Args:
      loss: (logits f[b, K], targets of these) -> the mean over them, f[].
      targets: a pytree whose leaves have the leading axis B.
    """
    number = images.shape[0]
    block = _block(network, images)
    size = number
    if block is not None and number > block:
        divisor = max(d for d in range(1, block + 1) if number % d == 0)
        size = divisor if 4 * divisor >= block else number  # a prime number of images stays whole
    blocks = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), (images, targets))
    share = size / number

    def of_block(params: PyTree, images: Array, targets: PyTree) -> tuple[Array, Array]:
        logits = network.forward(params, images).logits
        return loss(logits, targets) * jnp.asarray(share, logits.dtype), logits

    def gather(values: Array, logits: Array) -> tuple[Array, Array]:
        return jnp.sum(values), logits.reshape(number, -1)

    @jax.custom_vjp
    def total(params: PyTree, blocks: PyTree) -> tuple[Array, Array]:
        return gather(*jax.lax.map(lambda block: of_block(params, *block), blocks))

    def forward(params: PyTree, blocks: PyTree) -> tuple[tuple[Array, Array], PyTree]:
        def accumulate(gradient: PyTree, block: PyTree) -> tuple[PyTree, tuple[Array, Array]]:
            (value, logits), of_this = jax.value_and_grad(of_block, has_aux=True)(params, *block)
            return jax.tree.map(jnp.add, gradient, of_this), (value, logits)

        start = jax.tree.map(jnp.zeros_like, params)
        gradient, parts = jax.lax.scan(accumulate, start, blocks)
        return gather(*parts), (gradient, blocks)

    def backward(kept: PyTree, cotangents: tuple[Array, Array]) -> tuple[PyTree, PyTree]:
        gradient, blocks = kept
        return (
            jax.tree.map(lambda g: g * cotangents[0].astype(g.dtype), gradient),
            jax.tree.map(ops.no_cotangent, blocks),
        )

    total.defvjp(forward, backward)
    return total(params, jax.lax.stop_gradient(blocks))


def _block(network: Network, images: Array) -> int | None:
    """How many of `images` to look at together; None for all."""
    shape = images.shape[1:]
    block = ops.default_block(shape[0])
    if block is None or _has_statistics(network, shape):
        return None
    # A light network takes more images at a time.
    return max(block, _BLOCK_BYTES // _bytes_per_image(network, shape))


@lru_cache(maxsize=32)
def _has_statistics(network: Network, image_shape: tuple[int, ...]) -> bool:
    """Whether there is batch norm, whose statistics are those of the whole batch."""
    params = jax.eval_shape(network.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return bool(jax.eval_shape(network.forward, params, image).statistics)


_BLOCK_BYTES = 11 << 20  # 4 images of 32x32 pixels in a ConvNet of width 32


@lru_cache(maxsize=32)
def _bytes_per_image(network: Network, image_shape: tuple[int, ...]) -> int:
    """The bytes of all arrays that one image's forward pass writes down, in float32."""
    params = jax.eval_shape(network.init, jax.random.key(0))

    def written(images: int) -> int:
        batch = jax.ShapeDtypeStruct((images, *image_shape), jnp.float32)
        return _written(jax.make_jaxpr(network.forward)(params, batch).jaxpr)

    return max(1, written(2) - written(1))  # the weights' own arrays cancel


def _written(program: Any) -> int:
    number = 0
    for equation in program.eqns:
        inner = [getattr(p, "jaxpr", p) for p in equation.params.values()]
        inner = [p for p in inner if hasattr(p, "eqns")]
        outputs = sum(4 * math.prod(out.aval.shape) for out in equation.outvars)
        number += sum(_written(p) for p in inner) if inner else outputs
    return number

"""The student and expert networks of the field, as Flax modules behind `types.Network`.

Nothing here keeps hidden state: batch norm runs on the batch's own statistics, unless frozen ones
are passed in. `Outputs.statistics` are the batch's own either way, of each batch norm's input.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from d3jax.networks import norms, pools
from d3jax.networks.layers import Convolution, Linear, Normalization
from d3jax.types import InputError, Network, Outputs, PyTree, check_known

NORMS = ("instance", "group", "layer", "batch", "none")
POOLINGS = ("average", "max", "none")
INITIALIZATIONS = ("uniform_fan_in", "xavier_normal")
PRECISIONS = ("float32", "bfloat16")
_DEEPEST = 64
LARGE = 128  # pixels, from which on a ResNet has the stem of large images


class _Statistics:
    """Hands frozen statistics to the normalization layers in order; collects the batch's own."""

    def __init__(self, frozen: PyTree):
        self.frozen = list(frozen) if frozen else []
        self.own: list[norms.Statistics] = []

    def __call__(self, layer: Normalization, images: Array) -> Array:
        position = len(self.own)
        images, own = layer(images, self.frozen[position] if self.frozen else None)
        self.own.extend(own)
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
        normalize = _Statistics(statistics)
        x = images
        for layer in range(self.depth):
            padding = 3 if layer == 0 and images.shape[1:] == (28, 28, 1) else 1
            x = Convolution(
                self.width,
                padding=padding,
                cancelled=self.norm == "instance",
                initialization=self.initialization,
            )(x)
            x = self.activation(normalize(Normalization(self.norm), x))
            if self.pooling == "average":
                x = pools.average_pool(x)
            elif self.pooling == "max":
                x = pools.max_pool(x)
        features = x.reshape(x.shape[0], -1)
        logits = Linear(self.num_classes, self.initialization)(features)
        return Outputs(logits, features, tuple(normalize.own))


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
        x = pools.max_pool(act(Convolution(6, 5, padding=padding, initialization=init)(images)))
        x = pools.max_pool(act(Convolution(16, 5, padding=0, initialization=init)(x)))
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
        x = norms.local_response_norm(pools.max_pool(x, 3, padding=1))
        x = norms.local_response_norm(act(Convolution(64, 5, initialization=init)(x)))
        x = pools.max_pool(x, 3, padding=1)
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
    """ResNet-18; width 64 is the usual one.

    For small images a 3x3 stem, no stem pooling; from 128 pixels on the stem of He et al. (arXiv
    1512.03385), 7x7 with stride 2 and max pooling.
    """

    num_classes: int
    width: int = 64
    norm: str = "instance"
    activation: Callable[[Array], Array] = nn.relu
    initialization: str = "uniform_fan_in"

    @nn.compact
    def __call__(self, images: Array, statistics: PyTree = None) -> Outputs:
        """Normalized images f[B, H, W, C] -> Outputs."""
        normalize = _Statistics(statistics)

        def convolve(x: Array, features: int, size: int = 3, stride: int = 1) -> Array:
            layer = Convolution(
                features, size, stride, bias=False, initialization=self.initialization
            )
            return normalize(Normalization(self.norm), layer(x))

        if images.shape[1] < LARGE:
            x = self.activation(convolve(images, self.width))
        else:
            x = self.activation(convolve(images, self.width, 7, 2))
            x = pools.max_pool(x, 3, padding=1)
        for stage in range(4):
            features = self.width * 2**stage
            for block in range(2):
                stride = 2 if stage > 0 and block == 0 else 1
                y = self.activation(convolve(x, features, stride=stride))
                y = convolve(y, features)
                shortcut = x if x.shape == y.shape else convolve(x, features, 1, stride)
                x = self.activation(y + shortcut)
        x = x.mean((1, 2))
        return Outputs(Linear(self.num_classes, self.initialization)(x), x, tuple(normalize.own))


_MODULES = {
    "convnet": ConvNet,
    "lenet": LeNet,
    "alexcifarnet": AlexCifarNet,
    "mlp": MLP,
    "resnet18": ResNet18,
}
NAMES = tuple(_MODULES)


def known_options(name: str) -> tuple[str, ...]:
    """The options of `create` that a network has; of the user's own only its precision."""
    own = ("compute",)
    if name in _MODULES:
        fields = _MODULES[name].__dataclass_fields__
        shaped = (option for option in ("width", "depth", "norm", "pooling") if option in fields)
        own = (*shaped, "initialization", *own)
    return own


def default_depth(image_size: int) -> int:
    """The field's usual ConvNet depth, from 2 on: 3 at 28 to 32 pixels, 4 at 64, 5 at 128."""
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
    compute: str = "float32",
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
      compute: precision of convolutions and linear layers; parameters, normalization, logits and
        features are float32 with `bfloat16` too.

    Raises:
      InputError: an unknown name, or an option that the network does not have.

    Examples:
      >>> network = create("mlp", image_shape=(8, 8, 1), num_classes=10, width=4)
      >>> params = network.init(jax.random.key(0))
      >>> network.apply(params, jnp.zeros((2, 8, 8, 1))).shape
      (2, 10)
    """
    if name not in _MODULES:
        raise InputError(f"unknown network {name!r}; known networks: {', '.join(NAMES)}")
    for option, value, known in (
        ("norm", norm, NORMS),
        ("pooling", pooling, POOLINGS),
        ("initialization", initialization, INITIALIZATIONS),
        ("compute", compute, PRECISIONS),
    ):
        if value is not None:
            check_known(option, value, known)
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
        if options["depth"] > _DEEPEST:
            raise InputError(f"depth must be at most {_DEEPEST}, not {options['depth']}")
        if image_shape[0] >> options["depth"] < 1 and pooling != "none":
            raise InputError(
                f"depth {options['depth']} halves a {image_shape[0]} pixel image away; "
                f"use at most depth {int(math.log2(image_shape[0]))}"
            )
    instance = options.get("norm", "instance") == "instance"
    if name == "resnet18" and instance and max(image_shape[:2]) <= 8:  # halved three times
        raise InputError(
            f"resnet18 leaves one pixel of a {image_shape[0]} pixel image, which instance norm "
            f"makes zero; use another norm (--norm group), convnet or mlp"
        )
    module = module(num_classes, activation=activation, initialization=initialization, **options)
    network = from_module(module, image_shape, compute)
    try:
        jax.eval_shape(network.init, jax.random.key(0))
    except (TypeError, ValueError):  # a layer that nothing is left for, or channels not divisible
        raise InputError(
            f"network {name} with these options cannot take images of "
            f"{image_shape[0]}x{image_shape[1]} pixels; convnet and mlp take any size"
        ) from None
    return network


def from_module(
    module: nn.Module, image_shape: tuple[int, int, int], compute: str = "float32"
) -> Network:
    """A `Network` of any Flax module whose call is (images, statistics=None) -> Outputs.

    Parameters start in float32, also where 64-bit types are enabled; to compute in float64, cast
    parameters and images. With `compute` bfloat16 the module gets bfloat16 images; its layers
    should follow them, as those of `layers` do.
    """

    @jax.jit  # one program: op by op, each is compiled for its shapes
    def init(key: Array) -> PyTree:
        return module.init(key, jnp.zeros((1, *image_shape), jnp.float32))["params"]

    def forward(params: PyTree, images: Array, *, statistics: PyTree = None) -> Outputs:
        if compute == "bfloat16":
            images = images.astype(jnp.bfloat16)
        outputs: Outputs = module.apply({"params": params}, images, statistics)  # type: ignore
        if compute == "bfloat16":
            outputs = outputs._replace(
                logits=outputs.logits.astype(jnp.float32),
                features=outputs.features.astype(jnp.float32),
            )
        return outputs

    return Network(init, forward)


def parameter_count(params: PyTree) -> int:
    """The number of floats in a pytree of arrays (or of their shapes)."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def number_of_classes(network: Network, image_shape: tuple[int, ...]) -> int:
    """K, the length of the logits of an image of this shape."""
    params = jax.eval_shape(network.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return jax.eval_shape(network.apply, params, image).shape[-1]


def initial_parameters(network: Network, key: Array) -> Array:
    """Fresh parameters as a vector f[P], which `unraveler` turns into their pytree."""
    return ravel_pytree(network.init(key))[0]


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

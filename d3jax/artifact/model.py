"""A network that was trained on an artifact, as one safe file: a classifier of images.

A `.safetensors` file: its weights by their Flax names, batch norm's statistics, and a JSON header
under the metadata key `d3jax_model` that says how to use them. No pickle, and no code.
"""

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jax import Array

from d3jax import networks
from d3jax.artifact.checks import check_fields, check_normalization, flatten, parse
from d3jax.host import files
from d3jax.networks.blocks import forward_blocks
from d3jax.networks.own import is_own
from d3jax.types import InputError, Network, PyTree

_MAGIC = "d3jax_model"
_VERSION = 1
_REQUIRED = {
    "format_version": int, "architecture": dict, "image_shape": list, "class_names": list,
    "normalization": dict,
}  # fmt: skip
_TOGETHER = 500  # images


class Model(NamedTuple):
    """A trained network: a function of images."""

    header: dict[str, Any]  # architecture, image_shape, class_names, normalization, origin
    network: Network
    params: PyTree
    statistics: PyTree = ()  # what batch norm normalizes by, if there is any

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """The class i64[N] of each of images u8[N, H, W, C]; `class_names` are their names."""
        return self.logits(images).argmax(1)

    def logits(self, images: np.ndarray) -> np.ndarray:
        """What the network says f32[N, K] of images u8[N, H, W, C].

        Raises:
          InputError: images of another shape, or that are not pixels from 0 to 255 in a byte.
        """
        images = np.asarray(images)
        shape = self.header["image_shape"]
        if images.dtype != np.uint8 or images.ndim != 4 or list(images.shape[1:]) != shape:
            raise InputError(
                f"the network takes images uint8[N, {', '.join(map(str, shape))}], not "
                f"{images.dtype}{list(images.shape)}"
            )
        stored = self.header["normalization"]
        mean, sd = (jnp.asarray(stored[name], jnp.float32) for name in ("mean", "sd"))
        found, forward = [np.zeros((0, len(self.class_names)), np.float32)], _forward(self.network)
        for first in range(0, len(images), _TOGETHER):
            few = images[first : first + _TOGETHER]
            found.append(np.asarray(forward(self.params, self.statistics, few, mean, sd)))
        return np.concatenate(found)

    @property
    def class_names(self) -> list[str]:
        """By the number of the class."""
        return self.header["class_names"]


@lru_cache(maxsize=8)
def _forward(network: Network) -> Callable[..., Array]:
    def forward(params: PyTree, statistics: PyTree, images: Array, mean: Array, sd: Array) -> Array:
        normalized = (images.astype(jnp.float32) / 255 - mean) / sd
        if statistics:  # an image's answer is its own: there is no batch to keep whole
            return network.forward(params, normalized, statistics=statistics).logits
        return forward_blocks(network, params, normalized).logits

    return jax.jit(forward)


def save_model(model: Model, path: str | Path) -> None:
    """Writes the network as one file, whole or not at all."""
    arrays = {n: np.asarray(x, np.float32) for n, x in _arrays(model.params, model.statistics)}
    text = json.dumps({**model.header, "format_version": _VERSION}, sort_keys=True)
    files.write_bytes(path, safetensors.numpy.save(arrays, metadata={_MAGIC: text}))


def load_model(path: str | Path, network: Network | None = None) -> Model:
    """The network that `d3jax train` has written.

    network: where it is one of your own (`d3jax.networks.wrap`), which a file only names.

    Raises:
      InputError: there is no such file, it is another's or damaged, or its network is another.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no model at {path}")
    try:
        with safetensors.safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a sound safetensors file: {error}") from None
    if _MAGIC not in metadata:
        raise InputError(f"{path} is no network of d3jax train")
    header = _checked(parse(metadata[_MAGIC], path), path)
    network = _built(header, path) if network is None else network
    image = jax.ShapeDtypeStruct((1, *header["image_shape"]), jnp.float32)
    params = jax.eval_shape(network.init, jax.random.key(0))
    statistics = jax.eval_shape(network.forward, params, image).statistics
    expected = dict(_arrays(params, statistics))
    found = {name: (x.shape, x.dtype) for name, x in arrays.items()}
    if found != {name: (x.shape, np.float32) for name, x in expected.items()}:
        raise InputError(f"the arrays in {path} are not those of the network in its header")
    if not all(np.isfinite(x).all() for x in arrays.values()):
        raise InputError(f"{path} holds weights that are not finite")
    tree = jax.tree.structure(_named(params, statistics))
    stored = jax.tree.unflatten(tree, [arrays[name] for name in expected])
    return Model(header, network, stored["params"], stored["statistics"])


def _named(params: PyTree, statistics: PyTree) -> dict[str, PyTree]:
    return {"params": params, "statistics": statistics}


def _arrays(params: PyTree, statistics: PyTree) -> list[tuple[str, Any]]:
    """All arrays by their names in the file, in the order of the tree."""
    return [*flatten(_named(params, statistics)).items()]


def _checked(header: dict[str, Any], path: Path) -> dict[str, Any]:
    check_fields(header, _REQUIRED, _VERSION, path)
    shape = header["image_shape"]
    if len(shape) != 3 or not all(type(n) is int and 0 < n < 1 << 16 for n in shape):
        raise InputError(f"the header of {path} has no usable image shape")
    check_normalization(header["normalization"], shape[2], path)
    return header


def _built(header: dict[str, Any], path: Path) -> Network:
    stored = {name: value for name, value in header["architecture"].items() if value is not None}
    name = stored.pop("network", "convnet")
    if is_own(name):
        raise InputError(
            f"{path} is a network that is not d3jax's, {name}; give it to load_model as well"
        )
    height, width, channels = header["image_shape"]
    try:
        return networks.create(
            name,
            image_shape=(height, width, channels),
            num_classes=len(header["class_names"]),
            **stored,
        )
    except TypeError as error:
        raise InputError(f"the network in {path} cannot be built: {error}") from None

"""A user's own Flax Linen or NNX module as a `types.Network`, also by its name in Python.

d3jax's networks are pure functions without hidden state, and so is what is made here: batch norm
runs on the batch's own statistics, whatever the module says of running averages, and what would
draw random numbers (dropout) or keep state in the forward pass is refused.
"""

from collections.abc import Callable
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx, traverse_util
from flax.core import meta
from jax import Array

from d3jax.networks.architectures import PRECISIONS
from d3jax.networks.watched import Pass, Path, shown
from d3jax.types import InputError, Network, Outputs, PyTree, check_known

_LONGEST = 200  # characters of another's error that are quoted


def wrap(
    module: nn.Module | nnx.Module | Callable[[nnx.Rngs], nnx.Module],
    *,
    image_shape: tuple[int, int, int],
    features: str | None = None,
    compute: str = "float32",
) -> Network:
    """A `Network` of your own Flax module, whose call takes images and gives logits.

    ```python
    class Small(nn.Module):
        @nn.compact
        def __call__(self, images):
            x = nn.relu(nn.Conv(16, (3, 3), strides=2)(images))
            return nn.Dense(10)(x.reshape(len(x), -1))

    network = wrap(Small(), image_shape=(28, 28, 1))
    params = network.init(jax.random.key(0))
    logits, features, statistics = network.forward(params, images)
    ```

    Args:
      module: a Linen module; or a callable that makes an NNX module of `nnx.Rngs`, such as
        `lambda rngs: Small(10, rngs=rngs)`; or an NNX module. The last has its weights already:
        `init` gives those for every key, so that all students begin alike. It is called with
        normalized images f[B, H, W, C] alone: other arguments need defaults.
      image_shape: (H, W, C), in pixels and channels.
      features: the layer whose output is `Outputs.features`, flattened to f[B, F]: its path in the
        parameters, such as "Block_1/Dense_0" (Linen) or "encoder/layers/0" (NNX). Default: the
        input of the dense layer (`nn.Dense`, `nnx.Linear`) that is called last, which has to be the
        classifier.
      compute: with `bfloat16` the module gets images and parameters in it; a layer's own `dtype`
        goes before. Parameters, batch norm's statistics, logits and features stay float32. Types
        are promoted in JAX's standard way within the module, as Flax's layers expect.

    Returns:
      Pure functions: `init(key)` gives the parameters as nested dicts of arrays; `forward` is
      differentiable as often as the module is. Batch norm normalizes by the mean and the biased
      variance of the batch, over all axes but its own; a module's `use_running_average` and
      momentum have no say. `Outputs.statistics` are these (mean, variance) of this batch, a pair
      for each call of a batch norm layer, in order; given ones (`statistics=`) are used in their
      place, and this batch's are returned all the same.

    Raises:
      InputError: the module is none of these, does not take such images, does not give logits
        f[B, K], or has no such features; its dropout is on (give it `deterministic=True`), or it
        draws or keeps state otherwise; or layers that must be read are called inside `remat` or
        `scan`.
    """
    check_known("compute", compute, PRECISIONS)
    layer = None if features is None else features.replace(".", "/")
    if isinstance(module, nn.Module):
        name = f"the network {type(module).__name__}"
        network = _linen(module, tuple(image_shape), layer, compute, name)
    elif isinstance(module, nnx.Module) or makes_modules(module):
        name = f"the network {getattr(module, '__name__', type(module).__name__)}"
        network = _attempt(lambda: _nnx(module, layer, compute, name), image_shape, name)
    else:
        raise InputError(
            f"a network is a Flax module, or a callable that makes an NNX module of its rngs, not "
            f"{shown(module)}"
        )
    checked_classes(network, image_shape, name)
    return network


def _linen(
    module: nn.Module, image_shape: tuple[int, ...], layer: str | None, compute: str, name: str
) -> Network:
    def watched(watch: Pass) -> Any:
        def intercept(call: Callable, args: Any, named: Any, context: Any) -> Any:
            if context.method_name != "__call__":
                return call(*args, **named)
            return watch.call(context.module, context.module.path, call, args, named)

        return nn.intercept_methods(intercept)

    @jax.jit  # one program: op by op, each is compiled for its shapes
    def init(key: Array) -> PyTree:
        watch = Pass(name, layer)
        images = jnp.zeros((1, *image_shape), jnp.float32)
        with watched(watch), jax.numpy_dtype_promotion("standard"):
            made = meta.unbox(module.init(key, images))
        for collection, tree in made.items():
            paths = set(traverse_util.flatten_dict(tree))
            if collection == "batch_stats":
                paths = {path for path in paths if path[:-1] not in watch.norms}
            if collection != "params" and paths:
                _refuse_state(name, f"{collection}/{'/'.join(sorted(paths)[0])}")
        return made.get("params", {})

    def forward(params: PyTree, images: Array, *, statistics: PyTree = None) -> Outputs:
        watch = Pass(name, layer, statistics)
        variables = {"params": _cast(params, compute)}
        with watched(watch), jax.numpy_dtype_promotion("standard"):
            logits, _ = module.apply(variables, _cast(images, compute), mutable=["batch_stats"])
        return watch.outputs(logits, images.shape[0])

    return Network(init, forward)


def _nnx(module: Any, layer: str | None, compute: str, name: str) -> Network:
    def make(key: Array) -> nnx.Module:
        made = module(nnx.Rngs(key))
        if not isinstance(made, nnx.Module):
            raise InputError(f"{name} makes {shown(made)} of its rngs, not an NNX module")
        return made

    given = isinstance(module, nnx.Module)
    model = module if given else nnx.eval_shape(lambda: make(jax.random.key(0)))
    structure, parameters, rest = nnx.split(model, nnx.Param, ...)
    parameters, rest = (dict(nnx.to_flat_state(state)) for state in (parameters, rest))
    norms = {path for path, found in nnx.iter_modules(model) if isinstance(found, nnx.BatchNorm)}
    for path, variable in rest.items():
        norm = isinstance(variable, nnx.BatchStat) and path[:-1] in norms
        if not norm and not isinstance(variable, nnx.RngState):
            _refuse_state(name, "/".join(map(str, path)))
    paths = {tuple(map(str, path)): path for path in parameters}

    def as_dict(found: dict[Path, Any]) -> PyTree:
        arrays = {name: found[path].get_value() for name, path in paths.items()}
        return traverse_util.unflatten_dict(arrays)

    @jax.jit  # one program: op by op, each is compiled for its shapes
    def draw(key: Array) -> PyTree:
        with jax.numpy_dtype_promotion("standard"):
            return as_dict(dict(nnx.to_flat_state(nnx.state(make(key), nnx.Param))))

    weights = as_dict(parameters) if given else None

    def init(key: Array) -> PyTree:
        return draw(key) if weights is None else weights

    def forward(params: PyTree, images: Array, *, statistics: PyTree = None) -> Outputs:
        flat = traverse_util.flatten_dict(_cast(params, compute))
        values = {paths[name]: value for name, value in flat.items()}
        values |= {path: _unused(variable) for path, variable in rest.items()}
        model: Any = nnx.merge(structure, nnx.State(traverse_util.unflatten_dict(values)))
        watch = Pass(name, layer, statistics)
        for path, found in list(nnx.iter_modules(model)):
            if callable(found):
                watch.paths[id(found)] = path
                object.__setattr__(found, "__class__", _watched(type(found)))
        token = _PASS.set(watch)
        try:
            with jax.numpy_dtype_promotion("standard"):
                logits = model(_cast(images, compute))
        finally:
            _PASS.reset(token)
        for path, count in nnx.to_flat_state(nnx.state(model, nnx.RngCount)):
            if count.get_value() is not values[path]:
                raise InputError(
                    f"{name} draws random numbers in its call, for which a pure forward pass has "
                    f"no key; it must not (see {'/'.join(map(str, path[:-1]))})"
                )
        return watch.outputs(logits, images.shape[0])

    return Network(init, forward)


_PASS: ContextVar[Pass] = ContextVar("pass")


@lru_cache(maxsize=256)
def _watched(kind: type) -> type:
    """`kind` with calls that the current pass sees; of one model's layers, not of all."""

    def call(self: Any, *args: Any, **named: Any) -> Any:
        watch, usual = _PASS.get(), super(own, self).__call__  # type: ignore[misc]
        return watch.call(self, watch.paths.get(id(self), ()), usual, args, named)

    own = type(kind)(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})
    return own


def _unused(variable: Any) -> Array:
    """Something in place of a running average or a random key that nothing reads."""
    abstract = variable.get_value()
    if jnp.issubdtype(abstract.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0), abstract.shape)
    return jnp.zeros(abstract.shape, abstract.dtype)


def _cast(tree: PyTree, compute: str) -> PyTree:
    if compute != "bfloat16":
        return tree

    def cast(x: Array) -> Array:
        return x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(cast, tree)


def makes_modules(value: Any) -> bool:
    """Whether it may be a callable that makes NNX modules."""
    return callable(value) and not (isinstance(value, type) and issubclass(value, nn.Module))


def _refuse_state(name: str, place: str) -> None:
    raise InputError(
        f"{name} keeps state besides its parameters, {place}; a pure forward pass has only those, "
        f"and what batch norm finds in the batch"
    )


def checked_classes(network: Network, image_shape: tuple[int, int, int], name: str) -> int:
    """K, after a look, without computing, at whether the network takes images and gives Outputs."""

    def look() -> Any:
        params = jax.eval_shape(network.init, jax.random.key(0))
        images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
        return jax.eval_shape(network.forward, params, images)

    outputs = _attempt(look, image_shape, name)
    good = isinstance(outputs, Outputs) and all(
        getattr(x, "ndim", None) == 2 and x.shape[0] == 2 for x in outputs[:2]
    )
    if not good:
        raise InputError(
            f"{name} gives {shown(outputs)}, not Outputs of logits f[B, K] and features f[B, F]"
        )
    return outputs.logits.shape[1]


def _attempt(function: Callable[[], Any], image_shape: tuple[int, ...], name: str) -> Any:
    """What `function` gives; what a user's code raises in it as one sentence."""
    try:
        return function()
    except InputError:
        raise
    except Exception as error:
        shape = "x".join(map(str, image_shape))
        raise InputError(
            f"{name} cannot be called with images of shape {shape} alone: {quoted(error)}"
        ) from error


def quoted(error: Exception) -> str:
    """What a user's code raised, on one line of a length that can be read."""
    text = " ".join(str(error).split())
    text = text if len(text) <= _LONGEST else text[:_LONGEST] + " ..."
    return f"{type(error).__name__}: {text}"

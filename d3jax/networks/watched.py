"""One forward pass of a user's Flax module: features, batch norm's statistics, and dropout."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.core.tracers import current_trace
from jax import Array

from d3jax.networks.layers import Linear
from d3jax.networks.norms import Statistics
from d3jax.types import InputError, Outputs, PyTree

Path = tuple[Any, ...]  # of a layer or a parameter within its module


class Pass:
    """One forward pass of a module: what is to be read of its layers, and changed in them."""

    def __init__(self, name: str, layer: str | None, statistics: PyTree = None):
        self._name, self._layer = name, layer
        self._frozen = list(statistics) if statistics else None
        self._statistics: list[Statistics] = []
        self._features: Any = None
        self._dense: tuple[int, ...] | None = None  # the shape of the last dense layer's output
        self._seen: dict[str, None] = {}
        self._trace = current_trace()  # what is computed in another one cannot be taken out of it
        self._read = True  # whether the features were computed in this one
        self.norms: set[Path] = set()  # where batch norm was called
        self.paths: dict[int, Path] = {}  # of layers, by their ids (NNX)

    def call(
        self, layer: Any, path: Path, call: Callable[..., Any], args: tuple[Any, ...], named: Any
    ) -> Any:
        """What `layer` gives, whose own call is `call`."""
        if isinstance(layer, nn.Dropout | nnx.Dropout):
            self._check_dropout(layer, args, named)
        if isinstance(layer, nn.BatchNorm | nnx.BatchNorm):
            self.norms.add(path)
            result = self._batch_norm(layer, call, _first(args, named, "x"), named.get("mask"))
        else:
            result = call(*args, **named)
        place = "/".join(map(str, path))
        self._seen[place] = None
        if place == self._layer:
            self._features, self._read = result, self._here()
        elif self._layer is None and isinstance(layer, nn.Dense | nnx.Linear | Linear):
            self._features, self._read = _first(args, named, "inputs"), self._here()
            self._dense = result.shape
        return result

    def _here(self) -> bool:
        return current_trace() == self._trace

    def _refuse_inner(self, what: str) -> None:
        raise InputError(
            f"{self._name} calls {what} inside a transformation such as remat or scan, where it "
            f"cannot be read; call it outside"
        )

    def _check_dropout(self, layer: Any, args: tuple[Any, ...], named: Any) -> None:
        said = named.get("deterministic", args[1] if len(args) > 1 else None)
        if layer.rate and not (layer.deterministic if said is None else said):
            raise InputError(
                f"{self._name} has dropout that is on, for which a pure forward pass has no key; "
                f"give it deterministic=True or a rate of 0"
            )

    def _batch_norm(self, layer: Any, call: Callable[..., Any], x: Array, mask: Any) -> Array:
        """Flax's own normalization, by what d3jax says are the statistics."""
        if not self._here():
            self._refuse_inner("batch norm")
        if mask is not None:
            raise InputError(f"{self._name} gives batch norm a mask; d3jax's has none")
        own = {axis % x.ndim for axis in np.atleast_1d(layer.axis).tolist()}
        axes = tuple(axis for axis in range(x.ndim) if axis not in own)
        wide = x if x.dtype == jnp.float64 else x.astype(jnp.float32)
        mean = wide.mean(axes)
        variance = jnp.square(wide - jnp.expand_dims(mean, axes)).mean(axes)
        number = len(self._statistics)
        self._statistics.append((mean, variance))
        if self._frozen is not None:
            self._check_frozen(number < len(self._frozen))
            mean, variance = self._frozen[number]
        if isinstance(layer, nnx.BatchNorm):
            layer.mean.set_value(mean)  # whole, in its own precision
            layer.var.set_value(variance)
            result = call(x, use_running_average=True)
        else:
            layer.put_variable("batch_stats", "mean", mean)
            layer.put_variable("batch_stats", "var", variance)
            said = layer.use_running_average  # Flax refuses it twice: here and in the call
            object.__setattr__(layer, "use_running_average", None)
            try:
                result = call(x, use_running_average=True)
            finally:
                object.__setattr__(layer, "use_running_average", said)
        return result if layer.dtype is not None else result.astype(x.dtype)

    def _check_frozen(self, fit: bool) -> None:
        if not fit:
            raise InputError(
                f"{self._name} calls batch norm another number of times than the "
                f"{len(self._frozen or ())} for which there are statistics"
            )

    def outputs(self, logits: Any, images: int) -> Outputs:
        """What the pass was for, of so many images."""
        if not _is_rows(logits, images):
            raise InputError(
                f"{self._name} gives {shown(logits)} for {images} images, not logits f[B, K]"
            )
        self._check_frozen(self._frozen is None or len(self._frozen) == len(self._statistics))
        if self._layer is not None:
            if not isinstance(self._features, Array) or self._features.shape[:1] != (images,):
                raise InputError(
                    f"{self._name} has no layer {self._layer!r} that gives features of each image; "
                    f"it calls {self._calls()}"
                )
        elif self._dense is None:
            raise InputError(
                f"{self._name} calls no dense layer whose input could be its features; name a "
                f"layer whose output they are, of {self._calls()}, as features="
            )
        elif self._dense != logits.shape or not _is_rows(self._features, images):
            raise InputError(
                f"the dense layer that {self._name} calls last is no classifier of vectors: it "
                f"gives {list(self._dense)}; name a layer whose output are the features, of "
                f"{self._calls()}, as features="
            )
        if not self._read:
            self._refuse_inner("the layer that gives its features")
        features = self._features.reshape(images, -1)
        logits, features = (
            x if x.dtype == jnp.float64 else x.astype(jnp.float32) for x in (logits, features)
        )
        return Outputs(logits, features, tuple(self._statistics))

    def _calls(self) -> str:
        names = [name for name in self._seen if name]
        return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") or "no layers"


def _is_rows(value: Any, rows: int) -> bool:
    return (
        isinstance(value, Array)
        and value.ndim == 2
        and value.shape[0] == rows
        and jnp.issubdtype(value.dtype, jnp.floating)
    )


def _first(args: tuple[Any, ...], named: dict[str, Any], name: str) -> Array:
    return args[0] if args else named[name]


def shown(value: Any) -> str:
    """What `value` is, for the sentence that refuses it."""
    if isinstance(value, Array | jax.ShapeDtypeStruct):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return "None" if value is None else f"a {type(value).__name__}"

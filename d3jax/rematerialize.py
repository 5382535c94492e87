"""What a rematerialized step keeps: the products, which are dear to compute and small to store.

An inner step that keeps nothing computes its convolutions a second time on the way back, a fifth of
all its arithmetic. Their results are a small part of its arrays: patches, and what normalization,
activation and pooling write down, are several times as large, and cheap to make again.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

_PRODUCT = "product"


def keep(x: Array) -> Array:
    """`x` as it is, and kept by a step that is rematerialized with `products`."""
    return checkpoint_name(x, _PRODUCT)


@jax.custom_jvp
def keep_cotangent(x: Array) -> Array:
    """`x` as it is; its cotangent, where a step computes one, is kept as by `keep`."""
    return x


@keep_cotangent.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # A name does not reach a cotangent. This reduces nothing and is its own transpose: a mark.
    (tangent,) = tangents
    kind = jnp.finfo(tangent.dtype)
    marked = lax.reduce_precision(tangent, kind.nexp, kind.nmant)
    return keep_cotangent(primals[0]), marked


def products(primitive: Any, *avals: Any, **parameters: Any) -> bool:
    """The policy for `jax.checkpoint`."""
    del avals
    marked = primitive is lax.reduce_precision_p
    return marked or (primitive.name == "name" and parameters["name"] == _PRODUCT)

"""What a rematerialized step keeps: the products, which are dear to compute and small to store.

An inner step that keeps nothing computes its convolutions a second time on the way back, a fifth of
all its arithmetic. Their results are a small part of its arrays: patches, and what normalization,
activation and pooling write down, are several times as large, and cheap to make again. Results of
the step's own way back are not kept: on a CPU that is no faster, for a third more memory.
"""

import jax
from jax import Array
from jax.ad_checkpoint import checkpoint_name

_PRODUCT = "product"

products = jax.checkpoint_policies.save_only_these_names(_PRODUCT)  # the policy for jax.checkpoint


def keep(x: Array) -> Array:
    """`x` as it is, and kept by a step that is rematerialized with `products`."""
    return checkpoint_name(x, _PRODUCT)

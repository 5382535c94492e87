"""Decoder and latents that start from real images: fitted to them by squared error."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import Array

from d3jax.types import PyTree

DECODER_RATE = 3e-3
LATENT_RATE = 3e-2
BATCH = 64


def fit(
    decode: Callable[[PyTree, Array, Array], Array],
    params: PyTree,
    latents: Array,
    images: Array,
    key: Array,
    *,
    steps: int,
    batch_size: int = BATCH,
) -> tuple[PyTree, Array]:
    """Decoder parameters and latents whose decodes are near the images, one for each latent.

    Args:
      decode: (params, latents f[B, z], which i32[B] of the latents they are) -> f[B, H, W, C].
      params: the decoder's, to start from.
      latents: f[N, z], to start from.
      images: f[N, H, W, C].
      key: of the minibatches.
      steps: of Adam, at rates that fall to zero by half a cosine, from 3e-3 of the decoder and
        3e-2 of the latents.
      batch_size: latents of a step, at most; each pass through all is in another order, and leaves
        out what does not fill a batch.

    Pure, compiled as one loop of `steps`, and for `jit`, `vmap` and `shard_map` like any function.
    """
    number = latents.shape[0]
    size = min(batch_size, number)
    batches = number // size

    def loss(moved: dict[str, PyTree], which: Array) -> Array:
        decoded = decode(moved["decoder"], moved["latents"][which], which)
        return jnp.square(decoded - images[which]).mean()

    optimizer = optax.multi_transform(
        {
            "decoder": optax.adam(optax.cosine_decay_schedule(DECODER_RATE, steps)),
            "latents": optax.adam(optax.cosine_decay_schedule(LATENT_RATE, steps)),
        },
        {"decoder": "decoder", "latents": "latents"},
    )

    def step(turn: Array, carry: tuple[dict[str, PyTree], PyTree]) -> tuple:
        moved, state = carry
        order = jax.random.permutation(jax.random.fold_in(key, turn // batches), number)
        which = jax.lax.dynamic_slice_in_dim(order, turn % batches * size, size)
        gradient = jax.grad(loss)(moved, which)
        with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it: decay**count
            change, state = optimizer.update(gradient, state, moved)
        return optax.apply_updates(moved, change), state

    start = {"decoder": params, "latents": latents}
    moved, _ = jax.lax.fori_loop(0, steps, step, (start, optimizer.init(start)))
    return moved["decoder"], moved["latents"]

"""A pool of networks in short training on distilled data, so that data meets many stages of it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from d3jax import losses
from d3jax.networks import initial_parameters, unraveler
from d3jax.networks.blocks import batch_loss
from d3jax.types import Batch, Network, PyTree


class Pool(NamedTuple):
    """P networks, each with its optimizer and its steps since it was fresh."""

    weights: Array  # f[P, W]
    optimizer: PyTree  # leaves [P, ...]
    steps: Array  # i32[P]
    chosen: Array  # i32[], the network that is used next

    @property
    def current(self) -> Array:
        """The weights f[W] of the chosen network."""
        return self.weights[self.chosen]


def create(
    network: Network, optimizer: optax.GradientTransformation, key: Array, size: int, steps: int
) -> Pool:
    """`size` untrained networks, whose counters are spread over `steps`, so that they are not all
    renewed at once; one of them is chosen at random."""
    for_weights, for_choice = jax.random.split(key)
    draws = jax.random.split(for_weights, size)
    weights = jax.vmap(lambda k: initial_parameters(network, k))(draws)
    taken = jnp.arange(size, dtype=jnp.int32) * (steps // size)
    chosen = jax.random.randint(for_choice, (), 0, size, jnp.int32)
    return Pool(weights, jax.vmap(optimizer.init)(weights), taken, chosen)


def advance(
    network: Network,
    optimizer: optax.GradientTransformation,
    pool: Pool,
    key: Array,
    batch: Batch,
    steps: int,
) -> Pool:
    """The pool after the chosen network was used: trained a step on `batch`, or renewed.

    Args:
      network: of all networks in the pool.
      optimizer: theirs.
      pool: see `Pool`.
      key: of a fresh network, and of the next choice, which is uniform.
      batch: distilled images and targets; the loss is the squared error of its logits.
      steps: a network with more steps than these is replaced by a fresh one; of 0 always.

    FRePo (arXiv 2206.00719), the authors' code: with `steps` 100 a network is renewed after 101.
    """
    for_weights, for_choice = jax.random.split(key)
    number, size = pool.chosen, pool.steps.shape[0]
    unravel = unraveler(network)
    weights, taken = pool.weights[number], pool.steps[number]
    own = jax.tree.map(lambda x: x[number], pool.optimizer)

    def renewed() -> tuple[Array, PyTree, Array]:
        fresh = initial_parameters(network, for_weights).astype(weights.dtype)
        # Of the types, and over the mesh axes, of the state that there is.
        state = jax.tree.map(lambda new, old: jnp.zeros_like(old) + new, optimizer.init(fresh), own)
        return fresh, state, jnp.zeros_like(taken)

    def trained() -> tuple[Array, PyTree, Array]:
        def loss(weights: Array) -> Array:
            params = unravel(weights)
            images, targets = batch
            return batch_loss(network, params, images, losses.squared_error, targets)[0]

        with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it: decay**count
            change, state = optimizer.update(jax.grad(loss)(weights), own, weights)
        return weights + jnp.asarray(change), state, taken + 1

    after = jax.lax.cond(taken > steps, renewed, trained) if steps else renewed()
    kept = (pool.weights, pool.optimizer, pool.steps)
    weights, own, taken = jax.tree.map(lambda x, new: x.at[number].set(new), kept, after)
    return Pool(weights, own, taken, jax.random.randint(for_choice, (), 0, size, jnp.int32))

"""One epoch of several experts, as one compiled function."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from d3jax import losses
from d3jax.data.augment import STRATEGIES, Transformation, augment, draw_choice
from d3jax.experts.options import Descent
from d3jax.networks import unraveler
from d3jax.networks.blocks import MANY_IMAGES, batch_loss
from d3jax.types import Network, PyTree, Real


def epoch_function(
    network: Network,
    strategy: tuple[Transformation, ...] | None,
    batch_size: int,
    learning_rate: float,
    descent: Descent | None = None,
) -> Callable[..., tuple[Array, Array]]:
    """One epoch of several experts, to be compiled.

    Args:
      network: what they are.
      strategy: augmentation, one of these per step; None: all.
      batch_size: images per step, at most all that there are.
      learning_rate: of SGD.
      descent: momentum, weight decay, schedule; default plain SGD.

    Returns:
      (state, keys [E], real, number=None) -> (state, mean loss f[E]). The state is the parameters
      f[E, P], followed in each row with momentum by its velocity: f[E, 2 P]. The epoch's `number`
      i32[], from 1, is that of the schedule. Each expert visits the images in a permutation of its
      own; an incomplete last batch is left out. A subtask has at least one batch of images
      (`real.number`). Experts of one call share the kind of augmentation of a step (drawn from the
      first key), not its parameters: so the branch stays a branch under vmap.
    """
    unravel = unraveler(network)
    strategy = STRATEGIES if strategy is None else strategy
    descent = Descent() if descent is None else descent

    def augmented(key: Array, batch: Array, choice: Array) -> Array:
        if not descent.all_augmentations:
            return augment(key, batch, strategy, choice=choice) if strategy else batch
        for number, kind in enumerate(strategy):
            batch = augment(jax.random.fold_in(key, number), batch, (kind,))
        return batch

    def moved(state: Array, gradient: Array, number: Array | None) -> Array:
        """The state after a step."""
        width, dtype = gradient.shape[1], state.dtype
        params = state[:, :width]
        if descent.weight_decay:
            gradient = gradient + jnp.asarray(descent.weight_decay, dtype) * params
        rate = jnp.asarray(learning_rate, dtype)
        if descent.factor is not None:
            assert number is not None
            rate = rate * descent.factor((number - 1).astype(dtype))
        if not descent.momentum:
            return params - rate * gradient
        velocity = jnp.asarray(descent.momentum, dtype) * state[:, width:] + gradient
        return jnp.concatenate([params - rate * velocity, velocity], axis=1)

    def epoch(
        state: Array, keys: Array, real: Real, number: Array | None = None
    ) -> tuple[Array, Array]:
        images = real.images.shape[0]
        size = min(batch_size, images)
        steps = images // size

        def order(key: Array) -> Array:
            key = jax.random.fold_in(key, 0)
            drawn = (
                jax.random.permutation(key, images)
                if real.number is None
                else _shuffled(key, images, real.number)
            )
            return drawn[: steps * size]

        indices = jax.vmap(order)(keys).reshape(-1, steps, size).swapaxes(0, 1)

        def loss(params: Array, key: Array, choice: Array, index: Array) -> Array:
            batch = augmented(key, real.gather(index), choice)
            targets = jax.nn.one_hot(
                real.labels[index], real.class_counts.shape[0], dtype=batch.dtype
            )
            return batch_loss(network, unravel(params), batch, losses.cross_entropy, targets)[0]

        def gradients(params: Array, keys: Array, choice: Array, index: Array) -> PyTree:
            """(losses f[E], gradients f[E, P])"""
            both = jax.value_and_grad(loss)
            if jax.default_backend() == "gpu" and size >= MANY_IMAGES:
                return jax.lax.map(lambda x: both(x[0], x[1], choice, x[2]), (params, keys, index))
            return jax.vmap(both, in_axes=(0, 0, None, 0))(params, keys, choice, index)

        def step(state: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
            place, index = inputs
            step_keys = jax.vmap(lambda key: jax.random.fold_in(key, place + 1))(keys)
            choice = draw_choice(step_keys[0], strategy)
            params = state[:, : state.shape[1] // 2] if descent.momentum else state
            value, gradient = gradients(params, step_keys, choice, index)
            return moved(state, gradient, number), value

        places = jnp.arange(steps, dtype=jnp.int32)
        if real.number is None:
            state, values = jax.lax.scan(step, state, (places, indices))
            return state, values.mean(0)
        complete = real.number // size

        def step_or_none(state: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
            """Past the complete batches there is only padding."""
            still = (state, jnp.zeros(state.shape[:1], state.dtype))
            return jax.lax.cond(inputs[0] < complete, step, lambda *_: still, state, inputs)

        state, values = jax.lax.scan(step_or_none, state, (places, indices))
        return state, values.sum(0) / complete.astype(values.dtype)

    return epoch


def _shuffled(key: Array, size: int, count: Array) -> Array:
    """The positions below `count`, i32[], in random order, and the rest up to `size` after them.

    The order depends on key and count alone.
    """
    positions = jnp.arange(size, dtype=jnp.int32)
    drawn = jax.vmap(lambda position: jax.random.bits(jax.random.fold_in(key, position)))(positions)
    return jnp.lexsort((drawn, positions >= count)).astype(jnp.int32)

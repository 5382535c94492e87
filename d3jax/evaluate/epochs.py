"""Epochs of several students at once, as one program: a pure function."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from d3jax.data.augment import STRATEGIES, augment, draw_choice
from d3jax.evaluate import lessons
from d3jax.evaluate.lessons import Lesson
from d3jax.evaluate.protocol import Protocol
from d3jax.networks import unraveler
from d3jax.networks.blocks import MANY_IMAGES, batch_loss
from d3jax.synthetic import labels
from d3jax.types import Network, PyTree, Synthetic


def begun(protocol: Protocol, params: Array) -> PyTree:
    """The carry of `epochs_function` before the first epoch: params f[S, P], and zeros."""
    return params, protocol.descent().init(params)


def epochs_function(
    network: Network, synthetic: Synthetic, protocol: Protocol, teacher: Network | None = None
) -> Callable[..., PyTree]:
    """Some epochs of several students, to be compiled.

    teacher: the network of theta's `lessons.TEACHER`, where that is to label views.

    Returns:
      (carry, theta, keys, learning rates f[S], begin i32[], end i32[]) -> carry: the epochs
      begin .. end - 1, counted from 0. The carry is (params f[S, P], the optimizer's state), at
      first `begun`. Keys are one for each student, [S]; of a protocol with views one for all.
    """
    unravel = unraveler(network)
    epochs_in_all, steps, batch_size, visits = lessons.sizes(synthetic, protocol)
    strategy = STRATEGIES if protocol.augmentation is None else protocol.augmentation
    student_loss = labels.student_loss(synthetic.label_kind)
    descent = protocol.descent()
    shared = protocol.views != "none"
    lesson_of = lessons.lessons(synthetic, protocol, teacher) if shared else None
    on_gpu = jax.default_backend() == "gpu" and batch_size >= MANY_IMAGES

    def error(params: Array, lesson: Lesson, warmth: float) -> Array:
        """A student's loss, at a temperature."""

        def loss(logits: Array, batch: tuple[Array, Array]) -> Array:
            if warmth == 1:
                return student_loss(logits, batch)
            softer = logits / jnp.asarray(warmth, logits.dtype)
            return jnp.asarray(protocol.scale, logits.dtype) * student_loss(softer, batch)

        # Rows past the epoch's end weigh nothing; the mean is over the others.
        weight = lesson.weights
        scale = jnp.asarray(batch_size, weight.dtype) / jnp.sum(weight)
        batch = (lesson.targets, weight * scale)
        return batch_loss(network, unravel(params), lesson.images, loss, batch)[0]

    def loss_alone(
        params: Array, theta: PyTree, keys: Array, choice: Array, visit: Array, weight: Array
    ) -> Array:
        """The loss of a student that draws for itself."""
        for_sample, for_augmentation = keys
        images, targets = lessons.decoded(synthetic, theta, for_sample, visit, protocol.with_means)
        targets = lessons.own_targets(synthetic, theta, targets, protocol.temperature)
        if strategy:
            images = augment(for_augmentation, images, strategy, choice=choice)
        return error(params, Lesson(images, targets, weight), temperature(theta))

    def temperature(theta: PyTree) -> float:
        return protocol.temperature if lessons.are_an_experts(synthetic, theta) else 1.0

    def gradients(
        params: Array, theta: PyTree, keys: Array, choice: Array, visit: Array, weight: Array
    ) -> Array:
        """Gradients of all students, f[S, P]; keys [S, 2]."""
        if on_gpu:
            each = (params, keys, visit)
            return jax.lax.map(
                lambda x: jax.grad(loss_alone)(x[0], theta, x[1], choice, x[2], weight), each
            )
        axes = (0, None, 0, None, 0, None)
        return jax.vmap(jax.grad(loss_alone), axes)(params, theta, keys, choice, visit, weight)

    def moved(carry: PyTree, gradient: Array, rate: Array) -> PyTree:
        params, state = carry
        with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it: decay**count
            updates, state = descent.update(gradient, state, params)
        return params - rate[:, None] * jnp.asarray(updates), state

    def epoch_alone(carry: PyTree, theta: PyTree, keys: Array, rate: Array) -> PyTree:
        # One key is split or folded, never both: JAX derives the same keys either way.
        for_order, for_steps = jax.vmap(jax.random.split, out_axes=1)(keys)
        order = jax.vmap(lambda k: jax.random.permutation(k, visits))(for_order)
        slots = jnp.arange(steps * batch_size, dtype=jnp.int32)
        weights = (slots < visits).astype(rate.dtype).reshape(steps, batch_size)
        order = order[:, slots % visits].reshape(-1, steps, batch_size).swapaxes(0, 1)

        def step(carry: PyTree, inputs: PyTree) -> tuple[PyTree, None]:
            number, visit, weight = inputs
            step_keys = jax.vmap(lambda k: jax.random.fold_in(k, number))(for_steps)
            step_keys = jax.vmap(lambda k: jax.random.split(k, 3))(step_keys)
            choice = draw_choice(step_keys[0, 0], strategy)
            gradient = gradients(carry[0], theta, step_keys[:, 1:], choice, visit, weight)
            return moved(carry, gradient, rate), None

        return jax.lax.scan(step, carry, (jnp.arange(steps, dtype=jnp.int32), order, weights))[0]

    def epoch_together(
        carry: PyTree, theta: PyTree, key: Array, rate: Array, epoch: Array
    ) -> PyTree:
        assert lesson_of is not None
        see = lesson_of

        def step(carry: PyTree, batch: Array) -> tuple[PyTree, None]:
            lesson = see(theta, key, epoch, batch)
            slope = jax.grad(lambda params: error(params, lesson, temperature(theta)))
            gradient = jax.lax.map(slope, carry[0]) if on_gpu else jax.vmap(slope)(carry[0])
            return moved(carry, gradient, rate), None

        return jax.lax.scan(step, carry, jnp.arange(steps, dtype=jnp.int32))[0]

    def epochs(
        carry: PyTree, theta: PyTree, keys: Array, rate: Array, begin: Array, end: Array
    ) -> PyTree:
        def body(number: Array, carry: PyTree) -> PyTree:
            rates = rate * protocol.factor(number, epochs_in_all, rate.dtype)
            if shared:
                return epoch_together(carry, theta, keys, rates, number)
            epoch_keys = jax.vmap(lambda k: jax.random.fold_in(k, number))(keys)
            return epoch_alone(carry, theta, epoch_keys, rates)

        return jax.lax.fori_loop(begin, end, body, carry)

    return epochs

"""Train fresh students on distilled data alone, several at once, and test them once, at the end."""

import time
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from d3jax.data.augment import STRATEGIES, augment, draw_choice
from d3jax.evaluate import lessons, population
from d3jax.evaluate.lessons import Lesson, Teaching
from d3jax.evaluate.protocol import Protocol, check
from d3jax.host import compilation
from d3jax.host.progress import Reporter
from d3jax.networks import initial_parameters, unraveler
from d3jax.networks.blocks import MANY_IMAGES, batch_loss, forward_blocks, has_statistics
from d3jax.synthetic import labels
from d3jax.types import HeldOut, InputError, Network, PyTree, Synthetic

_WEIGHTS, _EPOCHS, _STATISTICS, _VIEWS = range(4)  # what a key is folded with, to draw these
_TOGETHER = 5  # networks whose layers are in memory at once, while they are tested


class Evaluation(NamedTuple):
    """What fresh students reached."""

    per_student: np.ndarray  # f[S], test accuracy after the last epoch, fractions
    learning_rate: float
    diverged: int  # students whose weights are not finite: they answer as by chance
    seconds: float  # wall time per student, compilation not counted

    def summary(self) -> dict[str, Any]:
        """Mean, sample standard deviation (0 for one student), each student's accuracy; how many
        diverged, if any."""
        values = [float(value) for value in self.per_student]
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        mean = float(np.mean(values))
        summary = {"mean": mean, "sd": sd, "students": len(values), "per_student": values}
        return summary | ({"diverged": self.diverged} if self.diverged else {})


def evaluate(
    network: Network,
    synthetic: Synthetic,
    theta: dict[str, PyTree],
    test: HeldOut,
    protocol: Protocol,
    learning_rate: float,
    key: Array,
    reporter: Reporter | None = None,
    teaching: Teaching | None = None,
) -> Evaluation:
    """The test accuracy of fresh students of `network` trained on `theta` alone.

    Args:
      network: the students' architecture.
      synthetic, theta: the distilled data; frozen, so that batches do not matter.
      test: the test images, normalized as the distilled data is; used once, after the last epoch.
      protocol: see `Protocol`.
      learning_rate: used where the protocol names none; positive.
      key: initial weights, samples, order and augmentation follow from it.
      reporter: shows progress.
      teaching: where the protocol has views, what draws them; default the key.

    Batch norm uses its population statistics in the test: those of the distilled items, with a
    student's final weights (`population.of_items`).

    Raises:
      InputError: a protocol that cannot be followed.
    """
    check(protocol)
    rate = learning_rate if protocol.learning_rate is None else protocol.learning_rate
    if not rate > 0:
        raise InputError(f"the students' learning rate must be positive, not {rate}")
    params, seconds = train_students(
        network, synthetic, theta, protocol, rate, key, reporter, teaching=teaching
    )
    statistics = population_statistics(network, params, synthetic, theta, protocol, key)
    each = seconds / protocol.students
    return tested(network, params, test, rate, each, reporter, statistics)


def evaluate_best(
    network: Network,
    synthetic: Synthetic,
    theta: dict[str, PyTree],
    choosing: HeldOut,
    test: HeldOut,
    protocol: Protocol,
    candidates: Sequence[float],
    key: Array,
    reporter: Reporter | None = None,
    teaching: Teaching | None = None,
) -> tuple[Evaluation, tuple[float, ...]]:
    """As `evaluate`, with the learning rate of `candidates` that is best on other images.

    Args:
      choosing: images that choose, so not those of the test.
      candidates: positive learning rates. Each is met by the same students: as many as the
        protocol's make for each candidate, one at least.

    The others as in `evaluate`. The protocol's students, trained at the best learning rate, meet
    the test images.

    Returns:
      What they reached, and the mean accuracy of each candidate on `choosing`.
    """
    check(protocol)
    each = max(1, protocol.students // len(candidates))
    rates = np.repeat(np.asarray(candidates, np.float32), each)
    # As many rows when candidates are compared as when one is judged: by one compiled program.
    rows = np.arange(max(protocol.students, len(rates)))

    def trained(rate: float | np.ndarray, students: np.ndarray) -> tuple[Array, float, PyTree]:
        params, seconds = train_students(
            network, synthetic, theta, protocol, rate, key, reporter, students=students,
            teaching=teaching,
        )  # fmt: skip
        statistics = population_statistics(network, params, synthetic, theta, protocol, key)
        return params, seconds / len(params), statistics

    last = len(rates) - 1
    params, _, statistics = trained(rates[np.minimum(rows, last)], np.minimum(rows, last) % each)
    every = np.asarray(accuracy(network, params, choosing, statistics))[: len(rates)]
    found = every.reshape(len(candidates), each).mean(1)
    rate = candidates[int(found.argmax())]
    params, seconds, statistics = trained(rate, rows % protocol.students)
    own = jax.tree.map(lambda x: x[: protocol.students], (params, statistics))
    reached = tested(network, own[0], test, rate, seconds, reporter, own[1])
    return reached, tuple(float(value) for value in found)


def population_statistics(
    network: Network,
    params: Array,
    synthetic: Synthetic,
    theta: dict[str, PyTree],
    protocol: Protocol,
    key: Array,
) -> PyTree:
    """Batch norm's statistics of students that were trained with this key."""
    own = jax.random.fold_in(key, _STATISTICS)
    size, means = protocol.batch_size, protocol.with_means
    return population.of_items(
        network, params, synthetic, theta, own, batch_size=size, with_means=means
    )


def tested(
    network: Network,
    params: Array,
    test: HeldOut,
    rate: float,
    seconds: float,
    reporter: Reporter | None,
    statistics: PyTree,
) -> Evaluation:
    """What trained students f[S, P] answer on the test images; says how many have diverged.

    statistics: as `accuracy` takes them.
    """
    diverged = int(np.sum(~np.isfinite(np.asarray(params)).all(1)))
    if diverged and reporter is not None:
        reporter.say(
            f"{diverged} of {len(params)} students diverged at learning rate {rate:.4g} and count "
            f"as they answer, by chance; a lower learning rate would be right"
        )
    right = accuracy(network, params, test, statistics)
    return Evaluation(np.asarray(right), rate, diverged, seconds)


def train_students(
    network: Network,
    synthetic: Synthetic,
    theta: dict[str, PyTree],
    protocol: Protocol,
    learning_rate: float | np.ndarray,
    key: Array,
    reporter: Reporter | None = None,
    starts: Array | None = None,
    students: np.ndarray | None = None,
    teaching: Teaching | None = None,
) -> tuple[Array, float]:
    """Parameter vectors f[S, P] of S students trained together, and the seconds that it took.

    learning_rate: of all, or f[S] of each. starts: parameters f[S, P] to begin with (they are
    consumed); default fresh ones. students: i[S], which of the protocol's students each is, since
    one may be trained at several rates; default all of them. teaching: what draws the views of a
    protocol that has some, and labels them; default the key, and nothing.

    Students of one call share each step's kind of augmentation, not its parameters (see
    `augment`); all else is drawn for each alone. Of a protocol with views they share all batches
    (`lessons`), and differ in their initial weights.

    Raises:
      InputError: labels of views that the protocol's students do not see.
    """
    lessons.check(synthetic, theta, protocol)
    which = np.arange(protocol.students) if students is None else students
    if protocol.views == "none":
        keys = jax.random.split(jax.random.fold_in(key, _EPOCHS), protocol.students)[which]
    else:
        keys = jax.random.fold_in(key, _VIEWS) if teaching is None else teaching.key
    teacher = teaching.teacher if teaching and lessons.TEACHER in theta else None
    train, fresh = _training(network, synthetic, protocol, teacher), _fresh(network)
    params = starts
    if params is None:
        for_weights = jax.random.fold_in(key, _WEIGHTS)
        params = fresh(jax.random.split(for_weights, protocol.students)[which])
    rate = jnp.broadcast_to(jnp.asarray(learning_rate, params.dtype), which.shape)
    carry = begun(protocol, params)
    epochs = lessons.sizes(synthetic, protocol)[0]
    ends = [epochs * part // 10 for part in range(1, 11)]
    begin = jnp.asarray(0, jnp.int32)
    carry = jax.block_until_ready(train(carry, theta, keys, rate, begin, begin))  # compiles
    start = time.monotonic()
    if reporter is None:
        carry = train(carry, theta, keys, rate, begin, jnp.asarray(epochs, jnp.int32))
    else:
        with reporter.stage("student epochs", epochs) as stage:
            for end in ends:
                stop = jnp.asarray(end, jnp.int32)
                carry = jax.block_until_ready(train(carry, theta, keys, rate, begin, stop))
                begin = stop
                stage.update(end)
    return jax.block_until_ready(carry[0]), time.monotonic() - start


def begun(protocol: Protocol, params: Array) -> PyTree:
    """The carry of `epochs_function` before the first epoch: params f[S, P], and zeros."""
    return params, protocol.descent().init(params)


@lru_cache(maxsize=8)  # compiled once for all that ask the same, such as two baselines
def _training(
    network: Network, synthetic: Synthetic, protocol: Protocol, teacher: Network | None = None
) -> Callable[..., PyTree]:
    return jax.jit(epochs_function(network, synthetic, protocol, teacher), donate_argnums=0)


@lru_cache(maxsize=8)
def _fresh(network: Network) -> Callable[[Array], Array]:
    return compilation.once(jax.vmap(partial(initial_parameters, network)))


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
        """Of a student that draws for itself."""
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
        """Of all students, f[S, P]; keys [S, 2]."""
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


def accuracy(
    network: Network,
    params: Array,
    real: HeldOut,
    statistics: PyTree = (),
    *,
    batch_size: int = 500,
) -> Array:
    """The fraction f[S] of `real`'s images that each of S networks classifies correctly.

    Args:
      network: their architecture.
      params: parameter vectors f[S, P].
      real: the images; all of them are used.
      statistics: what batch norm normalizes by, of each of S networks: those of `population`.
      batch_size: images per dispatch; it changes nothing of what is returned.

    Raises:
      InputError: a network with batch norm, and no statistics.
    """
    classify = answers(network, batch_size)
    groups = []
    for first in range(0, len(params), _TOGETHER):
        few = slice(first, first + _TOGETHER)
        own = jax.tree.map(lambda x, few=few: x[few], statistics)
        groups.append(classify(params[few], real, own) == real.labels)
    return jnp.mean(jnp.concatenate(groups).astype(jnp.float32), axis=1)


@lru_cache(maxsize=8)  # compiled once for all that ask the same network
def answers(network: Network, batch_size: int = 500) -> Callable[..., Array]:
    """(parameters f[S, P], real, statistics=()) -> the class i32[S, N] that each gives each image.

    Compiled. A network whose weights are not finite answers 0. `batch_size` images are looked at
    together. Statistics are as in `accuracy`, and so is the error where they are needed.
    """
    unravel = unraveler(network)

    def classify(params: Array, real: HeldOut, statistics: PyTree = ()) -> Array:
        if not statistics and has_statistics(network, real.images.shape[1:]):
            raise InputError(
                "a network with batch norm is tested with population statistics, never those of "
                "the test images; give the statistics of what it was trained on (see population)"
            )
        images = real.images.shape[0]
        batches = -(-images // batch_size)
        size = -(-images // batches)  # the last repeats as few images as can be
        index = jnp.minimum(jnp.arange(batches * size, dtype=jnp.int32), images - 1)

        def logits(params: Array, own: PyTree, batch: Array) -> Array:
            if own:  # an image's answer is its own: there is no batch to keep whole
                return network.forward(unravel(params), batch, statistics=own).logits
            return forward_blocks(network, unravel(params), batch).logits

        def one(index: Array) -> Array:
            found = jax.vmap(logits, (0, 0, None))(params, statistics, real.gather(index))
            return jnp.argmax(found, -1).astype(jnp.int32)

        found = jax.lax.map(one, index.reshape(batches, size))  # [batches, S, size]
        return found.swapaxes(0, 1).reshape(params.shape[0], -1)[:, :images]

    return jax.jit(classify)

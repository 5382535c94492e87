"""Train fresh students on distilled data alone, several at once, and test them once, at the end."""

import time
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from d3jax.evaluate import lessons, population
from d3jax.evaluate.classify import accuracy
from d3jax.evaluate.epochs import begun, epochs_function
from d3jax.evaluate.lessons import Teaching
from d3jax.evaluate.protocol import Protocol, check
from d3jax.host import compilation
from d3jax.host.progress import Reporter
from d3jax.networks import initial_parameters
from d3jax.types import HeldOut, InputError, Network, PyTree, Synthetic

_WEIGHTS, _EPOCHS, _STATISTICS, _VIEWS = range(4)  # what a key is folded with, to draw these


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
    compared = np.minimum(rows, last)
    params, seconds, statistics = trained(rates[compared], compared % each)
    every = np.asarray(accuracy(network, params, choosing, statistics))[: len(rates)]
    found = every.reshape(len(candidates), each).mean(1)
    rate = candidates[int(found.argmax())]
    if len(candidates) > 1:  # else these are the students that are to be tested
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


@lru_cache(maxsize=8)  # compiled once for all that ask the same, such as two baselines
def _training(
    network: Network, synthetic: Synthetic, protocol: Protocol, teacher: Network | None = None
) -> Callable[..., PyTree]:
    return jax.jit(epochs_function(network, synthetic, protocol, teacher), donate_argnums=0)


@lru_cache(maxsize=8)
def _fresh(network: Network) -> Callable[[Array], Array]:
    return compilation.once(jax.vmap(partial(initial_parameters, network)))

"""MTT: trajectory matching (Cazenavette et al., CVPR 2022), with TESLA's and DATM's forms.

TESLA: Cui et al., ICML 2023. DATM: Guo et al., ICLR 2024. D3 is this on Gaussians with a decoder,
and an MMD after it (`d3.py`).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp
import optax
from jax import Array

from d3jax.data import Dataset
from d3jax.data.augment import STRATEGIES, Transformation, default_strategy
from d3jax.distill import objectives
from d3jax.distill.compose import check_rates, compose
from d3jax.methods.registry import TINY, Reads, Setting, Spec, register
from d3jax.synthetic import labels, pixels
from d3jax.types import Method, Network, PyTree, Real, Synthetic, check_at_least_one


@dataclasses.dataclass(frozen=True)
class MTTOptions:
    """The outer step of trajectory matching."""

    inner_steps: int = 10
    """Student steps T per outer step (the paper: 30 to 80)."""
    expert_epochs: int = 2
    """Epochs M of the expert that the student's steps should match."""
    min_start_epoch: int = 0
    """Expert start epochs are drawn from this, inclusive."""
    max_start_epoch: int = 8
    """Expert start epochs are drawn up to this, exclusive."""
    first_max_start_epoch: int | None = None
    """max_start_epoch at first; it grows to its full value over growth_steps (DATM)."""
    growth_steps: int | None = None
    """Outer steps over which max_start_epoch grows; default half of all."""
    inner_batch_size: int | None = None
    """Synthetic items per inner step, drawn by permutations; default all of them."""
    inner_augmentation: tuple[Transformation, ...] | None = None
    """Differentiable augmentation inside the student's steps, one of these per step; default all,
    but no flip where the data set or its classes are named as digits or letters."""
    gradient: Literal["exact", "tesla"] = "exact"
    """Backpropagation through all inner steps, or TESLA's approximation at the memory of one."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Optimizer of the synthetic data; sgd has momentum 0.5, as in the paper."""
    data_learning_rate: float = 0.03
    """Its learning rate, in normalized units (the paper: 1000 or 1e5, of sgd)."""
    decoder_learning_rate: float = 3e-3
    """Adam's learning rate for a parametrization's decoder, if it has one."""
    label_learning_rate: float = 0.03
    """Adam's learning rate for soft labels."""
    student_learning_rate: float = 0.01
    """First value of the learned student learning rate."""
    learning_rate_learning_rate: float = 0.01
    """Learning rate of SGD (momentum 0.5) on the logarithm of the student's learning rate."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Schedule of all but the last learning rate (the paper: constant)."""


def mtt(
    network: Network,
    synthetic: Synthetic,
    options: MTTOptions,
    outer_steps: int,
    *,
    expert_labels: bool = False,
) -> Method:
    """Trajectory matching on any parametrization.

    Args:
      network: the experts' and students' architecture.
      synthetic: pixels in the paper.
      options: see `MTTOptions`.
      outer_steps: the length of the run, for the schedules.
      expert_labels: labels that `synthetic` stores but does not learn are what the first expert, at
        its end, says of the items as they start (TESLA, section 3.3).

    Raises:
      InputError: options that are out of range.

    Deviations from the paper's code: the logarithm of the learning rate is learned, so that it
    stays positive (their 1e-7 on a raw rate of 0.01 is 1e-3 on the logarithm); Adam by default.
    """
    check(options)
    strategy = options.inner_augmentation
    objective = objectives.trajectory_matching(
        network,
        synthetic.num_items,
        inner_steps=options.inner_steps,
        expert_epochs=options.expert_epochs,
        max_start_epoch=options.max_start_epoch,
        min_start_epoch=options.min_start_epoch,
        first_max_start_epoch=options.first_max_start_epoch,
        growth_steps=growth_steps(options, outer_steps),
        batch_size=options.inner_batch_size,
        strategy=STRATEGIES if strategy is None else strategy,
        gradient=options.gradient,
        updates=(*synthetic.groups, "learning_rates"),
    )

    init = begin(network, synthetic, options, expert_labels)
    return compose(synthetic, (objective,), optimizers(synthetic, options, outer_steps), init)


def begin(
    network: Network, synthetic: Synthetic, options: MTTOptions, expert_labels: bool
) -> Callable[[Array, Real], dict[str, PyTree]]:
    """(key, real) -> theta: what the run starts from; see `mtt`."""

    def init(key: Array, real: Real) -> dict[str, PyTree]:
        theta = synthetic.init(key, real)
        if expert_labels:
            theta = {**theta, "labels": labels.by_expert(network, synthetic, theta, real)}
        start = jnp.asarray(options.student_learning_rate, jnp.float32)
        return {**theta, "learning_rates": jnp.log(start)}

    return init


def growth_steps(options: MTTOptions, outer_steps: int) -> int:
    """Outer steps over which max_start_epoch grows."""
    return max(1, outer_steps // 2) if options.growth_steps is None else options.growth_steps


def optimizers(
    synthetic: Synthetic, options: MTTOptions, outer_steps: int
) -> dict[str, optax.GradientTransformation]:
    """One optimizer for each group that is learned."""

    def schedule(rate: float) -> optax.ScalarOrSchedule:
        cosine = options.schedule == "cosine"
        return optax.cosine_decay_schedule(rate, outer_steps) if cosine else rate

    data = schedule(options.data_learning_rate)
    known = {
        "data": optax.adam(data) if options.optimizer == "adam" else optax.sgd(data, momentum=0.5),
        "decoder": optax.adam(schedule(options.decoder_learning_rate)),
        "labels": optax.adam(schedule(options.label_learning_rate)),
        "learning_rates": optax.sgd(options.learning_rate_learning_rate, momentum=0.5),
    }
    return {group: known[group] for group in (*synthetic.groups, "learning_rates")}


def check(options: MTTOptions) -> None:
    """Raises InputError where an option is out of range."""
    check_at_least_one(options, "inner_steps", "expert_epochs", "inner_batch_size", "growth_steps")
    check_rates(options)


def resolved(options: MTTOptions, run: Any, dataset: Dataset, outer_steps: int) -> MTTOptions:
    """The options with every default that depends on the data, or on a turn's steps, filled in."""
    items = run.synthetic_items(dataset)
    batch, inner = options.inner_batch_size, options.inner_augmentation
    return dataclasses.replace(
        options,
        growth_steps=growth_steps(options, outer_steps),
        inner_batch_size=items if batch is None else min(batch, items),
        inner_augmentation=default_strategy(dataset.name, dataset.class_names)
        if inner is None
        else inner,
    )


def passes(options: MTTOptions, classes: int) -> int:
    """Images forward through the network in an outer step, of which a backward pass is worth two:
    an inner step's gradient is 3 of an image, the derivative of that 6 more."""
    del classes
    assert options.inner_batch_size is not None
    return 9 * options.inner_steps * options.inner_batch_size


READ_UNTIL = ("max_start_epoch", "expert_epochs")
"""The options that say what `last_epoch` is."""


def last_epoch(options: MTTOptions) -> int:
    """The last expert epoch that is read."""
    return options.max_start_epoch - 1 + options.expert_epochs


def _resolve(run: Any, dataset: Dataset) -> Any:
    return dataclasses.replace(run, mtt=resolved(run.mtt, run, dataset, run.outer_steps))


def _reads(run: Any, dataset: Dataset, turn: int) -> Reads:
    del dataset, turn
    return Reads(run.expert, last_epoch(run.mtt), READ_UNTIL)


def _build(options: MTTOptions, setting: Setting) -> Method:
    return mtt(
        setting.network,
        setting.synthetic,
        options,
        setting.outer_steps,
        expert_labels=setting.expert_labels,
    )


def _tiny(network: Network) -> Method:
    options = MTTOptions(inner_steps=2, max_start_epoch=2, inner_augmentation=("color", "flip"))
    return mtt(network, pixels.create(**TINY, num_items=6), options, 10)


SPEC = register(
    Spec(
        name="mtt",
        options=MTTOptions,
        build=_build,
        tiny=_tiny,
        paper="Matching Training Trajectories, CVPR 2022; TESLA, ICML 2023; DATM, ICLR 2024",
        figure="CIFAR-10, 1 / 10 images per class: 46.2 / 65.4 % (ConvNet)",
        resolve=_resolve,
        experts=_reads,
        divisible=True,
        passes=passes,
    )
)

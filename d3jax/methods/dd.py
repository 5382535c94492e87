"""Dataset Distillation by unrolled meta-gradients (arXiv 1811.10959), and its later forms.

Soft labels: Sucholutsky and Schonlau, arXiv 1910.02551. A random window: Feng et al., RaT-BPTT,
arXiv 2310.07506.
"""

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp
import optax
from jax import Array

from d3jax.distill import objectives
from d3jax.distill.compose import check_rates, compose
from d3jax.synthetic import labels
from d3jax.types import InputError, Method, Network, PyTree, Real, Synthetic


@dataclasses.dataclass(frozen=True)
class Options:
    """The outer step of Dataset Distillation."""

    init: Literal["fixed", "random"] = "random"
    """Distill for one known initialization, or for any that is drawn afresh. (--adapt-from and
    --attack take pretrained networks instead.)"""
    steps: int = 10
    """Distilled steps S, each with images of its own."""
    passes: int = 3
    """Times P that the steps are gone through."""
    networks: int = 4
    """Networks per outer step, side by side (one with a fixed initialization)."""
    real_batch: int | None = None
    """Real images of the outer loss for each network; default 1024 over the networks (the paper's
    1024 are the same for all of them)."""
    window: int | None = None
    """Differentiate only so many inner steps, at a random place; default all of them."""
    inner_optimizer: Literal["sgd", "adam"] = "sgd"
    """Optimizer of the inner steps."""
    shared_learning_rate: bool = False
    """One learned learning rate for all inner steps, not one for each."""
    inner_learning_rate: float = 0.05
    """First value of the learned inner learning rates (the paper: 0.02)."""
    data_learning_rate: float = 0.05
    """Adam's learning rate for the images, in normalized units (the paper: 0.01, of all), or for
    another parametrization's own data."""
    decoder_learning_rate: float = 3e-3
    """Adam's learning rate for a parametrization's decoder, if it has one."""
    label_learning_rate: float = 0.03
    """Adam's learning rate for soft labels."""
    learning_rate_learning_rate: float = 0.02
    """Adam's learning rate for the logarithms of the inner learning rates."""
    momentum: float = 0.5
    """Adam's beta 1, as in the paper; beta 2 is 0.999."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Schedule of the outer learning rates (the paper halves them every 40 epochs)."""
    clip: float | None = 0.03
    """Largest norm of the meta-gradient of each learned group (images, labels, a decoder), None for
    no limit (the paper). Each network's share is limited alone: that of a network at the edge of
    divergence is a thousand times longer than the others', and Adam's second moment would remember
    it for as many steps."""
    learning_rate_clip: float | None = None
    """The same for the inner learning rates; default no limit, since networks that diverge are what
    keeps them low (limited, they rise until too many do)."""


def dd(
    network: Network,
    synthetic: Synthetic,
    options: Options,
    outer_steps: int,
    *,
    initialization: objectives.Initialization | None = None,
    weights_key: Array | None = None,
    attack: tuple[int, int] | None = None,
    expert_labels: bool = False,
) -> Method:
    """Dataset Distillation: learn data on which S x P steps make a network good on real data.

    Args:
      network: the student; the paper's are LeNet and AlexCifarNet with Xavier-normal weights.
      synthetic: pixels in the paper, any parametrization here; labels that it stores are learned.
      options: see `Options`.
      outer_steps: the length of the run, for the cosine schedule.
      initialization: default `options.init`; `pretrained` starts from `real.trajectories`.
      weights_key: draws the fixed initialization.
      attack: (a, b): after the steps the network should take class a for class b.
      expert_labels: labels that `synthetic` stores but does not learn are what the first network of
        `real.trajectories`, at its end, says of the items as they start.

    Raises:
      InputError: options that exclude each other or are out of range.

    Deviations from the authors' code: learning rates are exp of what is learned (softplus there),
    the outer schedule is a cosine, meta-gradients are clipped, real batches are drawn with
    replacement and for each network alone, so that as many real images take part for less work.
    """
    _check(options, attack, synthetic.num_classes)
    kind = options.init if initialization is None else initialization
    networks = 1 if kind == "fixed" else options.networks
    batch = max(1, 1024 // networks) if options.real_batch is None else options.real_batch
    objective = objectives.unrolled(
        network,
        synthetic.num_items,
        steps=options.steps,
        passes=options.passes,
        initialization=kind,
        weights_key=weights_key,
        number_of_networks=networks,
        batch_size=batch,
        window=options.window,
        optimizer=options.inner_optimizer,
        relabel=attack,
        clip=_clip(options, synthetic.groups),
        updates=(*synthetic.groups, "learning_rates"),
    )
    number = () if options.shared_learning_rate else (options.steps * options.passes,)

    def init(key: Array, real: Real) -> dict[str, PyTree]:
        rates = jnp.full(number, math.log(options.inner_learning_rate), jnp.float32)
        theta = synthetic.init(key, real)
        if expert_labels:
            theta = {**theta, "labels": labels.by_expert(network, synthetic, theta, real)}
        return {**theta, "learning_rates": rates}

    return compose(synthetic, (objective,), _optimizers(synthetic, options, outer_steps), init)


def _clip(options: Options, groups: tuple[str, ...]) -> dict[str, float]:
    norms = dict.fromkeys(groups, options.clip) | {"learning_rates": options.learning_rate_clip}
    return {group: norm for group, norm in norms.items() if norm is not None}


def _optimizers(
    synthetic: Synthetic, options: Options, outer_steps: int
) -> dict[str, optax.GradientTransformation]:
    rates = {
        "labels": options.label_learning_rate,
        "decoder": options.decoder_learning_rate,
        "learning_rates": options.learning_rate_learning_rate,
    }

    def optimizer(rate: float) -> optax.GradientTransformation:
        cosine = options.schedule == "cosine"
        schedule = optax.cosine_decay_schedule(rate, outer_steps) if cosine else rate
        return optax.adam(schedule, b1=options.momentum)

    return {
        group: optimizer(rates.get(group, options.data_learning_rate))
        for group in (*synthetic.groups, "learning_rates")
    }


def _check(options: Options, attack: tuple[int, int] | None, num_classes: int) -> None:
    for name in ("networks", "real_batch"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")
    check_rates(options)
    if not 0 <= options.momentum < 1:
        raise InputError(f"momentum must be from 0 to below 1, not {options.momentum}")
    for name in ("clip", "learning_rate_clip"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            raise InputError(f"{name} must be positive, not {value}")
    classes = set(range(num_classes))
    if attack is not None and (attack[0] == attack[1] or not set(attack) <= classes):
        raise InputError(
            f"an attack needs two different classes from 0 to {num_classes - 1}, not {attack}"
        )

"""DWA: diversity by directed weight adjustment (arXiv 2409.17612), and SRe2L, which it extends.

SRe2L: Yin et al., arXiv 2306.13092. Images are optimized under one teacher alone: it should name
their classes, and the inputs of its batch norms should have the statistics of its training data.
"""

import dataclasses
import math
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax import Array

from d3jax import experts, losses
from d3jax.data import Dataset
from d3jax.data.views import Views, rolled, view
from d3jax.distill import objectives
from d3jax.distill.adjust import adjust, adjust_randomly
from d3jax.distill.compose import check_rates, compose
from d3jax.methods.registry import TINY, Setting, Spec, reads_teacher, register
from d3jax.networks import unraveler
from d3jax.networks.blocks import has_statistics
from d3jax.synthetic import pixels
from d3jax.synthetic.labels import item_classes
from d3jax.types import InputError, Method, Network, PyTree, Real, State, Synthetic


@dataclasses.dataclass(frozen=True)
class DWAOptions:
    """The outer step of DWA, as for small images. SRe2L is --start noise --variance-weight 1
    --adjustment-steps 0 --data-learning-rate 0.25; CDA is that with --crop --curriculum."""

    statistics_weight: float = 0.01
    """Factor on the distance of batch norm's statistics, beside the cross entropy."""
    variance_weight: float = 11.0
    """Factor on variances in it (ImageNet: 2; SRe2L: 1)."""
    first_weight: float = 10.0
    """Factor on the first batch norm in it (the papers write none: 1)."""
    adjustment_steps: int = 12
    """Ascent steps K of the teacher's weights on the cross entropy of a batch as it starts, one
    image of each class (ImageNet: 15; SRe2L: 0, none)."""
    adjustment_radius: float = 0.015
    """How far they move in all, rho."""
    adjustment: Literal["directed", "random"] = "directed"
    """Along the gradient, or as far in a random direction (the control)."""
    batch_classes: int | None = None
    """Classes, one image of each, whose statistics are matched together, and for which the teacher
    is adjusted; default all (ImageNet: 100)."""
    roll: int = 4
    """The teacher sees images moved by 0 to so many pixels, round the edges (224 pixels: 32)."""
    crop: bool = False
    """Besides, it sees a random part of them, resized, mirrored one time in two: the same of all
    images of a batch (Tiny-ImageNet, ImageNet)."""
    curriculum: bool = False
    """Large parts first: the smallest falls over the run, from all of the area to 0.08, along a
    cosine (CDA, arXiv 2311.18838, which is SRe2L otherwise)."""
    data_learning_rate: float = 0.03
    """Adam's learning rate for images, in normalized units (the authors': 0.25, Tiny-ImageNet 0.1:
    images that start from noise need that, and real ones lose by it), or for another
    parametrization's own data (latents: 0.01)."""
    decoder_learning_rate: float = 3e-3
    """Adam's learning rate for a parametrization's decoder, if it has one."""


SRE2L = DWAOptions(variance_weight=1.0, adjustment_steps=0, data_learning_rate=0.25)
"""SRe2L's, whose images start from noise."""


def dwa(network: Network, synthetic: Synthetic, options: DWAOptions, outer_steps: int) -> Method:
    """Statistics matching under one teacher, with directed weight adjustment, or none (SRe2L).

    Args:
      network: the teacher's architecture, with batch norm; `real.trajectories[0, -1]` are its
        weights.
      synthetic: pixels in the papers, any parametrization here. The j-th items of all classes, or
        of `batch_classes` of them, are a batch, for which the teacher is adjusted, and whose
        statistics are matched.
      options: see `DWAOptions`.
      outer_steps: the length of the run, for the cosine schedules.

    The adjusted weights of each batch are part of the state: as many times the teacher's size as
    there are items of a class.

    Raises:
      InputError: options out of range; learned labels; by `init`, a teacher without batch norm.

    Deviations from the authors' code: every batch starts from the teacher's own weights, where
    theirs goes on from the batch before within an image number; the first step's gradient does not
    hold the adjustment's; the adjustment's view is a draw of its own, not that of the first step;
    images are rounded to bytes by the artifact's storage, not cut off; the default learning rate is
    an eighth of theirs, at which CIFAR-10's images were 20 points better training data
    (experiments/cifar10_statistics_rates.py).
    """
    _check(options)
    if "labels" in synthetic.groups:
        raise InputError(
            "statistics matching learns no labels: leave out --labels learned; a teacher gives "
            "soft ones by --labels expert"
        )
    number, classes = synthetic.num_items, synthetic.num_classes
    objective = objectives.statistics_matching(
        network,
        number,
        classes,
        statistics_weight=options.statistics_weight,
        variance_weight=options.variance_weight,
        first_weight=options.first_weight,
        batch_classes=options.batch_classes,
        view=lambda key, images, step: _seen(
            options, key, images, _smallest(options, step, outer_steps)
        ),
        updates=synthetic.groups,
    )
    rates = {"decoder": options.decoder_learning_rate}
    optimizers = {
        group: optax.adam(
            optax.cosine_decay_schedule(rates.get(group, options.data_learning_rate), outer_steps),
            b1=0.5,
            b2=0.9,
        )
        for group in synthetic.groups
    }
    composed = compose(synthetic, (objective,), optimizers)

    def init(key: Array, real: Real) -> State:
        # The same start with and without adjustment.
        for_state, for_batches = jax.random.split(key)
        state = composed.init(for_state, real)
        if not options.adjustment_steps or not options.adjustment_radius:
            return state
        items = objectives.batch_items(number, classes, options.batch_classes)
        labels = item_classes(number, classes, items)
        images = synthetic.sample(state.theta, None, items.reshape(-1)).images
        images = images.reshape(*items.shape, *images.shape[1:])
        keys = jax.random.split(for_batches, len(items))
        (aux,) = state.aux
        move = partial(_adjusted, network, options, aux, classes)
        params = jax.lax.map(lambda own: move(*own), (keys, images, labels))
        return state._replace(aux=({**aux, "params": params},))

    def step(key: Array, state: State, real: Real) -> tuple[State, dict[str, Array]]:
        state, metrics = composed.step(key, state, real)
        return state._replace(theta=synthetic.clip(state.theta, real)), metrics

    return composed._replace(init=init, step=step)


def _adjusted(
    network: Network,
    options: DWAOptions,
    aux: PyTree,
    classes: int,
    key: Array,
    images: Array,
    labels: Array,
) -> Array:
    """The teacher's weights f[P] for a batch that starts as `images` f[B, H, W, C]."""
    for_view, for_direction = jax.random.split(key)
    (teacher,) = aux["params"]
    if options.adjustment == "random":
        return adjust_randomly(for_direction, teacher, options.adjustment_radius)
    unravel = unraveler(network)

    def loss(params: Array, images: Array) -> Array:
        outputs = network.forward(unravel(params), images, statistics=aux["statistics"])
        targets = jax.nn.one_hot(labels, classes, dtype=images.dtype)
        return losses.cross_entropy(outputs.logits, targets)

    seen = _seen(options, for_view, images, None)
    return adjust(loss, teacher, seen, options.adjustment_steps, options.adjustment_radius)


def smallest_crop(step: Array, outer_steps: int) -> Array:
    """The least share f[] of the area that the teacher sees in an outer step (CDA, milestone 1)."""
    progress = step.astype(jnp.float32) / jnp.float32(outer_steps)
    least = jnp.float32(Views.smallest)
    return least + (1 - least) * (1 + jnp.cos(jnp.float32(math.pi) * progress)) / 2


def _smallest(options: DWAOptions, step: Array, outer_steps: int) -> Array | None:
    return smallest_crop(step, outer_steps) if options.curriculum else None


def _seen(options: DWAOptions, key: Array, images: Array, smallest: Array | None) -> Array:
    """What the teacher sees of a batch: one view of all its images."""
    for_view, for_roll = jax.random.split(key)
    if options.crop:
        images = view(for_view, images, Views("resized"), shared=True, smallest=smallest)
    return rolled(for_roll, images, options.roll) if options.roll else images


def _check(options: DWAOptions) -> None:
    for name in ("statistics_weight", "variance_weight", "first_weight", "adjustment_radius"):
        value = getattr(options, name)
        if not 0 <= value < math.inf:
            raise InputError(f"{name} must not be negative, it is {value}")
    for name in ("adjustment_steps", "roll"):
        value = getattr(options, name)
        if value < 0:
            raise InputError(f"{name} must not be negative, it is {value}")
    if options.curriculum and not options.crop:
        raise InputError("a curriculum is one of crops: give --crop too")
    check_rates(options)


def _resolve(run: Any, dataset: Dataset) -> Any:
    network = run.architecture.create(dataset.image_shape, dataset.num_classes)
    if not has_statistics(network, dataset.image_shape):
        raise InputError(
            f"the teacher needs batch norm, whose statistics are matched, and "
            f"{run.architecture.network} has none: give --network convnet or resnet18 with --norm "
            f"batch"
        )
    return run


def _build(options: DWAOptions, setting: Setting) -> Method:
    return dwa(setting.network, setting.synthetic, options, setting.outer_steps)


def _tiny(network: Network) -> Method:
    options = DWAOptions(adjustment_steps=2, roll=1)
    return dwa(network, pixels.create(**TINY, num_items=6), options, 10)


SPEC = register(
    Spec(
        name="dwa",
        options=DWAOptions,
        build=_build,
        tiny=_tiny,
        paper="Directed Weight Adjustment, arXiv 2409.17612; SRe2L, arXiv 2306.13092",
        figure="CIFAR-10, 10 / 50 images per class: 32.6 / 53.1 % (ResNet18, soft labels)",
        resolve=_resolve,
        experts=reads_teacher,
        labels="end",
        baselines=("random", "rded", "random_hard"),
        norm="batch",
        trained=experts.TEACHER,
    )
)

"""D3: distributional dataset distillation (arXiv 2403.00999)."""

import dataclasses
import math
from typing import Any, Literal

import jax.numpy as jnp
import optax
from jax import Array

from d3jax import experts
from d3jax.data import Dataset
from d3jax.data.augment import STRATEGIES, Transformation, default_strategy
from d3jax.distill import objectives
from d3jax.distill.compose import check_rates, compose, updates_per_step
from d3jax.methods.registry import TINY, Reads, Setting, Spec, register
from d3jax.synthetic import gaussian
from d3jax.types import (
    InputError,
    Method,
    Network,
    Objective,
    PyTree,
    Real,
    Synthetic,
    check_at_least_one,
)


@dataclasses.dataclass(frozen=True)
class D3Options:
    """D3's outer step: the paper's smallest setting, but for optimizers that learn faster.

    The paper's own are `PAPER` (--preset paper has its experts' rate too); each ablation is one
    option.
    """

    inner_steps: int = 10
    """Student steps T per trajectory update."""
    expert_epochs: int = 2
    """Epochs M of the expert that the student's steps should match."""
    max_start_epoch: int = 8
    """Expert start epochs are drawn from 0 to this, exclusive."""
    inner_batch_size: int | None = None
    """Items per inner step; default two of each class, 20 at least, or all where there are fewer
    (of --unroll at most so many, so that they divide the items)."""
    inner_augmentation: tuple[Transformation, ...] = ()
    """Differentiable augmentation inside the student's steps of trajectory matching (the paper has
    none)."""
    trajectory: bool = True
    """Trajectory matching (off: an ablation)."""
    unroll: bool = False
    """Unrolled training, beside trajectory matching or (--no-trajectory) instead: networks drawn
    afresh and trained on the distilled data should be good on real images, as in dd. Beside the
    MMD, whose gradient is 20 to 100 times longer, take --optimizer-states separate."""
    unroll_steps: int = 100
    """Steps that such a network is trained for at most, on --inner-batch-size items each."""
    unroll_window: int = 20
    """The last steps of its training, which are differentiated; before these there are as many as
    the draw says, so that the window is at a random place."""
    unroll_optimizer: Literal["sgd", "adam"] = "sgd"
    """Optimizer of its steps, whose learning rate is learned. Students are trained by SGD: adam
    needs --student.learning-rate, and --no-trajectory."""
    unroll_networks: int = 1
    """Such networks in a step."""
    unroll_real_batch: int = 1024
    """Real images that each of them is judged on."""
    unroll_clip: float | None = 0.03
    """Largest norm of its gradient in each of latents, decoder and labels, as in dd, None for no
    limit. (In the learning rate's logarithm the largest is 1, always.)"""
    kernel_ridge: bool = False
    """Kernel ridge regression, beside or instead of the others: a last layer that is solved for on
    the distilled data, on features of experts' snapshots, should be good on real images. Beside
    the MMD take --optimizer-states separate."""
    kernel_ridge_images: int = 512
    """Real images that it is judged on in each step."""
    mmd: bool = True
    """Maximum mean discrepancy (off: an ablation)."""
    mmd_samples: int = 30
    """Decoded, and as many real, images per class in the MMD."""
    mmd_classes: int | None = None
    """Classes whose images the MMD has in memory together, a divisor of all; default all of them.
    Fewer take a random grouping each step, decoded (and so batch-normalized) group by group."""
    mmd_epoch: int | None = None
    """Expert epoch whose features the MMD compares; default the last."""
    mmd_experts: int = 1
    """Experts in whose features the MMD compares the same images, drawn in each step; their mean is
    the loss."""
    mmd_bandwidth: Literal["absolute", "median"] = "absolute"
    """Bandwidths of the MMD's kernels: 1, 2, 4, 8 and 16 as in the paper, whatever features are, or
    1/4, 1/2, 1, 2 and 4 times the median distance of a class's decoded and real images."""
    mmd_augmentation: tuple[Transformation, ...] | None = None
    """Differentiable augmentation of decoded and real images in the MMD, the same of both (the
    paper has none), one of these per step; default all, but no flip where the data set or its
    classes are named as digits or letters."""
    mmd_weight: float = 1.0
    """Factor on the MMD's updates, which is one on its learning rates. (A factor on its loss would
    do nothing to Adam with states of its own.)"""
    optimizer_states: Literal["shared", "separate"] = "shared"
    """One state of each optimizer that all updates share, as in the paper, or one for each update.
    With Adam the shared second moment is that of the larger gradient: the MMD's, 40 to 130 times
    longer, left half a percent of trajectory matching's update to its own gradient."""
    latent_optimizer: Literal["sgd", "adam"] = "adam"
    """Optimizer of the latents; sgd has momentum 0.5, as in the paper."""
    latent_learning_rate: float = 1e-2
    """Its learning rate (the paper: 3e-4 to 5e-3, of sgd)."""
    decoder_learning_rate: float = 3e-3
    """Adam's learning rate for the decoder (the paper: 8e-5 to 3e-4)."""
    decoder_weight_decay: float = 1e-5
    """Weight decay of the decoder, added to the gradient, as in the paper."""
    student_learning_rate: float = 0.01
    """First value of the learned student learning rate."""
    label_learning_rate: float = 0.03
    """Adam's learning rate for learned labels (the paper has none)."""
    learning_rate_learning_rate: float = 0.01
    """Learning rate of SGD (momentum 0.5) on the logarithm of the student's learning rate."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Schedule of the latents', decoder's and labels' learning rates (the paper: constant)."""


PAPER = D3Options(
    latent_optimizer="sgd",
    latent_learning_rate=3e-4,
    decoder_learning_rate=3e-4,
    schedule="constant",
    mmd_augmentation=(),
)
"""The optimizers of the paper's smallest setting (one latent per class, small decoder); its experts
learn at 0.01, which `--preset paper` takes too."""


def d3(network: Network, synthetic: Synthetic, options: D3Options, outer_steps: int) -> Method:
    """D3's updates of a step: trajectory matching, then MMD in an expert's features.

    Args:
      network: the experts' and students' architecture.
      synthetic: Gaussians with a decoder (`synthetic.gaussian`) in the paper; labels that are
        learned are moved by the inner loops alone, and so is the student learning rate: by
        trajectory matching, by unrolled training, which comes after it, or by both.
      options: see `D3Options`. Augmentation of the MMD that is None is of all kinds, flips too,
        which a run (`data.augment.default_strategy`) leaves out for digits.
      outer_steps: the length of the run, for the cosine schedule.

    Raises:
      InputError: options that exclude each other or are out of range.

    All updates share the optimizer state of latents and decoder, unless `optimizer_states` says
    otherwise. Deviations from the paper's code: the logarithm of the learning rate is learned
    (their 1e-6 on a raw rate of 0.01 is 1e-6 / 0.01^2 = 0.01 on the logarithm), the student has the
    same activation in distillation and evaluation, and experts are drawn from snapshots that exist.
    """
    _check(options)
    batch = _inner_batch(options, synthetic.num_items, synthetic.num_classes)
    options = dataclasses.replace(options, inner_batch_size=batch)
    labels = tuple(group for group in synthetic.groups if group == "labels")
    if labels and not (options.trajectory or options.unroll or options.kernel_ridge):
        raise InputError(
            "only trajectory matching learns labels, unrolled training, and kernel ridge "
            "regression: leave out --labels learned or --no-trajectory, or add --unroll"
        )
    moved = tuple(group for group in synthetic.groups if group != "labels")
    chosen = []
    if options.trajectory:
        chosen.append(
            objectives.trajectory_matching(
                network,
                synthetic.num_items,
                inner_steps=options.inner_steps,
                expert_epochs=options.expert_epochs,
                max_start_epoch=options.max_start_epoch,
                batch_size=options.inner_batch_size,
                strategy=options.inner_augmentation,
                updates=(*moved, *labels, "learning_rates"),
            )
        )
    if options.unroll:
        groups = (*moved, *labels, "learning_rates")
        chosen.append(_unrolled(network, synthetic.num_items, options, groups))
    if options.kernel_ridge:
        chosen.append(
            objectives.kernel_ridge(
                network,
                synthetic.num_items,
                synthetic.num_classes,
                batch_size=options.kernel_ridge_images,
                strategy=options.inner_augmentation,
                updates=(*moved, *labels),
            )
        )
    if options.mmd:
        own = options.mmd_augmentation
        chosen.append(
            objectives.feature_mmd(
                network,
                synthetic.num_items,
                synthetic.num_classes,
                samples=options.mmd_samples,
                epoch=-1 if options.mmd_epoch is None else options.mmd_epoch,
                classes_at_once=options.mmd_classes,
                experts=options.mmd_experts,
                bandwidth=options.mmd_bandwidth,
                strategy=STRATEGIES if own is None else own,
                updates=moved,
            )
        )

    def init(key: Array, real: Real) -> dict[str, PyTree]:
        start = jnp.asarray(options.student_learning_rate, jnp.float32)
        return {**synthetic.init(key, real), "learning_rates": jnp.log(start)}

    separate = options.optimizer_states == "separate"
    often = updates_per_step(tuple(chosen), separate)
    optimizers = _optimizers(options, {g: outer_steps * number for g, number in often.items()})
    weights = {"mmd": options.mmd_weight}
    return compose(synthetic, tuple(chosen), optimizers, init, separate=separate, weights=weights)


def _check(options: D3Options) -> None:
    if not (options.trajectory or options.mmd or options.unroll or options.kernel_ridge):
        raise InputError(
            "D3 without trajectory matching and without MMD learns nothing; keep one, "
            "or add --unroll"
        )
    check_at_least_one(
        options,
        "inner_steps", "expert_epochs", "max_start_epoch", "inner_batch_size",
        "unroll_steps", "unroll_window", "unroll_networks", "unroll_real_batch",
        "kernel_ridge_images", "mmd_experts",
    )  # fmt: skip
    if options.unroll and options.unroll_window > options.unroll_steps:
        raise InputError(
            f"unroll_window must be from 1 to the {options.unroll_steps} unroll_steps, "
            f"not {options.unroll_window}"
        )
    if options.unroll_clip is not None and not options.unroll_clip > 0:
        raise InputError(f"unroll_clip must be positive, not {options.unroll_clip}")
    if options.unroll and options.trajectory and options.unroll_optimizer == "adam":
        raise InputError(
            "trajectory matching learns a learning rate of SGD, which is none of adam: leave out "
            "--unroll-optimizer adam, or add --no-trajectory"
        )
    if options.mmd_epoch is not None and options.mmd_epoch < 0:
        raise InputError(f"mmd_epoch must not be negative, it is {options.mmd_epoch}")
    if options.mmd and options.mmd_samples < 2:
        raise InputError(f"mmd_samples must be at least 2, not {options.mmd_samples}")
    if not 0 < options.mmd_weight < math.inf:
        raise InputError(
            f"mmd_weight must be positive, not {options.mmd_weight}; --no-mmd leaves the MMD out"
        )
    check_rates(options)


def _unrolled(
    network: Network, num_items: int, options: D3Options, groups: tuple[str, ...]
) -> Objective:
    batch = min(options.inner_batch_size or num_items, num_items)
    steps = num_items // batch
    if num_items % batch or options.unroll_steps % steps:
        raise InputError(
            f"unrolled training takes all {num_items} items equally often: their number must be a "
            f"multiple of inner_batch_size {batch}, and unroll_steps {options.unroll_steps} one of "
            f"the number of batches, {steps}"
        )
    norms = {} if options.unroll_clip is None else dict.fromkeys(groups, options.unroll_clip)
    norms["learning_rates"] = 1.0  # SGD's, which one very long gradient would throw far off
    return objectives.unrolled(
        network,
        num_items,
        steps=steps,
        passes=options.unroll_steps // steps,
        initialization="random",
        number_of_networks=options.unroll_networks,
        batch_size=options.unroll_real_batch,
        window=options.unroll_window,
        optimizer=options.unroll_optimizer,
        clip=norms,
        updates=groups,
    )


def _optimizers(
    options: D3Options, updates: dict[str, int]
) -> dict[str, optax.GradientTransformation]:
    """One optimizer per group; `updates` says how often the state of each that moves will step."""

    def schedule(rate: float, group: str) -> optax.ScalarOrSchedule:
        cosine = options.schedule == "cosine"
        return optax.cosine_decay_schedule(rate, updates.get(group, 1)) if cosine else rate

    latents = schedule(options.latent_learning_rate, "data")
    return {
        "labels": optax.adam(schedule(options.label_learning_rate, "labels")),
        "data": (
            optax.sgd(latents, momentum=0.5)
            if options.latent_optimizer == "sgd"
            else optax.adam(latents)
        ),
        "decoder": optax.chain(
            optax.add_decayed_weights(options.decoder_weight_decay),
            optax.adam(schedule(options.decoder_learning_rate, "decoder")),
        ),
        "learning_rates": optax.sgd(options.learning_rate_learning_rate, momentum=0.5),
    }


def _resolve(run: Any, dataset: Dataset) -> Any:
    """The epoch and the augmentation of the MMD, and the items of an inner step, by default."""
    own, items = run.d3, run.synthetic_items(dataset)
    if own.mmd and own.mmd_experts > run.expert.count:
        raise InputError(
            f"mmd_experts is {own.mmd_experts}, but {run.expert.count} experts are trained; raise "
            f"--expert.count to that, or lower --mmd-experts"
        )
    if own.unroll and own.unroll_optimizer == "adam" and run.student.learning_rate is None:
        raise InputError(
            "students are trained by SGD, for which the learning rate that --unroll-optimizer adam "
            "learns is none: give --student.learning-rate"
        )
    epoch = run.expert.epochs if own.mmd_epoch is None else own.mmd_epoch
    kinds = own.mmd_augmentation
    if kinds is None:
        kinds = default_strategy(dataset.name, dataset.class_names)
    filled: dict[str, Any] = {"mmd_epoch": epoch, "mmd_augmentation": kinds}
    if run.subtasks is None:  # else that of each subtask's own classes
        filled["inner_batch_size"] = _inner_batch(own, items, dataset.num_classes)
    return dataclasses.replace(run, d3=dataclasses.replace(own, **filled))


def _inner_batch(options: D3Options, items: int, classes: int) -> int:
    """Items of an inner step, of so many items of so many classes."""
    if options.inner_batch_size is not None:
        return min(options.inner_batch_size, items)
    most = min(items, max(20, 2 * classes))
    if not options.unroll:
        return most
    return max(n for n in range(1, most + 1) if items % n == 0)  # an epoch's batches are whole


def _reads(run: Any, dataset: Dataset, turn: int) -> Reads | None:
    del dataset, turn
    own = run.d3
    if not (
        own.trajectory or own.mmd or own.kernel_ridge or run.parametrization.labels == "expert"
    ):
        return None  # unrolled training alone
    last = own.max_start_epoch - 1 + own.expert_epochs if own.trajectory else 1
    until = ("max_start_epoch", "expert_epochs")
    if own.mmd_epoch is not None:
        until = (*until, "mmd_epoch")
    return Reads(run.expert, max(own.mmd_epoch or 0, last), until)


def _passes(options: D3Options, classes: int) -> int:
    """The derivative of a step's gradient is worth 6 of an image, that gradient 3."""
    batch = options.inner_batch_size or max(20, 2 * classes)
    found = 0
    if options.trajectory:
        found += 9 * options.inner_steps * batch
    if options.unroll:
        plain = (options.unroll_steps - options.unroll_window) // 2  # in the mean
        steps = 9 * options.unroll_window + 3 * plain
        found += options.unroll_networks * (steps * batch + 3 * options.unroll_real_batch)
    if options.kernel_ridge:  # real images, only forward; the distilled ones are fewer
        found += options.kernel_ridge_images
    if options.mmd:  # decoded images and, only forward, real ones
        found += 4 * options.mmd_experts * options.mmd_samples * classes
    return found


def _build(options: D3Options, setting: Setting) -> Method:
    return d3(setting.network, setting.synthetic, options, setting.outer_steps)


def _tiny(network: Network) -> Method:
    data = gaussian.create(**TINY, latents_per_class=2, latent_size=4, width=8)
    options = D3Options(
        inner_steps=2, max_start_epoch=2, mmd_samples=3, mmd_augmentation=("color", "flip")
    )
    return d3(network, data, options, 10)


SPEC = register(
    Spec(
        name="d3",
        options=D3Options,
        build=_build,
        tiny=_tiny,
        paper="Distributional Dataset Distillation, arXiv 2403.00999",
        figure="ImageNet-1K at 64x64, bytes of 2 images per class: 17.4 % (ConvNet)",
        resolve=_resolve,
        experts=_reads,
        parametrization="gaussian",
        labels="end",
        expert_learning_rate=0.1,
        divisible=True,
        passes=_passes,
        presets={"paper": {"d3": PAPER, "expert": experts.Options(learning_rate=0.01)}},
    )
)

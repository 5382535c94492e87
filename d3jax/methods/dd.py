"""Dataset Distillation by unrolled meta-gradients (arXiv 1811.10959), and its later forms.

Soft labels: Sucholutsky and Schonlau, arXiv 1910.02551. A random window: Feng et al., RaT-BPTT,
arXiv 2310.07506.
"""

import dataclasses
import math
from typing import Any, Literal

import jax.numpy as jnp
import optax
from jax import Array

from d3jax import experts
from d3jax.data import Dataset
from d3jax.data.augment import default_strategy
from d3jax.distill import objectives
from d3jax.distill.compose import check_rates, compose
from d3jax.evaluate import unseen
from d3jax.keys import Stage
from d3jax.methods.registry import TINY, Finished, Reads, Setting, Spec, register
from d3jax.networks.own import is_own
from d3jax.synthetic import labels, pixels
from d3jax.types import InputError, Method, Network, PyTree, Real, Synthetic, check_at_least_one


@dataclasses.dataclass(frozen=True)
class DDOptions:
    """The outer step of Dataset Distillation."""

    images_per_step: int = 1
    """Images per class in each distilled step."""
    images: int | None = None
    """All distilled images instead, a multiple of the steps; needs --labels learned if they are not
    as many for each class."""
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
    adapt_from: str | None = None
    """Data set to train networks on before the distilled steps, resized to --dataset's images."""
    attack: str | None = None
    """CLASS:CLASS, such as 0:1: networks trained on --dataset itself should take the first class
    for the second after the distilled steps."""
    source: experts.Options = dataclasses.field(
        default_factory=lambda: experts.Options(
            count=400,
            epochs=5,
            learning_rate=0.05,
            batch_size=64,
            augmentation=(),
            at_once=20,
            keep="last",
        )
    )
    """How networks are trained for --adapt-from and --attack."""
    unseen: int = unseen.NETWORKS
    """Networks to judge by: fresh ones, or so many of the pretrained (never distilled with)."""
    store_weights: bool = False
    """Store the fixed initialization in the artifact, not only the seed that it is drawn from."""

    @property
    def pretrained(self) -> bool:
        """Whether networks are pretrained that the distilled steps adapt or attack."""
        return self.adapt_from is not None or self.attack is not None


def dd(
    network: Network,
    synthetic: Synthetic,
    options: DDOptions,
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
      options: see `DDOptions`.
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


def _clip(options: DDOptions, groups: tuple[str, ...]) -> dict[str, float]:
    norms = dict.fromkeys(groups, options.clip) | {"learning_rates": options.learning_rate_clip}
    return {group: norm for group, norm in norms.items() if norm is not None}


def _optimizers(
    synthetic: Synthetic, options: DDOptions, outer_steps: int
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


def _check(options: DDOptions, attack: tuple[int, int] | None, num_classes: int) -> None:
    check_at_least_one(options, "networks", "real_batch")
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


def paper_network(image_shape: tuple[int, int, int]) -> str:
    """The network of Dataset Distillation for images of this shape, else a convnet."""
    size, _, channels = image_shape
    if size in (28, 32) and channels == 1:
        return "lenet"
    return "alexcifarnet" if size == 32 else "convnet"


def attack_of(text: str | None, num_classes: int) -> tuple[int, int] | None:
    """The two classes of CLASS:CLASS.

    Raises:
      InputError: it is not that.
    """
    if text is None:
        return None
    parts = text.split(":")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise InputError(f"attack is two classes, such as 0:1, not {text!r}")
    first, second = (int(part) for part in parts)
    if first == second or max(first, second) >= num_classes:
        raise InputError(
            f"an attack needs two different classes from 0 to {num_classes - 1}, not {text}"
        )
    return first, second


def _initialization(options: DDOptions) -> objectives.Initialization:
    return "pretrained" if options.pretrained else options.init


def _items(options: DDOptions, classes: int) -> int:
    check_at_least_one(options, "images")
    if options.images is not None:
        return options.images
    return options.images_per_step * options.steps * classes


def _resolve(run: Any, dataset: Dataset) -> Any:
    own, stored = run.dd, run.parametrization
    check_at_least_one(own, "unseen")
    if own.adapt_from is not None and own.attack is not None:
        raise InputError("adapt_from and attack both say which networks to take; choose one")
    if own.pretrained and own.source.count <= own.unseen:
        raise InputError(
            f"of {own.source.count} pretrained networks {own.unseen} are kept to judge by; raise "
            f"--source.count above that"
        )
    if own.pretrained and run.data.zca:
        raise InputError(
            "--zca whitens images, which the networks of --adapt-from and --attack are not trained "
            "on; leave it out"
        )
    if stored.labels == "expert" and (own.pretrained or stored.start != "real"):
        raise InputError(
            "an expert labels real images that distillation starts from: --labels expert needs "
            "--parametrization pixels or spectral, --start real, and no --adapt-from or --attack"
        )
    fixed = _initialization(own) == "fixed"
    if own.store_weights and not fixed:
        raise InputError("store_weights is for a fixed initialization: add --init fixed")
    if own.store_weights and is_own(run.architecture.network):
        raise InputError(
            "store_weights is for d3jax's networks, whose number of weights a file can be checked "
            "for without running your code; leave it out"
        )
    networks = 1 if fixed else own.networks
    batch, window = own.real_batch, own.window
    filled = dataclasses.replace(
        own,
        images=_items(own, dataset.num_classes),
        networks=networks,
        real_batch=max(1, 1024 // max(1, networks)) if batch is None else batch,
        window=own.steps * own.passes if window is None else window,
        unseen=1 if fixed else own.unseen,
    )
    return dataclasses.replace(run, dd=filled)


def _reads(run: Any, dataset: Dataset, turn: int) -> Reads | None:
    """Pretrained networks, or one that gives the labels of --labels expert."""
    del turn
    own = run.dd
    if own.pretrained:
        source, limited = own.adapt_from or run.data.dataset, own.adapt_from is None
        return Reads(own.source, source=source, limited=limited, kept=own.unseen)
    if run.parametrization.labels != "expert":
        return None
    kinds = default_strategy(dataset.name, dataset.class_names)
    teacher = experts.Options(count=1, keep="last", augmentation=kinds)
    steps = experts.data_defaults(teacher, len(dataset.train_labels))
    return Reads(dataclasses.replace(teacher, **steps._asdict()))


def _build(options: DDOptions, setting: Setting) -> Method:
    return dd(
        setting.network,
        setting.synthetic,
        options,
        setting.outer_steps,
        initialization=_initialization(options),
        weights_key=setting.key(Stage.INITIAL),
        attack=attack_of(options.attack, setting.synthetic.num_classes),
        expert_labels=setting.expert_labels,
    )


def _finish(run: Any, finished: Finished) -> tuple[dict[str, PyTree], dict[str, Any]]:
    """The steps, as the artifact's header holds them, and a fixed initialization."""
    own, more = run.dd, {}
    attack = attack_of(own.attack, len(finished.class_names))
    rates = jnp.broadcast_to(
        jnp.exp(finished.state.theta["learning_rates"]), (own.steps * own.passes,)
    )
    recipe: dict[str, Any] = {
        "steps": own.steps,
        "passes": own.passes,
        "optimizer": own.inner_optimizer,
        "initialization": _initialization(own),
        "attack": None if attack is None else list(attack),
        "source": finished.source,
        "unseen": own.unseen,
        "learning_rates": [float(rate) for rate in rates],
    }
    if recipe["initialization"] == "fixed":
        fixed = finished.state.aux[0]["weights"]
        recipe["weights"] = {"seed": run.seed, **unseen.checksums(fixed)}
        if own.store_weights:
            more["weights"] = fixed
            recipe["stored_weights"] = True
    return more, {"replay": recipe}


def _tiny(network: Network) -> Method:
    options = DDOptions(steps=2, passes=2, networks=2, real_batch=4)
    return dd(network, pixels.create(**TINY, num_items=6), options, 10)


SPEC = register(
    Spec(
        name="dd",
        options=DDOptions,
        build=_build,
        tiny=_tiny,
        paper="Dataset Distillation, arXiv 1811.10959; RaT-BPTT, arXiv 2310.07506",
        figure="MNIST, 10 images, fixed initialization: 93.8 % (LeNet)",
        resolve=_resolve,
        experts=_reads,
        items=_items,
        finish=_finish,
        judge="replay",
        baselines=("random", "best_random", "kmeans", "class_mean", "kmeans_uint8"),
        baseline_learning_rates=(0.01, 0.03, 0.1, 0.3, 1.0),
        network=paper_network,
        initialization="xavier_normal",
    )
)

"""After MGDD: a generator of distilled images that is trained once, and adapted in a few steps.

Liu and Wang, "MGDD: A Meta Generator for Fast Dataset Distillation", NeurIPS 2023. Only the
abstract could be read: distilled images are what a generator makes of real ones, labels are a
least-squares solution in a feature space, and the generator is meta-trained on a large data set, so
that few steps adapt it to another. All else is ours.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from d3jax import artifact, losses
from d3jax.data import Dataset
from d3jax.distill import pool
from d3jax.distill.compose import check_rates, compose
from d3jax.keys import as_key
from d3jax.methods.registry import TINY, Setting, Spec, register
from d3jax.networks import unraveler
from d3jax.networks.blocks import features_of
from d3jax.synthetic import generated
from d3jax.synthetic.generated import Generating
from d3jax.types import (
    Batch,
    InputError,
    Method,
    Network,
    Objective,
    PyTree,
    Real,
    Synthetic,
    check_at_least_one,
)

_MOST = 10  # images of a class in a step, by default
_RIDGE = 1e-3  # see `losses.solved_labels`
_TOGETHER = 100  # images that `generate` makes at once


@dataclasses.dataclass(frozen=True)
class MGDDOptions:
    """How a generator is trained, or adapted."""

    generator: Path | None = None
    """Begin with the generator of this artifact, or of the run in this folder, which was stored by
    --store generator; default a fresh one."""
    classes: int | None = None
    """Classes of a step's task, drawn anew in each outer step: this trains a generator for other
    data sets; default all, which adapts one to this data set."""
    meta: Literal["joint", "reptile", "maml"] = "joint"
    """What an outer step makes of its task: one Adam step; after --inner-steps Adam steps a move
    towards where they end (Reptile); or an Adam step by the gradient there (first-order MAML)."""
    most: int | None = None
    """Images of a class in a step: from 1 to so many, drawn; default as many as are asked for, at
    most 10."""
    inner_steps: int = 5
    """Adam steps on a task, for Reptile and MAML."""
    generator_learning_rate: float = 1e-3
    """Adam's learning rate for the generator, in inner steps too; 0: it is used as it is, and there
    is one outer step that does nothing."""
    reptile_step: float = 0.5
    """The share of the way that Reptile moves the generator."""
    pool: int = 10
    """Networks in the pool, one of which, drawn at random, gives a step's features."""
    network_steps: int = 100
    """A network of the pool that was trained for more steps than these is replaced by a fresh one;
    0: a fresh one in every step."""
    real_batch: int = 1024
    """Real images of a step, as many of each class; at least as many as are generated."""
    network_learning_rate: float = 3e-4
    """Adam's learning rate for the pool's networks."""


class _Learning(NamedTuple):
    """What training a generator consists of; `classes` are the numbers i32[k] of a task's."""

    begin: Callable[[Array], pool.Pool]  # key -> networks
    # (params, pool, key, real, classes) -> (loss f[], (pool, metrics))
    error: Callable[..., tuple[Array, tuple[pool.Pool, dict[str, Array]]]]
    # (params, pool, key, real, classes, steps) -> (params, pool, metrics)
    descend: Callable[..., tuple[PyTree, pool.Pool, dict[str, Array]]]


def mgdd(
    network: Network,
    synthetic: Synthetic,
    options: MGDDOptions,
    generator: PyTree | None = None,
) -> Method:
    """A generator that makes distilled images of any real ones, by the labels that suit them best.

    Args:
      network: the architecture of the pool.
      synthetic: of the kind `generated`; what it starts from is made into the result, while steps
        draw real images of their own.
      options: see `MGDDOptions`; its `generator` is not read here.
      generator: parameters to begin with; default fresh ones, which change no image.

    A step draws classes (default all), a number of images of each, as many real images to begin
    with and others to predict, and a network of the pool. Its loss is the error of kernel ridge
    regression with the labels for which that is least (`losses.solved_error`), so that there is no
    gradient through them. Then the network is trained a step on the images and labels, or renewed.
    Arrays have room for the most images of a class; those that are not there are masked.

    Reptile (Nichol et al., arXiv 1803.02999) and first-order MAML (Finn et al., arXiv 1703.03400)
    take inner steps on one task, with fresh draws of images and a fresh state of Adam.

    Raises:
      InputError: options that are out of range, or another parametrization.
    """
    if synthetic.groups != ("decoder",):
        raise InputError("MGDD learns a generator, so it needs the parametrization generated")
    classes = options.classes or synthetic.num_classes
    most = options.most or min(_MOST, synthetic.num_items // synthetic.num_classes)
    _check(options, classes, most, synthetic.num_classes)

    def forward(params: PyTree, images: Array) -> Array:
        stored = {"data": {"images": images}, "decoder": params, "labels": jnp.zeros(())}
        return synthetic.sample(stored, None).images

    learning = _learning(network, forward, options, most)
    number = options.inner_steps

    def loss(theta, sample, aux: pool.Pool, step, key, real: Real):
        del sample, step
        for_classes, for_steps, for_last = jax.random.split(key, 3)
        params, drawn = theta["decoder"], jnp.arange(synthetic.num_classes, dtype=jnp.int32)
        if classes < synthetic.num_classes:
            drawn = jax.random.permutation(for_classes, drawn)[:classes]
        if options.meta == "joint":
            return learning.error(params, aux, for_steps, real, drawn)
        before = jax.lax.stop_gradient(params)
        after, aux, metrics = learning.descend(before, aux, for_steps, real, drawn, number)
        if options.meta == "reptile":
            slope = jax.tree.map(jnp.subtract, before, after)
        else:
            last = jax.grad(learning.error, has_aux=True)
            slope, (aux, metrics) = last(after, aux, for_last, real, drawn)
        # Its gradient is the slope.
        product = optax.tree.vdot(jax.lax.stop_gradient(slope), params)
        return jnp.asarray(product), (aux, metrics)

    def start(key: Array, real: Real) -> dict[str, PyTree]:
        theta = synthetic.init(key, real)
        return theta if generator is None else {**theta, "decoder": generator}

    objective = Objective("generator", lambda key, real: learning.begin(key), loss, ("decoder",))
    adam = optax.adam(options.generator_learning_rate)
    moves = options.generator_learning_rate > 0
    reptile = optax.sgd(options.reptile_step if moves else 0.0)
    optimizers = {"decoder": reptile if options.meta == "reptile" else adam}
    return compose(synthetic, (objective,), optimizers, start)


def _learning(
    network: Network,
    forward: Callable[[PyTree, Array], Array],
    options: MGDDOptions,
    most: int,
) -> _Learning:
    unravel, for_networks = unraveler(network), optax.adam(options.network_learning_rate)
    adam = optax.adam(options.generator_learning_rate)

    def begin(key: Array) -> pool.Pool:
        return pool.create(network, for_networks, key, options.pool, options.network_steps)

    def error(params, networks: pool.Pool, key: Array, real: Real, classes: Array):
        for_images, for_number, for_real, for_pool = jax.random.split(key, 4)
        dtype, all_classes = jax.tree.leaves(params)[0].dtype, real.class_counts.shape[0]
        # Past their number, a class's images are its first ones again. The loss leaves these out by
        # the mask; the pool's network is trained on them too, so that some count twice there.
        number = jax.random.randint(for_number, (), 1, most + 1, jnp.int32)
        turns = jnp.arange(most, dtype=jnp.int32)
        place = (jnp.arange(len(classes), dtype=jnp.int32)[:, None] * most + turns % number).ravel()
        counts = jnp.tile(turns < number, len(classes))
        drawn = real.sample_different(for_images, most)[classes].ravel()[place]
        images = forward(params, real.gather(drawn).astype(dtype))

        each = -(-options.real_batch // len(classes))
        index = real.sample_classes(for_real, each)[classes].ravel()
        weights = unravel(networks.current.astype(dtype))
        others = real.gather(index).astype(dtype)
        own, of_others = features_of(network, weights, images, others)
        own = jnp.where(counts[:, None], own, jnp.zeros((), dtype))
        share = jnp.asarray(1 / len(classes), dtype)
        mean = jnp.zeros(all_classes, dtype).at[classes].set(share)
        true = real.labels[index]
        targets = jax.nn.one_hot(true, all_classes, dtype=dtype) - mean
        loss, predicted, labels = losses.solved_error(
            own, of_others, targets, _RIDGE, number * len(classes)
        )
        batch = Batch(jax.lax.stop_gradient(images), labels[place])
        networks = pool.advance(
            network, for_networks, networks, for_pool, batch, options.network_steps
        )
        right = jnp.argmax(predicted, -1).astype(jnp.int32) == true
        return loss, (networks, {"loss": loss, "accuracy": jnp.mean(right.astype(dtype))})

    def descend(params, networks: pool.Pool, key: Array, real: Real, classes: Array, steps: int):
        def step(carry, key):
            params, state, networks = carry
            slope = jax.grad(error, has_aux=True)
            gradient, (networks, metrics) = slope(params, networks, key, real, classes)
            with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it: decay**count
                change, state = adam.update(gradient, state, params)
            return (optax.apply_updates(params, change), state, networks), metrics

        start = (params, adam.init(params), networks)
        (params, _, networks), metrics = jax.lax.scan(step, start, jax.random.split(key, steps))
        return params, networks, jax.tree.map(jnp.mean, metrics)

    return _Learning(begin, error, descend)


def adapt(
    network: Network,
    generator: Generating,
    params: PyTree,
    real: Real,
    key: Array | int,
    *,
    steps: int = 100,
    options: MGDDOptions | None = None,
) -> PyTree:
    """A generator's parameters after so many Adam steps on a data set: the loss of `mgdd`.

    Args:
      network: of the pool; its classes are those of `real`.
      generator: of `generated.generator`, for the channels of `real`.
      params: to begin with, such as `load_generator` has, or `generator.init(key)`.
      real: the data set (`Dataset.real`).
      key: of all that is drawn.
      steps: Adam steps.
      options: `most` (default 10), `real_batch`, `pool`, `network_steps` and learning rates count.

    Raises:
      InputError: options that are out of range.
    """
    chosen = options or MGDDOptions()
    classes, most = real.class_counts.shape[0], chosen.most or _MOST
    _check(chosen, classes, most, classes)
    chosen = dataclasses.replace(chosen, most=most)
    plain = real._replace(trajectories=None)
    return _adapted(network, generator.forward, chosen, steps, params, plain, as_key(key))


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _adapted(
    network: Network,
    forward: Callable[[PyTree, Array], Array],
    options: MGDDOptions,
    steps: int,
    params: PyTree,
    real: Real,
    key: Array,
) -> PyTree:
    assert options.most is not None
    learning = _learning(network, forward, options, options.most)
    for_pool, for_steps = jax.random.split(key)
    classes = jnp.arange(real.class_counts.shape[0], dtype=jnp.int32)
    return learning.descend(params, learning.begin(for_pool), for_steps, real, classes, steps)[0]


def generate(generator: Generating, params: PyTree, images: Array) -> Array:
    """What a generator makes of any number of normalized real images: f[N, H, W, C], as they are.

    Images of one size take one compilation, however many there are: 100 at a time, the last ones
    padded. The first of 20 are what they are of 7. Real images that a key draws
    (`Real.sample_different`), and so a seed and the generator, stand for what it makes.

    Examples:
      >>> own = generated.generator(3, width=4)
      >>> generate(own, own.init(jax.random.key(0)), jnp.ones((7, 8, 8, 1))).shape
      (7, 8, 8, 1)
    """
    made = []
    for first in range(0, len(images), _TOGETHER):
        few = images[first : first + _TOGETHER]
        room = ((0, _TOGETHER - len(few)), (0, 0), (0, 0), (0, 0))
        made.append(_made(generator.forward, params, jnp.pad(few, room))[: len(few)])
    return jnp.concatenate(made) if made else images


_made = jax.jit(lambda forward, params, images: forward(params, images), static_argnums=0)


def load_generator(path: str | Path, channels: int, width: int, *, whitened: bool) -> PyTree:
    """The parameters of the generator in an artifact, or in that of a run's folder.

    Args:
      path: what `artifact.load` reads; of a run with --store generator.
      channels: of the images that it is to change; of grey ones 1, which one for 3 takes too.
      width: of the generator.
      whitened: whether those images are (ZCA).

    Raises:
      InputError: it is no sound artifact, holds no generator, or one for other images.
    """
    stored = artifact.load(path)
    if stored.kind != "generated" or "decoder" not in stored.theta:
        raise InputError(
            f"{path} holds no generator: it is that of a run with --parametrization generated "
            f"--store generator"
        )
    own = stored.header["parametrization"]
    there, here = map(generated.working_channels, (own["image_shape"][2], channels))
    if there != here:
        raise InputError(f"the generator in {path} is for {there} channels, images have {channels}")
    if own["generator_width"] != width:
        raise InputError(
            f"the generator in {path} has width {own['generator_width']}, not {width}: give "
            f"--generator-width {own['generator_width']}"
        )
    if (stored.header["normalization"]["zca"] is not None) != whitened:
        meant = "leave out --zca" if whitened else "add --zca"
        raise InputError(f"the generator in {path} knows images of another whitening: {meant}")
    return stored.decodable()["decoder"]


def _check(options: MGDDOptions, classes: int, most: int, all_classes: int) -> None:
    check_at_least_one(options, "classes", "most", "inner_steps", "pool", "real_batch")
    if classes > all_classes:
        raise InputError(
            f"tasks of {classes} classes are more than the {all_classes} that there are"
        )
    if options.network_steps < 0:
        raise InputError(f"network_steps must not be negative, it is {options.network_steps}")
    if not 0 < options.reptile_step <= 1:
        raise InputError(f"reptile_step must be above 0, up to 1, not {options.reptile_step}")
    if classes * most > options.real_batch:
        raise InputError(
            f"labels of {classes * most} images are solved on no fewer real ones: raise real_batch "
            f"{options.real_batch}, or lower most {most}"
        )
    check_rates(options)


def _resolve(run: Any, dataset: Dataset) -> Any:
    own, stored = run.mgdd, run.parametrization
    if stored.kind != "generated" or stored.labels not in ("solved", "hard"):
        raise InputError(
            "MGDD learns a generator, and labels are solved for: leave out --parametrization, and "
            "--labels but hard"
        )
    if own.classes is not None and stored.store != "generator":
        raise InputError("--classes trains a generator for other data sets: add --store generator")
    if own.generator is not None:
        channels, width = dataset.image_shape[2], stored.generator_width
        load_generator(own.generator, channels, width, whitened=run.data.zca)
    most = min(_MOST, stored.images_per_class) if own.most is None else own.most
    classes = dataset.num_classes if own.classes is None else own.classes
    filled = dataclasses.replace(own, most=most, classes=classes)
    still = own.generator_learning_rate == 0
    return dataclasses.replace(run, mgdd=filled, outer_steps=1 if still else run.outer_steps)


def _build(options: MGDDOptions, setting: Setting) -> Method:
    params = None
    if options.generator is not None:  # `_resolve` has checked it
        params = artifact.load(options.generator).decodable()["decoder"]
    return mgdd(setting.network, setting.synthetic, options, params)


def _passes(options: MGDDOptions, classes: int) -> int:
    """Both a generated image's backward passes, the loss's and the network's, are worth two."""
    made = 6 * (options.classes or classes) * (options.most or _MOST)
    steps = 1 if options.meta == "joint" else options.inner_steps + (options.meta == "maml")
    return steps * (options.real_batch + made)


def _tiny(network: Network) -> Method:
    data = generated.create(**TINY, num_items=6, generator_width=4, label_kind="solved")
    return mgdd(network, data, MGDDOptions(pool=2, network_steps=2, real_batch=8))


SPEC = register(
    Spec(
        name="mgdd",
        options=MGDDOptions,
        build=_build,
        tiny=_tiny,
        paper="after MGDD, a meta generator for fast dataset distillation, NeurIPS 2023",
        figure="none (the abstract alone could be read: as good as others, 22 times faster)",
        resolve=_resolve,
        parametrization="generated",
        labels_by_default="solved",
        norm="none",
        baselines=("random", "random_solved", "kmeans", "class_mean", "kmeans_uint8"),
        passes=_passes,
    )
)

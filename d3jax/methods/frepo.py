"""FRePo: neural feature regression with pooling (Zhou et al., NeurIPS 2022, arXiv 2206.00719).

A last layer that is solved for on the distilled data, in the features of a network that was trained
on it for some steps, should be good on real images. No gradient goes through that training, so that
a step takes no more memory than one pass of the network.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from d3jax import losses
from d3jax.data import Dataset
from d3jax.data.augment import default_strategy
from d3jax.distill import pool
from d3jax.distill.compose import check_rates, compose
from d3jax.distill.sharded import DEVICE, with_own_aux
from d3jax.keys import as_key
from d3jax.methods.registry import TINY, Setting, Spec, register
from d3jax.networks import unraveler
from d3jax.networks.blocks import features_of
from d3jax.synthetic import pixels
from d3jax.types import (
    InputError,
    Method,
    Network,
    Objective,
    PyTree,
    Real,
    State,
    Synthetic,
    check_at_least_one,
)

_MOST_ITEMS = 1000  # that a network of the pool is trained on at once


@dataclasses.dataclass(frozen=True)
class FRePoOptions:
    """The outer step of FRePo."""

    pool: int = 10
    """Networks in the pool, one of which, drawn at random, gives a step's features."""
    network_steps: int = 100
    """A network of the pool that was trained for more steps than these, one in each outer step that
    it was drawn in, is replaced by a fresh one; 0: a fresh one in every outer step."""
    real_batch: int = 1024
    """Real images of a step, drawn with replacement."""
    flip: bool | None = None
    """Regress on the distilled images' mirror images too; default yes, but not where the data set
    or its classes are named as digits or letters. (The paper: not of many images.)"""
    data_learning_rate: float = 3e-4
    """LAMB's learning rate, for images, labels and all else that is learned: so much of its own
    length does each array move in a step. It falls to a tenth by half a cosine."""
    network_learning_rate: float = 3e-4
    """Adam's learning rate for the pool's networks."""
    devices: int = 1
    """Devices, each with a pool and real images of its own; the mean of their gradients moves the
    data."""


def frepo(
    network: Network, synthetic: Synthetic, options: FRePoOptions, outer_steps: int
) -> Method:
    """Kernel ridge regression in the features of a pool of networks, on any parametrization.

    Args:
      network: the architecture of the pool. With batch norm, features are normalized by the
        distilled images' statistics, without derivative.
      synthetic: pixels with labels that are learned (`values`) in the paper. Learned labels start
        as one-hot ones less 1 / K, by the root of K / 10; others are taken less their mean.
      options: see `FRePoOptions`.
      outer_steps: the length of the run, for the cosine schedule.

    A step moves the data by the gradient of half the squared error of predictions for real images,
    and of the labels' `losses.margin_loss`; then the network that gave the features is trained a
    step on the new data, or renewed, and the next one is drawn. The state holds the pool.

    Raises:
      InputError: options that are out of range, or learned labels of another kind.

    Deviations from the authors' code: the ridge has a least value (`losses.solve_ridge`); labels
    are taken less their mean over classes wherever they are used, which of those that start as
    above is zero; the ConvNet has one width, and norm before pooling; batch norm has no running
    averages; networks are drawn by key, so that a run repeats; over several devices only the data's
    gradients are averaged, not those of networks that differ.
    """
    _check(options)
    if "labels" in synthetic.groups and synthetic.label_kind != "values":
        raise InputError(
            f"FRePo learns labels as values, not as {synthetic.label_kind}: give the "
            f"parametrization label_kind values"
        )
    unravel, classes = unraveler(network), synthetic.num_classes
    adam = optax.adam(options.network_learning_rate)
    steps, axis = options.network_steps, DEVICE if options.devices > 1 else None

    def own(key: Array) -> Array:
        """A key that differs between devices."""
        return key if axis is None else jax.random.fold_in(key, jax.lax.axis_index(axis))

    def loss(theta, sample, aux: pool.Pool, step, key, real: Real):
        del step
        for_sample, for_real = jax.random.split(key)
        images, targets = sample(theta, for_sample)
        dtype = images.dtype
        labels = losses.margin_loss(targets, 1 / classes)
        targets = targets - jnp.mean(targets, -1, keepdims=True)
        if options.flip is not False:
            images = jnp.concatenate([images, images[:, :, ::-1]])
            targets = jnp.concatenate([targets, targets])
        params = unravel(jax.lax.stop_gradient(aux.current).astype(dtype))
        index = real.sample(own(for_real), options.real_batch)
        seen, others = features_of(network, params, images, real.gather(index).astype(dtype))
        predicted = losses.kernel_ridge_regression(seen, targets, others)
        true = jax.nn.one_hot(real.labels[index], classes, dtype=dtype)
        error = losses.squared_error(predicted, true)
        right = jnp.argmax(predicted, -1).astype(jnp.int32) == real.labels[index]
        return error + labels, (
            aux,
            {"loss": error, "labels": labels, "accuracy": jnp.mean(right.astype(dtype))},
        )

    objective = Objective(
        "ridge",
        lambda key, real: pool.create(network, adam, own(key), options.pool, steps),
        loss,
        updates=synthetic.groups,
    )
    schedule = optax.cosine_decay_schedule(options.data_learning_rate, outer_steps, alpha=0.1)
    optimizers = {group: optax.lamb(schedule) for group in synthetic.groups}

    def start(key: Array, real: Real) -> dict[str, PyTree]:
        theta = synthetic.init(key, real)
        if "labels" not in synthetic.groups:
            return theta
        scale = jnp.asarray(math.sqrt(classes / 10), theta["labels"].dtype)
        centred = theta["labels"] - jnp.mean(theta["labels"], -1, keepdims=True)
        return {**theta, "labels": centred / scale}

    composed = compose(synthetic, (objective,), optimizers, start, axis=axis)

    def step(key: Array, state: State, real: Real) -> tuple[State, dict[str, Array]]:
        after, metrics = composed.step(key, state, real)
        # 0 is the objective's.
        for_networks = jax.random.fold_in(jax.random.fold_in(as_key(key), state.step), 1)
        for_items, for_sample, for_pool = jax.random.split(own(for_networks), 3)
        index = None
        if synthetic.num_items > _MOST_ITEMS:
            order = jax.random.permutation(for_items, synthetic.num_items)
            index = order[:_MOST_ITEMS].astype(jnp.int32)
        batch = synthetic.sample(after.theta, for_sample, index)
        (aux,) = after.aux
        aux = pool.advance(network, adam, aux, for_pool, batch, steps)
        return after._replace(aux=(aux,)), metrics

    method = composed._replace(step=step)
    return method if axis is None else with_own_aux(method, options.devices)


def _check(options: FRePoOptions) -> None:
    check_at_least_one(options, "pool", "real_batch", "devices")
    if options.network_steps < 0:
        raise InputError(f"network_steps must not be negative, it is {options.network_steps}")
    check_rates(options)


def _resolve(run: Any, dataset: Dataset) -> Any:
    own = run.frepo
    if run.parametrization.labels == "expert":
        raise InputError("FRePo has no experts to give labels; leave out --labels expert")
    if own.flip is None:
        mirrored = "flip" in default_strategy(dataset.name, dataset.class_names)
        own = dataclasses.replace(own, flip=mirrored)
    return dataclasses.replace(run, frepo=own)


def _build(options: FRePoOptions, setting: Setting) -> Method:
    return frepo(setting.network, setting.synthetic, options, setting.outer_steps)


def _tiny(network: Network) -> Method:
    data = pixels.create(**TINY, num_items=6, label_kind="values")
    return frepo(network, data, FRePoOptions(pool=2, network_steps=2, real_batch=4, flip=True), 10)


SPEC = register(
    Spec(
        name="frepo",
        options=FRePoOptions,
        build=_build,
        tiny=_tiny,
        paper="Neural Feature Regression with Pooling, NeurIPS 2022, arXiv 2206.00719",
        figure="CIFAR-10, 1 / 10 images per class: 46.8 / 65.5 % (ConvNet without norm)",
        resolve=_resolve,
        labels_by_default="learned",
        learned="values",
        norm="none",
        passes=lambda options, classes: options.real_batch,  # those alone; distilled ones are fewer
    )
)

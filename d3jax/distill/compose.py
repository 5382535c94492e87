"""The outer step: several objectives, one after the other, each with an update of its own."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from d3jax.keys import as_key
from d3jax.types import InputError, Method, Objective, PyTree, Real, State, Synthetic


def check_rates(options: Any) -> None:
    """Raises InputError where a method's learning rate or weight decay is out of range.

    A learning rate's first value, which is learned as its logarithm, must be positive.
    """
    for field in dataclasses.fields(options):
        name, value = field.name, getattr(options, field.name)
        if not name.endswith(("learning_rate", "weight_decay")) or type(value) is bool:
            continue
        first = name in ("student_learning_rate", "inner_learning_rate")
        if first and not 0 < value < math.inf:
            raise InputError(f"{name} must be positive, not {value}")
        if not 0 <= value < math.inf:
            raise InputError(f"{name} must not be negative, it is {value}")


def updates_per_step(objectives: tuple[Objective, ...], separate: bool = False) -> dict[str, int]:
    """How often each group's optimizer state steps in an outer step, for schedules: `compose`."""
    moved = [group for objective in objectives for group in objective.updates]
    return {group: 1 if separate else moved.count(group) for group in moved}


def compose(
    synthetic: Synthetic,
    objectives: tuple[Objective, ...],
    optimizers: Mapping[str, optax.GradientTransformation],
    init: Callable[[Array, Real], dict[str, PyTree]] | None = None,
    *,
    separate: bool = False,
    weights: Mapping[str, float] | None = None,
    axis: str | None = None,
) -> Method:
    """A `Method` whose step applies each objective's gradient in turn.

    Each group of theta has its own optimizer; a group that an objective does not update is left out
    of its step, state included (a zero gradient would still move momentum and decay weights). A
    weighted sum of losses would be another algorithm: the second objective sees what the first has
    changed.

    Args:
      synthetic: the parametrization.
      objectives: in the order of their updates; their names differ.
      optimizers: one optax transformation for each group that any objective updates.
      init: (key, real) -> theta; default `synthetic.init`.
      separate: each objective has its own state of each group's optimizer; default all share one.
        In a shared state of Adam the objective with the larger gradient decides the second moment,
        and with it how little the other one moves. `updates_per_step` says how often a state steps.
      weights: by an objective's name, a positive factor on its updates, which is one on its
        learning rates; default 1. (A factor on a loss does nothing to Adam with separate states.)

      axis: of a mesh, over which gradients and metrics are averaged; `aux` is each device's own
        (`sharded.with_own_aux`).

    The metrics are the objectives' own, and the norm of each update that is made, over all leaves
    of a group: `NAME/METRIC` and `NAME/update_GROUP`.

    Raises:
      ValueError: an objective updates a group without an optimizer, or two have one name.
    """
    names = [objective.name for objective in objectives]
    if len(set(names)) < len(names):
        raise ValueError(f"objectives need names that differ, not {names}")
    groups = {group for objective in objectives for group in objective.updates}
    missing = sorted(groups - set(optimizers))
    if missing:
        raise ValueError(f"no optimizer for the groups {missing}")

    def start(group: str, params: PyTree) -> PyTree:
        """The state of a group's optimizer, or by name that of each objective that updates it."""
        if not separate:
            return optimizers[group].init(params)
        return {o.name: optimizers[group].init(params) for o in objectives if group in o.updates}

    def initialize(key: Array, real: Real) -> State:
        for_theta, *for_objectives = jax.random.split(as_key(key), 1 + len(objectives))
        theta = (synthetic.init if init is None else init)(for_theta, real)
        return State(
            theta=theta,
            optimizer={group: start(group, theta[group]) for group in sorted(groups)},
            aux=tuple(o.init(k, real) for o, k in zip(objectives, for_objectives)),
            step=jnp.zeros((), jnp.int32),
        )

    def step(key: Array, state: State, real: Real) -> tuple[State, dict[str, Array]]:
        key = jax.random.fold_in(as_key(key), state.step)
        theta, optimizer, aux = dict(state.theta), dict(state.optimizer), list(state.aux)
        metrics: dict[str, Array] = {}
        for position, objective in enumerate(objectives):
            update = jax.random.fold_in(key, position)
            moved = {group: theta[group] for group in objective.updates}

            def loss(moved, objective=objective, still=theta, carried=aux[position], key=update):
                theta = {**still, **moved}
                return objective.loss(theta, synthetic.sample, carried, state.step, key, real)

            (_, (aux[position], measured)), gradient = jax.value_and_grad(loss, has_aux=True)(moved)
            if axis is not None:
                gradient, measured = jax.lax.pmean((gradient, measured), axis)
            weight = (weights or {}).get(objective.name, 1.0)
            for group in objective.updates:
                own = optimizer[group][objective.name] if separate else optimizer[group]
                with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it: decay**count
                    change, own = optimizers[group].update(gradient[group], own, theta[group])
                if weight != 1:
                    change = jax.tree.map(lambda x, w=weight: x * jnp.asarray(w, x.dtype), change)
                optimizer[group] = {**optimizer[group], objective.name: own} if separate else own
                theta = {**theta, group: optax.apply_updates(theta[group], change)}
                measured = {**measured, f"update_{group}": optax.tree.norm(change)}
            metrics |= {f"{objective.name}/{name}": value for name, value in measured.items()}
        return State(theta, optimizer, tuple(aux), state.step + 1), metrics

    def result(state: State, key: Array) -> dict[str, PyTree]:
        theta = {name: group for name, group in state.theta.items() if name != "learning_rates"}
        return synthetic.freeze(theta, as_key(key))

    return Method(initialize, step, result, synthetic, objectives)

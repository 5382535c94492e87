"""SeqMatch: Sequential Subset Matching (arXiv 2311.01570), trajectory matching in turns."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from d3jax.distill.compose import compose
from d3jax.methods import mtt
from d3jax.synthetic import subsets as parts
from d3jax.types import InputError, Method, Network, PyTree, Real, Synthetic


def seqmatch(
    network: Network,
    synthetic: Synthetic,
    options: mtt.Options,
    outer_steps: int,
    *,
    subsets: int,
    subset: int = 0,
    theta: dict[str, PyTree] | None = None,
    expert_labels: bool = False,
) -> Method:
    """The turn of one subset: students train on it and all before it, and it alone is moved.

    Args:
      network: the experts' and students' architecture.
      synthetic: all subsets' data, of any parametrization.
      options: of trajectory matching, as for MTT.
      outer_steps: of this turn.
      subsets: K; with 1 the method is MTT, step for step.
      subset: whose turn it is, from 0.
      theta: what earlier turns have made of the data; for the first, None. `real.trajectories` are
        those of experts that started from networks trained on the earlier subsets.
      expert_labels: as for MTT; given in the first turn.

    Raises:
      InputError: options out of range, or data that cannot be split into so many subsets.

    The rows of the groups `data` and `labels` that belong to the subset move. What all rows share,
    a decoder or transformations, is learned in the first turn and frozen after it: otherwise
    earlier subsets would change with it. (The paper has pixels only.)
    """
    if not 0 <= subset < subsets or (subset > 0) != (theta is not None):
        raise InputError(
            f"turn {subset} of {subsets} subsets needs the data of the turns before it, and only "
            f"turns after the first have some"
        )
    own = parts.split(synthetic, subsets)[subset]
    seen = parts.nested(synthetic, subsets)[subset]
    first = mtt.mtt(network, seen, options, outer_steps, expert_labels=expert_labels)
    if subsets == 1:
        return first
    rows = {"data": np.unique(own // synthetic.items_per_row), "labels": own}
    groups = seen.groups if subset == 0 else tuple(g for g in seen.groups if g in rows)
    optimizers = mtt.optimizers(seen, options, outer_steps)
    for group in set(groups) & set(rows):
        optimizers[group] = _only(optimizers[group], rows[group])
    objective = first.objectives[0]._replace(updates=(*groups, "learning_rates"))

    def begin(key: Array, real: Real) -> dict[str, PyTree]:
        if theta is None:
            # Of all the data, not of what is seen: every subset gets its labels here.
            return mtt.begin(network, synthetic, options, expert_labels)(key, real)
        start = jnp.asarray(options.student_learning_rate, jnp.float32)
        return {**theta, "learning_rates": jnp.log(start)}

    return compose(seen, (objective,), optimizers, begin)


def _only(
    optimizer: optax.GradientTransformation, rows: np.ndarray
) -> optax.GradientTransformation:
    """`optimizer`, with updates of exactly zero outside `rows` i32[n] of each leaf."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        change, state = optimizer.update(updates, state, params)
        return jax.tree.map(lambda x: jnp.zeros_like(x).at[rows].set(x[rows]), change), state

    return optax.GradientTransformation(optimizer.init, update)

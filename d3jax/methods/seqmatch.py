"""SeqMatch: Sequential Subset Matching (arXiv 2311.01570), trajectory matching in turns."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from d3jax.data import Dataset
from d3jax.distill.compose import compose
from d3jax.evaluate import sequence
from d3jax.experts.store import fingerprint
from d3jax.host.progress import Reporter
from d3jax.keys import DRAWS, Stage
from d3jax.methods import mtt
from d3jax.methods.registry import TINY, Finished, Reads, Setting, Spec, register
from d3jax.synthetic import labels, pixels
from d3jax.synthetic import subsets as parts
from d3jax.types import InputError, Method, Network, PyTree, Real, Synthetic


@dataclasses.dataclass(frozen=True)
class SeqMatchOptions(mtt.MTTOptions):
    """Trajectory matching, and the subsets that are distilled one after another."""

    subsets: int = 3
    """Subsets K that each class's images are split into, as evenly as can be (1: mtt)."""
    later_expert_epochs: int | None = None
    """Epochs of the experts of subsets after the first; default as many as of the first's."""


def seqmatch(
    network: Network,
    synthetic: Synthetic,
    options: mtt.MTTOptions,
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
    if not set(seen.groups) & set(rows):
        raise InputError(
            "no subset but the first has anything to learn: its items share all that is learned; "
            "give another --parametrization, or --labels learned"
        )
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


def _resolve(run: Any, dataset: Dataset) -> Any:
    own = run.seqmatch
    if not 1 <= own.subsets <= run.outer_steps:
        raise InputError(
            f"subsets must be from 1 to the {run.outer_steps} outer steps, not {own.subsets}"
        )
    if run.student.epochs < own.subsets:
        raise InputError(
            f"{run.student.epochs} epochs of students are too few for {own.subsets} subsets"
        )
    if run.student.steps is not None or run.student.views != "none":
        raise InputError(
            "students of subsets in turn count epochs and see no views: leave out --student.steps "
            "and --student.views"
        )
    later, read = own.later_expert_epochs, mtt.last_epoch(own)
    if later is not None and later < read:
        raise InputError(
            f"distillation reads expert epochs up to {read}, but those of later subsets are "
            f"trained for {later}; raise --later-expert-epochs to {read}"
        )
    turn = run.outer_steps // own.subsets
    return dataclasses.replace(run, seqmatch=mtt.resolved(own, run, dataset, turn))


def _reads(run: Any, dataset: Dataset, turn: int) -> Reads:
    del dataset
    later = run.seqmatch.later_expert_epochs
    trained = run.expert
    if turn > 0 and later is not None:
        trained = dataclasses.replace(trained, epochs=later)
    return Reads(trained, mtt.last_epoch(run.seqmatch), mtt.READ_UNTIL)


def _build(options: SeqMatchOptions, setting: Setting) -> Method:
    return seqmatch(
        setting.network,
        setting.synthetic,
        options,
        setting.outer_steps,
        subsets=options.subsets,
        subset=setting.turn,
        theta=setting.theta,
        expert_labels=setting.expert_labels,
    )


def _starts(
    run: Any, setting: Setting, rates: list[float], reporter: Reporter
) -> tuple[dict[str, Any], Callable[[], Array]]:
    """A later turn's experts start from networks trained through the subsets so far."""
    assert setting.theta is not None
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(setting.theta)]
    protocol = dataclasses.asdict(run.student)
    del protocol["students"]
    told = {
        "after": fingerprint(*arrays, np.asarray(rates, np.float32)),
        "student": {**protocol, "subsets": run.seqmatch.subsets, "draws": DRAWS},
    }

    def weights() -> Array:
        assert setting.theta is not None
        # Students see Gaussians as they are stored: frozen.
        frozen = setting.synthetic.freeze(setting.theta, setting.key(Stage.FREEZE))
        recipe = sequence.Recipe(run.seqmatch.subsets, tuple(rates))
        key = jax.random.fold_in(setting.key(Stage.PARTLY_TRAINED), len(rates))
        groups = []
        for first in range(0, run.expert.count, run.expert.at_once):
            number = min(run.expert.at_once, run.expert.count - first)
            students = dataclasses.replace(run.student, students=number)
            own = jax.random.fold_in(key, first)
            trained, _ = sequence.train(
                setting.network, setting.synthetic, frozen, recipe, students, len(rates),
                own, reporter,
            )  # fmt: skip
            groups.append(trained)
        return jnp.concatenate(groups)

    return told, weights


def _finish(run: Any, finished: Finished) -> tuple[dict[str, PyTree], dict[str, Any]]:
    subsets = run.seqmatch.subsets
    return {}, {"sequence": {"subsets": subsets, "learning_rates": finished.learning_rates}}


def _tiny(network: Network) -> Method:
    """The turn of the second of two subsets."""
    data = pixels.create(**TINY, num_items=6, label_kind="free")
    options = SeqMatchOptions(inner_steps=2, max_start_epoch=2, inner_augmentation=(), subsets=2)
    before = {
        "data": {"images": jax.random.normal(jax.random.key(3), (6, *TINY["image_shape"]))},
        "labels": labels.start(6, TINY["num_classes"]),
    }
    return seqmatch(network, data, options, 10, subsets=2, subset=1, theta=before)


SPEC = register(
    Spec(
        name="seqmatch",
        options=SeqMatchOptions,
        build=_build,
        tiny=_tiny,
        paper="Sequential Subset Matching, arXiv 2311.01570",
        figure="none that could be found: K subsets against one at equal floats and outer steps",
        resolve=_resolve,
        experts=_reads,
        turns=lambda options: options.subsets,
        starts=_starts,
        finish=_finish,
        passes=mtt.passes,
    )
)

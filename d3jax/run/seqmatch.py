"""A run of `d3jax distill seqmatch`: a turn for each subset, each with experts of its own."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from d3jax import artifact, evaluate, experts, synthetic
from d3jax.distill import metrics
from d3jax.evaluate import sequence
from d3jax.experts.store import fingerprint
from d3jax.host import clocks
from d3jax.host.files import write_text
from d3jax.host.progress import Reporter
from d3jax.keys import Stage, stage_key
from d3jax.methods.seqmatch import seqmatch
from d3jax.run import config, resolve
from d3jax.run.frame import frozen, in_folder, make_world, outer_loop, provenance, stored_experts
from d3jax.run.matching import by_students, labels_at_start, trajectories
from d3jax.synthetic import labels
from d3jax.types import Method, Network, PyTree, Synthetic


def distill_seqmatch(options: config.DistillSeqMatch, reporter: Reporter) -> dict[str, Any]:
    """Runs `d3jax distill seqmatch`; see `jobs.run`."""
    dataset, normalization = options.data.load(options.seed)
    options = resolve.seqmatch(options, dataset)
    specification = options.parametrization.specification(dataset, normalization)
    data_ = synthetic.create(specification)
    world = make_world(dataset, normalization, options.architecture)
    steps = [len(part) for part in np.array_split(np.arange(options.outer_steps), options.subsets)]
    experts.check(options.expert)
    evaluate.check(options.student)

    def turn(subset: int, theta: dict[str, PyTree] | None) -> Method:
        return seqmatch(
            world.network, data_, options.mtt, steps[subset], subsets=options.subsets,
            subset=subset, theta=theta, expert_labels=labels_at_start(options),
        )  # fmt: skip

    turn(0, None)  # refuses what cannot be, before anything is written

    def starts(theta: dict[str, PyTree], rates: tuple[float, ...]) -> Array:
        """The experts' first weights f[E, P]: networks trained through the subsets so far."""
        recipe = sequence.Recipe(options.subsets, rates)
        key = stage_key(options.seed, Stage.PARTLY_TRAINED, len(rates))
        groups = []
        for first in range(0, options.expert.count, options.expert.at_once):
            number = min(options.expert.at_once, options.expert.count - first)
            students = dataclasses.replace(options.student, students=number)
            own = jax.random.fold_in(key, first) if first else key
            trained, _ = sequence.train(
                world.network, data_, theta, recipe, students, len(rates), own, reporter
            )
            groups.append(trained)
        return jnp.concatenate(groups)

    def distilled() -> tuple[artifact.Artifact, clocks.Spent]:
        assert options.experts is not None
        theta: dict[str, PyTree] | None = None
        rates: list[float] = []
        spent, real = clocks.nothing(), world.real
        for subset in range(options.subsets):
            reporter.say(f"subset {subset + 1} of {options.subsets}")
            told, begin = {}, None
            if theta is not None:
                told = {"after": _fingerprint(theta, rates), "student": _plain(options)}
                begin = partial(starts, theta, tuple(rates))
            snapshots = stored_experts(
                world, options.architecture, experts_of(options, subset), options.experts,
                options.seed, reporter, told, begin,
            )  # fmt: skip
            spent = clocks.total([spent, experts.training_time(snapshots)])
            real = world.real._replace(trajectories=trajectories(options, snapshots))
            folder = _folder(options.out, subset, options.subsets)
            folder.mkdir(exist_ok=True)
            part = dataclasses.replace(options, outer_steps=steps[subset])
            key = stage_key(options.seed, Stage.DISTILL)  # K = 1 is MTT
            key = key if subset == 0 else stage_key(options.seed, Stage.TURNS, subset)
            state = outer_loop(part, folder, turn(subset, theta), real, reporter, key)
            rates.append(float(jnp.exp(jnp.mean(state.theta["learning_rates"]))))
            theta = {name: x for name, x in state.theta.items() if name != "learning_rates"}
        assert theta is not None
        _join_metrics(options.out, options.subsets)
        theta = frozen(data_, theta, stage_key(options.seed, Stage.FREEZE))
        if options.parametrization.labels == "expert" and not labels_at_start(options):
            theta["labels"] = labels.by_expert(world.network, data_, theta, real)
        made = artifact.create(
            theta,
            method="seqmatch",
            parametrization=specification,
            student_learning_rate=rates[-1],
            protocol=config.plain(options.student),
            dtype=options.storage,
            label_dtype=options.label_storage,
            sequence={"subsets": options.subsets, "learning_rates": rates},
            **provenance(options, world),
        )
        return made, spent

    judge, compare = by_students(options, world, reporter)
    return in_folder(options, world, data_, distilled, judge, compare, reporter)


def first_turn(network: Network, data_: Synthetic, options: config.DistillSeqMatch) -> Method:
    """The method of the first subset."""
    return seqmatch(
        network, data_, options.mtt, options.outer_steps // options.subsets,
        subsets=options.subsets, subset=0, expert_labels=labels_at_start(options),
    )  # fmt: skip


def experts_of(options: config.DistillSeqMatch, subset: int) -> experts.Options:
    """How a subset's experts are trained."""
    later = options.later_expert_epochs
    if subset == 0 or later is None:
        return options.expert
    return dataclasses.replace(options.expert, epochs=later)


def _plain(options: config.DistillSeqMatch) -> dict[str, Any]:
    """What, besides the data, the experts' first weights depend on."""
    protocol = config.plain(options.student)
    del protocol["students"]
    return {**protocol, "subsets": options.subsets}


def _fingerprint(theta: dict[str, PyTree], rates: list[float]) -> str:
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(theta)]
    return fingerprint(*arrays, np.asarray(rates, np.float32))


def _folder(out: Path, subset: int, subsets: int) -> Path:
    """Where a turn's checkpoints and metrics are."""
    return out if subsets == 1 else out / f"subset-{subset + 1}"


def _join_metrics(out: Path, subsets: int) -> None:
    """The turns' metrics, one after the other, as OUT/metrics.jsonl."""
    if subsets == 1:
        return
    rows: list[dict[str, float]] = []
    for subset in range(subsets):
        before = rows[-1] if rows else {"step": 0, **clocks.nothing()}
        rows += [
            {
                **row,
                "step": int(row["step"] + before["step"]),
                **clocks.total([clocks.of(row), before]),
            }
            for row in metrics.read(_folder(out, subset, subsets) / metrics.METRICS)
        ]
    write_text(out / metrics.METRICS, metrics.lines(rows))

"""The stages that the command line runs, from a configuration to files in a folder."""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from d3jax import (
    artifact,
    comparison,
    config,
    data,
    distill,
    evaluate,
    experts,
    files,
    judging,
    networks,
    pretrained,
    replay,
    report,
    resolve,
    synthetic,
)
from d3jax.augment import default_strategy
from d3jax.evaluate import Evaluation, Protocol
from d3jax.events import EventWriter, check_installed
from d3jax.methods import d3, dd
from d3jax.progress import Reporter, locked
from d3jax.stages import Stage, stage_key
from d3jax.types import Method, Network, PyTree, Real, State, Synthetic


class World(NamedTuple):
    """The real data of a run, and its network."""

    dataset: data.Dataset
    normalization: data.Normalization
    network: Network
    real: Real  # the training images


def run(options: config.Run, reporter: Reporter) -> dict[str, Any]:
    """Runs `d3jax distill`; returns the report, which is also in OUT/report.json.

    Raises:
      InputError, Busy, Interrupted, Diverged: as the stages do.
    """
    match options:
        case config.DistillD3():
            return distill_d3(options, reporter)
        case config.DistillDD():
            return distill_dd(options, reporter)
    raise TypeError(f"no method has options of {type(options)}")


def train_experts(options: config.Experts, reporter: Reporter) -> Path:
    """Runs `d3jax experts`; returns the folder of the snapshots."""
    dataset, normalization = options.data.load(options.seed)
    options = dataclasses.replace(
        options,
        architecture=resolve.architecture(options.architecture, dataset),
        expert=resolve.expert(options.expert, dataset),
    )
    world = _world(dataset, normalization, options.architecture)
    path = _experts(
        world, options.architecture, options.expert, options.experts, options.seed, reporter
    )
    reporter.say(f"experts: {path}")
    return path


def _world(
    dataset: data.Dataset, normalization: data.Normalization, architecture: config.Architecture
) -> World:
    network = architecture.create(dataset.image_shape, dataset.num_classes)
    real = data.device_arrays(
        dataset.train_images,
        dataset.train_labels,
        dataset.num_classes,
        normalization,
        dataset.class_names,
    )
    return World(dataset, normalization, network, real)


def _experts(
    world: World,
    architecture: config.Architecture,
    options: experts.Options,
    store: Path,
    seed: int,
    reporter: Reporter,
) -> Path:
    recipe = experts.configuration(
        options,
        dataclasses.asdict(architecture),
        {
            "images": experts.fingerprint(world.dataset.train_images, world.dataset.train_labels),
            "zca": world.normalization.zca is not None,
        },
        seed,
    )
    return experts.train(world.network, options, world.real, store, recipe, reporter)


def distill_d3(options: config.DistillD3, reporter: Reporter) -> dict[str, Any]:
    """Runs `d3jax distill d3`; see `run`."""
    dataset, normalization = options.data.load(options.seed)
    specification = options.parametrization.specification(dataset, normalization)
    options = resolve.d3(options, dataset, specification)
    data_ = synthetic.create(specification)
    world = _world(dataset, normalization, options.architecture)
    method = d3.d3(world.network, data_, options.d3, options.outer_steps)
    experts.check(options.expert)
    evaluate.check(options.student)

    def distilled() -> tuple[artifact.Artifact, float]:
        assert options.experts is not None
        snapshots = _experts(
            world, options.architecture, options.expert, options.experts, options.seed, reporter
        )
        trajectories = jnp.asarray(experts.Trajectories(snapshots).read_all(), jnp.float32)
        real = world.real._replace(trajectories=trajectories)
        state = _distill(options, options.out, method, real, reporter)
        theta = _frozen(method, state, options.seed)
        if options.parametrization.labels == "expert":
            first = networks.unraveler(world.network)(trajectories[0, -1])
            theta["labels"] = d3.expert_labels(world.network, first, data_, theta)
        made = artifact.create(
            theta,
            method="d3",
            parametrization=specification,
            student_learning_rate=float(jnp.exp(jnp.mean(state.theta["learning_rates"]))),
            protocol=config.plain(options.student),
            dtype=options.storage,
            **_provenance(options, world),
        )
        return made, experts.training_seconds(snapshots)

    key = stage_key(options.seed, Stage.STUDENTS)

    def judge(made: artifact.Artifact, test: Real) -> tuple[Evaluation, dict[str, Any]]:
        return judging.by_students(made, world.network, test, options.student, key, reporter), {}

    def judge_baseline(made: artifact.Artifact, choosing: Real, test: Real) -> comparison.Judged:
        return evaluate.evaluate_best(
            world.network,
            made.synthetic,
            made.decodable(),
            choosing,
            test,
            dataclasses.replace(options.student, learning_rate=None, with_means=False),
            options.baseline_learning_rates,
            key,
            reporter,
        )

    def compare(made: artifact.Artifact, test: Real) -> dict[str, Any]:
        return comparison.compare(
            options.baselines, options.baseline_learning_rates, made, dataset, normalization,
            test, judge_baseline, options.seed, reporter,
        )  # fmt: skip

    return _run("d3", options, world, method, distilled, judge, compare, reporter)


def distill_dd(options: config.DistillDD, reporter: Reporter) -> dict[str, Any]:
    """Runs `d3jax distill dd`; see `run`."""
    dataset, normalization = options.data.load(options.seed)
    options = resolve.dd(options, dataset)
    attack = resolve.attack(options.attack, dataset.num_classes)
    specification = options.distilled.specification(dataset)
    data_ = synthetic.create(specification)
    world = _world(dataset, normalization, options.architecture)
    pretrained_ = options.adapt_from is not None or attack is not None
    initialization = "pretrained" if pretrained_ else options.dd.init
    method = dd.dd(
        world.network,
        data_,
        options.dd,
        options.outer_steps,
        initialization=initialization,
        weights_key=stage_key(options.seed, Stage.INITIAL),
        attack=attack,
    )
    experts.check(options.source)
    source = recipe_of_source = None
    if pretrained_:
        recipe_of_source = pretrained.recipe(
            options.adapt_from or options.data.dataset,
            None if options.adapt_from else options.data.train_limit,
            0 if options.adapt_from else options.data.validation,
            options.source,
            options.seed,
        )
        source = pretrained.load(
            recipe_of_source, dataset.image_shape, dataset.num_classes, options.data.data_dir
        )
    assert options.experts is not None
    store, architecture = options.experts, config.plain(options.architecture)

    def distilled() -> tuple[artifact.Artifact, float]:
        real, seconds = world.real, 0.0
        recipe = _steps(options, initialization, attack, recipe_of_source)
        if source is not None:
            begun = time.monotonic()
            pool = pretrained.train(source, world.network, architecture, store, reporter)
            seconds = time.monotonic() - begun
            seen = pool[: len(pool) - options.unseen]
            real = real._replace(trajectories=pretrained.as_trajectories(seen))
        start = distill.start(method, stage_key(options.seed, Stage.DISTILL), real)
        judging.start_picture(options.out / "start.png", method, start, dataset, normalization)
        state = _distill(options, options.out, method, real, reporter)
        theta = _frozen(method, state, options.seed)
        if initialization == "fixed":
            fixed = state.aux[0]["weights"]
            recipe["weights"] = {"seed": options.seed, **replay.checksums(fixed)}
            if options.store_weights:
                theta["weights"] = fixed
                recipe["stored_weights"] = True
        rates = jnp.broadcast_to(
            jnp.exp(state.theta["learning_rates"]), (options.dd.steps * options.dd.passes,)
        )
        recipe["learning_rates"] = [float(rate) for rate in rates]
        made = artifact.create(
            theta,
            method="dd",
            parametrization=specification,
            student_learning_rate=float(jnp.mean(rates)),
            protocol=config.plain(Protocol(augmentation=default_strategy(dataset.name))),
            dtype=options.storage,
            replay=recipe,
            **_provenance(options, world),
        )
        return made, seconds

    def weights(made: artifact.Artifact) -> Array:
        return replay.unseen(
            made, world.network, architecture, options.unseen, options.seed,
            options.data.data_dir, store, reporter,
        )  # fmt: skip

    key = stage_key(options.seed, Stage.STUDENTS)

    def judge(made: artifact.Artifact, test: Real) -> tuple[Evaluation, dict[str, Any]]:
        return replay.judge(made, world.network, weights(made), test, key, reporter)

    def compare(made: artifact.Artifact, test: Real) -> dict[str, Any]:
        networks_ = weights(made)
        recipe = replay.recipe_of(made.header["replay"])

        def judge_baseline(
            baseline: artifact.Artifact, choosing: Real, test: Real
        ) -> comparison.Judged:
            data_ = baseline.synthetic
            return replay.evaluate_best(
                world.network, data_, baseline.decodable(), recipe.dealt(data_.num_items),
                networks_, choosing, test, options.baseline_learning_rates, key,
            )  # fmt: skip

        def score(baseline: artifact.Artifact, choosing: Real) -> float:
            data_, rates = baseline.synthetic, options.baseline_learning_rates
            dealt = recipe.dealt(data_.num_items).at(rates[len(rates) // 2])
            theta, few = baseline.decodable(), networks_[:4]
            return replay.score(world.network, data_, theta, dealt, few, choosing, key)

        return comparison.compare(
            options.baselines, options.baseline_learning_rates, made, dataset, normalization,
            test, judge_baseline, options.seed, reporter, score=score, neighbours=True,
        )  # fmt: skip

    return _run("dd", options, world, method, distilled, judge, compare, reporter)


def _steps(
    options: config.DistillDD,
    initialization: str,
    attack: tuple[int, int] | None,
    source: dict[str, Any] | None,
) -> dict[str, Any]:
    """The recipe of the steps, as the artifact's header holds it, but for the learning rates."""
    return {
        "steps": options.dd.steps,
        "passes": options.dd.passes,
        "optimizer": options.dd.inner_optimizer,
        "initialization": initialization,
        "attack": None if attack is None else list(attack),
        "source": source,
        "unseen": options.unseen,
    }


def _run(
    name: str,
    options: config.DistillD3 | config.DistillDD,
    world: World,
    method: Method,
    distilled: Callable[[], tuple[artifact.Artifact, float]],
    judge: Callable[[artifact.Artifact, Real], tuple[Evaluation, dict[str, Any]]],
    compare: Callable[[artifact.Artifact, Real], dict[str, Any]],
    reporter: Reporter,
) -> dict[str, Any]:
    """What all methods have in common: one folder, one artifact, one report.

    `distilled` makes the artifact, and says how many seconds its experts took; `judge` gives its
    accuracy, and what else belongs into the report; `compare` gives the baselines' rows.
    """
    out, dataset = options.out, world.dataset
    _check_baselines(options.baselines, method.synthetic, world)
    if options.tensorboard:
        check_installed()
    # After all that can be refused, before all that is written.
    resolve.claim(out, name, options, dataset)
    with locked(out, "distilling"):
        if (out / "report.json").exists():
            reporter.say(f"{out} is finished; this is its report")
            finished = json.loads((out / "report.json").read_text())
            reporter.console.print(judging.accuracy_table(finished))
            return finished
        made, seconds = distilled()
        artifact.save(made, out / "artifact.safetensors")
        made = artifact.load(out / "artifact.safetensors")
        rows = distill.read_metrics(out / distill.METRICS)
        report.curves(out / "curves.png", rows)
        key = stage_key(options.seed, Stage.STUDENTS)
        judging.decoded_picture(out / "images.png", made, world.normalization, key)
        test = judging.held_out(
            dataset.test_images, dataset.test_labels, dataset, world.normalization
        )
        reached, more = judge(made, test)
        finished = {
            "method": name,
            "dataset": judging.dataset_name(options.data.dataset),
            "network": options.architecture.network,
            "accuracy": reached.summary(),
            **more,
            "baselines": compare(made, test),
            **made.ledger,
            "seconds": {
                "experts": seconds,
                "distill": rows[-1]["seconds"],
                "student": reached.seconds,
            },
            "seed": options.seed,
            "versions": artifact.versions(),
        }
        files.write_json(out / "report.json", finished)
        reporter.console.print(judging.accuracy_table(finished))
        reporter.say(f"written to {out}")
        return finished


def _check_baselines(names: Sequence[str], data_: Synthetic, world: World) -> None:
    shapes = jax.eval_shape(lambda k: data_.freeze(data_.init(k, world.real), k), jax.random.key(0))
    comparison.check(names, networks.parameter_count(shapes), world.dataset)


def _frozen(method: Method, state: State, seed: int) -> dict[str, PyTree]:
    """theta as an artifact stores it: complete, without the learning rates."""
    theta = {k: v for k, v in state.theta.items() if k != "learning_rates"}
    return method.synthetic.freeze(theta, stage_key(seed, Stage.FREEZE))


def _distill(
    options: config.Run, out: Path, method: Method, real: Real, reporter: Reporter
) -> State:
    writer: EventWriter | None = None

    def observe(rows: list[dict[str, float]]) -> None:
        nonlocal writer
        if not options.tensorboard or not rows:
            return
        if writer is None:  # first_step hides what an interrupted run wrote after its checkpoint
            writer = EventWriter(out / "events", first_step=int(rows[0]["step"]))
        for row in rows:
            scalars = {n: v for n, v in row.items() if n not in ("step", "seconds")}
            writer.write(int(row["step"]), scalars)

    try:
        return distill.run(
            method,
            stage_key(options.seed, Stage.DISTILL),
            real,
            steps=options.outer_steps,
            directory=out,
            reporter=reporter,
            chunk=options.chunk,
            checkpoint_minutes=options.checkpoint_minutes,
            observe=observe,
        )
    finally:
        if writer is not None:
            writer.close()


def _provenance(options: config.Run, world: World) -> dict[str, Any]:
    """What an artifact's header says of where it comes from."""
    dataset, normalization = world.dataset, world.normalization
    recipe = None
    if normalization.zca is not None:
        # Recomputed from the same images, not stored: 38 MB at 32x32x3. The matrix is not hashed,
        # since its last digits depend on the linear algebra library; the images are.
        recipe = {
            "epsilon": 0.1,
            "images": experts.fingerprint(dataset.train_images, dataset.train_labels),
            "train_limit": options.data.train_limit,
            "validation": options.data.validation,
            "seed": options.seed,
        }
    return {
        "dataset": judging.dataset_name(options.data.dataset),
        "class_names": dataset.class_names,
        "normalization": {
            "mean": [float(v) for v in normalization.mean],
            "sd": [float(v) for v in normalization.sd],
            "zca": recipe,
        },
        "architecture": config.plain(options.architecture),
        "seed": options.seed,
    }

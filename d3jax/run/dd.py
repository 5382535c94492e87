"""A run of `d3jax distill dd`."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from d3jax import artifact, distill, experts, synthetic
from d3jax.data.augment import default_strategy
from d3jax.distill import objectives
from d3jax.evaluate import Evaluation, Protocol, replay, unseen
from d3jax.evaluate import baselines as comparison
from d3jax.evaluate.recipe import recipe_of
from d3jax.experts import source as pretrained
from d3jax.experts.store import Snapshots
from d3jax.host import clocks
from d3jax.host.progress import Reporter
from d3jax.keys import Stage, stage_key
from d3jax.methods import dd
from d3jax.run import config, resolve
from d3jax.run import judge as judging
from d3jax.run.frame import frozen, in_folder, make_world, outer_loop, provenance, stored_experts
from d3jax.types import HeldOut, Method, Network, Synthetic

TEACHER = experts.Options(count=1, keep="last")  # gives the labels of --labels expert


def distill_dd(options: config.DistillDD, reporter: Reporter) -> dict[str, Any]:
    """Runs `d3jax distill dd`; see `run`."""
    dataset, normalization = options.data.load(options.seed)
    options = resolve.dd(options, dataset)
    specification = options.parametrization.specification(
        dataset, normalization, options.distilled.images
    )
    data_ = synthetic.create(specification)
    world = make_world(dataset, normalization, options.architecture)
    attack = resolve.attack(options.attack, dataset.num_classes)
    initialization = _initialization(options)
    method = dd_method(options, world.network, data_, dataset.num_classes)
    experts.check(options.source)
    source = recipe_of_source = None
    trained_on = options.adapt_from or options.data.dataset
    if initialization == "pretrained":
        recipe_of_source = pretrained.recipe(
            judging.dataset_name(trained_on),
            None if options.adapt_from else options.data.train_limit,
            0 if options.adapt_from else options.data.validation,
            options.source,
            options.seed,
        )
        source = pretrained.load(
            recipe_of_source,
            dataset.image_shape,
            dataset.num_classes,
            options.data.data_dir,
            trained_on,
        )
    assert options.experts is not None
    store, architecture = options.experts, config.plain(options.architecture)

    def distilled() -> tuple[artifact.Artifact, clocks.Spent]:
        real, spent = world.real, clocks.nothing()
        recipe = _steps(options, initialization, attack, recipe_of_source)
        if source is not None:
            pool, spent = pretrained.train(source, world.network, architecture, store, reporter)
            seen = pool[: len(pool) - options.unseen]
            real = real._replace(trajectories=pretrained.as_trajectories(seen))
        elif options.parametrization.labels == "expert":
            teacher = resolve.expert(TEACHER, dataset)
            snapshots = stored_experts(
                world, options.architecture, teacher, store, options.seed, reporter
            )
            stored = Snapshots(snapshots).read_all()
            real = real._replace(trajectories=jnp.asarray(stored, jnp.float32))
            spent = experts.training_time(snapshots)
        start = distill.start(method, stage_key(options.seed, Stage.DISTILL), real)
        judging.start_picture(options.out / "start.png", method, start, dataset, normalization)
        state = outer_loop(options, options.out, method, real, reporter)
        theta = frozen(data_, state.theta, stage_key(options.seed, Stage.FREEZE))
        if initialization == "fixed":
            fixed = state.aux[0]["weights"]
            recipe["weights"] = {"seed": options.seed, **unseen.checksums(fixed)}
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
            label_dtype=options.label_storage,
            replay=recipe,
            **provenance(options, world),
        )
        return made, spent

    def weights(made: artifact.Artifact) -> Array:
        return unseen.weights(
            made, world.network, architecture, options.unseen, options.seed,
            options.data.data_dir, store, reporter, trained_on,
        )  # fmt: skip

    key = stage_key(options.seed, Stage.REPLAY)

    def judge(made: artifact.Artifact, test: HeldOut) -> tuple[Evaluation, dict[str, Any]]:
        return replay.judge(made, world.network, weights(made), test, key, reporter)

    def compare(made: artifact.Artifact, test: HeldOut) -> dict[str, Any]:
        networks_ = weights(made)
        recipe = recipe_of(made.header["replay"])

        def judge_baseline(
            baseline: artifact.Artifact, choosing: HeldOut, test: HeldOut
        ) -> comparison.Judged:
            data_ = baseline.synthetic
            return replay.evaluate_best(
                world.network, data_, baseline.decodable(), recipe.dealt(data_.num_items),
                networks_, choosing, test, options.baseline_learning_rates, key,
            )  # fmt: skip

        def score(baseline: artifact.Artifact, choosing: HeldOut) -> float:
            data_, rates = baseline.synthetic, options.baseline_learning_rates
            dealt = recipe.dealt(data_.num_items).at(rates[len(rates) // 2])
            theta, few = baseline.decodable(), networks_[:4]
            return replay.score(world.network, data_, theta, dealt, few, choosing, key)

        return comparison.compare(
            options.baselines, options.baseline_learning_rates, made, dataset, normalization,
            test, judge_baseline, options.seed, reporter, score=score, neighbours=True,
        )  # fmt: skip

    return in_folder(options, world, data_, distilled, judge, compare, reporter)


def _initialization(options: config.DistillDD) -> objectives.Initialization:
    pool = options.adapt_from is not None or options.attack is not None
    return "pretrained" if pool else options.dd.init


def dd_method(
    options: config.DistillDD, network: Network, data_: Synthetic, num_classes: int
) -> Method:
    """The method that the options describe."""
    return dd.dd(
        network,
        data_,
        options.dd,
        options.outer_steps,
        initialization=_initialization(options),
        weights_key=stage_key(options.seed, Stage.INITIAL),
        attack=resolve.attack(options.attack, num_classes),
        expert_labels=options.parametrization.labels == "expert",
    )


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

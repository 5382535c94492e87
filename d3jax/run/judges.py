"""The two judges of an artifact and its baselines, who treat both alike: students, and replay."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from d3jax import artifact, evaluate
from d3jax.evaluate import comparison, replay, unseen
from d3jax.evaluate.lessons import teaching_of
from d3jax.evaluate.recipe import recipe_of
from d3jax.host.progress import Reporter
from d3jax.keys import Stage, stage_key
from d3jax.run.judge import by_students, seen_before
from d3jax.run.options import Run, Studied, plain
from d3jax.types import HeldOut, Network

Entries = dict[str, Any]


class Judge(NamedTuple):
    """How an artifact and its baselines are judged: alike."""

    # (artifact, images that choose the learning rate, test images) -> what students reached, and
    # what else belongs into the report: `learning_rates` that were tried, where it was chosen
    reached: Callable[[artifact.Artifact, HeldOut, HeldOut], tuple[evaluate.Evaluation, Entries]]
    # (baseline, images that choose the learning rate, test images) -> what it reached
    best: Callable[[artifact.Artifact, HeldOut, HeldOut], comparison.Judged]
    # (baseline, images that choose) -> accuracy, quickly, where draws are to be compared
    score: Callable[[artifact.Artifact, HeldOut], float] | None = None


def judge_of(
    made: artifact.Artifact,
    network: Network,
    options: Run,
    trained_on: str | None,
    baseline_students: int | None,
    reporter: Reporter,
) -> Judge:
    """By ordinary students; or, where an artifact has steps of its own, by replaying them.

    baseline_students: ordinary students of each baseline.
    """
    if made.header.get("replay") is None:
        return _students_judge(network, options, baseline_students, reporter)
    return _replay_judge(made, network, options, trained_on, reporter)


def _students_judge(
    network: Network, options: Run, baseline_students: int | None, reporter: Reporter
) -> Judge:
    assert isinstance(options, Studied)
    assert baseline_students is not None
    key = stage_key(options.seed, Stage.STUDENTS)
    plainly = dataclasses.replace(
        options.student, learning_rate=None, with_means=False, students=baseline_students
    )

    def reached(
        made: artifact.Artifact, choosing: HeldOut, test: HeldOut
    ) -> tuple[evaluate.Evaluation, Entries]:
        said = options.student.learning_rate is not None or "sequence" in made.header
        rates = options.baseline_learning_rates
        chosen = rates if options.choose_learning_rate and not said else ()
        return by_students(
            made, network, test, options.student, key, reporter, rates=chosen, choosing=choosing
        )

    def best(made: artifact.Artifact, choosing: HeldOut, test: HeldOut) -> comparison.Judged:
        return evaluate.evaluate_best(
            network, made.synthetic, made.decodable(), choosing, test, plainly,
            options.baseline_learning_rates, key, reporter, teaching_of(made),
        )  # fmt: skip

    return Judge(reached, best)


def _replay_judge(
    made: artifact.Artifact,
    network: Network,
    options: Run,
    trained_on: str | None,
    reporter: Reporter,
) -> Judge:
    recipe = recipe_of(made.header["replay"])
    key, rates = stage_key(options.seed, Stage.REPLAY), options.baseline_learning_rates
    assert options.experts is not None
    weights = unseen.weights(
        made, network, plain(options.architecture), made.header["replay"]["unseen"], options.seed,
        options.data.data_dir, options.experts, reporter, trained_on,
    )  # fmt: skip
    seen = seen_before(made, network, options.architecture, options.data.data_dir, trained_on)

    def reached(
        made: artifact.Artifact, choosing: HeldOut, test: HeldOut
    ) -> tuple[evaluate.Evaluation, Entries]:
        del choosing  # its steps have learned rates of their own
        return replay.judge(made, network, weights, test, key, reporter, seen)

    def best(baseline: artifact.Artifact, choosing: HeldOut, test: HeldOut) -> comparison.Judged:
        data_ = baseline.synthetic
        dealt = recipe.dealt(data_.num_items, data_.num_classes)
        return replay.evaluate_best(
            network, data_, baseline.decodable(), dealt, weights, choosing, test, rates, key
        )

    def score(baseline: artifact.Artifact, choosing: HeldOut) -> float:
        data_ = baseline.synthetic
        dealt = recipe.dealt(data_.num_items, data_.num_classes).at(rates[len(rates) // 2])
        theta, few = baseline.decodable(), weights[:4]
        return replay.score(network, data_, theta, dealt, few, choosing, key)

    return Judge(reached, best, score)

"""A run of any method in its folder: experts and outer steps, up to an artifact."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax

from d3jax import artifact, distill
from d3jax.artifact import Artifact
from d3jax.distill import metrics
from d3jax.distill.inner import mean_learning_rate
from d3jax.evaluate import Protocol, comparison
from d3jax.host import clocks, compilation, files
from d3jax.host.clocks import Spent
from d3jax.host.progress import Reporter, locked
from d3jax.keys import Stage
from d3jax.methods.registry import Finished
from d3jax.run import augmented, header, profile, result, show, taught
from d3jax.run.experts import trained
from d3jax.run.folder import claim
from d3jax.run.job import Job, World, turn_steps
from d3jax.run.options import Run
from d3jax.run.resolve import labels_at_start
from d3jax.run.result import Report
from d3jax.run.tables import accuracy_table
from d3jax.types import InputError, PyTree, Synthetic


@contextmanager
def opened(
    options: Run,
    world: World,
    data_: Synthetic,
    reporter: Reporter,
    judge_again: Callable[[Artifact, Spent], Report],
) -> Iterator[Report | None]:
    """Holds the run's folder; gives the report of a run that was finished there before.

    Where that has not all rows that the options ask for, `judge_again` is called.
    """
    shapes = jax.eval_shape(
        lambda k, real: data_.freeze(data_.init(k, real), k), jax.random.key(0), world.real
    )
    counts = not taught.lends_labels(options, world.dataset)
    comparison.check(options.baselines, shapes, world.dataset, labels=counts)
    if options.tensorboard:
        check_tensorboard()
    out = options.out
    # After nearly all that can be refused, before all that is written.
    with claim(out, options, world.dataset, world.network, reporter), locked(out, "distilling"):
        finished = None
        if (out / "report.json").exists():
            finished = files.read_json(out / "report.json")
            if result.answers(finished, options):
                reporter.say(f"{out} is finished; this is its report")
                reporter.console.print(accuracy_table(finished))
            else:
                reporter.say(f"{out} is finished; what its report does not have is judged now")
                finished = judge_again(artifact.load(out), _spent(finished))
        else:
            reporter.say(augmented.told(augmented.used(options, world.whole), world.whole))
        yield finished


def _spent(report: Report) -> Spent:
    """The time that a finished run says it took before it was judged."""
    experts = {clock: report[clock]["experts"] for clock in clocks.NAMES}
    return {**experts, "compile": report["seconds"].get("compile", 0.0)}


def distilled(job: Job, reporter: Reporter) -> tuple[Artifact, Spent]:
    """The artifact of a run or subtask, and the time that its experts and, as `compile`, the
    compilation of its outer steps took; resumes in its folder.

    One turn after another (a sequence has several): its experts, then its outer steps.
    """
    options, world, out = job.options, job.world, job.options.out
    steps = turn_steps(options)
    theta: dict[str, PyTree] | None = None
    compiled = 0.0
    state, rates, spent, real = None, [], clocks.nothing(), world.real
    for turn, outer_steps in enumerate(steps):
        if len(steps) > 1:
            reporter.say(f"subset {turn + 1} of {len(steps)}")
        trajectories, seconds = trained(job, turn, theta, rates, reporter)
        spent = clocks.total([spent, seconds])
        real = world.real._replace(trajectories=trajectories)
        folder = _folder(out, turn, len(steps))
        folder.mkdir(parents=True, exist_ok=True)
        method = job.built(turn, theta)
        key = world.key(options.seed, Stage.DISTILL)  # of one turn alone, what a single run has
        key = key if turn == 0 else world.key(options.seed, Stage.TURNS, turn)
        if job.spec.judge == "replay":
            start = distill.start(method, key, real)
            images = method.synthetic.sample(start.theta, None).images
            show.start_picture(out / "start.png", images, world.dataset, world.normalization)
        begun = compilation.seconds()
        watching = observer(options.tensorboard, folder)
        with watching as observe, profile.told(options.profile, reporter):
            state = distill.run(
                method,
                key,
                real,
                steps=outer_steps,
                directory=folder,
                reporter=reporter,
                chunk=options.chunk,
                checkpoint_minutes=options.checkpoint_minutes,
                observe=observe,
                profile=options.profile,
            )
        compiled += compilation.seconds() - begun
        rates.append(_learning_rate(options, state.theta))
        theta = {name: x for name, x in state.theta.items() if name != "learning_rates"}
    assert state is not None
    assert theta is not None
    _join_metrics(out, len(steps))
    theta = job.synthetic.freeze(theta, world.key(options.seed, Stage.FREEZE))
    kind, teaching = options.parametrization.labels, None
    if kind in ("expert", "views", "teacher") and not labels_at_start(options):
        given, teaching = taught.labelled(
            kind, world.network, real, job.synthetic, theta,
            getattr(options, "student", Protocol()), options.seed,
        )  # fmt: skip
        theta |= given
    if kind == "solved":
        theta["labels"] = job.solved_labels(job.synthetic, theta)
    finished = Finished(theta, state, rates, world.dataset.class_names, job.recipe)
    more, entries = job.spec.finish(options, finished)
    entries = entries if teaching is None else {**entries, "teaching": teaching}
    return header.made(job, {**theta, **more}, rates[-1], entries), {**spent, "compile": compiled}


def _learning_rate(options: Run, theta: dict[str, PyTree]) -> float:
    """The mean of the learned rates; of a method that learns none, the protocol's, else 0.01."""
    if "learning_rates" in theta:
        return float(mean_learning_rate(theta["learning_rates"]))
    protocol = getattr(options, "student", None)
    return (protocol and protocol.learning_rate) or 0.01


def check_tensorboard() -> None:
    """Raises InputError if tensorboardX, the extra `tensorboard`, is not installed."""
    if find_spec("tensorboardX") is None:
        raise InputError("TensorBoard event files need an extra: pip install 'd3jax[tensorboard]'")


@contextmanager
def observer(wanted: bool, out: Path) -> Iterator[Callable[[distill.Rows], None]]:
    """What writes rows of metrics as event files into OUT/events, if that is wanted."""
    writer: Any = None

    def observe(rows: distill.Rows) -> None:
        nonlocal writer
        if not wanted or not rows:
            return
        if writer is None:
            from tensorboardX import SummaryWriter

            first = int(rows[0]["step"])  # hides what an interrupted run wrote after its checkpoint
            writer = SummaryWriter(str(out / "events"), purge_step=first, flush_secs=10)
        for row in rows:
            for name, value in metrics.measured(row).items():
                writer.add_scalar(name, float(value), int(row["step"]))

    try:
        yield observe
    finally:
        if writer is not None:
            writer.close()


def _folder(out: Path, turn: int, turns: int) -> Path:
    """Where a turn's checkpoints and metrics are."""
    return out if turns == 1 else out / f"subset-{turn + 1}"


def _join_metrics(out: Path, turns: int) -> None:
    """The turns' metrics, one after the other, as OUT/metrics.jsonl."""
    if turns == 1:
        return
    rows: list[dict[str, float]] = []
    for turn in range(turns):
        before = rows[-1] if rows else {"step": 0, **clocks.nothing()}
        rows += [
            {
                **row,
                "step": int(row["step"] + before["step"]),
                **clocks.total([clocks.of(row), before]),
            }
            for row in metrics.read(_folder(out, turn, turns) / metrics.METRICS)
        ]
    files.write_text(out / metrics.METRICS, metrics.lines(rows))

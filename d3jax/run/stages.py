"""The stages of a run of any method: load, experts, distill, save, evaluate."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from d3jax import artifact, data, distill, evaluate, experts, networks, synthetic
from d3jax.artifact import Artifact
from d3jax.data import Dataset, Normalization, subtasks
from d3jax.data.augment import default_strategy
from d3jax.distill import metrics
from d3jax.distill.inner import mean_learning_rate
from d3jax.evaluate import Protocol, baselines
from d3jax.experts import source as pretrained
from d3jax.experts.store import Snapshots, fingerprint
from d3jax.host import clocks, files
from d3jax.host.clocks import Spent
from d3jax.host.events import EventWriter, check_installed
from d3jax.host.progress import Reporter, locked
from d3jax.keys import Stage, stage_key
from d3jax.methods.registry import Finished, Reads, Setting, Spec
from d3jax.networks.own import identified
from d3jax.run import augmented, pictures
from d3jax.run import judge as judging
from d3jax.run.folder import claim
from d3jax.run.options import Architecture, Run, labels_at_start, plain, resolved
from d3jax.synthetic import labels
from d3jax.types import Method, Network, PyTree, Real, State, Synthetic, Trajectories

Report = dict[str, Any]


class Part(NamedTuple):
    """One of several subtasks."""

    number: int
    classes: tuple[int, ...]  # in the whole
    whole: Dataset


class World(NamedTuple):
    """The real data of a run, and its network."""

    dataset: Dataset
    normalization: Normalization
    network: Network
    real: Real  # the training images
    part: Part | None = None  # where these are not all classes

    def key(self, seed: int, stage: Stage, turn: int | None = None) -> Array:
        """The key of one stage of a run."""
        number = None if self.part is None else self.part.number
        key = stage_key(seed, stage, number)
        return key if turn is None else jax.random.fold_in(key, turn)


class Job(NamedTuple):
    """A run, or one of its subtasks, that may begin: nothing in it is refused any more."""

    options: Run
    world: World
    specification: dict[str, Any]  # of the parametrization
    synthetic: Synthetic
    method: Method  # of the first turn
    source: pretrained.Source | None = None  # what networks are pretrained on
    recipe: dict[str, Any] | None = None  # of those

    @property
    def spec(self) -> Spec:
        """Of the method."""
        return self.options.spec

    @property
    def trained_on(self) -> str | None:
        """Where the data set lies that networks are pretrained on."""
        reads = reads_of(self.options, self.world.dataset, 0)
        return None if reads is None else reads.source


def load(options: Run, dataset: Dataset | None = None) -> Job:
    """Real data, options with every default filled in, and the method; refused where they do not
    fit together, before anything is written."""
    if dataset is None:
        dataset = options.data.read(options.seed)
    normalization = Normalization.of(dataset.train_images, options.data.zca)
    options = resolved(options, dataset)
    part = None
    if getattr(options, "subtask", None) is not None:
        part = parts_of(options.subtasks, dataset)[options.subtask]  # type: ignore[attr-defined]
    return prepared(options, dataset, normalization, part)


def parts_of(text: str, dataset: Dataset) -> list[Part]:
    """The subtasks that `--subtasks` cuts a data set into."""
    parts = subtasks.split(text, dataset.num_classes)
    return [Part(number, classes, dataset) for number, classes in enumerate(parts)]


def prepared(
    options: Run, dataset: Dataset, normalization: Normalization, part: Part | None
) -> Job:
    """Everything that a run, or a subtask, needs."""
    if part is not None:
        dataset = subtasks.of(dataset, part.classes)
    items = options.spec.items(options.method, dataset.num_classes)
    specification = options.parametrization.specification(dataset, normalization, items)
    data_ = synthetic.create(specification)
    world = make_world(dataset, normalization, options.architecture, part)
    method = build(options, world, data_)
    if hasattr(options, "student"):
        evaluate.check(options.student)  # type: ignore[attr-defined]
    source = recipe = None
    reads = reads_of(options, dataset, 0)
    if reads is not None:
        experts.check(reads.experts)
        if reads.source is not None:
            source, recipe = _source(options, dataset, reads)
    return Job(options, world, specification, data_, method, source, recipe)


def build(
    options: Run,
    world: World,
    data_: Synthetic,
    turn: int = 0,
    theta: dict[str, PyTree] | None = None,
) -> Method:
    """The method that the options describe, in one of its turns."""
    return options.spec.build(options.method, setting_of(options, world, data_, turn, theta))


def setting_of(
    options: Run,
    world: World,
    data_: Synthetic,
    turn: int = 0,
    theta: dict[str, PyTree] | None = None,
) -> Setting:
    """What a method is built of."""
    return Setting(
        world.network,
        data_,
        turn_steps(options)[turn],
        lambda stage: world.key(options.seed, stage),
        labels_at_start(options),
        turn,
        theta,
    )


def turn_steps(options: Run) -> list[int]:
    """The outer steps of each turn."""
    turns = options.spec.turns(options.method)
    return [len(part) for part in np.array_split(np.arange(options.outer_steps), turns)]


def reads_of(options: Run, dataset: Dataset, turn: int) -> Reads | None:
    """Which snapshots a turn reads."""
    spec = options.spec
    return None if spec.experts is None else spec.experts(options, dataset, turn)


def _source(
    options: Run, dataset: Dataset, reads: Reads
) -> tuple[pretrained.Source, dict[str, Any]]:
    """The images that networks are pretrained on, and the recipe of those networks."""
    assert reads.source is not None
    recipe = pretrained.recipe(
        judging.dataset_name(reads.source),
        options.data.train_limit if reads.limited else None,
        options.data.validation if reads.limited else 0,
        reads.experts,
        options.seed,
    )
    source = pretrained.load(
        recipe, dataset.image_shape, dataset.num_classes, options.data.data_dir, reads.source
    )
    return source, recipe


def make_world(
    dataset: Dataset,
    normalization: Normalization,
    architecture: Architecture,
    part: Part | None = None,
    *,
    on_device: bool = True,
) -> World:
    """The images on the device, or only their shapes, and the network for them."""
    network = architecture.create(dataset.image_shape, dataset.num_classes)
    make = data.device_arrays if on_device else data.abstract_arrays
    real = make(
        dataset.train_images,
        dataset.train_labels,
        dataset.num_classes,
        normalization,
        dataset.class_names,
    )
    if part is not None:
        real = real._replace(number=jnp.asarray(len(dataset.train_labels), jnp.int32))
    return World(dataset, normalization, network, real, part)


@contextmanager
def opened(
    options: Run, world: World, data_: Synthetic, reporter: Reporter
) -> Iterator[Report | None]:
    """Holds the run's folder; gives the report of a run that was finished there before."""
    shapes = jax.eval_shape(
        lambda k, real: data_.freeze(data_.init(k, real), k), jax.random.key(0), world.real
    )
    baselines.check(options.baselines, networks.parameter_count(shapes), world.dataset)
    if options.tensorboard:
        check_installed()
    out = options.out
    # After nearly all that can be refused, before all that is written.
    with claim(out, options, world.dataset, world.network), locked(out, "distilling"):
        finished = None
        if (out / "report.json").exists():
            reporter.say(f"{out} is finished; this is its report")
            finished = json.loads((out / "report.json").read_text())
            reporter.console.print(judging.accuracy_table(finished))
        else:
            whole = world.dataset if world.part is None else world.part.whole
            reporter.say(augmented.told(augmented.used(options, whole), whole))
        yield finished


def distilled(job: Job, reporter: Reporter) -> tuple[Artifact, Spent]:
    """The artifact of a run or subtask, and the time that its experts took; resumes in its folder.

    One turn after another (a sequence has several): its experts, then its outer steps.
    """
    options, world, out = job.options, job.world, job.options.out
    steps = turn_steps(options)
    theta: dict[str, PyTree] | None = None
    state, rates, spent, real = None, [], clocks.nothing(), world.real
    for turn, outer_steps in enumerate(steps):
        if len(steps) > 1:
            reporter.say(f"subset {turn + 1} of {len(steps)}")
        trajectories, seconds = trained(job, turn, theta, rates, reporter)
        spent = clocks.total([spent, seconds])
        real = world.real._replace(trajectories=trajectories)
        folder = _folder(out, turn, len(steps))
        folder.mkdir(parents=True, exist_ok=True)
        method = build(options, world, job.synthetic, turn, theta)
        key = world.key(options.seed, Stage.DISTILL)  # of one turn alone, what a single run has
        key = key if turn == 0 else world.key(options.seed, Stage.TURNS, turn)
        if job.spec.judge == "replay":
            start = distill.start(method, key, real)
            judging.start_picture(
                out / "start.png", method, start, world.dataset, world.normalization
            )
        state = outer_loop(options, folder, method, real, reporter, key, outer_steps)
        rates.append(_learning_rate(options, state.theta))
        theta = {name: x for name, x in state.theta.items() if name != "learning_rates"}
    assert state is not None
    assert theta is not None
    _join_metrics(out, len(steps))
    theta = job.synthetic.freeze(theta, world.key(options.seed, Stage.FREEZE))
    if options.parametrization.labels == "expert" and not labels_at_start(options):
        theta["labels"] = labels.by_expert(world.network, job.synthetic, theta, real)
    finished = Finished(theta, state, rates, world.dataset.class_names, job.recipe)
    more, entries = job.spec.finish(options, finished)
    made = artifact.create(
        {**theta, **more},
        method=job.spec.name,
        parametrization=job.specification,
        student_learning_rate=rates[-1],
        protocol=protocol_of(options, world.dataset),
        dtype=options.storage,
        label_dtype=options.label_storage,
        **entries,
        **provenance(options, world),
    )
    return made, spent


def _learning_rate(options: Run, theta: dict[str, PyTree]) -> float:
    """The mean of the learned rates; of a method that learns none, the protocol's, else 0.01."""
    if "learning_rates" in theta:
        return float(mean_learning_rate(theta["learning_rates"]))
    protocol = getattr(options, "student", None)
    return (protocol and protocol.learning_rate) or 0.01


def protocol_of(options: Run, dataset: Dataset) -> dict[str, Any]:
    """How students were meant to be trained, as an artifact's header says it."""
    if hasattr(options, "student"):
        return plain(options.student)  # type: ignore[attr-defined]
    return plain(Protocol(augmentation=default_strategy(dataset.name, dataset.class_names)))


def trained(
    job: Job,
    turn: int,
    theta: dict[str, PyTree] | None,
    rates: list[float],
    reporter: Reporter,
) -> tuple[Trajectories | None, Spent]:
    """The snapshots that a turn reads, trained if the store does not hold them, and their time."""
    options, world, store = job.options, job.world, job.options.experts
    assert store is not None
    reads = reads_of(options, world.dataset, turn)
    if reads is None:
        return None, clocks.nothing()
    if job.source is not None:
        architecture = plain(options.architecture)
        pool, spent = pretrained.train(job.source, world.network, architecture, store, reporter)
        return pretrained.as_trajectories(pool[: len(pool) - reads.kept]), spent
    told, starts = {}, None
    if turn > 0 and job.spec.starts is not None:
        setting = setting_of(options, world, job.synthetic, turn, theta)
        told, starts = job.spec.starts(options, setting, rates, reporter)
    path = stored_experts(
        world, options.architecture, reads.experts, store, options.seed, reporter, told, starts
    )
    stored = Snapshots(path)
    if getattr(options, "snapshots", "device") == "disk":
        return stored.streamed(), experts.training_time(path)
    return jnp.asarray(stored.read_all(), jnp.float32), experts.training_time(path)


def stored_experts(
    world: World,
    architecture: Architecture,
    options: experts.Options,
    store: Path,
    seed: int,
    reporter: Reporter,
    told: dict[str, Any] | None = None,
    starts: Callable[[], Array] | None = None,
) -> Path:
    """The folder of a run's experts in `store`, trained if it does not hold exactly these.

    `starts` makes weights f[E, P] that they begin with, and `told` says what those depend on.
    """
    number = None if world.part is None else world.part.number
    recipe = expert_recipe(
        world.dataset, world.normalization, world.network, architecture, options, seed, number
    )
    recipe |= {"starts": told} if told else {}
    return experts.train(world.network, options, world.real, store, recipe, reporter, starts)


def expert_recipe(
    dataset: Dataset,
    normalization: Normalization,
    network: Network,
    architecture: Architecture,
    options: experts.Options,
    seed: int,
    subtask: int | None,
) -> dict[str, Any]:
    """All that a run's, or a subtask's, experts depend on; see `experts.configuration`."""
    images: dict[str, Any] = {
        "images": fingerprint(dataset.train_images, dataset.train_labels),
        "zca": normalization.zca is not None,
    }
    if subtask is not None:  # normalized by the images of other classes too
        images["normalization"] = fingerprint(normalization.mean, normalization.sd)
    fields = identified(dataclasses.asdict(architecture), network, dataset.image_shape)
    recipe = experts.configuration(options, fields, images, seed)
    return recipe if subtask is None else {**recipe, "subtask": subtask}


def outer_loop(
    options: Run,
    folder: Path,
    method: Method,
    real: Real,
    reporter: Reporter,
    key: Array,
    outer_steps: int,
) -> State:
    """The outer loop in a folder, with event files if they are wanted; the last state."""
    with observer(options.tensorboard, folder) as observe:
        return distill.run(
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


@contextmanager
def observer(wanted: bool, out: Path) -> Iterator[Callable[[distill.Rows], None]]:
    """What writes rows of metrics as event files into OUT/events, if that is wanted."""
    writer: EventWriter | None = None

    def observe(rows: distill.Rows) -> None:
        nonlocal writer
        if not wanted or not rows:
            return
        if writer is None:  # first_step hides what an interrupted run wrote after its checkpoint
            writer = EventWriter(out / "events", first_step=int(rows[0]["step"]))
        for row in rows:
            writer.write(int(row["step"]), metrics.measured(row))

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


def provenance(options: Run, world: World) -> dict[str, Any]:
    """What an artifact's header says of where it comes from."""
    whole = world.dataset if world.part is None else world.part.whole
    names = world.dataset.class_names
    return origin(options, names, world.normalization, whole, world.part)


def origin(
    options: Run,
    class_names: Sequence[str],
    normalization: Normalization,
    whole: Dataset,
    part: Part | None = None,
) -> dict[str, Any]:
    """The same without the images' being on the device; `whole` is what all classes are of."""
    recipe, subtask = None, None
    if part is not None:
        names = list(part.whole.class_names)
        subtask = {"classes": list(part.classes), "class_names": names}
    if normalization.zca is not None:
        # Recomputed from the same images, not stored: 38 MB at 32x32x3. The matrix is not hashed,
        # since its last digits depend on the linear algebra library; the images are.
        recipe = {
            "epsilon": 0.1,
            "images": fingerprint(whole.train_images, whole.train_labels),
            "train_limit": options.data.train_limit,
            "validation": options.data.validation,
            "seed": options.seed,
        }
    return {
        "dataset": judging.dataset_name(options.data.dataset),
        "class_names": class_names,
        "normalization": {
            "mean": [float(v) for v in normalization.mean],
            "sd": [float(v) for v in normalization.sd],
            "zca": recipe,
        },
        "architecture": plain(options.architecture),
        "seed": options.seed,
        "subtask": subtask,
    }


def judged(job: Job, made: Artifact, spent: Spent, reporter: Reporter) -> Report:
    """Saves the artifact, judges what was saved, compares it, and writes the report."""
    options, world, out = job.options, job.world, job.options.out
    dataset, normalization = world.dataset, world.normalization
    artifact.save(made, out / "artifact.safetensors")
    made = artifact.load(out / "artifact.safetensors")
    rows = metrics.read(out / metrics.METRICS)
    pictures.curves(out / "curves.png", rows)
    key = stage_key(options.seed, Stage.STUDENTS)
    judging.decoded_picture(out / "images.png", made, normalization, key)
    test = data.held_out(dataset.test_images, dataset.test_labels, normalization)
    judge = judging.judge_of(made, world.network, options, job.trained_on, reporter)
    reached, more = judge.reached(made, test)
    finished = {
        "method": job.spec.name,
        "dataset": judging.dataset_name(options.data.dataset),
        "network": options.architecture.network,
        "accuracy": reached.summary(),
        **more,
        "baselines": baselines.compare(
            options.baselines,
            options.baseline_learning_rates,
            made,
            dataset,
            normalization,
            test,
            judge.best,
            options.seed,
            reporter,
            score=judge.score,
            neighbours=judge.score is not None,
        ),
        **made.ledger,
        "seconds": {
            "experts": spent["seconds"],
            "distill": rows[-1]["seconds"],
            "student": reached.seconds,
        },
        "cpu_seconds": {
            "experts": spent["cpu_seconds"],
            "distill": clocks.of(rows[-1])["cpu_seconds"],
        },
        "seed": options.seed,
        "versions": artifact.versions(),
    }
    files.write_json(out / "report.json", finished)
    reporter.console.print(judging.accuracy_table(finished))
    reporter.say(f"written to {out}")
    return finished

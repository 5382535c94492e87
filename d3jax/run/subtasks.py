"""Runs whose classes are cut into subtasks, distilled side by side and joined."""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.filesize import decimal

from d3jax import artifact, data, distill, experts, synthetic
from d3jax.artifact import join as joining
from d3jax.data import Dataset, Normalization, subtasks
from d3jax.distill import metrics, sharded
from d3jax.distill.inner import mean_learning_rate
from d3jax.distill.metrics import METRICS
from d3jax.distill.sharded import Slots
from d3jax.experts.store import Snapshots, Streamed, store_path
from d3jax.host import clocks, compilation, processes
from d3jax.host.files import write_json, write_text
from d3jax.host.progress import Reporter, locked
from d3jax.keys import Stage
from d3jax.run import header, profile
from d3jax.run.experts import recipe_of
from d3jax.run.job import Job, Part, make_world, parts_of, prepared, reads_of
from d3jax.run.join import labelled
from d3jax.run.options import Divided, Run
from d3jax.run.resolve import resolved, resolved_experts
from d3jax.run.result import Report, judged, save
from d3jax.run.stages import observer, opened
from d3jax.types import Real, Synthetic


class Group(NamedTuple):
    """Subtasks of as many classes, which run as one program.

    Padding a subtask's classes would change what it computes (batch norm in the decoder, the MMD's
    sum); its images are padded instead, which changes nothing, since a step draws below the counts.
    """

    parts: list[Part]
    first: Job  # of the first part; the images are not on the device

    @property
    def reads(self) -> bool:
        """Whether experts are read."""
        return reads_of(self.first.options, self.first.world.dataset, 0) is not None

    def job(self, number: int) -> Job:
        """The run of one subtask, whose images are read only now."""
        part = next(part for part in self.parts if part.number == number)
        own = subtasks.of(part.whole, part.classes)
        return self.first._replace(world=self.first.world._replace(dataset=own, part=part))


class Whole(NamedTuple):
    """A run over all subtasks that may begin."""

    options: Divided  # of each subtask
    soft: bool  # label the whole by an expert of all classes
    groups: list[Group]

    @property
    def store(self) -> Path:
        """The folder of the experts."""
        assert self.options.experts is not None
        return self.options.experts


def wanted(options: Run) -> bool:
    """Whether a run is of several subtasks."""
    divided = isinstance(options, Divided)
    return divided and options.subtasks is not None and options.subtask is None


def run(options: Run, reporter: Reporter, given: Dataset | None = None) -> Report:
    """Runs `d3jax distill d3|mtt --subtasks ...`, on all devices of all processes.

    OUT/subtask-N holds what a job of its own would have left of subtask N: artifact and metrics.
    The first process joins and judges them, and returns the report; the others wait for that.

    given: the data set, instead of the one that the options name.
    """
    assert isinstance(options, Divided)
    asked = options.expert
    options, dataset = processes.agreed(partial(_read, options, given))
    assert options.subtasks is not None
    parts = parts_of(options.subtasks, dataset)
    normalization = _normalization(dataset, parts, options.data.zca)
    whole = processes.agreed(partial(_prepared, options, dataset, normalization, parts))
    if not processes.first():
        if processes.gathered(True).all():
            _distill_parts(whole, options.out, reporter)
            processes.wait_for(options.out / "report.json")
        return {}
    begun = False
    try:
        world = make_world(dataset, normalization, options.architecture, on_device=False)
        joined = _joined(whole)
        method = whole.groups[0].first.method

        def job(made: artifact.Artifact) -> Job:
            return Job(options, world, made.header["parametrization"], joined, method)

        def again(made: artifact.Artifact, spent: clocks.Spent) -> Report:
            return judged(job(made), made, spent, reporter)

        with opened(options, world, joined, reporter, again) as finished:
            if finished is not None:
                return finished
            begun = bool(processes.gathered(True).all())
            spent = _distill_parts(whole, options.out, reporter)
            folders = [options.out / f"subtask-{n}" for n in range(len(parts))]
            own = [[folders[part.number] for part in group.parts] for group in whole.groups]
            _mean_metrics(options.out, own)
            made = joining.join([artifact.load(f / "artifact.safetensors") for f in folders])
            if whole.soft:
                # Its defaults are those of all images, as `d3jax join` has them.
                expert = resolved_experts(asked, dataset, (), options.spec.expert_learning_rate)
                one = dataclasses.replace(whole.options, expert=expert)
                made, more = labelled(made, world, options.architecture, one, reporter)
                spent = {**spent, **clocks.total([spent, more])}
            return again(save(job(made), made), spent)
    finally:
        if not begun:  # finished before, or refused: the others leave
            processes.gathered(False)


def _read(options: Divided, given: Dataset | None) -> tuple[Divided, Dataset]:
    """The data, and the options with every default that depends on it filled in."""
    dataset = options.data.read(options.seed) if given is None else given
    filled = resolved(options, dataset)
    assert isinstance(filled, Divided)
    return filled, dataset


def _prepared(
    options: Divided, dataset: Dataset, normalization: Normalization, parts: Sequence[Part]
) -> Whole:
    """What every process finds out for itself, without a word of the others."""
    soft = options.parametrization.labels == "expert"
    if soft:  # its parts have hard labels, and students see the means of the whole only
        hard = dataclasses.replace(options.parametrization, labels="hard")
        plain = dataclasses.replace(options.student, with_means=False)
        options = dataclasses.replace(options, parametrization=hard, student=plain)
    experts.check(options.expert)
    groups = []
    for size in sorted({len(part.classes) for part in parts}, reverse=True):
        own = [part for part in parts if len(part.classes) == size]
        first = prepared(options, dataset, normalization, own[0], on_device=False)
        groups.append(Group(own, first))
    return Whole(options, soft, groups)


def _normalization(dataset: Dataset, parts: Sequence[Part], zca: bool) -> Normalization:
    """Normalization of all images; each process counts the pixels of a share of the subtasks."""
    if zca:
        return Normalization.of(dataset.train_images, zca)
    own = parts[jax.process_index() :: jax.process_count()]
    counts = np.zeros((dataset.image_shape[-1], 256), np.int64)
    for part in own:
        counts += data.histogram(subtasks.of(dataset, part.classes).train_images)
    # As halves, since JAX would make 32 bits of 64.
    everyones = processes.gathered(counts.view(np.int32)).view(np.int64)
    return Normalization.of_histogram(everyones.sum(0))


def _joined(whole: Whole) -> Synthetic:
    made = {p.number: (g.first.specification, p.classes) for g in whole.groups for p in g.parts}
    ordered = [made[number] for number in sorted(made)]
    joint = joining.specification([own for own, _ in ordered], [of for _, of in ordered])
    return synthetic.create({**joint, "label_kind": "probabilities"} if whole.soft else joint)


def _distill_parts(whole: Whole, out: Path, reporter: Reporter) -> clocks.Spent:
    """Distills what is not there yet into OUT/subtask-N; the time that all experts and, as
    `compile`, the compilation of the outer steps took."""
    spent, compiled = clocks.nothing(), 0.0
    for group in whole.groups:
        number, size = len(group.parts), len(group.parts[0].classes)
        reporter.say(f"{number} subtasks of {size} classes over {len(jax.devices())} devices")
        paths = _train_experts(whole, group, reporter) if group.reads else {}
        own = clocks.total(experts.training_time(path) for path in paths.values())
        everyones = {name: _sum(seconds) for name, seconds in own.items()}
        spent = clocks.total([spent, everyones])
        folders = [out / f"subtask-{part.number}" for part in group.parts]
        if processes.first():
            for folder in folders:
                folder.mkdir(exist_ok=True)
        there = all((folder / "artifact.safetensors").exists() for folder in folders)
        if processes.any_of(not there)[0]:
            checkpoints = out / "checkpoints" / f"{size}-classes"
            begun = compilation.seconds()
            _distill_group(whole, group, folders, checkpoints, reporter)
            compiled += compilation.seconds() - begun
    return {**spent, "compile": compiled}


def _sum(value: float) -> float:
    """Over all processes."""
    return float(processes.gathered(np.float32(value)).sum())


def _slots(numbers: Sequence[int]) -> Slots:
    return Slots(tuple(numbers), sharded.make_mesh())


def _images(group: Group) -> Callable[[int], Real]:
    """The images of a subtask as host arrays, as large for all of the group."""
    whole = group.parts[0].whole
    counts = np.bincount(whole.train_labels, minlength=whole.num_classes)
    most = max(int(counts[list(part.classes)].sum()) for part in group.parts)
    longest = max(int(counts[list(part.classes)].max()) for part in group.parts)

    def of(number: int) -> Real:
        world = group.job(number).world
        count: Any = np.asarray(len(world.dataset.train_labels), np.int32)
        real = world.dataset.on_host(world.normalization)
        return data.padded(real, most, longest)._replace(number=count)

    return of


def _store_path(whole: Whole, group: Group, number: int) -> tuple[Path, dict[str, Any]]:
    """The folder of a subtask's experts, and all that they depend on."""
    options = whole.options
    recipe = recipe_of(group.job(number).world, options.architecture, options.expert, options.seed)
    return store_path(whole.store, recipe), recipe


def _train_experts(whole: Whole, group: Group, reporter: Reporter) -> dict[int, Path]:
    """The folders of the experts of this process's own subtasks; all are trained then."""
    options, store, network = whole.options, whole.store, group.first.world.network
    everyone = _slots([part.number for part in group.parts])
    known = {number: _store_path(whole, group, number) for number in everyone.owned()}
    paths = {number: path for number, (path, _) in known.items()}
    missing = [n in paths and not experts.complete(paths[n]) for n in everyone.subtasks]
    todo = [n for n, wanted in zip(everyone.subtasks, processes.any_of(*missing)) if wanted]
    if not todo:
        reporter.say(f"experts: found in {store}")
        return paths
    needed = len(todo) * experts.stored_bytes(network, options.expert)
    count, epochs = options.expert.count, options.expert.epochs
    reporter.say(f"experts: {count} x {epochs} epochs for {len(todo)} subtasks, {decimal(needed)}")
    there = _sum(sum(experts.written_bytes(paths[n]) for n in todo if n in paths))
    processes.agreed(lambda: experts.make_room(store, needed - int(there)))
    slots = _slots(todo)
    # Padding rows hold subtasks of other processes too.
    local = {
        n: known.get(n) or _store_path(whole, group, n) for n in map(slots.subtask, slots.local())
    }
    with ExitStack() as locks:
        for number in slots.owned():
            path, recipe = local[number]
            path.mkdir(exist_ok=True)
            write_json(path / "config.json", recipe)
            locks.enter_context(locked(path, "training these experts"))
        training = sharded.training(
            network, options.expert, slots, slots.stack(_images(group)), options.seed,
            together=options.together,
        )  # fmt: skip
        experts.train_side_by_side(
            training,
            options.expert,
            experts.number_of_parameters(network),
            {number: path for number, (path, _) in local.items()},
            reporter,
        )
    processes.gathered(True)  # all are written
    return paths


def _distill_group(
    whole: Whole, group: Group, folders: list[Path], checkpoints: Path, reporter: Reporter
) -> None:
    """Runs the outer steps of a group; the first process writes an artifact into each folder."""
    options, first = whole.options, group.first
    slots = _slots([part.number for part in group.parts])
    images = _images(group)
    local = set(map(slots.subtask, slots.local()))
    stores = {n: Snapshots(_store_path(whole, group, n)[0]) for n in local if group.reads}

    def real(number: int) -> Real:
        if not group.reads:
            return images(number)
        trajectories: Any = Streamed(stores, np.asarray(number, np.int32))
        if options.snapshots == "device":
            trajectories = np.asarray(stores[number].read_all(), np.float32)
        return images(number)._replace(trajectories=trajectories)

    program = sharded.program(
        first.method, slots, slots.stack(real), options.seed, options.chunk,
        together=options.together,
    )  # fmt: skip
    with ExitStack() as opened:
        watching = options.tensorboard and processes.first()
        observers = [opened.enter_context(observer(watching, folder)) for folder in folders]
        opened.enter_context(profile.told(options.profile, reporter))
        state = distill.drive(
            program,
            steps=options.outer_steps,
            directories=folders,
            checkpoints=checkpoints,
            reporter=reporter,
            chunk=options.chunk,
            checkpoint_minutes=options.checkpoint_minutes,
            observe=lambda number, rows: observers[number](rows),
            profile=options.profile,
        )
    thetas = slots.rows(state.theta)
    if not processes.first():
        return
    for row, part in enumerate(group.parts):
        job = group.job(part.number)
        theta = jax.tree.map(lambda x, row=row: jnp.asarray(x[row]), thetas)
        rate = float(mean_learning_rate(theta.pop("learning_rates")))
        frozen = first.synthetic.freeze(theta, job.world.key(options.seed, Stage.FREEZE))
        artifact.save(header.made(job, frozen, rate), folders[row] / "artifact.safetensors")


def _mean_metrics(out: Path, groups: list[list[Path]]) -> None:
    """OUT/metrics.jsonl: means over the subtasks of each step, and seconds of all of them, those of
    a group counted once."""
    read = [[metrics.read(folder / METRICS) for folder in folders] for folders in groups]
    rows = []
    for same in zip(*(zip(*own, strict=True) for own in read), strict=True):
        everyone = [row for own in same for row in own]
        means = {name: sum(row[name] for row in everyone) / len(everyone) for name in everyone[0]}
        spent = clocks.total(clocks.of(own[0]) for own in same)
        rows.append({**means, "step": everyone[0]["step"], **spent})
    write_text(out / METRICS, metrics.lines(rows))

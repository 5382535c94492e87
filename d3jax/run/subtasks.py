"""Runs whose classes are cut into subtasks, distilled side by side and joined."""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from d3jax import artifact, data, evaluate, experts, synthetic
from d3jax import distill as outer
from d3jax.artifact import join as joining
from d3jax.data import Dataset, Normalization, subtasks
from d3jax.distill import metrics, sharded
from d3jax.distill.inner import mean_learning_rate
from d3jax.distill.metrics import METRICS
from d3jax.distill.sharded import Slots
from d3jax.experts.store import Snapshots, Streamed, store_path
from d3jax.host import clocks, processes
from d3jax.host.files import write_json, write_text
from d3jax.host.progress import Reporter, locked
from d3jax.keys import Stage, stage_key
from d3jax.methods.registry import Setting
from d3jax.run.join import labelled
from d3jax.run.options import Divided, Run, labels_at_start, plain, resolved, resolved_experts
from d3jax.run.stages import (
    Job,
    Part,
    Report,
    expert_recipe,
    judged,
    make_world,
    observer,
    opened,
    origin,
    parts_of,
)
from d3jax.types import Method, Network, Real, Synthetic


class Group(NamedTuple):
    """Subtasks of as many classes, which run as one program.

    Padding a subtask's classes would change what it computes (batch norm in the decoder, the MMD's
    sum); its images are padded instead, which changes nothing, since a step draws below the counts.
    """

    parts: list[Part]
    specifications: list[dict[str, Any]]
    network: Network
    data: Synthetic
    method: Method


class Whole(NamedTuple):
    """A run over all subtasks that may begin."""

    options: Divided  # of each subtask
    soft: bool  # label the whole by an expert of all classes
    dataset: Dataset
    normalization: Normalization
    groups: list[Group]


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
        with opened(options, world, joined, reporter) as finished:
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
                expert = resolved_experts(asked, dataset)
                one = dataclasses.replace(whole.options, expert=expert)
                made, more = labelled(made, world, options.architecture, one, reporter)
                spent = clocks.total([spent, more])
            method = whole.groups[0].method
            job = Job(options, world, made.header["parametrization"], joined, method)
            return judged(job, made, spent, reporter)
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
    options: Divided,
    dataset: Dataset,
    normalization: Normalization,
    parts: Sequence[Part],
) -> Whole:
    """What every process finds out for itself, without a word of the others."""
    soft = options.parametrization.labels == "expert"
    hard = dataclasses.replace(options.parametrization, labels="hard")
    plain = dataclasses.replace(options.student, with_means=False)
    each = dataclasses.replace(options, parametrization=hard, student=plain) if soft else options
    experts.check(options.expert)
    evaluate.check(options.student)
    sizes = sorted({len(part.classes) for part in parts}, reverse=True)
    groups = []
    for size in sizes:
        own = [part for part in parts if len(part.classes) == size]
        specifications = [
            each.parametrization.specification(subtasks.of(dataset, part.classes), normalization)
            for part in own
        ]
        network = options.architecture.create(dataset.image_shape, size)
        data_ = synthetic.create(specifications[0])
        setting = Setting(
            network, data_, each.outer_steps, partial(stage_key, each.seed), labels_at_start(each)
        )
        method = each.spec.build(each.method, setting)
        groups.append(Group(own, specifications, network, data_, method))
    return Whole(each, soft, dataset, normalization, groups)


def _normalization(dataset: Dataset, parts: Sequence[Part], zca: bool) -> Normalization:
    """Of all images; each process counts the pixels of a share of the subtasks."""
    if zca:
        return Normalization.of(dataset.train_images, zca)
    own = parts[jax.process_index() :: jax.process_count()]
    counts = np.zeros((dataset.image_shape[-1], 256), np.int64)
    for part in own:
        counts += data.histogram(subtasks.of(dataset, part.classes).train_images)
    # As halves, since JAX would make 32 bits of 64.
    everyones = processes.gathered(counts.view(np.int32)).view(np.int64)
    return Normalization.of_histogram(everyones.sum(0))


def _joined(job: Whole) -> Synthetic:
    pairs = [pair for g in job.groups for pair in zip(g.parts, g.specifications, strict=True)]
    pairs.sort(key=lambda pair: pair[0].number)
    classes = [part.classes for part, _ in pairs]
    whole = joining.specification([made for _, made in pairs], classes)
    return synthetic.create({**whole, "label_kind": "probabilities"} if job.soft else whole)


def _distill_parts(job: Whole, out: Path, reporter: Reporter) -> clocks.Spent:
    """Distills what is not there yet into OUT/subtask-N; the time that all experts took."""
    spent = clocks.nothing()
    for group in job.groups:
        number, size = len(group.parts), len(group.parts[0].classes)
        reporter.say(f"{number} subtasks of {size} classes over {len(jax.devices())} devices")
        paths = _train_experts(job, group, reporter)
        own = clocks.total(experts.training_time(path) for path in paths.values())
        everyones = {name: _sum(seconds) for name, seconds in own.items()}
        spent = clocks.total([spent, everyones])
        folders = [out / f"subtask-{part.number}" for part in group.parts]
        if processes.first():
            for folder in folders:
                folder.mkdir(exist_ok=True)
        there = all((folder / "artifact.safetensors").exists() for folder in folders)
        if processes.any_of(not there)[0]:
            _distill_group(job, group, folders, out / "checkpoints" / f"{size}-classes", reporter)
    return spent


def _sum(value: float) -> float:
    """Over all processes."""
    return float(processes.gathered(np.float32(value)).sum())


def _slots(numbers: Sequence[int]) -> Slots:
    return Slots(tuple(numbers), sharded.make_mesh())


def _images(job: Whole, group: Group) -> Callable[[int], Real]:
    """The images of a subtask as host arrays, as large for all of the group."""
    counts = np.bincount(job.dataset.train_labels, minlength=job.dataset.num_classes)
    most = max(int(counts[list(part.classes)].sum()) for part in group.parts)
    longest = max(int(counts[list(part.classes)].max()) for part in group.parts)
    parts = {part.number: part for part in group.parts}

    def of(number: int) -> Real:
        own = subtasks.of(job.dataset, parts[number].classes)
        real = data.host_arrays(
            own.train_images, own.train_labels, own.num_classes, job.normalization, own.class_names
        )
        count: Any = np.asarray(len(own.train_labels), np.int32)
        return data.padded(real, most, longest)._replace(number=count)

    return of


def _train_experts(job: Whole, group: Group, reporter: Reporter) -> dict[int, Path]:
    """The folders of the experts of this process's own subtasks; all are trained then."""
    options, store = job.options, _store(job)
    everyone = _slots([part.number for part in group.parts])
    recipe = cache(partial(_recipe, job, group))
    path = cache(lambda number: store_path(store, recipe(number)))
    missing = [number in everyone.owned() and not experts.complete(path(number))
               for number in everyone.subtasks]  # fmt: skip
    todo = [n for n, wanted in zip(everyone.subtasks, processes.any_of(*missing)) if wanted]
    needed = len(todo) * experts.stored_bytes(group.network, options.expert)
    if not todo:
        reporter.say(f"experts: found in {store}")
        return {number: path(number) for number in everyone.owned()}
    count, epochs = options.expert.count, options.expert.epochs
    reporter.say(
        f"experts: {count} x {epochs} epochs for {len(todo)} subtasks, {needed / 1e6:.1f} MB"
    )
    there = _sum(sum(experts.written_bytes(path(n)) for n in todo if n in everyone.owned()))
    processes.agreed(lambda: experts.make_room(store, needed - int(there)))
    slots = _slots(todo)
    with ExitStack() as locks:
        for number in slots.owned():
            path(number).mkdir(exist_ok=True)
            write_json(path(number) / "config.json", recipe(number))
            locks.enter_context(locked(path(number), "training these experts"))
        training = sharded.training(
            group.network, options.expert, slots, slots.stack(_images(job, group)), options.seed,
            together=options.together,
        )  # fmt: skip
        local = {slots.subtask(slot) for slot in slots.local()}
        experts.train_side_by_side(
            training,
            options.expert,
            experts.number_of_parameters(group.network),
            {number: path(number) for number in local},
            reporter,
        )
    processes.gathered(True)  # all are written
    return {number: path(number) for number in everyone.owned()}


def _store(job: Whole) -> Path:
    assert job.options.experts is not None
    return job.options.experts


def _recipe(job: Whole, group: Group, number: int) -> dict[str, Any]:
    options, network = job.options, group.network
    part = next(part for part in group.parts if part.number == number)
    own = subtasks.of(job.dataset, part.classes)
    return expert_recipe(
        own, job.normalization, network, options.architecture, options.expert, options.seed, number
    )


def _distill_group(
    job: Whole, group: Group, folders: list[Path], checkpoints: Path, reporter: Reporter
) -> None:
    """Runs the outer steps of a group; the first process writes an artifact into each folder."""
    options = job.options
    slots = _slots([part.number for part in group.parts])
    images = _images(job, group)
    recipe = partial(_recipe, job, group)
    local = {slots.subtask(slot) for slot in slots.local()}
    stores = {n: Snapshots(store_path(_store(job), recipe(n))) for n in local}

    def real(number: int) -> Real:
        trajectories: Any = Streamed(stores, np.asarray(number, np.int32))
        if options.snapshots == "device":
            trajectories = np.asarray(stores[number].read_all(), np.float32)
        return images(number)._replace(trajectories=trajectories)

    program = sharded.program(
        group.method, slots, slots.stack(real), options.seed, options.chunk,
        together=options.together,
    )  # fmt: skip
    with ExitStack() as opened:
        watching = options.tensorboard and processes.first()
        observers = [opened.enter_context(observer(watching, folder)) for folder in folders]
        state = outer.drive(
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
    for row, (part, specification) in enumerate(
        zip(group.parts, group.specifications, strict=True)
    ):
        theta = jax.tree.map(lambda x, row=row: jnp.asarray(x[row]), thetas)
        made = artifact.create(
            group.data.freeze(
                {name: x for name, x in theta.items() if name != "learning_rates"},
                stage_key(options.seed, Stage.FREEZE, part.number),
            ),
            method=options.spec.name,
            parametrization=specification,
            student_learning_rate=float(mean_learning_rate(theta["learning_rates"])),
            protocol=plain(options.student),
            dtype=options.storage,
            **origin(
                options,
                [job.dataset.class_names[k] for k in part.classes],
                job.normalization,
                job.dataset,
                part,
            ),
        )
        artifact.save(made, folders[row] / "artifact.safetensors")


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

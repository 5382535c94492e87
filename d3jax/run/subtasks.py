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
from d3jax.data import subtasks
from d3jax.distill import metrics, sharded
from d3jax.distill.metrics import METRICS
from d3jax.distill.sharded import Slots
from d3jax.experts.store import Snapshots, Streamed, store_path
from d3jax.host import clocks, processes
from d3jax.host.files import write_json, write_text
from d3jax.host.progress import Reporter, locked
from d3jax.keys import Stage, stage_key
from d3jax.run import config, resolve
from d3jax.run.frame import Part, expert_recipe, frozen, in_folder, make_world, observer, origin
from d3jax.run.join import labelled
from d3jax.run.matching import by_students, divided, method_of
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


class Job(NamedTuple):
    """A run over all subtasks that may begin."""

    options: config.Federated  # of each subtask
    soft: bool  # label the whole by an expert of all classes
    dataset: data.Dataset
    normalization: data.Normalization
    groups: list[Group]


def distill(options: config.Federated, reporter: Reporter) -> dict[str, Any]:
    """Runs `d3jax distill d3|mtt --subtasks ...`, on all devices of all processes.

    OUT/subtask-N holds what a job of its own would have left of subtask N: artifact and metrics.
    The first process joins and judges them, and returns the report; the others wait for that.
    """
    asked = options.expert
    options, dataset = processes.agreed(partial(_read, options))
    assert options.subtasks is not None
    parts = divided(options.subtasks, dataset)
    normalization = _normalization(dataset, parts, options.data.zca)
    job = processes.agreed(partial(_prepared, options, dataset, normalization, parts))
    if not processes.first():
        if processes.gathered(True).all():
            _distill_parts(job, options.out, reporter)
            processes.wait_for(options.out / "report.json")
        return {}
    begun = False

    def distilled() -> tuple[artifact.Artifact, clocks.Spent]:
        nonlocal begun
        begun = bool(processes.gathered(True).all())
        spent = _distill_parts(job, options.out, reporter)
        folders = [options.out / f"subtask-{n}" for n in range(_number(job))]
        _mean_metrics(options.out, [[folders[p.number] for p in g.parts] for g in job.groups])
        whole = joining.join([artifact.load(f / "artifact.safetensors") for f in folders])
        if job.soft:
            # Its defaults are those of all images, as `d3jax join` has them.
            own = dataclasses.replace(options, expert=resolve.expert(asked, dataset))
            whole, more = labelled(whole, world, options.architecture, own, reporter)
            spent = clocks.total([spent, more])
        return whole, spent

    try:
        world = make_world(job.dataset, job.normalization, options.architecture, on_device=False)
        judge, compare = by_students(options, world, reporter)
        return in_folder(options, world, _joined(job), distilled, judge, compare, reporter)
    finally:
        if not begun:  # finished before, or refused: the others leave
            processes.gathered(False)


def _read(options: config.Federated) -> tuple[config.Federated, data.Dataset]:
    """The data, and the options with every default that depends on it filled in."""
    dataset = options.data.read(options.seed)
    return resolve.matching(options, dataset), dataset


def _prepared(
    options: config.Federated,
    dataset: data.Dataset,
    normalization: data.Normalization,
    parts: Sequence[Part],
) -> Job:
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
        method = method_of(network, data_, each)
        groups.append(Group(own, specifications, network, data_, method))
    return Job(each, soft, dataset, normalization, groups)


def _normalization(dataset: data.Dataset, parts: Sequence[Part], zca: bool) -> data.Normalization:
    """Of all images; each process counts the pixels of a share of the subtasks."""
    if zca:
        return data.Normalization.of(dataset.train_images, zca)
    own = parts[jax.process_index() :: jax.process_count()]
    counts = np.zeros((dataset.image_shape[-1], 256), np.int64)
    for part in own:
        counts += data.histogram(subtasks.of(dataset, part.classes).train_images)
    # As halves, since JAX would make 32 bits of 64.
    everyones = processes.gathered(counts.view(np.int32)).view(np.int64)
    return data.Normalization.of_histogram(everyones.sum(0))


def _number(job: Job) -> int:
    return sum(len(group.parts) for group in job.groups)


def _joined(job: Job) -> Synthetic:
    pairs = [pair for g in job.groups for pair in zip(g.parts, g.specifications, strict=True)]
    pairs.sort(key=lambda pair: pair[0].number)
    classes = [part.classes for part, _ in pairs]
    whole = joining.specification([made for _, made in pairs], classes)
    return synthetic.create({**whole, "label_kind": "probabilities"} if job.soft else whole)


def _distill_parts(job: Job, out: Path, reporter: Reporter) -> clocks.Spent:
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


def _images(job: Job, group: Group) -> Callable[[int], Real]:
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


def _train_experts(job: Job, group: Group, reporter: Reporter) -> dict[int, Path]:
    """The folders of the experts of this process's own subtasks; all are trained then."""
    options, store = job.options, _store(job)
    everyone = _slots([part.number for part in group.parts])
    recipe = cache(partial(_recipe, job, {part.number: part for part in group.parts}))
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


def _store(job: Job) -> Path:
    assert job.options.experts is not None
    return job.options.experts


def _recipe(job: Job, parts: dict[int, Part], number: int) -> dict[str, Any]:
    options, own = job.options, subtasks.of(job.dataset, parts[number].classes)
    return expert_recipe(
        own, job.normalization, options.architecture, options.expert, options.seed, number
    )


def _distill_group(
    job: Job, group: Group, folders: list[Path], checkpoints: Path, reporter: Reporter
) -> None:
    """Runs the outer steps of a group; the first process writes an artifact into each folder."""
    options = job.options
    slots = _slots([part.number for part in group.parts])
    images = _images(job, group)
    recipe = partial(_recipe, job, {part.number: part for part in group.parts})
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
            frozen(group.data, theta, stage_key(options.seed, Stage.FREEZE, part.number)),
            method=resolve.name(options),
            parametrization=specification,
            student_learning_rate=float(jnp.exp(jnp.mean(theta["learning_rates"]))),
            protocol=config.plain(options.student),
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

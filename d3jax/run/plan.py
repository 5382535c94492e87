"""What a run would take, before it begins: `d3jax plan`, and `d3jax distill --dry-run`."""

import dataclasses
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from rich.filesize import decimal
from rich.table import Table

from d3jax import distill, experts
from d3jax.data import Dataset, Normalization, subtasks
from d3jax.evaluate.baselines import Stored
from d3jax.experts.epoch import epoch_function
from d3jax.host import compilation
from d3jax.host.progress import Reporter
from d3jax.networks import parameter_count
from d3jax.run import effort, machine
from d3jax.run.commands import Plan
from d3jax.run.job import prepared, reads_of
from d3jax.run.options import Divided, Run, Studied
from d3jax.run.pictures import plain_table
from d3jax.run.resolve import resolved
from d3jax.types import InputError, Method, Network, PyTree, Real

_STEPS = 3  # timed
_IMAGES = 64  # in the stand-in for real data, at most
_CHECKPOINTS = 2  # that are kept


class Piece(NamedTuple):
    """Subtasks of equal size, or a whole run."""

    number: int  # of subtasks
    classes: int
    images: int  # of the largest
    network: Network
    method: Method
    experts: tuple[experts.Options, ...]  # of each subset of a sequence, one after another
    snapshots: tuple[int, int]  # experts and epochs that distillation reads at once


def plan(options: Plan, reporter: Reporter, dataset: Dataset | None = None) -> dict[str, Any]:
    """What `d3jax distill` with the same options would take; also printed.

    Disk bytes of the experts and of checkpoints; bytes of each device, from the compiled outer
    step's memory analysis and the sizes of what lies there; bytes of this machine; seconds, from
    three timed steps of the largest subtask and of its experts on this machine's first device, on
    random images, times what a device has of them. The seconds of students are those of as many
    images through the experts; where there are none, or an artifact's own steps are replayed, they
    are not in it, nor is an expert of all classes for --labels expert.

    dataset: instead of the one that the options name.

    Raises:
      InputError: bad options, or the run does not fit; then nothing is timed.
    """
    run = options.method
    for name in ("devices", "classes", "images"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")
    dataset = run.data.read(run.seed) if dataset is None else dataset
    dataset = _as_if(dataset, options.classes, options.images)
    devices = options.devices or len(jax.devices())
    run, pieces = pieces_of(run, dataset)
    store = run.experts or run.out
    with reporter.working("compiling the outer step"):
        prepared = [Prepared(piece, run, dataset.image_shape) for piece in pieces]
    device = max(one.device_bytes(devices) for one in prepared)
    rows: dict[str, Any] = {
        "subtasks": sum(piece.number for piece in pieces),
        "devices": devices,
        "subtasks_per_device": max(-(-piece.number // devices) for piece in pieces),
        "experts_bytes": sum(_disk(piece) for piece in pieces),
        "checkpoint_bytes": sum(one.piece.number * one.checkpoint_bytes for one in prepared),
        "disk_bytes_free": experts.free_bytes(store),
        "device_bytes": device,
        "device_bytes_there": _device_memory(),
        "host_bytes": _host_memory(prepared, dataset, device),
        "host_bytes_there": _machine_memory(),
    }
    refusal = _refusal(rows, store)
    if refusal is None and options.timed:
        with reporter.working("timing outer steps"):
            rows["seconds_per_step"] = [one.seconds_per_step() for one in prepared]
        with reporter.working("compiling and timing the experts' steps"):
            rows["seconds"] = _seconds(run, dataset, prepared, rows, devices)
    reporter.console.print(_table(rows))
    if refusal is not None:
        raise InputError(refusal)
    return rows


def _seconds(
    run: Run, dataset: Dataset, prepared: "list[Prepared]", rows: dict[str, Any], devices: int
) -> dict[str, float]:
    """Of every part of the run, as far as it can be told."""
    turns = [-(-one.piece.number // devices) for one in prepared]
    trained = [one.expert_seconds() for one in prepared]
    steps = zip(rows["seconds_per_step"], turns, strict=True)
    seconds = {
        "experts": sum(own * number for own, number in zip(trained, turns, strict=True)),
        "compile": sum(one.compile_seconds for one in prepared),
        "distill": run.outer_steps * sum(own * number for own, number in steps),
    }
    pieces = [one.piece for one in prepared]
    seen = sum(effort.of_experts(o, piece.images) for piece in pieces for o in piece.experts)
    if isinstance(run, Studied) and seen:
        each = sum(trained) / seen  # of an image through the network
        size = _stored(run, prepared)
        least = effort.students_of_baselines(run, size, dataset)
        items = sum(piece.number * piece.method.synthetic.num_items for piece in pieces)
        seconds["students"] = each * effort.of_students(run, items)
        judged = effort.of_all_baselines(run, least, size, dataset)
        seconds["baselines"] = each * judged
    return {**seconds, "total": sum(seconds.values())}


def _stored(run: Run, prepared: "list[Prepared]") -> Stored:
    """The size of what would be distilled."""
    floats = sum(one.piece.number * one.stored_floats for one in prepared)
    rounded = run.parametrization.rounding
    storage = run.storage if rounded in (None, "none") else rounded
    return Stored(floats, {"float16": 2, "float32": 4, "int8": 1}[storage] * floats)


def _as_if(dataset: Dataset, classes: int | None, images: int | None) -> Dataset:
    """A data set of so many classes and images, of which only shapes count from here on."""
    classes = classes or dataset.num_classes
    images = images or len(dataset.train_labels) * classes // dataset.num_classes
    if classes < 1 or images < classes:
        raise InputError(f"{images} images are not one for each of {classes} classes")
    same = classes == dataset.num_classes and images == len(dataset.train_labels)
    labels = np.arange(images, dtype=np.int32) % classes
    return dataset._replace(
        train_images=np.broadcast_to(np.uint8(0), (images, *dataset.image_shape)),
        train_labels=dataset.train_labels if same else labels,
        class_names=dataset.class_names
        if classes == dataset.num_classes
        else tuple(map(str, range(classes))),
    )


def pieces_of(run: Run, dataset: Dataset) -> tuple[Run, list[Piece]]:
    """The run with its defaults filled in, and what it consists of."""
    run = resolved(run, dataset)
    parts: Sequence[Sequence[int]] = [range(dataset.num_classes)]
    if isinstance(run, Divided) and run.subtasks is not None:
        parts = subtasks.split(run.subtasks, dataset.num_classes)
        parts = parts if run.subtask is None else parts[run.subtask : run.subtask + 1]
        if run.parametrization.labels == "expert":
            hard = dataclasses.replace(run.parametrization, labels="hard")
            run = dataclasses.replace(run, parametrization=hard)
    sizes = sorted({len(part) for part in parts}, reverse=True)
    groups = [[part for part in parts if len(part) == size] for size in sizes]
    return run, [_piece(run, dataset, group) for group in groups]


def _piece(run: Run, dataset: Dataset, parts: Sequence[Sequence[int]]) -> Piece:
    counts = np.bincount(dataset.train_labels, minlength=dataset.num_classes)
    images = max(int(counts[list(part)].sum()) for part in parts)
    own = _as_if(dataset, len(parts[0]), images)
    half = np.full(dataset.image_shape[2], 0.5, np.float32)
    normalization = Normalization(half, half)
    job = prepared(run, own, normalization, on_device=False)
    reads = [reads_of(run, dataset, turn) for turn in range(run.spec.turns(run.method))]
    trained = tuple(one.experts for one in reads if one is not None)
    read = (0, 0)
    if trained:
        kept = max(one.kept for one in reads if one is not None)
        epochs = max(o.epochs + 1 if o.keep == "all" else 1 for o in trained)
        read = (trained[0].count - kept, epochs)
    network = job.world.network
    return Piece(len(parts), own.num_classes, images, network, job.method, trained, read)


def _disk(piece: Piece) -> int:
    each = sum(experts.stored_bytes(piece.network, options) for options in piece.experts)
    return piece.number * each


def _device_memory() -> int:
    """Bytes that the first device may use: its own, or this machine's, where it is a CPU."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    return _machine_memory() // jax.local_device_count()


def _machine_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _host_memory(prepared: "list[Prepared]", dataset: Dataset, device_bytes: int) -> int:
    """Bytes of this machine's memory: what this process has needed, compiling; all images, the
    largest snapshots while they are read, and, where the device is a CPU, the device's."""
    images = (len(dataset.train_labels) + len(dataset.test_labels)) * math.prod(dataset.image_shape)
    snapshots = max(one.snapshot_bytes for one in prepared)
    on_cpu = jax.local_devices()[0].platform == "cpu"
    return machine.used()["host_peak_bytes"] + images + snapshots + on_cpu * device_bytes


def _refusal(rows: dict[str, Any], store: Path) -> str | None:
    if rows["experts_bytes"] + rows["checkpoint_bytes"] > rows["disk_bytes_free"]:
        return (
            f"the run does not fit: its experts need {decimal(rows['experts_bytes'])}, its "
            f"checkpoints {decimal(rows['checkpoint_bytes'])} in {store}, where "
            f"{decimal(rows['disk_bytes_free'])} are free; fewer experts or epochs, --expert.dtype "
            f"bfloat16, or fewer items need less"
        )
    if rows["device_bytes"] > rows["device_bytes_there"]:
        return (
            f"the run does not fit: it needs {decimal(rows['device_bytes'])} on a device that has "
            f"{decimal(rows['device_bytes_there'])}; more devices, --snapshots disk, or fewer "
            f"images together (--mmd-classes, --inner-batch-size) need less"
        )
    return None


class _Fake:
    """Expert snapshots that are computed: no step is slower or faster for it."""

    def __init__(self, shape: tuple[int, int, int], start: Array):
        self.shape, self._start = shape, start

    def __getitem__(self, index: tuple[Any, Any]) -> Array:
        expert, epoch = (jnp.asarray(i, self._start.dtype)[..., None] for i in index)
        return self._start * (1 + (epoch % self.shape[1] + expert) / 100)


jax.tree_util.register_pytree_node(
    _Fake, lambda fake: ((fake._start,), fake.shape), lambda shape, leaves: _Fake(shape, leaves[0])
)


class Prepared:
    """A piece with its outer step compiled."""

    def __init__(self, piece: Piece, run: Run, image_shape: tuple[int, int, int]):
        self.piece, self._run, self._shape = piece, run, image_shape
        self._parameters = experts.number_of_parameters(piece.network)
        self._program = distill.alone(piece.method, jax.random.key(0), self._real(), _STEPS)
        # Only its shapes: where nothing is timed, a state may be larger than this machine.
        self._state = jax.eval_shape(piece.method.init, jax.random.key(0), self._real())
        begun = time.perf_counter()
        lowered = self._program.function.lower(*self._program.arguments(self._state, 0))
        self._compiled = lowered.compile()
        self.compile_seconds = time.perf_counter() - begun
        self.checkpoint_bytes = _CHECKPOINTS * _bytes(self._state)
        full = getattr(run, "snapshots", "device") == "device"
        self.snapshot_bytes = 4 * math.prod(piece.snapshots) * self._parameters if full else 0

    @property
    def stored_floats(self) -> int:
        """What the artifact of a subtask holds."""
        data, key = self.piece.method.synthetic, jax.random.key(0)
        theta = {n: x for n, x in self._state.theta.items() if n != "learning_rates"}
        return parameter_count(jax.eval_shape(data.freeze, theta, key))

    def _real(self) -> Real:
        piece = self.piece
        images = min(piece.images, _IMAGES)
        generator = np.random.default_rng(0)
        pixels = generator.integers(0, 256, (images, *self._shape), np.uint8)
        channels = self._shape[2]
        half: Array = jnp.full((channels,), 0.5, jnp.float32)
        index = generator.integers(0, images, (piece.classes, 8))
        count, epochs = piece.snapshots
        start = experts.fresh_parameters(piece.network)(jax.random.key(0))
        return Real(
            jnp.asarray(pixels),
            jnp.asarray(np.arange(images) % piece.classes, jnp.int32),
            jnp.asarray(index, jnp.int32),
            jnp.full((piece.classes,), 8, jnp.int32),
            half,
            half,
            _Fake((count, epochs, len(start)), start) if count else None,
        )

    def device_bytes(self, devices: int) -> int:
        """What a device holds of its subtasks, and what one step of one of them needs besides."""
        piece, here = self.piece, -(-self.piece.number // devices)
        pixel = 4 if self._run.data.zca else 1
        held = piece.images * (math.prod(self._shape) * pixel + 8) + _bytes(self._state)
        held += self.snapshot_bytes
        return here * held + self._compiled.memory_analysis().temp_size_in_bytes

    def seconds_per_step(self) -> float:
        """Of one subtask, the first step not counted."""
        begin = compilation.once(self.piece.method.init)(jax.random.key(0), self._real())
        warm = self._compiled(*self._program.arguments(begin, 1))
        state = jax.block_until_ready(warm.state)
        begun = time.perf_counter()
        done = jax.block_until_ready(self._compiled(*self._program.arguments(state, 1 + _STEPS)))
        return (time.perf_counter() - begun) / int(done.done)

    def expert_seconds(self) -> float:
        """Of all experts of one subtask, from an epoch of three steps."""
        return sum(self._seconds_of(options) for options in self.piece.experts)

    def _seconds_of(self, options: experts.Options) -> float:
        steps = experts.data_defaults(options, self.piece.images)
        size, together = steps.batch_size, min(options.at_once, options.count)
        real = self._real()
        few = jnp.arange(_STEPS * size, dtype=jnp.int32) % real.images.shape[0]
        real = real._replace(images=real.images[few], labels=real.labels[few], trajectories=None)
        descent = experts.descent(options)
        epoch = jax.jit(epoch_function(self.piece.network, experts.kinds(options), *steps, descent))
        keys, first = jax.random.split(jax.random.key(0), together), jnp.asarray(1, jnp.int32)
        params = jax.vmap(experts.fresh_parameters(self.piece.network))(keys)
        state = experts.at_rest(params, options)
        jax.block_until_ready(epoch(state, keys, real, first))
        begun = time.perf_counter()
        jax.block_until_ready(epoch(state, keys, real, first))
        seconds = (time.perf_counter() - begun) / _STEPS
        epochs = options.epochs * -(-options.count // together)
        return seconds * max(1, self.piece.images // size) * epochs


def _bytes(tree: PyTree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


_PARTS = {
    "experts": "time of experts",
    "compile": "compilation of the outer step, the first time",
    "distill": "time of outer steps",
    "students": "time of students, about",
    "baselines": "time of baselines, about",
    "total": "time in all, about",
}


def _table(rows: dict[str, Any]) -> Table:
    table = plain_table("What the run would take", show_header=False)
    on = f"{rows['subtasks']} on {rows['devices']} devices"
    table.add_row("subtasks", f"{on}, {rows['subtasks_per_device']} a device")
    free = decimal(rows["disk_bytes_free"])
    table.add_row("experts on disk", f"{decimal(rows['experts_bytes'])} of {free}")
    table.add_row("checkpoints on disk", decimal(rows["checkpoint_bytes"]))
    for what, name in (("memory of a device", "device"), ("memory of this machine", "host")):
        needed, there = rows[f"{name}_bytes"], rows[f"{name}_bytes_there"]
        table.add_row(what, f"{decimal(needed)} of {decimal(there)}")
    if "seconds" in rows:
        each = ", ".join(f"{value:.3g} s" for value in rows["seconds_per_step"])
        table.add_row("an outer step of a subtask", each)
        for name, seconds in rows["seconds"].items():
            table.add_row(_PARTS[name], _duration(seconds))
    return table


def _duration(seconds: float) -> str:
    """In the largest unit of which there is at least one."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"

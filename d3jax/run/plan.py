"""What a run would take, before it begins: `d3jax plan`, and `d3jax distill --dry-run`."""

import math
import os
from pathlib import Path
from typing import Any

import jax
from rich.filesize import decimal
from rich.table import Table

from d3jax import experts
from d3jax.data import Dataset
from d3jax.evaluate.baselines import Stored
from d3jax.host.progress import Reporter
from d3jax.run import effort, machine
from d3jax.run.commands import Plan
from d3jax.run.options import Run, Studied
from d3jax.run.pieces import Piece, Prepared, as_if, pieces_of
from d3jax.run.tables import plain_table
from d3jax.types import InputError, check_at_least_one


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
    check_at_least_one(options, "devices", "classes", "images")
    dataset = run.data.read(run.seed) if dataset is None else dataset
    dataset = as_if(dataset, options.classes, options.images)
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
    """Seconds of every part of the run, as far as it can be told."""
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

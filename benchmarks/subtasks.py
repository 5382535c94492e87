"""Subtasks over devices and processes: wall and CPU seconds of an outer step of all of them.

Four subtasks of ten classes: MTT's step on CIFAR-10's shape, ConvNet depth 3, width 32, T = 10, 1
image per class, on random images and weights. Each row is a run of its own over so many processes
with so many CPU devices each: on a machine of two cores they show what spreading costs, not what it
gains. `alone` is four runs one after another without a mesh; `together` is under vmap.

Weak scaling, on paper (a device for each subtask): subtasks exchange nothing but each chunk's
metrics and, at the end, what they have distilled. So on 8 and 64 devices a run of 5000 steps takes
as long as on one, but for the bytes of the metrics (some hundred a chunk and subtask) and those of
the join (`join_bytes` of a subtask), which 10 Gbit/s carry in milliseconds.
"""

import json
import os
import socket
import subprocess
import sys
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from benchmarks.suite import Cases, Row, Table, bars
from benchmarks.world import CLASSES, random_real
from d3jax import distill, networks
from d3jax.distill import sharded
from d3jax.distill.sharded import Slots
from d3jax.host import processes
from d3jax.keys import Stage, stage_key
from d3jax.methods.mtt import MTTOptions, mtt
from d3jax.synthetic import pixels
from d3jax.types import Method, Real

SHAPE, SUBTASKS, CHUNK = (32, 32, 3), 4, 10
# (work, processes, devices of each)
ROWS = [
    ("alone", 1, 1),
    ("one after another", 1, 1),
    ("together", 1, 1),
    ("one after another", 1, 2),
    ("one after another", 1, 4),
    ("one after another", 2, 1),
    ("one after another", 4, 1),
]


def _method() -> tuple[Method, Real]:
    network = networks.create("convnet", image_shape=SHAPE, num_classes=CLASSES, width=32)
    data = pixels.create(image_shape=SHAPE, num_classes=CLASSES, num_items=CLASSES)
    options = MTTOptions(inner_steps=10, max_start_epoch=2)
    return mtt(network, data, options, 5000), random_real(SHAPE, network=network)


def measure(work: str, chunks: int) -> dict[str, Any]:
    """Seconds of an outer step of all subtasks, in this process's part of a run."""
    method, real = _method()
    reals = [real] * SUBTASKS
    if work == "alone":
        step = jax.jit(distill.chunk_function(method, CHUNK))
        number = jnp.asarray(CHUNK, jnp.int32)
        keys = [stage_key(0, Stage.DISTILL, n) for n in range(SUBTASKS)]
        states = [distill.start(method, key, real) for key in keys]

        def advance(until: int) -> Any:
            for n, key in enumerate(keys):
                states[n] = jax.block_until_ready(step(key, states[n], real, number).state)
            return states
    else:
        slots = Slots(tuple(range(SUBTASKS)), sharded.make_mesh())
        stacked = slots.stack(lambda n: jax.tree.map(np.asarray, reals[n]))
        program = sharded.program(method, slots, stacked, 0, CHUNK, together=work == "together")
        holder = [program.start()]

        def advance(until: int) -> Any:
            chunk = program.function(*program.arguments(holder[0], until))
            holder[0] = chunk.state
            program.rows((chunk.metrics, chunk.done))  # as the outer loop does
            return jax.block_until_ready(chunk.state)

    advance(CHUNK)
    wall, cpu = time.monotonic(), time.process_time()
    state: Any = None
    for chunk in range(chunks):
        state = advance(CHUNK * (chunk + 2))
    steps = CHUNK * chunks
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    leaves = jax.tree.leaves(state[0].theta if work == "alone" else state.theta)
    held = sum(x.size * x.dtype.itemsize for x in leaves) // (1 if work == "alone" else SUBTASKS)
    everyone = float(processes.gathered(np.float32(cpu)).sum())
    return {"wall_seconds": wall / steps, "cpu_seconds": everyone / steps, "join_bytes": held}


def row(work: str, number: int, devices: int, chunks: int) -> dict[str, Any]:
    """Measures in new processes; the first prints what it found."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    code = (
        "import json, sys, jax; from benchmarks import subtasks\n"
        f"if {number} > 1: jax.distributed.initialize({address!r}, {number}, int(sys.argv[1]))\n"
        f"found = subtasks.measure({work!r}, {chunks})\n"
        "if jax.process_index() == 0: print('FOUND', json.dumps(found))\n"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", code, str(i)], env=environment, text=True,
                         stdout=subprocess.PIPE)
        for i in range(number)
    ]  # fmt: skip
    said = [run.communicate()[0] for run in runs]
    if any(run.returncode for run in runs):
        raise SystemExit(f"{work} over {number} processes failed")
    found = json.loads(said[0].partition("FOUND ")[2])
    return {"subtasks": work, "processes": number, "devices": devices * number, **found}


def cases(quick: bool) -> Cases:
    """Every row; quick: one chunk of each, not three."""
    return {
        f"{work}, {number} x {devices} devices": partial(row, work, number, devices,
                                                         1 if quick else 3)
        for work, number, devices in ROWS
    }  # fmt: skip


def table(rows: list[Row]) -> Table:
    """Seconds of a step of all four."""
    header = ["4 subtasks", "processes", "devices", "wall s", "CPU s"]
    return header, [
        [r["subtasks"], r["processes"], r["devices"], f"{r['wall_seconds']:.3f}",
         f"{r['cpu_seconds']:.3f}"]
        for r in rows
    ]  # fmt: skip


def remarks(rows: list[Row]) -> str:
    """Weak scaling on paper, of the first row's step."""
    alone = next((row for row in rows if row["subtasks"] == "alone"), None)
    if alone is None:
        return ""
    step, size = alone["wall_seconds"] / SUBTASKS, alone["join_bytes"]
    joins = " and ".join(f"{8 * size * devices / 1e10:.4f} s on {devices}" for devices in (8, 64))
    return (
        f"On paper, a subtask for each device: 5000 steps take {5000 * step:,.0f} s on any number "
        f"of devices like this one, and the join of {size:,} bytes each, at 10 Gbit/s, {joins}."
    )


def plot(rows: list[Row]) -> Figure:
    """Wall seconds."""
    return bars([r["work"] for r in rows], [r["wall_seconds"] for r in rows], "wall seconds")

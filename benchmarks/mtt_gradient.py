"""Trajectory matching by exact backpropagation and by TESLA's form: memory, seconds, accuracy.

MNIST, 10 000 images, ConvNet width 32, 1 image per class, 2 experts of 5 epochs, T inner steps that
match two epochs of theirs; images' and students' rates as in `experiments/mnist_mtt.py`.
Temporary bytes are those of a compiled chunk of outer steps; CPU seconds an outer step, over one
such chunk; accuracy after so many outer steps: of one seed, mean and standard deviation of its 3
students. Runs are kept in runs/mtt_gradient and resumed. Needs MNIST, as experiments do.
"""

import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

from benchmarks.suite import Cases, Row, Table, lines, temporary_bytes
from benchmarks.world import CLASSES, random_real
from d3jax import distill, networks
from d3jax.evaluate import Protocol
from d3jax.experts import Options as ExpertOptions
from d3jax.host.progress import Reporter
from d3jax.methods.mtt import MTTOptions, mtt
from d3jax.run import run as jobs
from d3jax.run.options import Architecture, Data, command
from d3jax.synthetic import pixels

SHAPE, CHUNK = (28, 28, 1), 4
ROOT = Path("runs/mtt_gradient")


def measure(options: MTTOptions) -> dict[str, float]:
    """Temporary bytes of a chunk, and CPU seconds of a step in it."""
    network = networks.create("convnet", image_shape=SHAPE, num_classes=CLASSES, width=32)
    data = pixels.create(image_shape=SHAPE, num_classes=CLASSES, num_items=CLASSES)
    method = mtt(network, data, options, 100)
    real, key = random_real(SHAPE, network=network), jax.random.key(0)
    state = jax.jit(method.init)(key, real)
    chunk = jax.jit(distill.chunk_function(method, CHUNK), donate_argnums=1)
    number = jnp.asarray(CHUNK, jnp.int32)
    compiled = chunk.lower(key, state, real, number).compile()
    state = jax.block_until_ready(compiled(key, state, real, number).state)  # warms caches
    begun = time.process_time()
    jax.block_until_ready(compiled(key, state, real, number))
    return {
        "cpu_seconds": (time.process_time() - begun) / CHUNK,
        "temporary_bytes": temporary_bytes(compiled),
    }


def reached(options: MTTOptions, outer_steps: int) -> dict[str, Any]:
    """The accuracy of students on what a run has distilled."""
    out = ROOT / f"{options.gradient}-{options.inner_steps}-{outer_steps}"
    run = command("mtt")(
        data=Data(dataset="mnist", train_limit=10_000),
        architecture=Architecture(width=32),
        mtt=options,
        expert=ExpertOptions(count=2, epochs=5),
        student=Protocol(students=3, learning_rate=0.01),
        outer_steps=outer_steps,
        baselines=(),
        experts=ROOT / "experts",
        out=out,
    )
    return jobs.run(run, Reporter())["accuracy"]


def row(options: MTTOptions, outer_steps: int) -> Row:
    """One row."""
    named = {"gradient": options.gradient, "inner_steps": options.inner_steps}
    found = {**named, **measure(options), "outer_steps": outer_steps}
    return {**found, "accuracy": reached(options, outer_steps)}


def cases(quick: bool) -> Cases:
    """Both gradients at every T; quick: after 10 outer steps instead of 100."""
    return {
        f"{gradient}, T = {steps}": partial(
            row,
            MTTOptions(
                inner_steps=steps, max_start_epoch=2, gradient=gradient, data_learning_rate=0.5
            ),
            10 if quick else 100,
        )
        for steps in (10, 30, 50, 100)
        for gradient in ("exact", "tesla")
    }


def table(rows: list[Row]) -> Table:
    """Seconds, memory, accuracy."""
    header = ["gradient", "T", "outer steps", "CPU s", "temporary MB", "test accuracy %"]
    header.append("sd of students")
    return header, [
        [
            row["gradient"],
            row["inner_steps"],
            row["outer_steps"],
            f"{row['cpu_seconds']:.3f}",
            f"{row['temporary_bytes'] / 1e6:.1f}",
            f"{100 * row['accuracy']['mean']:.1f} (1 seed)",
            f"{100 * row['accuracy']['sd']:.1f}",
        ]
        for row in rows
    ]


def plot(rows: list[Row]) -> Figure:
    """Memory against T."""
    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        point = (row["inner_steps"], row["temporary_bytes"] / 1e6)
        series.setdefault(row["gradient"], []).append(point)
    return lines(series, "T", "temporary MB")

"""Trajectory matching by exact backpropagation and by TESLA's form: memory, seconds, accuracy.

    D3JAX_DATA_DIR=... python -m benchmarks.mtt_gradient [--outer-steps 100]

MNIST, 10 000 images, ConvNet width 32, 1 image per class, 2 experts of 5 epochs, T inner steps.
Temporary bytes are those of a compiled chunk of outer steps; CPU seconds an outer step, over one
such chunk; accuracy after so many outer steps: mean and standard deviation of 3 students. Runs are
kept in runs/mtt_gradient and resumed.
"""

import argparse
import datetime
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.world import CLASSES, random_real, temporary_bytes
from d3jax import distill, jobs, networks
from d3jax.config import Architecture, Data, DistillMTT
from d3jax.evaluate import Protocol
from d3jax.experts import Options as ExpertOptions
from d3jax.files import write_json
from d3jax.methods.mtt import Options, mtt
from d3jax.progress import Reporter
from d3jax.report import markdown_table
from d3jax.synthetic import pixels
from experiments.runner import commit, hardware

SHAPE, CHUNK = (28, 28, 1), 4
ROOT = Path("runs/mtt_gradient")
RESULTS = Path("benchmarks/results/mtt_gradient.json")


def measure(options: Options) -> dict[str, float]:
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


def reached(options: Options, outer_steps: int) -> dict[str, Any]:
    """The accuracy of students on what a run has distilled."""
    out = ROOT / f"{options.gradient}-{options.inner_steps}-{outer_steps}"
    run = DistillMTT(
        data=Data(dataset="mnist", train_limit=10_000),
        architecture=Architecture(width=32),
        mtt=options,
        expert=ExpertOptions(count=2, epochs=5),
        student=Protocol(students=3),
        outer_steps=outer_steps,
        baselines=(),
        experts=ROOT / "experts",
        out=out,
    )
    return jobs.run(run, Reporter())["accuracy"]


def main() -> None:
    """Measures every row, prints the table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--outer-steps", type=int, default=100)
    outer_steps = parser.parse_args().outer_steps
    rows = []
    for inner_steps in (10, 30, 50, 100):
        for gradient in ("exact", "tesla"):
            options = Options(inner_steps=inner_steps, max_start_epoch=2, gradient=gradient)
            row = {"gradient": gradient, "inner_steps": inner_steps, **measure(options)}
            rows.append({**row, "accuracy": reached(options, outer_steps)})
            print(json.dumps(rows[-1]))
    results = {
        "rows": rows,
        "outer_steps": outer_steps,
        "hardware": hardware(),
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "jax": jax.__version__,
    }
    write_json(RESULTS, results)
    print(markdown_table(*table(results)))


def table(results: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Header and rows, as README shows them."""
    header = ["gradient", "T", "CPU s", "temporary MB", "test accuracy %"]
    rows = [
        [
            row["gradient"],
            row["inner_steps"],
            f"{row['cpu_seconds']:.3f}",
            f"{row['temporary_bytes'] / 1e6:.1f}",
            f"{100 * row['accuracy']['mean']:.1f} ± {100 * row['accuracy']['sd']:.1f}",
        ]
        for row in results["rows"]
    ]
    return header, rows


if __name__ == "__main__":
    main()

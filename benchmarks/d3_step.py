"""The trajectory update alone, and D3's whole step: seconds, compile seconds, temporary memory.

    python -m benchmarks.d3_step [--out benchmarks/results/d3_step.json]

CIFAR-10's shape, ConvNet depth 3, the small decoder (k=64, z=64), 10 latents, 30 MMD samples a
class, on random images and weights (the arithmetic does not depend on them). CPU seconds a step,
over a chunk of steps in one dispatch; temporary bytes are those of the compiled chunk.
"""

import argparse
import datetime
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from benchmarks.world import CLASSES, random_real, temporary_bytes
from d3jax import distill, networks, synthetic
from d3jax.files import write_json
from d3jax.methods.d3 import Options, d3
from d3jax.report import markdown_table
from experiments.runner import commit, hardware

SHAPE = (32, 32, 3)


def measure(width: int, inner_steps: int, mmd: bool) -> dict:
    """One row: compile seconds, temporary bytes, CPU and wall seconds a step."""
    network = networks.create("convnet", image_shape=SHAPE, num_classes=CLASSES, width=width)
    specification = {
        "kind": "gaussian",
        "image_shape": list(SHAPE),
        "num_classes": CLASSES,
        "latent_size": 64,
        "decoder": "small",
        "width": 64,
    }
    options = Options(inner_steps=inner_steps, max_start_epoch=2, mmd=mmd)
    method = d3(network, synthetic.create(specification), options, 100)
    real = random_real(SHAPE, network=network)
    key = jax.random.key(0)
    state = jax.jit(method.init)(key, real)
    chunk = jax.jit(distill.chunk_function(method, 4), donate_argnums=1)
    steps = jnp.asarray(4 if width <= 32 else 2, jnp.int32)
    start = time.monotonic()
    lowered = chunk.lower(key, state, real, steps)
    traced = time.monotonic()
    compiled = lowered.compile()
    done = time.monotonic()
    state = jax.block_until_ready(compiled(key, state, real, steps).state)  # warms caches
    cpu, wall = time.process_time(), time.monotonic()
    jax.block_until_ready(compiled(key, state, real, steps))
    return {
        "work": "D3 step" if mmd else "trajectory update",
        "width": width,
        "inner_steps": inner_steps,
        "cpu_seconds": (time.process_time() - cpu) / int(steps),
        "wall_seconds": (time.monotonic() - wall) / int(steps),
        "trace_seconds": traced - start,
        "compile_seconds": done - traced,
        "temporary_bytes": temporary_bytes(compiled),
        "parameter_bytes": 4 * real.trajectories.shape[-1],  # type: ignore[union-attr]
    }


def main() -> None:
    """Measures every row, prints the table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/d3_step.json"))
    out = parser.parse_args().out
    rows = []
    for mmd in (False, True):
        for width in (32, 128):
            for inner_steps in (10, 50):
                rows.append(measure(width, inner_steps, mmd))
                print({n: round(v, 3) if isinstance(v, float) else v for n, v in rows[-1].items()})
    date = datetime.date.today().isoformat()
    write_json(
        out,
        {
            "rows": rows,
            "hardware": hardware(),
            "date": date,
            "commit": commit(),
            "jax": jax.__version__,
        },
    )
    header = ["work", "width", "T", "CPU s", "wall s", "trace s", "compile s", "temporary MB"]
    table = [
        [
            r["work"],
            r["width"],
            r["inner_steps"],
            f"{r['cpu_seconds']:.3f}",
            f"{r['wall_seconds']:.3f}",
            f"{r['trace_seconds']:.1f}",
            f"{r['compile_seconds']:.1f}",
            f"{r['temporary_bytes'] / 1e6:.1f}",
        ]
        for r in rows
    ]
    print(markdown_table(header, table))


if __name__ == "__main__":
    main()

"""Outer steps of D3, MTT and Dataset Distillation, here and in PyTorch."""

import importlib
import time
from contextlib import nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.accelerator.case import PRECISIONS, Case, Size, mebibytes, seconds_of, share
from benchmarks.compile_vs_throughput import compiled_chunk
from benchmarks.flops import d3_flops, dd_flops, decoder_flops, forward_flops, mtt_flops
from benchmarks.outer_steps import lowered_by, trajectory, unrolled
from benchmarks.suite import Row
from benchmarks.world import CLASSES
from d3jax import networks
from d3jax.networks import convolution
from d3jax.types import Method, Real

METHODS = ("D3", "MTT", "DD")


def name_of_smallest(name: str, size: Size) -> str:
    """What the row of a method's smallest step is called."""
    return f"{name}, {size.images_per_class[0]} a class, T={size.inner_steps[0]}, {PRECISIONS[0]}"


def make(name: str, size: Size, images_per_class: int, inner_steps: int, **options: Any):
    """(method, real) of an outer step."""
    if name == "DD":  # a batch of one image per class each
        return unrolled(
            steps=images_per_class,
            passes=-(-inner_steps // images_per_class),
            number_of_networks=size.networks,
            batch_size=size.real_batch,
            width=size.width,
            image_shape=size.image_shape,
            **options,
        )
    return trajectory(
        name.lower(),
        width=size.width,
        inner_steps=inner_steps,
        images_per_class=images_per_class,
        samples=size.samples,
        image_shape=size.image_shape,
        decoder_width=min(64, 8 * size.width),
        **options,
    )


def outer_steps(size: Size) -> list[Case]:
    """Every method at every size and precision; the smallest first, in all precisions."""
    found = []
    for images in size.images_per_class:
        for steps in size.inner_steps:
            smallest = images == size.images_per_class[0] and steps == size.inner_steps[0]
            for precision in PRECISIONS:
                for name in METHODS:
                    rank = 0 if smallest else 3 if precision == "tensorfloat32" else 7
                    found.append(
                        Case(
                            "outer steps",
                            f"{name}, {images} a class, T={steps}, {precision}",
                            partial(outer_step, name, size, images, steps, precision),
                            {"D3": 25.0, "MTT": 14.0, "DD": 16.0}[name],
                            rank,
                        )
                    )
    first, steps = size.images_per_class[0], size.inner_steps[0]
    for name, seconds in (("MTT", 14.0), ("D3", 30.0)) if size.steady else ():
        measure = partial(outer_step, name, size, first, steps, PRECISIONS[0], "lax")
        found.append(
            Case("outer steps", f"{name_of_smallest(name, size)}, lax", measure, seconds, 2)
        )
    return found


def outer_step(
    name: str,
    size: Size,
    images: int,
    inner_steps: int,
    precision: str,
    lowering: convolution.Lowering | None = None,
) -> Row:
    """Seconds to compile, of the first call, and of a step in the steady state; memory."""
    half = precision == "bfloat16"
    default = nullcontext() if lowering is None else lowered_by(lowering)
    with default, jax.default_matmul_precision("tensorfloat32" if half else precision):
        compute = "bfloat16" if half else "float32"
        method, real = make(name, size, images, inner_steps, compute=compute)
        key = jax.random.key(0)
        state = jax.jit(method.init)(key, real)
        compiled, cold = compiled_chunk(method, size.chunk, key, state, real)
        flops = flops_of(name, method, real, state.theta, size, images, inner_steps)

        begun = time.monotonic()
        chunk = jax.block_until_ready(compiled(key, state, real, jnp.asarray(1, jnp.int32)))
        first = time.monotonic() - begun
        last = [chunk.state]
        seconds = seconds_of(lambda: advance(compiled, key, last, real, 1), 0.0)
        number = max(1, min(size.chunk, int(size.steady / seconds)))
        seconds = seconds_of(lambda: advance(compiled, key, last, real, number), size.steady / 2)
    seconds /= number
    losses = [v for n, v in chunk.metrics.items() if n.rpartition("/")[2] in ("loss", "distance")]
    return {
        "trace_lower_seconds": cold["trace"] + cold["lower"],
        "compile_seconds": cold["compile"],
        "first_call_seconds": first,
        "steps_per_second": 1 / seconds,
        "mib": mebibytes(compiled),
        "loss": float(losses[0][0]),
        **share(flops, seconds, precision),
    }


def advance(compiled: Any, key: Any, last: list[Any], real: Real, number: int) -> Any:
    """So many steps on, from the state in `last`, which is consumed."""
    last[0] = compiled(key, last[0], real, jnp.asarray(number, jnp.int32)).state
    return last[0].step


def flops_of(
    name: str, method: Method, real: Real, theta: Any, size: Size, images: int, inner_steps: int
) -> float:
    """Of an outer step's products."""
    network = networks.create(
        "convnet", image_shape=size.image_shape, num_classes=CLASSES, width=size.width
    )
    forward = forward_flops(network, size.image_shape)
    items = CLASSES * images
    if name == "MTT":
        return mtt_flops(forward, inner_steps, items)
    if name == "D3":
        decoder = decoder_flops(method.synthetic, theta)
        return d3_flops(forward, decoder, inner_steps, items, CLASSES * size.samples)
    steps = images * -(-inner_steps // images)
    return dd_flops(forward, steps, CLASSES, size.networks, size.real_batch)


def peers(size: Size) -> list[Case]:
    """The same steps in PyTorch, eager."""
    width, short, number = size.width, size.inner_steps[0], 10 if size.steady else 1
    batch = 1024 if size.steady else 32
    images, epochs = max(256, size.expert_images), max(10, size.student_epochs)
    works: dict[str, tuple[str, tuple[int, ...], float]] = {
        f"MTT, width {width}, T={short}, 10 images": ("mtt", (width, short, 1), 20.0),
        f"D3, width {width}, T={short}, {size.samples} MMD samples": (
            "d3", (width, short, size.samples), 40.0
        ),
        f"DD, LeNet, S={number} P=3, 4 networks, real batch {batch}": (
            "dd", (number, 3, 4, batch), 20.0
        ),
        f"experts, width {width}, 4 at once, an epoch": ("experts", (width, 4, images), 20.0),
        f"5 students, width {width}, {epochs} epochs, 20 images": (
            "students", (width, 5, epochs, 20), 40.0
        ),
    }  # fmt: skip
    return [
        Case("peers", work, partial(compare, module, arguments, size), seconds, 1 + (position > 2))
        for position, (work, (module, arguments, seconds)) in enumerate(works.items())
    ]


def compare(module: str, arguments: tuple[int, ...], size: Size) -> Row:
    """Wall milliseconds of both, alternating, in full float32; bytes of the device's memory."""
    from benchmarks.peers import compared, device_peak  # here: PyTorch may be missing

    rounds = 5 if size.steady else 1
    with jax.default_matmul_precision("float32"):
        made = importlib.import_module(f"benchmarks.peers.{module}").pair(*arguments)
        row = compared(lambda: made, rounds, enough=4 * size.steady + 1, torch_compile=False)
    if peak := device_peak(made.peer):
        row["peer_mib"] = peak / 2**20
    found = {"ours_ms": 1e3 * row.pop("ours_cpu_s"), "peer_ms": 1e3 * row.pop("peer_cpu_s")}
    row.pop("product_share", None)  # of smaller matrices
    rated = share(made.flops, found["ours_ms"] / 1e3, "float32") if made.flops else {}
    return {**row, **found, **rated}

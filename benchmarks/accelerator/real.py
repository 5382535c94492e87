"""D3 and MTT on real CIFAR-10: experts, some minutes of outer steps, students."""

import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator.case import Case, Size
from benchmarks.accelerator.steps import advance, name_of_smallest
from benchmarks.compile_vs_throughput import compiled_chunk
from benchmarks.suite import Row
from d3jax import data, evaluate, networks
from d3jax.distill.inner import mean_learning_rate
from d3jax.experts import fresh_parameters
from d3jax.experts.epoch import epoch_function
from d3jax.methods import d3, mtt
from d3jax.synthetic import gaussian, pixels
from d3jax.types import HeldOut, Method, Network, Real, Synthetic

EXPERTS, EPOCHS = 4, 10
# The recipes of the papers, 1 image per class (MTT) and 1 latent (D3): experts and their epochs,
# outer steps. MTT's matches 50 inner steps, ours fewer: its hours are scaled by them.
PAPER = {"MTT": (100, 50, 5000, 50), "D3": (100, 10, 10_000, 10)}


class World(NamedTuple):
    """Real images, and experts that were trained on them."""

    network: Network
    real: Real
    test: HeldOut
    expert_epoch_seconds: float  # of one expert
    normalization: data.Normalization


def cases(size: Size, path: Path, rate: Callable[[str], float]) -> list[Case]:
    """Experts, then a run of each method; `rate` gives the steps per second of a row by its name,
    which says how many steps a run can have."""
    world = cache(partial(_world, path, size))
    minutes = f"{size.distilling / 60:.1f} minutes"
    return [
        Case("real", f"experts, {EXPERTS} of {EPOCHS} epochs", lambda: _experts(world()), 60.0, 5),
        *(
            Case(
                "real",
                f"{name}, 1 a class, T={inner_steps}, {minutes}",
                partial(_run, name, world, inner_steps, size, rate),
                size.distilling + 50.0,
                5,
            )
            for name, inner_steps in (("D3", 10), ("MTT", 10 if size.steady else 1))
        ),
    ]


def _world(path: Path, size: Size) -> World:
    dataset = data.load(str(path))
    normalization = data.Normalization.of(dataset.train_images)
    real = dataset.real(normalization)
    network = networks.create(
        "convnet",
        image_shape=dataset.image_shape,
        num_classes=dataset.num_classes,
        width=size.width,
    )
    keys = jax.random.split(jax.random.key(0), EXPERTS)
    params = jax.jit(jax.vmap(fresh_parameters(network)))(keys)
    batch = min(256, len(dataset.train_labels))
    epoch = jax.jit(epoch_function(network, None, batch, 0.01)).lower(params, keys, real).compile()
    snapshots, losses, begun = [params], jnp.zeros(()), time.monotonic()
    for number in range(1, EPOCHS + 1):
        of_epoch = jax.vmap(partial(jax.random.fold_in, data=number))(keys)
        params, losses = epoch(params, of_epoch, real)
        snapshots.append(params)
    if not np.isfinite(np.asarray(losses)).all():
        raise ValueError("the experts' loss is not finite")
    seconds = (time.monotonic() - begun) / EPOCHS / EXPERTS
    real = real._replace(trajectories=jnp.stack(snapshots, axis=1))
    test = dataset.held_out(normalization)
    return World(network, real, test, seconds, normalization)


def _experts(world: World) -> Row:
    trajectories = world.real.trajectories
    assert trajectories is not None
    found = np.asarray(evaluate.accuracy(world.network, trajectories[:, -1], world.test))
    return {
        "accuracy": 100 * float(found.mean()),
        "sd": 100 * float(found.std(ddof=1)),
        "expert_epoch_seconds": world.expert_epoch_seconds,
    }


def _method(name: str, world: World, inner_steps: int, outer_steps: int) -> Method:
    shape: dict[str, Any] = {
        "image_shape": world.real.images.shape[1:],
        "num_classes": world.real.class_counts.shape[0],
    }
    if name == "MTT":
        chosen = pixels.create(**shape, num_items=shape["num_classes"])
        options = mtt.MTTOptions(inner_steps=inner_steps)
        return mtt.mtt(world.network, chosen, options, outer_steps)
    mean, sd = world.normalization.mean, world.normalization.sd
    latents: Synthetic = gaussian.create(
        **shape,
        decoder="small",
        width=64,
        shift=[float(x) for x in (0.5 - mean) / sd],
        scale=[float(x) for x in 0.5 / sd],
    )
    return d3.d3(world.network, latents, d3.D3Options(inner_steps=inner_steps), outer_steps)


def _run(
    name: str,
    world: Callable[[], World],
    inner_steps: int,
    size: Size,
    rate: Callable[[str], float],
) -> Row:
    here = world()
    key = jax.random.key(1)
    # A cosine needs the run's length: as many steps as the time allows at the rate that was
    # measured on random images, less a part for augmentation.
    steps = max(size.chunk, int(0.8 * size.distilling * rate(name_of_smallest(name, size))))
    steps = steps // size.chunk * size.chunk
    method = _method(name, here, inner_steps, steps)
    last = [jax.jit(method.init)(key, here.real)]
    compiled, cold = compiled_chunk(method, size.chunk, key, last[0], here.real)
    begun = time.monotonic()
    for _ in range(steps // size.chunk):
        advance(compiled, key, last, here.real, size.chunk)
    jax.block_until_ready(last[0])
    reached = steps / (time.monotonic() - begun)
    theta = last[0].theta
    learned = float(mean_learning_rate(theta["learning_rates"]))
    protocol = evaluate.Protocol(students=3, epochs=size.student_epochs)
    found = evaluate.evaluate(
        here.network,
        method.synthetic,
        jax.jit(method.synthetic.freeze)(theta, jax.random.key(2)),
        here.test,
        protocol,
        learned,
        jax.random.key(3),
    )
    experts, epochs, outer, inner = PAPER[name]
    hours = experts * epochs * here.expert_epoch_seconds + outer / reached * inner / inner_steps
    return {
        "compile_seconds": cold["compile"],
        "outer_steps": steps,
        "steps_per_second": reached,
        "accuracy": 100 * float(found.per_student.mean()),
        "sd": 100 * float(found.per_student.std(ddof=1)),
        "learning_rate": learned,
        "paper_hours": hours / 3600,
    }

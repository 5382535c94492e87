"""What a run consists of, as far as it can be prepared before anything is loaded or written."""

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from d3jax import distill, experts
from d3jax.data import Dataset, Normalization, subtasks
from d3jax.experts.epoch import epoch_function
from d3jax.host import compilation
from d3jax.networks import parameter_count
from d3jax.run.job import prepared, reads_of
from d3jax.run.options import Divided, Run
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
    own = as_if(dataset, len(parts[0]), images)
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


def as_if(dataset: Dataset, classes: int | None, images: int | None) -> Dataset:
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
        """Seconds of an outer step of one subtask, the first step not counted."""
        begin = compilation.once(self.piece.method.init)(jax.random.key(0), self._real())
        warm = self._compiled(*self._program.arguments(begin, 1))
        state = jax.block_until_ready(warm.state)
        begun = time.perf_counter()
        done = jax.block_until_ready(self._compiled(*self._program.arguments(state, 1 + _STEPS)))
        return (time.perf_counter() - begun) / int(done.done)

    def expert_seconds(self) -> float:
        """Seconds of all experts of one subtask, from an epoch of three steps."""
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

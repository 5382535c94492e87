"""A run before anything of it is written: its data, network, parametrization and method.

`load` refuses whatever does not fit together, so that a `Job` may begin.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from d3jax import evaluate, experts, synthetic
from d3jax.data import Dataset, Normalization, subtasks
from d3jax.data.given import DEFAULT
from d3jax.data.sources import dataset_name
from d3jax.experts import source as pretrained
from d3jax.keys import Stage, stage_key
from d3jax.methods.registry import Reads, Setting, Spec
from d3jax.run.options import Architecture, Run
from d3jax.run.resolve import labels_at_start, resolved
from d3jax.synthetic import labels
from d3jax.types import Method, Network, PyTree, Real, Synthetic


class Part(NamedTuple):
    """One of several subtasks."""

    number: int
    classes: tuple[int, ...]  # in the whole
    whole: Dataset


class World(NamedTuple):
    """The real data of a run, and its network."""

    dataset: Dataset
    normalization: Normalization
    network: Network
    real: Real  # the training images, or their shapes
    part: Part | None = None  # where these are not all classes

    @property
    def whole(self) -> Dataset:
        """The data set of all classes."""
        return self.dataset if self.part is None else self.part.whole

    def key(self, seed: int, stage: Stage, turn: int | None = None) -> Array:
        """The key of one stage of a run."""
        key = stage_key(seed, stage, None if self.part is None else self.part.number)
        return key if turn is None else jax.random.fold_in(key, turn)


class Job(NamedTuple):
    """A run, or one of its subtasks, that may begin: nothing in it is refused any more."""

    options: Run
    world: World
    specification: dict[str, Any]  # of the parametrization
    synthetic: Synthetic
    method: Method  # of the first turn
    source: pretrained.Source | None = None  # what networks are pretrained on
    recipe: dict[str, Any] | None = None  # of those

    @property
    def spec(self) -> Spec:
        """The method's entry in the registry."""
        return self.options.spec

    @property
    def trained_on(self) -> str | None:
        """Where the data set lies that networks are pretrained on."""
        reads = reads_of(self.options, self.world.dataset, 0)
        return None if reads is None else reads.source

    def setting(self, turn: int, theta: dict[str, PyTree] | None) -> Setting:
        """What the method of a turn is built of."""
        return _setting(self.options, self.world, self.synthetic, turn, theta)

    def solved_labels(self, data_: Synthetic, theta: dict[str, PyTree]) -> Array:
        """Labels f[N, K] of the run's data, or of a baseline's: `labels.by_solving`."""
        world, key = self.world, self.world.key(self.options.seed, Stage.LABELS)
        return labels.by_solving(world.network, data_, theta, world.real, key)

    def built(self, turn: int, theta: dict[str, PyTree] | None) -> Method:
        """The method in one of its turns."""
        return self.spec.build(self.options.method, self.setting(turn, theta))


def load(options: Run, dataset: Dataset | None = None) -> Job:
    """Real data, options with every default filled in, and the method.

    dataset: instead of the one that the options name.

    Raises:
      InputError: they do not fit together.
    """
    if dataset is None:
        dataset = options.data.read(options.seed)
    normalization = Normalization.of(dataset.train_images, options.data.zca)
    options = resolved(options, dataset)
    part = None
    if getattr(options, "subtask", None) is not None:
        part = parts_of(options.subtasks, dataset)[options.subtask]  # type: ignore[attr-defined]
    job = prepared(options, dataset, normalization, part)
    reads = reads_of(options, job.world.dataset, 0)
    if reads is None or reads.source is None:
        return job
    recipe = pretrained.recipe(
        dataset_name(reads.source),
        options.data.train_limit if reads.limited else None,
        options.data.validation if reads.limited else 0,
        reads.experts,
        options.seed,
        dataset.reading if reads.limited else DEFAULT,
    )
    own = job.world.dataset
    source = pretrained.load(
        recipe, own.image_shape, own.class_names, options.data.data_dir, reads.source
    )
    return job._replace(source=source, recipe=recipe)


def prepared(
    options: Run,
    dataset: Dataset,
    normalization: Normalization,
    part: Part | None = None,
    *,
    on_device: bool = True,
) -> Job:
    """A run, or a subtask, of resolved options; its images on the device, or only their shapes.

    Raises:
      InputError: they do not fit together.
    """
    if part is not None:
        dataset = subtasks.of(dataset, part.classes)
    items = options.spec.items(options.method, dataset.num_classes)
    specification = options.parametrization.specification(
        dataset, normalization, items, options.spec.learned
    )
    data = synthetic.create(specification)
    world = make_world(dataset, normalization, options.architecture, part, on_device=on_device)
    method = options.spec.build(options.method, _setting(options, world, data, 0, None))
    if hasattr(options, "student"):
        evaluate.check(options.student)  # type: ignore[attr-defined]
    for turn in range(options.spec.turns(options.method)):
        reads = reads_of(options, dataset, turn)
        if reads is not None:
            experts.check(reads.experts)
    return Job(options, world, specification, data, method)


def make_world(
    dataset: Dataset,
    normalization: Normalization,
    architecture: Architecture,
    part: Part | None = None,
    *,
    on_device: bool = True,
) -> World:
    """The images on the device, or only their shapes, and the network for them."""
    network = architecture.create(dataset.image_shape, dataset.num_classes)
    real = dataset.real(normalization) if on_device else dataset.shapes(normalization)
    if part is not None:
        real = real._replace(number=jnp.asarray(len(dataset.train_labels), jnp.int32))
    return World(dataset, normalization, network, real, part)


def parts_of(text: str, dataset: Dataset) -> list[Part]:
    """The subtasks that `--subtasks` cuts a data set into."""
    parts = subtasks.split(text, dataset.num_classes)
    return [Part(number, classes, dataset) for number, classes in enumerate(parts)]


def turn_steps(options: Run) -> list[int]:
    """The outer steps of each turn."""
    turns = options.spec.turns(options.method)
    return [len(part) for part in np.array_split(np.arange(options.outer_steps), turns)]


def reads_of(options: Run, dataset: Dataset, turn: int) -> Reads | None:
    """Which snapshots a turn reads."""
    spec = options.spec
    return None if spec.experts is None else spec.experts(options, dataset, turn)


def _setting(
    options: Run, world: World, data: Synthetic, turn: int, theta: dict[str, PyTree] | None
) -> Setting:
    return Setting(
        world.network,
        data,
        turn_steps(options)[turn],
        lambda stage: world.key(options.seed, stage),
        labels_at_start(options),
        turn,
        theta,
    )

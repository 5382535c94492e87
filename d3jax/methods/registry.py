"""What a method is to everything around it, and the methods that there are.

A method is one file that ends with `SPEC = register(Spec(...))`. From that alone follow its
subcommand and help, defaults, the run, resume, `d3jax plan`, report, baselines, and its row in the
contract test. Another package adds one through the entry point group `d3jax.methods`: a module that
is imported, and registers.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from jax import Array

from d3jax import experts
from d3jax.data import Dataset
from d3jax.experts import Options as ExpertOptions
from d3jax.keys import Stage
from d3jax.types import InputError, Method, Network, PyTree, State, Synthetic

TINY: dict[str, Any] = {"image_shape": (8, 8, 1), "num_classes": 3}  # the contract test's images


class Setting(NamedTuple):
    """What a method is built of; no files, no devices."""

    network: Network  # of experts and students
    synthetic: Synthetic
    outer_steps: int  # of this turn
    key: Callable[[Stage], Array]  # what the run draws a stage with
    # Labels that are stored but not learned are those of the first expert, on what data starts from
    expert_labels: bool = False
    turn: int = 0
    theta: dict[str, PyTree] | None = None  # what the turns before this have made


class Reads(NamedTuple):
    """Which snapshots a turn of a method reads; from it they are trained, planned and checked."""

    experts: experts.Options  # how they are trained
    last_epoch: int = 0  # the latest that is read
    until: tuple[str, ...] = ()  # the method's options that it follows from
    source: str | None = None  # networks of this data set instead, their last snapshots
    limited: bool = False  # of the run's own images: --train-limit and --validation hold
    kept: int = 0  # so many of those networks are kept to judge by
    teacher: bool = False  # the first, at its end, is a teacher: it has to be better than chance


def reads_teacher(run: Any, dataset: Dataset, turn: int) -> Reads:
    """`Spec.experts` of a method with one teacher."""
    del dataset, turn
    return Reads(run.expert, teacher=True)


class Finished(NamedTuple):
    """What a method has learned, when all its turns are over."""

    theta: dict[str, PyTree]  # frozen
    state: State  # of the last turn
    learning_rates: list[float]  # of each turn, the mean
    class_names: tuple[str, ...]
    source: dict[str, Any] | None  # the recipe of pretrained networks, if there are any


def _same(options: Any, dataset: Dataset) -> Any:
    del dataset
    return options


class Spec(NamedTuple):
    """A method, as the rest of d3jax sees it.

    `options` below are those of the method; `run` are those of the whole run, in which the
    method's stand under its name (`run.method`), with every default but the method's own filled in.
    """

    name: str  # the subcommand
    options: type  # a frozen dataclass: its fields are the flags, its docstrings the help
    build: Callable[[Any, Setting], Method]  # of options, pure
    tiny: Callable[[Network], Method]  # the contract test's row: images of TINY, 3 classes
    paper: str  # one line each, for the table of methods
    figure: str
    # (run, dataset) -> run: the method's own defaults that depend on the data, and its checks
    resolve: Callable[[Any, Dataset], Any] = _same
    # (run, dataset, turn) -> which snapshots it reads; None: the method has no experts at all
    experts: Callable[[Any, Dataset, int], Reads | None] | None = None
    parametrization: str = "pixels"  # the default kind
    # (options, classes) -> how many items, where the method counts them itself
    items: Callable[[Any, int], int | None] = lambda options, classes: None
    turns: Callable[[Any], int] = lambda options: 1  # the subsets of a sequence
    # Weights f[E, P] that a later turn's experts start from, and all that they depend on, as JSON:
    # (run, setting, learning rates, reporter) -> (what they depend on, () -> weights)
    starts: Callable[..., tuple[dict[str, Any], Callable[[], Array]]] | None = None
    # An expert labels, where it is to, real images that the data starts from, else what it became
    labels: Literal["start", "end"] = "start"
    # (run, finished) -> more theta, and entries of the artifact's header
    finish: Callable[[Any, Finished], tuple[dict[str, PyTree], dict[str, Any]]] = (
        lambda run, finished: ({}, {})
    )
    judge: Literal["students", "replay"] = "students"  # or in the steps that it was learned for
    expert_learning_rate: float = 0.01  # the default, from 5000 images on
    baselines: tuple[str, ...] = ("random", "kmeans", "kmeans_uint8", "herding_uint8")
    baseline_learning_rates: tuple[float, ...] = (0.01, 0.03, 0.1)
    network: Callable[[tuple[int, int, int]], str] = lambda image_shape: "convnet"  # the default
    initialization: str = "uniform_fan_in"  # of weights, the default
    norm: str = "instance"  # the default, of networks that have a choice
    trained: ExpertOptions = ExpertOptions()  # how experts are, the default
    labels_by_default: Literal["hard", "learned", "solved"] = "hard"  # --labels
    # What labels that are learned are (`synthetic.labels.KINDS`), and so how students meet them
    learned: Literal["free", "values"] = "free"
    divisible: bool = False  # may be cut into subtasks
    # (resolved options, classes) -> images that go forward through networks in an outer step, of
    # which a backward pass is worth two; None: baselines get as many students as the artifact
    passes: Callable[[Any, int], int] | None = None
    # Fields of the run (the method's own options by its name, `expert`) by the name of a --preset
    presets: Mapping[str, Mapping[str, Any]] = MappingProxyType({})


# The modules of this package, in the order of their help.
_OURS = ("d3", "mtt", "seqmatch", "frepo", "mgdd", "dd", "dwa", "rded")


class _Methods(Mapping[str, Spec]):
    """The registered methods by name, those of this package first; others' when first looked at."""

    def __init__(self) -> None:
        self._specs: dict[str, Spec] = {}
        self._loaded = False

    def add(self, spec: Spec) -> None:
        known = self._specs.get(spec.name)
        if known is not None and known.build.__module__ != spec.build.__module__:
            raise InputError(
                f"two methods are called {spec.name!r}, of {known.build.__module__} and "
                f"{spec.build.__module__}; one of them needs another name"
            )
        self._specs[spec.name] = spec

    def _all(self) -> dict[str, Spec]:
        if not self._loaded:
            self._loaded = True
            for name in _OURS:
                importlib.import_module(f"d3jax.methods.{name}")
            for point in metadata.entry_points(group="d3jax.methods"):
                point.load()
            ours = {name: self._specs[name] for name in _OURS}  # whichever was imported first
            self._specs = {**ours, **self._specs}
        return self._specs

    def __getitem__(self, name: str) -> Spec:
        if name not in self._all():
            raise InputError(f"unknown method {name!r}; known: {', '.join(self._specs)}")
        return self._specs[name]

    def __contains__(self, name: object) -> bool:
        return name in self._all()

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


METHODS = _Methods()


def register(spec: Spec) -> Spec:
    """Adds a method; returns its spec.

    Raises:
      InputError: another module has registered one of the same name.
    """
    METHODS.add(spec)
    return spec

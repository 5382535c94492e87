"""The options of `distill`: frozen dataclasses whose fields are its flags, and their defaults.

What a method adds stands in its own file (`methods/`); `command(name)` is the run of a method as
one dataclass. `resolve.py` fills in what depends on the data; `commands.py` has the other commands.
"""

import dataclasses
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from d3jax import data, networks
from d3jax.data import Dataset
from d3jax.evaluate import Protocol
from d3jax.experts import Options as ExpertOptions
from d3jax.host.launch import Processes
from d3jax.host.terminal import meant
from d3jax.methods.registry import METHODS, Spec
from d3jax.networks.own import is_own
from d3jax.synthetic.options import Parametrization
from d3jax.types import InputError, Network

NormName = Literal["instance", "group", "layer", "batch", "none"]
PoolingName = Literal["average", "max", "none"]
# Options that say how an artifact is judged; with --baselines they may differ in a run's folder.
JUDGING = ("student", "choose_learning_rate", "baseline_learning_rates", "baseline_students")
Inlined = tyro.conf.arg(name="")  # the group's flags have no prefix
BaselineName = Literal["random", "best_random", "kmeans", "herding", "class_mean",
                       "random_uint8", "kmeans_uint8", "herding_uint8",
                       "random_solved", "kmeans_solved", "herding_solved", "random_expert",
                       "rded", "random_hard"]  # fmt: skip


@dataclass(frozen=True)
class Data:
    """Which real data."""

    dataset: str = "digits"
    """digits or moved_digits (embedded), a prepared TFDS set such as mnist, an .npz file or an
    image folder, train/CLASS/*.jpg with test/ beside it or CLASS/*.jpg."""
    data_dir: Path | None = None
    """Where named data sets lie; default $D3JAX_DATA_DIR, else the TFDS default."""
    train_limit: int | None = None
    """Use only the first so many training images; default all."""
    test_limit: int | None = None
    """Use only the first so many test images; default all."""
    image_size: int | None = None
    """Pixels of an image's side: the short one is resized to it, and the centre cut out; default
    images are as they are, and have to be square and of one size."""
    test_fraction: float | None = None
    """Share of each class that becomes test images, where an image folder has none; drawn by name,
    so the same ones for every seed; default 0.2."""
    skip_unreadable: bool = False
    """Leave out images of a folder that cannot be read; default refuse them."""
    validation: int = 0
    """Training images set aside, by seed, to choose learning rates on."""
    zca: bool = False
    """ZCA whitening (epsilon 0.1) after normalization."""

    def load(self, seed: int) -> tuple[data.Dataset, data.Normalization]:
        """The data set, and the normalization of its training images."""
        loaded = self.read(seed)
        return loaded, data.Normalization.of(loaded.train_images, self.zca)

    def read(self, seed: int) -> data.Dataset:
        """The data set."""
        return data.load(
            self.dataset,
            self.data_dir,
            train_limit=self.train_limit,
            test_limit=self.test_limit,
            validation=self.validation,
            seed=seed,
            image_size=self.image_size,
            test_fraction=self.test_fraction,
            skip_unreadable=self.skip_unreadable,
        )


@dataclass(frozen=True)
class Architecture:
    """Which network experts and students are; to judge an artifact, default the artifact's own."""

    network: str | None = None
    """Architecture of experts and students: convnet, lenet, alexcifarnet, mlp, resnet18, or a
    function of your own that makes one, as package.module:function (see d3jax.networks.wrap);
    default convnet, for dd the paper's: lenet for grey images of 28 or 32 pixels, alexcifarnet for
    coloured ones of 32, else convnet."""
    width: int | None = None
    """Channels per layer, or hidden units; default 32 for convnet (the field's figures have 128),
    64 for resnet18, 128 for mlp."""
    depth: int | None = None
    """Blocks of a convnet; default by image size: 3 at 28 to 32 pixels, 4 at 64, 5 at 128."""
    norm: NormName | None = None
    """Normalization of convnet and resnet18; default instance, for dwa batch."""
    pooling: PoolingName | None = None
    """Pooling of a convnet; default average."""
    initialization: Literal["uniform_fan_in", "xavier_normal"] | None = None
    """Initial weights; default uniform_fan_in (PyTorch's), for dd xavier_normal (the paper's);
    another network that judges has the first."""
    compute: Literal["float32", "bfloat16"] | None = None
    """Precision of convolutions and linear layers; default float32. Weights, normalization and
    losses stay float32; bfloat16 is for accelerators that have it, a CPU gains nothing."""

    def create(self, image_shape: tuple[int, int, int], num_classes: int) -> Network:
        """The network for images of this shape.

        Raises:
          InputError: it cannot be made, or an option is not for it.
        """
        options = {n: v for n, v in dataclasses.asdict(self).items() if v is not None}
        name = options.pop("network", "convnet")
        if is_own(name):
            foreign = [f"--{option}" for option in options if option != "compute"]
            if foreign:
                raise InputError(
                    f"{name} is a network of your own, which takes no such options; leave out "
                    f"{', '.join(foreign)}"
                )
            return networks.load_network(
                name, image_shape=image_shape, num_classes=num_classes, **options
            )
        return networks.create(name, image_shape=image_shape, num_classes=num_classes, **options)


@dataclass(frozen=True)
class Run:
    """What every distillation has: a folder, a length, a seed."""

    data: Annotated[Data, Inlined] = field(default_factory=Data)
    architecture: Annotated[Architecture, Inlined] = field(default_factory=Architecture)
    parametrization: Annotated[Parametrization, Inlined] = field(default_factory=Parametrization)
    outer_steps: int = 1000
    """Outer steps."""
    seed: int = 0
    """Seed of everything that is drawn."""
    experts: Path | None = None
    """Store of trained networks, shareable between runs; default OUT/experts."""
    storage: Literal["float16", "float32", "int8"] = "float16"
    """How the artifact stores its arrays; int8: a byte for each number of latents, decoder and
    images, rounded after distillation (--rounding rounds Gaussians in every step)."""
    label_storage: Literal["float", "int8"] = "float"
    """How it stores labels that are given (--labels expert): as its arrays, or a byte each."""
    chunk: int = 10
    """Outer steps per compiled call; a signal is heeded in between."""
    checkpoint_minutes: float = 5.0
    """Minutes between checkpoints."""
    tensorboard: bool = False
    """Write TensorBoard event files to OUT/events (needs the extra `tensorboard`)."""
    profile: Path | None = None
    """Write a trace of the second chunk of outer steps to this folder, for xprof or TensorBoard;
    its ten dearest kernels are printed."""
    compilation_cache: bool = True
    """Keep compiled programs between runs, in $JAX_COMPILATION_CACHE_DIR or the cache folder."""
    dry_run: bool = False
    """Run nothing: say what the run would take, as `d3jax plan` does."""
    out: Path = Path("runs/distill")
    """The run's folder; the same command with the same folder resumes."""
    baselines: tuple[BaselineName, ...] = ()  # `command` fills in the method's, here and below
    """What to compare with under the same protocol: whole images, at no fewer stored floats, or
    (_uint8) at no fewer bytes, a byte a pixel; herding is real images whose mean is the class's;
    class_mean is one a class; best_random, for dd, the best of 20 draws; _solved has the labels of
    --labels solved. Of a method with a teacher (dwa, rded) baselines have labels of the same kind
    as the distilled data, but for random_hard, and as many images; rded is RDED's choice of crops.
    Those of other methods have hard labels but for _solved and random_expert, which has the
    expert's of --labels expert, and is in the default there. The default has the two in bytes that
    are best as a rule."""
    baseline_learning_rates: tuple[float, ...] = ()
    """Learning rates for baselines; the best is taken, on the validation images or, where none are
    set aside, on 2000 training images."""

    @property
    def spec(self) -> Spec:
        """The method's entry in the registry."""
        raise NotImplementedError

    @property
    def method(self) -> Any:
        """The method's own options."""
        return getattr(self, self.spec.name)

    def synthetic_items(self, dataset: Dataset) -> int:
        """How many items a resolved parametrization has, where the method does not count them."""
        own = self.parametrization
        each = {
            "gaussian": own.latents_per_class,
            "pixels": own.images_per_class,
            "generated": own.images_per_class,
            "spectral": (own.spectra_per_class or 0) * (own.transformations or 0),
        }
        return dataset.num_classes * (each[own.kind or "pixels"] or 0)


@dataclass(frozen=True)
class Studied(Run):
    """What methods have that are judged by ordinary students."""

    student: Protocol = field(default_factory=Protocol)
    choose_learning_rate: bool = True
    """Students train at the best of the learned rate and those of --baseline-learning-rates,
    on the images that choose the baselines'; off: the learned one."""
    baseline_students: int | None = None
    """Students of each baseline; default as many as --student.students, or, where baselines would
    take longer than the distillation, one for each of --baseline-learning-rates."""


@dataclass(frozen=True)
class Matching(Studied):
    """What methods have that read experts of the data, too."""

    expert: ExpertOptions = field(default_factory=ExpertOptions)
    snapshots: Literal["device", "disk"] = "device"
    """Where experts' snapshots are while distilling: all in device memory, or on disk, each read
    when a step needs it."""


@dataclass(frozen=True)
class Divided(Matching):
    """What methods have whose classes can be cut into subtasks."""

    subtasks: str | None = None
    """Cut the classes into so many contiguous ranges, or into those listed (0-4,9:5-8); each is
    distilled by itself, with experts and a decoder of its own, and all are joined at the end."""
    together: bool = False
    """The subtasks of a device together under vmap, faster on accelerators; default one after
    another, which takes a subtask's memory only."""
    processes: Annotated[Processes, Inlined] = field(default_factory=Processes)
    subtask: int | None = None
    """Distill only this one of the --subtasks, counted from 0 (`d3jax join` joins them)."""


@cache
def command(name: str) -> Any:
    """The options of `d3jax distill NAME`: the run's, and under the method's name its own.

    Raises:
      InputError: an unknown method.
    """
    chosen = METHODS[name]
    base = Run
    if chosen.judge == "students":
        base = Studied if chosen.experts is None else Divided if chosen.divisible else Matching
    fields: list[tuple[str, Any, Any]] = [  # their help is the base's
        ("out", Path, Path(f"runs/{name}")),
        ("baselines", tuple[BaselineName, ...], chosen.baselines),
        ("baseline_learning_rates", tuple[float, ...], chosen.baseline_learning_rates),
        (name, Annotated[chosen.options, Inlined], field(default_factory=chosen.options)),
    ]
    if base in (Matching, Divided):
        fields.append(("expert", ExpertOptions, field(default=chosen.trained)))
    spec = {"spec": property(lambda self: chosen)}
    made = dataclasses.make_dataclass(
        f"Distill_{name}", fields, bases=(base,), namespace=spec, frozen=True
    )
    made.__doc__ = f"Distill a data set: {chosen.paper}."
    made.__module__ = __name__
    return made


def with_preset(name: str, preset: str | None) -> Run | None:
    """The run of a method with the options of its preset; None without one.

    Raises:
      InputError: it has no such preset.
    """
    if preset is None:
        return None
    known = METHODS[name].presets
    if preset not in known:
        right = meant(preset, known) or f"; known: {', '.join(known)}"
        raise InputError(
            f"{name} has no preset {preset!r}{right}" if known else f"{name} has no presets"
        )
    return command(name)(**known[preset])


def plain(value: Any) -> Any:
    """A configuration as YAML and JSON hold it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Path):
        return str(value)
    return [plain(v) for v in value] if isinstance(value, (tuple, list)) else value

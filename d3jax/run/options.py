"""The options of every command: frozen dataclasses whose fields are its flags, and their defaults.

What a method adds stands in its own file (`methods/`); `command(name)` is the run of a method as
one dataclass. `resolve.py` fills in what depends on the data.
"""

import dataclasses
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union

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
                       "random_solved", "kmeans_solved", "herding_solved",
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
    """Of each class of an image folder without test images, so many are test images, drawn by
    name: the same ones for every seed; default 0.2."""
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
class Experts:
    """`d3jax experts`: train expert trajectories into a store."""

    data: Annotated[Data, Inlined] = field(default_factory=Data)
    architecture: Annotated[Architecture, Inlined] = field(default_factory=Architecture)
    expert: ExpertOptions = field(default_factory=ExpertOptions)
    experts: Path = Path("runs/experts")
    """The store: each set of experts is a folder in it, named by its configuration's hash."""
    subtasks: str | None = None
    """Experts of each subtask's classes alone, for `d3jax distill d3|mtt --subtasks`."""
    seed: int = 0
    """Of initial weights, order, augmentation, and the validation split."""


@dataclass(frozen=True)
class Run:
    """What every distillation has: a folder, a length, a seed."""

    data: Annotated[Data, Inlined] = field(default_factory=Data)
    architecture: Annotated[Architecture, Inlined] = field(default_factory=Architecture)
    parametrization: Annotated[Parametrization, Inlined] = field(default_factory=Parametrization)
    outer_steps: int = 1000
    """Outer steps."""
    seed: int = 0
    """Of everything that is drawn."""
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
    baselines: tuple[BaselineName, ...] = ("random", "kmeans", "class_mean", "kmeans_uint8")
    """What to compare with under the same protocol: whole images, at no fewer stored floats, or
    (_uint8) at no fewer bytes, a byte a pixel; herding is real images whose mean is the class's;
    class_mean is one a class; best_random, for dd, the best of 20 draws; _solved has the labels of
    --labels solved. Of a method with a teacher (dwa, rded) baselines have labels of the same kind
    as the distilled data, but for random_hard, and as many images; rded is RDED's choice of crops.
    The default has of those
    in bytes the one that is best as a rule, since each trains students of its own."""
    baseline_learning_rates: tuple[float, ...] = (0.01, 0.03, 0.1)
    """Learning rates for baselines; the best is taken, on the validation images or, where none are
    set aside, on 2000 training images."""

    @property
    def spec(self) -> Spec:
        """Of the method."""
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
    return command(name)(**{name: known[preset]})


@dataclass(frozen=True)
class Join:
    """`d3jax join`: the artifacts of all subtasks, distilled as jobs of their own, as one."""

    artifacts: tyro.conf.Positional[tuple[Path, ...]]
    """What `d3jax distill d3|mtt --subtasks K --subtask NUMBER` left for each."""
    out: Path = Path("joined.safetensors")
    """The file to write."""
    labels: Literal["hard", "expert"] = "hard"
    """Labels as the parts have them; or the softmax, on each item's deterministic decode, of an
    expert that is trained on all classes, after the epoch that is best on validation images (the
    last, where none are set aside)."""
    label_storage: Literal["float", "int8"] = "float"
    """How those are stored: as the parts' arrays, or a byte each."""
    network: str | None = None
    """The expert's network, where the artifacts name one of your own, package.module:function."""
    data: Annotated[Data, Inlined] = field(default_factory=Data)
    expert: ExpertOptions = field(default_factory=ExpertOptions)
    experts: Path = Path("runs/experts")
    """Store of the expert for --labels."""
    seed: int = 0
    """Of the expert, and of the validation split."""


@dataclass(frozen=True)
class Plan:
    """Say what a run would take before it begins: disk, memory, time."""

    method: Run
    """The run."""
    devices: int | None = None
    """How many devices it would have, in all processes; default those of this machine."""
    classes: int | None = None
    """As if the data set had so many classes; default its own."""
    timed: bool = True
    """Time three outer steps and three of the experts'; else times are left out."""
    images: int | None = None
    """As if it had so many training images; default as many for each class as it has."""


def plan_options(defaults: Run | None = None) -> type[Plan]:
    """The options of `d3jax plan`: each method's run is a subcommand; `defaults` is one of them."""
    given = {} if defaults is None else {defaults.spec.name: defaults}
    commands = [
        Annotated[
            command(name), tyro.conf.subcommand(name, default=given.get(name, tyro.MISSING_NONPROP))
        ]
        for name in METHODS
    ]
    methods = Annotated[Union[tuple(commands)], Inlined]  # type: ignore[valid-type]  # noqa: UP007
    made = dataclasses.make_dataclass("Plan", [("method", methods)], bases=(Plan,), frozen=True)
    made.__doc__ = Plan.__doc__
    return made


@dataclass(frozen=True)
class ReportPage:
    """`d3jax report`: a finished run's tables, or one page of it."""

    out: tyro.conf.Positional[Path]
    """The run's folder."""
    html: bool = False
    """Write OUT/report.html: pictures, curves, tables, configuration and provenance in one file."""


@dataclass(frozen=True)
class OtherFiles:
    """How the files of another project are read: images*.pt, res_*.pt, .npz, a folder of images."""

    labels: Path | None = None
    """Of another project's images: their labels, where they are not beside them as usual."""
    mean: tuple[float, ...] = ()
    """Of another project's images: the channels' means that they were normalized by; default those
    that the field has for the data set; of pixels the data set's own."""
    sd: tuple[float, ...] = ()
    """The sds likewise."""
    whitening: Literal["none", "mtt", "frepo", "kip"] | None = None
    """Of another project's images: ZCA as these have it; default none, but for coloured .npz files
    that of KIP (images, labels) or FRePo (image, label)."""
    hard_labels: bool = False
    """Of soft labels take the largest as the class."""


@dataclass(frozen=True)
class Export:
    """`d3jax export`: write an artifact's images as other projects read them."""

    artifact: tyro.conf.Positional[Path]
    """The artifact, or the folder of the run that made it."""
    format: Literal["torch", "mtt", "dc", "folder", "npz", "hub"]
    """torch: images.pt, labels.pt, lr.pt (DD-Ranking); mtt: images_best.pt, labels_best.pt,
    lr_best.pt; dc: res_*.pt (DC, DSA, DM); folder: PNG by class, as RDED; npz: bytes; hub: parquet
    for the package datasets, and the artifact."""
    out: Path = Path("exported")
    """The folder to write, with a card."""
    draws: int | None = None
    """Images of each item of a generator (0: its deterministic decodes); default 1."""
    seed: int = 0
    """Of the draws."""
    hard_labels: bool = False
    """Write the class of the largest label where labels are soft."""
    data_dir: Path | None = None
    """Where named data sets lie, if the artifact was whitened; default $D3JAX_DATA_DIR, else the
    TFDS default."""
    dataset: str | None = None
    """The data set that a whitened artifact was distilled from; default as it says."""


@dataclass(frozen=True)
class Import:
    """`d3jax import`: make an artifact of another project's distilled images."""

    source: tyro.conf.Positional[Path]
    """images_best.pt (MTT, DATM), images.pt (DD-Ranking), res_*.pt (DC, DSA, DM), an .npz (KIP,
    FRePo), or the folder that these, or folders of PNG or JPEG (SRe2L, RDED), are in."""
    dataset: str | None = None
    """The data set that they were distilled from; default as header.json beside them says."""
    data_dir: Path | None = None
    """Where named data sets lie; default $D3JAX_DATA_DIR, else the TFDS default."""
    files: Annotated[OtherFiles, Inlined] = field(default_factory=OtherFiles)
    learning_rate: float | None = None
    """Student learning rate; default the one that lies beside them, else 0.01."""
    out: Path = Path("imported.safetensors")
    """The artifact to write."""


@dataclass(frozen=True)
class Judgement:
    """`d3jax evaluate`: what to judge an artifact by."""

    dataset: str | None = None
    """Whose test images; default the data set that the artifact names."""
    data_dir: Path | None = None
    """Where named data sets lie; default $D3JAX_DATA_DIR, else the TFDS default."""
    files: Annotated[OtherFiles, Inlined] = field(default_factory=OtherFiles)
    architecture: Annotated[Architecture, Inlined] = field(default_factory=Architecture)
    networks: str | None = None
    """Judge by several networks, one after another, in a table: convnet,lenet,alexcifarnet,mlp,
    resnet18 or some of them, or your own; --width, --depth, --norm and --pooling are for those that
    have them."""
    test_limit: int | None = None
    """Use only the first so many test images; default all."""
    students: int | None = None
    """How many fresh students; default as the artifact says, as all of the protocol (200 networks
    where an artifact's own steps are replayed)."""
    batch_statistics: bool = False
    """Let a decoder normalize by each batch's own statistics, as in distillation, not by the frozen
    ones: what freezing costs."""
    ordinary: bool = False
    """Train ordinary students on an artifact that has steps of its own to be replayed."""
    experts: Path = Path("runs/experts")
    """Store of the networks that an artifact adapts or attacks; trained again if not there."""
    adapt_from: str | None = None
    """The data set that those were trained on, where it is a file; default as the artifact names
    it."""
    epochs: int | None = None
    """Epochs of each student."""
    learning_rate: float | None = None
    """Student learning rate; default the artifact's."""
    learning_rates: tuple[float, ...] = ()
    """Students of each network train at the best of these and of the artifact's, on the validation
    images or, where none are set aside, on 2000 training images."""
    validation: int = 0
    """Training images set aside, by the artifact's seed, to choose learning rates on: as many as
    for its run, and they are the same ones."""
    scores: bool = False
    """Hard-label recovery, improvement over random, label- and augmentation-robust score, in
    fractions: students of distilled and of random real images, with and without augmentation, each
    at the best of --learning-rates (default DD-Ranking's five) on --validation images (default a
    tenth of the training images), beside a network trained on all real ones."""
    real_accuracy: float | None = None
    """For --scores: the accuracy of a network trained on all real images, a fraction, where it is
    known; default it is trained, as a teacher is."""
    real_epochs: int = 30
    """For --scores: its epochs."""
    seed: int = 0
    """Of the students."""
    json: Path | None = None
    """Write the result to this file too."""


@dataclass(frozen=True)
class Evaluate:
    """`d3jax evaluate`: train fresh students on an artifact and test them."""

    artifact: tyro.conf.Positional[Path]
    """The artifact to judge, the folder of the run that made it, or another project's images (see
    `d3jax import`)."""
    options: Annotated[Judgement, Inlined] = field(default_factory=Judgement)


@dataclass(frozen=True)
class Show:
    """`d3jax show`: print an artifact's header and byte ledger, and write its picture."""

    artifact: tyro.conf.Positional[Path]
    """The artifact to show, or the folder of the run that made it."""
    picture: Path | None = None
    """The picture's file; default the artifact's name with .png."""
    seed: int = 0
    """Of the samples drawn."""


@dataclass(frozen=True)
class Train:
    """`d3jax train`: train one network on an artifact, and keep it."""

    artifact: tyro.conf.Positional[Path]
    """The artifact, or the folder of the run that made it."""
    out: Path = Path("model.safetensors")
    """The file to write; `d3jax.load_model` makes of it a function from images to classes."""
    architecture: Annotated[Architecture, Inlined] = field(default_factory=Architecture)
    epochs: int | None = None
    """Epochs; default as the artifact says."""
    learning_rate: float | None = None
    """Learning rate; default the artifact's."""
    dataset: str | None = None
    """Test it on this data set's test images too."""
    data_dir: Path | None = None
    """Where named data sets lie; default $D3JAX_DATA_DIR, else the TFDS default."""
    seed: int = 0
    """Of initial weights, order, samples and augmentation."""


@dataclass(frozen=True)
class Compare:
    """`d3jax compare`: finished runs side by side."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Their folders, two or more."""
    picture: Path = Path("comparison.png")
    """The file of the plot, accuracy against bytes."""


@dataclass(frozen=True)
class Prepare:
    """`d3jax prepare`: a data set for `--dataset NAME`, through TFDS or from official files."""

    name: tyro.conf.Positional[str]
    """The data set's TFDS name, such as mnist."""
    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Folder with the official files (idx for mnist and fashion_mnist, binary for cifar)."""
    data_dir: Path | None = None
    """Where to put it; default $D3JAX_DATA_DIR, else the TFDS default."""


def plain(value: Any) -> Any:
    """A configuration as YAML and JSON hold it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Path):
        return str(value)
    return [plain(v) for v in value] if isinstance(value, (tuple, list)) else value

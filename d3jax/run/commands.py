"""The options of the commands beside `distill`, as `options.py` has those."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Union

import tyro

from d3jax.experts import Options as ExpertOptions
from d3jax.methods.registry import METHODS
from d3jax.run.options import Architecture, Data, Inlined, Run, command


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
    """Seed of initial weights, order, augmentation and the validation split."""


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
    """Seed of the expert and of the validation split."""


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
    """File of the labels of another project's images, where they are not beside them as usual."""
    mean: tuple[float, ...] = ()
    """The channels' means that another project's images were normalized by; default those that the
    field has for the data set; of pixels the data set's own."""
    sd: tuple[float, ...] = ()
    """The channels' standard deviations, likewise."""
    whitening: Literal["none", "mtt", "frepo", "kip"] | None = None
    """Whose ZCA another project's images have; default none, but for coloured .npz files that of
    KIP (images, labels) or FRePo (image, label)."""
    hard_labels: bool = False
    """Take the class of the largest label where labels are soft."""


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
    """Seed of the draws."""
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
    for its run; the same ones, where that had no --train-limit. What is whitened has its run's."""
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
    """Seed of the students."""
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
    """Seed of the samples drawn."""


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
    """Seed of initial weights, order, samples and augmentation."""


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

"""Configurations of the command line's stages: frozen dataclasses whose fields are its flags."""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml

from d3jax import data, experts, files, networks
from d3jax.augment import default_strategy
from d3jax.baselines import NAMES as BASELINES
from d3jax.evaluate import Protocol
from d3jax.experts import Options as ExpertOptions
from d3jax.experts import fingerprint
from d3jax.methods.d3 import Options as D3Options
from d3jax.types import InputError, Network

NetworkName = Literal["convnet", "lenet", "alexcifarnet", "mlp", "resnet18"]
NormName = Literal["instance", "group", "layer", "batch", "none"]
PoolingName = Literal["average", "max", "none"]
Inlined = tyro.conf.arg(name="")  # the group's flags have no prefix


@dataclass(frozen=True)
class Data:
    """Which real data."""

    dataset: str = "digits"
    """digits (embedded), a prepared TFDS set such as mnist, an .npz file or an image folder."""
    data_dir: Path | None = None
    """Where named data sets lie; default $D3JAX_DATA_DIR, else the TFDS default."""
    train_limit: int | None = None
    """Use only the first so many training images; default all."""
    test_limit: int | None = None
    """Use only the first so many test images; default all."""
    validation: int = 0
    """Training images set aside, by seed, to choose learning rates on."""
    zca: bool = False
    """ZCA whitening (epsilon 0.1) after normalization."""

    def load(self, seed: int) -> tuple[data.Dataset, data.Normalization]:
        """The data set, and the normalization of its training images."""
        loaded = data.load(
            self.dataset,
            self.data_dir,
            train_limit=self.train_limit,
            test_limit=self.test_limit,
            validation=self.validation,
            seed=seed,
        )
        return loaded, data.Normalization.of(loaded.train_images, self.zca)


@dataclass(frozen=True)
class Architecture:
    """Which network experts and students are."""

    network: NetworkName = "convnet"
    """Architecture of experts and students."""
    width: int | None = None
    """Channels per layer, or hidden units; default 32 for convnet (the field's figures have 128),
    64 for resnet18, 128 for mlp."""
    depth: int | None = None
    """Blocks of a convnet; default by image size: 3 at 28 to 32 pixels, 4 at 64, 5 at 128."""
    norm: NormName | None = None
    """Normalization of convnet and resnet18; default instance."""
    pooling: PoolingName | None = None
    """Pooling of a convnet; default average."""

    def create(self, image_shape: tuple[int, int, int], num_classes: int) -> Network:
        """The network for images of this shape."""
        options = dataclasses.asdict(self)
        name = options.pop("network")
        return networks.create(name, image_shape=image_shape, num_classes=num_classes, **options)


@dataclass(frozen=True)
class Experts:
    """`d3jax experts`: train expert trajectories into a store."""

    data: Annotated[Data, Inlined] = field(default_factory=Data)
    architecture: Annotated[Architecture, Inlined] = field(default_factory=Architecture)
    expert: ExpertOptions = field(default_factory=ExpertOptions)
    experts: Path = Path("runs/experts")
    """The store: each set of experts is a folder in it, named by its configuration's hash."""
    seed: int = 0
    """Of initial weights, order, augmentation, and the validation split."""


@dataclass(frozen=True)
class Parametrization:
    """How distilled data is stored."""

    latents_per_class: int | None = None
    """Gaussians per class; default 5 up to 16 pixels, 1 above."""
    latent_size: int | None = None
    """Length of a latent vector; default 8 up to 16 pixels, 64 above (large: 4 x its width)."""
    decoder: Literal["small", "medium", "large"] = "small"
    """The decoder's kind."""
    decoder_width: int | None = None
    """Channels of the decoder's first stage; default by image size and kind."""
    output: Literal["pixels", "normalized"] = "pixels"
    """What the decoder's tanh spans: valid pixels, or (-1, 1) in normalized units (the paper)."""
    sampling: bool = True
    """Draw from the Gaussians (off, decode the means only: an ablation)."""
    labels: Literal["hard", "expert"] = "hard"
    """Hard labels, or one soft label per latent: the first expert's softmax on its decoded mean."""
    storage: Literal["float16", "float32"] = "float16"
    """How the artifact stores its arrays."""

    def specification(
        self, dataset: data.Dataset, normalization: data.Normalization
    ) -> dict[str, Any]:
        """The specification for `synthetic.create`, every default resolved."""
        size = dataset.image_shape[0]
        widths = {"small": 16 if size <= 16 else 64 if size <= 32 else 128}
        width = self.decoder_width or widths.get(
            self.decoder, 512 if self.decoder == "medium" else 1024
        )
        latent = self.latent_size
        if latent is None:
            latent = 4 * width if self.decoder == "large" else 8 if size <= 16 else 64
        latents_per_class = self.latents_per_class
        if latents_per_class is None:
            latents_per_class = 5 if size <= 16 else 1
        channels = dataset.image_shape[2]
        shift, scale = [0.0] * channels, [1.0] * channels
        # Whitened images have no range that pixels would give them.
        if self.output == "pixels" and normalization.zca is None:
            shift = [float(v) for v in (0.5 - normalization.mean) / normalization.sd]
            scale = [float(v) for v in 0.5 / normalization.sd]
        return {
            "kind": "gaussian",
            "image_shape": list(dataset.image_shape),
            "num_classes": dataset.num_classes,
            "latents_per_class": latents_per_class,
            "latent_size": latent,
            "decoder": self.decoder,
            "width": width,
            "shift": shift,
            "scale": scale,
            "stochastic": self.sampling,
            "label_kind": "hard" if self.labels == "hard" else "probabilities",
        }


@dataclass(frozen=True)
class DistillD3:
    """`d3jax distill d3`: experts, distillation, evaluation and baselines, in one folder."""

    data: Annotated[Data, Inlined] = field(default_factory=Data)
    architecture: Annotated[Architecture, Inlined] = field(default_factory=Architecture)
    parametrization: Annotated[Parametrization, Inlined] = field(default_factory=Parametrization)
    d3: Annotated[D3Options, Inlined] = field(default_factory=D3Options)
    expert: ExpertOptions = field(default_factory=ExpertOptions)
    student: Protocol = field(default_factory=Protocol)
    out: Path = Path("runs/d3")
    """The run's folder; the same command with the same folder resumes."""
    experts: Path | None = None
    """Store of expert trajectories, shareable between runs; default OUT/experts."""
    outer_steps: int = 1000
    """Outer steps, of two updates each."""
    seed: int = 0
    """Of everything that is drawn."""
    baselines: tuple[Literal["random", "kmeans", "class_mean"], ...] = BASELINES
    """What to compare with, at the same number of stored floats (class_mean: one image a class)."""
    baseline_learning_rates: tuple[float, ...] = (0.01, 0.03, 0.1)
    """Learning rates for baselines' students; the best is taken, on the validation images or, where
    none are set aside, on 2000 training images (D3 learns its own on training images too)."""
    chunk: int = 10
    """Outer steps per compiled call; a signal is heeded in between."""
    checkpoint_minutes: float = 5.0
    """Minutes between checkpoints."""
    tensorboard: bool = False
    """Write TensorBoard event files to OUT/events (needs the extra `tensorboard`)."""


@dataclass(frozen=True)
class Judgement:
    """`d3jax evaluate`: what to judge an artifact by."""

    dataset: str | None = None
    """Whose test images; default the data set that the artifact names."""
    data_dir: Path | None = None
    """Where named data sets lie; default $D3JAX_DATA_DIR, else the TFDS default."""
    network: NetworkName | None = None
    """Architecture of the students; default the one that the artifact was made with."""
    width: int | None = None
    """Channels per layer, or hidden units; default the artifact's, if it is the same network."""
    depth: int | None = None
    """Blocks of a convnet; default likewise."""
    norm: NormName | None = None
    """Normalization of convnet and resnet18; default likewise."""
    pooling: PoolingName | None = None
    """Pooling of a convnet; default likewise."""
    test_limit: int | None = None
    """Use only the first so many test images; default all."""
    students: int | None = None
    """How many fresh students; default as the artifact says, as all of the protocol."""
    epochs: int | None = None
    """Epochs of each student."""
    learning_rate: float | None = None
    """Student learning rate."""
    seed: int = 0
    """Of the students."""
    json: Path | None = None
    """Write the result to this file too."""


# What may differ between the runs of one folder: it does not change a number.
_FREE = ("out", "experts", "chunk", "checkpoint_minutes", "tensorboard", "data_dir")


def resolved_architecture(options: Architecture, dataset: data.Dataset) -> Architecture:
    """The network with its defaults filled in; what it does not have stays None."""
    defaults: dict[str, dict[str, Any]] = {
        "convnet": {
            "width": 32,
            "depth": networks.default_depth(dataset.image_shape[0]),
            "norm": "instance",
            "pooling": "average",
        },
        "resnet18": {"width": 64, "norm": "instance"},
        "mlp": {"width": 128},
    }
    said = {name: value for name, value in dataclasses.asdict(options).items() if value is not None}
    return Architecture(**{**defaults.get(options.network, {}), **said})


def resolved_experts(options: ExpertOptions, dataset: data.Dataset) -> ExpertOptions:
    """The experts' options with every default that depends on the data filled in."""
    steps = experts.data_defaults(options, len(dataset.train_labels))
    return dataclasses.replace(
        options,
        **steps._asdict(),
        augmentation=default_strategy(dataset.name)
        if options.augmentation is None
        else options.augmentation,
    )


def resolved(options: DistillD3, dataset: data.Dataset, specification: dict[str, Any]) -> DistillD3:
    """The options with every default that depends on the data filled in."""
    replace = dataclasses.replace
    parametrization = replace(
        options.parametrization,
        latents_per_class=specification["latents_per_class"],
        latent_size=specification["latent_size"],
        decoder_width=specification["width"],
    )
    needed = options.d3.max_start_epoch - 1 + options.d3.expert_epochs
    read = max(options.d3.mmd_epoch or 0, needed if options.d3.trajectory else 1)
    if options.expert.epochs < read:
        raise InputError(
            f"distillation reads expert epochs up to {read} (max_start_epoch - 1 + expert_epochs, "
            f"mmd_epoch) but experts are trained for {options.expert.epochs}; raise "
            f"--expert.epochs to {read}"
        )
    if options.outer_steps < 1 or options.chunk < 1:
        raise InputError("outer_steps and chunk must be at least 1")
    if not options.baseline_learning_rates:
        raise InputError("baselines need a learning rate: give --baseline-learning-rates 0.01")
    if not all(0 < rate < math.inf for rate in options.baseline_learning_rates):
        raise InputError(
            f"baseline learning rates must be positive, they are {options.baseline_learning_rates}"
        )
    student = options.student
    if student.augmentation is None:
        student = replace(student, augmentation=default_strategy(dataset.name))
    if options.parametrization.labels == "expert":
        student = replace(student, with_means=True)
    items = specification["latents_per_class"] * dataset.num_classes
    batch = options.d3.inner_batch_size
    d3 = replace(
        options.d3,
        mmd_epoch=options.expert.epochs if options.d3.mmd_epoch is None else options.d3.mmd_epoch,
        inner_batch_size=items if batch is None else min(batch, items),
    )
    return replace(
        options,
        parametrization=parametrization,
        d3=d3,
        architecture=resolved_architecture(options.architecture, dataset),
        expert=resolved_experts(options.expert, dataset),
        student=student,
        experts=options.experts or options.out / "experts",
    )


def plain(value: Any) -> Any:
    """A configuration as YAML and JSON hold it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Path):
        return str(value)
    return [plain(v) for v in value] if isinstance(value, (tuple, list)) else value


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        elif name not in _FREE:
            flat[prefix + name] = value
    return flat


def claim(out: Path, options: DistillD3, dataset: data.Dataset) -> None:
    """Writes config.yaml, or refuses a folder that holds another configuration's run."""
    config = {
        "method": "d3",
        **plain(options),
        "images": fingerprint(dataset.train_images, dataset.train_labels),
    }
    path = out / "config.yaml"
    if path.exists():
        try:
            there = yaml.safe_load(path.read_text())
        except yaml.YAMLError:
            there = None
        if not isinstance(there, dict):
            raise InputError(f"{path} is not a configuration; choose another --out")
        ours, theirs = _flat(config), _flat(there)
        for name in sorted(set(ours) | set(theirs)):
            if ours.get(name) != theirs.get(name):
                raise InputError(
                    f"{out} holds a run with {name} = {theirs.get(name)}, this one has "
                    f"{ours.get(name)}; choose another --out or the same options"
                )
        return
    out.mkdir(parents=True, exist_ok=True)
    files.write_text(path, yaml.safe_dump(config, sort_keys=False))

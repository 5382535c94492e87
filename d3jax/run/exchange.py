"""Other projects' files: `d3jax export` and `d3jax import`, and what `d3jax evaluate` reads."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from d3jax import artifact, data
from d3jax.artifact import exchange
from d3jax.artifact.checks import check_subtask, check_zca
from d3jax.artifact.exchange import Published
from d3jax.data import Dataset, Normalization
from d3jax.data.augment import default_strategy
from d3jax.data.given import Reading
from d3jax.data.sources import dataset_name
from d3jax.evaluate import Protocol
from d3jax.experts.store import fingerprint
from d3jax.host import files
from d3jax.host.progress import Reporter
from d3jax.keys import check_seed
from d3jax.run.commands import Export, Import, Judgement, OtherFiles
from d3jax.run.options import Architecture, plain
from d3jax.run.real import own_classes, real_data
from d3jax.run.resolve import resolved_architecture
from d3jax.types import InputError

_ALL = {"train_limit": None, "validation": 0, "seed": 0}  # images of a data set
_RATE, _WIDTH = 0.01, 128  # of students in DC's and MTT's code
_WHITENINGS = {"kip": "kip", "frepo": "frepo"}  # by layout


def write(options: Export, reporter: Reporter) -> dict[str, Any]:
    """Runs `d3jax export`; returns what header.json says.

    Raises:
      InputError: the artifact cannot be written so, or its data set is needed and not at hand.
    """
    check_seed(options.seed)
    made = artifact.load(options.artifact)
    stored = made.header["normalization"]
    normalization = Normalization.of_header(stored)
    whitened = None
    if stored["zca"] is not None:
        wanted = Judgement(dataset=options.dataset, data_dir=options.data_dir)
        dataset, normalization = real_data(made.header, wanted)
        whitened = _plain(made.header).whitened(dataset.train_images)
    about = exchange.export(
        made,
        options.out,
        options.format,
        draws=options.draws,
        seed=options.seed,
        normalization=normalization,
        whitened=whitened,
        hard_labels=options.hard_labels,
    )
    told = about["export"]
    reporter.say(
        f"{told['images']} images written to {options.out}; README.md says how to use them"
    )
    if "rounding" in told:
        cost = told["rounding"]
        reporter.say(
            f"rounding to bytes clipped {100 * cost['clipped']:.2f} % of the values and changed "
            f"one by {cost['mean_change']:.2f} levels of 255 on average"
        )
    return about


def import_(options: Import, reporter: Reporter) -> artifact.Artifact:
    """Runs `d3jax import`; returns the artifact.

    Raises:
      InputError: the files or the data set cannot be used.
    """
    files.check_target(options.out)
    made = read(
        options.source, options.dataset, options.data_dir, options.files, options.learning_rate
    )
    artifact.save(made, options.out)
    kind = made.header["parametrization"]["label_kind"]
    reporter.say(
        f"{made.synthetic.num_items} images of {made.header['dataset']}, labels {kind}; written to "
        f"{options.out}, which `d3jax evaluate` judges"
    )
    return made


def read(
    path: Path,
    name: str | None,
    data_dir: Path | None,
    files: OtherFiles,
    learning_rate: float | None,
    dataset: Dataset | None = None,
) -> artifact.Artifact:
    """An artifact of another project's files.

    name: of the data set that they were distilled from; None: as header.json beside them says.
    learning_rate: of students; None: the one beside them, else 0.01, which is DC's and MTT's.
    dataset: instead of the one of that name.

    Raises:
      InputError: the files or the data set cannot be used, or it is not known how images were
        normalized.
    """
    found = exchange.read(path, files.labels)
    header = _told(found, "artifact")
    name = name or header.get("dataset")
    if dataset is None and not isinstance(name, str):
        raise InputError(f"say with --dataset what the images in {path} were distilled from")
    whitening = files.whitening or _usual(found)
    stated = _stated(found, files, whitening, dataset.name if dataset else str(name))
    own = stated is None  # the data set's own mean and sd
    if own and found.images.dtype != np.uint8 and whitening != "frepo":
        raise InputError(
            f"the images in {path} are normalized, and not by means that the field has for {name}: "
            f"give --mean and --sd, one for each channel"
        )
    split = _whitened_by(header, path) if whitening == "mtt" else _ALL
    if dataset is None:
        test_only = not own and whitening == "none"
        reading = _reading(header, path)
        dataset = data.load(str(name), data_dir, test_only=test_only, **split, **reading)
        dataset = dataset._replace(name=dataset_name(str(name)))
    exchange.check_shape(found, dataset)
    normalization = Normalization.of(dataset.train_images) if stated is None else stated
    zca = None
    if whitening != "none":
        normalization = normalization.whitened(dataset.train_images, kind=whitening)
        images = fingerprint(dataset.train_images, dataset.train_labels)
        zca = {"epsilon": 0.1, "kind": whitening, "images": images, **split}
    subtask = header.get("subtask")
    if subtask is not None:
        check_subtask({"class_names": None, **header}, path)
        dataset = own_classes(subtask, dataset)
    beside = found.learning_rate or header.get("student_learning_rate") or _RATE
    rate = beside if learning_rate is None else learning_rate
    if not isinstance(rate, int | float) or not 0 < rate < math.inf:
        raise InputError(f"the learning rate beside {path} must be positive, it is {rate!r}")
    architecture, protocol = _judged_by(header, dataset)
    if learning_rate is not None:
        protocol = {**protocol, "learning_rate": None}
    return exchange.imported(
        found,
        dataset,
        normalization,
        zca,
        method=str(header.get("method", found.layout)),
        architecture=architecture,
        protocol=protocol,
        learning_rate=rate,
        hard_labels=files.hard_labels,
        subtask=subtask,
    )


def _whitened_by(header: dict[str, Any], path: Path) -> dict[str, Any]:
    """Which training images whitened: those that header.json names, else all."""
    stored = header.get("normalization")
    recipe = stored.get("zca") if isinstance(stored, dict) else None
    if not isinstance(recipe, dict):
        return _ALL
    check_zca(recipe, path)
    return {name: recipe[name] for name in _ALL}


def _plain(header: dict[str, Any]) -> Normalization:
    """Mean 0 and sd 1: what MTT whitens is pixels as they are."""
    channels = header["parametrization"]["image_shape"][2]
    return Normalization(np.zeros(channels, np.float32), np.ones(channels, np.float32))


def _told(found: Published, part: str) -> dict[str, Any]:
    """A part of the header.json beside the files."""
    told = found.about.get(part)
    return told if isinstance(told, dict) else {}


def _judged_by(header: dict[str, Any], dataset: Dataset) -> tuple[dict[str, Any], dict[str, Any]]:
    """Network and protocol of students: those in header.json, else the field's.

    The means that students of a generator visit besides are not in the files.
    """
    architecture, protocol = header.get("architecture"), header.get("protocol")
    if isinstance(architecture, dict) and isinstance(protocol, dict):
        return architecture, {**protocol, "with_means": False}
    usual = Protocol(augmentation=default_strategy(dataset.name, dataset.class_names))
    network = resolved_architecture(Architecture(width=_WIDTH), dataset.image_shape)
    return plain(network), plain(usual)


def _reading(header: dict[str, Any], path: Path) -> dict[str, Any]:
    """How the data set was read, where header.json says so."""
    try:
        reading = Reading(**header.get("reading", {}))
        reading.check()
    except (TypeError, InputError) as error:
        raise InputError(
            f"header.json beside {path} does not say how the data set is read: {error}"
        ) from None
    return reading.chosen()


def _usual(found: Published) -> str:
    """The whitening that files of this kind have."""
    if found.about:
        used = _told(found, "export").get("normalization")
        return "mtt" if isinstance(used, dict) and used.get("zca") == "mtt" else "none"
    grey = found.images.shape[3] == 1
    return "none" if grey else _WHITENINGS.get(found.layout, "none")


def _stated(
    found: Published, files: OtherFiles, whitening: str, dataset: str
) -> Normalization | None:
    """What the images were normalized by, as options, header or custom say; None: none does."""
    channels = found.images.shape[3]
    if files.mean or files.sd:
        return _normalization(files.mean, files.sd, channels, "--mean and --sd")
    if whitening in ("mtt", "kip"):  # of pixels as they are
        return _normalization((0.0,) * channels, (1.0,) * channels, channels, "")
    if whitening == "frepo":
        return None
    used = _told(found, "export").get("normalization")
    if isinstance(used, dict):
        mean, sd = (x if isinstance(x := used.get(n), list) else [] for n in ("mean", "sd"))
        return _normalization(mean, sd, channels, "header.json")
    known = exchange.normalization_of(dataset, channels, found.layout)
    return None if known is None else _normalization(*known, channels, "")


def _normalization(
    mean: Sequence[float], sd: Sequence[float], channels: int, where: str
) -> Normalization:
    numbers = [isinstance(x, int | float) and math.isfinite(x) for x in (*mean, *sd)]
    if not len(mean) == len(sd) == channels or not all(numbers) or min(sd) <= 0:
        raise InputError(
            f"{where} must give one mean and one positive sd for each of {channels} channels"
        )
    return Normalization.of_header({"mean": mean, "sd": sd})

"""What other projects write data sets as, and by which means and sds they normalize them."""

import re
from typing import NamedTuple


class Convention(NamedTuple):
    """How a data set stands in the field's code."""

    name: str
    mean: tuple[float, ...]
    sd: tuple[float, ...]


_CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# By the beginning of a data set's name, letters and figures alone; the longest that fits holds. The
# figures are those of `get_dataset` in the code of DC and MTT.
_KNOWN = {
    "mnist": Convention("MNIST", (0.1307,), (0.3081,)),
    "fashionmnist": Convention("FashionMNIST", (0.2861,), (0.3530,)),
    "svhn": Convention("SVHN", (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "cifar10": Convention("CIFAR10", *_CIFAR),
    "cifar100": Convention("CIFAR100", (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    "tinyimagenet": Convention("tinyimagenet", *_IMAGENET),
    **{
        f"image{what}": Convention("ImageNet", *_IMAGENET)  # and its subsets in the field
        for what in ("net", "nette", "woof", "fruit", "yellow", "meow", "squawk")
    },
}


def convention(dataset: str) -> Convention | None:
    """The field's name and normalization of a data set, None where it has none."""
    plain = re.sub(r"[^a-z0-9]", "", dataset.lower())
    fitting = [start for start in _KNOWN if plain.startswith(start)]
    return _KNOWN[max(fitting, key=len)] if fitting else None


def field_name(dataset: str) -> str:
    """How the field writes a data set: CIFAR10, MNIST ...; others as they are, without suffix."""
    known = convention(dataset)
    return re.sub(r"[^A-Za-z0-9]", "", dataset.split(".")[0]) if known is None else known.name


def normalization_of(
    dataset: str, channels: int, layout: str
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """(means, sds) by which the readers of a layout normalize a data set's images.

    layout: `torch` is DD-Ranking, which has CIFAR-10's figures for CIFAR-100 too; all others are as
      DC and MTT.
    """
    known = convention(dataset)
    if known is None or len(known.mean) != channels:
        return None
    if layout == "torch" and known.name == "CIFAR100":
        return _CIFAR
    return known.mean, known.sd

"""What distillation has to beat: the same artifact, made without learning.

A baseline is whole images, as many for each class, under one of two budgets: no fewer stored floats
than the distilled data has; or, in names that end with `_uint8`, no fewer bytes, where a pixel is
stored in one. The bytes are those of the data's arrays in the file; a header is left out, as is an
initialization of a network. Both budgets are rounded up in the baseline's favour. Names that end
with `_solved` or `_expert` are at no fewer floats too, and have labels besides: those that are
solved for (`labels.by_solving`), or an expert's (`labels.by_expert`).
"""

from typing import NamedTuple

import jax
import numpy as np
from sklearn.cluster import KMeans

from d3jax.data import Dataset, Normalization
from d3jax.types import InputError, PyTree

KINDS = ("random", "kmeans", "herding", "class_mean")
UINT8 = "_uint8"  # ends the name of a baseline at as many bytes
SOLVED = "_solved"  # ends that of one whose labels are solved for
EXPERT = "_expert"  # ends that of one whose labels are an expert's, where the data's are
LABELLED = (SOLVED, EXPERT)
_ENDS = (UINT8, SOLVED)
NAMES = (
    *KINDS,
    *(kind + end for end in _ENDS for kind in KINDS if kind != "class_mean"),
    "random_expert",
)
TAUGHT = ("rded", "random_hard")  # beside those, of a method with a teacher
REAL = ("random", "herding")  # their pixels are whole numbers as they are


class Stored(NamedTuple):
    """The size of distilled data's arrays."""

    floats: int
    bytes: int


def stored(theta: PyTree, *, labels: bool = True) -> Stored:
    """What the budgets are; an initialization of a network is no data.

    theta: arrays as they are stored, or their shapes.
    labels: whether what is stored of labels, of items or views, or of a teacher counts.
    """
    left_out = ("weights", *(() if labels else ("labels", "view_labels", "teacher")))
    arrays = jax.tree.leaves([x for n, x in theta.items() if n not in left_out])
    return Stored(sum(x.size for x in arrays), sum(x.size * x.dtype.itemsize for x in arrays))


def bought(name: str, size: Stored, dataset: Dataset) -> int:
    """Images per class of a baseline of distilled data of that size."""
    if name == "class_mean":
        return 1
    number = affordable(name, size, dataset)
    return min(number, smallest_class(dataset)) if name.endswith(UINT8) else number


def affordable(name: str, size: Stored, dataset: Dataset) -> int:
    """Images per class that the floats or bytes of distilled data buy."""
    numbers = size.bytes if name.endswith(UINT8) else size.floats
    labels = dataset.num_classes if name.endswith(LABELLED) else 0
    return images_per_class(numbers, dataset.image_shape, dataset.num_classes, labels)


def smallest_class(dataset: Dataset) -> int:
    """The images of the smallest class."""
    return int(np.bincount(dataset.train_labels, minlength=dataset.num_classes).min())


def images_per_class(
    numbers: int, image_shape: tuple[int, int, int], num_classes: int, labels: int = 0
) -> int:
    """How many whole images per class so many numbers buy, rounded up in the baselines' favour.

    labels: numbers that each image has besides.
    """
    each = int(np.prod(image_shape)) + labels
    return max(1, -(-numbers // (each * num_classes)))


def create(
    name: str, dataset: Dataset, normalization: Normalization, per_class: int, seed: int
) -> np.ndarray:
    """Normalized images f32[K * per_class, H, W, C], sorted by class.

    Args:
      name: `random` (real images, drawn without replacement), `kmeans` (the centres of k-means
        within each class, on normalized pixels), `herding` (real images whose mean stays nearest
        the class mean, see `herded`), or `class_mean` (per_class must be 1). One that ends with
        `_uint8` has pixels that are whole numbers from 0 to 255, rounded before they are normalized
        (with ZCA, whitened: what would be stored is pixels). `_solved` and `_expert` change no
        images.
      dataset: its training images are used.
      normalization: of the images.
      per_class: images per class, at most the smallest class's.
      seed: of draws and of k-means' start.

    Raises:
      InputError: an unknown name, or images per class that are none, or more than a class has.
    """
    if name not in NAMES:
        raise InputError(f"unknown baseline {name!r}; known baselines: {', '.join(NAMES)}")
    if per_class < 1:
        raise InputError(f"images per class must be at least 1, not {per_class}")
    if name == "class_mean" and per_class > 1:
        raise InputError(f"class_mean is one image per class, not {per_class}")
    if per_class > (smallest := smallest_class(dataset)):
        raise InputError(f"{per_class} images per class cannot be taken from a class of {smallest}")
    kind = name.removesuffix(UINT8).removesuffix(SOLVED).removesuffix(EXPERT)
    generator = np.random.default_rng(seed)
    chosen = []
    for label in range(dataset.num_classes):
        members = dataset.train_images[dataset.train_labels == label]
        if kind == "random":
            picked = generator.choice(len(members), per_class, replace=False)
            chosen.append(normalization.apply(members[picked]))
            continue
        images = normalization.apply(members)
        if kind == "herding":
            chosen.append(images[herded(images.reshape(len(images), -1), per_class)])
        elif kind == "class_mean" or per_class == 1:
            chosen.append(images.mean(0, keepdims=True))
        else:
            clusters = KMeans(per_class, n_init=3, random_state=seed)  # type: ignore[arg-type]
            centres = clusters.fit(images.reshape(len(images), -1)).cluster_centers_
            chosen.append(centres.reshape(per_class, *images.shape[1:]))
    stored = np.concatenate(chosen).astype(np.float32)
    if name.endswith(UINT8) and kind not in REAL:
        stored = normalization.apply(normalization.invert(stored))
    return stored


def herded(features: np.ndarray, number: int) -> np.ndarray:
    """Positions i[number] of features f[N, F] whose running mean stays nearest the mean of all.

    Greedily: each is the one, of those not taken yet, that brings the mean of what is chosen so far
    nearest. Herding (Welling, ICML 2009) as iCaRL chooses exemplars (Rebuffi et al., CVPR 2017,
    algorithm 4) and as the papers on dataset condensation choose a coreset; those take a network's
    features of unit length, where the baseline `herding` takes normalized pixels, as k-means does.

    Raises:
      InputError: more are asked for than there are.
    """
    if not 0 < number <= len(features):
        raise InputError(f"{number} of {len(features)} features cannot be chosen")
    # From the mean: what is nearest is then shortest, |sum + x|^2 = |sum|^2 + 2 sum.x + |x|^2.
    centred = features - features.mean(0, dtype=np.float64)
    lengths = (centred**2).sum(1)
    total = np.zeros(centred.shape[1])
    chosen = np.zeros(number, int)
    for turn in range(number):
        chosen[turn] = np.argmin(lengths + 2 * (centred @ total))
        total += centred[chosen[turn]]
        lengths[chosen[turn]] = np.inf  # taken
    return chosen

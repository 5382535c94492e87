"""What distillation has to beat: the same artifact, made without learning.

A baseline is whole images, as many for each class, under one of two budgets: no fewer stored floats
than the distilled data has; or, in names that end with `_uint8`, no fewer bytes, where a pixel is
stored in one. The bytes are those of the data's arrays in the file; a header is left out, as is an
initialization of a network. Both budgets are rounded up in the baseline's favour. Names that end
with `_solved` are at no fewer floats too, and have labels that are solved for (`labels.by_solving`)
besides.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from sklearn.cluster import KMeans
from sklearn.neighbors import KNeighborsClassifier

from d3jax import artifact, data
from d3jax.data import Dataset, Normalization
from d3jax.evaluate.students import Evaluation
from d3jax.host.progress import Reporter
from d3jax.types import HeldOut, InputError, PyTree, Synthetic

Judged = tuple[Evaluation, tuple[float, ...]]
Row = dict[str, Any]
KINDS = ("random", "kmeans", "herding", "class_mean")
UINT8 = "_uint8"  # ends the name of a baseline at as many bytes
SOLVED = "_solved"  # ends that of one whose labels are solved for
NAMES = (*KINDS, *(kind + end for end in (UINT8, SOLVED) for kind in KINDS if kind != "class_mean"))
TAUGHT = ("rded", "random_hard")  # beside those, of a method with a teacher
_REAL = ("random", "herding")  # their pixels are whole numbers as they are
_OF_IMAGES = ("accuracy", "seconds", "learning_rate", "nearest_neighbours")  # of a row
_DRAWS = 20  # of best_random
_CHOOSING = 2000  # at most so many images choose a learning rate


class Stored(NamedTuple):
    """The size of distilled data's arrays."""

    floats: int
    bytes: int


class Teacher(NamedTuple):
    """What a method's teacher does for baselines (`run.taught.lent`)."""

    soft: bool  # whether labels are the teacher's
    # images per class -> RDED's f32[K * per class, H, W, C], normalized, sorted by class
    rded: Callable[[int], np.ndarray]
    # a baseline of hard labels -> it with labels of the distilled data's kind
    label: Callable[[artifact.Artifact], artifact.Artifact]


def check(names: Sequence[str], theta: PyTree, dataset: data.Dataset, *, labels: bool) -> None:
    """Looks, before anything is trained, whether the baselines can be made.

    theta: of the distilled data, or its shapes; labels: whether they count (`stored`).

    Raises:
      InputError: a class has fewer images than as many floats buy. (At as many bytes a baseline has
        as many images as the smallest class then, and says so.)
    """
    size, smallest = stored(theta, labels=labels), _smallest(dataset)
    numbers = {n: bought(n, size, dataset) for n in names if not n.endswith(UINT8)}
    unmade = [name for name, number in numbers.items() if number > smallest]
    if unmade:
        number = numbers[unmade[0]]
        raise InputError(
            f"as many floats are {number} whole images per class, and the smallest class has "
            f"{smallest}; leave {' and '.join(unmade)} out of --baselines"
        )


def compare(
    names: Sequence[str],
    learning_rates: Sequence[float],
    distilled: artifact.Artifact,
    dataset: data.Dataset,
    normalization: data.Normalization,
    choosing: HeldOut,
    test: HeldOut,
    judge: Callable[[artifact.Artifact, HeldOut, HeldOut], Judged],
    seed: int,
    reporter: Reporter,
    *,
    known: Mapping[str, Row] | None = None,
    score: Callable[[artifact.Artifact, HeldOut], float] | None = None,
    neighbours: bool = False,
    lent: Teacher | None = None,
    solve: Callable[[Synthetic, PyTree], Array] | None = None,
) -> Iterator[tuple[str, Row]]:
    """Each baseline's accuracy and size, at no fewer floats or bytes than the data in `distilled`.

    Baselines of one number of images are given to `judge` one after another, since they train by
    one compiled program; those that are the same images (k-means with one centre and the class
    mean, real images that both budgets buy) are judged once.

    Args:
      names: of `baselines.NAMES` and, with a teacher, `TAUGHT`; or `best_random`: the best of 20
        random draws on the images that choose.
      learning_rates: those that `judge` tries.
      distilled: what is compared with.
      dataset, normalization: the real data.
      choosing: images that choose learning rates; see `choosing`.
      test: test images.
      judge: (baseline, images that choose, test images) -> what it reached at the learning rate
        that is best on the former, and the accuracy of each there.
      seed: of draws.
      reporter: shows progress.
      known: rows of an earlier run, by name, which are not judged again.
      score: for `best_random`: (baseline, images that choose) -> accuracy, quickly.
      lent: the teacher of `distilled`; baselines get its labels, beside as many images.
      solve: for those with solved labels: (images' parametrization, theta) -> labels f[N, K].
      neighbours: classify by the nearest stored images too (1, 3 or 5, chosen likewise).

    Yields:
      Each name that is not known and its row, as soon as it is judged: accuracy, floats (stored
      numbers), bytes (of the whole file, with its header), images_per_class, learning_rate; seconds
      (per student) and judging_seconds (in all, compilation too); a note where bytes would have
      bought more images than the smallest class has.
    """
    known = {} if known is None else known
    size = stored(distilled.theta, labels=lent is None or not lent.soft)
    numbers = {name: bought(name, size, dataset) for name in names}
    same: dict[tuple[str, int, bool, bool], Row] = {}

    def made(name: str, number: int) -> artifact.Artifact:
        def drawn(kind: str, seed: int) -> artifact.Artifact:
            images = create(kind, dataset, normalization, number, seed)
            plain = _as_artifact(kind, images, distilled)
            if not kind.endswith(SOLVED):
                return plain
            assert solve is not None
            labels = solve(plain.synthetic, plain.decodable())
            return _as_artifact(kind, images, distilled, labels)

        if lent is not None and not name.endswith(SOLVED):
            plain = name.removesuffix("_hard")
            if plain == "rded":
                return lent.label(_as_artifact(name, lent.rded(number), distilled))
            return drawn(plain, seed) if plain != name else lent.label(drawn(name, seed))

        if name != "best_random":
            return drawn(name, seed)
        assert score is not None
        draws = [drawn("random", seed + 1 + draw) for draw in range(_DRAWS)]
        return draws[int(np.argmax([score(draw, choosing) for draw in draws]))]

    def reached_by(name: str, stored: artifact.Artifact) -> Row:
        reached, found = judge(stored, choosing, test)
        tried = ", ".join(f"{r:g}: {a:.3f}" for r, a in zip(learning_rates, found, strict=True))
        reporter.say(f"baseline {name}: learning rate {reached.learning_rate:g} of {tried}")
        ends = (min(learning_rates), max(learning_rates))
        if len(found) > 1 and reached.learning_rate in ends:
            reporter.say("that is an end of what was tried; see --baseline-learning-rates")
        row = {
            "accuracy": reached.summary(),
            "seconds": reached.seconds,
            "learning_rate": reached.learning_rate,
        }
        if neighbours:
            row["nearest_neighbours"] = _neighbours(stored, choosing, test)
        return row

    for name in sorted(names, key=lambda name: numbers[name]):  # stable
        begun = time.monotonic()
        number, kind = numbers[name], name.removesuffix(UINT8)
        in_bytes = kind != name
        if number == 1:
            kind = kind.replace("kmeans", "class_mean")
        hard = lent is not None and lent.soft and name.endswith("_hard")
        kind = kind.removesuffix("_hard")
        alike = (kind, number, in_bytes and kind not in _REAL, hard)
        if name in known:
            same[alike] = {n: known[name][n] for n in _OF_IMAGES if n in known[name]}
            continue
        reporter.say(f"baseline {name}: {number} images per class")
        images = made(name, number)
        if alike not in same:
            same[alike] = reached_by(name, images)
        row = {
            **same[alike],
            "floats": images.ledger["floats"],
            "bytes": _file_size(images, in_bytes),
            "images_per_class": number,
            "judging_seconds": time.monotonic() - begun,
        }
        if in_bytes and number < (more := _affordable(name, size, dataset)):
            row["note"] = f"{number} of {more} images per class: the smallest class has less"
            reporter.say(f"baseline {name}: {row['note']}")
        yield name, row


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
    number = _affordable(name, size, dataset)
    return min(number, _smallest(dataset)) if name.endswith(UINT8) else number


def _affordable(name: str, size: Stored, dataset: Dataset) -> int:
    """Images per class that the floats or bytes of distilled data buy."""
    numbers = size.bytes if name.endswith(UINT8) else size.floats
    labels = dataset.num_classes if name.endswith(SOLVED) else 0
    return images_per_class(numbers, dataset.image_shape, dataset.num_classes, labels)


def _smallest(dataset: Dataset) -> int:
    """The images of the smallest class."""
    return int(np.bincount(dataset.train_labels, minlength=dataset.num_classes).min())


def _file_size(stored: artifact.Artifact, in_bytes: bool) -> int:
    """The bytes of the file, where pixels that are whole numbers take one each."""
    arrays = jax.tree.leaves(stored.theta["data"])
    saved = sum(x.nbytes - x.size for x in arrays) if in_bytes else 0
    return stored.ledger["bytes"]["total"] - saved


def _neighbours(stored: artifact.Artifact, choosing: HeldOut, test: HeldOut) -> dict[str, Any]:
    """The accuracy of the k nearest stored images, and k."""
    images, targets = (np.asarray(x) for x in stored.sample())
    images, labels = images.reshape(len(images), -1), targets.argmax(1)

    def accuracy(number: int, real: HeldOut) -> float:
        found = KNeighborsClassifier(number).fit(images, labels)
        seen = np.asarray(real.gather(jnp.arange(len(real.labels))))
        return float(found.score(seen.reshape(len(seen), -1), np.asarray(real.labels)))

    candidates = [k for k in (1, 3, 5) if k <= len(images)]
    best = max(candidates, key=lambda k: accuracy(k, choosing))
    return {"accuracy": accuracy(best, test), "neighbours": best}


def choosing(dataset: data.Dataset, normalization: data.Normalization, seed: int) -> HeldOut:
    """At most 2000 images that choose learning rates: validation images or, where none are set
    aside, training images."""
    images, labels = dataset.validation_images, dataset.validation_labels
    if not len(labels):
        images, labels = dataset.train_images, dataset.train_labels
    drawn = np.random.default_rng(seed).permutation(len(labels))[:_CHOOSING]
    return data.held_out(images[drawn], labels[drawn], normalization)


def _as_artifact(
    name: str, images: np.ndarray, distilled: artifact.Artifact, labels: Array | None = None
) -> artifact.Artifact:
    """Normalized images f32[N, H, W, C], sorted by class, stored as `distilled` is.

    labels: f[N, K], solved ones; default hard.

    What stands for uint8 pixels stays as it is: float16 would not hold all of them.
    """
    header = distilled.header
    half = not name.endswith(UINT8) and any(
        array.dtype == np.float16 for array in jax.tree.leaves(distilled.theta)
    )
    given = {} if labels is None else {"labels": labels}
    return artifact.create(
        {"data": {"images": jnp.asarray(images)}, **given},
        method=name,
        dataset=header["dataset"],
        class_names=tuple(header["class_names"]),
        normalization=header["normalization"],
        architecture=header["architecture"],
        parametrization={
            "kind": "pixels",
            "image_shape": header["parametrization"]["image_shape"],
            "num_classes": header["parametrization"]["num_classes"],
            "num_items": len(images),
            **({} if labels is None else {"label_kind": "solved"}),
        },
        student_learning_rate=header["student_learning_rate"],
        protocol=header["protocol"],
        seed=header["seed"],
        dtype="float16" if half else "float32",
    )


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
        (with ZCA, whitened: what would be stored is pixels). `_solved` changes no images.
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
    if per_class > _smallest(dataset):
        raise InputError(
            f"{per_class} images per class cannot be taken from a class of {_smallest(dataset)}"
        )
    kind = name.removesuffix(UINT8).removesuffix(SOLVED)
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
    if name.endswith(UINT8) and kind not in _REAL:
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

"""Baselines beside distilled data: each made, judged as it is, and measured.

Where `baselines` says what they are, this says how they do.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from sklearn.neighbors import KNeighborsClassifier

from d3jax import artifact, data
from d3jax.evaluate.baselines import (
    LABELLED,
    REAL,
    SOLVED,
    UINT8,
    affordable,
    bought,
    create,
    smallest_class,
    stored,
)
from d3jax.evaluate.students import Evaluation
from d3jax.host.progress import Reporter
from d3jax.types import HeldOut, InputError, PyTree, Synthetic

Judged = tuple[Evaluation, tuple[float, ...]]
Row = dict[str, Any]
_OF_IMAGES = ("accuracy", "seconds", "learning_rate", "nearest_neighbours")  # of a row
_DRAWS = 20  # of best_random
_CHOOSING = 2000  # at most so many images choose a learning rate


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
    size, smallest = stored(theta, labels=labels), smallest_class(dataset)
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
    labels: Mapping[str, Callable[[Synthetic, PyTree], Array]] | None = None,
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
      labels: by the ending of a name (`baselines.LABELLED`), for those with such labels: (images'
        parametrization, theta) -> labels f[N, K].
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
            if not kind.endswith(LABELLED):
                return plain
            assert labels is not None
            given = labels[kind[kind.rindex("_") :]](plain.synthetic, plain.decodable())
            return _as_artifact(kind, images, distilled, given)

        if lent is not None and not name.endswith(SOLVED):
            plain = name.removesuffix("_hard")
            if plain == "rded":
                return lent.label(_as_artifact(name, lent.rded(number), distilled))
            return drawn(plain, seed) if plain != name else lent.label(drawn(name, seed))

        if name != "best_random":
            return drawn(name, seed)
        assert score is not None
        seeds = np.random.SeedSequence((seed, 1)).generate_state(_DRAWS)  # of no other seed
        draws = [drawn("random", int(own)) for own in seeds]
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
        alike = (kind, number, in_bytes and kind not in REAL, hard)
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
        if in_bytes and number < (more := affordable(name, size, dataset)):
            row["note"] = f"{number} of {more} images per class: the smallest class has less"
            reporter.say(f"baseline {name}: {row['note']}")
        yield name, row


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

    labels: f[N, K], an expert's or solved ones, as the name ends; default hard.

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
            **({} if labels is None else {"label_kind": _label_kind(name)}),
        },
        student_learning_rate=header["student_learning_rate"],
        protocol=header["protocol"],
        seed=header["seed"],
        dtype="float16" if half else "float32",
    )


def _label_kind(name: str) -> str:
    return "solved" if name.endswith(SOLVED) else "probabilities"

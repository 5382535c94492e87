"""What distillation has to beat: the same artifact, made without learning."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.cluster import KMeans
from sklearn.neighbors import KNeighborsClassifier

from d3jax import artifact, data
from d3jax.data import Dataset, Normalization
from d3jax.evaluate.students import Evaluation
from d3jax.host.progress import Reporter
from d3jax.types import HeldOut, InputError

Judged = tuple[Evaluation, tuple[float, ...]]
_DRAWS = 20  # of best_random
_CHOOSING = 2000  # at most so many images choose a learning rate


def check(names: Sequence[str], floats: int, dataset: data.Dataset) -> None:
    """Looks, before anything is trained, whether the baselines can be made.

    Raises:
      InputError: a class has fewer images than `floats` buy.
    """
    number = images_per_class(floats, dataset.image_shape, dataset.num_classes)
    smallest = int(np.bincount(dataset.train_labels, minlength=dataset.num_classes).min())
    if number > smallest and {"random", "best_random", "kmeans"} & set(names):
        raise InputError(
            f"as many floats are {number} whole images per class, and the smallest class has "
            f"{smallest}; leave random and kmeans out of --baselines"
        )


def compare(
    names: Sequence[str],
    learning_rates: Sequence[float],
    distilled: artifact.Artifact,
    dataset: data.Dataset,
    normalization: data.Normalization,
    test: HeldOut,
    judge: Callable[[artifact.Artifact, HeldOut, HeldOut], Judged],
    seed: int,
    reporter: Reporter,
    *,
    score: Callable[[artifact.Artifact, HeldOut], float] | None = None,
    neighbours: bool = False,
) -> dict[str, dict[str, Any]]:
    """Each baseline's accuracy and size, at no fewer floats than the data in `distilled`.

    Args:
      names: of `baselines.NAMES`, or `best_random`: the best of 20 random draws on the images that
        choose.
      learning_rates: those that `judge` tries.
      distilled: what is compared with.
      dataset, normalization: the real data.
      test: test images.
      judge: (baseline, images that choose, test images) -> what it reached at the learning rate
        that is best on the former, and the accuracy of each there. The choosing images are the
        validation images or, where none are set aside, training images: where a method learns its
        own.
      seed: of draws and of the choosing images.
      reporter: shows progress.
      score: for `best_random`: (baseline, images that choose) -> accuracy, quickly.
      neighbours: classify by the nearest stored images too (1, 3 or 5, chosen likewise).
    """
    weights = distilled.theta.get("weights")  # an initialization is no data
    floats = distilled.ledger["floats"] - (0 if weights is None else weights.size)
    per_class = images_per_class(floats, dataset.image_shape, dataset.num_classes)
    choosing = _choosing(dataset, normalization, seed)
    rows = {}
    for name in names:
        number = 1 if name == "class_mean" else per_class
        reporter.say(f"baseline {name}: {number} images per class")

        def made(kind: str, seed: int, number=number) -> artifact.Artifact:
            images = create(kind, dataset, normalization, number, seed)
            return _as_artifact(kind, images, distilled)

        if name == "best_random":
            assert score is not None
            draws = [made("random", seed + 1 + draw) for draw in range(_DRAWS)]
            stored = draws[int(np.argmax([score(draw, choosing) for draw in draws]))]
        else:
            stored = made(name, seed)
        reached, found = judge(stored, choosing, test)
        tried = ", ".join(f"{r:g}: {a:.3f}" for r, a in zip(learning_rates, found, strict=True))
        reporter.say(f"baseline {name}: learning rate {reached.learning_rate:g} of {tried}")
        if len(found) > 1 and reached.learning_rate in (min(learning_rates), max(learning_rates)):
            reporter.say("that is an end of what was tried; see --baseline-learning-rates")
        rows[name] = {
            "accuracy": reached.summary(),
            "floats": stored.ledger["floats"],
            "bytes": stored.ledger["bytes"]["total"],
            "seconds": reached.seconds,
            "learning_rate": reached.learning_rate,
        }
        if neighbours:
            rows[name]["nearest_neighbours"] = _neighbours(stored, choosing, test)
    return rows


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


def _choosing(dataset: data.Dataset, normalization: data.Normalization, seed: int) -> HeldOut:
    """The images that choose learning rates."""
    images, labels = dataset.validation_images, dataset.validation_labels
    if not len(labels):
        images, labels = dataset.train_images, dataset.train_labels
    drawn = np.random.default_rng(seed).permutation(len(labels))[:_CHOOSING]
    return data.held_out(images[drawn], labels[drawn], normalization)


def _as_artifact(name: str, images: np.ndarray, distilled: artifact.Artifact) -> artifact.Artifact:
    """Normalized images f32[N, H, W, C], sorted by class, stored as `distilled` is."""
    header = distilled.header
    half = any(array.dtype == np.float16 for array in jax.tree.leaves(distilled.theta))
    return artifact.create(
        {"data": {"images": jnp.asarray(images)}},
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
        },
        student_learning_rate=header["student_learning_rate"],
        protocol=header["protocol"],
        seed=header["seed"],
        dtype="float16" if half else "float32",
    )


NAMES = ("random", "kmeans", "class_mean")


def images_per_class(floats: int, image_shape: tuple[int, int, int], num_classes: int) -> int:
    """How many whole images per class `floats` numbers buy, rounded up in the baselines' favour."""
    return max(1, -(-floats // (int(np.prod(image_shape)) * num_classes)))


def create(
    name: str, dataset: Dataset, normalization: Normalization, per_class: int, seed: int
) -> np.ndarray:
    """Normalized images f32[K * per_class, H, W, C], sorted by class.

    Args:
      name: `random` (real images, drawn without replacement), `kmeans` (the centres of k-means
        within each class, on normalized pixels), or `class_mean` (per_class must be 1).
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
    counts = np.bincount(dataset.train_labels, minlength=dataset.num_classes)
    if per_class > counts.min():
        raise InputError(
            f"{per_class} images per class cannot be taken from a class of {counts.min()}"
        )
    generator = np.random.default_rng(seed)
    chosen = []
    for label in range(dataset.num_classes):
        members = dataset.train_images[dataset.train_labels == label]
        if name == "random":
            picked = generator.choice(len(members), per_class, replace=False)
            chosen.append(normalization.apply(members[picked]))
            continue
        images = normalization.apply(members)
        if name == "class_mean" or per_class == 1:
            chosen.append(images.mean(0, keepdims=True))
        else:
            clusters = KMeans(per_class, n_init=3, random_state=seed)  # type: ignore[arg-type]
            centres = clusters.fit(images.reshape(len(images), -1)).cluster_centers_
            chosen.append(centres.reshape(per_class, *images.shape[1:]))
    return np.concatenate(chosen).astype(np.float32)

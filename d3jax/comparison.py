"""What distilled data is compared with: baselines as artifacts, judged as the artifact is."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.neighbors import KNeighborsClassifier

from d3jax import artifact, baselines, data, judging
from d3jax.evaluate import Evaluation
from d3jax.progress import Reporter
from d3jax.types import InputError, Real

Judged = tuple[Evaluation, tuple[float, ...]]
_DRAWS = 20  # of best_random
_CHOOSING = 2000  # at most so many images choose a learning rate


def check(names: Sequence[str], floats: int, dataset: data.Dataset) -> None:
    """Looks, before anything is trained, whether the baselines can be made.

    Raises:
      InputError: a class has fewer images than `floats` buy.
    """
    number = baselines.images_per_class(floats, dataset.image_shape, dataset.num_classes)
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
    test: Real,
    judge: Callable[[artifact.Artifact, Real, Real], Judged],
    seed: int,
    reporter: Reporter,
    *,
    score: Callable[[artifact.Artifact, Real], float] | None = None,
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
    per_class = baselines.images_per_class(floats, dataset.image_shape, dataset.num_classes)
    choosing = _choosing(dataset, normalization, seed)
    rows = {}
    for name in names:
        number = 1 if name == "class_mean" else per_class
        reporter.say(f"baseline {name}: {number} images per class")

        def made(kind: str, seed: int, number=number) -> artifact.Artifact:
            images = baselines.create(kind, dataset, normalization, number, seed)
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


def _neighbours(stored: artifact.Artifact, choosing: Real, test: Real) -> dict[str, Any]:
    """The accuracy of the k nearest stored images, and k."""
    images, targets = (np.asarray(x) for x in stored.sample())
    images, labels = images.reshape(len(images), -1), targets.argmax(1)

    def accuracy(number: int, real: Real) -> float:
        found = KNeighborsClassifier(number).fit(images, labels)
        seen = np.asarray(real.gather(jnp.arange(len(real.labels))))
        return float(found.score(seen.reshape(len(seen), -1), np.asarray(real.labels)))

    candidates = [k for k in (1, 3, 5) if k <= len(images)]
    best = max(candidates, key=lambda k: accuracy(k, choosing))
    return {"accuracy": accuracy(best, test), "neighbours": best}


def _choosing(dataset: data.Dataset, normalization: data.Normalization, seed: int) -> Real:
    """The images that choose learning rates."""
    images, labels = dataset.validation_images, dataset.validation_labels
    if not len(labels):
        images, labels = dataset.train_images, dataset.train_labels
    drawn = np.random.default_rng(seed).permutation(len(labels))[:_CHOOSING]
    return judging.held_out(images[drawn], labels[drawn], dataset, normalization)


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

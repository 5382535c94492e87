"""What distillation has to beat: the same artifact, made without learning."""

import numpy as np
from sklearn.cluster import KMeans

from d3jax.data import Dataset, Normalization
from d3jax.types import InputError

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

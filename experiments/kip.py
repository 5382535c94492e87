"""Kernel ridge regression in the tangent kernel of one hidden layer: KIP's notebook, an oracle.

    D3JAX_DATA_DIR=... python -m experiments.kip

Real images of CIFAR-10, one-hot or solved labels, and what they predict for the 10 000 test images.
The notebook (google-research/kip, of Nguyen et al., ICLR 2021) has the official pixels, here they
are decoded from JPEG files; the images are the same ones. In float64, 1 minute on 2 cores, nearly
all of it the kernel of 500 and 50 000 images (`tests/test_kip.py` has the same numbers).

| images | labels | loss, notebook | accuracy | loss, here | accuracy |
| --- | --- | --- | --- | --- | --- |
| 100, seed 1 | one-hot | 0.04882 | 0.2426 | 0.04893 | 0.2429 |
| 500, seed 2021 | one-hot | 0.04667 | 0.3211 | 0.04697 | 0.3177 |
| 500, seed 2021 | solved | 0.03596 | 0.4699 | 0.03600 | 0.4682 |
"""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from d3jax import data, losses
from d3jax.data import Dataset
from d3jax.data.tfds import newest_version, quiet_tfds

BIAS_VARIANCE = 0.01  # the notebook's b_std 0.1; the paper's page says 1e-4


def tangent_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The neural tangent kernel of one infinitely wide hidden layer of ReLU: f64[n, m].

    x: f64[n, d]; y: f64[m, d]. Weights have the variance 2 / fan-in, biases 0.01. Closed form of
    Cho and Saul (NeurIPS 2009), arc-cosine kernels of degree 1 and 0.
    """

    def variance(x: np.ndarray) -> np.ndarray:
        return 2 * np.square(x).sum(1) / x.shape[1] + BIAS_VARIANCE

    inputs = 2 * x @ y.T / x.shape[1] + BIAS_VARIANCE
    lengths = np.sqrt(np.outer(variance(x), variance(y)))
    angle = np.arccos(np.clip(inputs / lengths, -1, 1))
    hidden = lengths / (2 * np.pi) * (np.sin(angle) + (np.pi - angle) * np.cos(angle))
    slopes = (np.pi - angle) / (2 * np.pi)
    return 2 * hidden + BIAS_VARIANCE + 2 * inputs * slopes


def features_of(own: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Features with whose inner products kernels are what they are: own f64[n, n], others [m, n].

    Those of the n images are the Cholesky factor of `own`.
    """
    factor = np.linalg.cholesky(own)
    return [factor, *(np.linalg.solve(factor, kernel.T).T for kernel in others)]


def normalized(images: np.ndarray, train: np.ndarray) -> np.ndarray:
    """f64[n, d]: less the training images' mean and by their standard deviation, by channel."""
    wide = train.reshape(-1, train.shape[-1])
    # In blocks: a sum of so many float32 numbers would not grow any more.
    total = sum(b.astype(np.float64).sum(0) for b in np.array_split(wide, 50))
    squares = sum(np.square(b.astype(np.float64)).sum(0) for b in np.array_split(wide, 50))
    mean = total / len(wide)
    found = (images - mean) / np.sqrt(squares / len(wide) - mean**2)
    return found.reshape(len(images), -1)


def record_order(folder: Path) -> np.ndarray:
    """Where each of a prepared CIFAR-10's training records is in the official order: i[N].

    The notebook draws from records as they come, d3jax puts them into the official order.
    """
    with quiet_tfds() as tfds:
        builder = tfds.builder_from_directory(folder)
        skipped = {"image": tfds.decode.SkipDecoding()}
        source = builder.as_data_source(split="train", decoders=skipped)
        records = source.__getitems__(list(range(len(source))))
    return np.asarray([int(record["id"].rpartition(b"_")[2]) for record in records])


def drawn(labels: np.ndarray, number: int, seed: int) -> np.ndarray:
    """The notebook's positions i[number] of real images, as many of each class."""
    generator = np.random.RandomState(seed)
    classes = range(labels.max() + 1)
    each = number // len(classes)
    return np.concatenate(
        [generator.choice(np.where(labels == k)[0], each, replace=False) for k in classes]
    )


def centred(labels: np.ndarray, classes: int) -> np.ndarray:
    """One-hot labels less 1 / K, f64[n, K]."""
    return np.eye(classes)[labels] - 1 / classes


def judged(features: np.ndarray, targets: np.ndarray, others: np.ndarray, labels: np.ndarray):
    """(KIP's loss, a mean over classes too; accuracy) of what ridge regression predicts."""
    with jax.enable_x64(True):
        predicted = losses.kernel_ridge_regression(
            jnp.asarray(features), jnp.asarray(targets), jnp.asarray(others)
        )
        found = np.asarray(predicted)
    error = 0.5 * np.square(found - centred(labels, found.shape[1])).mean()
    return float(error), float((found.argmax(1) == labels).mean())


def rows(
    dataset: Dataset, number: int, seed: int, order: np.ndarray | None = None, solve: bool = True
) -> dict[str, tuple[float, float]]:
    """(loss, accuracy) on the test images of `number` real ones: one-hot, and solved labels.

    order: i[N], in which images are counted; default as they are.
    """
    classes, labels = dataset.num_classes, np.asarray(dataset.train_labels)
    order = np.arange(len(labels)) if order is None else order
    chosen = order[drawn(labels[order], number, seed)]
    images = np.asarray(dataset.train_images)
    train, test = normalized(images, images), normalized(np.asarray(dataset.test_images), images)
    own = train[chosen]
    kernels = [tangent_kernel(own, own), tangent_kernel(test, own)]
    kernels += [tangent_kernel(train, own)] if solve else []
    features, others, *real = features_of(*kernels)
    one_hot = centred(labels[chosen], classes)
    found = {"one-hot": judged(features, one_hot, others, dataset.test_labels)}
    if solve:
        with jax.enable_x64(True):
            wide, targets = jnp.asarray(real[0]), jnp.asarray(centred(labels, classes))
            solved = losses.solved_labels(jnp.asarray(features), wide, targets, 1e-6)
        found["solved"] = judged(features, np.asarray(solved), others, dataset.test_labels)
    return found


def cifar10() -> tuple[Dataset, np.ndarray]:
    """The data set in $D3JAX_DATA_DIR, and the order of its records."""
    folder = newest_version(Path(os.environ["D3JAX_DATA_DIR"]) / "tfds" / "cifar10")
    assert folder is not None
    return data.load("cifar10"), record_order(folder)


if __name__ == "__main__":
    CIFAR10, ORDER = cifar10()
    for images, seed in ((100, 1), (500, 2021)):
        for name, (error, accuracy) in rows(CIFAR10, images, seed, ORDER, images == 500).items():
            print(f"{images} images, seed {seed}, {name}: {error:.5f} / {accuracy:.4f}")

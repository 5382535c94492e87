"""d3jax.evaluate.baselines: real images, k-means and class means as stored images."""

import numpy as np
import pytest

from d3jax.data import Dataset, Normalization
from d3jax.evaluate import baselines
from d3jax.types import InputError

SHAPE = (8, 8, 1)


def dataset(counts=(6, 9, 4)):
    """Unequal classes whose images lie around two far centres each."""
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int32)
    images = generator.integers(0, 5, (len(labels), *SHAPE))
    images += 40 * labels[:, None, None, None]
    for label in range(len(counts)):
        images[np.flatnonzero(labels == label)[::2]] += 100
    images = images.astype(np.uint8)
    names = tuple(str(label) for label in range(len(counts)))
    return Dataset("made", images, labels, images[:0], labels[:0], images, labels, names)


@pytest.fixture(scope="module")
def made():
    data = dataset()
    return data, Normalization.of(data.train_images)


@pytest.mark.parametrize(
    ("floats", "expected"),
    [(1, 1), (639, 1), (640, 1), (641, 2), (1280, 2), (4065, 7), (4480, 7), (4481, 8), (0, 1)],
)
def test_images_per_class_round_up(floats, expected):
    assert baselines.images_per_class(floats, SHAPE, 10) == expected


def test_random_images_are_different_real_ones_of_their_class(made):
    data, normalization = made
    images = baselines.create("random", data, normalization, 3, 0)
    assert images.shape == (9, *SHAPE)
    assert images.dtype == np.float32
    real = normalization.apply(data.train_images)
    found = [int(np.abs(real - image).max((1, 2, 3)).argmin()) for image in images]
    for position, image in zip(found, images):
        np.testing.assert_allclose(real[position], image, atol=1e-6)
    assert len(set(found)) == 9
    np.testing.assert_array_equal(data.train_labels[found], np.repeat(np.arange(3), 3))


def test_random_images_follow_the_seed(made):
    one, same = (baselines.create("random", *made, 3, 5) for _ in range(2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, baselines.create("random", *made, 3, 6))


@pytest.mark.parametrize("name", ["class_mean", "kmeans"])
def test_one_image_a_class_is_its_mean(made, name):
    data, normalization = made
    images = baselines.create(name, data, normalization, 1, 0)
    pixels = data.train_images / 255.0
    for label in range(3):
        mean = pixels[data.train_labels == label].mean(0)
        expected = (mean - normalization.mean) / normalization.sd
        np.testing.assert_allclose(images[label], expected, atol=1e-5)


def test_kmeans_finds_the_two_groups_of_each_class(made):
    data, normalization = made
    images = baselines.create("kmeans", data, normalization, 2, 0)
    assert images.shape == (6, *SHAPE)
    assert images.dtype == np.float32
    real = normalization.apply(data.train_images)
    for label in range(3):
        members = real[data.train_labels == label]
        expected = np.stack([members[1::2].mean(0), members[::2].mean(0)])
        centres = images[2 * label : 2 * label + 2]
        centres = centres[np.argsort(centres.mean((1, 2, 3)))]
        np.testing.assert_allclose(centres, expected, atol=1e-4)


@pytest.mark.parametrize("name", baselines.NAMES)
def test_more_than_a_class_has(made, name):
    with pytest.raises(InputError, match="one image" if name == "class_mean" else "class of 4"):
        baselines.create(name, *made, 5, 0)


def test_unknown_baseline(made):
    with pytest.raises(InputError, match="known baselines: random, kmeans, class_mean"):
        baselines.create("herding", *made, 1, 0)


def test_class_means_are_one_a_class(made):
    with pytest.raises(InputError, match="one image"):
        baselines.create("class_mean", *made, 2, 0)


@pytest.mark.parametrize("name", baselines.NAMES)
@pytest.mark.parametrize("per_class", [0, -1])
def test_no_images(made, name, per_class):
    with pytest.raises(InputError, match="at least 1"):
        baselines.create(name, *made, per_class, 0)

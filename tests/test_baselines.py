"""d3jax.evaluate.baselines: real images, k-means and class means as stored images."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from d3jax import artifact, data
from d3jax.data import Dataset, Normalization
from d3jax.evaluate import Evaluation, baselines, comparison
from d3jax.host.progress import Reporter
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
    with pytest.raises(InputError, match="known baselines: random, kmeans, herding, class_mean"):
        baselines.create("class_mean_uint8", *made, 1, 0)


def test_class_means_are_one_a_class(made):
    with pytest.raises(InputError, match="one image"):
        baselines.create("class_mean", *made, 2, 0)


@pytest.mark.parametrize("name", baselines.NAMES)
@pytest.mark.parametrize("per_class", [0, -1])
def test_no_images(made, name, per_class):
    with pytest.raises(InputError, match="at least 1"):
        baselines.create(name, *made, per_class, 0)


# Herding


def slowly_herded(features, number):
    """Every choice tried, its mean written out."""
    chosen = []
    for _ in range(number):
        left = [i for i in range(len(features)) if i not in chosen]
        means = {i: features[[*chosen, i]].mean(0) for i in left}
        chosen.append(min(left, key=lambda i: ((features.mean(0) - means[i]) ** 2).sum()))
    return chosen


def test_herding_is_greedy():
    features = np.random.default_rng(3).gamma(1.0, size=(40, 6))
    found = baselines.herded(features.astype(np.float32), 12)
    assert found.tolist() == slowly_herded(features, 12)
    # By hand: the mean is 3; 2 is nearest, then 4 with it (3), then 1 (7 / 3) and not 8 (14 / 3).
    assert baselines.herded(np.array([[1.0], [8], [2], [0], [4]]), 3).tolist() == [2, 4, 0]
    assert sorted(baselines.herded(features, 40)) == list(range(40))
    with pytest.raises(InputError, match="41 of 40"):
        baselines.herded(features, 41)


def test_the_baseline_herds_each_class(made):
    data, normalization = made
    images = baselines.create("herding", data, normalization, 3, 0)
    pixels = (data.train_images / 255 - normalization.mean) / normalization.sd
    for label in range(3):
        members = pixels[data.train_labels == label]
        chosen = slowly_herded(members.reshape(len(members), -1), 3)
        np.testing.assert_allclose(images[3 * label : 3 * label + 3], members[chosen], atol=1e-5)


# As many bytes


@pytest.mark.parametrize("zca", [False, True])
@pytest.mark.parametrize("name", ["random_uint8", "kmeans_uint8", "herding_uint8"])
def test_pixels_of_a_byte_are_whole_numbers(name, zca):
    data = dataset()
    normalization = Normalization.of(data.train_images, zca)
    images = baselines.create(name, data, normalization, 2, 0)
    flat = images.reshape(len(images), -1).astype(np.float64)
    if zca:
        assert normalization.zca is not None
        flat = np.linalg.solve(normalization.zca.astype(np.float64), flat.T).T
        flat = flat + normalization.zca_mean
    pixels = 255 * (flat * normalization.sd + normalization.mean)
    np.testing.assert_allclose(pixels, np.rint(pixels), atol=2e-3)
    plain = baselines.create(name.removesuffix("_uint8"), data, normalization, 2, 0)
    if name == "kmeans_uint8":
        # The pixels of a centre are the mean of its images', whitened or not; rounded.
        assert np.abs(plain - images).max() > 1e-4
        for label in range(3):
            members = data.train_images[data.train_labels == label].reshape(-1, 64)
            groups = [members[::2].mean(0), members[1::2].mean(0)]
            found = pixels[2 * label : 2 * label + 2]
            for group in groups:
                assert np.abs(found - group).max(1).min() < 0.5 + 1e-2
    else:
        np.testing.assert_allclose(images, plain, atol=1e-5)


def distilled_like(images, dtype="float16", weights=0):
    """An artifact of so many images of three classes."""
    theta = {"data": {"images": jnp.zeros((images, *SHAPE))}}
    if weights:
        theta["weights"] = jnp.zeros(weights)
    return artifact.create(
        theta,
        method="mtt",
        dataset="made",
        class_names=("0", "1", "2"),
        normalization={"mean": [0.0], "sd": [1.0], "zca": None},
        architecture={},
        parametrization={"kind": "pixels", "image_shape": [8, 8, 1], "num_classes": 3,
                         "num_items": images},
        student_learning_rate=0.01,
        protocol={},
        seed=0,
        dtype=dtype,
    )  # fmt: skip


def compared(names, distilled, counts=(6, 9, 4), known=None, labels=None):
    """The rows that were not known, and the artifacts that were judged."""
    found = []

    def judge(stored, choosing, test):
        found.append(stored)
        return Evaluation(np.array([0.5, 0.7]), 0.1, 0, 1.0), (0.6,)

    world = dataset(counts)
    normalization = Normalization.of(world.train_images)
    test = data.held_out(world.test_images, world.test_labels, normalization)
    reporter = Reporter()
    reporter.console.quiet = True
    rows = comparison.compare(
        names, [0.1], distilled, world, normalization, test, test, judge, 0, reporter, known=known,
        labels=labels,
    )  # fmt: skip
    return dict(rows), found


def test_both_budgets():
    """Six float16 images of three classes: two images a class of floats, four of as many bytes."""
    names = ("kmeans_uint8", "random", "herding_uint8", "kmeans", "class_mean", "random_uint8")
    rows, judged = compared(names, distilled_like(6))
    assert set(rows) == set(names)
    numbers = {name: row["images_per_class"] for name, row in rows.items()}
    assert numbers == {
        "kmeans_uint8": 4, "random": 2, "herding_uint8": 4, "kmeans": 2, "class_mean": 1,
        "random_uint8": 4,
    }  # fmt: skip
    # Those of one shape one after another: they train by one compiled program.
    assert [stored.synthetic.num_items for stored in judged] == [3, 6, 6, 12, 12, 12]
    for name, stored in {s.header["method"]: s for s in judged}.items():
        each = 1 if name.endswith("_uint8") else 2
        assert rows[name]["floats"] == 64 * 3 * numbers[name]
        header = rows[name]["bytes"] - each * rows[name]["floats"]  # the rest of the file
        assert (
            header == len(artifact.file._serialize(stored)) - stored.theta["data"]["images"].nbytes
        )
        assert "note" not in rows[name]
        # float16 does not hold every pixel
        dtype = np.float32 if name.endswith("_uint8") else np.float16
        assert stored.theta["data"]["images"].dtype == dtype
    assert rows["random_uint8"]["accuracy"]["mean"] == pytest.approx(0.6)


@pytest.mark.parametrize(("dtype", "images"), [("float16", 7), ("float32", 13)])
def test_bytes_are_of_the_arrays_as_stored_and_round_up(dtype, images):
    """7 images in float16 are 896 bytes: 14 of a byte a pixel, five a class with one to spare. An
    initialization is no data."""
    counts = (30, 30, 30)
    rows, _ = compared(("random_uint8",), distilled_like(images, dtype, weights=999), counts)
    expected = {"float16": math.ceil(14 / 3), "float32": math.ceil(52 / 3)}[dtype]
    assert rows["random_uint8"]["images_per_class"] == expected


@pytest.mark.parametrize(
    ("name", "kind"), [("random_solved", "solved"), ("random_expert", "probabilities")]
)
def test_given_labels_come_to_the_same_images_and_are_counted(name, kind):
    """6 * 67 numbers are two images a class of 64 pixels and 3 labels, or three without labels."""
    labels = jnp.eye(3, dtype=jnp.float32)[jnp.asarray([2, 0, 1, 0, 2, 1])]
    rows, (plain, given) = compared(
        ("random", name), distilled_like(6), labels={name[6:]: lambda data, theta: labels}
    )
    assert [row["images_per_class"] for row in rows.values()] == [2, 2]
    assert [row["floats"] for row in rows.values()] == [6 * 64, 6 * 67]
    images = [np.asarray(stored.theta["data"]["images"]) for stored in (plain, given)]
    np.testing.assert_array_equal(*images)
    np.testing.assert_array_equal(given.sample().targets, labels)
    assert given.synthetic.label_kind == kind
    size = baselines.Stored(6 * 67, 0)
    assert [baselines.bought(n, size, dataset()) for n in ("random", name)] == [3, 2]


def test_as_many_bytes_are_at_most_the_smallest_class():
    rows, _ = compared(("random_uint8", "random", "kmeans_uint8"), distilled_like(9))
    assert rows["random"]["images_per_class"] == 3
    for name in ("random_uint8", "kmeans_uint8"):
        assert rows[name]["images_per_class"] == 4
        assert rows[name]["note"] == "4 of 6 images per class: the smallest class has less"


def test_the_same_images_are_judged_once():
    """One float32 image of three classes is one of floats a class, and two of bytes; the smallest
    class has one."""
    names = ("random", "random_uint8", "kmeans", "class_mean", "kmeans_uint8")
    rows, judged = compared(names, distilled_like(1, "float32"), counts=(6, 9, 1))
    assert {row["images_per_class"] for row in rows.values()} == {1}
    # The class mean is k-means with one centre; real pixels are whole numbers under both budgets.
    assert [stored.header["method"] for stored in judged] == ["random", "kmeans", "kmeans_uint8"]
    assert rows["class_mean"]["accuracy"] == rows["kmeans"]["accuracy"]
    assert rows["random_uint8"]["accuracy"] == rows["random"]["accuracy"]
    saved = rows["random"]["bytes"] - rows["random_uint8"]["bytes"]
    assert saved == pytest.approx(3 * 3 * 64, abs=16)  # but for the name, in the header


def test_rows_that_are_known_are_not_judged_again():
    names = ("random", "random_uint8", "kmeans", "class_mean", "kmeans_uint8")
    one, counts = distilled_like(1, "float32"), (6, 9, 1)
    rows, _ = compared(names, one, counts)
    known = {name: rows[name] for name in ("random", "kmeans")}
    others, judged = compared(names, one, counts, known)
    # Those that are the same images take their accuracy from the rows that are known.
    assert [stored.header["method"] for stored in judged] == ["kmeans_uint8"]
    for row in (*rows.values(), *others.values()):
        assert row.pop("judging_seconds") >= 0
    assert others == {name: rows[name] for name in names if name not in known}


def test_more_floats_than_the_smallest_class_has_are_refused():
    """As many as `compare` would take: with the teacher's labels, which baselines get too, out."""
    world, enough = dataset(), np.zeros(4 * 3 * 64, np.float32)
    theta = {"data": enough, "labels": np.zeros(12, np.float32)}
    comparison.check(baselines.NAMES, {"data": enough}, world, labels=True)
    comparison.check(baselines.NAMES, theta, world, labels=False)
    with pytest.raises(InputError, match=r"5 whole .* has 4; leave random and herding out"):
        comparison.check(
            ("random", "class_mean", "kmeans_uint8", "herding"), theta, world, labels=True
        )

"""d3jax.evaluate.population: what batch norm normalizes test images by, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import IMAGE_SHAPE, NUM_CLASSES, make_real, random_params
from jax.flatten_util import ravel_pytree

from d3jax import artifact, data, experts, networks
from d3jax.evaluate import (
    Protocol,
    accuracy,
    answers,
    evaluate,
    population,
    replay,
    train_students,
)
from d3jax.evaluate.recipe import Recipe
from d3jax.experts.store import Snapshots
from d3jax.host.progress import Reporter
from d3jax.run import join
from d3jax.run.commands import Join
from d3jax.run.job import make_world
from d3jax.run.options import Architecture
from d3jax.synthetic import pixels
from d3jax.types import Batch, HeldOut, InputError

KEY = jax.random.key(3)


def batch_norm_network(depth, width=3):
    return networks.create(
        "convnet", image_shape=IMAGE_SHAPE, num_classes=NUM_CLASSES, width=width, depth=depth,
        norm="batch",
    )  # fmt: skip


def vectors(network, number=2):
    return jnp.stack([ravel_pytree(random_params(network.init, k))[0] for k in range(number)])


def forward(params, images, statistics=None):
    """A ConvNet of NumPy in float64: its logits, and (mean, variance) of each norm's input.

    Normalized by `statistics` or, without them, by those of all `images`.
    """
    x, found = np.asarray(images, np.float64), []
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    depth = sum(name.startswith("Convolution") for name in params)
    for layer in range(depth):
        convolution, norm = params[f"Convolution_{layer}"], params[f"Normalization_{layer}"]
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
        x = np.einsum("bhwcij,ijcd->bhwd", windows, convolution["kernel"]) + convolution["bias"]
        found.append((x.mean((0, 1, 2)), x.var((0, 1, 2))))
        mean, variance = found[-1] if statistics is None else statistics[layer]
        x = (x - mean) / np.sqrt(variance + 1e-5) * norm["scale"] + norm["bias"]
        batch, side, _, width = x.shape
        x = np.maximum(x, 0).reshape(batch, side // 2, 2, side // 2, 2, width).mean((2, 4))
    x = x.reshape(len(x), -1) @ params["Linear_0"]["kernel"] + params["Linear_0"]["bias"]
    return x, found


def check(statistics, network, params, images):
    """Those of each network alone, over all `images` at once."""
    unravel = networks.unraveler(network)
    for number, vector in enumerate(params):
        _, expected = forward(unravel(vector), images)
        assert len(statistics) == len(expected)
        for (mean, variance), (own_mean, own_variance) in zip(statistics, expected):
            np.testing.assert_allclose(mean[number], own_mean, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(variance[number], own_variance, rtol=1e-4)


def stored(images):
    """Images, sorted by class, and theta."""
    data = pixels.create(
        image_shape=IMAGE_SHAPE, num_classes=NUM_CLASSES, num_items=len(images), label_kind="free"
    )
    labels = jax.nn.one_hot(np.arange(len(images)) * NUM_CLASSES // len(images), NUM_CLASSES)
    return data, {"data": {"images": jnp.asarray(images, jnp.float32)}, "labels": labels}


def random_images(number, seed=0):
    """Of very different brightness, so that batches' means differ."""
    generator = np.random.default_rng(seed)
    shift = generator.normal(size=(number, 1, 1, 1)) * 2
    return (generator.normal(size=(number, *IMAGE_SHAPE)) + shift).astype(np.float32)


@pytest.mark.parametrize(("batch_size", "depth"), [(7, 2), (100, 2), (3, 1), (1, 1)])
def test_over_items_as_if_in_one_batch(batch_size, depth):
    """7 items: all in one batch, or (what reaches the first norm) in batches of 3, 2 and 2."""
    network, images = batch_norm_network(depth), random_images(7)
    data, theta = stored(images)
    params = vectors(network, 6)  # not all at once
    found = population.of_items(network, params, data, theta, KEY, batch_size=batch_size)
    check(found, network, params, images)


def test_samples_and_means_are_visited_equally_often():
    """Samples of half the contrast, and one grey level brighter."""
    network, images = batch_norm_network(1), random_images(6)
    plain, theta = stored(images)

    def sample(theta, key, indices=None):
        batch = plain.sample(theta, None, indices)
        return batch if key is None else Batch(batch.images / 2 + 1, batch.targets)

    data, params = plain._replace(sample=sample), vectors(network)
    samples = population.of_items(network, params, data, theta, KEY, batch_size=4)
    check(samples, network, params, images / 2 + 1)
    both = population.of_items(network, params, data, theta, KEY, batch_size=4, with_means=True)
    check(both, network, params, np.concatenate([images, images / 2 + 1]))


def test_every_visit_draws_a_fresh_sample():
    """A sample is any of 40 images: 3 items, visited often, are as good as all 40."""
    network, images = batch_norm_network(1), random_images(40)
    plain, theta = stored(images[:3])

    def sample(theta, key, indices=None):
        drawn = jax.random.randint(key, (3 if indices is None else len(indices),), 0, 40)
        return Batch(jnp.asarray(images)[drawn], plain.sample(theta, None, indices).targets)

    data, params = plain._replace(sample=sample), vectors(network, 1)
    ((mean, variance),) = population.of_items(network, params, data, theta, KEY, batch_size=2)
    _, ((expected_mean, expected),) = forward(networks.unraveler(network)(params[0]), images)
    np.testing.assert_allclose(mean[0], expected_mean, atol=0.1 * np.sqrt(expected.max()))
    np.testing.assert_allclose(variance[0], expected, rtol=0.1)


def test_over_real_images(tiny_network):
    """1101 images, sorted by brightness, in batches of 367."""
    network = batch_norm_network(1)
    pixels_ = np.sort(np.random.default_rng(0).integers(0, 256, (1101, *IMAGE_SHAPE)), axis=0)
    real = make_real(tiny_network, 0)._replace(images=jnp.asarray(pixels_, jnp.uint8))
    params = vectors(network)
    found = population.of_images(network, params, real)
    check(found, network, params, (pixels_ / 255 - 0.4) / 0.3)
    # Of a subtask the rest is padding.
    found = population.of_images(network, params, real._replace(number=jnp.asarray(700)))
    check(found, network, params, (pixels_[:700] / 255 - 0.4) / 0.3)


def test_batches_are_mixed():
    """With two norms batches matter: sorted ones would be each of one brightness."""
    network = batch_norm_network(2)
    order = np.argsort(np.random.default_rng(1).normal(size=1000))
    levels = np.linspace(-3, 3, 1000, dtype=np.float32)[:, None, None, None]
    images = random_images(1000) / 4 + levels
    params = vectors(network)
    real = make_real(network, 0)._replace(images=jnp.asarray(images))
    found = population.of_images(network, params, real)
    shuffled = population.of_images(network, params, real._replace(images=real.images[order]))
    for (mean, variance), (other_mean, other_variance) in zip(found, shuffled):
        np.testing.assert_allclose(mean, other_mean, atol=0.05)
        np.testing.assert_allclose(variance, other_variance, rtol=0.1)


def test_without_batch_norm_nothing_is_done(tiny_network, tiny_real):
    params = vectors(tiny_network)
    real = tiny_real._replace(images=jax.ShapeDtypeStruct((9, *IMAGE_SHAPE), jnp.float32))
    assert population.of_images(tiny_network, params, real) == ()
    data, theta = stored(random_images(3))
    theta = jax.eval_shape(lambda theta: theta, theta)
    assert population.of_items(tiny_network, params, data, theta, KEY, batch_size=2) == ()


@pytest.fixture(scope="module")
def students():
    """Distilled images of three levels of brightness, and test images sorted by class."""
    generator = np.random.default_rng(2)
    labels = np.repeat(np.arange(NUM_CLASSES), 40)
    images = generator.normal(size=(120, *IMAGE_SHAPE)) * 2 + labels[:, None, None, None] - 1
    network = batch_norm_network(2, width=4)
    real = make_real(network, 0)
    test = HeldOut(
        jnp.asarray(images, jnp.float32), jnp.asarray(labels, jnp.int32), real.mean, real.sd
    )
    rows = np.concatenate([np.arange(k * 40, k * 40 + 10) for k in range(NUM_CLASSES)])
    data, theta = stored(images[rows])
    protocol = Protocol(students=2, epochs=20, augmentation=())
    return network, data, theta, test, protocol


def part(test, rows):
    return test._replace(images=test.images[rows], labels=test.labels[rows])


def test_a_tests_answers_do_not_depend_on_its_other_images(students):
    """What students reach on all images is what they reach on each class alone, in NumPy too."""
    network, data, theta, test, protocol = students

    def right(rows):
        reached = evaluate(network, data, theta, part(test, rows), protocol, 0.05, KEY)
        return reached.per_student * len(rows)

    together = right(np.arange(120))
    by_class = sum(right(np.arange(k * 40, k * 40 + 40)) for k in range(NUM_CLASSES))
    np.testing.assert_allclose(together, by_class, atol=1e-3)
    assert together.min() > 60  # learned something: 40 are right by chance
    params, _ = train_students(network, data, theta, protocol, 0.05, KEY)
    for number, vector in enumerate(params):
        student = networks.unraveler(network)(vector)
        _, statistics = forward(student, theta["data"]["images"])  # all were one batch
        logits, _ = forward(student, test.images, statistics)
        best = np.sort(logits, axis=1)
        assert (best[:, -1] - best[:, -2]).min() > 1e-4  # no ties that rounding would break
        assert together[number] == pytest.approx(np.sum(logits.argmax(1) == test.labels))


def test_order_and_grouping_change_no_answer(students):
    network, data, theta, test, protocol = students
    params, _ = train_students(network, data, theta, protocol, 0.05, KEY)
    statistics = population.of_items(network, params, data, theta, KEY, batch_size=256)
    expected = answers(network)(params, test, statistics)
    order = np.random.default_rng(0).permutation(120)
    np.testing.assert_array_equal(
        answers(network)(params, part(test, order), statistics), expected[:, order]
    )
    for batch_size in (1, 7, 40):
        found = answers(network, batch_size)(params, test, statistics)
        np.testing.assert_array_equal(found, expected)


def test_batch_norm_is_not_tested_by_the_tests_own_statistics(students):
    network, _, _, test, _ = students
    with pytest.raises(InputError, match="population statistics, never those of the test images"):
        accuracy(network, vectors(network), test)


def test_replay_does_not_depend_on_the_tests_other_images(students):
    """Of a replay on a net of one batch norm, in NumPy; its statistics are those of all items."""
    _, data, theta, test, _ = students
    network = batch_norm_network(1)
    weights = vectors(network, 3)
    recipe = Recipe(5, 2, (0.1,) * 10, "random")

    def counts(rows):
        return replay.replayed(network, data, theta, recipe, weights, part(test, rows), KEY)[1]

    by_class = sum(counts(np.arange(k * 40, k * 40 + 40)) for k in range(NUM_CLASSES))
    np.testing.assert_array_equal(counts(np.arange(120)), by_class)
    params, _ = replay.train(network, data, theta, recipe, weights, KEY)
    for vector, found in zip(params, by_class):
        student = networks.unraveler(network)(vector)
        _, statistics = forward(student, theta["data"]["images"])
        predicted = forward(student, test.images, statistics)[0].argmax(1)
        expected = np.zeros((NUM_CLASSES, NUM_CLASSES), int)
        np.add.at(expected, (np.asarray(test.labels), predicted), 1)
        np.testing.assert_array_equal(found, expected)


def by_hand(data, theta, replay):
    return artifact.create(
        theta, method="dd", dataset="digits", class_names=("a", "b", "c"),
        normalization={"mean": [0.0], "sd": [1.0], "zca": None},
        architecture={"network": "convnet"}, student_learning_rate=0.1, protocol={}, seed=0,
        parametrization={
            "kind": "pixels", "image_shape": list(IMAGE_SHAPE), "num_classes": NUM_CLASSES,
            "num_items": data.num_items, "label_kind": "free",
        },
        dtype="float32", replay=replay,
    )  # fmt: skip


def test_before_the_steps_statistics_are_of_what_was_seen_then(students):
    """The very images of the test, but brighter: all of them then look dark, and alike."""
    _, data, theta, test, _ = students
    network = batch_norm_network(1)
    params = vectors(network, 2)
    seen = make_real(network, 0)._replace(images=test.images[:60] * 2 + 1)
    recipe = {"steps": 1, "passes": 1, "learning_rates": [0.1], "optimizer": "sgd",
              "initialization": "random", "attack": None}  # fmt: skip
    made = by_hand(data, theta, recipe)
    for images, given in ((seen.images, seen), (theta["data"]["images"], None)):
        _, more = replay.judge(made, network, params, test, KEY, Reporter(), given)
        expected = []
        for vector in params:
            first = networks.unraveler(network)(vector)
            logits = forward(first, test.images, forward(first, images)[1])[0]
            expected.append(np.mean(logits.argmax(1) == test.labels))
        np.testing.assert_allclose(more["before"]["per_student"], expected, atol=1e-6)


def test_an_experts_epoch_is_chosen_with_its_training_images_statistics(tmp_path, monkeypatch):
    """On validation images of two classes alone, whose own statistics are others; in NumPy."""
    dataset = data.load("digits", train_limit=150, validation=60, seed=0)
    two = np.flatnonzero(dataset.validation_labels < 2)
    dataset = dataset._replace(
        validation_images=dataset.validation_images[two],
        validation_labels=dataset.validation_labels[two],
    )
    normalization = data.Normalization.of(dataset.train_images)
    architecture = Architecture(
        network="convnet", width=3, depth=1, norm="batch", pooling="average"
    )
    world = make_world(dataset, normalization, architecture, on_device=False)
    options = Join(
        (), tmp_path / "joined", "expert",
        expert=experts.Options(epochs=8, learning_rate=0.1, batch_size=15, augmentation=()),
        experts=tmp_path,
    )  # fmt: skip
    measured, given = [], []

    def noted(*arguments):
        measured.append(accuracy(*arguments))
        return measured[-1]

    monkeypatch.setattr(join.evaluate, "accuracy", noted)
    monkeypatch.setattr(join.joining, "labelled", lambda _, *more: given.append(more))
    join.labelled(None, world, architecture, options, Reporter())
    (path,) = (folder for folder in tmp_path.iterdir() if folder.is_dir())
    epochs = Snapshots(path).read_all()[0]
    train, held = (
        normalization.apply(x) for x in (dataset.train_images, dataset.validation_images)
    )
    expected = []
    for vector in epochs:
        expert = networks.unraveler(world.network)(jnp.asarray(vector))
        predicted = forward(expert, held, forward(expert, train)[1])[0].argmax(1)
        expected.append(np.mean(predicted == dataset.validation_labels))
    np.testing.assert_allclose(measured[0], expected, atol=1e-6)
    assert max(expected) > 0.8
    ((_, params, _, statistics),) = given  # with which the chosen epoch labels, too
    (mean, variance), (own_mean, own_variance) = *statistics, *forward(params, train)[1]
    np.testing.assert_allclose(mean, own_mean, atol=1e-5)
    np.testing.assert_allclose(variance, own_variance, rtol=1e-4)
    # Without validation images it is the last epoch.
    none = {"validation_images": dataset.validation_images[:0], "validation_labels": two[:0]}
    world = make_world(dataset._replace(**none), normalization, architecture, on_device=False)
    join.labelled(None, world, architecture, options, Reporter())
    last = networks.unraveler(world.network)(jnp.asarray(epochs[-1]))
    jax.tree.map(np.testing.assert_array_equal, given[-1][1], last)

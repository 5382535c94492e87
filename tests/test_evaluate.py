"""d3jax.evaluate: students against a plain NumPy loop, and what is counted at the end."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from d3jax import data, networks, synthetic
from d3jax.evaluate import (
    Evaluation,
    Protocol,
    accuracy,
    evaluate,
    evaluate_best,
    students,
    train_students,
)
from d3jax.host.progress import Reporter
from d3jax.types import InputError

PLAIN = Protocol(students=2, epochs=8, batch_size=32, learning_rate=0.05, augmentation=())


@pytest.fixture(scope="module")
def digits():
    dataset = data.load("digits")
    normalization = data.Normalization.of(dataset.train_images)
    test = dataset.held_out(normalization)
    return dataset, normalization, test


def stored(images, labels, classes):
    """Images and one-hot labels as a parametrization that stores both."""
    specification = {
        "kind": "pixels",
        "image_shape": list(images.shape[1:]),
        "num_classes": classes,
        "num_items": len(images),
        "label_kind": "probabilities",
    }
    theta = {
        "data": {"images": jnp.asarray(images, jnp.float32)},
        "labels": jax.nn.one_hot(jnp.asarray(labels), classes, dtype=jnp.float32),
    }
    return synthetic.create(specification), theta


def test_data_of_one_shape_shares_one_program():
    """As baselines of two kinds do, which differ in their images alone."""
    network = networks.create("mlp", image_shape=(8, 8, 1), num_classes=3, width=3)
    generator, found = np.random.default_rng(0), []
    for seed in range(2):
        data_, theta = stored(generator.normal(size=(6, 8, 8, 1)), [0, 0, 1, 1, 2, 2], 3)
        trained, _ = train_students(network, data_, theta, PLAIN, 0.05, jax.random.key(seed))
        found.append(students._training(network, data_, PLAIN, None))
        assert np.isfinite(trained).all()
    assert found[0] is found[1]
    assert found[0]._cache_size() == 1


def plain_loop(images, labels, test_images, test_labels, protocol, width, seed):
    """Two hidden layers, SGD with momentum, derivatives by hand, in NumPy alone."""
    generator = np.random.default_rng(seed)
    x, targets = images.reshape(len(images), -1).astype(np.float64), np.eye(10)[labels]
    sizes = [x.shape[1], width, width, 10]
    weights = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        bound = 1 / np.sqrt(fan_in)
        weights.append(generator.uniform(-bound, bound, (fan_in, fan_out)))
        weights.append(generator.uniform(-bound, bound, fan_out))
    velocity = [np.zeros_like(w) for w in weights]

    def forward(x):
        first = np.maximum(x @ weights[0] + weights[1], 0)
        second = np.maximum(first @ weights[2] + weights[3], 0)
        return first, second, second @ weights[4] + weights[5]

    for epoch in range(protocol.epochs):
        rate = protocol.learning_rate * (protocol.decay if epoch >= protocol.epochs // 2 else 1)
        order = generator.permutation(len(x))
        for start in range(0, len(x), protocol.batch_size):
            batch = order[start : start + protocol.batch_size]
            first, second, logits = forward(x[batch])
            exponents = np.exp(logits - logits.max(1, keepdims=True))
            error = (exponents / exponents.sum(1, keepdims=True) - targets[batch]) / len(batch)
            back = (error @ weights[4].T) * (second > 0)
            further = (back @ weights[2].T) * (first > 0)
            gradient = [x[batch].T @ further, further.sum(0), first.T @ back, back.sum(0),
                        second.T @ error, error.sum(0)]  # fmt: skip
            for w, v, g in zip(weights, velocity, gradient):
                v *= protocol.momentum
                v += g + protocol.weight_decay * w
                w -= rate * v
    logits = forward(test_images.reshape(len(test_images), -1))[2]
    return (logits.argmax(1) == test_labels).mean()


def test_full_digits_reach_what_a_plain_loop_reaches(digits):
    dataset, normalization, test = digits
    images = normalization.apply(dataset.train_images)
    network = networks.create("mlp", image_shape=(8, 8, 1), num_classes=10, width=32)
    parametrization, theta = stored(images, dataset.train_labels, 10)
    # The protocol's learning rate counts, not the one that is handed over.
    reached = evaluate(network, parametrization, theta, test, PLAIN, 1e-9, jax.random.key(0))
    plain = [
        plain_loop(
            images,
            dataset.train_labels,
            normalization.apply(dataset.test_images),
            dataset.test_labels,
            PLAIN,
            32,
            seed,
        )
        for seed in range(2)
    ]
    assert min(plain) > 0.9
    assert reached.per_student.min() > 0.9
    assert abs(reached.per_student.mean() - np.mean(plain)) < 0.03
    assert reached.seconds > 0


@pytest.fixture(scope="module")
def few(digits):
    """Six images of two classes, a network, and test data."""
    dataset, normalization, _ = digits
    rows = np.flatnonzero(dataset.train_labels < 2)[:6]
    parametrization, theta = stored(
        normalization.apply(dataset.train_images[rows]), dataset.train_labels[rows], 2
    )
    held = np.flatnonzero(dataset.test_labels < 2)[:50]
    test = data.held_out(dataset.test_images[held], dataset.test_labels[held], normalization)
    network = networks.create("mlp", image_shape=(8, 8, 1), num_classes=2, width=6)
    return network, parametrization, theta, test


def test_seeds_are_deterministic_and_the_last_epoch_counts(few):
    network, parametrization, theta, test = few
    protocol = Protocol(
        students=3, epochs=4, batch_size=4, learning_rate=0.1, augmentation=("crop", "flip")
    )
    key = jax.random.key(1)
    one, same = (
        train_students(network, parametrization, theta, protocol, 0.1, key)[0] for _ in range(2)
    )
    np.testing.assert_array_equal(one, same)
    assert float(jnp.abs(one[0] - one[1]).max()) > 1e-3
    other = train_students(network, parametrization, theta, protocol, 0.1, jax.random.key(2))[0]
    assert float(jnp.abs(one - other).max()) > 1e-3
    reached = evaluate(network, parametrization, theta, test, protocol, 7.0, key)
    np.testing.assert_array_equal(reached.per_student, accuracy(network, one, test))


def test_an_incomplete_last_batch_is_averaged_over_its_rows(few):
    """Two epochs of six items in batches of four: the steps written out, for the one order of each
    epoch, of all that can be, with which they agree."""
    network, parametrization, theta, _ = few
    protocol = Protocol(students=2, epochs=2, batch_size=4, momentum=0.8, weight_decay=0.01,
                        decay=0.5, augmentation=())  # fmt: skip
    unravel = networks.unraveler(network)
    starts = jnp.stack([ravel_pytree(network.init(jax.random.key(k)))[0] for k in range(2)])
    actual, _ = train_students(
        network, parametrization, theta, protocol, 0.2, jax.random.key(5), starts=starts + 0
    )

    def loss(params, rows):
        logits = network.apply(unravel(params), theta["data"]["images"][rows])
        return optax.softmax_cross_entropy(logits, theta["labels"][rows]).mean()

    @jax.jit
    def epoch(params, velocity, first, rest, rate):
        for rows in (first, rest):
            velocity = 0.8 * velocity + jax.grad(loss)(params, rows) + 0.01 * params
            params = params - rate * velocity
        return params, velocity

    orders = [
        (jnp.asarray(first), jnp.asarray([row for row in range(6) if row not in first]))
        for first in itertools.combinations(range(6), 4)
    ]
    found = []
    for start, trained in zip(starts, actual):
        for one, other in itertools.product(range(15), repeat=2):
            params, velocity = epoch(start, jnp.zeros_like(start), *orders[one], 0.2)
            params, _ = epoch(params, velocity, *orders[other], 0.1)
            if np.abs(params - trained).max() < 2e-6:
                found.append((one, other))
    assert len(found) == 2
    assert len(set(sum(found, ()))) > 1


def test_accuracy_is_a_plain_count(digits):
    _, _, test = digits
    test = test._replace(images=test.images[:100], labels=test.labels[:100])
    network = networks.create("mlp", image_shape=(8, 8, 1), num_classes=10, width=8)
    keys = jax.random.split(jax.random.key(0), 3)
    params = [network.init(key) for key in keys]
    images = test.gather(jnp.arange(100))
    counted = [
        np.mean(np.argmax(np.asarray(network.apply(p, images)), 1) == np.asarray(test.labels))
        for p in params
    ]
    vectors = jnp.stack([ravel_pytree(p)[0] for p in params])
    for batch_size in (7, 100, 512):
        actual = accuracy(network, vectors, test, batch_size=batch_size)
        np.testing.assert_allclose(actual, counted, atol=1e-6)


def test_means_are_visited_too(few):
    """Samples that are brighter than the means: both together are twice as many pixels."""
    network, pixels_, theta, _ = few

    def sample(theta, key, indices=None):
        batch = pixels_.sample(theta, None, indices)
        return batch if key is None else batch._replace(images=batch.images + 1)

    images, targets = pixels_.sample(theta, None)
    labels = jnp.tile(targets.argmax(1), 2)
    both, both_theta = stored(jnp.concatenate([images, images + 1]), labels, targets.shape[1])
    twice = Protocol(students=1, epochs=3, batch_size=12, augmentation=(), with_means=True)
    once = dataclasses.replace(twice, with_means=False)
    key = jax.random.key(0)

    def trained(synthetic, theta, protocol):
        return train_students(network, synthetic, theta, protocol, 0.1, key)[0]

    blurred = pixels_._replace(sample=sample)
    expected = trained(both, both_theta, once)
    np.testing.assert_allclose(trained(blurred, theta, twice), expected, atol=1e-6)
    for protocol, other in ((once, blurred), (twice, pixels_)):
        assert np.abs(trained(other, theta, protocol) - expected).max() > 1e-3


@pytest.mark.parametrize(
    "wrong",
    [{"students": 0}, {"epochs": 0}, {"epochs": -1}, {"batch_size": 0}, {"learning_rate": 0.0},
     {"learning_rate": -1.0}, {"learning_rate": float("nan")}, {"augmentation": ("fold",)},
     {"steps": 0}, {"optimizer": "adam"}, {"schedule": "linear"}, {"views": "cropped"},
     {"mix": "cutmix"}, {"temperature": 0.0}],
    ids=repr,
)  # fmt: skip
def test_a_protocol_that_cannot_be_followed(few, wrong):
    network, parametrization, theta, test = few
    protocol = dataclasses.replace(PLAIN, **wrong)
    with pytest.raises(InputError):
        evaluate(network, parametrization, theta, test, protocol, 0.1, jax.random.key(0))


def test_the_best_learning_rate_is_chosen_on_other_images(few):
    """Images that are the distilled ones choose; on them a rate of nearly zero learns nothing."""
    network, parametrization, theta, test = few
    labels = jnp.argmax(theta["labels"], 1).astype(jnp.int32)
    choosing = test._replace(images=theta["data"]["images"], labels=labels)
    protocol = Protocol(students=2, epochs=30, augmentation=())
    key = jax.random.key(0)
    candidates = (1e-6, 0.1)
    reached, found = evaluate_best(
        network, parametrization, theta, choosing, test, protocol, candidates, key
    )
    assert reached.learning_rate == 0.1
    assert found[1] == 1.0 > found[0]
    again = evaluate(network, parametrization, theta, test, protocol, 0.1, key)
    np.testing.assert_array_equal(reached.per_student, again.per_student)
    rates, students = np.float32([1e-6, 0.1, 0.1]), np.asarray([0, 0, 1])
    params, _ = train_students(
        network, parametrization, theta, protocol, rates, key, students=students
    )
    for rate, rows in ((1e-6, slice(0, 1)), (0.1, slice(1, 3))):  # the same students for each rate
        alone, _ = train_students(network, parametrization, theta, protocol, rate, key)
        np.testing.assert_allclose(params[rows], alone[: rows.stop - rows.start], atol=1e-6)


@pytest.mark.parametrize(("students", "seen"), [(1, 3), (5, 5), (7, 7)])
def test_candidates_are_met_by_as_many_students_as_there_are(few, monkeypatch, students, seen):
    network, parametrization, theta, test = few
    shapes = []

    def noted(network, params, *more):
        shapes.append(len(params))
        return np.linspace(0, 1, len(params))

    monkeypatch.setattr("d3jax.evaluate.students.accuracy", noted)
    protocol = Protocol(students=students, epochs=1, augmentation=())
    reached, found = evaluate_best(
        network, parametrization, theta, test, test, protocol, (0.1, 0.2, 0.3), jax.random.key(0)
    )
    assert shapes == [seen, students]
    assert found == pytest.approx({
        1: (0, 0.5, 1), 5: (0, 0.25, 0.5), 7: (0.5 / 6, 2.5 / 6, 4.5 / 6)
    }[students])  # fmt: skip
    assert reached.learning_rate == 0.3


def test_a_single_candidate_is_trained_once(few, monkeypatch):
    network, parametrization, theta, test = few
    trained, calls = train_students, []
    monkeypatch.setattr(
        "d3jax.evaluate.students.train_students",
        lambda *a, **named: calls.append(1) or trained(*a, **named),
    )
    protocol, key = Protocol(students=2, epochs=1, augmentation=()), jax.random.key(0)
    reached, _ = evaluate_best(network, parametrization, theta, test, test, protocol, (0.1,), key)
    assert len(calls) == 1
    alone = evaluate(network, parametrization, theta, test, protocol, 0.1, key)
    np.testing.assert_array_equal(reached.per_student, alone.per_student)


def test_students_that_diverge_are_counted(few, capsys):
    network, parametrization, theta, test = few
    protocol = Protocol(students=2, epochs=30, augmentation=(), momentum=0.0, weight_decay=100.0)
    reached = evaluate(
        network, parametrization, theta, test, protocol, 1e6, jax.random.key(0), Reporter()
    )
    assert reached.summary()["diverged"] == 2
    assert "2 of 2 students diverged" in capsys.readouterr().out


def test_summary():
    summary = Evaluation(np.array([0.5, 0.7]), 0.1, 1, 1.0).summary()
    assert summary == {
        "mean": pytest.approx(0.6),
        "sd": pytest.approx(0.02**0.5),
        "students": 2,
        "per_student": [0.5, 0.7],
        "diverged": 1,
    }
    assert Evaluation(np.array([0.5]), 0.1, 0, 1.0).summary()["sd"] == 0.0

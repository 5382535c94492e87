"""What students with views learn: whose labels, at which temperature, by which optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import IMAGE_SHAPE, NUM_CLASSES, make_real, random_params
from jax.flatten_util import ravel_pytree

from d3jax import networks
from d3jax.evaluate import Protocol, Teaching, lessons, train_students, view_labels
from d3jax.synthetic import labels, pixels
from d3jax.types import InputError

KEY = jax.random.key(3)
PLAIN = Protocol(students=2, epochs=3, batch_size=6, augmentation=(), views="whole")


@pytest.fixture(scope="module")
def teacher():
    """With one batch norm, and what that normalizes by."""
    network = networks.create(
        "convnet", image_shape=IMAGE_SHAPE, num_classes=NUM_CLASSES, width=3, depth=1, norm="batch"
    )
    real = make_real(network, 0)
    params, statistics = jax.jit(labels.teacher, static_argnums=0)(network, KEY, real)
    return network, {"params": 3 * params, "statistics": statistics}


@pytest.fixture(scope="module")
def student():
    return networks.create("mlp", image_shape=IMAGE_SHAPE, num_classes=NUM_CLASSES, width=4)


def stored(kind="hard", items=6):
    data = pixels.create(
        image_shape=IMAGE_SHAPE, num_classes=NUM_CLASSES, num_items=items, label_kind=kind
    )
    theta = {"data": {"images": jax.random.normal(KEY, (items, *IMAGE_SHAPE))}}
    if kind != "hard":
        theta["labels"] = jax.nn.softmax(4 * jax.random.normal(jax.random.key(9), (items, 3)))
    return data, theta


def starts(network):
    return jnp.stack([ravel_pytree(random_params(network.init, k))[0] for k in range(2)])


@pytest.mark.parametrize(("optimizer", "factor"), [("adamw", 1.0), ("sgd", 400.0)])
def test_students_of_soft_labels_take_the_steps_of_the_paper(student, optimizer, factor):
    """All items in a step, whole: KL at T = 20 in NumPy's AdamW, or SGD's times T^2, cosine."""
    data, theta = stored("probabilities")
    protocol = Protocol(
        students=2, epochs=3, batch_size=8, augmentation=(), views="whole", temperature=20.0,
        optimizer=optimizer, schedule="cosine", weight_decay=0.01,
    )  # fmt: skip
    begin = starts(student)
    found, _ = train_students(
        student, data, theta, protocol, 0.1, KEY, starts=begin + 0, teaching=Teaching(KEY)
    )
    unravel = networks.unraveler(student)
    soft = np.asarray(theta["labels"], np.float64) ** (1 / 20)
    soft /= soft.sum(1, keepdims=True)

    @jax.jit
    @jax.grad
    def gradient(params):
        logits = student.apply(unravel(params), theta["data"]["images"]) / 20
        return -jnp.mean(jnp.sum(jnp.asarray(soft, jnp.float32) * jax.nn.log_softmax(logits), 1))

    for start, trained in zip(begin, found, strict=True):
        params = np.asarray(start, np.float64)
        first, second, velocity = (np.zeros_like(params) for _ in range(3))
        for step in range(3):
            rate = 0.1 * 0.5 * (1 + np.cos(np.pi * step / 3))
            slope = factor * np.asarray(gradient(jnp.asarray(params, jnp.float32)), np.float64)
            if optimizer == "sgd":
                velocity = 0.9 * velocity + slope + 0.01 * params
                params = params - rate * velocity
                continue
            first = 0.9 * first + 0.1 * slope
            second = 0.999 * second + 0.001 * slope**2
            means = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
            params = params - rate * (means[0] / (np.sqrt(means[1]) + 1e-8) + 0.01 * params)
        np.testing.assert_allclose(trained, params, atol=2e-4)


@pytest.mark.long
def test_stored_labels_of_views_teach_as_the_teacher_does(student, teacher):
    network, own = teacher
    data, theta = stored(items=6)
    protocol = Protocol(
        students=2, epochs=2, batch_size=4, augmentation=(), views="whole", mix="cutmix",
        temperature=4.0,
    )  # fmt: skip
    found = view_labels(network, own, data, theta, protocol, KEY)
    assert found.shape == (2, 8, 3)  # two steps of four visits in each epoch

    def trained(teaching, **more):
        both = {**theta, **more}
        return train_students(student, data, both, protocol, 0.1, KEY, teaching=teaching)[0]

    by_teacher = trained(Teaching(KEY, network), teacher=own)
    by_labels = trained(Teaching(KEY), view_labels=found)
    np.testing.assert_allclose(by_labels, by_teacher, atol=1e-5)
    # Each view is labelled by itself: its label is the network's on that view alone.
    seen = jax.jit(lessons.lessons(data, protocol))
    lesson, last = (seen(theta, KEY, jnp.asarray(1), jnp.asarray(batch)) for batch in (0, 1))
    params = networks.unraveler(network)(own["params"])
    labelled = jax.jit(labels.teacher_labels, static_argnums=0)
    logits = labelled(network, params, own["statistics"], lesson.images[:1])
    np.testing.assert_allclose(found[1, :1], logits, rtol=1e-4, atol=1e-5)
    assert lesson.weights.tolist() == [1, 1, 1, 1]
    assert last.weights.tolist() == [1, 1, 0, 0]


def test_an_epoch_visits_every_item_once(teacher):
    data, _ = stored(items=6)
    numbered = jnp.arange(6.0)[:, None, None, None] * jnp.ones((6, *IMAGE_SHAPE))
    protocol = Protocol(batch_size=2, augmentation=(), views="whole")
    lesson = jax.jit(lessons.lessons(data, protocol))
    orders = []
    for epoch in range(2):
        batches = [
            lesson({"data": {"images": numbered}}, KEY, jnp.asarray(epoch), jnp.asarray(batch))
            for batch in range(3)
        ]
        seen = np.concatenate([np.asarray(b.images)[:, 0, 0, 0] for b in batches])
        classes = np.concatenate([np.asarray(b.targets).argmax(1) for b in batches])
        assert sorted(seen) == list(range(6))
        np.testing.assert_array_equal(classes, seen // 2)
        orders.append(seen.tolist())
    assert orders[0] != orders[1]


@pytest.mark.parametrize(
    ("schedule", "epochs", "expected"),
    [
        ("cosine", 4, [0.25, 0.213388, 0.125, 0.036612]),
        ("half_cosine", 4, [0.25, 0.240485, 0.213388, 0.172835]),
        ("step", 4, [0.25, 0.25, 0.025, 0.025]),
    ],
)
def test_schedules(schedule, epochs, expected):
    protocol = Protocol(schedule=schedule)
    found = [0.25 * protocol.factor(jnp.asarray(e), epochs, jnp.dtype("float32")) for e in range(4)]
    np.testing.assert_allclose(found, expected, atol=5e-7)


def test_rdeds_schedule_ends_at_a_half():
    factor = Protocol(schedule="half_cosine").factor
    found = [factor(jnp.asarray(e), 300, jnp.dtype("float32")) for e in (0, 150, 300)]
    np.testing.assert_allclose(found, [1, 0.853553, 0.5], atol=5e-7)


@pytest.mark.parametrize(
    ("visits", "epochs"), [(100, 25), (10, 100), (1000, 2), (25, 100), (60, 33)]
)
def test_steps_are_as_many_whole_epochs_as_are_nearest(visits, epochs):
    assert Protocol(steps=100, batch_size=25).epochs_of(visits) == epochs
    assert Protocol(epochs=7, batch_size=25).epochs_of(visits) == 7


def test_labels_that_students_would_not_see(student, teacher):
    data, theta = stored()
    labelled = {**theta, "view_labels": jnp.zeros((3, 6, 3))}

    def train(protocol, theta):
        train_students(student, data, theta, protocol, 0.1, KEY)

    with pytest.raises(InputError, match="of 3 epochs of 6 views, and students would see 4 of 6"):
        train(Protocol(epochs=4, views="whole"), labelled)
    with pytest.raises(InputError, match="the labels are of views"):
        train(Protocol(epochs=3), labelled)
    with pytest.raises(InputError, match="the labels are of views"):
        train(Protocol(), {**theta, "teacher": teacher[1]})

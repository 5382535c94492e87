"""FRePo: its pool and its outer step."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import IMAGE_SHAPE, NUM_CLASSES, check_gradient, to_float64
from test_cli import called, no_folder_of_the_users  # noqa: F401

from d3jax import artifact, data, losses
from d3jax.distill import pool
from d3jax.distill.sharded import DEVICE
from d3jax.evaluate import Protocol
from d3jax.methods.frepo import FRePoOptions, frepo
from d3jax.networks import unraveler
from d3jax.run.options import Parametrization, command
from d3jax.run.resolve import resolved
from d3jax.synthetic import labels, pixels
from d3jax.types import InputError

KEY = jax.random.key(3)
ADAM = optax.adam(3e-4)


@pytest.fixture(scope="module")
def made(tiny_network):
    """A method whose pool is one network, that is renewed after three steps."""
    synthetic = pixels.create(
        image_shape=IMAGE_SHAPE, num_classes=NUM_CLASSES, num_items=6, label_kind="values"
    )
    options = FRePoOptions(pool=1, network_steps=2, real_batch=5, flip=True)
    return frepo(tiny_network, synthetic, options, outer_steps=10)


@pytest.fixture(scope="module")
def steps(made, tiny_real):
    """The states of five outer steps, from the start on, and their metrics."""
    states, step, metrics = [jax.jit(made.init)(KEY, tiny_real)], jax.jit(made.step), []
    for _ in range(5):
        state, measured = step(KEY, states[-1], tiny_real)
        states, metrics = [*states, state], [*metrics, measured]
    return states, metrics


def test_counters_of_a_pool_are_spread(tiny_network):
    spread = jax.jit(lambda key: pool.create(tiny_network, ADAM, key, 10, 100))(KEY)
    assert spread.steps.tolist() == [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]
    assert not np.array_equal(spread.weights[0], spread.weights[1])


def test_a_network_is_renewed_after_one_step_more_than_its_steps(steps):
    """As in the authors' code, where 100 are 101: a counter of 2 is not more than 2."""
    states, _ = steps
    assert [int(state.aux[0].steps[0]) for state in states] == [0, 1, 2, 3, 0, 1]
    moments = [np.abs(state.aux[0].optimizer[0].mu).max() for state in states]
    assert moments[4] == 0 < min(moments[1:4])
    # An Adam step moves no weight by more than its rate; a fresh network is elsewhere.
    weights = [np.asarray(state.aux[0].weights) for state in states]
    moved = [np.abs(after - before).max() for before, after in itertools.pairwise(weights)]
    assert moved[3] > 0.01 > max(moved[:3])


def test_a_network_is_trained_on_the_data_that_was_just_moved(steps, tiny_network):
    """Adam's first step is its rate against the gradient's sign: at the new images and labels."""
    states, _ = steps
    images, targets = states[1].theta["data"]["images"], states[1].theta["labels"]

    def loss(weights, images, targets):
        logits = tiny_network.apply(unraveler(tiny_network)(weights), images)
        return 0.5 * jnp.square(logits - targets).sum(1).mean()

    start = states[0].aux[0].weights[0]
    gradient = jax.jit(jax.grad(loss))(start, images, targets)
    large = np.abs(gradient) > 1e-4
    moved = states[1].aux[0].weights[0] - start
    np.testing.assert_allclose(moved[large], -3e-4 * np.sign(gradient)[large], rtol=1e-2)


def test_an_outer_step_moves_each_array_by_the_rate_of_its_length(steps):
    """The cosine's first step has the whole rate."""
    states, metrics = steps
    for group, array in (
        ("data", states[0].theta["data"]["images"]),
        ("labels", states[0].theta["labels"]),
    ):
        ratio = metrics[0][f"ridge/update_{group}"] / np.linalg.norm(array)
        np.testing.assert_allclose(ratio, 3e-4, rtol=1e-5)


def test_labels_start_centred_and_shorter_for_more_classes(steps):
    expected = (np.repeat(np.eye(3), 2, 0) - 1 / 3) / np.sqrt(3 / 10)
    np.testing.assert_allclose(steps[0][0].theta["labels"], expected, rtol=1e-6)


def test_the_loss_is_ridge_regression_by_hand_and_its_gradient_finite_differences(
    made, tiny_network, tiny_real, steps
):
    (objective,) = made.objectives
    with jax.enable_x64(True):
        state, real = to_float64((steps[0][2], tiny_real))
        theta, (aux,) = state.theta, state.aux
        sample, step, key = made.synthetic.sample, jnp.asarray(0, jnp.int32), jax.random.key(9)
        given = {name: theta[name] for name in ("data", "labels")}

        def loss(theta):
            return objective.loss(theta, sample, aux, step, key, real)[0]

        check_gradient(loss, given, step=1e-6, tolerance=1e-5)
        found = loss(given)

        images, targets = np.asarray(theta["data"]["images"]), np.asarray(theta["labels"])
        images, doubled = np.concatenate([images, images[:, :, ::-1]]), np.tile(targets, (2, 1))
        index = np.asarray(real.sample(jax.random.split(key)[1], 5))
        params = unraveler(tiny_network)(aux.weights[0])

        def features(images):
            return np.asarray(tiny_network.forward(params, jnp.asarray(images)).features)

        own, others = features(images), features(real.gather(index))
        kernel = own @ own.T
        ridge = 1e-6 * np.trace(kernel) / 12 * np.eye(12)
        predicted = (
            others @ own.T @ np.linalg.inv(kernel + ridge) @ (doubled - doubled.mean(1)[:, None])
        )
        error = np.eye(3)[np.asarray(real.labels)[index]] - 1 / 3 - predicted
        largest = np.sort(targets, 1)
        margins = np.minimum(largest[:, -1] - largest[:, -2], 1 / 3)
        np.testing.assert_allclose(
            found, 0.5 * (error**2).sum(1).mean() - margins.mean(), rtol=1e-5
        )


def test_devices_have_networks_of_their_own_and_average_the_datas_gradient(
    made, tiny_network, tiny_real
):
    """Adam's first moment is a tenth of the gradient: of each device's own network, as trained on
    data that LAMB has moved by the mean of the devices' gradients."""
    options = FRePoOptions(pool=1, real_batch=5, devices=2)
    spread = frepo(tiny_network, made.synthetic, options, outer_steps=10)
    start = jax.jit(spread.init)(KEY, tiny_real)
    after, _ = jax.jit(spread.step)(KEY, start, tiny_real)
    before, (aux,) = np.asarray(start.aux[0].weights)[:, 0], after.aux
    assert np.abs(before[0] - before[1]).max() > 0.1

    (objective,), sample = spread.objectives, made.synthetic.sample
    key = jax.random.fold_in(jax.random.fold_in(KEY, 0), 0)  # the first step's first objective

    def gradient(theta, aux):
        def loss(theta):
            return objective.loss(theta, sample, aux, start.step, key, tiny_real)[0]

        return jax.grad(loss)(theta)

    both = jax.jit(jax.vmap(gradient, (None, 0), axis_name=DEVICE))
    each = both(start.theta, start.aux[0])
    first, second = (jax.tree.map(lambda x, i=i: np.asarray(x[i]), each) for i in range(2))
    assert np.abs(first["data"]["images"] - second["data"]["images"]).max() > 1e-4
    mean = jax.tree.map(lambda a, b: (a + b) / 2, first, second)
    for group in ("data", "labels"):
        lamb = optax.lamb(3e-4)
        with jax.numpy_dtype_promotion("standard"):
            change, _ = lamb.update(mean[group], lamb.init(start.theta[group]), start.theta[group])
        expected = optax.apply_updates(start.theta[group], change)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), after.theta[group], expected
        )

    @jax.jit
    @jax.grad
    def slope(weights):
        logits = tiny_network.apply(unraveler(tiny_network)(weights), after.theta["data"]["images"])
        return losses.squared_error(logits, after.theta["labels"])

    for device in range(2):
        moment = np.asarray(aux.optimizer[0].mu)[device, 0]
        np.testing.assert_allclose(moment, 0.1 * slope(before[device]), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": 0}, "pool must be at least 1, not 0"),
        ({"real_batch": 0}, "real_batch must be at least 1, not 0"),
        ({"network_steps": -1}, "network_steps must not be negative, it is -1"),
        ({"network_learning_rate": -1.0}, "network_learning_rate must not be negative"),
        ({"devices": 99}, "there are 4 devices, not 99"),
    ],
)
def test_options_that_cannot_be_are_refused(made, tiny_network, options, message):
    with pytest.raises(InputError, match=message):
        frepo(tiny_network, made.synthetic, FRePoOptions(**options), outer_steps=1)


def test_learned_labels_are_values(tiny_network):
    data_ = pixels.create(image_shape=IMAGE_SHAPE, num_classes=3, num_items=3, label_kind="logits")
    with pytest.raises(InputError, match="labels as values, not as logits"):
        frepo(tiny_network, data_, FRePoOptions(), outer_steps=1)


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("frepo", {"labels": "expert"}, "has no experts to give labels"),
        ("mtt", {"labels": "solved", "student": Protocol(temperature=2.0)}, "has no temperature"),
        ("dd", {"labels": "solved"}, "learns take labels by cross entropy"),
        ("mtt", {"labels": "solved", "subtasks": "2"}, "for all classes at once"),
    ],
)
def test_labels_that_do_not_fit_a_method_are_refused(method, given, message):
    stored = Parametrization(labels=given.pop("labels"))
    run = command(method)(parametrization=stored, **given)
    with pytest.raises(InputError, match=message):
        resolved(run, data.load("digits"))


@pytest.mark.parametrize("kind", ["values", "solved"])
def test_students_meet_values_by_squared_error_of_what_counts(kind):
    logits, targets = np.float32([[1, 0], [3, 5]]), np.float32([[0.4, -0.4], [9, 9]])
    found = labels.student_loss(kind)(logits, (targets, np.float32([2, 0])))
    np.testing.assert_allclose(found, 0.5 * (0.6**2 + 0.4**2), rtol=1e-6)
    plain = labels.student_loss("hard")(logits, (targets, np.float32([2, 0])))
    np.testing.assert_allclose(plain, losses.cross_entropy(logits, targets * [[2], [0]]), rtol=1e-6)


def test_solved_labels_are_those_of_one_network_by_hand(tiny_network, tiny_real):
    data_ = pixels.create(
        image_shape=IMAGE_SHAPE, num_classes=NUM_CLASSES, num_items=3, label_kind="solved"
    )
    theta = jax.jit(data_.init)(KEY, tiny_real)
    assert data_.groups == ("data",)
    found = labels.by_solving(tiny_network, data_, theta, tiny_real, KEY, networks=1)
    (draw,) = jax.random.split(jax.random.split(KEY)[0], 1)
    params = tiny_network.init(draw)
    images = (theta["data"]["images"], tiny_real.gather(jnp.arange(12)))
    own, others = (np.asarray(tiny_network.forward(params, x).features, np.float64) for x in images)
    kernel = own @ own.T
    predictor = others @ own.T @ np.linalg.inv(kernel + 1e-3 * np.trace(kernel) / 3 * np.eye(3))
    gram = predictor.T @ predictor
    targets = np.eye(3)[np.asarray(tiny_real.labels)] - 1 / 3
    expected = np.linalg.inv(gram + 1e-3 * np.trace(gram) / 3 * np.eye(3)) @ predictor.T @ targets
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    _, sampled = data_.sample({**theta, "labels": found}, None)
    np.testing.assert_array_equal(sampled, found)


@pytest.mark.long
def test_a_run_says_how_its_students_train_and_evaluate_follows(capsys, tmp_path):
    out = tmp_path / "frepo"
    called(
        capsys, "distill", "frepo", "--out", out, "--network=mlp", "--width=8", "--zca",
        "--train-limit=200", "--test-limit=100", "--outer-steps=3", "--real-batch=32", "--pool=2",
        "--student.students=2", "--student.epochs=3", "--baselines", "random", "random_solved",
        "--baseline-learning-rates=0.1", "--storage=float32",
    )  # fmt: skip
    stored = artifact.load(out)
    assert stored.header["parametrization"]["label_kind"] == "values"
    assert stored.header["normalization"]["zca"] is not None
    assert abs(np.asarray(stored.theta["labels"]).sum(1)).max() < 0.1
    called(capsys, "evaluate", out, "--test-limit=100", "--json", tmp_path / "again.json")
    paths = (out / "report.json", tmp_path / "again.json")
    reports = [json.loads(path.read_text()) for path in paths]
    assert reports[0]["accuracy"] == reports[1]["accuracy"]
    assert set(reports[0]["baselines"]) == {"random", "random_solved"}

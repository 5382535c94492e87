import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import check_gradient

from d3jax import losses

_compiled = jax.jit(losses.mmd2, static_argnums=2)


def _random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def _mmd2(x, y, bandwidths):
    def kernel(a, b):
        return sum(np.exp(-np.sum((a - b) ** 2) / (2 * s**2)) for s in bandwidths)

    n, m = len(x), len(y)
    within_x = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j)
    within_y = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j)
    between = sum(kernel(x[i], y[j]) for i in range(n) for j in range(m))
    return within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * between / (n * m)


def test_kernel_ridge_regression_of_orthonormal_features():
    with jax.enable_x64(True):
        identity, targets = jnp.eye(5), jnp.arange(10.0).reshape(5, 2)
        found = losses.kernel_ridge_regression(identity, targets, identity)
        np.testing.assert_allclose(found, targets / (1 + 1e-6), rtol=1e-14)


def test_kernel_ridge_regression_of_images_that_are_nearly_alike():
    x = np.random.default_rng(0).normal(size=(100, 64)).astype(np.float32)
    twins, targets = np.concatenate([x, x + np.float32(1e-5)]), np.tile(np.eye(100)[:, :3], (2, 1))
    found = losses.kernel_ridge_regression(twins, targets.astype(np.float32), x)
    assert np.isfinite(found).all()


def _solved_problem(seed=0):
    """Features of 4 and of 9 images, and the nine's targets, which sum to zero."""
    targets = _random(9, 3, seed=seed)
    return _random(4, 6, seed=seed), _random(9, 6, seed=seed), targets - targets.mean(1)[:, None]


def test_solved_labels_are_the_minimum_of_a_descent():
    """By gradient descent on the labels, in NumPy, in float64; in float32 they are as good."""
    features, others, targets = _solved_problem()
    kernel = features @ features.T
    ridge = 1e-6 * np.trace(kernel) / 4 * np.eye(4)
    predictor = others @ features.T @ np.linalg.inv(kernel + ridge)
    labels = np.zeros((4, 3))
    for _ in range(20_000):
        labels -= 0.02 * predictor.T @ (predictor @ labels - targets)
    with jax.enable_x64(True):
        arrays = [jnp.asarray(x) for x in (features, others, targets)]
        np.testing.assert_allclose(losses.ridge_predictor(*arrays[:2]), predictor, rtol=1e-8)
        solved = losses.solved_labels(*arrays, 1e-6)
        np.testing.assert_allclose(solved, labels, rtol=2e-4, atol=1e-5)
        np.testing.assert_allclose(solved.sum(1), 0, atol=1e-12)
    single = losses.solved_labels(*(jnp.float32(x) for x in (features, others, targets)), 1e-6)
    np.testing.assert_allclose(single, labels, rtol=1e-2, atol=1e-3)


def test_solved_labels_of_images_that_are_alike_are_finite():
    features, others, targets = (jnp.float32(x) for x in _solved_problem())
    twins = jnp.concatenate([features, features])
    solved = losses.solved_labels(twins, others, targets)
    np.testing.assert_allclose(solved[:4], solved[4:], rtol=1e-2, atol=1e-2)
    predicted = losses.kernel_ridge_regression(twins, solved, others)
    alone = losses.kernel_ridge_regression(
        features, losses.solved_labels(features, others, targets), others
    )
    np.testing.assert_allclose(predicted, alone, rtol=1e-2, atol=1e-2)


def test_gradient_of_kernel_ridge_regression_against_finite_differences():
    features, others, targets = _solved_problem()
    with jax.enable_x64(True):
        given = {"features": jnp.asarray(features), "targets": jnp.asarray(targets[:4])}

        def loss(given):
            predicted = losses.kernel_ridge_regression(**given, others=jnp.asarray(others))
            return losses.squared_error(predicted, jnp.asarray(targets))

        check_gradient(loss, given)


def test_the_margin_loss_asks_for_a_margin_and_no_more():
    """-0.1 of centred one-hot labels at ten classes; a gradient only where the margin is missed."""
    labels = np.eye(10, dtype=np.float32)[[3, 7]] - 0.1
    value, slope = jax.value_and_grad(losses.margin_loss)(labels, 0.1)
    np.testing.assert_allclose(value, -0.1, rtol=1e-6)
    np.testing.assert_array_equal(slope, 0)
    labels[0] *= 0.05  # a gap of 0.05
    value, slope = jax.value_and_grad(losses.margin_loss)(labels, 0.1)
    np.testing.assert_allclose(value, -0.075, rtol=1e-6)
    assert slope[0, 3] == -0.5
    np.testing.assert_array_equal(slope[1], 0)


def test_squared_error_of_one_hot_targets_is_that_of_centred_ones():
    predicted = np.array([[0.9, -0.1, 0.2], [0.0, 0.0, 0.0]], np.float32)
    one_hot = np.eye(3, dtype=np.float32)[:2]
    expected = ((0.9 - 2 / 3) ** 2 + (1 / 3 - 0.1) ** 2 + (0.2 + 1 / 3) ** 2 + 2 / 3) / 4
    np.testing.assert_allclose(losses.squared_error(predicted, one_hot), expected, rtol=1e-6)


@pytest.mark.parametrize("bandwidths", [losses.BANDWIDTHS, (0.7,)])
def test_mmd2_is_the_double_loop(bandwidths):
    x, y = _random(5, 3) * 2, _random(7, 3) + 1
    expected = _mmd2(x, y, bandwidths)
    with jax.enable_x64(True):
        actual = _compiled(jnp.asarray(x), jnp.asarray(y), bandwidths)
        np.testing.assert_allclose(actual, expected, rtol=1e-10)
    actual = _compiled(jnp.float32(x), jnp.float32(y), bandwidths)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_mmd2_of_equal_distributions_is_zero_on_average():
    x, y = (jnp.asarray(_random(2000, 6, 2, seed=s), jnp.float32) for s in (1, 2))
    batched = jax.jit(jax.vmap(losses.mmd2))
    values = np.asarray(batched(x, y))
    error = values.std() / np.sqrt(len(values))
    assert abs(values.mean()) < 4 * error
    assert (values < 0).mean() > 0.3
    assert np.asarray(batched(x, y + 1)).mean() > 20 * error


@pytest.mark.parametrize(("draws", "strata"), [(4, 2), (5, 2), (6, 3), (4, 1)])
def test_mmd2_of_stratified_draws_is_unbiased(draws, strata):
    """The mean over all draws that there can be is the distance of the whole mixture."""
    points = _random(strata, 2, 3, seed=7)  # each part has two points, equally probable
    y = _random(3, 3) + 0.5
    parts = [points[j % strata] for j in range(draws)]
    every = np.asarray(list(itertools.product(*parts)))

    def kernel(a, b):
        squares = np.sum((a[:, None] - b[None]) ** 2, -1)
        return sum(np.exp(-squares / (2 * s**2)) for s in losses.BANDWIDTHS)

    mixture = points.reshape(-1, 3)
    within_y = (kernel(y, y).sum() - 3 * len(losses.BANDWIDTHS)) / 6
    # Two draws of the mixture may be the same point.
    expected = kernel(mixture, mixture).mean() + within_y - 2 * kernel(mixture, y).mean()
    with jax.enable_x64(True):
        estimate = jax.vmap(lambda x: losses.mmd2(x, jnp.asarray(y), strata=strata))
        values = jax.jit(estimate)(jnp.asarray(every))
        np.testing.assert_allclose(np.mean(values), expected, rtol=1e-10)
        plain = jax.jit(jax.vmap(lambda x: losses.mmd2(x, jnp.asarray(y))))(jnp.asarray(every))
        if strata > 1:  # not unbiased, if one takes such draws for independent ones
            assert np.mean(plain) < expected - 0.05


def test_mmd2_refuses_strata_of_one_draw():
    with pytest.raises(ValueError, match="two draws of each of 3 strata"):
        losses.mmd2(jnp.zeros((5, 2)), jnp.zeros((5, 2)), strata=3)


def test_the_median_distance_is_numpys_and_carries_no_derivative():
    x, y = _random(5, 3), _random(5, 3) + 1  # 45 pairs, one of them in the middle
    pooled = np.concatenate([x, y])
    pairs = [np.linalg.norm(a - b) for a, b in itertools.combinations(pooled, 2)]
    with jax.enable_x64(True):
        value, gradient = jax.jit(jax.value_and_grad(losses.median_distance))(
            jnp.asarray(x), jnp.asarray(y)
        )
        np.testing.assert_allclose(value, np.median(pairs), rtol=1e-10)
        np.testing.assert_array_equal(gradient, 0)
    assert losses.median_distance(jnp.ones((3, 2)), jnp.ones((3, 2))) == 1


def test_mmd2_gradient_against_finite_differences_also_where_draws_coincide():
    with jax.enable_x64(True):
        x, y = jnp.asarray(_random(4, 3)), jnp.asarray(_random(5, 3, seed=1))
        check_gradient(lambda z: losses.mmd2(z["x"], z["y"]), {"x": x, "y": y})
        gradient = jax.jit(jax.grad(losses.mmd2))(jnp.zeros_like(x), jnp.zeros_like(y))
        np.testing.assert_array_equal(gradient, 0)


def test_mmd2_of_far_and_large_features_stays_finite():
    x = jnp.asarray(_random(4, 8) * 1e4, jnp.float32)
    value, gradient = jax.jit(jax.value_and_grad(losses.mmd2))(x, x + 1e6)
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize(("x", "y"), [((1, 3), (4, 3)), ((4, 3), (1, 3)), ((4, 3), (4, 2))])
def test_mmd2_refuses_single_draws_and_different_features(x, y):
    with pytest.raises(ValueError, match="mmd2 needs"):
        losses.mmd2(jnp.zeros(x), jnp.zeros(y))


def test_cross_entropy_of_hard_and_soft_targets():
    logits = _random(5, 4).astype(np.float32) * 3
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    classes = np.array([0, 3, 1, 1, 2])
    hard = np.eye(4, dtype=np.float32)[classes]
    expected = -np.log(probabilities[np.arange(5), classes]).mean()
    np.testing.assert_allclose(losses.cross_entropy(logits, hard), expected, rtol=1e-5)
    soft = np.random.default_rng(0).dirichlet(np.ones(4), 5).astype(np.float32)
    expected = -(soft * np.log(probabilities)).sum(-1).mean()
    np.testing.assert_allclose(losses.cross_entropy(logits, soft), expected, rtol=1e-5)
    # In nats, and without overflow.
    np.testing.assert_allclose(losses.cross_entropy(np.zeros((1, 4)), hard[:1]), np.log(4), 1e-6)
    np.testing.assert_allclose(losses.cross_entropy(logits * 1e4, hard[:1] * 0), 0)


def test_trajectory_distance_is_one_at_the_start_and_zero_at_the_target():
    start = {"a": jnp.asarray([1.0, 2.0]), "b": jnp.asarray([[3.0]])}
    target = {"a": jnp.asarray([2.0, 0.0]), "b": jnp.asarray([[5.0]])}
    middle = jax.tree.map(lambda a, b: (a + b) / 2, start, target)
    assert losses.trajectory_distance(start, target, start) == 1
    assert losses.trajectory_distance(target, target, start) == 0
    assert losses.trajectory_distance(middle, target, start) == 0.25
    # (0 - 2)^2 + 0 + (5 - 5)^2 over (1 - 2)^2 + 2^2 + 2^2.
    student = {"a": jnp.asarray([0.0, 0.0]), "b": jnp.asarray([[5.0]])}
    np.testing.assert_allclose(losses.trajectory_distance(student, target, start), 4 / 9, 1e-6)
    assert not np.isfinite(losses.trajectory_distance(student, start, start))


# Worked out by hand: one channel of 1, 3, 5, 7 has mean 4 and variance 5.
ONE = np.array([[1.0, 3, 5, 7]]).T
TWO = np.array([[1.0, 3, 5, 7], [0, 2, 0, 2]]).T


@jax.jit
@jax.value_and_grad
def _distance(x, frozen, weight):
    mean = x.mean(0)
    own = mean, jnp.square(x - mean).mean(0)
    return losses.statistics_distance((own,), (frozen,), weight, 1.0)


@pytest.mark.parametrize(
    ("inputs", "frozen", "weight", "value", "gradient"),
    [
        (ONE, ([1.0], [2.0]), 1.0, 6.0, [[-1.25, -0.25, 0.75, 1.75]]),
        (ONE, ([1.0], [2.0]), 11.0, 36.0, [[-16.25, -5.25, 5.75, 16.75]]),
        (TWO, ([1.0, 4], [2.0, 5]), 2.0, 14.242640687, None),
        (
            *(TWO, ([1.0, 4], [2.0, 5]), 1.0, 9.242640687),
            [
                [-0.723223, -0.123223, 0.476777, 1.076777],
                [0.223223, -0.576777, 0.223223, -0.576777],
            ],
        ),
        (
            *(TWO, ([1.0, 4], [2.0, 5]), 11.0, 59.242640687),
            [
                [-9.723223, -3.123223, 3.476777, 10.076777],
                [4.223223, -4.576777, 4.223223, -4.576777],
            ],
        ),
        (ONE, ([4.0], [5.0]), 1.0, 0.0, [[0.0, 0, 0, 0]]),
    ],
)
def test_statistics_distance_and_its_gradient(inputs, frozen, weight, value, gradient):
    with jax.enable_x64(True):
        found, slope = _distance(inputs, tuple(map(np.asarray, frozen)), weight)
        np.testing.assert_allclose(found, value, rtol=1e-9)
        if gradient is not None:
            np.testing.assert_allclose(slope.T, gradient, atol=5e-7)


def test_statistics_distance_weights_the_first_batch_norm():
    one, frozen = (np.array([3.0]), np.array([0.0])), (np.array([0.0]), np.array([4.0]))
    with jax.enable_x64(True):
        weighted = jax.jit(losses.statistics_distance)
        assert weighted((one, one), (frozen, frozen), 1.0, 10.0) == 11 * 7
        assert weighted((one, one), (frozen, frozen), 2.0, 3.0) == 4 * 11


_divergence = jax.jit(losses.soft_divergence)


@pytest.mark.parametrize(
    ("temperature", "scale", "value"),
    [
        (1, 1, 1.103828), (20, 1, 0.00375863), (30, 1, 0.00164959),
        (20, 400, 1.503452), (30, 900, 1.484632),
    ],
)  # fmt: skip
def test_soft_divergence(temperature, scale, value):
    student, teacher = np.array([[1.0, 2, 0]] * 2), np.array([[4.0, 1, 0]] * 2)
    with jax.enable_x64(True):
        found = _divergence(student, teacher, float(temperature), float(scale))
        np.testing.assert_allclose(found, value, rtol=2e-6)


def test_a_students_gradient_is_that_of_the_soft_divergence():
    """They differ by the teacher's entropy, which no student changes."""
    student, teacher = np.array([[1.0, 2, 0], [0, 1, 3]]), np.array([[4.0, 1, 0], [2, 2, 1]])

    def cross_entropy(logits):
        return 9 * losses.cross_entropy(logits / 3, jax.nn.softmax(teacher / 3))

    with jax.enable_x64(True):
        found = jax.jit(jax.grad(losses.soft_divergence))(student, teacher, 3.0, 9.0)
        np.testing.assert_allclose(found, jax.grad(cross_entropy)(student), atol=1e-12)

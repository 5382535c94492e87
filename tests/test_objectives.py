import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import IMAGE_SHAPE, NUM_CLASSES, check_gradient, quick_jit, random_params, to_float64

from d3jax import losses, networks, objectives
from d3jax.objectives import trajectory
from d3jax.synthetic import gaussian

LPC = 2
ITEMS = LPC * NUM_CLASSES


def _gaussians(stochastic=True):
    return gaussian.create(
        image_shape=IMAGE_SHAPE, num_classes=NUM_CLASSES, latents_per_class=LPC, latent_size=4,
        width=8, stochastic=stochastic,
    )  # fmt: skip


def _theta(learning_rates):
    theta = random_params(lambda key: _gaussians().init(key, None))
    return {**theta, "learning_rates": jnp.log(jnp.asarray(learning_rates, jnp.float32))}


def _trajectory(network, **options):
    options = {"inner_steps": 3, "expert_epochs": 2, "max_start_epoch": 2, **options}
    updates = ("data", "decoder", "learning_rates")
    return objectives.trajectory_matching(network, ITEMS, updates=updates, **options)


def _mmd(network, **options):
    return objectives.feature_mmd(
        network, ITEMS, NUM_CLASSES, **{"samples": 4, "updates": ("data", "decoder"), **options}
    )


@pytest.mark.parametrize(
    ("learning_rates", "options"),
    [
        (0.1, {}),
        ((0.2, 0.05, 0.1), {"batch_size": 4, "strategy": ("color",), "rematerialize": False}),
    ],
)
def test_gradient_of_trajectory_matching_against_finite_differences(
    tiny_network, tiny_real, learning_rates, options
):
    objective = _trajectory(tiny_network, **options)
    with jax.enable_x64(True):
        theta, real = to_float64((_theta(learning_rates), tiny_real))

        def loss(theta):
            sample, key = _gaussians().sample, jax.random.key(5)
            return objective.loss(theta, sample, (), key, real)[0]

        # Leaky ReLU has kinks: the step is too small to meet one.
        check_gradient(loss, theta, step=1e-6, tolerance=1e-5)


def test_gradient_of_feature_mmd_against_finite_differences(tiny_network, tiny_real):
    objective = _mmd(tiny_network)
    with jax.enable_x64(True):
        theta, real = to_float64((_theta(0.1), tiny_real))

        def loss(theta):
            sample, key = _gaussians().sample, jax.random.key(5)
            return objective.loss(theta, sample, (), key, real)[0]

        check_gradient(loss, theta, step=1e-6, tolerance=1e-5, absent=("learning_rates",))


def test_trajectory_matching_is_plain_descent_towards_the_later_epoch(tiny_network, tiny_real):
    # One expert, one start epoch and no sampling: the key decides nothing.
    real = tiny_real._replace(trajectories=tiny_real.trajectories[:1])
    objective = _trajectory(tiny_network, max_start_epoch=1)
    theta, data = _theta((0.3, 0.1, 0.2)), _gaussians(stochastic=False)
    with jax.enable_x64(True):
        theta, real = to_float64((theta, real))
        images, targets = data.sample(theta, None)

        @quick_jit
        def descend(params, rate):
            def loss(params):
                log_probabilities = jax.nn.log_softmax(tiny_network.apply(params, images))
                return -jnp.sum(targets * log_probabilities) / ITEMS

            return jax.tree.map(lambda p, g: p - rate * g, params, jax.grad(loss)(params))

        unravel = networks.unraveler(tiny_network)
        start, target = (unravel(real.trajectories[0, epoch]) for epoch in (0, 2))
        student = start
        for rate in (0.3, 0.1, 0.2):
            student = descend(student, rate)

        def distance(a, b):
            pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b))
            return sum(np.sum((np.asarray(x) - np.asarray(y)) ** 2) for x, y in pairs)

        loss, (aux, metrics) = quick_jit(objective.loss, static_argnums=1)(
            theta, data.sample, (), jax.random.key(0), real
        )
        expected = distance(student, target) / distance(start, target)
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
        np.testing.assert_allclose(metrics["distance"], expected, rtol=1e-6)
        np.testing.assert_allclose(metrics["learning_rate"], 0.2, rtol=1e-6)
        assert aux == ()


@pytest.mark.parametrize("epoch", [-1, 1])
def test_feature_mmd_is_the_sum_of_each_classs_double_loop(tiny_network, tiny_real, epoch):
    # One expert, one real image a class and no sampling: the key decides nothing.
    real = tiny_real._replace(
        trajectories=tiny_real.trajectories[:1], class_counts=jnp.ones(3, jnp.int32)
    )
    theta, data = _theta(0.1), _gaussians(stochastic=False)
    with jax.enable_x64(True):
        theta, real = to_float64((theta, real))
        params = networks.unraveler(tiny_network)(real.trajectories[0, epoch])
        raw = np.asarray(real.images)[np.asarray(real.class_index)[:, 0]]
        forward = quick_jit(tiny_network.forward)
        decoded = forward(params, data.sample(theta, None).images).features
        shown = forward(params, jnp.asarray((raw / 255 - 0.4) / 0.3)).features
        decoded, shown = np.asarray(decoded).reshape(NUM_CLASSES, LPC, -1), np.asarray(shown)

        def kernel(a, b):
            return sum(np.exp(-np.sum((a - b) ** 2) / (2 * s**2)) for s in losses.BANDWIDTHS)

        expected = 0.0
        for own, other in zip(decoded, shown):
            own = [own[i % LPC] for i in range(4)]  # the class's items take turns
            pairs = [kernel(own[i], own[j]) for i in range(4) for j in range(4) if i != j]
            between = np.mean([kernel(x, other) for x in own])
            expected += np.mean(pairs) + 5 - 2 * between  # five kernels of equal images
        loss, (_, metrics) = quick_jit(_mmd(tiny_network, epoch=epoch).loss, static_argnums=1)(
            theta, data.sample, (), jax.random.key(0), real
        )
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


@pytest.mark.parametrize(("steps", "batch"), [(5, 4), (3, 1), (2, 6)])
def test_cycled_batches_use_every_item_equally(steps, batch):
    index = np.asarray(trajectory.cycled_batches(jax.random.key(0), ITEMS, steps, batch))
    assert index.shape == (steps, batch)
    counts = np.bincount(index.reshape(-1), minlength=ITEMS)
    assert counts.max() - counts.min() <= 1

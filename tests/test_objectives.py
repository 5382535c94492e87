import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import IMAGE_SHAPE, NUM_CLASSES, check_gradient, random_params, to_float64

from d3jax import losses, networks
from d3jax.distill import objectives
from d3jax.distill.objectives import feature_mmd, mmd, trajectory
from d3jax.synthetic import gaussian, pixels
from d3jax.types import InputError

LPC = 2
ITEMS = LPC * NUM_CLASSES
STEP = jnp.asarray(0, jnp.int32)


def _gaussians(stochastic=True):
    return gaussian.create(
        image_shape=IMAGE_SHAPE, num_classes=NUM_CLASSES, latents_per_class=LPC, latent_size=4,
        width=8, variance="each" if stochastic else "none",
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
            return objective.loss(theta, sample, (), STEP, key, real)[0]

        # Leaky ReLU has kinks: the step is too small to meet one.
        check_gradient(loss, theta, step=1e-6, tolerance=1e-5)


def _ridge(network, **options):
    sizes = {"batch_size": 5, "items": 4, "updates": ("data", "decoder")}
    return objectives.kernel_ridge(network, ITEMS, NUM_CLASSES, **{**sizes, **options})


@pytest.mark.parametrize(
    ("make", "options"),
    [(_mmd, {}), (_mmd, {"strategy": ("color",)}), (_ridge, {"strategy": ("color",)})],
)
def test_gradient_of_matching_features_against_finite_differences(
    tiny_network, tiny_real, make, options
):
    objective = make(tiny_network, **options)
    with jax.enable_x64(True):
        theta, real = to_float64((_theta(0.1), tiny_real))

        def loss(theta):
            sample, key = _gaussians().sample, jax.random.key(5)
            return objective.loss(theta, sample, (), STEP, key, real)[0]

        check_gradient(loss, theta, step=1e-6, tolerance=1e-5, absent=("learning_rates",))


def test_kernel_ridge_is_the_solution_by_hand(tiny_network, tiny_real):
    # One snapshot, and decoded means: the key decides which real images, and nothing else.
    snapshot = tiny_real.trajectories[:1, :1]
    real = tiny_real._replace(trajectories=snapshot)
    objective = _ridge(tiny_network, items=None, batch_size=7)
    sample, theta, key = _gaussians(stochastic=False).sample, _theta(0.1), jax.random.key(3)
    loss, (_, metrics) = jax.jit(objective.loss, static_argnums=1)(
        theta, sample, (), STEP, key, real
    )

    drawn = real.sample(jax.random.split(key, 6)[5], 7)
    params = networks.unraveler(tiny_network)(snapshot[0, 0])

    def features(images):
        found = tiny_network.forward(params, images).features
        return np.asarray(found, np.float64).reshape(len(found), -1)

    images, targets = sample(theta, None)
    x, y, z = (
        features(images),
        np.asarray(targets, np.float64) - 1 / 3,
        features(real.gather(drawn)),
    )
    ridge = 4 * ITEMS * np.finfo(np.float32).eps * np.trace(x @ x.T) / ITEMS
    predicted = z @ x.T @ np.linalg.inv(x @ x.T + ridge * np.eye(ITEMS)) @ y
    true = np.eye(3)[np.asarray(real.labels[drawn])]
    expected = 0.5 * np.square(predicted - true + 1 / 3).sum(1).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-3)
    np.testing.assert_allclose(metrics["accuracy"], (predicted.argmax(1) == true.argmax(1)).mean())


def test_decoded_and_real_images_of_the_mmd_are_augmented_alike(
    tiny_network, tiny_real, monkeypatch
):
    def noise(key, images, strategy):
        return jax.random.normal(key, images.shape, images.dtype)

    def farthest(x, y, bandwidths, strata):
        return jnp.abs(x - y).max()

    monkeypatch.setattr(mmd, "augment", noise)
    monkeypatch.setattr(losses, "mmd2", farthest)
    objective = _mmd(tiny_network, strategy=("color",))
    loss, _ = jax.jit(objective.loss, static_argnums=1)(
        _theta(0.1), _gaussians().sample, (), STEP, jax.random.key(1), tiny_real
    )
    assert loss == 0


def test_trajectory_matching_is_plain_descent_towards_the_later_epoch(tiny_network, tiny_real):
    # One expert, one start epoch and no sampling: the key decides nothing.
    real = tiny_real._replace(trajectories=tiny_real.trajectories[:1])
    objective = _trajectory(tiny_network, max_start_epoch=1)
    theta, data = _theta((0.3, 0.1, 0.2)), _gaussians(stochastic=False)
    with jax.enable_x64(True):
        theta, real = to_float64((theta, real))
        images, targets = data.sample(theta, None)

        @jax.jit
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

        loss, (aux, metrics) = jax.jit(objective.loss, static_argnums=1)(
            theta, data.sample, (), STEP, jax.random.key(0), real
        )
        expected = distance(student, target) / distance(start, target)
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
        np.testing.assert_allclose(metrics["distance"], expected, rtol=1e-6)
        np.testing.assert_allclose(metrics["learning_rate"], 0.2, rtol=1e-6)
        assert aux == ()


def test_teslas_gradient_is_the_papers_sum_over_steps(tiny_network, tiny_real):
    # d/d theta of 2 r.(-sum_t rate_t g_t) / |start - target|^2, where the residual r and the
    # weights at which each g_t is taken are numbers.
    real = tiny_real._replace(trajectories=tiny_real.trajectories[:1])
    data, rates = _gaussians(stochastic=False), (0.3, 0.1, 0.2)
    objective = _trajectory(tiny_network, max_start_epoch=1, gradient="tesla")
    with jax.enable_x64(True):
        theta, real = to_float64((_theta(rates), real))
        unravel = networks.unraveler(tiny_network)
        start, target = (unravel(real.trajectories[0, epoch]) for epoch in (0, 2))

        def gradient(params, theta):
            def loss(params):
                images, targets = data.sample(theta, None)
                return losses.cross_entropy(tiny_network.apply(params, images), targets)

            return jax.grad(loss)(params)

        visited = [start]
        for rate in rates:
            step = jax.jit(gradient)(visited[-1], theta)
            visited.append(jax.tree.map(lambda p, g, rate=rate: p - rate * g, visited[-1], step))
        residual = jax.tree.map(jnp.subtract, visited[-1], target)

        def published(theta):
            total = sum(
                rate * optax.tree.vdot(residual, gradient(params, theta))
                for rate, params in zip(jnp.exp(theta["learning_rates"]), visited)
            )
            first = jax.tree.map(jnp.subtract, start, target)
            return -2 * total / optax.tree.norm(first, squared=True)

        def ours(theta):
            return objective.loss(theta, data.sample, (), STEP, jax.random.key(0), real)[0]

        expected, actual = (jax.jit(jax.grad(f))(theta) for f in (published, ours))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9), actual, expected
        )
        assert np.abs(actual["data"]["mean"]).max() > 1e-6


def test_the_window_of_start_epochs_grows(tiny_network, tiny_real):
    objective = _trajectory(
        tiny_network, min_start_epoch=0, first_max_start_epoch=1, max_start_epoch=2, growth_steps=5
    )
    # With a learning rate of nearly nothing the distance is 1; only the start tells epochs apart.
    marked = jnp.zeros_like(tiny_real.trajectories).at[:, 1].set(1e3)
    real, theta = tiny_real._replace(trajectories=marked), _theta(1e-30)
    sample = _gaussians().sample

    @jax.jit
    def starts_at_one(step, keys):
        def one(key):
            loss, _ = objective.loss(theta, sample, (), step, key, real)
            return ~jnp.isnan(loss)  # from epoch 0 to 2 there is no distance: 0 / 0

        return jax.lax.map(one, keys)

    keys = jax.random.split(jax.random.key(1), 6)
    assert not starts_at_one(jnp.asarray(4, jnp.int32), keys).any()
    assert 0 < starts_at_one(jnp.asarray(5, jnp.int32), keys).sum() < 6


@pytest.mark.parametrize("window", [(0, 3, 2), (2, 2, 2), (-1, 1, 2)])
def test_an_impossible_window_of_start_epochs_is_refused(tiny_network, window):
    earliest, first, latest = window
    with pytest.raises(InputError, match="min_start_epoch < first_max_start_epoch"):
        _trajectory(
            tiny_network, min_start_epoch=earliest, first_max_start_epoch=first,
            max_start_epoch=latest,
        )  # fmt: skip


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
        forward = jax.jit(tiny_network.forward)
        decoded = forward(params, data.sample(theta, None).images).features
        shown = forward(params, jnp.asarray((raw / 255 - 0.4) / 0.3)).features
        decoded, shown = np.asarray(decoded).reshape(NUM_CLASSES, LPC, -1), np.asarray(shown)

        def kernel(a, b):
            return sum(np.exp(-np.sum((a - b) ** 2) / (2 * s**2)) for s in losses.BANDWIDTHS)

        expected = 0.0
        for own, other in zip(decoded, shown):
            # Each item is drawn twice; two draws of the mixture are of one item half the time.
            pairs = [kernel(a, b) for a in own for b in own]
            between = np.mean([kernel(x, other) for x in own])
            expected += np.mean(pairs) + 5 - 2 * between  # five kernels of equal images
        loss, (_, metrics) = jax.jit(_mmd(tiny_network, epoch=epoch).loss, static_argnums=1)(
            theta, data.sample, (), STEP, jax.random.key(0), real
        )
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


def _features(network, data, theta, real):
    """Features of the first expert's last snapshot: of all items, and of all real images."""
    params = networks.unraveler(network)(real.trajectories[0, -1])
    everything = real.gather(jnp.arange(len(real.labels)))
    batches = (data.sample(theta, None).images, everything)
    return [np.asarray(jax.jit(network.forward)(params, x).features) for x in batches]


def _distance(x, y, bandwidths=losses.BANDWIDTHS):
    """MMD^2 of two finite sets of equally probable points."""

    def mean_kernel(a, b):
        squares = np.sum((a[:, None] - b[None]) ** 2, -1)
        return sum(np.exp(-squares / (2 * s**2)) for s in bandwidths).mean()

    return mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y)


@pytest.mark.parametrize("samples", [2, 5, 8])  # one stratum of three items; two; single items
def test_feature_mmd_is_unbiased_over_items_and_real_images(tiny_network, tiny_real, samples):
    real = tiny_real._replace(trajectories=3 * tiny_real.trajectories[:1])
    data = pixels.create(
        image_shape=IMAGE_SHAPE, num_classes=NUM_CLASSES, num_items=3 * NUM_CLASSES, start="noise"
    )
    theta = jax.jit(data.init)(jax.random.key(0), real)
    items, shown = _features(tiny_network, data, theta, real)
    labels = np.asarray(real.labels)
    expected = sum(
        _distance(items.reshape(NUM_CLASSES, 3, -1)[k], shown[labels == k])
        for k in range(NUM_CLASSES)
    )
    objective = feature_mmd(
        tiny_network, data.num_items, NUM_CLASSES, samples=samples, updates=("data",)
    )
    values = jax.jit(
        lambda keys: jax.lax.map(
            lambda key: objective.loss(theta, data.sample, (), STEP, key, real)[0],
            keys, batch_size=100,
        )
    )(jax.random.split(jax.random.key(2), 4000))  # fmt: skip
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values) - expected) < 4 * error
    assert error < 0.02 * expected


def test_several_experts_are_the_mean_over_different_ones(tiny_network, tiny_real):
    # Of two experts two are both, whatever the key; each item twice, and one real image a class.
    real = tiny_real._replace(class_counts=jnp.ones(3, jnp.int32))
    data, theta = _gaussians(stochastic=False), _theta(0.1)

    def both(objective, real):
        def loss(theta):
            return objective.loss(theta, data.sample, (), STEP, jax.random.key(3), real)[0]

        return jax.jit(jax.value_and_grad(loss))(theta)

    value, gradient = both(_mmd(tiny_network, experts=2), real)
    single = _mmd(tiny_network)
    parts = [both(single, real._replace(trajectories=t)) for t in jnp.split(real.trajectories, 2)]
    np.testing.assert_allclose(value, np.mean([part[0] for part in parts]), rtol=1e-5)
    jax.tree.map(
        lambda g, a, b: np.testing.assert_allclose(g, (a + b) / 2, rtol=1e-4, atol=5e-6),
        gradient, parts[0][1], parts[1][1],
    )  # fmt: skip
    assert parts[0][0] != parts[1][0]
    with pytest.raises(InputError, match="experts must be at least 1"):
        _mmd(tiny_network, experts=0)


def test_bandwidths_of_the_median_do_not_depend_on_the_unit_of_features(tiny_network, tiny_real):
    real = tiny_real._replace(
        trajectories=tiny_real.trajectories[:1], class_counts=jnp.ones(3, jnp.int32)
    )
    data, theta = _gaussians(stochastic=False), _theta(0.1)
    items, shown = _features(tiny_network, data, theta, real)
    expected = 0.0
    for k in range(NUM_CLASSES):
        # Four draws, each item twice, and four times the one real image.
        own = items[LPC * k : LPC * (k + 1)]
        other = shown[np.asarray(real.class_index)[k, :1]]
        pooled = np.concatenate([own, own, *[other] * 4])
        pairs = [np.linalg.norm(a - b) for a, b in itertools.combinations(pooled, 2)]
        expected += _distance(own, other, np.median(pairs) * np.asarray([0.25, 0.5, 1, 2, 4]))

    def in_units(unit):
        def forward(params, images, *, statistics=None):
            outputs = tiny_network.forward(params, images, statistics=statistics)
            return outputs._replace(features=outputs.features * unit)

        return tiny_network._replace(forward=forward)

    for unit in (1.0, 300.0):
        loss = jax.jit(_mmd(in_units(unit), bandwidth="median").loss, static_argnums=1)
        value = loss(theta, data.sample, (), STEP, jax.random.key(0), real)[0]
        np.testing.assert_allclose(value, expected, rtol=1e-4)


@pytest.mark.parametrize(("samples", "per_class"), [(30, 10), (5, 2), (7, 5), (4, 50), (3, 1)])
def test_every_draw_is_of_each_item_equally(samples, per_class):
    keys = jax.random.split(jax.random.key(0), 4000)
    draw = jax.jit(jax.vmap(lambda key: mmd.stratified_items(key, 2, samples, per_class)))
    items = np.asarray(draw(keys))
    assert items.shape == (4000, 2, samples)
    for j in range(samples):
        share = np.bincount(items[:, 1, j], minlength=per_class) / 4000
        error = np.sqrt((1 - 1 / per_class) / per_class / 4000)
        assert np.abs(share - 1 / per_class).max() <= 5 * error
    counts = np.stack([(items[:, 0] == i).sum(-1) for i in range(per_class)])
    if samples >= 2 * per_class:  # as evenly as can be
        assert counts.max() - counts.min() <= 1


def test_feature_mmd_by_groups_of_classes(tiny_network, tiny_real):
    # Pixels do not depend on the rest of their batch, so the grouping changes nothing.
    real = tiny_real._replace(trajectories=tiny_real.trajectories[:1])
    data = pixels.create(
        image_shape=IMAGE_SHAPE, num_classes=NUM_CLASSES, num_items=2 * NUM_CLASSES
    )
    theta = jax.jit(data.init)(jax.random.key(0), real)

    def gradient(classes):
        objective = feature_mmd(
            tiny_network, data.num_items, NUM_CLASSES, samples=4, classes_at_once=classes,
            updates=("data",),
        )  # fmt: skip

        def loss(theta):
            return objective.loss(theta, data.sample, (), STEP, jax.random.key(1), real)[0]

        return jax.jit(jax.value_and_grad(loss))(theta)

    value, gradient_ = gradient(1)
    expected, expected_gradient = gradient(None)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(
        gradient_["data"]["images"], expected_gradient["data"]["images"], rtol=1e-4, atol=1e-6
    )
    with pytest.raises(InputError, match="must divide the 3 classes"):
        gradient(2)


@pytest.mark.parametrize(("steps", "batch"), [(5, 4), (3, 1), (2, 6)])
def test_cycled_batches_use_every_item_equally(steps, batch):
    index = np.asarray(trajectory.cycled_batches(jax.random.key(0), ITEMS, steps, batch))
    assert index.shape == (steps, batch)
    counts = np.bincount(index.reshape(-1), minlength=ITEMS)
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize(
    "made",
    [
        _trajectory,
        _mmd,
        lambda network: objectives.unrolled(
            network, ITEMS, steps=1, passes=1, initialization="pretrained",
            updates=("data",),
        ),
    ],
    ids=["trajectory", "mmd", "unrolled"],
)  # fmt: skip
def test_without_experts_a_step_says_what_it_needs(tiny_network, tiny_real, made):
    objective, theta = made(tiny_network), _theta(0.1)
    arguments = (theta, _gaussians().sample, (), STEP, jax.random.key(0))
    with pytest.raises(InputError, match=r"real\._replace\(trajectories=d3jax\.train_experts"):
        objective.loss(*arguments, tiny_real._replace(trajectories=None))


def test_experts_of_too_few_epochs_are_refused(tiny_network, tiny_real):
    arguments = (_theta(0.1), _gaussians().sample, (), STEP, jax.random.key(0), tiny_real)
    with pytest.raises(InputError, match="epochs up to 4, the experts have 3: train them"):
        _trajectory(tiny_network, expert_epochs=3).loss(*arguments)
    with pytest.raises(InputError, match="epochs up to 4, the experts have 3: train them"):
        _mmd(tiny_network, epoch=4).loss(*arguments)

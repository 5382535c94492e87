"""Statistics matching under a teacher: the objective, DWA's method, and what it is run by."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import IMAGE_SHAPE, NUM_CLASSES, check_gradient, make_real, random_params, to_float64
from jax.flatten_util import ravel_pytree

from d3jax import losses, networks
from d3jax.distill.objectives import batch_items, statistics_matching
from d3jax.methods.dwa import SRE2L, DWAOptions, dwa, smallest_crop
from d3jax.synthetic import gaussian, labels, pixels, spectral
from d3jax.types import InputError
from experiments import statistics_diagnoses

KEY = jax.random.key(3)
STEP = jnp.asarray(0, jnp.int32)


@pytest.fixture(scope="module")
def teacher():
    """Two batch norms, smooth."""
    return networks.create(
        "convnet", image_shape=IMAGE_SHAPE, num_classes=NUM_CLASSES, width=3, depth=2,
        norm="batch", activation=jnp.tanh,
    )  # fmt: skip


@pytest.fixture(scope="module")
def real(teacher):
    return make_real(teacher, 0)


def stored(items=6, **options):
    return pixels.create(
        image_shape=IMAGE_SHAPE, num_classes=NUM_CLASSES, num_items=items, **options
    )


def test_the_pixel_loss_against_finite_differences(teacher, real):
    """Each batch under weights of its own, against frozen statistics that are not its own."""
    data = stored()
    objective = statistics_matching(
        teacher, 6, NUM_CLASSES, statistics_weight=0.5, variance_weight=11.0, updates=("data",)
    )
    with jax.enable_x64(True):
        params = jnp.stack([ravel_pytree(random_params(teacher.init, s))[0] for s in (1, 2)])
        channels = jnp.arange(3.0)
        frozen = ((channels / 10, 1 + channels), (-channels / 5, 2 - channels / 2))
        aux = to_float64({"params": params, "statistics": frozen})
        images = jax.random.normal(KEY, (6, *IMAGE_SHAPE), jnp.float64)

        def loss(theta):
            return objective.loss(theta, data.sample, aux, STEP, KEY, to_float64(real))[0]

        check_gradient(loss, {"data": {"images": images}}, step=1e-6, tolerance=1e-5)


def test_the_loss_is_the_sum_over_batches_of_one_image_of_each_class(teacher, real):
    """Items 0 and 1 are of class 0, 2 and 3 of class 1, 4 and 5 of class 2."""
    np.testing.assert_array_equal(batch_items(6, 3), [[0, 2, 4], [1, 3, 5]])
    np.testing.assert_array_equal(batch_items(6, 3, 1), [[0], [2], [4], [1], [3], [5]])
    np.testing.assert_array_equal(batch_items(8, 4, 2), [[0, 2], [4, 6], [1, 3], [5, 7]])
    data = stored()
    objective = statistics_matching(
        teacher, 6, NUM_CLASSES, statistics_weight=0.3, variance_weight=2.0, updates=("data",)
    )
    theta = data.init(KEY, real)
    aux = jax.jit(objective.init)(KEY, real)

    @jax.jit
    def both(theta, aux):
        total, (_, metrics) = objective.loss(theta, data.sample, aux, STEP, KEY, real)
        found = []
        params = networks.unraveler(teacher)(real.trajectories[0, -1])
        for own in ([0, 2, 4], [1, 3, 5]):
            images = theta["data"]["images"][np.asarray(own)]
            logits, _, statistics = teacher.forward(params, images, statistics=aux["statistics"])
            error = losses.cross_entropy(logits, jnp.eye(3))
            distance = losses.statistics_distance(statistics, aux["statistics"], 2.0)
            found.append(jnp.stack([error + 0.3 * distance, error, distance]))
        return total, metrics, jnp.stack(found)

    total, metrics, expected = jax.tree.map(np.asarray, both(theta, aux))
    np.testing.assert_allclose(total, expected[:, 0].sum(), rtol=1e-5)
    names = ("loss", "cross_entropy", "statistics")
    found = [metrics[name] for name in names]
    np.testing.assert_allclose(found, expected.mean(0), rtol=1e-5)
    assert expected[:, 2].min() > 0


def test_a_teachers_statistics_are_those_of_its_training_images(teacher, real):
    objective = statistics_matching(teacher, 6, NUM_CLASSES, updates=("data",))
    aux = jax.jit(objective.init)(KEY, real)
    images = real.gather(jnp.arange(len(real.labels)))
    params = networks.unraveler(teacher)(real.trajectories[0, -1])
    own = jax.jit(teacher.forward)(params, images).statistics
    # Thousands of draws, with replacement, of the few images.
    for found, expected in zip(aux["statistics"], own, strict=True):
        np.testing.assert_allclose(found[0], expected[0], atol=0.05)
        np.testing.assert_allclose(found[1], expected[1], rtol=0.1)


def test_a_teacher_labels_each_image_by_itself_or_by_the_batch(teacher, real):
    params = networks.unraveler(teacher)(real.trajectories[0, -1])
    images = real.gather(jnp.arange(6))
    statistics = jax.jit(teacher.forward)(params, images).statistics
    labelled = jax.jit(labels.teacher_labels, static_argnums=0)
    frozen = labelled(teacher, params, statistics, images)
    np.testing.assert_allclose(
        labelled(teacher, params, statistics, images[:2]), frozen[:2], rtol=1e-5, atol=1e-6
    )
    by_batch = labelled(teacher, params, None, images)
    np.testing.assert_allclose(by_batch, frozen, rtol=1e-4, atol=1e-5)
    assert np.abs(labelled(teacher, params, None, images[:2]) - frozen[:2]).max() > 1e-3
    # As an expert labels what was distilled: two items more change no label.
    two, six = (stored(items=number) for number in (3, 6))
    seen = [
        jax.jit(labels.by_expert, static_argnums=(0, 1))(
            teacher, data, {"data": {"images": images[:: 6 // data.num_items]}}, real
        )
        for data in (two, six)
    ]
    np.testing.assert_allclose(seen[0], seen[1][::2], rtol=1e-5, atol=1e-6)


def started(teacher, real, data=None, **options):
    method = dwa(teacher, data or stored(), DWAOptions(**options), 4)
    return method, jax.jit(method.init)(KEY, real)


def test_the_adjustment_moves_each_batchs_own_weights_within_the_radius(teacher, real):
    _, state = started(teacher, real, adjustment_steps=3, adjustment_radius=0.5)
    start = np.asarray(real.trajectories[0, -1])
    moves = np.asarray(state.aux[0]["params"]) - start
    assert moves.shape == (2, len(start))
    lengths = np.linalg.norm(moves, axis=1)
    assert (lengths < 0.5 + 1e-5).all()
    assert (lengths > 0.3).all()
    assert np.abs(moves[0] - moves[1]).max() > 1e-3
    tree = networks.unraveler(teacher)(jnp.asarray(moves[0]))
    for layer in ("Normalization_0", "Linear_0"):  # not of convolutions alone
        jax.tree.map(lambda x: np.testing.assert_array_less(0, np.abs(x).max()), tree[layer])
    _, other = started(teacher, real, adjustment="random", adjustment_radius=0.5)
    moves = np.asarray(other.aux[0]["params"]) - start
    np.testing.assert_allclose(np.linalg.norm(moves, axis=1), 0.5, rtol=1e-4)
    _, still = started(teacher, real, adjustment_steps=0)
    chex.assert_trees_all_equal(state.theta, other.theta, still.theta)  # from the same images


def test_what_is_said_of_an_adjustment_and_of_features(teacher, real):
    own = {"adjustment_steps": 3, "adjustment_radius": 0.5}
    _, state = started(teacher, real, **own)
    _, still = started(teacher, real, adjustment_steps=0)
    weights = real.trajectories[0, -1]
    moved, unmoved = (
        statistics_diagnoses.of_start(
            teacher, x.aux[0], weights, x.theta["data"]["images"], NUM_CLASSES
        )
        for x in (state, still)
    )
    length = 1e-4 * moved["moved"] * np.linalg.norm(weights)
    assert 0.3 < length < 0.5 + 1e-5
    assert moved["after"] > moved["before"] == unmoved["before"] == unmoved["after"]
    assert unmoved["moved"] == 0
    # Cosines within the first class: 1, 0, 0; within the second: 1, 1, 1.
    features = jnp.array([[1.0, 0], [2, 0], [0, 3], [1, 1], [2, 2], [5, 5]])
    np.testing.assert_allclose(statistics_diagnoses.likeness(features, 2), 2 / 3, rtol=1e-6)


def test_no_radius_is_no_adjustment_bit_for_bit(teacher, real):
    states = [
        started(teacher, real, variance_weight=1.0, **change)[1]
        for change in ({"adjustment_steps": 0}, {"adjustment_radius": 0.0})
    ]
    chex.assert_trees_all_equal(*states)
    assert states[0].aux[0]["params"].shape[0] == 1
    same = DWAOptions(variance_weight=1.0, adjustment_steps=0, data_learning_rate=0.25)
    assert same == SRE2L


def test_steps_follow_adam_and_the_cosine_and_stay_within_black_and_white(teacher, real):
    """Adam's first step is its learning rate long; the run's last has the cosine's last rate."""
    rate = 0.02
    method, state = started(teacher, real, adjustment_steps=0, data_learning_rate=rate)
    step, sizes = jax.jit(method.step), []
    for _ in range(4):
        before = np.asarray(state.theta["data"]["images"])
        state, metrics = step(KEY, state, real)
        sizes.append(np.abs(np.asarray(state.theta["data"]["images"]) - before))
    mean, sd = float(real.mean[0]), float(real.sd[0])
    inside = (before > -mean / sd + 0.1) & (before < (1 - mean) / sd - 0.1)
    np.testing.assert_allclose(np.median(sizes[0][inside]), rate, rtol=0.01)
    assert np.isfinite(metrics["statistics/loss"])
    images = np.asarray(state.theta["data"]["images"])
    assert images.min() >= -mean / sd - 1e-6
    assert images.max() <= (1 - mean) / sd + 1e-6


def test_a_curriculum_shows_large_crops_first(teacher, real):
    """CDA's schedule: see `shared/methods`. In its first step the crop is all of the image."""
    found = [smallest_crop(jnp.asarray(step), 4) for step in range(5)]
    np.testing.assert_allclose(found, [1, 0.865269, 0.54, 0.214731, 0.08], atol=1e-6)
    own = {"adjustment_steps": 0, "roll": 0}
    method, state = started(teacher, real, crop=True, curriculum=True, **own)
    fixed, _ = started(teacher, real, crop=True, **own)
    whole, _ = started(teacher, real, **own)

    @jax.jit
    def losses(state):  # by a key that mirrors neither batch
        return [m.step(jax.random.key(0), state, real)[1]["statistics/loss"]
                for m in (method, fixed, whole)]  # fmt: skip

    begun, last = losses(state), losses(state._replace(step=jnp.asarray(4)))
    np.testing.assert_allclose(begun[0], begun[2], rtol=1e-5)
    np.testing.assert_allclose(last[0], last[1], rtol=1e-6)
    assert abs(float(last[0] - last[2])) > 1e-3


def test_clipping_is_to_what_pixels_can_be(real):
    """CIFAR-10's bounds: see `shared/methods`."""
    cifar = real._replace(
        mean=jnp.asarray([0.4914, 0.4822, 0.4465]), sd=jnp.asarray([0.2023, 0.1994, 0.2010])
    )
    far = jnp.asarray([-9.0, 9.0])[:, None, None, None] * jnp.ones((2, 1, 1, 3))
    clipped = pixels.clip({"data": {"images": far}}, cifar)["data"]["images"][:, 0, 0]
    expected = [[-2.429066, -2.418255, -2.221393], [2.514088, 2.596790, 2.753731]]
    np.testing.assert_allclose(clipped, expected, rtol=1e-6)
    whitened = cifar._replace(images=cifar.images.astype(jnp.float32))
    theta = {"data": {"images": far}}
    assert pixels.clip(theta, whitened) is theta


SHAPE = {"image_shape": IMAGE_SHAPE, "num_classes": NUM_CLASSES}


@pytest.mark.parametrize(
    "data",
    [
        gaussian.create(**SHAPE, latents_per_class=2, latent_size=4, width=8),
        spectral.create(**SHAPE, spectra_per_class=2, transformations=1, rank=4),
    ],
    ids=["gaussian", "spectral"],
)
def test_other_parametrizations_run_under_the_same_objective(teacher, real, data):
    method, state = started(teacher, real, data, adjustment_steps=1, crop=True, batch_classes=1)
    assert state.aux[0]["params"].shape[0] == 6  # a batch each
    after, metrics = jax.jit(method.step)(KEY, state, real)
    for group in data.groups:
        assert metrics[f"statistics/update_{group}"] > 0
    chex.assert_tree_all_finite(after.theta)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adjustment_radius": -1.0}, "adjustment_radius must not be negative"),
        ({"adjustment_radius": float("nan")}, "adjustment_radius must not be negative"),
        ({"adjustment_steps": -1}, "adjustment_steps must not be negative"),
        ({"variance_weight": -1.0}, "variance_weight must not be negative"),
        ({"data_learning_rate": -1.0}, "data_learning_rate must not be negative"),
        ({"curriculum": True}, "give --crop too"),
    ],
)
def test_options_out_of_range(teacher, options, message):
    with pytest.raises(InputError, match=message):
        dwa(teacher, stored(), DWAOptions(**options), 4)


def test_teachers_and_items_that_cannot_be(teacher, tiny_network, tiny_real):
    with pytest.raises(InputError, match="a multiple of 3 classes"):
        statistics_matching(teacher, 7, 3, updates=("data",))
    with pytest.raises(InputError, match="batches of 2 classes do not divide 3"):
        statistics_matching(teacher, 6, 3, batch_classes=2, updates=("data",))
    with pytest.raises(InputError, match="learns no labels"):
        dwa(teacher, stored(label_kind="free"), DWAOptions(), 4)
    method = dwa(tiny_network, stored(), DWAOptions(), 4)
    with pytest.raises(InputError, match="needs a teacher with batch norm"):
        jax.eval_shape(method.init, KEY, tiny_real)

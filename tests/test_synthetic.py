from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_real, random_params
from sklearn.cluster import KMeans

from d3jax import networks, synthetic, types
from d3jax.synthetic import (
    decoders,
    gaussian,
    labels,
    pixels,
    regression,
    spectral,
    starts,
    subsets,
)
from d3jax.types import InputError

SHAPE = (8, 8, 1)


@pytest.fixture(scope="module")
def gaussians():
    return gaussian.create(
        image_shape=SHAPE, num_classes=3, latents_per_class=2, latent_size=4, width=8
    )


@pytest.fixture(scope="module")
def theta(gaussians):
    return random_params(partial(gaussians.init, real=None))


@pytest.fixture(scope="module")
def frozen(gaussians, theta):
    return jax.jit(gaussians.freeze)(theta, jax.random.key(1))


@pytest.fixture(scope="module")
def sample(gaussians):
    return jax.jit(gaussians.sample)


@pytest.mark.parametrize(
    ("name", "shape", "latent_size", "width", "expected"),
    [
        ("small", (32, 32, 3), 64, 64, 61_083),
        ("small", (32, 32, 3), 64, 128, 210_227),
        ("small", (64, 64, 3), 64, 256, 789_187),
        ("medium", (64, 64, 3), 2048, None, 5_774_691),
        ("large", (64, 64, 3), 4096, None, 6_308_547),
    ],
)
def test_decoder_parameter_counts(name, shape, latent_size, width, expected):
    decoder = decoders.create(name, image_shape=shape, latent_size=latent_size, width=width)
    params = jax.eval_shape(decoder.init, jax.random.key(0))
    assert networks.parameter_count(params) == expected
    latents = jax.ShapeDtypeStruct((5, latent_size), jnp.float32)
    images, statistics = jax.eval_shape(decoder.forward, params, latents)
    assert images.shape == (5, *shape)
    assert len(statistics) == decoders.stages(shape[0])


@pytest.mark.parametrize(
    ("size", "stages"), [(8, 2), (16, 3), (28, 4), (32, 4), (33, 5), (64, 5), (128, 6)]
)
def test_stages_double_two_to_the_size_at_least(size, stages):
    assert decoders.stages(size) == stages
    assert 2 * 2**stages >= size > 2**stages


def test_other_sizes_are_cropped_about_the_centre():
    latents = jax.random.normal(jax.random.key(1), (4, 5))
    large, small = (
        decoders.create("small", image_shape=(size, size, 3), latent_size=5, width=8)
        for size in (32, 28)
    )
    params = random_params(large.init)
    images, _ = jax.jit(large.forward)(params, latents)
    cropped, _ = jax.jit(small.forward)(params, latents)
    assert cropped.shape == (4, 28, 28, 3)
    np.testing.assert_allclose(cropped, images[:, 2:30, 2:30], rtol=1e-5, atol=1e-6)
    assert np.abs(images).max() < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "huge"}, "unknown decoder 'huge'; known decoders: small, medium, large"),
        ({"image_shape": (8, 16, 1)}, "images are square, not 8x16"),
        ({"width": 12}, "needs a width divisible by 8, not 12"),
        ({"width": 4}, "needs a width divisible by 8, not 4"),
        ({"latent_size": 0}, "needs a latent size of at least 1, not 0"),
        ({"name": "large", "width": 32}, "latent size of 128, four times its width, not 4"),
    ],
)
def test_decoders_refuse_what_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        decoders.create(**{"name": "small", "image_shape": SHAPE, "latent_size": 4, **options})


def test_a_decode_without_key_is_deterministic_and_with_key_is_not(theta, sample):
    decoded = sample(theta, None)
    assert decoded.images.shape == (6, *SHAPE)
    np.testing.assert_array_equal(decoded.images, sample(theta, None).images)
    np.testing.assert_array_equal(np.argmax(decoded.targets, -1), [0, 0, 1, 1, 2, 2])
    first, again, second = (sample(theta, jax.random.key(k)).images for k in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - second).max() > 1e-3
    assert np.abs(first - decoded.images).max() > 1e-3


def test_latents_start_as_standard_normals():
    large = gaussian.create(
        image_shape=SHAPE, num_classes=10, latents_per_class=10, latent_size=64, width=8
    )
    for values in jax.jit(large.init)(jax.random.key(0), None)["data"].values():
        assert values.shape == (100, 64)
        assert abs(values.mean()) < 4 / np.sqrt(6400)
        assert abs(values.var() - 1) < 4 * np.sqrt(2 / 6400)


def test_default_draws_are_those_of_before():
    """Numbers of the version that had no other variance, start or rounding."""
    data = gaussian.create(
        image_shape=SHAPE, num_classes=3, latents_per_class=2, latent_size=4, width=8
    )
    theta = jax.jit(data.init)(jax.random.key(0), None)
    assert set(theta) == {"data", "decoder"}
    last = {name: x[5] for name, x in theta["data"].items()}
    expected = {
        "mean": [-0.63416433, -0.870491, 0.7583879, 1.0628535],
        "log_variance": [-1.1059942, -0.3220052, 1.3303299, 0.81223685],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(last[name], values, rtol=1e-6)
    squares = jax.tree.map(lambda x: float(jnp.square(x).sum()), theta["decoder"])
    kernels = {name: part["kernel"] for name, part in squares.items() if "kernel" in part}
    assert kernels == pytest.approx(
        {
            "Convolution_0": 0.25106618, "Linear_0": 10.37319, "Upsampling_0": 2.4878035,
            "Upsampling_1": 1.346962,
        }, rel=1e-5,
    )  # fmt: skip
    images = data.sample(theta, jax.random.key(1)).images
    seen = [0.44127512, 0.7369115, 0.18923499, 0.80016005]
    np.testing.assert_allclose(images[5, 3, :4, 0], seen, rtol=1e-4)
    images = data.sample(theta, jax.random.key(1), jnp.asarray([5, 2])).images
    seen = [0.28097865, 0.31704602, 0.41811484, 0.5225719]
    np.testing.assert_allclose(images[0, 3, :4, 0], seen, rtol=1e-4)


def test_regression_against_adam_by_hand():
    """Linear decodes, whose gradients are closed forms; Adam as Kingma and Ba print it."""
    generator = np.random.default_rng(0)
    weights, latents, images = (generator.normal(size=n) for n in ((3, 4), (5, 3), (5, 4)))
    steps, key = 20, jax.random.key(0)
    fitted = regression.fit(
        lambda params, z, which: z @ params,
        *(jnp.asarray(x, jnp.float32) for x in (weights, latents, images)), key, steps=steps,
    )  # fmt: skip
    values, rates = [weights.copy(), latents.copy()], (3e-3, 3e-2)
    first, second = ([np.zeros_like(v) for v in values] for _ in range(2))
    for turn in range(steps):
        error = 2 * (values[1] @ values[0] - images) / images.size
        gradients = values[1].T @ error, error @ values[0].T
        for number, g in enumerate(gradients):
            first[number] = 0.9 * first[number] + 0.1 * g
            second[number] = 0.999 * second[number] + 0.001 * g**2
            unbiased = first[number] / (1 - 0.9 ** (turn + 1))
            size = np.sqrt(second[number] / (1 - 0.999 ** (turn + 1))) + 1e-8
            rate = rates[number] * (1 + np.cos(np.pi * turn / steps)) / 2
            values[number] = values[number] - rate * unbiased / size
    for one, other in zip(fitted, values, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_regression_by_minibatches_reaches_every_image():
    generator = np.random.default_rng(0)
    images = jnp.asarray(generator.normal(size=(40, 3)), jnp.float32)
    offsets, latents = regression.fit(
        lambda params, z, which: z + params[which][:, None],
        jnp.zeros(40), jnp.zeros((40, 3)), images, jax.random.key(0), steps=1000, batch_size=8,
    )  # fmt: skip
    np.testing.assert_allclose(latents + offsets[:, None], images, atol=0.02)


@pytest.mark.long
def test_gaussians_start_from_real_images_of_their_class(tiny_real):
    data = gaussian.create(
        image_shape=SHAPE, num_classes=3, latents_per_class=3, latent_size=8, width=16,
        start="real", start_steps=400, shift=[0.3], scale=[1.8],
    )  # fmt: skip
    init = jax.jit(data.init)
    theta = init(jax.random.key(0), tiny_real)
    np.testing.assert_array_equal(theta["data"]["log_variance"], np.full((9, 8), -4))
    decoded = np.asarray(data.sample(theta, None).images).reshape(9, 1, -1)
    real = np.asarray(tiny_real.gather(jnp.arange(12))).reshape(1, 12, -1)
    distances = np.square(decoded - real).mean(2)
    nearest = distances.argmin(1)
    np.testing.assert_array_equal(np.asarray(tiny_real.labels)[nearest], np.repeat([0, 1, 2], 3))
    assert len(set(nearest)) == 9  # all different
    # Noise images, of variance 0.93: what no decoder could know but from its latents.
    assert distances.min(1).max() < 0.1 < 0.8 < real.var()
    again, other = (init(jax.random.key(k), tiny_real) for k in (0, 1))
    jax.tree.map(np.testing.assert_array_equal, theta, again)
    assert np.abs(theta["data"]["mean"] - other["data"]["mean"]).max() > 0.1
    shapes = jax.eval_shape(data.init, jax.random.key(0), tiny_real)
    assert jax.tree.map(jnp.shape, theta) == jax.tree.map(lambda x: x.shape, shapes)


def test_a_real_start_under_vmap_is_that_alone(tiny_real):
    data = gaussian.create(
        image_shape=SHAPE, num_classes=3, latent_size=4, width=8, start="real", start_steps=2,
        variance="none",
    )  # fmt: skip
    keys = jax.random.split(jax.random.key(0), 2)
    many = jax.jit(jax.vmap(data.init, (0, None)))(keys, tiny_real)
    alone = jax.jit(data.init)(keys[1], tiny_real)
    assert set(alone["data"]) == {"mean"}
    np.testing.assert_allclose(many["data"]["mean"][1], alone["data"]["mean"], atol=1e-5)


def test_centres_of_each_class_are_those_of_scikit_learn(tiny_network):
    """Lloyd's algorithm from the same images, of classes of unequal size; one has fewer than k."""
    real = make_real(tiny_network, 0, counts=(3, 40, 25))
    begin = real.sample_different(jax.random.key(0), 4)
    found = jax.jit(starts.centres)(real, begin)
    points = np.asarray(real.gather(jnp.arange(68))).reshape(68, -1)
    for label in (1, 2):
        first, own = points[begin[label]], points[np.asarray(real.labels) == label]
        fitted = KMeans(4, init=first, n_init=1, max_iter=20, tol=0).fit(own)
        np.testing.assert_allclose(
            np.asarray(found[label]).reshape(4, -1), fitted.cluster_centers_, rtol=1e-4, atol=1e-4
        )
    distances = np.abs(np.asarray(found[0]).reshape(4, 1, -1) - points[:3]).max(2)
    assert sorted(set(distances.argmin(1))) == [0, 1, 2]
    assert distances.min(1).max() < 1e-6, "three images are their own centres"


@pytest.mark.long
def test_images_spectra_and_gaussians_start_from_centres(tiny_network):
    real = make_real(tiny_network, 0, counts=(6, 8, 7))
    key, shape = jax.random.key(2), {"image_shape": SHAPE, "num_classes": 3}
    data = pixels.create(**shape, num_items=6, start="kmeans")
    images = jax.jit(data.init)(key, real)["data"]["images"]
    centres = starts.images("kmeans", key, real, 2).reshape(6, *SHAPE)
    np.testing.assert_allclose(images, centres, atol=1e-6)
    spectra = spectral.create(**shape, spectra_per_class=2, rank=8, start="kmeans")
    gaussians = gaussian.create(
        **shape, latents_per_class=2, latent_size=8, width=16, start="kmeans", start_steps=300,
        shift=[0.3], scale=[1.8],
    )  # fmt: skip
    every = np.asarray(real.gather(jnp.arange(21)))
    for made, each in ((spectra, 4), (gaussians, 1)):
        theta = jax.jit(made.init)(key, real)
        seen = np.asarray(jax.jit(made.sample)(theta, None).images)[::each]
        # Centres of a class have less contrast than its images.
        assert 0.2 < seen.var() / every.var() < 0.6


def test_a_class_embedding_is_a_bias_of_the_projection():
    options = {"image_shape": SHAPE, "num_classes": 3, "latents_per_class": 2, "latent_size": 4}
    plain = gaussian.create(**options, width=8)
    data = gaussian.create(**options, width=8, class_embedding=True)
    theta = random_params(partial(data.init, real=None))
    embedding = theta["decoder"].pop("class_embedding")
    assert embedding.shape == (3, 4 * 8)
    without = jax.eval_shape(plain.init, jax.random.key(0), None)
    assert jax.tree.structure(theta) == jax.tree.structure(without)
    whole = {**theta, "decoder": {**theta["decoder"], "class_embedding": embedding}}
    indices, key = jnp.asarray([3, 2]), jax.random.key(1)  # both of class 1
    linear = theta["decoder"]["Linear_0"]
    moved = {**linear, "bias": linear["bias"] + embedding[1]}
    biased = {**theta, "decoder": {**theta["decoder"], "Linear_0": moved}}
    np.testing.assert_allclose(
        data.sample(whole, key, indices).images,
        plain.sample(biased, key, indices).images,
        atol=1e-6,
    )
    frozen = jax.jit(data.freeze)(whole, key)
    alone = data.sample(frozen, None, jnp.asarray([4])).images[0]
    np.testing.assert_allclose(alone, data.sample(frozen, None).images[4], atol=1e-6)
    started = jax.jit(data.init)(key, None)["decoder"]["class_embedding"]
    assert 0.9 < np.abs(started).max() < 1  # uniform in (-1, 1)


def test_draws_have_the_mean_and_variance_of_their_gaussian(monkeypatch):
    def plain(*_, **__):
        """A decoder that shows the latents themselves."""
        return decoders.Decoder(
            lambda key: {}, lambda params, z, statistics: (z.reshape(-1, 1, 2, 1), ())
        )

    monkeypatch.setattr(decoders, "create", plain)
    options = {"image_shape": (1, 2, 1), "num_classes": 3, "latent_size": 2}
    shown = gaussian.create(**options)
    theta = shown.init(jax.random.key(0), None)
    keys = jax.random.split(jax.random.key(1), 20_000)
    draws = jax.jit(jax.vmap(lambda key: shown.sample(theta, key).images))(keys)
    draws = np.asarray(draws).reshape(20_000, 3, 2)
    mean, variance = theta["data"]["mean"], np.exp(theta["data"]["log_variance"])
    assert np.all(np.abs(draws.mean(0) - mean) < 5 * np.sqrt(variance / 20_000))
    np.testing.assert_allclose(draws.var(0), variance, rtol=5 * np.sqrt(2 / 20_000))
    correlation = np.corrcoef(draws.reshape(20_000, 6).T) - np.eye(6)
    assert np.abs(correlation).max() < 5 / np.sqrt(20_000)
    fixed = gaussian.create(**options, variance="none").sample(theta, jax.random.key(1))
    np.testing.assert_array_equal(fixed.images.reshape(3, 2), mean)


def test_means_without_variances_have_none():
    shape = {"image_shape": (8, 8, 1), "num_classes": 2, "latent_size": 3, "width": 8}
    data, sampled = gaussian.create(**shape, variance="none"), gaussian.create(**shape)
    theta, noisy = (x.init(jax.random.key(0), None) for x in (data, sampled))
    assert set(theta["data"]) == {"mean"}
    assert set(noisy["data"]) == {"mean", "log_variance"}
    np.testing.assert_array_equal(theta["data"]["mean"], noisy["data"]["mean"])
    frozen = data.freeze(theta, jax.random.key(1))
    assert set(frozen["data"]) == {"mean"}
    several = data.sample(frozen, jax.random.key(2), jnp.asarray([1, 0]))
    np.testing.assert_array_equal(several.images, data.sample(frozen, None).images[::-1])


def test_gaussians_of_a_class_share_its_variances():
    """The same theta written out with a row of log variances for each Gaussian draws the same."""
    options = {"image_shape": SHAPE, "num_classes": 3, "latents_per_class": 2, "latent_size": 4}
    each, shared = (gaussian.create(**options, width=8, variance=v) for v in ("each", "class"))
    theta = random_params(partial(shared.init, real=None))
    assert {name: x.shape for name, x in theta["data"].items()} == {
        "mean": (6, 4), "log_variance": (3, 4),
    }  # fmt: skip
    variances = theta["data"]["log_variance"]
    written = np.asarray(variances)[[0, 0, 1, 1, 2, 2]]
    long = {**theta, "data": {**theta["data"], "log_variance": written}}
    key = jax.random.key(3)
    for indices in (None, jnp.asarray([5, 0, 3, 2])):
        one, other = (x.sample(t, key, indices) for x, t in ((shared, theta), (each, long)))
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.targets, other.targets)
    with pytest.raises(InputError, match="cannot be split into 2 subsets"):
        subsets.split(shared, 2)
    assert [len(part) for part in subsets.split(each, 2)] == [3, 3]


def test_a_frozen_decode_does_not_depend_on_its_neighbours(theta, frozen, sample):
    indices = jnp.asarray([4, 0, 3])
    together, alone = sample(frozen, None), sample(frozen, None, indices)
    np.testing.assert_allclose(alone.images, together.images[indices], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(alone.targets, together.targets[indices])
    free = sample(theta, None, indices).images
    assert np.abs(free - sample(theta, None).images[indices]).max() > 1e-3


def test_freeze_takes_the_statistics_of_the_population(theta, frozen):
    decoder = decoders.create("small", image_shape=SHAPE, latent_size=4, width=8)
    forward = jax.jit(decoder.forward)
    mean, spread = theta["data"]["mean"], np.exp(theta["data"]["log_variance"] / 2)
    keys = jax.random.split(jax.random.key(1), gaussian.FREEZE_BATCHES)
    batches = [mean + spread * jax.random.normal(key, mean.shape) for key in keys]
    # The first normalization sees an affine map of the latents: its population is that of one
    # batch of them all.
    _, statistics = forward(theta["decoder"], np.concatenate(batches))
    for actual, expected in zip(frozen["statistics"][0], statistics[0]):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    # The second sees what each batch's own statistics have made.
    means, variances = zip(*(forward(theta["decoder"], batch)[1][1] for batch in batches))
    second = frozen["statistics"][1]
    np.testing.assert_allclose(second[0], np.mean(means, 0), rtol=1e-4, atol=1e-5)
    expected = np.mean(variances, 0) + np.var(means, 0)
    np.testing.assert_allclose(second[1], expected, rtol=1e-4, atol=1e-5)
    assert all(frozen[group] is not None for group in theta)


def test_shift_and_scale_map_the_decoders_range_by_channel():
    options = {"image_shape": (8, 8, 3), "num_classes": 2, "latent_size": 4, "width": 8}
    shift, scale = [1.0, 2.0, 3.0], [0.5, 0.25, 2.0]
    plain, mapped = gaussian.create(**options), gaussian.create(**options, shift=shift, scale=scale)
    theta = random_params(partial(plain.init, real=None))
    decoded, changed = (jax.jit(x.sample)(theta, None).images for x in (plain, mapped))
    np.testing.assert_allclose(changed, np.asarray(decoded) * scale + shift, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latents_per_class": 0}, "must be positive, not 3 and 0"),
        ({"num_classes": 0}, "must be positive, not 0 and 1"),
        ({"label_kind": "soft"}, "unknown label kind 'soft'"),
        ({"shift": [0.0, 0.0]}, "one number for each of the 1 channels"),
        ({"scale": [1.0, 1.0]}, "one number for each of the 1 channels"),
        ({"decoder": "huge"}, "unknown decoder"),
        ({"variance": "all"}, "unknown variance 'all'; known: each, class, none"),
        ({"start": "images"}, "unknown start 'images'; known: noise, real, kmeans"),
        ({"start": "real", "start_steps": 0}, "needs at least 1 step, not 0"),
        (
            {"class_embedding": True, "decoder": "large", "width": 16},
            "no linear layer to add a class",
        ),
        ({"rounding": "int4"}, "unknown rounding 'int4'; known: none, float16, int8"),
    ],
)
def test_gaussians_refuse_what_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        gaussian.create(**{"image_shape": SHAPE, "num_classes": 3, **options})


def test_fit_takes_mean_and_variance_of_each_class():
    generator = np.random.default_rng(0)
    classes = np.array([0, 2, 2, 0, 2, 0, 3, 2], np.int32)
    vectors = (generator.normal(size=(8, 5)) + 100).astype(np.float32)  # far from the origin
    mean, variance = jax.jit(gaussian.fit, static_argnums=2)(vectors, classes, 4)
    for k in (0, 2, 3):
        mine = vectors[classes == k].astype(np.float64)
        np.testing.assert_allclose(mean[k], mine.mean(0), rtol=1e-6)
        np.testing.assert_allclose(variance[k], mine.var(0), rtol=1e-3, atol=1e-5)
    assert np.isnan(mean[1]).all()
    assert np.isnan(variance[1]).all()


def _tagged(real):
    """Images that show their class, in a real of the same index."""
    images = np.empty(real.images.shape, np.uint8)
    images[:] = np.asarray(real.labels)[:, None, None, None] * 50
    return real._replace(images=jnp.asarray(images))


@pytest.mark.parametrize(
    ("items", "kind"),
    [(6, "hard"), (6, "logits"), (4, "probabilities"), (8, "logits"), (2, "logits")],
)
def test_pixels_start_from_real_images_of_their_class(tiny_real, items, kind):
    data = pixels.create(image_shape=SHAPE, num_classes=3, num_items=items, label_kind=kind)
    theta = data.init(jax.random.key(0), _tagged(tiny_real))
    shown = np.asarray(theta["data"]["images"])[:, 0, 0, 0] * 0.3 + 0.4
    expected = np.arange(items) * 3 // items
    np.testing.assert_allclose(np.round(shown * 255 / 50), expected)
    targets = data.sample(theta, None).targets
    np.testing.assert_array_equal(np.argmax(targets, -1), expected)
    np.testing.assert_allclose(targets.sum(-1), 1, rtol=1e-6)


def test_pixels_are_drawn_at_random_from_all_of_the_class(tiny_real):
    data = pixels.create(image_shape=SHAPE, num_classes=3, num_items=300)
    images = np.asarray(data.init(jax.random.key(0), tiny_real)["data"]["images"])
    originals = np.asarray(tiny_real.gather(jnp.arange(12)))
    for k, positions in enumerate(([0, 1, 2], [3, 4, 5, 6], [7, 8, 9, 10, 11])):
        mine = images[100 * k : 100 * (k + 1), None] - originals[None, positions]
        same = np.abs(mine).max((2, 3, 4)) < 1e-5
        assert np.all(same.sum(1) == 1)
        assert np.all(same.sum(0) > 5)


def test_pixels_are_what_they_are(tiny_real):
    data = pixels.create(image_shape=SHAPE, num_classes=3, num_items=6, start="noise")
    theta = data.init(jax.random.key(0), tiny_real)
    everything = data.sample(theta, jax.random.key(1))
    np.testing.assert_array_equal(everything.images, theta["data"]["images"])
    some = data.sample(theta, None, jnp.asarray([5, 1]))
    np.testing.assert_array_equal(some.images, theta["data"]["images"][jnp.asarray([5, 1])])
    np.testing.assert_array_equal(np.argmax(some.targets, -1), [2, 0])
    assert data.freeze(theta, jax.random.key(0)) is theta


@pytest.mark.parametrize("items", [0, 4])
def test_pixels_with_hard_labels_need_a_multiple_of_the_classes(items):
    with pytest.raises(InputError, match="multiple of the 3 classes"):
        pixels.create(image_shape=SHAPE, num_classes=3, num_items=items)


def test_targets_of_each_kind():
    stored = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    theta, index = {"labels": jnp.asarray(stored)}, jnp.asarray([3, 0])
    classes = labels.item_classes(4, 2, index)
    last = labels.item_classes(209_000, 10_450, jnp.asarray([208_999], jnp.int32))
    assert int(last[0]) == 10_449  # the product of both is no int32
    np.testing.assert_array_equal(classes, [1, 0])
    hard = labels.targets({}, "hard", classes, index, 2)
    np.testing.assert_array_equal(hard, [[0, 1], [1, 0]])
    probabilities = labels.targets(theta, "probabilities", classes, index, 2)
    np.testing.assert_array_equal(probabilities, stored[[3, 0]])
    logits = labels.targets(theta, "logits", labels.item_classes(4, 2), None, 2)
    expected = np.exp(stored) / np.exp(stored).sum(-1, keepdims=True)
    np.testing.assert_allclose(logits, expected, rtol=1e-5)


def test_targets_have_the_dtype_of_the_images(tiny_real):
    with jax.enable_x64(True):
        data = pixels.create(image_shape=SHAPE, num_classes=3, num_items=3)
        theta = {"data": {"images": jnp.zeros((3, *SHAPE), jnp.float64)}}
        batch = data.sample(theta, None)
        assert batch.targets.dtype == batch.images.dtype == jnp.float64


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        ({}, "unknown parametrization None; known: gaussian, pixels"),
        ({"kind": "tree"}, "unknown parametrization 'tree'"),
        ({"kind": "pixels", "image_shape": SHAPE}, "options of parametrization pixels do not fit"),
        ({"kind": "gaussian", "num_items": 3}, "options of parametrization gaussian do not fit"),
    ],
)
def test_specifications_that_do_not_fit_are_refused(specification, message):
    with pytest.raises(InputError, match=message):
        synthetic.create(specification)


def test_a_specification_makes_its_parametrization():
    specification = {"kind": "pixels", "image_shape": [8, 8, 1], "num_classes": 3, "num_items": 6}
    data = synthetic.create(specification)
    assert (data.num_items, data.num_classes) == (6, 3)
    assert specification["kind"] == "pixels"


def test_spectral_products_against_an_explicit_loop():
    shape, classes, spectra, maps, rank = (4, 5, 2), 3, 2, 2, 3
    data = spectral.create(
        image_shape=shape, num_classes=classes, spectra_per_class=spectra, transformations=maps,
        rank=rank, label_kind="free",
    )  # fmt: skip
    assert data.num_items == classes * spectra * maps
    generator = np.random.default_rng(0)
    drawn = {
        "data": {"spectra": (classes * spectra, rank, rank, 2)},
        "decoder": {"rows": (maps, 4, rank), "columns": (maps, 5, rank), "channels": (maps, 2, 2)},
        "labels": (data.num_items, classes),
    }
    theta = jax.tree.map(
        lambda size: generator.normal(size=size).astype(np.float32),
        drawn,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    expected = np.zeros((data.num_items, *shape))
    for item in range(data.num_items):
        spectrum = theta["data"]["spectra"][item // maps]
        rows, columns, channels = (theta["decoder"][n][item % maps] for n in drawn["decoder"])
        for h, w, d in np.ndindex(*shape):
            for a, b, c in np.ndindex(rank, rank, 2):
                expected[item, h, w, d] += (
                    rows[h, a] * columns[w, b] * channels[d, c] * spectrum[a, b, c]
                )
    images, targets = data.sample(theta, None)
    np.testing.assert_allclose(images, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(targets, theta["labels"])
    index = jnp.asarray([7, 2], jnp.int32)
    some, chosen = data.sample(theta, jax.random.key(0), index)
    np.testing.assert_allclose(some, expected[np.asarray(index)], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(chosen, theta["labels"][np.asarray(index)])


def test_spectra_start_from_real_images(tiny_real):
    # Of full rank and with transformations that agree, the start is real images themselves.
    size = tiny_real.images.shape[1]
    data = spectral.create(
        image_shape=tiny_real.images.shape[1:], num_classes=3, spectra_per_class=2,
        transformations=1, rank=size,
    )  # fmt: skip
    theta = jax.jit(data.init)(jax.random.key(0), tiny_real)
    basis = np.asarray(theta["decoder"]["rows"][0])
    # Orthonormal but for the spread that tells transformations apart: 0.1 of each unit column.
    assert np.abs(basis.T @ basis - np.eye(size)).max() < 0.5
    clean = np.linalg.qr(basis)[0]
    assert np.linalg.norm(basis - clean * np.sign(np.sum(basis * clean, 0))) < 0.2 * size**0.5
    images = np.asarray(data.sample(theta, None).images)
    real = np.asarray(tiny_real.gather(jnp.arange(len(tiny_real.labels))))
    labels_ = np.asarray(tiny_real.labels)
    for item, image in enumerate(images):
        own = real[labels_ == item // 2]
        nearest = np.sqrt(np.square(own - image).sum((1, 2, 3)).min())
        assert nearest < 0.4 * np.linalg.norm(image)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spectra_per_class": 0}, "spectra per class must be at least 1"),
        ({"transformations": 0}, "transformations must be at least 1"),
        ({"rank": 9}, "rank is at most 8 here, not 9"),
    ],
)
def test_impossible_spectra_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        spectral.create(image_shape=SHAPE, num_classes=3, **options)


def test_labels_of_a_network_are_its_softmax(monkeypatch):
    network = types.Network(
        lambda key: None,
        lambda params, images, **_: types.Outputs(params * images.sum((1, 2)), 0, ()),
    )
    data = pixels.create(image_shape=(2, 2, 3), num_classes=3, num_items=3)
    theta = {"data": {"images": jnp.arange(36, dtype=jnp.float32).reshape(3, 2, 2, 3) / 36}}
    found = labels.by_network(network, jnp.asarray([1.0, 2.0, 3.0]), data, theta)
    logits = np.asarray(theta["data"]["images"]).sum((1, 2)) * [1, 2, 3]
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    monkeypatch.setattr(labels, "_AT_ONCE", 2)  # a block of two items, and one of one
    found = labels.by_network(network, jnp.asarray([1.0, 2.0, 3.0]), data, theta)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["gaussian", "pixels", "spectral", "generated"])
def test_a_seed_stands_for_its_key_and_a_list_for_items(kind):
    sizes = {"gaussian": {"width": 8, "latent_size": 4}, "pixels": {"num_items": 3}, "spectral": {}}
    sizes["generated"] = {**sizes["pixels"], "generator_width": 4}
    made = synthetic.create(
        {"kind": kind, "image_shape": SHAPE, "num_classes": 3, **sizes[kind]}
        | ({"start": "noise"} if kind != "gaussian" else {})
    )

    def batch(seed, indices):
        theta = made.freeze(made.init(seed, None), seed)
        return made.sample(theta, seed, indices)

    for indices in ([0, 1], (0, 1), np.arange(2), jnp.arange(2)):
        found = jax.eval_shape(lambda indices=indices: batch(3, indices))
        assert found.images.shape == (2, *SHAPE)
    assert jax.eval_shape(batch, 3, None).images.shape[1:] == SHAPE  # under a transformation
    for indices in ([0, made.num_items], [-1], [[0]], [0.5], 0, "0"):
        with pytest.raises(InputError, match=r"items are numbered|indices are a list"):
            jax.eval_shape(lambda indices=indices: batch(3, indices))
    for key in (0.5, "0", True, -1):
        with pytest.raises(InputError, match=r"a key is|a seed is"):
            made.init(key, None)


def test_a_seeds_draw_is_its_keys():
    made = pixels.create(image_shape=SHAPE, num_classes=3, num_items=3, start="noise")
    for key in (7, np.int64(7), jax.random.PRNGKey(7)):
        np.testing.assert_array_equal(
            made.init(key, None)["data"]["images"],
            made.init(jax.random.key(7), None)["data"]["images"],
        )

"""d3jax.synthetic.rounding: what is stored in float16 or int8, and what training sees of it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_params

from d3jax import artifact, synthetic
from d3jax.artifact import join as joining
from d3jax.synthetic import gaussian, rounding
from d3jax.types import InputError

SHAPE = (8, 8, 1)
GENERATOR = np.random.default_rng(0)
ARRAYS = {
    "latents": GENERATOR.normal(size=(40, 5)),
    "kernel": GENERATOR.normal(size=(3, 3, 4, 6)) * np.geomspace(1e-5, 1e4, 6),
    "zeros": np.zeros((3, 2)),
    "tiny": GENERATOR.normal(size=(7, 3)) * 1e-6,
}
TINY = {"latents_per_class": 2, "latent_size": 3, "width": 8}


def _by_hand(array):
    """(levels, scale) one number after another."""
    size = array.shape[-1]
    scale = np.empty(size, np.float16)
    levels = np.empty(array.shape, np.int8)
    for channel in range(size):
        largest = max(abs(float(x)) for x in array[..., channel].ravel())
        scale[channel] = max(np.float16(np.float32(largest) / np.float32(127)), 2.0**-14)
        levels[..., channel] = np.rint(array[..., channel] / float(scale[channel]))
    return levels, scale


@pytest.mark.parametrize("name", ARRAYS)
def test_int8_is_within_half_a_level(name):
    array = ARRAYS[name].astype(np.float32)
    stored = jax.jit(rounding.quantize)(array)
    assert (stored.levels.dtype, stored.scale.dtype) == (jnp.int8, jnp.float16)
    levels, scale = _by_hand(array)
    np.testing.assert_array_equal(stored.scale, scale)
    np.testing.assert_array_equal(stored.levels, levels)
    read = np.asarray(rounding.dequantize(stored))
    assert read.dtype == np.float32
    # A channel's largest is at most 127 (1 + 2^-11) scales: what is cut off is less than half one.
    assert np.all(np.abs(read - array) <= scale.astype(np.float64) / 2 * (1 + 1e-5))
    if name not in ("zeros", "tiny"):
        assert np.abs(np.asarray(stored.levels)).max() == 127
        assert np.abs(read - array).max() > 0


@pytest.mark.parametrize("kind", ["float16", "int8"])
@pytest.mark.parametrize("name", ARRAYS)
def test_training_sees_what_is_read(kind, name):
    array = ARRAYS[name].astype(np.float32)
    seen = np.asarray(jax.jit(rounding.fake_quantize, static_argnums=1)(array, kind))
    if kind == "int8":
        levels, scale = _by_hand(array)
        read = levels.astype(np.float32) * scale.astype(np.float32)
    else:
        read = array.astype(np.float16).astype(np.float32)  # by NumPy
    np.testing.assert_array_equal(seen, read)
    np.testing.assert_array_equal(rounding.fake_quantize(seen, kind), seen)
    np.testing.assert_array_equal(rounding.fake_quantize(array, "none"), array)


def test_float16_of_all_sizes():
    """Subnormal numbers too; those beyond its range are left as they are."""
    array = np.concatenate([sign * np.geomspace(1e-9, 65000, 5000) for sign in (1, -1)])
    array = np.append(array, [0, 65504, 2.0**-25, 3 * 2.0**-25]).astype(np.float32)
    seen = jax.jit(partial(rounding.fake_quantize, kind="float16"))(array)
    np.testing.assert_array_equal(seen, array.astype(np.float16).astype(np.float32))
    beyond = np.asarray([65505, -1e9, np.inf], np.float32)
    np.testing.assert_array_equal(rounding.fake_quantize(beyond, "float16"), beyond)


@pytest.mark.parametrize("kind", rounding.KINDS)
def test_gradients_pass_straight_through(kind):
    array, weight = (GENERATOR.normal(size=(6, 4)).astype(np.float32) for _ in range(2))

    def loss(x):
        return jnp.vdot(weight, jnp.square(rounding.fake_quantize(x, kind)))

    # The square's slope is at the rounded numbers, and rounding's own slope is 1.
    seen = np.asarray(rounding.fake_quantize(array, kind))
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(array), 2 * weight * seen, rtol=1e-6)
    tangent = jax.jvp(lambda x: rounding.fake_quantize(x, kind), (array,), (weight,))[1]
    np.testing.assert_array_equal(tangent, weight)
    many = jax.vmap(lambda x: rounding.fake_quantize(x, kind))(np.stack([array, weight]))
    np.testing.assert_array_equal(many[1], rounding.fake_quantize(weight, kind))


def test_what_diverged_stays_so():
    array = np.asarray([[1, np.nan], [2, 3]], np.float32)
    seen = np.asarray(rounding.fake_quantize(array, "int8"))
    assert np.isfinite(seen[:, 0]).all()
    assert np.isnan(seen[:, 1]).all()


def _specification(num_classes=2, **options):
    common = {"kind": "gaussian", "image_shape": list(SHAPE), "num_classes": num_classes}
    return {**common, **TINY, "label_kind": "free", **options}


def _made(specification, theta, subtask=None, **options):
    classes = specification["num_classes"]
    names = tuple("abc"[k] for k in (subtask or {"classes": range(classes)})["classes"])
    return artifact.create(
        theta, method="d3", dataset="digits", class_names=names, seed=0, subtask=subtask,
        normalization={"mean": [0.5], "sd": [0.25], "zca": None},
        architecture={"network": "lenet"}, parametrization=specification,
        student_learning_rate=0.01, protocol={}, **options,
    )  # fmt: skip


def _start(specification, seed=0):
    data = synthetic.create(specification)
    return data, random_params(partial(data.init, real=None), seed)


@pytest.mark.parametrize("kind", ["float16", "int8"])
def test_an_artifact_decodes_to_what_training_saw(kind, tmp_path):
    specification = _specification(rounding=kind)
    data, theta = _start(specification)
    frozen = jax.jit(data.freeze)(theta, jax.random.key(1))
    path = tmp_path / "a.safetensors"
    artifact.save(_made(specification, frozen), path)
    back = artifact.load(path)
    for key in (None, jax.random.key(2)):
        # What training sees is of the unrounded theta; here with the frozen statistics.
        seen = data.sample({**theta, "statistics": frozen["statistics"]}, key)
        read = back.sample(key)
        np.testing.assert_allclose(read.images, seen.images, atol=1e-6)
        np.testing.assert_array_equal(read.targets, seen.targets)
    plain = synthetic.create(_specification())
    without = plain.sample({**theta, "statistics": frozen["statistics"]}, None).images
    assert np.abs(back.sample().images - without).max() > 1e-5
    # Nothing rounds again: the parametrization without rounding reads the same.
    np.testing.assert_allclose(plain.sample(back.decodable(), None).images, read_of(back))
    jax.tree.map(np.testing.assert_array_equal, back.decodable(), frozen)


def read_of(made):
    return np.asarray(made.sample().images)


def test_what_a_batch_decodes_to_is_rounded_by_hand():
    """The unrounded parametrization, given parameters rounded by NumPy, decodes alike."""
    data, theta = _start(_specification(rounding="int8"))
    plain = synthetic.create(_specification())

    def rounded(path, x):
        x = np.asarray(x)
        if path[0].key == "labels" or x.ndim == 1:
            return x.astype(np.float16).astype(np.float32)
        levels, scale = _by_hand(x)
        return levels.astype(np.float32) * scale.astype(np.float32)

    by_hand = jax.tree.map_with_path(rounded, theta)
    indices = jnp.asarray([3, 1])
    for key in (None, jax.random.key(0)):
        one, other = (x.sample(t, key, indices) for x, t in ((data, theta), (plain, by_hand)))
        np.testing.assert_allclose(one.images, other.images, atol=1e-6)
        np.testing.assert_array_equal(one.targets, other.targets)


def test_ledger_of_int8(tmp_path):
    # Linear 3 -> 4 * 8; 4x4 transposed convolutions 8 -> 4 -> 2, each with batch norm's scale and
    # offset; 3x3 convolution 2 -> 1: kernels, a byte a number.
    kernels = 3 * 32 + 16 * 8 * 4 + 16 * 4 * 2 + 9 * 2
    scales = 32 + 4 + 2 + 1  # of output channels
    others = 32 + (4 + 8) + (2 + 4) + 1 + (2 * 4 + 2 * 2)  # biases, batch norms and statistics
    specification = _specification(rounding="int8")
    data, theta = _start(specification)
    frozen = jax.jit(data.freeze)(theta, jax.random.key(1))
    path = tmp_path / "a.safetensors"
    for storage in ("float16", "float32", "int8"):
        made = _made(specification, frozen, dtype=storage)
        artifact.save(made, path)
        for ledger in (made.ledger, artifact.load(path).ledger):
            held = ledger["bytes"]
            assert held["total"] == path.stat().st_size
            assert held["latents"] == 2 * 4 * 3 + 2 * 2 * 3  # means, log variances; their scales
            assert held["decoder"] == kernels + 2 * scales + 2 * others
            assert held["labels"] == 2 * 4 * 2
            numbers = 2 * 4 * 3 + 2 * 3 + kernels + scales + others + 4 * 2
            assert ledger["floats"] == numbers


def test_means_alone_in_int8(tmp_path):
    specification = _specification(rounding="int8", variance="none", label_kind="hard")
    data, theta = _start(specification)
    frozen = jax.jit(data.freeze)(theta, jax.random.key(1))
    artifact.save(_made(specification, frozen), tmp_path / "a")
    ledger = artifact.load(tmp_path / "a").ledger
    assert ledger["bytes"]["latents"] == 4 * 3 + 2 * 3
    specification = {**specification, "variance": "class"}
    data, theta = _start(specification)
    frozen = jax.jit(data.freeze)(theta, jax.random.key(1))
    artifact.save(_made(specification, frozen), tmp_path / "a")
    ledger = artifact.load(tmp_path / "a").ledger
    assert ledger["bytes"]["latents"] == (4 * 3 + 2 * 3) + (2 * 3 + 2 * 3)


@pytest.mark.parametrize("kind", ["pixels", "spectral"])
def test_other_data_is_stored_in_int8_after_distillation(kind, tmp_path):
    own = {"pixels": {"num_items": 4}, "spectral": {"spectra_per_class": 1, "rank": 3}}[kind]
    specification = {
        "kind": kind, "image_shape": [8, 8, 3], "num_classes": 2, "start": "noise", **own,
    }  # fmt: skip
    data, theta = _start(specification)
    made = _made(specification, theta, dtype="int8")
    made = made._replace(
        header={**made.header, "normalization": {"mean": [0.5] * 3, "sd": [1.0] * 3, "zca": None}}
    )
    artifact.save(made, tmp_path / "a")
    back = artifact.load(tmp_path / "a")
    exact, read = np.asarray(data.sample(theta, None).images), np.asarray(back.sample().images)
    if kind == "pixels":
        scale = np.abs(exact).max((0, 1, 2)) / 127
        assert np.all(np.abs(read - exact) <= scale * 0.501)
        assert back.ledger["bytes"]["images"] == 4 * 8 * 8 * 3 + 2 * 3
    assert 1e-4 < np.abs(read - exact).max() < 0.05 * np.abs(exact).max()


def test_joined_parts_in_int8(tmp_path):
    parts, seen = [], []
    for number, classes in enumerate([[2, 0], [1]]):
        specification = _specification(len(classes), rounding="int8", label_kind="hard")
        data, theta = _start(specification, seed=number)
        frozen = jax.jit(data.freeze)(theta, jax.random.key(1))
        seen.append(np.asarray(data.sample(frozen, None).images))
        subtask = {"classes": classes, "class_names": ["a", "b", "c"]}
        parts.append(_made(specification, frozen, subtask))
    whole = joining.join(parts)
    artifact.save(whole, tmp_path / "a")
    back = artifact.load(tmp_path / "a")
    np.testing.assert_allclose(read_of(back)[[4, 5, 0, 1]], seen[0], atol=1e-6)
    np.testing.assert_allclose(read_of(back)[2:4], seen[1], atol=1e-6)
    for place in ("latents", "decoder"):
        apart = sum(part.ledger["bytes"][place] for part in parts)
        assert back.ledger["bytes"][place] == apart
    plain = _specification(1, label_kind="hard")
    data, theta = _start(plain)
    other = _made(plain, jax.jit(data.freeze)(theta, jax.random.key(1)), subtask)
    with pytest.raises(InputError, match="from part 0 in its storage: None instead of int8"):
        joining.join([parts[0], other])


def test_gaussians_learn_through_the_rounding():
    """The same loss, at parameters so close that they round alike, has the same gradient."""
    data = gaussian.create(image_shape=SHAPE, num_classes=2, **TINY, rounding="int8")
    theta = random_params(partial(data.init, real=None))

    @jax.jit
    def gradient(theta):
        return jax.grad(lambda t: jnp.square(data.sample(t, None).images).sum())(theta)

    frozen = jax.jit(partial(rounding.as_stored, kind="int8", groups=data.groups))(theta)
    one, other = gradient(theta), gradient(frozen)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, other)
    assert np.abs(one["data"]["mean"]).max() > 1e-3
    assert not np.asarray(one["data"]["log_variance"]).any()

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_params
from jax.flatten_util import ravel_pytree

from d3jax import networks
from d3jax.types import InputError


def _count(name, shape, num_classes=10, **options):
    network = networks.create(name, image_shape=shape, num_classes=num_classes, **options)
    return networks.parameter_count(jax.eval_shape(network.init, jax.random.key(0)))


@pytest.mark.parametrize(
    ("name", "shape", "options", "expected"),
    [
        ("convnet", (32, 32, 3), {}, 320_010),
        ("convnet", (64, 64, 3), {}, 467_850),
        ("convnet", (28, 28, 1), {"width": 32}, 24_138),
        ("lenet", (28, 28, 1), {}, 61_706),
        # Layer by layer: 4864 + 102464 + 1573248 + 73920 + 1930.
        ("alexcifarnet", (32, 32, 3), {}, 1_756_426),
        # 785 * 128 + 129 * 128 + 129 * 10.
        ("mlp", (28, 28, 1), {}, 118_282),
        # The count of the ResNet-18 for CIFAR-10 in common use.
        ("resnet18", (32, 32, 3), {}, 11_173_962),
        ("resnet18", (32, 32, 3), {"width": 32}, 2_797_610),
        ("resnet18", (32, 32, 3), {"width": 16}, 701_466),
        # torchvision's, of 1000 classes, less 990 x 513 of the classifier.
        ("resnet18", (224, 224, 3), {}, 11_181_642),
    ],
)
def test_parameter_counts(name, shape, options, expected):
    assert _count(name, shape, **options) == expected


def test_convnet_without_normalization_has_no_scale_and_bias():
    shape = (32, 32, 3)
    assert _count("convnet", shape) - _count("convnet", shape, norm="none") == 3 * 2 * 128
    for norm in ("group", "layer", "batch"):
        assert _count("convnet", shape, norm=norm) == 320_010
    assert _count("convnet", shape, pooling="max") == 320_010


@pytest.mark.parametrize(("size", "depth"), [(8, 2), (16, 2), (28, 3), (32, 3), (64, 4), (128, 5)])
def test_default_depth(size, depth):
    assert networks.default_depth(size) == depth


@pytest.mark.parametrize(
    ("name", "shape", "features"),
    [
        ("convnet", (28, 28, 1), 128 * 4 * 4),
        ("convnet", (32, 32, 3), 128 * 4 * 4),
        ("lenet", (32, 32, 3), 84),
        ("alexcifarnet", (32, 32, 3), 192),
        ("mlp", (8, 8, 1), 128),
        ("resnet18", (32, 32, 3), 512),
    ],
)
def test_shapes_of_outputs(name, shape, features):
    network = networks.create(name, image_shape=shape, num_classes=7)
    params = jax.eval_shape(network.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((5, *shape), jnp.float32)
    outputs = jax.eval_shape(network.forward, params, images)
    assert outputs.logits.shape == (5, 7)
    assert outputs.features.shape == (5, features)
    assert outputs.statistics == ()


def test_resnet18_has_twenty_batch_norms():
    network = networks.create("resnet18", image_shape=(32, 32, 3), num_classes=10, norm="batch")
    params = jax.eval_shape(network.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    found = jax.eval_shape(network.forward, params, images).statistics
    assert len(found) == 20
    assert sum(mean.shape[0] for mean, _ in found) == 4800


@pytest.mark.parametrize(
    ("name", "layer", "options"),
    [
        ("convnet", "Linear_0", {"width": 4, "norm": "group", "pooling": "max"}),
        ("convnet", "Linear_0", {"width": 4, "norm": "layer", "pooling": "none"}),
        ("mlp", "Linear_2", {"width": 5}),
    ],
)
def test_logits_are_the_classifier_of_the_features(name, layer, options):
    network = networks.create(name, image_shape=(8, 8, 1), num_classes=3, **options)
    params = random_params(network.init)
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    outputs = jax.jit(network.forward)(params, images)
    expected = outputs.features @ params[layer]["kernel"] + params[layer]["bias"]
    np.testing.assert_allclose(outputs.logits, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(jax.jit(network.apply)(params, images), outputs.logits, rtol=1e-5)


def test_convnet_of_depth_one_in_numpy(tiny_network):
    params = jax.tree.map(np.asarray, random_params(tiny_network.init))
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
    convolution, norm, linear = (
        params[name] for name in ("Convolution_0", "Normalization_0", "Linear_0")
    )
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    x = np.empty((2, 8, 8, 3))
    for i, j in np.ndindex(8, 8):
        window = padded[:, i : i + 3, j : j + 3]
        x[:, i, j] = np.tensordot(window, convolution["kernel"], 3) + convolution["bias"]
    x = (x - x.mean((1, 2), keepdims=True)) / np.sqrt(x.var((1, 2), keepdims=True) + 1e-5)
    x = np.tanh(x * norm["scale"] + norm["bias"])
    x = x.reshape(2, 4, 2, 4, 2, 3).mean((2, 4)).reshape(2, -1)
    outputs = jax.jit(tiny_network.forward)(params, images)
    np.testing.assert_allclose(outputs.features, x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        outputs.logits, x @ linear["kernel"] + linear["bias"], rtol=1e-4, atol=1e-5
    )


def test_frozen_batch_statistics_make_images_independent_of_their_neighbours():
    network = networks.create(
        "convnet", image_shape=(8, 8, 1), num_classes=3, width=4, depth=2, norm="batch"
    )
    params = random_params(network.init)
    images = jax.random.normal(jax.random.key(1), (6, 8, 8, 1))
    forward = jax.jit(network.forward)
    together = forward(params, images)
    assert len(together.statistics) == 2
    frozen = forward(params, images, statistics=together.statistics)
    np.testing.assert_allclose(frozen.logits, together.logits, rtol=1e-5, atol=1e-6)
    alone = forward(params, images[:2], statistics=together.statistics)
    np.testing.assert_allclose(alone.logits, together.logits[:2], rtol=1e-5, atol=1e-6)
    assert np.abs(forward(params, images[:2]).logits - together.logits[:2]).max() > 1e-3


def test_statistics_are_of_this_batch_whatever_it_was_normalized_by():
    """Of the second norm's input too, which the first has normalized by the frozen ones."""
    network = networks.create(
        "convnet", image_shape=(8, 8, 1), num_classes=3, width=4, depth=2, norm="batch",
        pooling="none",
    )  # fmt: skip
    params = random_params(network.init)
    images = jax.random.normal(jax.random.key(1), (6, 8, 8, 1))
    frozen = ((jnp.full(4, 0.5), jnp.full(4, 2.0)), (jnp.zeros(4), jnp.ones(4)))
    first, second = jax.jit(network.forward)(params, images, statistics=frozen).statistics

    def convolved(images, layer):
        kernel, bias = np.asarray(layer["kernel"]), np.asarray(layer["bias"])
        padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
        return np.einsum("bhwcij,ijcd->bhwd", windows, kernel) + bias

    x = convolved(np.asarray(images), params["Convolution_0"])
    np.testing.assert_allclose(first[0], x.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(first[1], x.var((0, 1, 2)), rtol=1e-4)
    norm = jax.tree.map(np.asarray, params["Normalization_0"])
    x = np.maximum((x - 0.5) / np.sqrt(2 + 1e-5) * norm["scale"] + norm["bias"], 0)
    x = convolved(x, params["Convolution_1"])
    np.testing.assert_allclose(second[0], x.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(second[1], x.var((0, 1, 2)), rtol=1e-4)


@pytest.mark.parametrize(
    ("initialization", "kernel_sd", "zero_bias"),
    [("uniform_fan_in", 1 / np.sqrt(3 * 64), False), ("xavier_normal", np.sqrt(2 / 164), True)],
)
def test_initializations(initialization, kernel_sd, zero_bias):
    network = networks.create(
        "mlp", image_shape=(8, 8, 1), num_classes=3, width=100, initialization=initialization
    )
    layer = jax.jit(network.init)(jax.random.key(0))["Linear_0"]
    np.testing.assert_allclose(np.std(layer["kernel"]), kernel_sd, rtol=0.05)
    if initialization == "uniform_fan_in":
        assert np.abs(layer["kernel"]).max() <= 1 / np.sqrt(64)
    assert bool(jnp.all(layer["bias"] == 0)) is zero_bias


def test_unraveler_inverts_ravel_pytree(tiny_network):
    params = random_params(tiny_network.init)
    vector, _ = ravel_pytree(params)
    back = networks.unraveler(tiny_network)(vector)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vgg", {}, "unknown network 'vgg'; known networks: convnet"),
        ("convnet", {"norm": "spectral"}, "unknown norm 'spectral'"),
        ("convnet", {"pooling": "sum"}, "unknown pooling 'sum'"),
        ("convnet", {"initialization": "zeros"}, "unknown initialization 'zeros'"),
        ("lenet", {"width": 3}, "network lenet has no option 'width'"),
        ("mlp", {"depth": 3}, "network mlp has no option 'depth'"),
        ("convnet", {"depth": 4}, "use at most depth 3"),
    ],
)
def test_create_refuses_what_cannot_be(name, options, message):
    with pytest.raises(InputError, match=message):
        networks.create(name, image_shape=(8, 8, 1), num_classes=3, **options)


@pytest.mark.parametrize("initialization", networks.INITIALIZATIONS)
def test_parameters_start_in_float32_also_among_64_bit_types(initialization):
    with jax.enable_x64(True):
        network = networks.create(
            "convnet", image_shape=(8, 8, 1), num_classes=3, initialization=initialization
        )
        params = jax.eval_shape(network.init, jax.random.key(0))
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
        params = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float64), params)
        images = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float64)
        assert jax.eval_shape(network.apply, params, images).dtype == jnp.float64


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [("lenet", 8, {}), ("lenet", 15, {}), ("convnet", 8, {"norm": "group", "width": 6})],
)
def test_a_network_that_does_not_fit_the_images_says_so(name, size, options):
    with pytest.raises(InputError, match=f"cannot take images of {size}x{size} pixels"):
        networks.create(name, image_shape=(size, size, 1), num_classes=3, **options)


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_bfloat16_computes_coarsely_and_keeps_float32(norm):
    shape = (8, 8, 1)
    both = [
        networks.create(
            "convnet", image_shape=shape, num_classes=3, width=8, norm=norm, compute=compute
        )
        for compute in networks.PRECISIONS
    ]
    params = both[0].init(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (4, *shape))

    def outputs(network):
        def loss(params):
            out = network.forward(params, images)
            return jnp.sum(jax.nn.log_softmax(out.logits)[:, 0]), out

        return jax.jit(jax.grad(loss, has_aux=True))(params)

    (fine_gradient, fine), (coarse_gradient, coarse) = map(outputs, both)
    assert {x.dtype for x in jax.tree.leaves((coarse, coarse_gradient))} == {jnp.dtype(jnp.float32)}
    # A bfloat16 has 8 bits: a rounding changes up to 0.4 %, and there are some of them on the way.
    pairs = [
        (coarse.logits, fine.logits),
        (coarse.features, fine.features),
        [ravel_pytree(gradient)[0] for gradient in (coarse_gradient, fine_gradient)],
    ]
    for a, b in pairs:
        assert 0 < np.linalg.norm(a - b) < 0.05 * np.linalg.norm(b)

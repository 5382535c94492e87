"""d3jax.networks.blocks: batches in blocks against the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_params

from d3jax import losses, networks
from d3jax.networks import blocks


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_forward_in_blocks_equals_the_whole(monkeypatch, norm):
    monkeypatch.setattr(blocks.convolution, "default_block", lambda size: 2)
    network = networks.create(
        "convnet", image_shape=(8, 8, 1), num_classes=3, width=4, depth=1, norm=norm
    )
    params = random_params(network.init)
    images = jax.random.normal(jax.random.key(1), (5, 8, 8, 1))
    by_block = jax.jit(lambda p, x: blocks.forward_blocks(network, p, x))(params, images)
    whole = jax.jit(network.forward)(params, images)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), by_block, whole
    )


@pytest.mark.parametrize("number", [6, 7, 8])
def test_fit_is_the_loss_and_its_gradient(tiny_network, monkeypatch, number):
    """By blocks (8 in blocks of 4, 6 of 3) or whole (7), against the plain loss."""
    monkeypatch.setattr(blocks, "_block", lambda network, images: 4)
    generator = np.random.default_rng(0)
    images = jnp.asarray(generator.normal(size=(number, 8, 8, 1)), jnp.float32)
    targets = jax.nn.one_hot(jnp.arange(number) % 3, 3, dtype=jnp.float32)
    params = tiny_network.init(jax.random.key(0))

    def plain(params):
        return 3.0 * losses.cross_entropy(tiny_network.apply(params, images), targets)

    def by_block(params):
        value, logits = blocks.batch_loss(
            tiny_network, params, images, losses.cross_entropy, targets
        )
        return 3.0 * value, logits

    (value, logits), gradient = jax.jit(jax.value_and_grad(by_block, has_aux=True))(params)
    expected, expected_gradient = jax.value_and_grad(plain)(params)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(by_block(params)[0], expected, rtol=1e-6)  # not differentiated
    np.testing.assert_allclose(logits, tiny_network.apply(params, images), atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, expected_gradient
    )


def test_bytes_of_an_mlps_image():
    """What one image writes down: its own copy, each product and bias sum, each ReLU."""
    network = networks.create("mlp", image_shape=(8, 8, 1), num_classes=10, width=16)
    assert 4 * 2 * 42 <= blocks._bytes_per_image(network, (8, 8, 1)) <= 4 * (64 + 4 * 42)

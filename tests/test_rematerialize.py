"""d3jax.networks.convolution: what a rematerialized step keeps, and that marks change nothing."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from d3jax import networks
from d3jax.distill import inner
from d3jax.networks.convolution import convolution as convolve
from d3jax.networks.convolution import keep

NETWORK = networks.create("convnet", image_shape=(8, 8, 3), num_classes=2, width=32, depth=2)
IMAGES = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))


def outer(images, params):
    """How far two steps on the images move the parameters."""

    def loss(params, number):
        del number
        return jnp.sum(jnp.square(NETWORK.apply(params, images)))

    trained = inner.unroll(loss, params, jnp.arange(2), jnp.full((2,), 0.1, jnp.float32))
    return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(trained))


def products(program):
    """Products in a program, those of its parts included."""
    inside = [getattr(p, "jaxpr", p) for e in program.eqns for p in e.params.values()]
    own = sum(e.primitive.name == "dot_general" for e in program.eqns)
    return own + sum(products(p) for p in inside if hasattr(p, "eqns"))


def test_the_second_convolution_is_not_computed_again(monkeypatch):
    params = NETWORK.init(jax.random.key(1))

    def count():
        return products(jax.make_jaxpr(jax.grad(outer))(IMAGES, params).jaxpr)

    kept = count()
    monkeypatch.setattr(inner, "products", jax.checkpoint_policies.nothing_saveable)
    # Six by Winograd's tiles; the first convolution, of three channels, is computed again.
    assert count() - kept == 6


def test_the_mark_is_the_identity_in_every_derivative():
    def function(x, mark):
        return jnp.sum(jnp.sin(mark(x)) ** 3)

    x = jnp.linspace(-1.0, 2.0, 5)
    for of in (jax.grad, lambda f: jax.grad(lambda x: jnp.sum(jax.grad(f)(x) ** 2))):
        plain = jax.jit(of(partial(function, mark=lambda x: x)))(x)
        np.testing.assert_allclose(jax.jit(of(partial(function, mark=keep)))(x), plain, 1e-6)


def test_many_images_are_convolved_a_few_at_a_time():
    images = jax.random.normal(jax.random.key(0), (70, 8, 8, 8))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 8, 32))
    weights = jax.random.normal(jax.random.key(2), (70, 8, 8, 32))

    def total(images, kernel, lowering=None):
        return jnp.sum(weights * jnp.tanh(convolve(images, kernel, lowering=lowering)))

    *found, expected = (
        jax.jit(jax.value_and_grad(total, (0, 1)), static_argnums=2)(images, kernel, lowering)
        for lowering in ("winograd", "patches", "lax")
    )
    for one in found:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), one, expected
        )

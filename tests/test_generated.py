"""Images that one generator changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import IMAGE_SHAPE, NUM_CLASSES, random_params

from d3jax.synthetic import generated, pixels
from d3jax.types import InputError

KEY = jax.random.key(0)


def _moved(channels, width=4):
    """A generator's forward pass, compiled, with random parameters in the last layer too."""
    made = generated.generator(channels, width)
    params = random_params(made.init)
    return jax.jit(lambda images: made.forward(params, images))


@pytest.mark.long
def test_at_first_images_are_the_real_ones_bit_for_bit(tiny_real):
    sizes = {"image_shape": IMAGE_SHAPE, "num_classes": NUM_CLASSES, "num_items": 6}
    made = generated.create(**sizes, generator_width=4)
    theta = jax.jit(made.init)(KEY, tiny_real)
    images, targets = jax.jit(made.sample)(theta, KEY)
    np.testing.assert_array_equal(images, theta["data"]["images"])
    np.testing.assert_array_equal(targets, np.repeat(np.eye(3), 2, 0))
    real = np.asarray(tiny_real.gather(jnp.arange(12)))
    assert all(any(np.array_equal(image, other) for other in real) for image in np.asarray(images))
    assert made.groups == ("decoder",), "the images themselves stay"
    assert pixels.create(**sizes).groups == ("data",)
    few = made.sample(theta, None, [4, 1])
    np.testing.assert_array_equal(few.images, images[np.array([4, 1])])


def test_what_an_image_becomes_does_not_depend_on_how_many_there_are():
    forward = _moved(3)
    images = np.random.default_rng(0).normal(size=(20, 8, 8, 3)).astype(np.float32)
    every, few = forward(images), forward(images[:7])
    assert np.abs(every - images).max() > 0.1
    np.testing.assert_allclose(few, every[:7], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [4, 7, 14])
def test_images_of_other_sizes_have_the_same_generator(size):
    made = generated.generator(1, 4)
    params = jax.eval_shape(made.init, KEY)
    image = jax.ShapeDtypeStruct((2, size, size, 1), jnp.float32)
    assert jax.eval_shape(made.forward, params, image).shape == image.shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generator_width": 6}, "positive multiple of 4, not 6"),
        ({"image_shape": (3, 3, 1)}, "images of 4 pixels, not 3x3"),
    ],
)
def test_generators_that_cannot_be(options, message):
    plain = {"image_shape": IMAGE_SHAPE, "num_classes": 3, "num_items": 3}
    with pytest.raises(InputError, match=message):
        generated.create(**{**plain, **options})

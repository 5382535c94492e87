"""RDED: which crops of which images are chosen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import IMAGE_SHAPE, NUM_CLASSES, make_real

from d3jax.methods.rded import RDEDOptions, padded, rded
from d3jax.synthetic import gaussian, pixels
from d3jax.types import InputError, Network, Outputs

KEY = jax.random.key(3)
COUNTS = (5, 5, 5)


def _forward(params, images, *, statistics=None):
    """Bright images are of class 0, dark ones of class 2: the easier the more."""
    del statistics
    mean = images.mean((1, 2, 3))
    logits = mean[:, None] * params
    return Outputs(logits, mean[:, None], ())


BRIGHTNESS = Network(lambda key: jnp.asarray([1.0, 0.0, -1.0]), _forward)


@pytest.fixture(scope="module")
def real():
    found = make_real(BRIGHTNESS, 0, COUNTS, experts=1, epochs=1)
    return found._replace(trajectories=jnp.asarray([[[1.0, 0.0, -1.0]]]))


def data(items):
    return pixels.create(image_shape=IMAGE_SHAPE, num_classes=NUM_CLASSES, num_items=items)


def chosen(real, items, **options):
    method = rded(BRIGHTNESS, data(items), RDEDOptions(**options))
    state = jax.jit(method.init)(KEY, real)
    return np.asarray(state.theta["data"]["images"])


def test_the_easiest_images_come_first_where_a_crop_is_all_of_an_image(real):
    found = chosen(real, 6, images=5, crops=1, smallest=1.0)
    images = np.asarray(real.gather(jnp.arange(15))).reshape(3, 5, *IMAGE_SHAPE)
    order = np.argsort(images.mean((2, 3, 4)), axis=1)
    expected = np.stack([images[0][order[0, :2:-1]], images[2][order[2, :2]]])
    np.testing.assert_allclose(found.reshape(3, 2, *IMAGE_SHAPE)[[0, 2]], expected, atol=1e-5)


def test_four_patches_make_an_image_the_easiest_at_the_top_left(real):
    whole = np.asarray(real.gather(jnp.arange(5)))
    halved = whole.reshape(5, 4, 2, 4, 2, 1).mean((2, 4))  # not what is expected, but as bright
    found = chosen(real, 3, images=5, crops=1, smallest=1.0, factor=2)
    brightness = found[0].reshape(2, 4, 2, 4).mean((1, 3)).reshape(-1)
    assert (np.diff(brightness) < 0).all()
    order = np.argsort(-halved.mean((1, 2, 3)))[:4]
    np.testing.assert_allclose(brightness, halved.mean((1, 2, 3))[order], atol=0.1)


def test_more_crops_are_easier(real):
    means = [chosen(real, 3, images=5, crops=n)[0].mean() for n in (1, 20)]
    assert means[1] > means[0] + 0.1


def test_patches_are_padded_on_all_sides():
    crops = jnp.ones((1, 2, 3, 1))
    expected = np.zeros((5, 6))
    expected[1:3, 1:4] = 1
    np.testing.assert_array_equal(padded(crops, (5, 6, 1))[0, ..., 0], expected)


@pytest.mark.parametrize("wrong", [{"images": 0}, {"crops": 0}, {"factor": 0}, {"smallest": 2.0}])
def test_options_out_of_range(wrong):
    with pytest.raises(InputError, match="must be"):
        rded(BRIGHTNESS, data(3), RDEDOptions(**wrong))


def test_what_cannot_be_chosen(real):
    def refused(made, **options):
        method = rded(BRIGHTNESS, made, RDEDOptions(**options))
        jax.eval_shape(method.init, KEY, real)

    with pytest.raises(InputError, match="3 patches a side do not divide 8x8"):
        refused(data(3), factor=3)
    with pytest.raises(InputError, match="each of 2 images a class can be kept, not 4"):
        refused(data(3), images=2, factor=2)
    latents = gaussian.create(image_shape=IMAGE_SHAPE, num_classes=NUM_CLASSES, width=8)
    with pytest.raises(InputError, match="RDED chooses pixels"):
        refused(latents)

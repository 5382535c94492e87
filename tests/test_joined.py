"""d3jax.synthetic.joined: parts of other classes as one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_real

from d3jax import synthetic
from d3jax.synthetic import joined, pixels
from d3jax.types import InputError, Real

SHAPE = [8, 8, 1]
CLASSES = [[2, 0], [1]]  # one part's classes in an order of its own


def specification(kind, num_classes, **options):
    own = {"pixels": {"num_items": 2 * num_classes}, "gaussian": GAUSSIAN}[kind]
    common = {"kind": kind, "image_shape": SHAPE, "num_classes": num_classes}
    return {**common, **own, **options}


GAUSSIAN = {"latents_per_class": 2, "latent_size": 3, "width": 8}


def both(kind, label_kind="parts", **options):
    return synthetic.create(
        {
            "kind": "joined",
            "parts": [specification(kind, len(own), **options) for own in CLASSES],
            "classes": CLASSES,
            "image_shape": SHAPE,
            "num_classes": 3,
            "label_kind": label_kind,
        }
    )


def test_every_item_is_where_its_class_says(tiny_network):
    """Images are numbered in the parts, so that they can be told apart in the whole."""
    data = both("pixels")
    numbers = [np.arange(4), 100 + np.arange(2)]  # classes 2, 2, 0, 0; and 1, 1
    images = [
        jnp.broadcast_to(jnp.float32(n)[:, None, None, None], (len(n), *SHAPE)) for n in numbers
    ]
    theta = joined.combine([{"data": {"images": x}} for x in images])
    whole = data.sample(theta, None)
    np.testing.assert_array_equal(whole.images[:, 0, 0, 0], [2, 3, 100, 101, 0, 1])
    np.testing.assert_array_equal(whole.targets.argmax(1), [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(whole.targets.sum(1), 1)
    index = jnp.asarray([5, 2, 0, 2], jnp.int32)
    chosen = data.sample(theta, None, index)
    np.testing.assert_array_equal(chosen.images, whole.images[index])
    np.testing.assert_array_equal(chosen.targets, whole.targets[index])
    assert (data.num_items, data.num_classes, data.groups) == (6, 3, ("data",))
    start = data.init(jax.random.key(0), make_real(tiny_network, 0))  # real images of the classes
    real = make_real(tiny_network, 0)
    of_class_2 = np.asarray(real.gather(real.class_index[2]))
    assert (start["data"]["0"]["images"][0] == of_class_2).all((1, 2, 3)).any()


@pytest.mark.long
def test_a_part_decodes_as_it_does_alone():
    data = both("gaussian")
    parts = [synthetic.create(specification("gaussian", len(own))) for own in CLASSES]
    key = jax.random.key(1)
    alone = []
    for number, part in enumerate(parts):
        mine = jax.random.fold_in(key, number)
        alone.append(jax.jit(lambda k, part=part: part.freeze(part.init(k, None), k))(mine))
    theta = joined.combine(alone)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        jax.jit(lambda k: data.freeze(data.init(k, make_small()), k))(key),
        theta,
    )
    sample = jax.jit(data.sample)
    whole = np.asarray(sample(theta, None).images)
    np.testing.assert_allclose(
        whole[[4, 5, 0, 1]], parts[0].sample(alone[0], None).images, atol=1e-6
    )
    np.testing.assert_allclose(whole[2:4], parts[1].sample(alone[1], None).images, atol=1e-6)
    index = jnp.asarray([3, 0, 4], jnp.int32)
    np.testing.assert_allclose(sample(theta, None, index).images, whole[index], atol=1e-6)
    fresh = np.asarray(sample(theta, key).images)
    assert np.abs(fresh - whole).max() > 1e-3
    assert data.groups == ("data", "decoder")


def make_small():
    zeros = jnp.zeros(3, jnp.int32)
    return Real(
        jnp.zeros((1, *SHAPE), jnp.uint8), zeros[:1], zeros[:, None], zeros + 1,
        jnp.zeros(1), jnp.ones(1),
    )  # fmt: skip


def test_labels_of_the_parts_and_of_all_classes():
    """What a part has learned is of its own classes; what is given is of all."""
    key = jax.random.key(2)
    own = both("pixels", label_kind="parts", start="noise")
    learned = {"labels": {"0": jnp.full((4, 2), 0.25), "1": jnp.full((2, 1), 0.5)}}
    theta = {**own.init(key, make_small()), **learned}
    data = synthetic.create(
        {
            "kind": "joined",
            "parts": [specification("pixels", n, label_kind="free") for n in (2, 1)],
            "classes": CLASSES,
            "image_shape": SHAPE,
            "num_classes": 3,
        }
    )
    np.testing.assert_array_equal(data.sample(theta, None).targets[0], [0.25, 0, 0.25])
    np.testing.assert_array_equal(data.sample(theta, None).targets[2], [0, 0.5, 0])
    assert data.groups == ("data", "labels")

    given = both("pixels", label_kind="probabilities", start="noise")
    theta = given.init(key, make_small())
    soft = jax.random.uniform(key, (6, 3))
    index = jnp.asarray([4, 1], jnp.int32)
    targets = given.sample({**theta, "labels": soft}, None, index).targets
    np.testing.assert_array_equal(targets, soft[index])
    assert given.groups == ("data",)
    assert theta["labels"].shape == (6, 3)


@pytest.mark.parametrize(
    ("numbers", "classes", "message"),
    [
        ((4, 2), [[0, 1], [1]], "not all of 3"),
        ((4, 2), [[0, 1], [3]], "not all of 3"),
        ((4, 2), [[0], [1, 2]], "do not have"),
        ((4, 1), CLASSES, "as many items for each class"),
    ],
)
def test_parts_that_do_not_fit(numbers, classes, message):
    parts = [
        pixels.create(image_shape=SHAPE, num_classes=k, num_items=n)
        for k, n in zip((2, 1), numbers, strict=True)
    ]
    with pytest.raises(InputError, match=message):
        joined.create(parts, classes, image_shape=SHAPE, num_classes=3)


@pytest.mark.parametrize("lie", [{"parts": ["pixels"]}, {"classes": [[2.0, 0.0], [1.0]]}])
def test_a_specification_that_lies(lie):
    parts = [specification("pixels", n) for n in (2, 1)]
    truth = {"kind": "joined", "parts": parts, "classes": CLASSES}
    with pytest.raises(InputError):
        synthetic.create({**truth, "image_shape": SHAPE, "num_classes": 3, **lie})


def test_what_is_joined_is_not_joined_again():
    inner = {"kind": "joined", "parts": [], "classes": [], "image_shape": SHAPE, "num_classes": 0}
    with pytest.raises(InputError, match="none of them joined"):
        synthetic.create({**inner, "parts": [inner]})

"""What students draw: no key serves two purposes."""

import dataclasses
from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import IMAGE_SHAPE, NUM_CLASSES, make_real

from d3jax import evaluate, networks
from d3jax.evaluate import Protocol, sequence
from d3jax.synthetic import gaussian

DRAWS = ("normal", "uniform", "bernoulli", "randint", "permutation", "beta")
PROTOCOL = Protocol(students=3, epochs=3, augmentation=("crop", "flip", "color"))


class Uses:
    """What is done with each key, by the key's own numbers; from within compiled code too."""

    def __init__(self):
        self.of = defaultdict(list)

    def watched(self, name, function):
        def note(numbers, data):
            self.of[np.asarray(numbers).tobytes()].append((name, int(data)))

        def call(key, *arguments, **options):
            data = arguments[0] if name == "fold_in" else 0
            jax.debug.callback(note, jax.random.key_data(key), jnp.asarray(data, jnp.uint32))
            return function(key, *arguments, **options)

        return call

    def check(self):
        """One kind of use a key: split once, drawn from once, or folded with different numbers.

        `split(key)[i]` equals `fold_in(key, i)`, so that keys derived both ways are the same.
        """
        jax.effects_barrier()
        assert len(self.of) > 20
        for uses in self.of.values():
            assert len({name for name, _ in uses}) == 1, uses
            assert len(set(uses)) == len(uses), uses


@pytest.fixture
def world(monkeypatch):
    """A network with batch norm, Gaussians, test images; from here on every draw is watched."""
    network = networks.create(
        "convnet", image_shape=IMAGE_SHAPE, num_classes=NUM_CLASSES, width=3, depth=1, norm="batch"
    )
    real = make_real(network, 0)
    data = gaussian.create(
        image_shape=IMAGE_SHAPE,
        num_classes=NUM_CLASSES,
        latents_per_class=2,
        latent_size=4,
        width=8,
    )
    theta = data.freeze(data.init(jax.random.key(0), None), jax.random.key(1))
    uses = Uses()
    for name in ("split", "fold_in", *DRAWS):
        what = name if name in ("split", "fold_in") else "drawn"
        monkeypatch.setattr(jax.random, name, uses.watched(what, getattr(jax.random, name)))
    network = network._replace(init=uses.watched("drawn", network.init))
    return uses, network, data, theta, real


@pytest.mark.long
@pytest.mark.parametrize("batch_size", [2, 6])  # three steps an epoch, and one
def test_students_use_no_key_twice(world, batch_size):
    uses, network, data, theta, real = world
    protocol = dataclasses.replace(PROTOCOL, batch_size=batch_size)
    evaluate.evaluate(network, data, theta, real, protocol, 0.05, jax.random.key(4))
    uses.check()


@pytest.mark.long
def test_students_with_views_use_no_key_twice(world):
    uses, network, data, theta, real = world
    protocol = dataclasses.replace(PROTOCOL, batch_size=6, views="padded", mix="cutmix")
    evaluate.evaluate(network, data, theta, real, protocol, 0.05, jax.random.key(4))
    uses.check()


@pytest.mark.long
@pytest.mark.parametrize("batch_size", [2, 6])
def test_students_of_subsets_in_turn_use_no_key_twice(world, batch_size):
    uses, network, data, theta, real = world
    protocol = dataclasses.replace(PROTOCOL, batch_size=batch_size)
    recipe = sequence.Recipe(2, (0.05, 0.02))
    sequence.judge(network, data, theta, real, recipe, protocol, jax.random.key(4))
    uses.check()

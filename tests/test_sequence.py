"""Subsets in turn: how data is split, what a turn moves, how students go through the sequence."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import IMAGE_SHAPE, NUM_CLASSES, random_params
from jax.flatten_util import ravel_pytree

from d3jax.evaluate import Protocol, sequence
from d3jax.methods.mtt import MTTOptions, mtt
from d3jax.methods.seqmatch import seqmatch
from d3jax.networks import unraveler
from d3jax.synthetic import gaussian, generated, pixels, spectral, subsets
from d3jax.types import InputError

OPTIONS = MTTOptions(inner_steps=2, max_start_epoch=2, inner_augmentation=())
SHAPE = {"image_shape": IMAGE_SHAPE, "num_classes": NUM_CLASSES}


def _pixels(per_class=3, label_kind="free"):
    return pixels.create(**SHAPE, num_items=per_class * NUM_CLASSES, label_kind=label_kind)


def test_each_class_is_cut_as_evenly_as_can_be():
    data = pixels.create(image_shape=(8, 8, 1), num_classes=2, num_items=100)
    parts = subsets.split(data, 3)
    assert [len(part) for part in parts] == [34, 34, 32]  # 17, 17, 16 of each class
    np.testing.assert_array_equal(parts[1], [*range(17, 34), *range(67, 84)])
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(100))


def test_items_that_share_a_spectrum_stay_together():
    data = spectral.create(**SHAPE, spectra_per_class=2, transformations=2, rank=2)
    parts = subsets.split(data, 2)
    np.testing.assert_array_equal(parts[0], [0, 1, 4, 5, 8, 9])
    with pytest.raises(InputError, match="cannot be split into 3 subsets; give each class at"):
        subsets.split(data, 3)


def test_restricted_data_is_the_same_data(tiny_real):
    data = _pixels()
    theta = jax.jit(data.init)(jax.random.key(0), tiny_real)
    stages = subsets.nested(data, 3)
    assert [stage.num_items for stage in stages] == [3, 6, 9]
    assert stages[2] is data
    whole, second = data.sample(theta, None), stages[1].sample(theta, None)
    kept = jnp.asarray([0, 1, 3, 4, 6, 7])
    chex.assert_trees_all_equal(second, jax.tree.map(lambda x: x[kept], whole))
    some = stages[1].sample(theta, None, jnp.asarray([5, 2]))
    chex.assert_trees_all_equal(some, jax.tree.map(lambda x: x[jnp.asarray([7, 3])], whole))
    for number in range(6):  # a restricted item's class is where the contract says
        assert second.targets[number].argmax() == number * NUM_CLASSES // 6


def test_one_subset_is_mtt_step_for_step(tiny_network, tiny_real):
    alone = mtt(tiny_network, _pixels(), OPTIONS, 10)
    turn = seqmatch(tiny_network, _pixels(), OPTIONS, 10, subsets=1)
    key, states = jax.random.key(2), []
    for method in (alone, turn):
        state = jax.jit(method.init)(key, tiny_real)
        step = jax.jit(method.step)
        for _ in range(2):
            state, _ = step(key, state, tiny_real)
        states.append(state)
    chex.assert_trees_all_equal(*states)


@pytest.mark.long
@pytest.mark.parametrize(
    ("data", "optimizer"),
    [
        (_pixels(2), "sgd"),
        (
            gaussian.create(
                **SHAPE, latents_per_class=2, latent_size=4, width=8, label_kind="logits"
            ),
            "adam",
        ),
        (spectral.create(**SHAPE, spectra_per_class=2, transformations=2, rank=2), "adam"),
    ],
    ids=["pixels", "gaussian", "spectral"],
)
def test_a_turn_moves_its_own_rows_alone(tiny_network, tiny_real, data, optimizer):
    options = dataclasses.replace(OPTIONS, optimizer=optimizer)
    begin = jax.jit(data.init)(jax.random.key(0), tiny_real)
    for subset in (0, 1):
        theta = begin if subset else None
        method = seqmatch(tiny_network, data, options, 10, subsets=2, subset=subset, theta=theta)
        start = jax.jit(method.init)(jax.random.key(0), tiny_real)
        state, _ = jax.jit(method.step)(jax.random.key(1), start, tiny_real)
        changed = jax.tree.map(lambda a, b: np.asarray(a != b), start.theta, state.theta)
        for leaf in jax.tree.leaves(changed["data"]):
            own = np.arange(len(leaf)) % 2 == subset  # two rows a class
            assert leaf[own].any()
            assert not leaf[~own].any()
        if "labels" in changed:
            own = np.arange(data.num_items) % 2 == subset
            assert changed["labels"][own].any()
            assert not changed["labels"][~own].any()
        if "decoder" in changed:  # learned in the first turn, frozen after it
            moved = any(leaf.any() for leaf in jax.tree.leaves(changed["decoder"]))
            assert moved == (subset == 0)
        assert changed["learning_rates"]


def test_an_experts_labels_are_of_all_subsets(tiny_network, tiny_real):
    data = _pixels(label_kind="probabilities")
    method = seqmatch(tiny_network, data, OPTIONS, 10, subsets=3, expert_labels=True)
    theta = jax.jit(method.init)(jax.random.key(0), tiny_real).theta
    expert = unraveler(tiny_network)(tiny_real.trajectories[0, -1])
    expected = jax.nn.softmax(tiny_network.apply(expert, theta["data"]["images"]))
    np.testing.assert_allclose(theta["labels"], expected, rtol=1e-5)


def test_turns_need_what_the_turns_before_have_made(tiny_network):
    for subset, theta in ((1, None), (0, {}), (2, {}), (-1, None)):
        with pytest.raises(InputError, match="needs the data of the turns before it"):
            seqmatch(tiny_network, _pixels(), OPTIONS, 10, subsets=2, subset=subset, theta=theta)


def test_data_whose_items_share_all_that_is_learned_makes_no_sequence(tiny_network):
    data = generated.create(**SHAPE, num_items=2 * NUM_CLASSES)
    with pytest.raises(InputError, match="no subset but the first has anything to learn"):
        seqmatch(tiny_network, data, OPTIONS, 10, subsets=2)


def test_students_go_through_the_stages_in_turn(tiny_network, tiny_real):
    """By hand: 3 of 5 epochs on the first subset at its rate, 2 on both at theirs, which falls at
    half. All of a stage's items are in each step, so that their order does not matter."""
    data = _pixels(2)
    theta = jax.jit(data.init)(jax.random.key(0), tiny_real)
    protocol = Protocol(students=2, epochs=5, batch_size=6, augmentation=(), decay=0.5)
    recipe = sequence.Recipe(2, (0.05, 0.02))
    start = random_params(tiny_network.init)
    network = tiny_network._replace(init=lambda key: start)
    images, targets = data.sample(theta, None)

    def loss(params, rows):
        logits = network.apply(params, images[rows])
        return optax.softmax_cross_entropy(logits, targets[rows]).mean()

    params, by_hand = start, []
    slope = jax.jit(jax.grad(loss))
    for rows, rates in (([0, 2, 4], [0.05] * 3), (list(range(6)), [0.02, 0.01])):
        velocity = jax.tree.map(jnp.zeros_like, start)
        for rate in rates:
            gradient = slope(params, jnp.asarray(rows))
            velocity = jax.tree.map(
                lambda v, g, p: 0.9 * v + g + 5e-4 * p, velocity, gradient, params
            )
            params = jax.tree.map(lambda p, v, rate=rate: p - rate * v, params, velocity)
        by_hand.append(ravel_pytree(params)[0])
    for stages, expected in enumerate(by_hand, 1):
        actual, _ = sequence.train(
            network, data, theta, recipe, protocol, stages, jax.random.key(4)
        )
        np.testing.assert_allclose(actual, jnp.stack([expected] * 2), atol=1e-6)


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"subsets": 2, "learning_rates": [0.1]},
        {"subsets": 1, "learning_rates": [0.0]},
        {"subsets": 1, "learning_rates": ["x"]},
        {"subsets": 0, "learning_rates": []},
        None,
    ],
)
def test_a_lying_sequence_is_refused(entry):
    with pytest.raises(InputError, match="the artifact's sequence"):
        sequence.recipe_of(entry)

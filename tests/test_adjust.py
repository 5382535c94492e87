from functools import partial

import jax
import numpy as np
import pytest

from d3jax import losses
from d3jax.distill.adjust import adjust, adjust_randomly

START = np.array([[1.0, 0, 0], [0, 1, 0]])
INPUTS = np.array([[1.0, 0], [0, 2], [1, 1]])


def _loss(params, batch):
    inputs, classes = batch
    targets = jax.nn.one_hot(classes, params["w"].shape[1], dtype=inputs.dtype)
    return losses.cross_entropy(inputs @ params["w"], targets)


moved = jax.jit(partial(adjust, _loss), static_argnums=(2, 3))


@pytest.mark.parametrize("steps", [1, 4])
def test_all_steps_of_one_direction_go_the_whole_radius(steps):
    """Softmax regression from zero on one example: the gradient keeps its direction."""
    with jax.enable_x64(True):
        batch = np.array([[3.0, 4.0]]), np.array([0], np.int32)
        after = moved({"w": np.zeros((2, 2))}, batch, steps, 0.015)
        expected = [[-0.00636396, 0.00636396], [-0.00848528, 0.00848528]]
        np.testing.assert_allclose(after["w"], expected, atol=5e-9)
        loss = jax.jit(_loss)
        np.testing.assert_allclose(loss({"w": np.zeros((2, 2))}, batch), 0.693147, atol=5e-7)
        np.testing.assert_allclose(loss(after, batch), 0.747586, atol=5e-7)


@pytest.mark.parametrize(
    ("steps", "norm", "loss"),
    [(1, 1.5, 1.708695), (4, 1.496947, 1.719291), (12, 1.493341, 1.725271)],
)
def test_steps_of_turning_direction_end_within_the_radius(steps, norm, loss):
    with jax.enable_x64(True):
        batch = INPUTS, np.arange(3, dtype=np.int32)
        after = moved({"w": START}, batch, steps, 1.5)
        np.testing.assert_allclose(np.linalg.norm(after["w"] - START), norm, atol=5e-7)
        np.testing.assert_allclose(jax.jit(_loss)(after, batch), loss, atol=5e-7)


def test_no_steps_change_no_bit_and_two_batches_in_one_call_equal_two_calls():
    params = {"w": START.astype(np.float32)}
    inputs = np.stack([INPUTS, INPUTS[::-1] * 2]).astype(np.float32)
    batches = inputs, np.array([[0, 1, 2], [0, 0, 1]], np.int32)
    assert adjust(_loss, params, batches, 0, 1.5) is params
    both = jax.jit(lambda all: jax.lax.map(lambda own: adjust(_loss, params, own, 3, 0.1), all))
    found = both(batches)["w"]
    for number in range(2):
        own = jax.tree.map(lambda x, n=number: x[n], batches)
        np.testing.assert_allclose(found[number], moved(params, own, 3, 0.1)["w"], rtol=1e-6)


def test_a_random_direction_has_the_same_length_and_moves_all():
    params = {"w": START.astype(np.float32), "b": np.zeros(3, np.float32)}
    draw = jax.jit(partial(adjust_randomly, params=params, radius=0.5))
    found = [draw(jax.random.key(seed)) for seed in range(2)]
    moves = [np.concatenate([np.ravel(one[n] - params[n]) for n in "wb"]) for one in found]
    for move in moves:
        np.testing.assert_allclose(np.linalg.norm(move), 0.5, rtol=1e-5)
        assert np.abs(move).min() > 0
    assert abs(moves[0] @ moves[1]) < 0.2

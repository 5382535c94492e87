"""Sizes that fit a budget of stored numbers or bytes."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from d3jax import artifact, data, synthetic
from d3jax.evaluate import Protocol
from d3jax.run import resolve
from d3jax.run.options import Architecture, command
from d3jax.synthetic import budget
from d3jax.synthetic.options import Parametrization
from d3jax.types import InputError


def dataset(side, channels, classes=10):
    images, labels = np.zeros((classes, side, side, channels), np.uint8), np.arange(classes)
    names = tuple(map(str, range(classes)))
    return data.Dataset("made up", images, labels, images[:0], labels[:0], images, labels, names)


def stored(parametrization, world, storage="float16"):
    half = np.full(world.image_shape[2], 0.5, np.float32)
    made = parametrization.specification(world, data.Normalization(half, half))
    return budget.stored_size(made, storage)


CIFAR, DIGITS = dataset(32, 3), dataset(8, 1)


def test_the_size_of_d3s_trial_on_cifar():
    """Ten latents a class, z = 64, k = 56, counted layer by layer with pencil and paper."""
    sizes = {"latents_per_class": 10, "latent_size": 64, "decoder_width": 56}
    latents = 100 * 64 * 2
    linear = 64 * 224 + 224
    channels = [(56, 28), (28, 14), (14, 7), (7, 7)]
    # Transposed 4x4 convolutions with bias, batch norm's scale and bias, and frozen statistics.
    up = sum(16 * a * b + b + 2 * b + 2 * b for a, b in channels)
    last = 9 * 7 * 3 + 3
    expected = latents + linear + up + last
    resolved = Parametrization(**sizes).resolved(CIFAR, kind="gaussian")
    assert stored(resolved, CIFAR) == (expected, 2 * expected)
    assert expected == 61_544


@pytest.mark.parametrize("storage", ["float16", "float32", "int8"])
@pytest.mark.parametrize("kind", ["gaussian", "pixels", "spectral"])
def test_what_is_counted_is_what_an_artifact_stores(kind, storage):
    resolved = Parametrization(start="noise").resolved(DIGITS, kind=kind)
    half = np.full(1, 0.5, np.float32)
    made = resolved.specification(DIGITS, data.Normalization(half, half))
    one = synthetic.create(made)
    key = jax.random.key(0)
    kept = artifact.create(
        one.freeze(one.init(key, None), key), method="x", dataset="y", class_names=("0",) * 10,
        normalization={"mean": [0.5], "sd": [0.5], "zca": None}, architecture={},
        parametrization=made, student_learning_rate=0.1, protocol={}, seed=0, dtype=storage,
    )  # fmt: skip
    leaves = jax.tree.leaves(kept.theta)
    expected = sum(x.size for x in leaves), sum(x.nbytes for x in leaves)
    assert budget.stored_size(made, storage) == expected
    assert kept.ledger["floats"] == expected[0]


def test_a_decoder_takes_three_quarters_and_latents_the_rest():
    def taken(latents, size, width):
        return 20 * latents * size + width**2

    # Width 80 takes 6400, 88 more than 7500; 3600 are left for latents of 320 a class.
    assert budget.gaussians(taken, 10_000, latent_sizes=(16, 8)) == (11, 16, 80)
    # Of length 64, at 1280 a class, there would be two; of 32 there are five.
    assert budget.gaussians(taken, 10_000) == (5, 32, 80)
    assert budget.gaussians(taken, 10_000, latents=2, latent_sizes=(64,)) == (2, 64, 80)
    assert budget.gaussians(taken, 10_000, width=40, latent_sizes=(64,)) == (6, 64, 40)
    with pytest.raises(InputError, match="144 at least"):
        budget.gaussians(taken, 100, latent_sizes=(4,))


def test_whole_images_and_spectra():
    assert budget.items(lambda n: 100 + 50 * n, 399) == 5
    with pytest.raises(InputError, match="150 at least"):
        budget.items(lambda n: 100 + 50 * n, 149)


@pytest.mark.parametrize("kind", ["gaussian", "pixels", "spectral"])
@pytest.mark.parametrize(("world", "images"), [(CIFAR, 2), (DIGITS, 5), (dataset(28, 1), 3.5)])
def test_a_budget_is_kept_and_nearly_spent(kind, world, images):
    resolved = Parametrization(budget=images).resolved(world, kind=kind)
    limit = images * np.prod(world.image_shape) * 10
    assert 0.85 * limit < stored(resolved, world)[0] <= limit
    assert resolved.budget is None  # the sizes stand for it
    assert resolved.resolved(world) == resolved


def test_sizes_that_are_given_stay():
    resolved = Parametrization(budget=2, latent_size=32, decoder_width=56).resolved(
        CIFAR, kind="gaussian"
    )
    assert (resolved.latent_size, resolved.decoder_width) == (32, 56)
    assert stored(resolved, CIFAR)[0] <= 61_440
    fixed = Parametrization(budget=2, latents_per_class=40).resolved(CIFAR, kind="gaussian")
    assert fixed.latents_per_class == 40
    assert stored(fixed, CIFAR)[0] <= 61_440


def test_nobody_is_refused_for_the_usual_budget():
    """It is too little for one class of 16 pixels, or nine subsets: there the sizes are others."""
    small = dataset(16, 1)
    one = Parametrization().resolved(small, kind="gaussian", classes=1)
    assert (one.latents_per_class, one.latent_size, one.decoder_width) == (5, 8, 16)
    nine = Parametrization().resolved(dataset(28, 1), kind="gaussian", least=9)
    assert nine.latents_per_class == 9
    with pytest.raises(InputError, match="fewer than 9 items a class"):
        Parametrization(budget=2).resolved(dataset(28, 1), kind="gaussian", least=9)


def test_a_narrow_decoder_may_take_more_than_its_share():
    def taken(latents, size, width):
        return 20 * latents * size + width**2

    # 64 of 100 for the narrowest decoder, where three quarters less one latent were 75.
    assert budget.gaussians(taken, 310, latent_sizes=(4,)) == (3, 4, 8)
    assert budget.gaussians(taken, 150, latent_sizes=(4,)) == (1, 4, 8)


def test_bytes_buy_twice_the_numbers_in_int8():
    half, whole = (
        Parametrization(budget_bytes=122_880, rounding=rounding).resolved(CIFAR, kind="gaussian")
        for rounding in (None, "int8")
    )
    assert 110_000 < stored(half, CIFAR)[1] <= 122_880
    assert 110_000 < stored(whole, CIFAR)[1] <= 122_880
    assert stored(whole, CIFAR)[0] > 1.8 * stored(half, CIFAR)[0]


def test_a_shipped_teacher_counts_in_a_budget():
    """ConvNet of one block, width 4, batch norm: 112 + 8 + 8 of statistics + 10 x 1025 numbers."""
    image, teacher = 2 * 3072 * 10, 2 * (112 + 8 + 8 + 10 * (16 * 16 * 4 + 1))

    def resolved(size: int, labels: Any = "teacher"):
        run = command("dwa")(
            parametrization=Parametrization(budget_bytes=size, labels=labels),
            architecture=Architecture(width=4, depth=1),
            student=Protocol(views="padded"),
        )
        return resolve.resolved(run, CIFAR).parametrization.images_per_class

    assert resolved(2 * image + teacher) == 2
    assert resolved(2 * image + teacher - 1) == 1
    with pytest.raises(InputError, match=f"a teacher included, takes {image + teacher:,}"):
        resolved(image + teacher - 1)
    with pytest.raises(InputError, match="give --images-per-class instead"):
        resolved(2 * image + teacher, "views")


def test_subtasks_share_a_budget():
    run = command("d3")(
        parametrization=Parametrization(budget=2), subtasks="2", data=command("d3")().data
    )
    resolved = resolve.resolved(run, CIFAR).parametrization
    assert stored(resolved, dataset(32, 3, classes=5))[0] <= 30_720
    # An expert of all ten classes labels each of the subtask's items.
    given = dataclasses.replace(run, parametrization=Parametrization(budget=2, labels="expert"))
    made = resolve.resolved(given, CIFAR).parametrization
    labels = 5 * 5 * made.latents_per_class  # of the other five classes
    assert made.decoder_width == resolved.decoder_width
    assert stored(made, dataset(32, 3, classes=5))[0] + labels <= 30_720
    assert made.latents_per_class < resolved.latents_per_class


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 2, "budget_bytes": 99}, "not both"),
        ({"budget": -1}, "must be positive"),
        ({"budget": 0.01}, "too small"),
        ({"budget": 0.0}, "must be positive, not 0.0"),
        ({"budget": float("nan")}, "must be positive, not nan"),
        ({"budget": float("inf")}, "must be positive, not inf"),
        ({"budget": 2, "decoder": "large"}, "decoder large"),
    ],
)
def test_budgets_that_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        Parametrization(**options).resolved(CIFAR, kind="gaussian")

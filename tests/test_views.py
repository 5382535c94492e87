import hashlib
import os
import subprocess
import sys
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from d3jax.data.patches import select_patches, tile
from d3jax.data.views import (
    Views,
    cutmix,
    draw_box,
    labelled_view,
    mixup,
    resized_crop,
    rolled,
    view,
)
from d3jax.types import InputError

KEYS = jax.random.split(jax.random.key(0), 2000)


def _images(number=4, size=8):
    values = np.random.default_rng(0).normal(size=(number, size, size, 1))
    return values.astype(np.float32)


resize = jax.jit(resized_crop, static_argnums=2)
seen = jax.jit(view, static_argnums=2, static_argnames="shared")
labelled = jax.jit(labelled_view, static_argnums=3)
boxed = jax.jit(jax.vmap(draw_box, (0, None, None, None)), static_argnums=(1, 2, 3))


@pytest.mark.parametrize("size", [(8, 8), (6, 4)])
def test_resized_crop_is_pillows(size):
    image = _images(1)[0]
    for box in [(0, 0, 8, 8), (2, 3, 4, 5), (1, 0, 1, 8), (5, 5, 3, 3)]:
        top, left, height, width = box
        picture = Image.fromarray(image[..., 0]).crop((left, top, left + width, top + height))
        expected = np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))
        found = resize(image, np.asarray(box, np.float32), size)
        np.testing.assert_allclose(found[..., 0], expected, atol=2e-6)


@pytest.mark.parametrize(("shape", "ratio"), [((12, 16), (3 / 4, 4 / 3)), ((16, 16), (1.0, 1.0))])
def test_boxes_are_within_the_image_and_of_such_areas(shape, ratio):
    boxes = np.asarray(boxed(KEYS, shape, 0.08, ratio))
    top, left, height, width = boxes.T
    np.testing.assert_array_equal(boxes, np.round(boxes))
    assert min(top.min(), left.min()) == 0
    assert (top + height).max() == shape[0]
    assert (left + width).max() == shape[1]
    shares = height * width / np.prod(shape)
    assert 0.06 < shares.min() < 0.1
    if ratio == (1.0, 1.0):  # all fit
        np.testing.assert_array_equal(width, height)
        assert abs(shares.mean() - 0.54) < 0.02  # uniform from 0.08 to 1


def test_a_box_that_never_fits_is_the_largest_central_one():
    boxes = boxed(KEYS, (4, 16), 1.0, (3 / 4, 4 / 3))
    np.testing.assert_array_equal(boxes, [[0, 5, 4, 5]] * len(KEYS))  # 4 x 4/3, rounded


def test_mixup_and_cutmix_of_given_shares():
    ones = np.ones((2, 6, 8, 1), np.float32)
    twos, cut = 2 * ones, jax.jit(cutmix)
    np.testing.assert_allclose(jax.jit(mixup)(ones, twos, np.float32(0.25)), 1.75)
    # sqrt(1 - 0.75) = half of 6 and 8: 3 and 4, 1 and 2 to either side.
    mixed = np.asarray(cut(ones, twos, np.float32(0.75), np.asarray([3, 7], np.int32)))[0, ..., 0]
    expected = np.ones((6, 8))
    expected[2:4, 5:8] = 2
    np.testing.assert_array_equal(mixed, expected)
    nothing = cut(ones, twos, np.float32(1), np.asarray([0, 0], np.int32))
    np.testing.assert_array_equal(nothing, ones)


def test_rolling_wraps_around_and_reaches_every_offset():
    images = _images(2)
    found = np.asarray(jax.jit(jax.vmap(lambda k: rolled(k, images, 2)))(KEYS[:60]))
    every = {(i, j): np.roll(images, (i, j), (1, 2)).tobytes() for i in range(3) for j in range(3)}
    assert {image.tobytes() for image in found} == set(every.values())


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("crop", ["padded", "resized"])
def test_a_batch_has_one_crop_and_flip_or_each_image_its_own(crop, shared):
    same = np.broadcast_to(_images(1), (5, 8, 8, 1))
    found = np.asarray(seen(KEYS[0], same, Views(crop), shared=shared))
    number = len({image.tobytes() for image in found})
    assert number == 1 if shared else number > 2


def test_a_mix_is_with_images_of_the_same_batch():
    numbered = np.arange(1, 6, dtype=np.float32)[:, None, None, None] * np.ones(
        (8, 8, 1), np.float32
    )
    cut = Views("none", flip=False, mix="cutmix")
    counts = Counter()
    for key in KEYS[:4]:
        found = np.asarray(seen(key, numbered, cut))
        own = found == numbered
        counts |= Counter(np.unique(found[~own]).tolist())
        # The rectangle is the same for all images, and nothing of what is outside it is changed.
        changed = ~own.all((0, 3))
        for image, number in zip(found[..., 0], range(1, 6)):
            assert set(image[~changed].tolist()) <= {number}
            assert len(set(image[changed].tolist())) <= 1
    assert set(counts) <= {1.0, 2.0, 3.0, 4.0, 5.0}
    assert len(counts) > 2
    up = Views("none", flip=False, mix="mixup", concentration=0.8)
    found = np.asarray(seen(KEYS[0], numbered, up))
    assert found.min() >= 1
    assert found.max() <= 5
    np.testing.assert_allclose(found.mean(), 3, rtol=1e-6)  # as a permutation keeps the sum
    # Targets are mixed as pixels are: the mean of an image's numbers is that of its targets'.
    for views in (cut, up):
        found, targets = labelled(KEYS[3], numbered, jnp.eye(5), views)
        means = np.asarray(targets) @ np.arange(1.0, 6)
        np.testing.assert_allclose(found.mean((1, 2, 3)), means, rtol=1e-5)
        np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)
        assert np.abs(targets - np.eye(5)).max() > 0.01


_PROGRAM = """
import hashlib, jax, jax.numpy as jnp, numpy as np
from d3jax.data.views import Views, view
images = jnp.asarray(np.arange(2 * 8 * 8).reshape(2, 8, 8, 1), jnp.float32)
views, fold = Views("resized", mix="cutmix"), jax.random.fold_in
made = jax.jit(lambda *at: view(fold(fold(jax.random.key(3), at[0]), at[1]), images, views))
def seen(epoch, batch):
    return np.asarray(made(epoch, batch)).tobytes()
"""


@pytest.mark.long
def test_the_key_of_epoch_and_batch_gives_the_same_view_in_another_process():
    room: dict = {}
    exec(_PROGRAM, room)
    seen = room["seen"]
    code = f"{_PROGRAM}\nprint(hashlib.sha256(seen(2, 5)).hexdigest())"
    run = subprocess.run(
        [sys.executable, "-c", code], text=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert run.stdout.strip() == hashlib.sha256(seen(2, 5)).hexdigest(), run.stderr
    assert len({seen(epoch, batch) for epoch in range(2) for batch in range(2)}) == 4


@pytest.mark.parametrize("wrong", [{"smallest": 0.0}, {"smallest": 1.5}, {"concentration": 0.0}])
def test_views_out_of_range(wrong):
    with pytest.raises(InputError, match="must be"):
        view(jax.random.key(0), _images(), Views(**wrong))


def test_the_best_crop_of_each_image_and_the_best_images_are_kept():
    scores = jnp.asarray([[5.0, 1.0, 3.0], [0.5, 9.0, 0.7], [4.0, 8.0, 2.0], [6.0, 7.0, 6.5]])
    images, crops = select_patches(scores, 3)
    np.testing.assert_array_equal(images, [1, 0, 2])
    np.testing.assert_array_equal(crops, [0, 1, 2])
    with pytest.raises(InputError, match="each of 4 images a class can be kept, not 5"):
        select_patches(scores, 5)


def test_tiles_are_dealt_out_row_by_row_the_best_at_the_top_left():
    patches = np.arange(8.0)[:, None, None, None] * np.ones((2, 3, 1))
    found = tile(patches, 2)
    assert found.shape == (2, 4, 6, 1)
    for number in range(2):
        corners = found[number, ::2, ::3, 0]
        np.testing.assert_array_equal(corners, [[number, number + 2], [number + 4, number + 6]])
        blocks = np.repeat(np.repeat(corners, 2, 0), 3, 1)
        np.testing.assert_array_equal(found[number, ..., 0], blocks)
    np.testing.assert_array_equal(tile(patches, 1), patches)
    with pytest.raises(InputError, match="8 patches do not make images of 3 x 3"):
        tile(patches, 3)

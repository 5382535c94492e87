"""Flags of how distilled data is stored: defaults by kind, what does not fit together."""

import dataclasses

import numpy as np
import pytest

from d3jax import data, synthetic
from d3jax.data import Dataset, Normalization
from d3jax.methods.d3 import D3Options
from d3jax.methods.seqmatch import SeqMatchOptions
from d3jax.run import resolve as resolving
from d3jax.run.options import command
from d3jax.synthetic import subsets
from d3jax.synthetic.options import Parametrization
from d3jax.types import InputError


def _dataset(size=28, channels=1, classes=10):
    images = np.zeros((classes, size, size, channels), np.uint8)
    labels = np.arange(classes)
    names = tuple(str(k) for k in range(classes))
    return Dataset("some", *(images, labels) * 3, names)


NORMALIZATION = Normalization(np.asarray([0.4], np.float32), np.asarray([0.2], np.float32))


@pytest.mark.parametrize(
    ("kind", "items", "floats"),
    [
        ("gaussian", 60, {"latent_size": 64, "decoder_width": 16, "variance": "each"}),
        ("pixels", 10, {"images_per_class": 1, "start": "real"}),
        ("spectral", 80, {"spectra_per_class": 2, "transformations": 4, "rank": 14}),
        ("generated", 10, {"images_per_class": 1, "generator_width": 32}),
    ],
)
def test_defaults_make_a_parametrization(kind, items, floats):
    resolved = Parametrization(kind=kind).resolved(_dataset())
    for name, value in floats.items():
        assert getattr(resolved, name) == value
    made = synthetic.create(resolved.specification(_dataset(), NORMALIZATION))
    assert made.num_items == items
    assert resolved.resolved(_dataset()) == resolved


def test_a_decoder_of_whitened_images_gives_all_but_a_thousandth_of_their_values():
    digits = data.load("digits", train_limit=1000)
    whitened = Normalization.of(digits.train_images, zca=True)
    resolved = Parametrization(kind="gaussian").resolved(digits)
    made = resolved.specification(digits, whitened)
    beyond = np.abs(whitened.apply(digits.train_images)) > made["scale"][0]
    assert np.mean(beyond) == pytest.approx(0.001, rel=0.05)
    assert made["shift"] == [0.0]


def test_the_kind_is_the_methods_unless_named():
    assert Parametrization().resolved(_dataset()).kind == "pixels"
    assert Parametrization().resolved(_dataset(), kind="gaussian").kind == "gaussian"
    assert Parametrization(kind="pixels").resolved(_dataset(), kind="gaussian").kind == "pixels"


@pytest.mark.parametrize("kind", ["gaussian", "pixels", "spectral", "generated"])
def test_a_sequences_defaults_fill_its_subsets(kind):
    options = command("seqmatch")(
        parametrization=Parametrization(kind=kind), seqmatch=SeqMatchOptions(subsets=3)
    )
    resolved = resolving.resolved(options, _dataset()).parametrization
    made = synthetic.create(resolved.specification(_dataset(), NORMALIZATION))
    each = {"gaussian": 2, "pixels": 1, "spectral": 4, "generated": 1}[kind]
    assert [len(items) for items in subsets.split(made, 3)] == [10 * each] * 3


@pytest.mark.parametrize(
    ("kind", "items", "message"),
    [
        ("gaussian", 15, "15 images are not as many for each of 10 classes"),
        ("spectral", 60, "60 images are not as many for each of 10 classes and 4 transformations"),
    ],
)
def test_items_that_a_kind_cannot_have(kind, items, message):
    with pytest.raises(InputError, match=message):
        Parametrization(kind=kind).resolved(_dataset(), items=items)


def test_items_counted_by_the_method():
    spectral = Parametrization(kind="spectral").resolved(_dataset(), items=80)
    assert spectral.spectra_per_class == 2
    pixels = Parametrization(labels="learned").resolved(_dataset(), items=5)
    made = pixels.specification(_dataset(), NORMALIZATION, 5)
    assert (made["num_items"], made["label_kind"]) == (5, "free")
    with pytest.raises(InputError, match="give the number of images, or --images-per-class, not"):
        Parametrization(images_per_class=2).resolved(_dataset(), items=20)


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"kind": "pixels", "rank": 3}, "--rank"),
        ({"latent_size": 3}, "--latent-size"),
        ({"class_embedding": True}, "--class-embedding"),
    ],
)
def test_options_of_another_kind_are_refused(options, flag):
    with pytest.raises(InputError, match=f"{flag} is not an option of the parametrization pixels"):
        Parametrization(**options).resolved(_dataset())


def test_only_what_is_not_the_papers_is_in_the_specification():
    plain = Parametrization(kind="gaussian").resolved(_dataset())
    assert plain.start == "noise"
    assert set(plain.specification(_dataset(), NORMALIZATION)) == {
        "kind", "image_shape", "num_classes", "label_kind", "latents_per_class", "latent_size",
        "decoder", "width", "shift", "scale",
    }  # fmt: skip
    said = {"variance": "class", "rounding": "int8", "start": "real", "class_embedding": True}
    chosen = Parametrization(kind="gaussian", **said)
    made = chosen.resolved(_dataset()).specification(_dataset(), NORMALIZATION)
    assert {name: made[name] for name in said} == said
    assert made["start_steps"] == 500
    synthetic.create(made)
    with pytest.raises(InputError, match="cannot share a variance: give --variance each or none"):
        chosen.resolved(_dataset(), least=2)
    with pytest.raises(
        InputError, match="--start-steps are those of --start real or kmeans: give both"
    ):
        Parametrization(kind="gaussian", start_steps=3).resolved(_dataset())
    with pytest.raises(InputError, match="--start-steps is not an option of the parametrization"):
        Parametrization(kind="pixels", start="real", start_steps=3).resolved(_dataset())


def test_an_expert_labels_what_was_distilled_of_d3s_gaussians_whatever_they_start_from():
    for start in ("noise", "real"):
        stored = Parametrization(start=start, labels="expert")
        resolved = resolving.resolved(command("d3")(parametrization=stored), _dataset())
        assert resolved.baselines[-1] == "random_expert"
        assert resolving.resolved(resolved, _dataset()) == resolved
        assert resolved.parametrization.start == start
        assert not resolving.labels_at_start(resolved)


@pytest.mark.parametrize(
    ("classes", "each", "unroll", "expected"),
    [(10, 5, False, 20), (10, 1, False, 10), (100, 5, False, 200), (10, 5, True, 10)],
)
def test_d3s_inner_steps_take_two_items_of_each_class(classes, each, unroll, expected):
    options = command("d3")(
        parametrization=Parametrization(latents_per_class=each), d3=D3Options(unroll=unroll)
    )
    resolved = resolving.resolved(options, _dataset(classes=classes))
    assert resolved.d3.inner_batch_size == expected
    assert resolving.resolved(resolved, _dataset(classes=classes)) == resolved
    parts = resolving.resolved(
        dataclasses.replace(options, subtasks="2"), _dataset(classes=classes)
    )
    assert parts.d3.inner_batch_size is None  # each subtask's classes say it


@pytest.mark.parametrize(
    ("method", "images", "rate"), [("d3", 5000, 0.1), ("mtt", 5000, 0.01), ("d3", 4999, 0.02)]
)
def test_experts_learning_rate_follows_from_method_and_number_of_images(method, images, rate):
    few = _dataset()
    many = few._replace(
        train_images=np.broadcast_to(few.train_images[:1], (images, *few.image_shape)),
        train_labels=np.arange(images, dtype=np.int32) % few.num_classes,
    )
    assert resolving.resolved(command(method)(), many).expert.learning_rate == rate

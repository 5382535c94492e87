"""What a run says of its augmentation when it begins."""

import dataclasses

import numpy as np
import pytest
from test_cli import called, no_folder_of_the_users  # noqa: F401

from d3jax.methods.dd import DDOptions
from d3jax.methods.mtt import MTTOptions
from d3jax.run import augmented
from d3jax.run import options as config
from d3jax.run.options import command
from d3jax.run.resolve import resolved
from d3jax.synthetic.options import Parametrization

ALL_BUT_FLIP = "color, crop, cutout, scale, rotate"
DIGITS = "no flip: the data set is one of digits or letters"
OURS = (
    "no flip: its classes, 0 to 9, are named like digits or letters; options such as "
    "--student.augmentation say otherwise"
)


@pytest.fixture(scope="module")
def digits():
    return config.Data().read(0)


@pytest.fixture(scope="module")
def things(digits):
    return digits._replace(name="mine", class_names=tuple(f"thing {k}" for k in range(10)))


def line(options, dataset):
    return augmented.told(augmented.used(options, dataset), dataset)


def test_by_method(digits, things):
    mine = digits._replace(name="my_digits.npz")
    d3, mtt = command("d3")(), command("mtt")()
    assert line(resolved(d3, digits), digits) == (
        f"augmentation: experts and MMD and students {ALL_BUT_FLIP}; inner steps none; {DIGITS}"
    )
    assert line(resolved(mtt, mine), mine) == (
        f"augmentation: experts and inner steps and students {ALL_BUT_FLIP}; {OURS}"
    )
    assert line(resolved(mtt, things), things) == (
        "augmentation: experts and inner steps and students color, crop, cutout, flip, scale, "
        "rotate"
    )
    plain = dataclasses.replace(mtt.expert, augmentation=())
    options = dataclasses.replace(
        mtt, expert=plain, student=config.Protocol(augmentation=("flip",))
    )
    seen = config.Protocol(augmentation=("crop", "flip"), views="padded", mix="mixup")
    viewed = dataclasses.replace(options, student=seen)
    assert "students padded views, flip, mixup" in line(resolved(viewed, digits), digits)
    options = dataclasses.replace(options, mtt=MTTOptions(inner_augmentation=()))
    assert line(resolved(options, digits), digits) == (
        "augmentation: experts and inner steps none; students flip"
    )


def test_of_dataset_distillation(digits):
    assert line(command("dd")(), digits) == "augmentation: none"
    assert line(command("dd")(dd=DDOptions(adapt_from="usps")), digits) == (
        "augmentation: source networks none"
    )
    labelled = command("dd")(parametrization=Parametrization(labels="expert"))
    assert line(labelled, digits) == f"augmentation: expert {ALL_BUT_FLIP}; {DIGITS}"


def test_a_copy_under_another_name_is_not_mirrored(digits, tmp_path, capsys):
    """`d3jax experts` on a file of digits says so, and records it with what it trained."""
    path = tmp_path / "my_copy.npz"
    np.savez(
        path,
        train_images=digits.train_images[:64], train_labels=digits.train_labels[:64],
        test_images=digits.test_images[:20], test_labels=digits.test_labels[:20],
    )  # fmt: skip
    text = called(
        capsys, "experts", f"--dataset={path}", f"--experts={tmp_path / 'store'}", "--network=mlp",
        "--width=4", "--expert.count=1", "--expert.epochs=1",
    )  # fmt: skip
    assert f"augmentation: experts {ALL_BUT_FLIP}; {OURS}" in " ".join(text.split())
    (told,) = (tmp_path / "store").glob("*/config.json")
    assert "flip" not in told.read_text()

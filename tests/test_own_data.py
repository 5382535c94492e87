"""Own data: arrays from Python, folders of photos, .npz files of any sizes, and what is said."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_cli import no_folder_of_the_users, refused  # noqa: F401
from test_data import cache_folder, own_cache, random_images, write_folder, write_npz  # noqa: F401

from d3jax.data import Dataset, Normalization, decoding, held_out, host_arrays, load
from d3jax.host.progress import Reporter, notices
from d3jax.run import header, real
from d3jax.run import options as config
from d3jax.run.job import load as load_job
from d3jax.types import InputError

LABELS = np.arange(20) % 2


def save(file, pixels, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file, **options)


def write_flat(root, number=10, classes=("cat", "dog"), shape=(9, 9)):
    """CLASS/N.png, every image of one grey level, which differs from all others."""
    for label, name in enumerate(classes):
        for i in range(number):
            save(root / name / f"{i}.png", np.full(shape, 10 * i + label))


def levels(images):
    return images[:, 4, 4, 0].tolist()


# Arrays from Python


@pytest.mark.parametrize(
    "given",
    [
        lambda u8: u8 / np.float32(255),
        lambda u8: u8 / 255.0,
        lambda u8: u8.transpose(0, 3, 1, 2),
        lambda u8: u8.tolist() and u8,
    ],
    ids=["float32", "float64", "channels first", "uint8"],
)
def test_images_from_python_are_made_uint8(given):
    images = random_images(20, channels=3)
    data = Dataset.from_arrays(given(images), LABELS.tolist(), given(images[:6]), [0, 1] * 3)
    assert data.train_images.dtype == np.uint8
    np.testing.assert_array_equal(data.train_images, images)
    np.testing.assert_array_equal(data.test_images, images[:6])
    assert data.train_labels.dtype == np.int32
    assert data.class_names == ("0", "1")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (random_images(20) / 255 - 0.1, LABELS, "floats from -0.1 to 0.9: give uint8"),
        (random_images(20) / 1.0, LABELS, "floats from 0 to 255"),
        (np.full((20, 8, 8, 1), np.nan), LABELS, "floats from nan"),
        (random_images(20) > 9, LABELS, "not bool"),
        (random_images(20), LABELS / 1.0, "must be 20 integers, not float64"),
        (random_images(20), np.eye(2)[LABELS], r"must be 20 integers, not float64 \[20, 2\]"),
        (random_images(20), LABELS.astype(str), "must be 20 integers, not <U21"),
        (random_images(20), LABELS + 1, "start at 1: number the classes from 0"),
        (random_images(20), LABELS * 3, "go up to 3, but there is no 1"),
        (random_images(20), LABELS * 0, "has one class, 0"),
    ],
)
def test_arrays_that_may_mean_several_things_are_refused(images, labels, message):
    with pytest.raises(InputError, match=message):
        Dataset.from_arrays(images, labels, random_images(6), [0, 1] * 3)


def test_floats_are_pixels_wherever_they_are_given():
    images = random_images(20)
    floats, expected = images / np.float32(255), Normalization.of(images)
    for one, other in zip(Normalization.of(floats), expected):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(expected.apply(floats), expected.apply(images))
    data = Dataset.from_arrays(images, LABELS, images, LABELS)._replace(train_images=floats)
    np.testing.assert_array_equal(data.on_host().images, images)
    np.testing.assert_array_equal(host_arrays(floats, [0, 1] * 10, 2, expected).images, images)
    np.testing.assert_array_equal(held_out(floats, [0, 1] * 10, expected).images, images)
    with pytest.raises(InputError, match="floats from"):
        host_arrays(expected.apply(images), LABELS, 2, expected)


# What is read of a folder, and what is left out


def test_images_of_every_kind_are_read(tmp_path):
    for i, suffix in enumerate(decoding.SUFFIXES):
        for part in ("train", "test"):
            level = np.full((9, 9), 20 * i) if suffix == ".pgm" else np.full((9, 9, 3), 20 * i)
            save(tmp_path / part / "abc"[i % 3] / f"{i}{suffix.upper()}", level)
    later = [Image.fromarray(np.full((9, 9), level, np.uint8)) for level in (7, 250)]
    later[0].save(tmp_path / "train" / "a" / "moving.gif", save_all=True, append_images=later[1:])
    data = load(str(tmp_path))
    assert data.image_shape == (9, 9, 3)
    found = {label: sorted(levels(data.train_images[data.train_labels == label]))
             for label in range(3)}  # fmt: skip
    for i in range(len(decoding.SUFFIXES)):
        assert min(abs(level - 20 * i) for level in found[i % 3]) <= 2, decoding.SUFFIXES[i]
    assert min(abs(level - 7) for level in found[0]) <= 1  # of several frames the first


def test_what_is_left_out_is_said(tmp_path, caplog):
    write_folder(tmp_path)  # with a notes.txt
    (tmp_path / "test" / "dog" / "a.HEIC").write_bytes(b"")
    (tmp_path / "test" / "dog" / "more").mkdir()
    (tmp_path / "train" / "list").write_bytes(b"")
    for _ in range(2):  # from the cache too
        load(str(tmp_path))
        assert caplog.messages == [
            f"{tmp_path}: left out 1 .heic, 1 .txt, 1 folders in a class, 1 without a suffix, "
            f"which are not read as images"
        ]
        caplog.clear()


def test_orientation_is_applied_and_transparency_is_white(tmp_path):
    image = np.zeros((9, 9, 3))
    image[:, 5:] = 200  # right is bright
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: right is down
    save(tmp_path / "a" / "0.png", image, exif=exif)
    save(tmp_path / "a" / "1.png", image)
    clear = np.dstack([image, np.where(image[..., :1] > 0, 0, 255)])  # the bright half is not there
    save(tmp_path / "b" / "0.png", clear)
    save(tmp_path / "b" / "1.png", np.dstack([image[..., 0], np.full((9, 9), 51)]))  # a fifth is
    data = load(str(tmp_path), test_fraction=0.5)
    found = {}
    for images, labels in ((data.train_images, data.train_labels),
                           (data.test_images, data.test_labels)):  # fmt: skip
        for picture, label in zip(images[..., 0].tolist(), labels):
            found[int(label), picture[0][0], picture[8][0], picture[0][8]] = True
    assert set(found) == {(0, 0, 200, 0), (0, 0, 0, 200), (1, 0, 0, 255), (1, 204, 204, 244)}


def test_an_upright_photo_counts_as_it_is_seen(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8
    for name in ("a", "b"):
        save(tmp_path / name / "0.jpg", np.zeros((9, 12)))
        save(tmp_path / name / "1.jpg", np.zeros((12, 9)), exif=exif)  # 9 rows of 12 when upright
    with pytest.raises(InputError, match="9x12x1: images must be square"):
        load(str(tmp_path), test_fraction=0.5)
    assert load(str(tmp_path), test_fraction=0.5, image_size=9).image_shape == (9, 9, 1)


def test_images_of_any_size_are_resized_and_their_centre_cut_out(tmp_path):
    wide = np.zeros((16, 48))
    wide[:, 16:32] = 90  # what is cut out
    tall = np.full((64, 32), 200)
    tall[16:48] = 5 * np.arange(32)[:, None]
    for part in ("train", "test"):
        save(tmp_path / part / "tall" / "0.png", tall)
        save(tmp_path / part / "wide" / "0.png", wide)
    data = load(str(tmp_path), image_size=8)
    assert data.image_shape == (8, 8, 1)
    assert data.reading.image_size == 8
    # Linear in the rows, so where the kernel does not reach the edge it gives the middle of four.
    np.testing.assert_allclose(data.train_images[0, 3:5, :, 0].T, [[67.5, 87.5]] * 8, atol=1)
    np.testing.assert_allclose(data.train_images[1, :, 2:6], 90, atol=1)
    # As arrays of one shape, in a file and from Python
    arrays = {"train_images": np.repeat(wide[None], 20, 0).astype(np.uint8)}
    arrays |= {"test_images": np.repeat(tall[None], 6, 0).astype(np.uint8)}
    written = write_npz(tmp_path / "own.npz", **arrays)
    with pytest.raises(InputError, match=r"16x48x1.*--image-size"):
        load(str(tmp_path / "own.npz"))
    for _ in range(2):  # from the cache too
        npz = load(str(tmp_path / "own.npz"), image_size=8)
        np.testing.assert_array_equal(npz.train_images[5], data.train_images[1])
        np.testing.assert_array_equal(npz.test_images[0], data.test_images[0])
    given = Dataset.from_arrays(**written, image_size=8)
    np.testing.assert_array_equal(given.test_images, npz.test_images)
    digits = load("digits", train_limit=100, image_size=12)
    assert digits.train_images.shape == (100, 12, 12, 1)


@pytest.mark.parametrize("size", [7, 8.0, True])
def test_a_size_that_is_none(size):
    with pytest.raises(InputError, match="image_size must be a number from 8 on"):
        load("digits", image_size=size)


# The split of a folder without test images


@pytest.mark.parametrize("train", [False, True])
def test_a_folder_is_split_by_name(tmp_path, caplog, train):
    root = tmp_path / "pets" / "train" if train else tmp_path / "pets"
    write_flat(root)
    whole = load(str(tmp_path / "pets"))
    folder = str(tmp_path / "pets")
    assert caplog.messages == [
        f"{folder} has no folder test or val: 4 of its 20 images, drawn by name, are test images "
        f"(--test-fraction 0.2)"
    ]
    assert np.bincount(whole.test_labels).tolist() == [2, 2]
    together = [*levels(whole.train_images), *levels(whole.test_images)]
    assert sorted(together) == sorted(10 * i + label for i in range(10) for label in (0, 1))
    other = load(folder, seed=5, validation=3)
    np.testing.assert_array_equal(other.test_images, whole.test_images)  # of every seed
    more = load(folder, test_fraction=0.5)
    assert np.bincount(more.test_labels).tolist() == [5, 5]
    assert set(levels(whole.test_images)) < set(levels(more.test_images))
    save(root / "cat" / "10.png", np.full((9, 9), 255))
    again = load(folder)  # a tenth of 11 is 2, too
    assert len(set(levels(again.test_images)) - set(levels(whole.test_images))) <= 1
    judged = load(folder, test_only=True)
    assert judged.train_images.shape == (0, 9, 9, 1)
    np.testing.assert_array_equal(judged.test_images, again.test_images)


def test_a_fraction_that_cannot_be_taken(tmp_path, caplog):
    write_flat(tmp_path / "few", number=1)
    with pytest.raises(InputError, match=r"class cat has 1 images, too few to take 0\.2 of"):
        load(str(tmp_path / "few"))
    for fraction in (0.0, 1.0, 2):
        with pytest.raises(InputError, match="test_fraction must be between 0 and 1"):
            load("digits", test_fraction=fraction)
    caplog.clear()
    load("digits", test_fraction=0.3)
    assert caplog.messages == ["digits has test images of its own: --test-fraction is not used"]


def test_a_flat_folder_by_a_bare_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_flat(tmp_path / "pets")
    assert load("pets").class_names == ("cat", "dog")
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="'none' is no path"):
        load("none")


# Files that cannot be read


def test_all_unreadable_files_are_told_at_once_or_left_out(tmp_path, caplog):
    write_flat(tmp_path, number=20)
    for i in range(12):
        file = tmp_path / "cat" / f"{i}.png"
        file.write_bytes(file.read_bytes()[: 40 if i % 2 else 0])
    with pytest.raises(InputError, match="12 of 40 images cannot be read: ") as caught:
        load(str(tmp_path))
    text = str(caught.value)
    assert text.count(".png") == 10
    assert "; and 2 more; --skip-unreadable goes on without them" in text
    for _ in range(2):  # said of what comes from the cache too
        caplog.clear()
        data = load(str(tmp_path), skip_unreadable=True)
        assert "12 of 40 images cannot be read: " in caplog.messages[-1]
        assert caplog.messages[-1].endswith("; they are left out")
        labels = np.concatenate([data.train_labels, data.test_labels])
        assert np.bincount(labels).tolist() == [8, 20]
        for images, own in ((data.train_images, data.train_labels),
                            (data.test_images, data.test_labels)):  # fmt: skip
            assert [level % 10 for level in levels(images)] == own.tolist()


# Judging without training images


def test_only_test_images_are_needed_to_judge(tmp_path):
    write_folder(tmp_path / "pets")
    whole = load(str(tmp_path / "pets"))
    judged = load(str(tmp_path / "pets"), test_only=True)
    np.testing.assert_array_equal(judged.test_images, whole.test_images)
    (tmp_path / "pets" / "train").rename(tmp_path / "gone")
    judged = load(str(tmp_path / "pets"), test_only=True)
    assert judged.class_names == ("cat", "dog")
    assert judged.image_shape == (9, 9, 1)
    np.testing.assert_array_equal(judged.test_images, whole.test_images)
    arrays = write_npz(tmp_path / "own.npz", train_images=None, train_labels=None)
    judged = load(str(tmp_path / "own.npz"), test_only=True)
    assert (judged.num_classes, len(judged.train_labels)) == (2, 0)
    np.testing.assert_array_equal(judged.test_images, arrays["test_images"])
    with pytest.raises(InputError, match="lacks train_images, train_labels"):
        load(str(tmp_path / "own.npz"))
    assert len(load("digits", test_only=True, test_limit=50).test_labels) == 50


def test_test_images_that_happen_to_be_grey_are_judged_in_colour(tmp_path):
    write_folder(tmp_path, grey=False)  # one of train is coloured
    whole, grey = load(str(tmp_path)), load(str(tmp_path), test_only=True)
    assert (whole.image_shape, grey.image_shape) == ((9, 9, 3), (9, 9, 1))
    coloured = real.in_colour([9, 9, 3], grey)
    assert coloured.image_shape == (9, 9, 3)
    np.testing.assert_array_equal(coloured.test_images, whole.test_images)
    assert real.in_colour([9, 9, 1], grey) is grey


def test_an_artifact_says_how_its_data_was_read(tmp_path):
    write_flat(tmp_path / "pets", shape=(20, 30))
    options = config.Data(str(tmp_path / "pets"), image_size=8, test_fraction=0.3)
    run = config.command("mtt")(
        data=options, architecture=config.Architecture("mlp", width=4), outer_steps=1
    )
    job = load_job(run)
    theta = {"data": {"images": np.zeros((job.synthetic.num_items, 8, 8, 1))}}
    made = header.made(job, theta, 0.1)
    assert made.header["reading"] == {"image_size": 8, "test_fraction": 0.3}


# What is said, and refused, before anything is trained


def test_notices_are_said_by_the_reporter(capsys):
    log = logging.getLogger("d3jax.data.sources")
    with notices(Reporter(times=False)):
        log.warning("left out")
    log.warning("elsewhere")
    assert capsys.readouterr().out == "left out\n"


def test_a_command_says_how_a_folder_is_split(tmp_path, capsys, monkeypatch):
    write_flat(tmp_path / "pets")
    said = []
    monkeypatch.setattr(Reporter, "say", lambda self, text: said.append(text))
    out = f"--out={tmp_path / 'out'}"
    options = (f"--dataset={tmp_path / 'pets'}", "--outer-steps=0", out)
    assert "outer_steps" in refused(capsys, "distill", "d3", *options)
    assert len(said) == 1
    assert "(--test-fraction 0.2)" in said[0]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"train_limit": 3}, "class [0-9] has no training image left: raise train_limit$"),
        ({"validation": 1430}, "class [0-9] has no training image left: lower validation$"),
    ],
)
def test_a_class_that_a_number_leaves_without_images(numbers, message):
    with pytest.raises(InputError, match=message):
        load("digits", **numbers)


def test_docs_are_as_it_is():
    text = (Path(__file__).parent.parent / "docs" / "own-data.md").read_text()
    named = re.search(r"Files that end in (.*?), of 8 bits", text, re.DOTALL)
    assert named is not None
    assert tuple(re.findall(r"[.][a-z]+", named[1])) == decoding.SUFFIXES
    snippet = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert snippet is not None
    room: dict = {}
    exec(compile(snippet[1], "own-data.md", "exec"), room)
    assert room["dataset"].image_shape == (16, 16, 1)

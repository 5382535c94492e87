"""d3jax.data, and sources, records, decoding, splits, cache and prepare behind it."""

import gzip
import io
import math
import os
import pickle
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from PIL import Image
from scipy.ndimage import map_coordinates
from sklearn.datasets import load_digits

from d3jax import data
from d3jax.data import (
    Dataset,
    Normalization,
    digits,
    folders,
    host_arrays,
    load,
    mapped,
    subtasks,
)
from d3jax.data import prepare as prepare_module
from d3jax.data.prepare import prepare
from d3jax.types import InputError
from experiments import generated

SHARED = os.environ.get("D3JAX_DATA_DIR", "")
needs_data = pytest.mark.skipif(not SHARED, reason="needs $D3JAX_DATA_DIR with the shared data")


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def own_cache(cache_folder, monkeypatch):
    monkeypatch.setenv("D3JAX_CACHE_DIR", str(cache_folder))


def random_images(number, size=8, channels=1, seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (number, size, size, channels), np.uint8)


def write_npz(path, number=20, **changes):
    arrays = {
        "train_images": random_images(number),
        "train_labels": np.arange(number) * 7 % 5 % 2,
        "test_images": random_images(6, seed=1),
        "test_labels": np.array([1, 0, 1, 0, 1, 0]),
    }
    arrays.update(changes)
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return arrays


def write_tfds(root, name="tiny", splits=(("train", 12), ("validation", 4)), features=("label",)):
    """A TFDS set as `download_and_prepare` leaves it, image i being of grey level i, shuffled."""

    def items(split, number):
        for i in np.random.default_rng(0).permutation(number).tolist():
            yield np.full((8, 8), i, np.uint8), i % 2, b"%s_%05d" % (split.encode(), i)

    folder = root / name / "1.0.0"
    held = {split: items(split, number) for split, number in splits}
    generated.write_set(folder, name, held, (8, 8, 1), 2, ("image", *features))
    return folder


def write_folder(root, grey=True, held_out="test", size=(9, 9), sizes=None):
    """Two classes, cat (3 + 1 images) and dog (2 + 1); every image of one grey level, 10 a step."""
    level = 0
    for split, cats, dogs in (("train", 3, 2), (held_out, 1, 1)):
        for name, number in (("dog", dogs), ("cat", cats)):
            (root / split / name).mkdir(parents=True)
            for i in range(number):
                level += 10
                file = root / split / name / f"{i}.png"
                colour = level if grey or level > 10 else (level, 0, 0)
                mode = "L" if grey or level > 10 else "RGB"
                Image.new(mode, (sizes or {}).get(level, size), colour).save(file)
    (root / "train" / "cat" / "notes.txt").write_text("not an image")
    (root / "train" / ".hidden").mkdir()


def assert_equal(first: Dataset, second: Dataset):
    for one, other in zip(first[1:], second[1:]):
        np.testing.assert_array_equal(one, other)


# Digits


def test_digits_are_all_of_scikit_learns_split_evenly():
    theirs = load_digits()
    data = load("digits")
    assert data.image_shape == (8, 8, 1)
    assert data.num_classes == 10
    assert data.class_names == tuple("0123456789")
    assert (len(data.train_labels), len(data.test_labels)) == (1437, 360)
    assert data.validation_images.shape == (0, 8, 8, 1)
    images = np.concatenate([data.train_images, data.test_images])[..., 0]
    labels = np.concatenate([data.train_labels, data.test_labels])
    ours = sorted((image.tobytes(), label) for image, label in zip(images, labels))
    # 16 greys to 255, by the nearest: 0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, ...
    levels = np.array(
        [0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, 175, 191, 207, 223, 239, 255], np.uint8
    )
    expected_images = levels[theirs.images.astype(int)]
    assert ours == sorted(
        (image.tobytes(), label) for image, label in zip(expected_images, theirs.target)
    )
    expected = np.bincount(theirs.target) * 360 / 1797
    assert np.abs(np.bincount(data.test_labels) - expected).max() <= 1
    first = np.bincount(data.train_labels[:200])
    assert np.abs(first - np.bincount(theirs.target) * 200 / 1797).max() <= 1.5


@pytest.mark.parametrize("draw", [(0.0, 0.0, 0.0, 0.0), (1.0, 1.0, 0.0, 1.0), (0.3, 0.2, 0.9, 0.4)])
def test_a_moved_digit_is_what_scipy_interpolates(draw):
    image = random_images(1)[0]
    size, angle = 1.1 + 0.4 * draw[0], np.deg2rad(30 * draw[1] - 15)
    centre = [8 * size / 2 + (16 - 8 * size) * place for place in draw[2:]]
    places = np.stack(np.mgrid[:16, :16]) + 0.5 - np.reshape(centre, (2, 1, 1))
    turned = (places[1] + 1j * places[0]) * np.exp(-1j * angle) / size
    among = np.stack([turned.imag, turned.real]) + 3.5  # pixel 0 is at -3.5 of the centre
    expected = map_coordinates(
        image[..., 0].astype(np.float64), among, order=1, mode="grid-constant"
    )
    found = digits.moved(image[None], np.array([draw]))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[0, ..., 0], np.rint(expected))


def test_moved_digits_are_the_digits_enlarged_turned_and_moved():
    plain, data = load("digits"), load("moved_digits")
    assert data.image_shape == (16, 16, 1)
    assert (len(data.train_labels), len(data.test_labels)) == (4311, 360)
    assert data.class_names == plain.class_names
    np.testing.assert_array_equal(data.train_labels, np.repeat(plain.train_labels, 3))
    np.testing.assert_array_equal(data.test_labels, plain.test_labels)
    # Enlarged by s a digit has s^2 as much ink: over s from 1.1 to 1.5 that is 1.7033 on average,
    # unless much of it leaves the canvas.
    ink = data.train_images.sum() / plain.train_images.sum() / 3
    assert ink == pytest.approx((1.5**3 - 1.1**3) / 3 / 0.4, rel=0.01)
    # A square of 8 s pixels has 16 - 8 s = 7.2 to 4 pixels of room r, and its place is uniform: its
    # variance is r^2 / 12. A digit's centre of mass is near the square's centre.
    room = np.sqrt((7.2**3 - 4**3) / 3 / 3.2)
    images = data.train_images[..., 0].astype(np.float64)
    for axis in (1, 2):
        across = (images.sum(axis) @ np.arange(16)) / images.sum((1, 2))
        spread = across.reshape(-1, 3).std(1, ddof=1)
        assert np.sqrt((spread**2).mean()) == pytest.approx(room / np.sqrt(12), rel=0.05)
    assert len({image.tobytes() for image in data.train_images}) == 4311


def test_limits_take_the_first_and_validation_takes_others():
    full = load("digits")
    data = load("digits", train_limit=1000, test_limit=50, validation=300, seed=3)
    np.testing.assert_array_equal(data.train_images, full.train_images[:1000])
    np.testing.assert_array_equal(data.test_labels, full.test_labels[:50])
    assert data.validation_images.shape == (300, 8, 8, 1)
    beyond = {image.tobytes() for image in full.train_images[1000:]}
    assert all(image.tobytes() in beyond for image in data.validation_images)
    again = load("digits", train_limit=1000, test_limit=50, validation=300, seed=3)
    assert_equal(data, again)
    other = load("digits", train_limit=1000, test_limit=50, validation=300, seed=4)
    assert (data.validation_labels != other.validation_labels).any()
    np.testing.assert_array_equal(data.train_images, other.train_images)


@pytest.mark.parametrize(("limit", "left"), [(None, 1337), (1400, 1337), (1338, 1337)])
def test_validation_is_cut_from_train_where_too_few_are_spare(limit, left):
    full = load("digits")
    data = load("digits", train_limit=limit, validation=100)
    assert (len(data.train_labels), len(data.validation_labels)) == (left, 100)
    parts = np.concatenate([data.train_images, data.validation_images])
    assert sorted(image.tobytes() for image in parts) == sorted(
        image.tobytes() for image in full.train_images
    )


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"train_limit": 0}, "at least 1"),
        ({"train_limit": 1438}, "1437"),
        ({"test_limit": 361}, "360"),
        ({"test_limit": -1}, "at least 1"),
        ({"validation": 1437}, "leaves none"),
        ({"validation": -1}, "negative"),
        ({"seed": -1}, "from 0 to 2147483647"),
    ],
)
def test_impossible_numbers_are_refused(numbers, message):
    with pytest.raises(InputError, match=message):
        load("digits", **numbers)


# .npz files


def test_npz_is_read_as_it_is(tmp_path):
    arrays = write_npz(tmp_path / "own.npz")
    data = load(str(tmp_path / "own.npz"))
    for key, array in arrays.items():
        np.testing.assert_array_equal(getattr(data, key), array)
    assert data.train_labels.dtype == np.int32
    assert data.class_names == ("0", "1")


def test_npz_takes_class_names_and_grey_images_without_channel(tmp_path):
    arrays = write_npz(tmp_path / "data.npz", class_names=np.array(["no", "yes", "maybe"]))
    arrays["train_images"] = arrays["train_images"][..., 0]
    np.savez(tmp_path / "data.npz", **arrays)
    data = load("data", tmp_path)
    assert data.class_names == ("no", "yes", "maybe")
    assert data.image_shape == (8, 8, 1)


def test_images_sorted_by_class_are_taken_in_turn(tmp_path):
    write_npz(tmp_path / "a.npz", train_labels=np.array([0] * 5 + [1] * 12 + [2] * 3))
    data = load(str(tmp_path / "a.npz"))
    images = random_images(20)
    assert data.train_labels[:10].tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    np.testing.assert_array_equal(data.train_images[:5], images[[0, 5, 17, 1, 6]])
    assert sorted(data.train_labels.tolist()) == [0] * 5 + [1] * 12 + [2] * 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_images": None}, "lacks test_images"),
        ({"train_images": random_images(20) / 1.0}, "floats from 0 to 255: give uint8"),
        ({"train_images": random_images(20).astype(np.int64)}, "must be uint8, or floats from 0"),
        ({"train_images": random_images(20)[..., 0, 0]}, r"\[N, H, W, C\], not \[20, 8\]"),
        ({"train_images": random_images(20)[:, :, :7]}, "8x7x1.*--image-size 32"),
        ({"train_images": random_images(20, size=7)}, "7x7x1"),
        ({"train_images": random_images(20, channels=2)}, "8x8x2"),
        ({"test_images": random_images(6, size=9)}, "another size.*--image-size 32"),
        ({"train_images": random_images(0), "train_labels": np.zeros(0, int)}, "no image"),
        ({"train_labels": np.arange(19) % 2}, r"20 integers, not int64 \[19\]"),
        ({"train_labels": np.zeros(20)}, "20 integers, not float64"),
        ({"train_labels": np.full(20, -1)}, "start at -1: number the classes from 0"),
        ({"train_labels": np.full(20, 10**9)}, "start at 1000000000"),
        ({"train_labels": np.arange(20) % 2 + 1}, "start at 1: number the classes from 0"),
        ({"train_labels": np.arange(20) % 2 * 2}, "go up to 2, but there is no 1"),
        ({"train_labels": np.arange(20), "class_names": np.array(["a", "b"])}, "from 0 to 19, but"),
        ({"train_labels": np.zeros(20, int), "test_labels": np.zeros(6, int)}, "one class, 0"),
        ({"test_labels": np.full(6, 2)}, "from 2 to 2, but the 2 classes"),
        ({"train_labels": np.array([{}] * 20)}, "cannot be read"),
    ],
)
def test_lying_npz_is_refused(tmp_path, changes, message):
    write_npz(tmp_path / "bad.npz", **changes)
    with pytest.raises(InputError, match=message):
        load(str(tmp_path / "bad.npz"))


def test_damaged_npz_is_refused(tmp_path):
    path = tmp_path / "bad.npz"
    write_npz(path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 4] ^= 255
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    for content in (
        *(b"", b"nonsense", whole[:100], whole[: len(whole) // 2], whole[:-1]),
        *(bytes(flipped), array.getvalue(), pickle.dumps({"train_images": 1})),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"bad\.npz"):
            load(str(path))
    with pytest.raises(InputError, match="no file"):
        load(str(tmp_path / "absent.npz"))


def jpeg_layout(number=6, size=8):
    files = []
    for i in range(number):
        stream = io.BytesIO()
        # One colour file and one grey, as in Tiny-ImageNet; flat, so that JPEG is exact.
        image = Image.new("L", (size, size), 40 * i)
        (image.convert("RGB") if i % 2 else image).save(stream, "jpeg")
        files.append(stream.getvalue())
    return np.frombuffer(b"".join(files), np.uint8), np.cumsum([0] + [len(f) for f in files])


def test_jpeg_layout_is_decoded(tmp_path):
    data, offsets = jpeg_layout()
    layout = {"train_jpeg": data, "train_offsets": offsets, "val_jpeg": data}
    labels = np.array([1, 0, 1, 0, 1, 0])
    layout |= {"val_offsets": offsets, "train_labels": labels, "val_labels": labels}
    path = tmp_path / "jpegs.npz"
    np.savez(path, **layout, names=np.array(["fish", "bear"]))
    found = load("jpegs", tmp_path)
    assert found.class_names == ("fish", "bear")
    assert found.train_images.shape == (6, 8, 8, 3)
    np.testing.assert_array_equal(found.train_images[:, 3, 4, 1], 40 * np.arange(6))
    np.testing.assert_array_equal(found.test_labels, labels)

    np.savez(path, **{**layout, "train_offsets": offsets + 1})
    with pytest.raises(InputError, match="train_offsets do not divide"):
        load("jpegs", tmp_path)
    broken = data.copy()
    broken[offsets[2] : offsets[3]] = 0
    np.savez(path, **{**layout, "train_jpeg": broken})
    with pytest.raises(InputError, match="train image 2 cannot be read"):
        load("jpegs", tmp_path)
    np.savez(path, **{key: value for key, value in layout.items() if key != "val_offsets"})
    with pytest.raises(InputError, match="lacks val_offsets"):
        load("jpegs", tmp_path)


# Image folders


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_image_folder(tmp_path, held_out):
    write_folder(tmp_path, held_out=held_out)
    data = load(str(tmp_path))
    assert data.class_names == ("cat", "dog")
    assert data.image_shape == (9, 9, 1)
    # Levels 10, 20 are the dogs', 30, 40, 50 the cats'; one of each class in turn.
    assert data.train_images[:, 0, 0, 0].tolist() == [30, 10, 40, 20, 50]
    assert data.train_labels.tolist() == [0, 1, 0, 1, 0]
    assert data.test_images[:, 8, 8, 0].tolist() == [70, 60]


def test_image_folder_is_colour_if_one_image_is(tmp_path):
    write_folder(tmp_path / "pets", grey=False)
    data = load("pets", tmp_path)
    assert data.image_shape == (9, 9, 3)
    assert data.train_images[1, 0, 0].tolist() == [10, 0, 0]
    assert data.train_images[0, 0, 0].tolist() == [30, 30, 30]


def test_bad_image_folders_are_refused(tmp_path):
    write_folder(tmp_path / "sizes", sizes={40: (9, 10)})
    with pytest.raises(InputError, match=r"cat/1.png is 9x10 pixels.*--image-size 32"):
        load(str(tmp_path / "sizes"))
    write_folder(tmp_path / "oblong", size=(9, 12))
    with pytest.raises(InputError, match="12x9x1"):
        load(str(tmp_path / "oblong"))
    for content in (b"", b"no png", None):
        folder = tmp_path / f"broken{content}"
        write_folder(folder)
        file = folder / "train" / "cat" / "2.png"
        file.write_bytes(file.read_bytes()[:45] if content is None else content)
        with pytest.raises(InputError, match=r"cat/2.png cannot be"):
            load(str(folder))
    write_folder(tmp_path / "deep")
    Image.new("I;16", (9, 9), 500).save(tmp_path / "deep" / "test" / "dog" / "0.png")
    with pytest.raises(InputError, match="8 bits"):
        load(str(tmp_path / "deep"))
    write_folder(tmp_path / "more")
    (tmp_path / "more" / "test" / "cow").mkdir()
    with pytest.raises(InputError, match="class cow"):
        load(str(tmp_path / "more"))
    (tmp_path / "empty" / "train" / "cat").mkdir(parents=True)
    with pytest.raises(InputError, match=r"train has no images CLASS/\*.png"):
        load(str(tmp_path / "empty"))
    (tmp_path / "empty" / "train").rename(tmp_path / "empty" / "test")
    with pytest.raises(InputError, match="a folder test, but no folder train"):
        load(str(tmp_path / "empty"))
    with pytest.raises(InputError, match="there is no folder"):
        load(str(tmp_path / "absent"))


# TFDS


def test_tfds_in_official_order_with_validation_as_test(tmp_path):
    write_tfds(tmp_path / "tfds", features=("label", "id"))
    data = load("tiny", tmp_path)
    assert data.train_images[:, 5, 5, 0].tolist() == list(range(12))
    assert data.train_labels.tolist() == [0, 1] * 6
    assert data.test_images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]


def test_tfds_keeps_its_order_without_ids(tmp_path):
    write_tfds(tmp_path, splits=(("train", 12), ("test", 4), ("validation", 5)))
    data = load("tiny", tmp_path)
    assert (
        data.train_images[:, 0, 0, 0].tolist() == np.random.default_rng(0).permutation(12).tolist()
    )
    assert len(data.test_labels) == 4


def test_bad_tfds_is_refused(tmp_path):
    write_tfds(tmp_path, "unlabelled", features=("id",))
    with pytest.raises(InputError, match="image and label"):
        load("unlabelled", tmp_path)
    write_tfds(tmp_path, "alone", splits=(("train", 12),))
    with pytest.raises(InputError, match="neither test nor validation"):
        load("alone", tmp_path)
    folder = write_tfds(tmp_path, "short")
    records = next(folder.glob("*train*"))
    records.write_bytes(records.read_bytes()[:70])
    with pytest.raises(InputError, match="remove it and run `d3jax prepare short`"):
        load("short", tmp_path)


def test_unprepared_names_say_what_prepares_them(tmp_path):
    with pytest.raises(
        InputError, match=r"`d3jax prepare mnist`.*`d3jax prepare mnist --from DIR`"
    ):
        load("mnist", tmp_path)


def test_tensorflow_is_never_imported(tmp_path):
    write_tfds(tmp_path)
    code = (
        "import sys, d3jax.data\n"
        "assert 'tensorflow_datasets' not in sys.modules\n"
        f"d3jax.data.load('tiny', {str(tmp_path)!r})\n"
        "assert 'tensorflow_datasets' in sys.modules and 'tensorflow' not in sys.modules\n"
    )
    environment = {**os.environ, "D3JAX_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# The cache


def test_cache_is_used_replaced_when_damaged_and_keyed_by_the_files(tmp_path, monkeypatch):
    monkeypatch.setenv("D3JAX_CACHE_DIR", str(tmp_path / "cache"))
    write_folder(tmp_path / "pets")
    decoded = []
    decode = folders.decode_all
    monkeypatch.setattr(folders, "decode_all", lambda *a, **o: decoded.append(1) or decode(*a, **o))
    first = load("pets", tmp_path)
    (kept,) = (tmp_path / "cache").iterdir()
    whole = kept.read_bytes()
    assert len(decoded) == 1
    assert_equal(first, load("pets", tmp_path))
    assert len(decoded) == 1
    for content in (whole[: len(whole) // 2], b"", b"nonsense"):
        kept.write_bytes(content)
        decoded.clear()
        assert_equal(first, load("pets", tmp_path))
        assert len(decoded) == 1
        assert kept.read_bytes()[:2] == b"PK"
    Image.new("L", (9, 9), 99).save(tmp_path / "pets" / "train" / "cat" / "0.png")
    os.utime(tmp_path / "pets" / "train" / "cat" / "0.png", (1, 1))
    assert load("pets", tmp_path).train_images[0, 0, 0, 0] == 99
    (tmp_path / "pets" / "train" / "ant").mkdir()
    assert load("pets", tmp_path).class_names == ("ant", "cat", "dog")
    assert load("pets", tmp_path, image_size=8).image_shape == (8, 8, 1)


def test_cached_images_stay_in_their_file(tmp_path, monkeypatch):
    """They are read where they are indexed, in NumPy's ways; for a subtask its own alone."""
    monkeypatch.setenv("D3JAX_CACHE_DIR", str(tmp_path / "cache"))
    write_folder(tmp_path / "pets")
    decoded = load("pets", tmp_path)
    found = load("pets", tmp_path)
    assert isinstance(found.train_images, mapped.Mapped)
    whole = decoded.train_images
    for index in (2, slice(1, 3), np.array([3, 0]), np.arange(5) > 2, (slice(2), ..., 0)):
        np.testing.assert_array_equal(found.train_images[index], whole[index])
    np.testing.assert_array_equal(np.stack(list(found.train_images)), whole)
    np.testing.assert_array_equal(np.asarray(found.train_images), whole)
    picked = mapped.pick(mapped.pick(found.train_images, np.array([4, 1, 0])), slice(1, None))
    np.testing.assert_array_equal(picked[:], whole[[1, 0]])
    read = []

    class Watched(np.ndarray):
        def __getitem__(self, index):
            read.extend(np.atleast_1d(index[0]).tolist())
            return np.asarray(self).__getitem__(index)

    labels = decoded.train_labels
    watched = mapped.Mapped(whole.view(Watched))
    part = subtasks.of(decoded._replace(train_images=watched), [1])
    assert read == []
    normalization = data.Normalization.of(part.train_images)
    data.host_arrays(part.train_images, part.train_labels, 1, normalization)
    assert set(read) == set(np.flatnonzero(labels == 1).tolist())


def test_unwritable_cache_is_skipped(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("D3JAX_CACHE_DIR", str(tmp_path / "file" / "cache"))
    write_folder(tmp_path / "pets")
    assert len(load("pets", tmp_path).train_labels) == 5


# Preparing


def idx_bytes(array):
    header = (0x0800 + array.ndim).to_bytes(4) + b"".join(n.to_bytes(4) for n in array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx(folder):
    folder.mkdir()
    labels = np.array([3, 0, 1, 2, 1, 0, 2])
    for split, number in (("train", 7), ("t10k", 4)):
        images = random_images(number)[..., 0]
        (folder / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(idx_bytes(labels[:number]))
    return labels


def test_prepare_from_idx_files(tmp_path):
    labels = write_idx(tmp_path / "official")
    written = prepare("mnist", tmp_path / "store", tmp_path / "official")
    assert written == tmp_path / "store" / "data" / "mnist.npz"
    assert [file.name for file in written.parent.iterdir()] == ["mnist.npz"]
    data = load("mnist", tmp_path / "store")
    np.testing.assert_array_equal(data.train_images, random_images(7))
    np.testing.assert_array_equal(data.train_labels, labels)
    np.testing.assert_array_equal(data.test_labels, labels[:4])
    assert data.class_names == tuple("0123")
    prepare("fashion_mnist", tmp_path / "store", tmp_path / "official")
    assert load("fashion_mnist", tmp_path / "store").class_names[9] == "Ankle boot"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("train-images-idx3-ubyte.gz", lambda data: data[:-20], "cannot be read"),
        ("train-images-idx3-ubyte.gz", lambda data: data[:2] + b"junk", "cannot be read"),
        ("train-labels-idx1-ubyte", lambda data: data[:-1], "14 bytes where its header says 15"),
        ("train-labels-idx1-ubyte", lambda data: data[:5], "not an idx file"),
        ("t10k-labels-idx1-ubyte", lambda data: b"\0\0\x08\x03" + data[4:], "not an idx file"),
        ("t10k-labels-idx1-ubyte", lambda _: idx_bytes(np.zeros(5)), "4 t10k images and 5"),
        ("t10k-labels-idx1-ubyte", None, "has no t10k-labels-idx1-ubyte"),
    ],
)
def test_bad_idx_files_are_refused_and_nothing_is_written(tmp_path, file, change, message):
    write_idx(tmp_path / "official")
    path = tmp_path / "official" / file
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match=message):
        prepare("mnist", tmp_path / "store", tmp_path / "official")
    assert not (tmp_path / "store").exists()


def test_prepare_from_cifar_binary_files(tmp_path):
    source = tmp_path / "official"
    source.mkdir()
    images = random_images(12, size=32, channels=3)
    labels = np.arange(12, dtype=np.uint8) * 5 % 4
    rows = np.concatenate([labels[:, None], images.transpose(0, 3, 1, 2).reshape(12, 3072)], axis=1)
    for i in range(5):
        (source / f"data_batch_{i + 1}.bin").write_bytes(rows[2 * i : 2 * i + 2].tobytes())
    (source / "test_batch.bin").write_bytes(rows[10:].tobytes())
    (source / "batches.meta.txt").write_text("airplane\nautomobile\nbird\ncat\n\n")
    prepare("cifar10", tmp_path, source)
    data = load("cifar10", tmp_path)
    np.testing.assert_array_equal(data.train_images, images[:10])
    np.testing.assert_array_equal(data.test_images, images[10:])
    np.testing.assert_array_equal(data.train_labels, labels[:10])
    assert data.class_names == ("airplane", "automobile", "bird", "cat")
    (source / "data_batch_3.bin").write_bytes(rows[4:6].tobytes()[:-1])
    with pytest.raises(InputError, match="not whole"):
        prepare("cifar10", tmp_path, source)


def test_prepare_refuses_what_it_cannot_do(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install 'd3jax\[prepare\]'"):
        prepare("mnist", tmp_path)
    with pytest.raises(InputError, match="built in"):
        prepare("digits", tmp_path)
    with pytest.raises(InputError, match="moved_digits is built in"):
        prepare("moved_digits", tmp_path)
    with pytest.raises(InputError, match="not the name"):
        prepare("../mnist", tmp_path, tmp_path)
    with pytest.raises(InputError, match="no folder"):
        prepare("mnist", tmp_path, tmp_path / "absent")
    write_idx(tmp_path / "official")
    with pytest.raises(InputError, match="idx files, where cifar10 has CIFAR-10's binary files"):
        prepare("cifar10", tmp_path, tmp_path / "official")
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="no official files, where mnist has idx files"):
        prepare("mnist", tmp_path, tmp_path / "other")
    (tmp_path / "other" / "train.bin").touch()
    with pytest.raises(InputError, match="CIFAR-100's binary files, where cifar10 has"):
        prepare("cifar10", tmp_path, tmp_path / "other")
    (tmp_path / "data").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        prepare("mnist", tmp_path, tmp_path / "official")


# Normalization


def test_mean_and_sd_are_those_of_all_pixels():
    images = random_images(5000, channels=3) // np.array([1, 2, 5], np.uint8)
    normalization = Normalization.of(images)
    pixels = images.astype(np.float64) / 255
    np.testing.assert_allclose(normalization.mean, pixels.mean((0, 1, 2)), rtol=1e-7)
    np.testing.assert_allclose(normalization.sd, pixels.std((0, 1, 2)), rtol=1e-7)
    expected = (pixels - pixels.mean((0, 1, 2))) / pixels.std((0, 1, 2))
    np.testing.assert_allclose(normalization.apply(images), expected, atol=1e-6)
    np.testing.assert_array_equal(normalization.invert(normalization.apply(images)), images)


def test_zca_against_numpy():
    images = load("digits").train_images
    normalization = Normalization.of(images, zca=True)
    plain = Normalization.of(images)
    flat = ((images / 255 - np.float64(plain.mean)) / np.float64(plain.sd)).reshape(-1, 64)
    vectors, values, _ = np.linalg.svd(np.cov(flat, rowvar=False))
    expected = vectors @ np.diag(1 / np.sqrt(values + 0.1)) @ vectors.T
    np.testing.assert_allclose(normalization.zca, expected, atol=2e-5)
    np.testing.assert_allclose(normalization.zca_mean, flat.mean(0), atol=1e-6)
    whitened = normalization.apply(images)
    assert whitened.dtype == np.float32
    spectrum = np.linalg.eigvalsh(np.cov(whitened.reshape(-1, 64).astype(float), rowvar=False))
    np.testing.assert_allclose(spectrum, np.sort(values / (values + 0.1)), atol=1e-5)
    np.testing.assert_array_equal(normalization.invert(whitened), images)


def test_zca_of_fewer_images_than_pixels_and_several_blocks():
    images = random_images(5, channels=3)
    few = Normalization.of(images, zca=True, eps=0.01)
    np.testing.assert_array_equal(few.invert(few.apply(images)), images)
    many = random_images(4500, seed=2)
    normalization = Normalization.of(many, zca=True)
    whitened = normalization.apply(many).reshape(-1, 64)
    np.testing.assert_allclose(whitened.mean(0), 0, atol=1e-5)


def test_invert_clips_and_a_constant_channel_stays_finite():
    images = random_images(3, channels=3)
    images[..., 0] = 51
    normalization = Normalization.of(images)
    assert normalization.mean[0] == np.float32(0.2)
    assert normalization.sd[0] == 1
    pictures = normalization.invert(np.array([-9.0, 0.0, 9.0, np.nan]).reshape(4, 1, 1, 1))
    assert pictures[:3, 0, 0, 0].tolist() == [0, 51, 255]
    with pytest.raises(InputError, match="all pixels of the training images are alike"):
        Normalization.of(images[..., :1])
    with pytest.raises(InputError, match="too few"):
        Normalization.of(np.zeros((0, 8, 8, 1), np.uint8))
    with pytest.raises(InputError, match="too few"):
        Normalization.of(np.zeros((1, 8, 8, 1), np.uint8), zca=True)


# On the device


def test_arrays_index_classes():
    images = random_images(6, channels=3)
    labels = np.array([2, 0, 2, 1, 2, 0], np.int32)
    normalization = Normalization.of(images)
    real = jax.device_put(host_arrays(images, labels, 3, normalization))
    assert real.images.dtype == np.uint8
    assert real.class_index.tolist() == [[1, 5, 1], [3, 3, 3], [0, 2, 4]]
    assert real.class_counts.tolist() == [2, 1, 3]
    gathered = real.gather(jax.numpy.arange(6))
    np.testing.assert_allclose(gathered, normalization.apply(images), rtol=1e-6, atol=1e-6)
    drawn = np.asarray(real.sample_classes(jax.random.key(0), 50))
    assert (labels[drawn] == np.arange(3)[:, None]).all()
    for seed in range(5):
        key = jax.random.key(seed)
        different = np.asarray(real.sample_different(key, 3))
        assert sorted(different[2]) == [0, 2, 4]
        assert sorted(different[0][:2]) == [1, 5]

    whitening = Normalization.of(images, zca=True)
    whitened = jax.device_put(host_arrays(images, labels, 3, whitening))
    assert whitened.images.dtype == np.float32
    np.testing.assert_array_equal(whitened.gather(jax.numpy.arange(6)), whitening.apply(images))


def test_images_are_drawn_uniformly_and_padding_never():
    images = random_images(6)
    real = jax.device_put(
        host_arrays(images, np.array([2, 0, 2, 1, 2, 0]), 3, Normalization.of(images))
    )
    subtask = real._replace(number=np.int32(5))  # the last image is padding
    for world, number in ((real, 6), (subtask, 5)):
        drawn = world.sample(jax.random.key(0), 40_000)
        assert drawn.dtype == np.int32
        shares = np.bincount(drawn, minlength=6) / len(drawn)
        deviation = np.sqrt((1 - 1 / number) / number / len(drawn))
        np.testing.assert_allclose(shares[:number], 1 / number, atol=5 * deviation)
        assert not shares[number:].any()


def _classes(*counts):
    """Real data that has so many images of each class; image i is at position i."""
    labels = np.repeat(np.arange(len(counts)), counts)
    images = random_images(len(labels))
    return jax.device_put(host_arrays(images, labels, len(counts), Normalization.of(images)))


def _check_frequencies(rows, outcomes):
    """Whether `rows` i[n, m] are `outcomes` different ones, each as frequent as any other."""
    _, times = np.unique(rows, axis=0, return_counts=True)
    assert len(times) == outcomes
    deviation = np.sqrt((1 - 1 / outcomes) / outcomes / len(rows))
    np.testing.assert_allclose(times / len(rows), 1 / outcomes, atol=5 * deviation)


def test_different_images_are_every_set_and_every_order_alike_often():
    real = _classes(4, 2, 5)
    keys = jax.random.split(jax.random.key(0), 40_000)
    drawn = np.asarray(jax.jit(jax.vmap(lambda key: real.sample_different(key, 6)))(keys))
    four, two, five = drawn[:, 0], drawn[:, 1] - 4, drawn[:, 2] - 6
    _check_frequencies(np.sort(four[:, :2]), math.comb(4, 2))
    _check_frequencies(np.sort(five[:, :3]), math.comb(5, 3))
    _check_frequencies(np.sort(five[:, 1:3]), math.comb(5, 2))
    _check_frequencies(five[:, :5], math.factorial(5))
    # All four, and then two anew, whatever came before.
    _check_frequencies(four, math.factorial(4) * math.perm(4, 2))
    _check_frequencies(two, 2**3)
    # Classes are drawn independently.
    _check_frequencies(np.stack([four[:, 0], two[:, 0], five[:, 0]], 1), 4 * 2 * 5)


def test_what_is_drawn_of_a_class_does_not_depend_on_the_precision():
    real, key = _classes(4, 2, 5), jax.random.key(0)
    expected = np.asarray(real.sample_classes(key, 20))
    with jax.enable_x64(True):
        np.testing.assert_array_equal(real.sample_classes(key, 20), expected)
    for row, positions in zip(expected, [range(4), range(4, 6), range(6, 11)]):
        assert set(row) == set(positions)


def test_different_images_do_not_depend_on_the_room_for_a_class():
    small = _classes(4, 2, 5)
    most = data.padded(small, 30, 9)
    keys = jax.random.split(jax.random.key(0), 4)

    def draw(key, real):
        return real.sample_different(key, 7)

    expected = [jax.jit(draw)(key, small) for key in keys]
    np.testing.assert_array_equal(jax.vmap(draw, (0, None))(keys, most), expected)
    with jax.enable_x64(True):  # nor on the precision
        np.testing.assert_array_equal(draw(keys[0], small), expected[0])
        assert draw(keys[0], small).dtype == np.int32
    mesh = jax.make_mesh((2,), ("shard",), (AxisType.Auto,), devices=jax.devices()[:2])
    spread, shared = PartitionSpec("shard"), PartitionSpec()
    sharded = jax.shard_map(
        jax.vmap(draw, (0, None)), mesh=mesh, in_specs=(spread, shared), out_specs=spread
    )
    np.testing.assert_array_equal(jax.jit(sharded)(keys, most), expected)


def test_arrays_refuse_a_class_without_images():
    images = random_images(4)
    normalization = Normalization.of(images)
    with pytest.raises(InputError, match=r"class 1 \(dog\) has no training image$"):
        host_arrays(images, np.array([0, 0, 2, 2]), 3, normalization, ("cat", "dog", "cow"))
    with pytest.raises(InputError, match="labels go from 0 to 3"):
        host_arrays(images, np.array([0, 1, 2, 3]), 3, normalization)
    with pytest.raises(InputError, match=r"must be 4 integers, not int64 \[3\]"):
        host_arrays(images, np.array([0, 1, 2]), 3, normalization)


# The shared data


@pytest.mark.long
@needs_data
def test_mnist_of_tfds_is_mnist_of_the_idx_files(tmp_path):
    records = load("mnist")
    prepare("mnist", tmp_path, os.path.join(SHARED, "data", "mnist"))
    official = load("mnist", tmp_path)
    # The first labels of the official files, as printed everywhere.
    assert official.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert official.test_labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert official.class_names == records.class_names
    for split, number in (("train", 60000), ("test", 10000)):
        rows = [
            np.concatenate([images.reshape(number, 784), labels[:, None].astype(np.uint8)], axis=1)
            for data in (records, official)
            for images, labels in [
                (getattr(data, f"{split}_images"), getattr(data, f"{split}_labels"))
            ]
        ]
        first, second = (np.sort(np.ascontiguousarray(row).view("V785").ravel()) for row in rows)
        assert (first == second).all()
    # Published figures: mean 0.1307, standard deviation 0.3081.
    normalization = Normalization.of(records.train_images)
    assert (normalization.mean.round(4), normalization.sd.round(4)) == (
        pytest.approx(0.1307),
        pytest.approx(0.3081),
    )


@pytest.mark.long
@needs_data
def test_cifar10_is_in_official_order():
    data = load("cifar10", train_limit=4000)
    assert data.class_names[6] == "frog"
    assert data.test_images.shape == (10000, 32, 32, 3)
    assert np.bincount(data.test_labels).tolist() == [1000] * 10
    with np.load(os.path.join(SHARED, "data", "cifar10_lossless_first4000.npz")) as lossless:
        np.testing.assert_array_equal(data.train_labels, lossless["train_labels"])
        error = data.train_images.astype(float) - lossless["train_images"]
    # The loss of the JPEG copy, as its README measured it: 5.8 grey levels, 29.98 dB.
    assert np.abs(error).mean() == pytest.approx(5.8, abs=0.1)
    assert 10 * np.log10(255**2 / (error**2).mean()) == pytest.approx(29.98, abs=0.02)


@needs_data
@pytest.mark.parametrize(
    ("name", "train", "test", "shape", "classes"),
    [
        ("usps", 7291, 2007, (16, 16, 1), 10),
        ("tiny_imagenet_20", 10000, 1000, (64, 64, 3), 20),
    ],
)
def test_sets_beside_tfds(name, train, test, shape, classes):
    data = load(name)
    assert (len(data.train_labels), len(data.test_labels)) == (train, test)
    assert data.image_shape == shape
    assert data.num_classes == classes
    assert (np.bincount(data.train_labels[: 20 * classes], minlength=classes) > 0).all()

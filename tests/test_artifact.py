"""d3jax.artifact: round trip, ledger, and every kind of bad file."""

import json
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from d3jax import artifact, synthetic
from d3jax.artifact import file
from d3jax.types import InputError, Real

GAUSSIAN = {
    "kind": "gaussian",
    "image_shape": [8, 8, 1],
    "num_classes": 2,
    "latents_per_class": 2,
    "latent_size": 3,
    "decoder": "small",
    "width": 8,
    "shift": [0.25],
    "scale": [0.5],
    "label_kind": "probabilities",
}
PIXELS = {"kind": "pixels", "image_shape": [8, 8, 1], "num_classes": 2, "num_items": 4}
REAL = Real(
    images=jnp.arange(128, dtype=jnp.uint8).reshape(2, 8, 8, 1),
    labels=jnp.array([0, 1], jnp.int32),
    class_index=jnp.array([[0], [1]], jnp.int32),
    class_counts=jnp.ones(2, jnp.int32),
    mean=jnp.array([0.5], jnp.float32),
    sd=jnp.array([0.25], jnp.float32),
)


def make(specification=GAUSSIAN, theta=None, **changes):
    data = synthetic.create(specification)
    if theta is None:
        key = jax.random.key(0)
        theta = data.freeze(data.init(key, REAL), key)
    arguments = {
        "method": "d3",
        "dataset": "digits",
        "class_names": ("nought", "one"),
        "normalization": {"mean": [0.5], "sd": [0.25], "zca": None},
        "architecture": {"network": "lenet"},
        "parametrization": specification,
        "student_learning_rate": 0.01,
        "protocol": {"students": 2, "epochs": 3},
        "seed": 7,
    }
    return artifact.create(theta, **{**arguments, **changes})


def leaves(made):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(made.theta)]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """The bytes of a good artifact."""
    path = tmp_path_factory.mktemp("artifact") / "good.safetensors"
    artifact.save(make(), path)
    return path.read_bytes()


# Round trip


@pytest.mark.parametrize("specification", [GAUSSIAN, PIXELS], ids=["gaussian", "pixels"])
def test_float32_comes_back_bit_for_bit(specification, tmp_path):
    made = make(specification, dtype="float32")
    artifact.save(made, tmp_path / "a.safetensors")
    back = artifact.load(tmp_path / "a.safetensors")
    assert back.header == made.header
    assert jax.tree.structure(back.theta) == jax.tree.structure(made.theta)
    for one, other in zip(leaves(made), leaves(back)):
        assert one.dtype == other.dtype == np.float32
        np.testing.assert_array_equal(one, other)


def test_float16_comes_back_to_half_precision(tmp_path):
    exact = make(dtype="float32")
    artifact.save(make(), tmp_path / "a.safetensors")
    back = artifact.load(tmp_path / "a.safetensors")
    for one, other in zip(leaves(exact), leaves(back)):
        assert other.dtype == np.float16
        np.testing.assert_array_equal(one.astype(np.float16), other)
    for leaf in jax.tree.leaves(back.decodable()):
        assert leaf.dtype == jnp.float32


def test_values_beyond_float16_stay_float32(tmp_path):
    images = np.full((4, 8, 8, 1), 1.0, np.float32)
    images[2, 3, 4, 0] = 65505.0  # float16 ends at 65504
    theta = {"data": {"images": jnp.asarray(images)}}
    artifact.save(make(PIXELS, theta), tmp_path / "a.safetensors")
    (stored,) = leaves(artifact.load(tmp_path / "a.safetensors"))
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(stored, images)
    images[2, 3, 4, 0] = -65504.0
    (stored,) = leaves(make(PIXELS, {"data": {"images": jnp.asarray(images)}}))
    assert stored.dtype == np.float16


def test_other_storage_is_refused():
    with pytest.raises(InputError, match="float16, float32 or int8, not 'int4'"):
        make(dtype="int4")


# What a user does with it


def test_sample_is_deterministic_given_the_key(tmp_path):
    artifact.save(make(), tmp_path / "artifact.safetensors")
    made = artifact.load(tmp_path)  # a run's folder
    one, same = made.sample(jax.random.key(3)), made.sample(3)
    other = made.sample(jax.random.key(4))
    np.testing.assert_array_equal(one.images, same.images)
    assert float(jnp.abs(one.images - other.images).max()) > 1e-3
    decoded, again = made.sample(), made.sample(None)
    np.testing.assert_array_equal(decoded.images, again.images)
    assert decoded.images.shape == (4, 8, 8, 1)
    assert decoded.images.dtype == jnp.float32
    # shift + scale * tanh
    assert float(decoded.images.min()) >= -0.25
    assert float(decoded.images.max()) <= 0.75
    np.testing.assert_array_equal(decoded.targets, np.eye(2)[[0, 0, 1, 1]])


@pytest.mark.parametrize("specification", [GAUSSIAN, PIXELS], ids=["gaussian", "pixels"])
def test_an_item_decodes_alike_in_any_company(specification):
    made = make(specification)
    together = made.sample()
    for item in range(4):
        alone = made.sample(None, jnp.array([item], jnp.int32))
        np.testing.assert_allclose(alone.images[0], together.images[item], atol=1e-6)
        np.testing.assert_array_equal(alone.targets[0], together.targets[item])
    pair = made.sample(None, [3, 0, 3])
    np.testing.assert_allclose(pair.images, together.images[jnp.array([3, 0, 3])], atol=1e-6)


def test_sampling_is_compiled_once_for_all_artifacts_of_a_parametrization():
    one, other = make(PIXELS), make(PIXELS)
    one.sample()
    compiled = file._sampling(one.synthetic)
    before = compiled._cache_size()
    other.sample()
    assert file._sampling(other.synthetic) is compiled
    assert compiled._cache_size() == before > 0


# The ledger


def test_ledger_of_a_gaussian(tmp_path):
    # Linear 3 -> 4 * 8; 4x4 transposed convolutions 8 -> 4 -> 2, each with batch norm's scale and
    # offset; 3x3 convolution 2 -> 1.
    decoder = (3 * 32 + 32) + (16 * 8 * 4 + 4 + 8) + (16 * 4 * 2 + 2 + 4) + (9 * 2 + 1)
    statistics = 2 * 4 + 2 * 2
    latents, labels = 2 * 4 * 3, 4 * 2
    for dtype, size in (("float16", 2), ("float32", 4)):
        path = tmp_path / dtype
        made = make(dtype=dtype)
        artifact.save(made, path)
        for ledger in (made.ledger, artifact.load(path).ledger):
            total = path.stat().st_size
            parts = {
                "images": 0,
                "latents": size * latents,
                "decoder": size * (decoder + statistics),
                "labels": size * labels,
            }
            assert ledger["bytes"] == {
                "total": total,
                **parts,
                "other": total - sum(parts.values()),
            }
            assert ledger["floats"] == latents + decoder + statistics + labels
            assert ledger["ipc_equivalent"] == {
                "uint8": total / (2 * 64),
                "float32": total / (2 * 64 * 4),
            }


def test_ledger_of_pixels(tmp_path):
    path = tmp_path / "a.safetensors"
    artifact.save(make(PIXELS), path)
    ledger = artifact.load(path).ledger
    assert ledger["bytes"]["images"] == 4 * 64 * 2
    assert ledger["bytes"]["latents"] == ledger["bytes"]["decoder"] == 0
    assert ledger["bytes"]["labels"] == 0
    assert ledger["floats"] == 4 * 64
    parts = {name: size for name, size in ledger["bytes"].items() if name != "total"}
    assert sum(parts.values()) == ledger["bytes"]["total"] == path.stat().st_size


# Writing


@pytest.mark.parametrize("where", ["write", "replace"])
def test_a_failed_save_leaves_the_old_file(where, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    artifact.save(make(seed=1), path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync" if where == "write" else "os.replace", fail)
    with pytest.raises(OSError, match=r"No space|the disk is full"):
        artifact.save(make(seed=2), path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.safetensors"]
    artifact.save(make(seed=2), path)
    assert artifact.load(path).header["seed"] == 2


# Bad files


def unpacked(raw):
    """(table without metadata, our header, array bytes) of a file."""
    length = int.from_bytes(raw[:8], "little")
    table = json.loads(raw[8 : 8 + length])
    header = json.loads(table.pop("__metadata__")["d3jax"])
    return table, header, raw[8 + length :]


def packed(table, header, data):
    """A file; the header is a JSON object, or whatever is to stand in the metadata's place."""
    if isinstance(header, dict):
        header = {"d3jax": json.dumps(header)}
    text = json.dumps({"__metadata__": header, **table}).encode()
    return len(text).to_bytes(8, "little") + text + data


def refused(path, content):
    """The one sentence with which a file of `content` is refused."""
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        artifact.load(path)
    text = str(caught.value)
    assert text
    assert "\n" not in text
    assert len(text) < 600
    return text


def test_a_repacked_file_is_good(raw, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(packed(*unpacked(raw)))
    assert artifact.load(path).header["seed"] == 7


def test_missing(tmp_path):
    with pytest.raises(InputError, match="there is no artifact"):
        artifact.load(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="there is no artifact"):
        artifact.load(tmp_path)


def test_truncated(raw, tmp_path):
    length = int.from_bytes(raw[:8], "little")
    near = {0, 1, 7, 8, 9, 8 + length - 1, 8 + length, 8 + length + 1, len(raw) - 1}
    for size in sorted(near | set(range(0, len(raw), 97))):
        refused(tmp_path / "a", raw[:size])


@pytest.mark.parametrize("more", [b"\0", b"\0" * 8, b"x" * 5000])
def test_added_to(raw, more, tmp_path):
    assert "added to" in refused(tmp_path / "a", raw + more)


@pytest.mark.parametrize("length", [0, 1, 2, 2**24 + 1, 2**31, 2**63, 2**64 - 1])
def test_lying_header_length(raw, length, tmp_path):
    refused(tmp_path / "a", length.to_bytes(8, "little") + raw[8:])


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b"7", b"\xff\xfe", b"[" * 100_000, b'{"a": ' * 50_000, b"{}",
     b'{"__metadata__": {"d3jax": "\\ud800"}}', b'{"__metadata__": 1}', b"1" * 6000,
     b"\x80\x04}.", b"PK\x03\x04"],
    ids=lambda text: repr(text[:20]),
)  # fmt: skip
def test_garbage(text, tmp_path):
    refused(tmp_path / "a", len(text).to_bytes(8, "little") + text)
    refused(tmp_path / "a", text)


def test_foreign_safetensors_file(tmp_path):
    array = {"weight": np.zeros((2, 2), np.float32)}
    for metadata in (None, {"format": "pt"}):
        text = refused(tmp_path / "a", safetensors.numpy.save(array, metadata))
        assert "not one that d3jax wrote" in text


@pytest.mark.parametrize("version", [0, 2, -1, 10**30])
def test_other_format_version(raw, version, tmp_path):
    table, header, data = unpacked(raw)
    content = packed(table, {**header, "format_version": version}, data)
    assert "format version" in refused(tmp_path / "a", content)


@pytest.mark.parametrize(
    "metadata",
    [None, [], "d3jax", {}, {"d3jax": None}, {"d3jax": {"format_version": 1}}, {"d3jax": 1},
     {"d3jax": ""}, {"d3jax": "[]"}, {"d3jax": "{"}, {"d3jax": "[" * 20_000}],
    ids=lambda metadata: repr(metadata)[:30],
)  # fmt: skip
def test_metadata_of_another_kind(raw, metadata, tmp_path):
    table, _, data = unpacked(raw)
    refused(tmp_path / "a", packed(table, metadata, data))


def test_metadata_with_more_that_is_no_string(raw, tmp_path):
    table, header, data = unpacked(raw)
    refused(tmp_path / "a", packed(table, {"d3jax": json.dumps(header), "more": 7}, data))


@pytest.mark.parametrize(
    "name",
    ["format_version", "method", "dataset", "class_names", "normalization", "parametrization",
     "student_learning_rate", "protocol", "seed", "versions"],
)  # fmt: skip
def test_header_entry_missing_or_of_another_type(raw, name, tmp_path):
    table, header, data = unpacked(raw)
    for wrong in (None, True, "x", 1.5, 3, ["x"], {"x": 1}):
        if type(wrong) is type(header[name]):
            continue
        refused(tmp_path / "a", packed(table, {**header, name: wrong}, data))
    del header[name]
    refused(tmp_path / "a", packed(table, header, data))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("class_names", []),
        ("class_names", ["one"]),
        ("class_names", ["a", "b", "c"]),
        ("class_names", ["a", 2]),
        ("class_names", ["a", ["b"]]),
        ("student_learning_rate", 0.0),
        ("student_learning_rate", -0.5),
        ("student_learning_rate", float("nan")),
        ("student_learning_rate", float("inf")),
        ("normalization", {}),
        ("normalization", {"mean": [0.5], "sd": [0.25]}),
        ("normalization", {"mean": [0.5], "sd": [0.25], "zca": 5}),
        ("normalization", {"mean": [0.5, 0.5], "sd": [0.25, 1.0], "zca": None}),
        ("normalization", {"mean": ["a"], "sd": [0.25], "zca": None}),
        ("normalization", {"mean": [float("nan")], "sd": [0.25], "zca": None}),
        ("normalization", {"mean": [0.5], "sd": [0.0], "zca": None}),
        ("normalization", {"mean": [0.5], "sd": [-1.0], "zca": None}),
        ("normalization", {"mean": 0.5, "sd": 0.25, "zca": None}),
        ("reading", 8),
        ("reading", {"image_size": "8"}),
        ("reading", {"test_only": True}),
        ("reading", {"seed": 0}),
    ],
)
def test_header_entry_that_makes_no_sense(raw, name, value, tmp_path):
    table, header, data = unpacked(raw)
    refused(tmp_path / "a", packed(table, {**header, name: value}, data))


NONSENSE = [0, -1, 1.5, 10**12, 10**30, "a", None, [], [1], {}, {"a": [1]}, True, float("nan")]


@pytest.mark.parametrize("value", NONSENSE, ids=repr)
@pytest.mark.parametrize("name", ["latents_per_class", "num_classes", "latent_size"])
def test_lying_sizes(raw, name, value, tmp_path):
    table, header, data = unpacked(raw)
    header["parametrization"][name] = value
    refused(tmp_path / "a", packed(table, header, data))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("kind", value) for value in ("splines", None, 3, [], {}, "")],
        *[("decoder", value) for value in ("huge", None, 3, [], {}, "large", "medium")],
        *[("width", value) for value in (0, -8, 4, 9, 16, 10**12, 8.5, "8", [8], {})],
        *[("label_kind", value) for value in ("hard", "colours", None, [], 3)],
        *[("shift", value) for value in ("a", 3, [], ["a"], [0.0, 0.0], [[0.0]], [None], {})],
        *[("variance", value) for value in ("none", "class", "some", None, 3, ["each"], {})],
        *[("start", value) for value in ("images", None, 3, ["real"], {})],
        *[("start_steps", value) for value in (0, -1, 2.5, "3", None, [], True)],
        *[("class_embedding", value) for value in (True, None, 1, "no", [])],
        *[("rounding", value) for value in ("int4", None, 8, ["int8"], {}, True)],
        *[("scale", value) for value in ([float("nan")], [float("inf")], [True, False], "")],
        *[("image_shape", value) for value in (
            None, [], [8, 8], [8, 8, 1, 1], [0, 8, 1], [-8, 8, 1], [8.0, 8, 1], ["8", 8, 1],
            [10**12, 8, 1], [8, 8, 10**12], [2**19, 2**19, 1], [2**19, 2**19, 2**19], [16, 16, 1],
            [8, 8, 3], [8, 16, 1], [1, 1, 1], [True, 8, 1], [[8], 8, 1],
        )],
        ("option", 1),
        ("image shape", [8, 8, 1]),
        ("key", None),
    ],
    ids=repr,
)  # fmt: skip
def test_lying_parametrization(raw, name, value, tmp_path):
    table, header, data = unpacked(raw)
    header["parametrization"][name] = value
    refused(tmp_path / "a", packed(table, header, data))


@pytest.mark.parametrize("name", sorted(set(GAUSSIAN) - {"shift", "scale"}))
def test_parametrization_that_says_too_little(raw, name, tmp_path):
    if name == "decoder":  # small is the default
        pytest.skip("leaving it out changes nothing")
    table, header, data = unpacked(raw)
    del header["parametrization"][name]
    refused(tmp_path / "a", packed(table, header, data))


@pytest.mark.parametrize("value", [v for v in NONSENSE if v != 4], ids=repr)
def test_lying_number_of_images(value, tmp_path):
    path = tmp_path / "a"
    artifact.save(make(PIXELS), path)
    table, header, data = unpacked(path.read_bytes())
    header["parametrization"]["num_items"] = value
    refused(path, packed(table, header, data))


def swapped(table):
    one, other = table["data/mean"], table["data/log_variance"]
    one["data_offsets"], other["data_offsets"] = other["data_offsets"], one["data_offsets"]


def change(name, value, array="data/mean"):
    def mutate(table):
        table[array][name] = value

    mutate.__name__ = f"{name}={value!r}"[:40]
    return mutate


def overlap(table):
    table["data/mean"]["data_offsets"] = list(table["data/log_variance"]["data_offsets"])


def missing(table):
    del table["data/mean"]


def additional(table):
    end = max(entry["data_offsets"][1] for entry in table.values())
    table["more"] = {"dtype": "F16", "shape": [0], "data_offsets": [end, end]}


def renamed(table):
    table["data/means"] = table.pop("data/mean")


def without(name):
    def mutate(table):
        del table["data/mean"][name]

    mutate.__name__ = f"without {name}"
    return mutate


def entry(value):
    def mutate(table):
        table["data/mean"] = value

    mutate.__name__ = f"entry {value!r}"
    return mutate


def everything_elsewhere(table):
    for each in table.values():
        each["data_offsets"] = [offset + 2 for offset in each["data_offsets"]]


@pytest.mark.parametrize(
    "mutate",
    [
        *[change("dtype", value) for value in (
            "I8", "F64", "BF16", "I64", "BOOL", "F8_E4M3", "U16", "F32", "f16", "", None, 3, [],
            ["F16"], {},
        )],
        *[change("shape", value) for value in (
            [3, 4], [12], [4, 3, 1], [4], [], [0, 3], [-4, -3], [4.0, 3.0], [4, "3"], None, 12,
            "4x3", {}, [10**12, 3], [[4], 3], [True, 3],
        )],
        *[change("data_offsets", value) for value in (
            None, [], [0], [0, 24, 48], "ab", ["0", "24"], [0.0, 24.0], [-24, 0], [24, 0],
            [10**12, 10**12 + 24], [0, 10**12], [True, 25], {}, [[0], [24]], [None, None], [1, 25],
        )],
        *[entry(value) for value in (None, 7, "x", [], {}, [{}])],
        *[without(name) for name in ("dtype", "shape", "data_offsets")],
        overlap, missing, additional, renamed, everything_elsewhere,
    ],
    ids=lambda mutate: mutate.__name__,
)  # fmt: skip
def test_lying_table(raw, mutate, tmp_path):
    table, header, data = unpacked(raw)
    mutate(table)
    refused(tmp_path / "a", packed(table, header, data))


def test_labels_that_are_no_arrays_of_theirs(raw, tmp_path):
    # An image array where latents should be: a header of the other parametrization.
    table, header, data = unpacked(raw)
    refused(tmp_path / "a", packed(table, {**header, "parametrization": PIXELS}, data))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("array", ["data/mean", "labels", "statistics/0"])
def test_content_that_is_not_finite(raw, array, value, tmp_path):
    table, header, data = unpacked(raw)
    name = next(n for n in sorted(table) if n.startswith(array))
    start = table[name]["data_offsets"][0]
    data = data[:start] + np.float16(value).tobytes() + data[start + 2 :]
    assert "not finite" in refused(tmp_path / "a", packed(table, header, data))


@pytest.mark.parametrize(
    ("array", "entry", "message"),
    [
        ("data/mean/levels", {"dtype": "U8"}, "only given labels can be"),
        ("data/mean/levels", {"dtype": "F16"}, "is F16, not int8"),
        ("data/mean/scale", {"dtype": "I8"}, "is I8, not float16"),
        ("data/mean/scale", {"dtype": "F32"}, "is F32, not float16"),
        ("data/mean/scale", {"shape": [4]}, r"has shape \[4\], not \[3\]"),
        ("data/mean/levels", {"shape": [3, 4]}, r"not \[4, 3\]"),
        ("decoder/Linear_0/kernel/levels", {"shape": [96]}, r"not \[3, 32\]"),
        ("decoder/Linear_0/bias", {"dtype": "I8"}, "is I8, not float16 or float32"),
    ],
)
def test_lying_table_of_int8(array, entry, message, tmp_path):
    path = tmp_path / "a"
    artifact.save(make(dtype="int8"), path)
    table, header, data = unpacked(path.read_bytes())
    table[array] |= entry
    assert re.search(message, refused(path, packed(table, header, data)))


def test_int8_that_its_header_or_its_scales_deny(raw, tmp_path):
    path = tmp_path / "a"
    artifact.save(make(dtype="int8"), path)
    table, header, data = unpacked(path.read_bytes())
    for value in (np.nan, 0.0, -1.0, np.inf):
        start = table["data/mean/scale"]["data_offsets"][0]
        changed = data[:start] + np.float16(value).tobytes() + data[start + 2 :]
        said = "not finite" if not np.isfinite(value) else "scale that is not positive"
        assert said in refused(path, packed(table, header, changed))
    for storage in (None, "float16", 8, ["int8"], True):
        text = refused(path, packed(table, {**header, "storage": storage}, data))
        assert "storage that is not int8" in text
    del header["storage"]
    assert "arrays of its header" in refused(path, packed(table, header, data))
    table, header, data = unpacked(raw)  # of float16
    text = refused(path, packed(table, {**header, "storage": "int8"}, data))
    assert "arrays of its header" in text


def test_flipped_bytes(raw, tmp_path):
    """Whatever byte is changed, the file is read or refused, and what is read can be decoded."""
    generator = np.random.default_rng(0)
    path = tmp_path / "a"
    text = 8 + int.from_bytes(raw[:8], "little")
    read = 0
    for trial in range(300):
        content = bytearray(raw)
        # Two in three in the header, which is where harm is done.
        for _ in range(1 + trial % 3):
            end = text if trial % 3 else len(raw)
            content[generator.integers(end)] = generator.integers(256)
        path.write_bytes(content)
        try:
            made = artifact.load(path)
        except InputError:
            continue
        else:
            read += 1
            if read % 10 == 0:
                made.sample(jax.random.key(0))
                assert made.ledger["bytes"]["total"] > 0
    assert 0 < read < 300

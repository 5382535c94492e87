"""Other projects' files, out and in: read here as those projects read them."""

import io
import json
import math
import pickle
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from PIL import Image
from test_artifact import GAUSSIAN, make
from test_cli import called, no_folder_of_the_users, refused  # noqa: F401

from d3jax import artifact
from d3jax.artifact import exchange
from d3jax.artifact.exchange import card
from d3jax.data import Dataset, Normalization
from d3jax.data import load as load_data
from d3jax.experts.store import fingerprint
from d3jax.host.progress import Reporter
from d3jax.run import exchange as run
from d3jax.run import judge, real
from d3jax.run.commands import Judgement, OtherFiles
from d3jax.types import InputError

torch = pytest.importorskip("torch")
DOCS = Path(__file__).parent.parent / "docs" / "formats.md"
CLASSES, PER_CLASS, SHAPE = 3, 2, (8, 8, 3)
# CIFAR's figures in the code of DC and MTT
MEAN, SD = (np.array(x) for x in ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)))
OWN = {"mean": [0.5, 0.4, 0.3], "sd": [0.25, 0.5, 0.125], "zca": None}


def pixels(number=CLASSES * PER_CLASS, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (number, *SHAPE)).astype(np.uint8)


def distilled(targets=None, levels=None):
    """An artifact of images whose pixels are known, with normalization of its own."""
    levels = pixels() / 255 if levels is None else levels
    images = ((levels - np.array(OWN["mean"])) / np.array(OWN["sd"])).astype(np.float32)
    theta = {"data": {"images": images}} | ({} if targets is None else {"labels": targets})
    kind = "hard" if targets is None else "probabilities"
    specification = {
        "kind": "pixels", "image_shape": list(SHAPE), "num_classes": CLASSES,
        "num_items": len(images), "label_kind": kind,
    }  # fmt: skip
    return make(
        specification, theta, method="mtt", dataset="cifar10", class_names=("a", "b", "c"),
        normalization=OWN, architecture={"network": "mlp", "width": 4}, dtype="float32",
        student_learning_rate=0.02, protocol={"students": 1, "epochs": 2, "augmentation": []},
    )  # fmt: skip


@pytest.fixture(scope="module")
def dataset():
    images, labels = pixels(30, 1), np.arange(30) % CLASSES
    return Dataset.from_arrays(
        images, labels, images[:6], labels[:6], class_names=("a", "b", "c"), name="cifar10"
    )


def written(made, folder, format, **options):
    exchange.export(made, folder, format, normalization=Normalization.of_header(OWN), **options)
    return folder


def load(path):
    return torch.load(path, weights_only=True)


# Out: as those projects' evaluators read them


@pytest.mark.parametrize(
    ("format", "names"),
    [("mtt", ("images_best.pt", "labels_best.pt", "lr_best.pt")),
     ("torch", ("images.pt", "labels.pt", "lr.pt")),
     ("dc", ("res_MTT_CIFAR10_ConvNet_2ipc.pt",))],
)  # fmt: skip
def test_tensors_are_what_the_field_reads(format, names, tmp_path, dataset):
    """Channels first, class after class, by the field's mean and sd; and they come back."""
    made = distilled()
    folder = written(made, tmp_path / "out", format)
    assert {path.name for path in folder.iterdir()} == {*names, "README.md", "header.json"}
    if format == "dc":  # DC-BENCH takes the last repetition
        images, labels = load(folder / names[0])["data"][-1]
    else:
        images, labels, rate = (load(folder / name) for name in names)
        assert rate.item() == pytest.approx(0.02)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert images.shape == (CLASSES * PER_CLASS, 3, 8, 8)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    expected = (pixels() / 255 - MEAN) / SD
    np.testing.assert_allclose(images.numpy().transpose(0, 2, 3, 1), expected, atol=1e-5)
    back = run.read(folder, None, None, OtherFiles(), None, dataset)
    assert back.header["student_learning_rate"] == pytest.approx(0.02)
    assert back.header["parametrization"]["label_kind"] == "hard"
    np.testing.assert_allclose(back.theta["data"]["images"], expected, atol=1e-5)


def test_pictures_and_bytes(tmp_path, dataset):
    """PNG as RDED names them, and .npz; what lies outside 0 to 255 is clipped: the card says so."""
    levels = pixels() / 255
    levels[0, 0, 0, 0], levels[0, 0, 0, 1] = 1.5, 0.4 / 255
    made = distilled(levels=levels)
    exact = np.rint(np.clip(levels, 0, 1) * 255)
    folder = written(made, tmp_path / "folder", "folder")
    files = sorted(folder.glob("*/*.png"))
    assert [str(file.relative_to(folder)) for file in files[:3]] == [
        "00000/class00000_id00000.png", "00000/class00000_id00001.png",
        "00001/class00001_id00000.png",
    ]  # fmt: skip
    np.testing.assert_array_equal(np.stack([np.asarray(Image.open(f)) for f in files]), exact)
    assert np.load(folder / "labels.npy").tolist() == [0, 0, 1, 1, 2, 2]
    cost = json.loads((folder / "header.json").read_text())["export"]["rounding"]
    assert cost["clipped"] == pytest.approx(1 / exact.size)
    assert cost["largest_change"] == pytest.approx(127.5, abs=1e-3)
    assert cost["mean_change"] == pytest.approx((127.5 + 0.4) / exact.size, abs=1e-3)
    assert "clipped 0.09 % of the values" in (folder / "README.md").read_text()
    packed = written(made, tmp_path / "npz", "npz")
    with np.load(packed / "distilled.npz") as file:
        np.testing.assert_array_equal(file["images"], exact)
        assert file["labels"].tolist() == [0, 0, 1, 1, 2, 2]
        assert file["class_names"].tolist() == ["a", "b", "c"]
    for path in (folder, packed):
        back = run.read(path, None, None, OtherFiles(), None, dataset)
        assert back.header["published"]["bytes"] < 20_000
        own = Normalization.of_header(back.header["normalization"])
        np.testing.assert_array_equal(own.invert(back.theta["data"]["images"]), exact)


def test_soft_labels_are_logits_of_the_probabilities(tmp_path, dataset):
    targets = np.random.default_rng(2).dirichlet(np.ones(3), 6).astype(np.float32)
    made = distilled(targets)
    folder = written(made, tmp_path / "out", "mtt")
    logits = load(folder / "labels_best.pt")
    assert logits.shape == (6, 3)
    np.testing.assert_allclose(torch.softmax(logits, 1).numpy(), targets, atol=1e-6)
    back = run.read(folder, None, None, OtherFiles(), None, dataset)
    order = np.argsort(targets.argmax(1), kind="stable")
    np.testing.assert_allclose(back.sample().targets, targets[order], atol=1e-6)
    hard = run.read(folder, None, None, OtherFiles(hard_labels=True), None, dataset)
    assert hard.sample().targets.argmax(1).tolist() == sorted(targets.argmax(1))
    with pytest.raises(InputError, match="--hard-labels takes"):
        written(made, tmp_path / "dc", "dc")
    assert not (tmp_path / "dc").exists()


def test_a_hub_copy_is_what_the_package_datasets_loads(tmp_path):
    """Its types stand in the schema; the card's front matter names the files."""
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = written(distilled(), tmp_path / "out", "hub")
    front = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    (files,) = front["configs"][0]["data_files"]
    (path,) = folder.glob(files["path"])
    table = parquet.read_table(path)
    said = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert said["image"] == {"_type": "Image"}
    assert said["label"] == {"names": ["a", "b", "c"], "_type": "ClassLabel"}
    assert table["label"].to_pylist() == [0, 0, 1, 1, 2, 2]
    for row, expected in zip(table["image"].to_pylist(), pixels()):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(row["bytes"]))), expected)
    assert artifact.load(folder).header["method"] == "mtt"


def test_a_generator_writes_draws_by_seed(tmp_path):
    made = make({**GAUSSIAN, "label_kind": "hard"})
    own = Normalization.of_header({"mean": [0.5], "sd": [0.25]})

    def drawn(**options):
        return exchange.export(made, tmp_path / "out", "npz", normalization=own, **options)

    about = drawn(draws=3, seed=5)
    with np.load(tmp_path / "out" / "distilled.npz") as file:
        images, labels = file["images"], file["labels"]
    assert labels.tolist() == [0] * 6 + [1] * 6  # 2 items a class, 3 draws of each
    keys = jax.random.split(jax.random.key(5), 3)
    for place, (item, draw) in {0: (0, 0), 2: (0, 2), 4: (1, 1), 11: (3, 2)}.items():
        expected = own.invert(np.asarray(made.sample(keys[draw]).images))[item]
        np.testing.assert_array_equal(images[place], expected)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{made.ledger['bytes']['total']:,} bytes" in card
    assert "3 of each of its items, drawn with seed 5" in card
    assert about["export"]["images"] == 12
    with pytest.raises(InputError, match="is there already"):
        drawn()
    with pytest.raises(InputError, match="leave out --draws"):
        written(distilled(), tmp_path / "pixels", "npz", draws=2)


# In: as those projects write them


def tensors(folder, images, labels, ending="_best"):
    folder.mkdir(exist_ok=True)
    torch.save(torch.tensor(images.transpose(0, 3, 1, 2)), folder / f"images{ending}.pt")
    torch.save(torch.tensor(labels), folder / f"labels{ending}.pt")
    return folder


def test_files_of_others_are_read(tmp_path, dataset):
    """Without a header: the data set's mean and sd are the field's; labels need not be sorted."""
    images = np.random.default_rng(3).normal(size=(6, *SHAPE)).astype(np.float32)
    mtt = tensors(tmp_path / "mtt", images, np.array([2, 0, 1, 0, 1, 2]))
    back = run.read(mtt / "images_best.pt", None, None, OtherFiles(), None, dataset)
    np.testing.assert_array_equal(back.theta["data"]["images"], images[[1, 3, 2, 4, 0, 5]])
    np.testing.assert_allclose(back.header["normalization"]["mean"], MEAN, atol=1e-6)
    assert back.header["student_learning_rate"] == 0.01
    # Classes of unequal size store their labels.
    tensors(mtt, images, np.array([2, 0, 1, 0, 0, 2]))
    back = run.read(mtt, None, None, OtherFiles(), 0.5, dataset)
    assert back.sample().targets.argmax(1).tolist() == [0, 0, 0, 1, 2, 2]
    assert back.header["student_learning_rate"] == 0.5
    # DC keeps accuracies, numbers of NumPy, in the same file.
    pair = [torch.tensor(images.transpose(0, 3, 1, 2)), torch.tensor([0, 0, 1, 1, 2, 2])]
    dc = tmp_path / "res_DC_CIFAR10_ConvNet_2ipc.pt"
    old = [torch.zeros(6, 3, 8, 8), pair[1]]
    accuracies = {"ConvNet": [np.float64(0.5)]}
    torch.save({"data": [old, pair], "accs_all_exps": accuracies}, dc)
    back = run.read(dc, None, None, OtherFiles(), None, dataset)
    np.testing.assert_array_equal(back.theta["data"]["images"], images)
    # SRe2L's folders of JPEG
    for label in range(3):
        (tmp_path / f"sre2l/new{label:03d}").mkdir(parents=True)
        for number in range(2):
            picture = Image.fromarray(np.full(SHAPE, 40 * label + number, np.uint8))
            picture.save(tmp_path / f"sre2l/new{label:03d}/class{label:03d}_id{number:03d}.jpg")
    back = run.read(tmp_path / "sre2l", None, None, OtherFiles(), None, dataset)
    levels = back.theta["data"]["images"][:, 0, 0, 0] * SD[0] + MEAN[0]
    np.testing.assert_allclose(levels * 255, [0, 1, 40, 41, 80, 81], atol=1.01)


def whitening(kind, images):
    """ZCA in float64 as kornia (MTT), FRePo and KIP (in DC-BENCH) have it."""
    flat = images.reshape(len(images), -1) / 255.0
    size = flat.shape[1]
    if kind == "kip":
        flat = flat - flat.mean(1, keepdims=True)
        flat = flat / np.linalg.norm(flat, axis=1, keepdims=True)
        mean, covariance = 0, flat.T @ flat / len(flat)
        added = 0.1 * np.trace(covariance) / size
    elif kind == "frepo":
        channels = images.reshape(-1, 3) / 255.0
        flat = (images / 255.0 - channels.mean(0)) / channels.std(0)
        flat = flat.reshape(len(images), -1)
        mean = flat.mean(0)
        covariance = (flat - mean).T @ (flat - mean) / len(flat)
        added = 0.1 * np.trace(covariance) / size
    else:
        mean, covariance, added = flat.mean(0), np.cov(flat.T), 0.1
    u, s, _ = np.linalg.svd(covariance + added * np.eye(size))
    return ((flat - mean) @ (u / np.sqrt(s)) @ u.T).reshape(images.shape)


@pytest.mark.parametrize("kind", ["mtt", "frepo", "kip"])
def test_whitened_images_are_judged_on_test_images_whitened_alike(kind, tmp_path, dataset):
    images = np.random.default_rng(3).normal(size=(6, *SHAPE)).astype(np.float32)
    one_hot = np.eye(3, dtype=np.float32)[[0, 0, 1, 1, 2, 2]] - 1 / 3  # of a regression
    path = tmp_path / "distilled.npz"
    if kind == "mtt":
        path = tensors(tmp_path, images, np.array([0, 0, 1, 1, 2, 2]))
    else:
        names = {"kip": ("images", "labels"), "frepo": ("image", "label")}[kind]
        np.savez(path, **dict(zip(names, (images, one_hot))))
    files = OtherFiles(whitening="mtt" if kind == "mtt" else None)
    made = run.read(path, None, None, files, None, dataset)
    assert made.header["normalization"]["zca"]["kind"] == kind
    assert made.sample().targets.argmax(1).tolist() == [0, 0, 1, 1, 2, 2]
    artifact.save(made, tmp_path / "imported.safetensors")
    header = artifact.load(tmp_path / "imported.safetensors").header
    used = real.stored_normalization(header, dataset)
    expected = whitening(kind, dataset.train_images)
    np.testing.assert_allclose(used.apply(dataset.train_images), expected, atol=2e-3)


def test_a_whitened_artifact_is_written_as_mtt_whitens(tmp_path, capsys):
    """Its own ZCA follows mean and sd, MTT's is of pixels: images are turned back in between."""
    digits = load_data("digits", train_limit=500)
    own = Normalization.of(digits.train_images, zca=True)
    rows = [int(np.flatnonzero(digits.train_labels == label)[0]) for label in range(10)]
    recipe = {
        "epsilon": 0.1, "train_limit": 500, "validation": 0, "seed": 0,
        "images": fingerprint(digits.train_images, digits.train_labels),
    }  # fmt: skip
    normalization = {"mean": own.mean.tolist(), "sd": own.sd.tolist(), "zca": recipe}
    specification = {
        "kind": "pixels", "image_shape": [8, 8, 1], "num_classes": 10, "num_items": 10,
    }  # fmt: skip
    made = make(
        specification, {"data": {"images": own.apply(digits.train_images[rows])}},
        normalization=normalization, class_names=digits.class_names, dtype="float32",
    )  # fmt: skip
    artifact.save(made, tmp_path / "a.safetensors")
    out = ("--out", tmp_path / "out")
    called(capsys, "export", tmp_path / "a.safetensors", "--format=mtt", *out)
    images = load(tmp_path / "out" / "images_best.pt").numpy().transpose(0, 2, 3, 1)
    expected = whitening("mtt", digits.train_images)[rows]
    np.testing.assert_allclose(images, expected, atol=2e-3)
    back = run.read(tmp_path / "out", None, None, OtherFiles(), None)
    assert back.header["normalization"]["zca"] == {**recipe, "kind": "mtt"}
    used = real.stored_normalization(back.header, digits)
    pixels = used.invert(back.theta["data"]["images"])
    np.testing.assert_array_equal(pixels, digits.train_images[rows])


def test_a_subtasks_images_stay_of_its_classes(tmp_path):
    names = [str(k) for k in range(10)]
    made = make(
        {"kind": "pixels", "image_shape": [8, 8, 1], "num_classes": 2, "num_items": 2},
        {"data": {"images": np.zeros((2, 8, 8, 1), np.float32)}}, class_names=("5", "7"),
        subtask={"classes": [5, 7], "class_names": names},
    )  # fmt: skip
    for format in ("npz", "mtt"):
        own = Normalization.of_header(made.header["normalization"])
        exchange.export(made, tmp_path / format, format, normalization=own)
        back = run.read(tmp_path / format, None, None, OtherFiles(), None)
        assert back.header["class_names"] == ["5", "7"]
        test, _ = real.real_data(back.header, Judgement())
        assert test.class_names == ("5", "7")


def test_an_export_is_judged_by_the_network_and_protocol_of_its_header(tmp_path, dataset):
    folder = written(distilled(), tmp_path / "out", "mtt")
    found = judge.judge(folder, Judgement(epochs=1, test_limit=6), Reporter(), dataset)
    assert found["architecture"]["network"] == "mlp"
    assert found["architecture"]["width"] == 4
    assert found["accuracy"]["students"] == 1
    assert found["published"]["layout"] == "mtt"
    about = json.loads((folder / "header.json").read_text())
    about["artifact"]["protocol"] |= {"learning_rate": 0.5, "with_means": True}
    (folder / "header.json").write_text(json.dumps(about))
    back = run.read(folder, None, None, OtherFiles(), 0.25, dataset).header
    assert (back["student_learning_rate"], back["protocol"]["learning_rate"]) == (0.25, None)
    assert not back["protocol"]["with_means"]
    about["artifact"]["protocol"]["decay"] = math.nan  # no JSON: as if there were none
    (folder / "header.json").write_text(json.dumps(about))
    back = run.read(folder, None, None, OtherFiles(), None, dataset).header
    assert back["architecture"]["width"] == 128


def test_the_card_says_what_network_to_build(tmp_path):
    made = distilled()
    assert "judged by: two hidden layers of 4 units with ReLU; weights" in card.text(
        exchange.export(made, tmp_path / "a", "npz", normalization=Normalization.of_header(OWN))
    )
    made.header["architecture"] = {
        "network": "convnet", "width": 32, "depth": 2, "norm": "group", "pooling": "max",
    }  # fmt: skip
    text = (written(made, tmp_path / "b", "npz") / "README.md").read_text()
    assert (
        "ConvNet of depth 2 and width 32: blocks of a 3x3 convolution with padding 1, group norm "
        "of 4 groups, ReLU, 2x2 max pooling; then a linear layer; weights start as PyTorch's"
    ) in text


def test_files_that_cannot_be_used(tmp_path, capsys, dataset):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    def message(path, **files):
        with pytest.raises(InputError) as caught:
            run.read(path, None, None, OtherFiles(**files), None, dataset)
        return str(caught.value)

    evil = tmp_path / "res_x.pt"
    evil.write_bytes(pickle.dumps({"data": Evil()}))
    assert "would run as code" in message(evil)
    torch.save({"data": Evil()}, evil)
    assert "would run as code" in message(evil)
    assert not (tmp_path / "ran").exists()
    torch.save({"state": torch.zeros(2)}, evil)
    assert "no list `data`" in message(evil)
    images = np.zeros((6, *SHAPE), np.float32)
    folder = tensors(tmp_path / "mtt", images, np.array([0, 1, 2, 3, 0, 0]))
    assert "labels go from 0 to 3" in message(folder)
    assert "one positive sd for each of 3" in message(folder, mean=(0.5,), sd=(0.5,))
    tensors(folder, images[:, :4], np.zeros(6, int))
    assert "the images have shape [4, 8, 3]" in message(folder)
    tensors(folder, images, np.zeros((6, 2), np.float32))
    assert "labels are of 2 classes" in message(folder)
    kip = tmp_path / "kip.npz"
    np.savez(kip, images=images, labels=np.array(["a"] * 6))
    assert "an array of <U1, not of numbers" in message(kip)
    kip.write_bytes(kip.read_bytes()[:200])
    assert "kip.npz cannot be read" in message(kip)
    with open(kip, "wb") as stream:
        np.save(stream, images)
    assert "a single array" in message(kip)
    torch.save(torch.zeros(0), folder / "lr_best.pt")
    assert "holds 0 numbers, not one learning rate" in message(folder)
    (folder / "lr_best.pt").unlink()
    tensors(folder, images, np.zeros(5, int))
    assert "6 images and labels of shape [5]" in message(folder)
    np.savez(tmp_path / "a.npz", pictures=images)
    assert "distilled images are named" in message(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", images=images.astype(np.int64), labels=np.arange(len(images)))
    assert "its images are int64; pixels are uint8" in message(tmp_path / "a.npz")
    with pytest.raises(InputError, match="are in it: leave out --labels"):
        exchange.read(tmp_path / "a.npz", tmp_path / "labels.pt")
    unknown = dataset._replace(name="mine")
    tensors(folder, images, np.array([0, 0, 1, 1, 2, 2]))
    with pytest.raises(InputError, match="give --mean and --sd"):
        run.read(folder, None, None, OtherFiles(), None, unknown)
    assert "say with --dataset" in refused(capsys, "import", folder)
    assert "there is nothing at" in refused(capsys, "import", tmp_path / "none")
    out = ("--out", tmp_path / "none" / "out")
    assert "there is no folder" in refused(capsys, "import", folder, "--dataset=digits", *out)
    assert "there is no artifact" in refused(capsys, "export", folder, "--format=npz", *out)
    assert "there is no artifact" in refused(capsys, "evaluate", tmp_path / "empty")


def test_the_training_that_the_docs_print(tmp_path, monkeypatch, capsys):
    """A network in PyTorch learns images by heart, and finds them again among test images: that
    needs their normalization, and their classes."""
    (code,) = re.findall("```python\n(.*?)```", DOCS.read_text(), re.S)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("D3JAX_CACHE_DIR", str(tmp_path / "cache"))
    for number, image in enumerate(pixels()):
        for split in ("train", "test"):
            path = tmp_path / "photos" / split / "abc"[number // PER_CLASS] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    made = distilled()
    made.header["architecture"] = {"network": "convnet", "width": 16, "depth": 1}
    made.header["protocol"]["epochs"] = 60
    written(made, tmp_path / "exported", "mtt")
    said: dict = {}
    exec(code, said)
    assert capsys.readouterr().out == "right: 1.000 of 6 test images\n"
    order = np.argsort(said["dataset"].test_labels, kind="stable")
    np.testing.assert_allclose(said["test"][order], said["images"], atol=1e-5)


def test_the_notebook_trains_as_the_docs_do():
    (code,) = re.findall("```python\n(.*?)```", DOCS.read_text(), re.S)
    notebook = json.loads((DOCS.parent / "notebooks" / "pytorch.ipynb").read_text())
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    assert "\n".join(cells[3:]).split() == code.replace("./photos", "digits").split()


def test_export_by_the_command(tmp_path, capsys):
    artifact.save(distilled(), tmp_path / "a.safetensors")
    called(capsys, "export", tmp_path / "a.safetensors", "--format=npz", "--out", tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_text().startswith("# cifar10, distilled by mtt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "out"]

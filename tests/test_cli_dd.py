"""`d3jax distill dd` and what follows it, on the embedded digits."""

import json

import numpy as np
import pytest
import yaml
from test_cli import called, environment, no_folder_of_the_users, refused, start  # noqa: F401

from d3jax import artifact
from d3jax.data import sources

SMALL = [
    "--network=mlp", "--width=8", "--steps=2", "--passes=2", "--real-batch=32", "--outer-steps=6",
    "--unseen=3", "--train-limit=400", "--validation=100", "--chunk=3",
    "--baseline-learning-rates", "0.1", "0.3", "--baselines",
]  # fmt: skip
NONE = [*SMALL[:-3], "--baseline-learning-rates", "0.1", "--baselines"]


@pytest.fixture(scope="module")
def fixed(environment, tmp_path_factory):  # noqa: F811
    """A finished run with a fixed initialization, by a process of its own."""
    out = tmp_path_factory.mktemp("dd") / "fixed"
    process = start(
        environment, "distill", "dd", f"--out={out}", "--init=fixed", "--storage=float32", *SMALL,
        "random", "best_random", "kmeans", "class_mean", "kmeans_uint8",
    )  # fmt: skip
    text, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert errors == ""
    return out, text


def test_a_run_and_its_report(fixed):
    out, text = fixed
    report = json.loads((out / "report.json").read_text())
    assert (report["method"], report["dataset"], report["network"]) == ("dd", "digits", "mlp")
    assert report["accuracy"]["students"] == 1
    assert report["before"]["students"] == 1
    assert report["floats"] == 20 * 64
    # 20 images of 64 float32 are the bytes of 80 whole ones.
    images = {"random": 2, "best_random": 2, "kmeans": 2, "class_mean": 1, "kmeans_uint8": 8}
    assert list(report["baselines"]) == list(images)
    for name, row in report["baselines"].items():
        assert row["floats"] == 640 * images[name]
        assert row["learning_rate"] in (0.1, 0.3)
        assert 0 <= row["nearest_neighbours"]["accuracy"] <= 1
        assert f"\n{name} " in text
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["architecture"]["initialization"] == "xavier_normal"
    assert (config["dd"]["images"], config["dd"]["networks"]) == (20, 1)
    header = artifact.load(out / "artifact.safetensors").header
    assert len(header["replay"]["learning_rates"]) == 4


def test_a_fixed_initialization_is_rebuilt_to_the_last_digit(fixed, capsys, tmp_path):
    out, _ = fixed
    called(capsys, "evaluate", out / "artifact.safetensors", "--json", tmp_path / "judged.json")
    judged = json.loads((tmp_path / "judged.json").read_text())
    report = json.loads((out / "report.json").read_text())
    assert judged["accuracy"] == report["accuracy"]
    assert judged["before"] == report["before"]


def test_another_jax_that_draws_other_weights_is_noticed(fixed, capsys, tmp_path):
    made = artifact.load(fixed[0] / "artifact.safetensors")
    made.header["replay"]["weights"]["sum"] += 1.0
    artifact.save(made, tmp_path / "other.safetensors")
    error = refused(capsys, "evaluate", tmp_path / "other.safetensors")
    assert "draws other initial weights" in error
    made.header["replay"]["weights"]["sum"] = "1.0"
    artifact.save(made, tmp_path / "lie.safetensors")
    assert "cannot be replayed" in refused(capsys, "evaluate", tmp_path / "lie.safetensors")


@pytest.mark.long
def test_other_judges(fixed, capsys, tmp_path):
    path = fixed[0] / "artifact.safetensors"
    result = tmp_path / "judged.json"
    called(
        capsys, "evaluate", path, "--network=convnet", "--width=4", "--students=3", "--json", result
    )
    judged = json.loads(result.read_text())
    assert (judged["network"], judged["accuracy"]["students"]) == ("convnet", 3)
    called(
        capsys, "evaluate", path, "--ordinary", "--students=2", "--epochs=2",
        "--learning-rate=0.01", "--json", result,
    )  # fmt: skip
    judged = json.loads(result.read_text())
    assert (judged["network"], judged["accuracy"]["students"]) == ("mlp", 2)
    assert "at least 1" in refused(capsys, "evaluate", path, "--students=0")
    assert "--ordinary" in refused(capsys, "evaluate", path, "--epochs=2")
    assert "before" not in judged


def test_stored_weights_are_counted(fixed, capsys, tmp_path):
    out = tmp_path / "dd"
    called(
        capsys, "distill", "dd", "--out", out, "--init=fixed", "--store-weights",
        "--storage=float32", *NONE,
    )  # fmt: skip
    stored = artifact.load(out / "artifact.safetensors")
    weights = 64 * 8 + 8 + 8 * 8 + 8 + 8 * 10 + 10
    assert stored.theta["weights"].shape == (weights,)
    assert stored.ledger["floats"] == 20 * 64 + weights
    assert stored.ledger["bytes"]["other"] > 4 * weights
    report = json.loads((out / "report.json").read_text())
    assert report["accuracy"] == json.loads((fixed[0] / "report.json").read_text())["accuracy"]


@pytest.mark.long
def test_random_networks_and_fewer_images_than_classes(capsys, tmp_path):
    out = tmp_path / "dd"
    called(
        capsys, "distill", "dd", "--out", out, "--steps=1", "--images=5", "--labels=learned",
        "--networks=2", *[o for o in NONE if not o.startswith("--steps")],
    )  # fmt: skip
    stored = artifact.load(out / "artifact.safetensors")
    assert stored.theta["labels"].shape == (5, 10)
    report = json.loads((out / "report.json").read_text())
    assert report["accuracy"]["students"] == 3
    assert report["bytes"]["labels"] == 2 * 50


@pytest.mark.long
def test_adaptation_and_attack(capsys, tmp_path):
    source = ["--source.count=5", "--source.epochs=2", "--source.batch-size=64", "--networks=2"]
    store = ["--experts", tmp_path / "experts"]
    here, there = tmp_path / "source.npz", tmp_path / "elsewhere" / "source.npz"
    np.savez(here, **sources.read("digits").arrays())
    called(
        capsys, "distill", "dd", "--out", tmp_path / "adapt", "--adapt-from", here, *source,
        *store, *NONE,
    )  # fmt: skip
    there.parent.mkdir()
    here.rename(there)
    report = json.loads((tmp_path / "adapt" / "report.json").read_text())
    assert report["accuracy"]["students"] == 3
    assert report["before"]["mean"] > 0.2  # they are trained
    made = tmp_path / "adapt" / "artifact.safetensors"
    assert "source.npz" in refused(capsys, "evaluate", made, *store)
    store += ["--adapt-from", there]
    called(capsys, "evaluate", made, *store, "--json", tmp_path / "judged.json")
    judged = json.loads((tmp_path / "judged.json").read_text())
    assert judged["accuracy"] == report["accuracy"]
    made = artifact.load(tmp_path / "adapt" / "artifact.safetensors")
    del made.header["architecture"]["compute"]  # an artifact of before there was a choice
    artifact.save(made, tmp_path / "older.safetensors")
    called(
        capsys, "evaluate", tmp_path / "older.safetensors", *store,
        "--json", tmp_path / "judged.json",
    )  # fmt: skip
    assert json.loads((tmp_path / "judged.json").read_text())["accuracy"] == report["accuracy"]
    made.header["replay"]["unseen"] = 5
    artifact.save(made, tmp_path / "lie.safetensors")
    error = refused(capsys, "evaluate", tmp_path / "lie.safetensors", *store)
    assert "keeps 5 of 5 pretrained networks" in error
    made.header["replay"]["source"] = {"training": {}}
    artifact.save(made, tmp_path / "lie.safetensors")
    error = refused(
        capsys, "evaluate", tmp_path / "lie.safetensors", "--dataset=digits", *store[:2]
    )
    assert "recipe of the pretrained networks is not one" in error
    called(
        capsys, "distill", "dd", "--out", tmp_path / "attack", "--attack=0:1", *source, *store[:2],
        *NONE,
    )  # fmt: skip
    found = json.loads((tmp_path / "attack" / "report.json").read_text())["attack"]
    assert (found["class"], found["target"]) == (0, 1)
    for name in ("flipped_before", "flipped_after", "others_before", "others_after"):
        assert np.isfinite(found[name]["mean"])


@pytest.mark.long
def test_attacked_networks_with_batch_norm(capsys, tmp_path):
    """Before the attack their statistics are of the images that they were pretrained on."""
    options = [o for o in NONE if o not in ("--network=mlp", "--width=8")]
    called(
        capsys, "distill", "dd", "--out", tmp_path / "attack", "--attack=0:1", "--network=convnet",
        "--width=4", "--depth=1", "--norm=batch", "--source.count=4", "--source.epochs=3",
        "--source.batch-size=32", "--source.learning-rate=0.1", "--networks=1",
        "--experts", tmp_path / "experts", *options,
    )  # fmt: skip
    report = json.loads((tmp_path / "attack" / "report.json").read_text())
    assert report["attack"]["others_before"]["mean"] > 0.5  # they are trained
    called(
        capsys, "evaluate", tmp_path / "attack" / "artifact.safetensors", "--experts",
        tmp_path / "experts", "--json", tmp_path / "judged.json",
    )  # fmt: skip
    judged = json.loads((tmp_path / "judged.json").read_text())
    for name in ("accuracy", "before", "attack"):
        assert judged[name] == report[name]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--images=5"], "--labels learned"),
        (["--images=20", "--steps=3"], "dealt out"),
        (["--images=0"], "images"),
        (["--attack=0-1"], "0:1"),
        (["--attack=0:0"], "different"),
        (["--attack=0:10"], "different"),
        (["--attack=0:1", "--adapt-from=digits"], "choose one"),
        (["--adapt-from=digits", "--source.count=3"], "--source.count"),
        (["--adapt-from=nonesuch"], "nonesuch"),
        (["--attack=0:1", "--zca"], "--zca"),
        (["--store-weights"], "--init fixed"),
        (["--window=5"], "window"),
        (["--real-batch=0"], "real_batch"),
        (["--unseen=0"], "unseen"),
        (["--network=lenet", "--width=4"], "width"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input(options, named, capsys, tmp_path):
    out = tmp_path / "dd"
    names = {option.split("=")[0] for option in options}
    kept = [option for option in NONE if option.split("=")[0] not in names]
    assert named in refused(capsys, "distill", "dd", "--out", out, *kept[:-1], *options)
    assert not out.exists()

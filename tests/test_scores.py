"""Scores between accuracies, against DD-Ranking's formulas and FIELD's check values."""

import json

import numpy as np
import pytest
from test_artifact import make
from test_cli import called, no_folder_of_the_users, refused  # noqa: F401

from d3jax import artifact, data
from d3jax.evaluate import scores
from d3jax.run.scores import of_accuracies, set_aside
from d3jax.types import InputError


def test_check_values():
    """Worked out by hand from the formulas in DD-Ranking's documentation."""
    assert scores.label_robust_score(0.0, 0.0) == pytest.approx(0.2689, abs=5e-5)
    assert scores.label_robust_score(0.20, 0.30) == pytest.approx(0.2482, abs=5e-5)
    assert scores.label_robust_score(1.0, -1.0) == pytest.approx(1.0)
    assert scores.label_robust_score(-1.0, 1.0) == pytest.approx(0.0)
    assert scores.augmentation_robust_score(-0.05, -0.05) == pytest.approx(0.2482, abs=5e-5)
    # Version 0.2.0 of the package puts per cents into the exponent.
    theirs = scores.in_per_cent(scores.label_robust_score, 0.20, 0.30)
    assert theirs == pytest.approx(-0.1537, abs=5e-5)
    assert scores.label_robust_score(0.2, 0.3, weight=1.0) == pytest.approx(
        (np.exp(0.2) - np.exp(-1)) / (np.e - np.exp(-1))
    )


def test_scores_of_accuracies():
    found = of_accuracies(
        {
            "real, hard labels": 0.85, "synthetic, hard labels": 0.55, "synthetic": 0.6,
            "random": 0.4, "synthetic, no augmentation": 0.5, "random, no augmentation": 0.6,
        }
    )  # fmt: skip
    assert found["hlr"] == pytest.approx(0.30)
    assert found["ior"] == pytest.approx(0.20)
    assert found["lrs"] == pytest.approx(0.2482, abs=5e-5)
    # Half of the gain 0.2 with augmentation and of the loss 0.1 without it is 0.05.
    assert found["ars"] == pytest.approx((np.exp(0.05) - np.exp(-1)) / (np.e - np.exp(-1)))
    assert found["ddranking_0.2.0"]["lrs"] == pytest.approx(-0.1537, abs=5e-5)


def distilled(digits, per_class, targets=None):
    """Real digits as an artifact."""
    normalization = data.Normalization.of(digits.train_images)
    rows = np.concatenate([np.flatnonzero(digits.train_labels == k)[:per_class] for k in range(10)])
    theta = {"data": {"images": normalization.apply(digits.train_images[rows])}}
    specification = {
        "kind": "pixels", "image_shape": [8, 8, 1], "num_classes": 10, "num_items": len(rows),
    }  # fmt: skip
    if targets is not None:
        specification["label_kind"], theta["labels"] = "probabilities", targets
    return make(
        specification, theta, class_names=digits.class_names, seed=3,
        normalization={"mean": [float(normalization.mean[0])], "sd": [float(normalization.sd[0])],
                       "zca": None},
        architecture={"network": "mlp", "width": 16}, student_learning_rate=0.05,
        protocol={"students": 2, "epochs": 20, "batch_size": 32, "augmentation": ["crop"]},
    ), normalization  # fmt: skip


def test_random_images_have_the_labels_of_the_distilled_ones():
    digits = data.load("digits")
    targets = np.random.default_rng(0).dirichlet(np.ones(10), 20).astype(np.float32)
    made, normalization = distilled(digits, 2, targets)
    random = scores.random_images(made, digits, normalization, 0)
    np.testing.assert_allclose(random.sample().targets, made.sample().targets)
    known = {x.tobytes(): y for x, y in zip(digits.train_images, digits.train_labels)}
    found = normalization.invert(np.asarray(random.sample().images))
    assert [known[x.tobytes()] for x in found] == np.repeat(np.arange(10), 2).tolist()
    hard = scores.hardened(made.synthetic).sample(made.decodable(), None, [3, 4]).targets
    np.testing.assert_array_equal(hard, np.eye(10)[made.sample().targets[3:5].argmax(1)])
    few = make(
        {**made.header["parametrization"], "num_items": 5},
        {"data": {"images": np.zeros((5, 8, 8, 1))}, "labels": targets[:5]},
    )
    with pytest.raises(InputError, match="5 items for 10 classes"):
        scores.random_images(few, digits, normalization, 0)


def test_validation_images_are_apart_from_training_images():
    digits = data.load("digits")
    split = set_aside(digits, 3)
    assert len(split.validation_labels) == len(digits.train_labels) // 10
    together = np.concatenate([split.train_images, split.validation_images])
    assert sorted(x.tobytes() for x in together) == sorted(x.tobytes() for x in digits.train_images)
    assert set_aside(split, 0) is split


@pytest.mark.long
def test_scores_by_the_command(tmp_path, capsys):
    """Real images as "distilled" ones gain nothing over random ones; rates are kept in the JSON."""
    made, _ = distilled(data.load("digits"), 5)
    artifact.save(made, tmp_path / "a.safetensors")
    judged = tmp_path / "judged.json"
    text = called(
        capsys, "evaluate", tmp_path / "a.safetensors", "--scores", "--learning-rates", 0.05, 0.1,
        "--real-epochs=10", "--experts", tmp_path / "experts", "--json", judged,
    )  # fmt: skip
    found = json.loads(judged.read_text())["scores"]
    means = {name: own["mean"] for name, own in found["accuracies"].items()}
    assert means["synthetic, hard labels"] == means["synthetic"]  # labels are hard already
    assert means["real, hard labels"] > 0.7
    assert abs(found["ior"]) < 0.15
    assert found["hlr"] == pytest.approx(means["real, hard labels"] - means["synthetic"])
    assert 0 < found["lrs"] < found["ars"] < 1
    assert found["random_images_per_class"] == 5
    tried = found["accuracies"]["random"]["tried"]
    assert sorted(map(float, tried)) == pytest.approx([0.05, 0.1], abs=1e-6)
    assert "LRS, label-robust" in text
    assert "fraction of 1" in refused(
        capsys, "evaluate", tmp_path / "a.safetensors", "--scores", "--real-accuracy=85",
        "--learning-rates", 0.05, "--epochs=1",
    )  # fmt: skip


def test_random_images_of_a_set_whose_classes_have_unequal_counts():
    """As files of others may be: the labels 0, 0, 0, 0, 1, 2, in that order."""
    digits = data.load("digits")
    labels = np.eye(10, dtype=np.float32)[[*([0] * 4), *range(10)]] * 0.8 + 0.02
    made, normalization = distilled(digits, 2, np.eye(10, dtype=np.float32).repeat(2, 0))
    spec = {**made.header["parametrization"], "num_items": 14}
    uneven = make(spec, {"data": {"images": np.zeros((14, 8, 8, 1))}, "labels": labels})
    random = scores.random_images(uneven, digits, normalization, 0)
    assert np.asarray(random.sample().targets).argmax(1).tolist() == [*np.repeat(range(10), 2)]

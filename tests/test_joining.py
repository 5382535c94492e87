"""d3jax.artifact.join, run.subtasks: parts distilled together or as jobs of their own."""

import dataclasses

import jax
import numpy as np
import pytest

from d3jax import artifact, cli, data, networks
from d3jax.artifact import join as joining
from d3jax.evaluate import Protocol
from d3jax.experts import Options as ExpertOptions
from d3jax.host import launch
from d3jax.host.progress import Reporter
from d3jax.methods.d3 import D3Options
from d3jax.methods.mtt import MTTOptions
from d3jax.run import commands
from d3jax.run import judge as judging
from d3jax.run import options as config
from d3jax.run import run as jobs
from d3jax.run.join import join
from d3jax.run.options import Parametrization, command
from d3jax.synthetic import pixels
from d3jax.types import InputError

SUBTASKS = "7,8,9:0-6"  # of unequal size, the classes not in order
CLASSES = [[7, 8, 9], [0, 1, 2, 3, 4, 5, 6]]


def options(out, store, **changes):
    return command("mtt")(
        data=config.Data(train_limit=200, test_limit=50, validation=40),
        architecture=config.Architecture(network="mlp", width=4),
        expert=ExpertOptions(count=1, epochs=2),
        mtt=MTTOptions(inner_steps=2, max_start_epoch=1, inner_augmentation=()),
        student=Protocol(students=2, epochs=4, augmentation=()),
        parametrization=Parametrization(images_per_class=2, labels=changes.pop("labels", "hard")),
        outer_steps=3,
        baselines=(),
        storage="float32",
        subtasks=SUBTASKS,
        experts=store,
        out=out,
        **changes,
    )


def test_artifacts_of_other_runs_are_not_taken_for_subtasks(tmp_path):
    there = tmp_path / "out" / "subtask-0"
    there.mkdir(parents=True)
    (there / "artifact.safetensors").touch()
    with pytest.raises(InputError, match="is of a run of its own; choose another --out"):
        jobs.run(options(tmp_path / "out", tmp_path), Reporter())


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("experts")


@pytest.fixture(scope="module")
def together(store, tmp_path_factory):
    """A run of both subtasks, with an expert's labels: its report and its artifact."""
    out = tmp_path_factory.mktemp("runs") / "together"
    report = jobs.run(options(out, store, labels="expert"), Reporter())
    return report, artifact.load(out / "artifact.safetensors")


@pytest.fixture(scope="module")
def apart(store, tmp_path_factory):
    """The artifacts' files of the same subtasks as jobs of their own."""
    folder = tmp_path_factory.mktemp("apart")
    for number in range(2):
        jobs.run(options(folder / str(number), store, subtask=number), Reporter())
    return [folder / str(number) / "artifact.safetensors" for number in range(2)]


@pytest.mark.long
def test_jobs_of_their_own_joined_are_the_joint_run(together, apart, store, tmp_path):
    report, whole = together
    arguments = commands.Join(
        artifacts=tuple(reversed(apart)),
        out=tmp_path / "joined.safetensors",
        labels="expert",
        data=config.Data(train_limit=200, validation=40),
        expert=ExpertOptions(count=1, epochs=2),
        experts=store,
    )
    made = join(arguments, Reporter())
    jax.tree.map(np.testing.assert_array_equal, made.theta, whole.theta)
    assert made.header == whole.header
    assert artifact.load(tmp_path / "joined.safetensors").header == whole.header
    assert report["accuracy"]["students"] == 2
    assert report["floats"] == 20 * 64 + 20 * 10
    assert report["bytes"]["images"] == 4 * 20 * 64
    assert report["bytes"]["labels"] == 4 * 20 * 10
    for wrong in ({"train_limit": 150}, {"train_limit": 150, "zca": True}):
        other = dataclasses.replace(arguments, data=config.Data(validation=40, **wrong))
        with pytest.raises(InputError, match="normalized by other images than these"):
            join(other, Reporter())
    plain = joining.join([artifact.load(path) for path in apart])
    assert "labels" not in plain.theta
    rates = [artifact.load(path).header["student_learning_rate"] for path in apart]
    expected = (rates[0] ** 3 * rates[1] ** 7) ** 0.1
    assert plain.header["student_learning_rate"] == pytest.approx(expected)


@pytest.mark.long
def test_classes_come_back_in_their_order(together, apart):
    """The images began as real ones of their classes, and three steps have not moved them far."""
    _, whole = together
    dataset = data.load("digits", train_limit=200, validation=40)
    normalization = data.Normalization.of(dataset.train_images)
    real = normalization.apply(dataset.train_images).reshape(200, -1)
    images = np.asarray(whole.sample().images).reshape(20, 1, -1)
    nearest = dataset.train_labels[np.square(images - real).sum(2).argmin(1)]
    np.testing.assert_array_equal(nearest, np.repeat(np.arange(10), 2))
    plain = joining.join([artifact.load(path) for path in apart])
    np.testing.assert_array_equal(plain.sample().targets, np.repeat(np.eye(10), 2, axis=0))
    labels = np.asarray(whole.sample().targets)
    np.testing.assert_allclose(labels.sum(1), 1, rtol=1e-5)
    assert labels.max() < 1


@pytest.mark.long
def test_a_part_is_judged_on_its_own_classes(apart, tmp_path):
    judged = judging.judge(apart[0], commands.Judgement(test_limit=50), Reporter())
    dataset = data.load("digits", test_limit=50)
    of_these = int(np.isin(dataset.test_labels, CLASSES[0]).sum())
    accuracies = np.asarray(judged["accuracy"]["per_student"])
    np.testing.assert_allclose(accuracies * of_these, np.rint(accuracies * of_these), atol=1e-5)
    assert artifact.load(apart[0]).header["class_names"] == ["7", "8", "9"]


@pytest.mark.long
def test_d3_in_parts_with_an_experts_labels(store, tmp_path):
    """Each part has a decoder and statistics of its own; students visit the means too."""
    plain = options(tmp_path / "d3", store, labels="expert")
    run = command("d3")(
        **{f.name: getattr(plain, f.name) for f in dataclasses.fields(config.Divided)},
        d3=D3Options(trajectory=False, mmd_samples=2),
    )
    gaussians = Parametrization(
        latents_per_class=1, latent_size=3, decoder_width=8, labels="expert"
    )
    run = dataclasses.replace(run, parametrization=gaussians, subtasks="2")
    report = jobs.run(run, Reporter())
    whole = artifact.load(run.out / "artifact.safetensors")
    assert whole.header["protocol"]["with_means"]
    assert set(whole.theta) == {"data", "decoder", "statistics", "labels"}
    assert report["bytes"]["labels"] == 4 * 10 * 10
    parts = [artifact.load(run.out / f"subtask-{n}" / "artifact.safetensors") for n in range(2)]
    assert not any(part.header["protocol"]["with_means"] for part in parts)
    decoded = np.asarray(whole.sample().images)
    for part, classes in zip(parts, (slice(0, 5), slice(5, 10)), strict=True):
        np.testing.assert_allclose(part.sample().images, decoded[classes], atol=1e-5)


def by_hand(classes, names="abcd", **changes):
    """A part that nobody has distilled."""
    data_ = pixels.create(image_shape=(8, 8, 1), num_classes=len(classes), num_items=len(classes))
    fields = {
        "method": "mtt",
        "dataset": "letters",
        "class_names": tuple(names[k] for k in classes),
        "normalization": {"mean": [0.5], "sd": [0.5], "zca": None},
        "architecture": {"network": "mlp"},
        "parametrization": {
            "kind": "pixels", "image_shape": [8, 8, 1], "num_classes": len(classes),
            "num_items": len(classes),
        },
        "student_learning_rate": 0.01,
        "protocol": {},
        "seed": 0,
        "subtask": {"classes": list(classes), "class_names": list(names)},
    }  # fmt: skip
    theta = {"data": {"images": np.zeros((data_.num_items, 8, 8, 1), np.float32)}}
    return artifact.create(theta, **{**fields, **changes})


def test_wrong_joins_are_refused(tmp_path, capsys):
    good = by_hand([0, 2])
    assert joining.join([by_hand([3, 1]), good]).header["class_names"] == list("abcd")
    whole = by_hand([0, 1, 2, 3], subtask=None)
    two_each = {**by_hand([1, 3]).header["parametrization"], "num_items": 4}
    larger = by_hand([1, 3], parametrization=two_each)._replace(
        theta={"data": {"images": np.zeros((4, 8, 8, 1), np.float32)}}
    )
    for others, message in (
        ([], "no part has class 1 \\(b\\), and 1 more"),
        ([by_hand([1, 2, 3])], "class 2 \\(c\\) is in part 0 and in part 1"),
        ([by_hand([1, 3], names="abce")], "different classes as a whole"),
        ([by_hand([1, 3], seed=1)], "differs from part 0 in its seed: 1 instead of 0"),
        ([by_hand([1, 3], dataset="others")], "in its dataset"),
        (
            [by_hand([1, 3], normalization={"mean": [0.4], "sd": [0.5], "zca": None})],
            "in its normalization",
        ),
        ([larger], "as many items for each class"),
        ([whole], "part 1 is of all its classes, not of a subtask"),
    ):
        with pytest.raises(InputError, match=message):
            joining.join([good, *others])
    with pytest.raises(InputError, match="name the artifacts"):
        joining.join([])
    learned = {**good.header["parametrization"], "label_kind": "free"}
    labelled = good._replace(
        header={**good.header, "parametrization": learned},
        theta={**good.theta, "labels": np.zeros((2, 2), np.float32)},
    )
    path = tmp_path / "part.safetensors"
    artifact.save(labelled, path)
    other = tmp_path / "other.safetensors"
    artifact.save(by_hand([1, 3], parametrization=learned)._replace(theta=labelled.theta), other)
    wanted = commands.Join((path, other), tmp_path / "joined.safetensors", "expert")
    with pytest.raises(InputError, match="parts with hard labels"):
        join(wanted, Reporter())
    artifact.save(good, path)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["join", str(path), "--out", str(tmp_path / "joined.safetensors")])
    assert stopped.value.code == 2
    assert "no part has class 1" in capsys.readouterr().err
    assert not (tmp_path / "joined.safetensors").exists()


@pytest.mark.parametrize(
    ("subtask", "message"),
    [
        ({"classes": [0, 1], "class_names": list("abcd")}, "other classes than the artifact"),
        ({"classes": [0, 4], "class_names": list("abcd")}, "does not say which classes"),
        ({"classes": "02"}, "does not say which classes"),
        ([0, 2], "does not say which classes"),
    ],
)
def test_a_header_that_lies_about_its_subtask(tmp_path, subtask, message):
    made = by_hand([0, 2])
    artifact.save(made._replace(header={**made.header, "subtask": subtask}), tmp_path / "lie")
    with pytest.raises(InputError, match=message):
        artifact.load(tmp_path / "lie")


def test_labels_of_a_network_of_all_classes():
    whole = joining.join([by_hand([0, 2]), by_hand([1, 3])])
    network = networks.create("mlp", image_shape=(8, 8, 1), num_classes=4, width=3)
    params = network.init(jax.random.key(0))
    soft = joining.labelled(whole, network, params)
    expected = jax.nn.softmax(network.apply(params, whole.sample().images))
    np.testing.assert_allclose(soft.sample().targets, expected, atol=1e-3)
    assert soft.theta["labels"].dtype == np.float16  # as the images are
    assert soft.ledger["bytes"]["labels"] == 2 * 16


def test_labels_in_bytes(tmp_path):
    """A byte each: of 255 levels, and a quarter of what float32 takes."""
    whole = joining.join([by_hand([0, 2]), by_hand([1, 3])])
    network = networks.create("mlp", image_shape=(8, 8, 1), num_classes=4, width=3)
    params = network.init(jax.random.key(0))
    made = joining.labelled(whole, network, params, "int8")
    artifact.save(made, tmp_path / "whole")
    found = artifact.load(tmp_path / "whole")
    expected = np.asarray(jax.nn.softmax(network.apply(params, whole.sample().images)))
    got = np.asarray(found.sample().targets)
    assert (np.abs(got - expected) <= 1.02 / 255 * expected.max(1, keepdims=True)).all()
    np.testing.assert_allclose(got.sum(1), 1, rtol=1e-6)
    assert found.theta["labels"].dtype == np.uint8
    assert found.ledger["bytes"]["labels"] == 16
    for wrong, message in (
        ({**made.theta, "labels": 0 * made.theta["labels"]}, "an item without a label"),
        ({**made.theta, "data": {"0": {"images": np.zeros((2, 8, 8, 1), np.uint8)},
                                 "1": made.theta["data"]["1"]}}, "only given labels"),
    ):  # fmt: skip
        artifact.save(made._replace(theta=wrong), tmp_path / "wrong")
        with pytest.raises(InputError, match=message):
            artifact.load(tmp_path / "wrong")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subtasks": None, "subtask": 0}, "say how many there are"),
        ({"subtask": 2}, "subtask must be from 0 to 1, not 2"),
        ({"subtasks": "6"}, "a subtask needs two classes or more to tell apart"),
        ({"subtasks": "11"}, "cut into 1 to 10"),
        ({"subtask": 0, "labels": "expert"}, "leave --labels expert out"),
        ({"label_storage": "int8"}, "add --labels expert"),
        ({"processes": launch.Processes(distributed=True), "subtasks": None}, "give --subtasks"),
    ],
)
def test_options_that_do_not_fit(tmp_path, changes, message):
    labels = {"labels": changes.pop("labels")} if "labels" in changes else {}
    wrong = dataclasses.replace(options(tmp_path / "out", tmp_path, **labels), **changes)
    with pytest.raises(InputError, match=message):
        jobs.run(wrong, Reporter())
    assert not (tmp_path / "out").exists()

"""Runs under a teacher: it is trained once, kept, looked at, and refused where it is none."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax import artifact, experts
from d3jax.evaluate import Protocol
from d3jax.experts.store import Snapshots
from d3jax.host.progress import Reporter
from d3jax.methods.dwa import DWAOptions
from d3jax.methods.rded import RDEDOptions
from d3jax.run import judge as judging
from d3jax.run import options as config
from d3jax.run import run as jobs
from d3jax.run import teacher
from d3jax.run.commands import Judgement
from d3jax.run.job import make_world
from d3jax.run.options import Parametrization, command
from d3jax.run.resolve import resolved
from d3jax.types import InputError

SMALL = {
    "data": config.Data(train_limit=200, test_limit=50),
    "architecture": config.Architecture(width=4, depth=2),
    "expert": dataclasses.replace(experts.TEACHER, epochs=4, batch_size=16),
    "student": Protocol(students=1, epochs=2, augmentation=()),
    "choose_learning_rate": False,
    "outer_steps": 2,
    "baselines": (),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("experts")


@pytest.fixture(scope="module")
def made(store, tmp_path_factory):
    options = command("dwa")(
        **SMALL,
        dwa=DWAOptions(adjustment_steps=1),
        parametrization=Parametrization(labels="expert"),
        experts=store,
        out=tmp_path_factory.mktemp("runs") / "dwa",
    )
    jobs.run(options, Reporter())
    return options


def test_a_teacher_is_trained_once_and_labels_what_was_made(made, store, tmp_path, capsys):
    found = artifact.load(made.out / "artifact.safetensors")
    assert found.header["architecture"]["norm"] == "batch"
    assert found.theta["labels"].shape == (10, 10)
    np.testing.assert_allclose(found.theta["labels"].sum(1), 1, atol=0.01)
    rows = [json.loads(line) for line in (made.out / "metrics.jsonl").read_text().splitlines()]
    assert {"statistics/cross_entropy", "statistics/statistics"} < set(rows[0])
    (folder,) = store.iterdir()
    training = json.loads((folder / "config.json").read_text())["training"]
    assert training["augmentation"] == ["crop"]  # digits are not mirrored
    assert training["momentum"] == 0.9
    capsys.readouterr()
    other = command("rded")(
        **SMALL, rded=RDEDOptions(crops=2), experts=store, out=tmp_path / "rded"
    )
    jobs.run(other, Reporter())
    said = " ".join(capsys.readouterr().out.split())
    assert "experts: found in" in said
    share = json.loads((folder / "teacher.json").read_text())["accuracy"]
    assert f"the teacher is right on {share:.1%} of its training images" in said
    patches = artifact.load(tmp_path / "rded" / "artifact.safetensors").theta["data"]["images"]
    assert len(patches) == 10


@pytest.mark.long
def test_a_teacher_that_is_shipped_labels_baselines_too_and_is_counted(store, tmp_path):
    """Beside whole images of the same number: a random choice and RDED's, and hard labels."""
    student = Protocol(students=1, epochs=2, augmentation=(), views="whole", temperature=4.0)
    options = command("dwa")(
        **{**SMALL, "student": student, "baselines": ("random", "rded", "random_hard")},
        dwa=DWAOptions(adjustment_steps=0),
        parametrization=Parametrization(labels="teacher"),
        baseline_learning_rates=(0.01,),
        experts=store,
        out=tmp_path / "teacher",
    )
    report = jobs.run(options, Reporter())
    found = artifact.load(options.out)
    held, params = report["bytes"], found.theta["teacher"]["params"]
    assert held["images"] == 2 * 10 * 64
    pairs = 2 * 2 * 4  # mean and variance of two batch norms of four channels
    assert held["teacher"] == 2 * (len(params) + pairs)
    rows = report["baselines"]
    assert {name: row["images_per_class"] for name, row in rows.items()} == dict.fromkeys(rows, 1)
    header = abs(rows["random"]["bytes"] - held["total"])
    assert header < 400
    assert rows["random"]["bytes"] - rows["random_hard"]["bytes"] > held["teacher"]
    judged = judging.judge(options.out, Judgement(test_limit=50), Reporter())
    assert judged["accuracy"] == report["accuracy"]
    changed = {**found.theta["teacher"], "statistics": ((np.zeros(4), -np.ones(4)),) * 2}
    bad = found._replace(
        theta={**found.theta, "teacher": jax.tree.map(lambda x: np.asarray(x, np.float16), changed)}
    )
    artifact.save(bad, tmp_path / "bad.safetensors")
    with pytest.raises(InputError, match="holds a negative variance"):
        artifact.load(tmp_path / "bad.safetensors")


@pytest.mark.long
def test_labels_of_views_are_stored_and_those_of_other_views_refused(store, tmp_path):
    student = Protocol(students=1, steps=6, batch_size=4, augmentation=(), views="whole")
    options = command("rded")(
        **{**SMALL, "student": student, "baselines": ("random",)},
        rded=RDEDOptions(crops=1),
        parametrization=Parametrization(labels="views"),
        baseline_learning_rates=(0.01,),
        experts=store,
        out=tmp_path / "views",
    )
    report = jobs.run(options, Reporter())
    # Two epochs of three steps of four views, the last two of which weigh nothing.
    assert report["bytes"]["labels"] == 2 * 2 * 12 * 10
    assert artifact.load(options.out).header["teaching"]["visits"] == 12
    other = dataclasses.replace(options, student=dataclasses.replace(student, batch_size=5))
    with pytest.raises(InputError, match=r"views with student\.batch_size 4, and students would"):
        jobs.run(other, Reporter())
    with pytest.raises(InputError, match="of 2 epochs of 12 views, and students would see 3"):
        judging.judge(options.out, Judgement(epochs=3), Reporter())


def test_a_teacher_that_knows_nothing_or_less_than_before_is_refused(made, tmp_path):
    dataset, normalization = made.data.load(0)
    world = make_world(dataset, normalization, resolved(made, dataset).architecture)
    nothing = jnp.zeros(experts.number_of_parameters(world.network))
    with pytest.raises(InputError, match="no better than chance: train it longer"):
        teacher.check(tmp_path, nothing, world, Reporter())
    assert not list(tmp_path.iterdir())
    stored = Snapshots(next(iter(made.experts.iterdir())))
    (tmp_path / "teacher.json").write_text('{"accuracy": 1.0}')
    with pytest.raises(InputError, match=r"and was on 100\.0% when it was trained"):
        teacher.check(tmp_path, jnp.asarray(stored.read(0, 0)), world, Reporter())


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("dwa", {"architecture": config.Architecture(network="mlp", width=4)}, "mlp has none"),
        ("dwa", {"architecture": config.Architecture(norm="instance")}, "convnet has none"),
        ("dwa", {"parametrization": Parametrization(labels="learned")}, "learns no labels"),
        ("rded", {"parametrization": Parametrization(kind="gaussian")}, "RDED chooses pixels"),
        ("rded", {"rded": RDEDOptions(images=500)}, "the smallest class has"),
        ("rded", {"rded": RDEDOptions(factor=9)}, "81 patches a class"),
        ("mtt", {"parametrization": Parametrization(labels="views")}, "which mtt has none of"),
        ("mtt", {"baselines": ("rded",)}, "rded is a baseline of methods with a teacher"),
        ("mtt", {"baselines": ("random_expert",)}, "random_expert has the labels of the data's"),
        ("dwa", {"parametrization": Parametrization(labels="teacher")}, "--student.views padded"),
        (
            *(
                "dwa",
                {"parametrization": Parametrization(labels="expert"), "label_storage": "int8"},
            ),
            "a byte keeps too little",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_training(method, changes, message, tmp_path):
    if "label_storage" in changes:
        changes = {**changes, "student": Protocol(temperature=20.0)}
    run = command(method)(**{**SMALL, **changes}, out=tmp_path / "run")
    with pytest.raises(InputError, match=message):
        jobs.run(run, Reporter())
    assert not (tmp_path / "run").exists()

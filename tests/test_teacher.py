"""Runs under a teacher: it is trained once, kept, looked at, and refused where it is none."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from d3jax import artifact, experts
from d3jax.evaluate import Protocol
from d3jax.experts.store import Snapshots
from d3jax.host.progress import Reporter
from d3jax.methods.dwa import DWAOptions
from d3jax.methods.rded import RDEDOptions
from d3jax.run import options as config
from d3jax.run import run as jobs
from d3jax.run import teacher
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
    ],
)
def test_what_cannot_be_is_refused_before_training(method, changes, message, tmp_path):
    run = command(method)(**{**SMALL, **changes}, out=tmp_path / "run")
    with pytest.raises(InputError, match=message):
        jobs.run(run, Reporter())
    assert not (tmp_path / "run").exists()

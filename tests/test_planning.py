"""d3jax.run.plan: what a run would take, against what is worked out by hand."""

from functools import partial

import pytest

from d3jax import cli
from d3jax.experts import Options as ExpertOptions
from d3jax.host.progress import Reporter
from d3jax.methods.dd import DDOptions
from d3jax.methods.mtt import MTTOptions
from d3jax.methods.seqmatch import SeqMatchOptions
from d3jax.run import api, commands
from d3jax.run import options as config
from d3jax.run import run as jobs
from d3jax.run.options import Parametrization, command
from d3jax.run.plan import _duration, plan
from d3jax.types import InputError

# A perceptron of width 4 on 64 pixels: 64 x 4 + 4, 4 x 4 + 4, 4 x K + K parameters.
PARAMETERS = {4: 260 + 20 + 20, 3: 260 + 20 + 15, 10: 260 + 20 + 50}
SMALL = {
    "data": config.Data(train_limit=200, test_limit=50),
    "architecture": config.Architecture(network="mlp", width=4),
}


KINDS: dict = {"mtt": MTTOptions, "seqmatch": SeqMatchOptions}


def matching(tmp_path, kind="mtt", own=(), **changes):
    chosen = {"inner_steps": 2, "max_start_epoch": 1, "inner_augmentation": ("flip",), **dict(own)}
    return command(kind)(
        **SMALL,
        expert=ExpertOptions(count=3, epochs=2),
        **{kind: KINDS[kind](**chosen)},
        parametrization=Parametrization(images_per_class=2),
        outer_steps=3600,
        out=tmp_path / "nowhere",
        **changes,
    )


@pytest.mark.long
def test_subtasks_of_unequal_size(tmp_path):
    """10 classes in 3 subtasks: one of four classes, two of three."""
    run = matching(tmp_path, subtasks="3")
    found = plan(commands.Plan(run, devices=1), Reporter())
    assert found["experts_bytes"] == 4 * 3 * 3 * (PARAMETERS[4] + 2 * PARAMETERS[3])
    assert (found["subtasks"], found["subtasks_per_device"]) == (3, 2)
    first, second = found["seconds_per_step"]
    seconds = found["seconds"]
    assert seconds["distill"] == pytest.approx(3600 * (first + 2 * second))
    parts = ("experts", "compile", "distill", "students", "baselines")
    assert all(seconds[part] > 0 for part in parts)
    assert seconds["total"] == pytest.approx(sum(seconds[part] for part in parts))
    # Subtasks have 200 images in all, 20 distilled. Experts: 3 of 2 epochs. Students: 5 of 300, at
    # four rates by five networks, twice.
    experts, students = 3 * 2 * 200, 300 * 20 * 5 * 2
    assert seconds["students"] > 0.5 * seconds["experts"] * students / experts
    assert found["host_bytes"] > found["device_bytes"] + 100e6
    # Two checkpoints: of 20 images of 64 pixels Adam or SGD keeps one at least.
    assert found["checkpoint_bytes"] > 2 * 2 * 20 * 64 * 4
    # The images and snapshots of two subtasks at least, and not a hundred times as much.
    least = 2 * (50 * 64 + 4 * 3 * 3 * PARAMETERS[3])
    assert least < found["device_bytes"] < 100 * least
    assert not (tmp_path / "nowhere").exists()


def test_as_if_the_data_set_were_larger(tmp_path):
    run = matching(tmp_path, subtasks="5")
    as_if = partial(commands.Plan, run, devices=5, classes=20, timed=False)
    few = plan(as_if(images=400), Reporter())
    many = plan(as_if(images=400_000), Reporter())
    assert few["subtasks_per_device"] == many["subtasks_per_device"] == 1
    assert few["experts_bytes"] == many["experts_bytes"] == 4 * 3 * 3 * 5 * PARAMETERS[4]
    assert many["device_bytes"] - few["device_bytes"] == (400_000 - 400) // 5 * (64 + 8)


@pytest.mark.long
def test_other_methods(tmp_path):
    sequence = matching(tmp_path, "seqmatch", {"subsets": 2})
    found = plan(commands.Plan(sequence, devices=1, timed=False), Reporter())
    assert found["experts_bytes"] == 2 * 4 * 3 * 3 * PARAMETERS[10]
    options = DDOptions(init="fixed", steps=1, passes=1, real_batch=8)
    images = command("dd")(**SMALL, dd=options, out=tmp_path / "nowhere")
    assert plan(commands.Plan(images, devices=1, timed=False), Reporter())["experts_bytes"] == 0


def test_experts_of_later_subsets(tmp_path):
    sequence = matching(tmp_path, "seqmatch", {"subsets": 2, "later_expert_epochs": 5})
    found = plan(commands.Plan(sequence, devices=1, timed=False), Reporter())
    assert found["experts_bytes"] == 4 * 3 * (3 + 6) * PARAMETERS[10]


@pytest.mark.long
@pytest.mark.parametrize(
    ("changes", "networks"),
    [
        ({"adapt_from": "digits", "source": ExpertOptions(count=5, keep="last"), "unseen": 3}, 5),
        ({}, 1),
    ],
)
def test_networks_of_dataset_distillation(tmp_path, changes, networks):
    options = DDOptions(steps=1, passes=1, networks=2, real_batch=8, **changes)
    stored = Parametrization(labels="hard" if changes else "expert")
    images = command("dd")(**SMALL, dd=options, parametrization=stored, out=tmp_path / "nowhere")
    found = plan(commands.Plan(images, devices=1), Reporter())
    assert found["experts_bytes"] == 4 * networks * PARAMETERS[10]
    assert found["seconds"]["experts"] > 0
    assert "students" not in found["seconds"]  # its steps are replayed


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("experts.free_bytes", r"does not fit: its experts need .* 1.0 kB are free"),
        ("_device_memory", r"does not fit: it needs .* on a device that has 1.0 kB"),
    ],
)
def test_what_does_not_fit_is_not_timed(tmp_path, monkeypatch, what, message):
    monkeypatch.setattr(f"d3jax.run.plan.{what}", lambda *_: 1000)
    monkeypatch.setattr("d3jax.run.pieces.Prepared.seconds_per_step", None)
    with pytest.raises(InputError, match=message):
        plan(commands.Plan(matching(tmp_path)), Reporter())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.26, "0.3 s"), (59.0, "59.0 s"), (90.0, "1.5 min"), (5400.0, "1.5 h"), (2e5, "2.3 days")],
)
def test_durations_are_readable(seconds, text):
    assert _duration(seconds) == text


def test_a_dry_run_plans_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("d3jax.run.run.plan", lambda options, *_: {"planned": options.method})
    run = matching(tmp_path, dry_run=True)
    assert jobs.run(run, Reporter()) == {"planned": run}
    with pytest.raises(InputError, match="dry_run makes nothing"):
        api.distill("mtt", "digits", out=tmp_path / "nowhere", dry_run=True)
    assert not (tmp_path / "nowhere").exists()


def test_the_command_line(capsys):
    for wrong, message in (
        (["--classes", "20", "--images", "10"], "10 images are not one for each of 20 classes"),
        (["--devices", "0"], "devices must be at least 1, not 0"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(["plan", *wrong, "d3"])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err

"""A method in one file, outside the package: all that follows from its spec."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_methods import skeleton

from d3jax import data
from d3jax.methods import registry
from d3jax.methods.registry import METHODS, register
from d3jax.run import options, subtasks
from d3jax.run.help import summary
from d3jax.run.resolve import resolved
from d3jax.types import InputError

RUN = [
    *("--network=mlp", "--width=4", "--train-limit=200", "--test-limit=50", "--outer-steps=4"),
    *("--student.students=2", "--student.epochs=3", "--baselines=random"),
    "--baseline-learning-rates=0.03",
]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A folder with an installed package that has the method, and nothing else."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "mean_package.py").write_text(skeleton())
    there = folder / "mean_package-1.0.dist-info"
    there.mkdir()
    (there / "METADATA").write_text("Metadata-Version: 2.1\nName: mean-package\nVersion: 1.0\n")
    (there / "entry_points.txt").write_text("[d3jax.methods]\nmean = mean_package\n")
    return folder


def called(folder, *arguments, code=0):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    run = subprocess.run(
        [sys.executable, "-m", "d3jax", *map(str, arguments)],
        cwd=Path(__file__).parent.parent, env=environment, text=True, capture_output=True,
    )  # fmt: skip
    assert run.returncode == code, run.stdout + run.stderr
    return run.stdout + run.stderr


@pytest.mark.long
def test_one_file_elsewhere_is_a_command_like_the_others(elsewhere, tmp_path):
    assert "the skeleton of a method" in called(elsewhere, "distill", "--help")
    text = called(elsewhere, "distill", "mean", "--help")
    assert "Real images of each class in a step. (default: 8)" in " ".join(text.split())
    assert "--expert." not in text, "it reads no experts"
    out = tmp_path / "mean"
    command = ("distill", "mean", *RUN, "--samples=4", "--out", out)
    assert "baseline random" in called(elsewhere, *command)
    report = json.loads((out / "report.json").read_text())
    assert report["method"] == "mean"
    assert report["baselines"]["random"]["accuracy"]["students"] == 2
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1]["mean/loss"] < rows[0]["mean/loss"]
    assert "is finished; this is its report" in called(elsewhere, *command)
    for path in (out / "report.json", out / "rows.json", out / "artifact.safetensors"):
        path.unlink()  # as a run that was killed after its outer steps
    assert "resuming at outer step 4" in called(elsewhere, *command)
    again = json.loads((out / "report.json").read_text())
    assert again["accuracy"] == report["accuracy"]
    error = called(elsewhere, *command, "--samples=5", code=2)
    assert "holds a run with mean.samples = 4, this one has 5" in error
    assert "time of outer steps" in called(elsewhere, "plan", "mean", *RUN)
    assert "known: d3, mtt, seqmatch, frepo, mgdd" in called(tmp_path, "distill", "mean", code=2)


def test_help_of_options_that_say_nothing_and_a_baseline_that_is_not_theirs(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Bare:
        rate: float = 0.5

    spec = METHODS["mtt"]._replace(name="bare", options=Bare, experts=None, resolve=lambda r, _: r)
    monkeypatch.setitem(METHODS._specs, "bare", spec)
    assert "--rate  not described (default: 0.5)" in summary("bare", "pixels")
    run = options.command("bare")(baselines=("best_random",))
    with pytest.raises(InputError, match="best_random is no baseline of bare"):
        resolved(run, data.load("digits"))


def test_a_data_set_that_is_given_is_the_one_that_is_cut_into_subtasks():
    given = data.load("digits", train_limit=200, test_limit=50)
    assert subtasks._read(options.command("d3")(subtasks="2"), given)[1] is given


def test_two_methods_of_one_name_are_refused():
    spec = METHODS["mtt"]
    with pytest.raises(InputError, match="two methods are called 'mtt'"):
        register(spec._replace(build=lambda options, setting: None))  # type: ignore[arg-type]
    assert METHODS["mtt"] is spec
    with pytest.raises(InputError, match="unknown method 'best'; known: d3, mtt, seqmatch, frepo"):
        registry.METHODS["best"]


@pytest.mark.long
def test_the_main_job_runs_as_the_compiler_is_for_users(tmp_path):
    """README's first command, shortened: without the flags with which these tests compile."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "D3JAX_CACHE_DIR": str(tmp_path)}
    small = [
        *("--train-limit=300", "--test-limit=100", "--width=4", "--decoder-width=8"),
        *("--outer-steps=2", "--inner-steps=2", "--mmd-samples=2", "--max-start-epoch=1"),
        *("--expert.count=1", "--expert.epochs=2", "--student.students=4", "--student.epochs=2"),
        "--baselines=class_mean",
    ]
    run = subprocess.run(
        [sys.executable, "-m", "d3jax", "distill", "d3", "--out", str(tmp_path / "d3"), *small],
        cwd=Path(__file__).parent.parent, env=environment, text=True, capture_output=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    report = json.loads((tmp_path / "d3" / "report.json").read_text())
    assert set(report["baselines"]) == {"class_mean"}
    assert (tmp_path / "d3" / "images.png").exists()

"""The command line: one small finished run, looked at from all sides, and bad input."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from importlib import metadata

import jax
import numpy as np
import pytest
import yaml
from PIL import Image

from d3jax import artifact, cli, data, evaluate, experts
from d3jax.data import subtasks
from d3jax.data.sources import dataset_name
from d3jax.evaluate import Evaluation
from d3jax.host import files
from d3jax.host.exits import UNFINISHED
from d3jax.host.progress import Interrupted, Reporter, locked
from d3jax.methods import d3
from d3jax.run import api, commands, folder, judge, result
from d3jax.run import options as config
from d3jax.run import run as jobs
from d3jax.run.experts import train_experts
from d3jax.run.judges import Judge
from d3jax.run.options import command
from d3jax.types import InputError

OPTIONS = [
    "--network=mlp", "--width=16", "--outer-steps=40", "--inner-steps=3", "--mmd-samples=4",
    "--mmd-augmentation=color",
    "--expert.count=2", "--expert.epochs=3", "--expert.augmentation", "--max-start-epoch=1",
    "--student.students=2", "--student.epochs=10", "--student.augmentation", "flip",
    "--baseline-students=2",
]  # fmt: skip


@pytest.fixture(autouse=True)
def no_folder_of_the_users(monkeypatch):
    """Commands called in this process must not fill the user's cache of compiled programs."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "set elsewhere")


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """As the tests run: strict, warnings are errors; what one process compiled serves the next."""
    return {
        **os.environ,
        "PYTHONWARNINGS": "error",
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def start(environment, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "d3jax", *map(str, arguments)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture(scope="session")
def finished(environment, tmp_path_factory):
    """(folder, standard output) of a finished run. Not to be changed."""
    out = tmp_path_factory.mktemp("run") / "d3"
    process = start(environment, "distill", "d3", f"--out={out}", *OPTIONS)
    text, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert errors == ""
    return out, text


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def called(capsys, *arguments):
    """The standard output of a command that succeeds."""
    cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def refused(capsys, *arguments):
    """The one line with which a command is refused."""
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("d3jax: error: ")
    assert error.endswith("\n")
    assert error.count("\n") == 1
    return error


# A good run


def test_a_run_leaves_its_files(finished):
    out, _ = finished
    assert {path.name for path in out.iterdir()} == {
        "artifact.safetensors", "config.yaml", "metrics.jsonl", "report.json", "images.png",
        "curves.png", "checkpoints", "experts", "rows.json", ".lock",
    }  # fmt: skip
    for name in ("images.png", "curves.png"):
        with Image.open(out / name) as picture:
            picture.load()
            assert min(picture.size) > 100
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 41))
    assert {"mmd/loss", "trajectory/distance"} <= set(lines[0])
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["method"] == "d3"
    assert config["outer_steps"] == 40
    assert config["architecture"]["network"] == "mlp"
    assert config["parametrization"]["latent_size"] == 8  # resolved
    assert config["student"]["epochs"] == 10


def check_accuracy(accuracy):
    assert set(accuracy) == {"mean", "sd", "students", "per_student"}
    assert accuracy["students"] == 2
    assert all(type(value) is float and 0 <= value <= 1 for value in accuracy["per_student"])
    assert accuracy["mean"] == pytest.approx(np.mean(accuracy["per_student"]))
    assert accuracy["sd"] == pytest.approx(np.std(accuracy["per_student"], ddof=1))


def test_the_report_is_as_promised(finished):
    out, _ = finished
    report = json.loads((out / "report.json").read_text())
    assert set(report) == {
        "method", "dataset", "network", "accuracy", "baselines", "bytes", "floats",
        "ipc_equivalent", "seconds", "cpu_seconds", "seed", "versions", "learning_rates",
        "other_judgements", "machine", "configuration",
    }  # fmt: skip
    tried = report["learning_rates"]["tried"]
    assert {"0.01", "0.03", "0.1"} < set(tried)
    stored = artifact.load(out / "artifact.safetensors").header["student_learning_rate"]
    assert tried[str(stored)] == max(tried.values())
    assert (report["method"], report["dataset"], report["network"]) == ("d3", "digits", "mlp")
    assert report["seed"] == 0
    check_accuracy(report["accuracy"])
    size = (out / "artifact.safetensors").stat().st_size
    assert set(report["bytes"]) == {"total", "images", "latents", "decoder", "labels", "other"}
    assert all(type(value) is int for value in report["bytes"].values())
    assert report["bytes"]["total"] == size
    assert sum(report["bytes"].values()) == 2 * size
    assert report["bytes"]["latents"] == 2 * (10 * 5) * 2 * 8  # float16, mean and log-variance
    assert report["floats"] * 2 == size - report["bytes"]["other"]
    assert report["ipc_equivalent"] == {"float32": size / 2560, "uint8": size / 640}
    parts = {"experts", "compile", "distill", "students", "baselines"}
    assert set(report["seconds"]) == {*parts, "student", "total"}
    total = sum(report["seconds"][part] for part in parts)
    assert report["seconds"]["total"] == pytest.approx(total)
    assert report["machine"]["platform"] == "cpu"
    assert report["machine"]["host_peak_bytes"] > 100e6
    assert 0 < report["seconds"]["compile"] < report["machine"]["compile_seconds"]
    assert report["configuration"]["d3"]["inner_steps"] == 3
    assert report["configuration"]["student"]["epochs"] == 10
    assert set(report["cpu_seconds"]) == {"experts", "distill"}
    assert all(type(value) is float and value > 0 for value in report["seconds"].values())
    assert {"d3jax", "jax"} <= set(report["versions"])
    assert all(type(value) is str for value in report["versions"].values())
    assert list(report["baselines"]) == ["random", "kmeans", "kmeans_uint8", "herding_uint8"]
    for name, row in report["baselines"].items():
        assert {"accuracy", "floats", "bytes", "seconds"} <= set(row)
        check_accuracy(row["accuracy"])
        assert type(row["bytes"]) is int
        assert row["seconds"] > 0
        # Whole images per class, rounded up in their favour.
        images, in_bytes = -(-report["floats"] // 640), name.endswith("_uint8")
        if in_bytes:  # for the bytes of the arrays, which are float16
            images = -(-2 * report["floats"] // 640)
        assert row["floats"] == 640 * images
        assert row["images_per_class"] == images
        header = row["bytes"] - (1 if in_bytes else 2) * row["floats"]
        assert 1000 < header < 4000


def test_progress_is_plain_lines(finished):
    _, text = finished
    assert "\x1b" not in text
    assert "\r" not in text
    for stage in ("expert epochs 4/4", "outer steps 40/40", "student epochs 10/10"):
        assert stage in text
    said = []
    for name in ("d3", "random", "kmeans", "kmeans_uint8", "herding_uint8"):
        assert f"\n{name} " in text
        said.append(text.index(f" {name}: test accuracy "))  # as soon as it is known
    assert said[0] == min(said)
    assert max(said) < text.index("\nd3 ")
    assert "--baselines alone leaves them out" in text


def test_run_again_it_says_so(finished, capsys):
    out, _ = finished
    before = contents(out)
    text = called(capsys, "distill", "d3", "--out", out, *OPTIONS)
    assert "is finished" in text
    assert "herding_uint8" in text
    assert contents(out) == before
    # What changes no number may differ.
    called(capsys, "distill", "d3", "--out", out, *OPTIONS, "--chunk=3")


@pytest.mark.parametrize(
    ("option", "named"),
    [("--seed=1", "seed = 0"), ("--outer-steps=41", "outer_steps = 40"),
     ("--inner-steps=4", "d3.inner_steps = 3"), ("--train-limit=500", "")],
)  # fmt: skip
def test_another_configuration_is_refused(finished, capsys, option, named):
    out, _ = finished
    before = contents(out)
    error = refused(capsys, "distill", "d3", "--out", out, *OPTIONS, option)
    assert named in error
    assert "choose another --out" in error
    assert f"--experts {out / 'experts'}" in error
    assert contents(out) == before


@pytest.fixture
def judges(monkeypatch):
    """What is judged, by judges that find 0.5 and do not train; they may be stopped before one."""
    judged, stop = [], []

    def found(made, *_):
        name = made.header["method"]
        if name in stop:
            raise Interrupted
        judged.append(name)
        return Evaluation(np.array([0.5, 0.5]), 0.03, 0, 1.0), (0.6, 0.7, 0.6)

    def own(*given):
        rates = {"learned": given[0].header["student_learning_rate"], "tried": {0.03: 0.7}}
        return found(*given)[0], {"learning_rates": rates}

    monkeypatch.setattr(result, "judge_of", lambda *_: Judge(own, found))
    return judged, stop


def test_a_finished_run_is_judged_otherwise(finished, capsys, tmp_path, judges):
    """What its report has not is judged, is there at once, and is not judged again."""
    judged, stop = judges
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    artifact_before = (out / "artifact.safetensors").read_bytes()
    before = json.loads((out / "report.json").read_text())
    command = ["distill", "d3", "--out", out, *OPTIONS, "--experts", finished[0] / "experts"]

    stop.append("random_uint8")
    more = [*command, "--baselines", "herding", "kmeans", "random_uint8"]
    with pytest.raises(SystemExit) as caught:
        cli.main([str(word) for word in more])
    assert caught.value.code == 75
    assert judged == ["herding"]
    assert " herding: test accuracy 50.00 %" in capsys.readouterr().out
    stop.clear()
    called(capsys, *more)
    assert judged == ["herding", "random_uint8"]
    report = json.loads((out / "report.json").read_text())
    assert {**before["baselines"], **report["baselines"]} == report["baselines"]
    assert {*report["baselines"]} - {*before["baselines"]} == {"herding", "random_uint8"}
    assert report["accuracy"] == before["accuracy"]
    assert report["other_judgements"] == []

    judged.clear()
    called(capsys, *command, "--student.epochs=11", "--baselines", "random")
    assert judged == ["d3", "random"]
    report = json.loads((out / "report.json").read_text())
    assert report["accuracy"]["mean"] == 0.5
    learned = before["learning_rates"]["learned"]
    assert report["learning_rates"]["learned"] == learned
    assert list(report["baselines"]) == ["random"]
    assert len(report["other_judgements"]) == 7
    assert (out / "artifact.safetensors").read_bytes() == artifact_before
    assert "is finished; this is its report" in called(
        capsys, *command, "--student.epochs=11", "--baselines", "random"
    )
    assert judged == ["d3", "random"]


def test_a_folder_of_something_else(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("- [")
    assert "not a configuration" in refused(capsys, "distill", "d3", "--out", tmp_path, *OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_run_that_goes_on_with_other_versions_says_so(finished, capsys, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    assert "begun with" not in called(capsys, "distill", "d3", "--out", out, *OPTIONS)
    config = out / "config.yaml"
    config.write_text(config.read_text().replace(f"jax: {jax.__version__}", "jax: 0.8.0"))
    assert "begun with" in (said := called(capsys, "distill", "d3", "--out", out, *OPTIONS))
    assert "jax 0.8.0" in said
    assert f"jax {jax.__version__}" in said


def test_evaluate(finished, capsys, tmp_path):
    out, _ = finished
    judged = tmp_path / "judged.json"
    # The artifact knows its network, an mlp of 16.
    called(capsys, "evaluate", out, "--json", judged)
    result = json.loads(judged.read_text())
    report = json.loads((out / "report.json").read_text())
    assert result["accuracy"] == report["accuracy"]  # the same protocol and seed
    assert result["bytes"] == report["bytes"]
    called(capsys, "evaluate", out / "artifact.safetensors", "--width=8", "--json", judged)
    other = json.loads(judged.read_text())
    assert other["network"] == "mlp"
    assert other["accuracy"] != report["accuracy"]


def test_classes_in_another_order_or_of_other_names(finished):
    out, _ = finished
    digits = data.load("digits", test_limit=100)
    turned = subtasks.of(digits, range(9, -1, -1))
    assert turned.test_labels.tolist() == [9 - label for label in digits.test_labels]
    found = [
        judge.judge(out / "artifact.safetensors", commands.Judgement(), Reporter(), one)["accuracy"]
        for one in (digits, turned)
    ]
    assert found[0] == found[1]
    names = ("zero", *digits.class_names[1:])
    with pytest.raises(InputError, match="class 0 is 'zero' there, '0' here"):
        judge.judge(
            out / "artifact.safetensors", commands.Judgement(), Reporter(),
            digits._replace(class_names=names),
        )  # fmt: skip


def test_an_artifact_is_judged_as_its_data_was_read(finished, tmp_path):
    """Resized; and without training images, but where ZCA is computed from them."""
    made = artifact.load(finished[0] / "artifact.safetensors")
    made.header["reading"] = {"image_size": 8}
    for label in range(10):
        (tmp_path / "test" / str(label)).mkdir(parents=True)
        Image.new("L", (12, 20), 20 * label).save(tmp_path / "test" / str(label) / "0.png")
    options = commands.Judgement(dataset=str(tmp_path), students=1, epochs=1)
    assert judge.judge(made, options, Reporter())["accuracy"]["students"] == 1
    made.header["normalization"]["zca"] = {"train_limit": None, "validation": 0, "seed": 0}
    with pytest.raises(InputError, match="no folder train"):
        judge.judge(made, options, Reporter())
    with pytest.raises(InputError, match="set 0 aside for validation: leave out --validation"):
        judge.judge(made, dataclasses.replace(options, validation=5), Reporter())


def test_evaluate_on_another_network(finished, capsys, tmp_path):
    out, _ = finished
    judged = tmp_path / "judged.json"
    text = called(
        capsys, "evaluate", out / "artifact.safetensors", "--network=convnet", "--width=4",
        "--students=3", "--epochs=2", "--seed=5", "--json", judged,
    )  # fmt: skip
    result = json.loads(judged.read_text())
    assert result["network"] == "convnet"
    assert result["accuracy"]["students"] == len(result["accuracy"]["per_student"]) == 3
    assert result["seed"] == 5
    assert " (3) " in text


def test_evaluate_on_several_networks(finished, capsys, tmp_path):
    """Each as it is judged alone; a rate is chosen for each, on images of the training set."""
    out, judged = finished[0] / "artifact.safetensors", tmp_path / "judged.json"
    few = ("--students=2", "--epochs=2", "--test-limit=100", "--json", judged)
    text = called(
        capsys, "evaluate", out, "--networks=convnet,mlp", "--width=4", "--depth=2",
        "--learning-rates", 1e-6, 0.1, "--validation=200", *few,
    )  # fmt: skip
    found = json.loads(judged.read_text())["networks"]
    assert list(found) == ["convnet", "mlp"]
    assert [own["architecture"]["width"] for own in found.values()] == [4, 4]
    assert [own["architecture"]["depth"] for own in found.values()] == [2, None]
    for name, own in found.items():
        tried = {float(rate): right for rate, right in own["learning_rates"]["tried"].items()}
        assert len(tried) == 3
        assert own["learning_rate"] == max(tried, key=tried.get)
        assert f"{name} " in text
    rate = found["convnet"]["learning_rate"]
    called(
        capsys, "evaluate", out, "--network=convnet", "--width=4", "--depth=2",
        "--learning-rate", rate, *few,
    )  # fmt: skip
    alone, one_of = json.loads(judged.read_text())["accuracy"], found["convnet"]["accuracy"]
    np.testing.assert_allclose(alone["per_student"], one_of["per_student"], atol=0.03)
    assert "cannot take images of 8x8" in refused(capsys, "evaluate", out, "--networks=mlp,lenet")
    assert "option --depth" in refused(capsys, "evaluate", out, "--networks=mlp", "--depth=2")
    assert "not both" in refused(capsys, "evaluate", out, "--networks=mlp", "--network=mlp")
    assert "different names" in refused(capsys, "evaluate", out, "--networks=mlp,mlp")


def test_a_finished_runs_page(finished, capsys, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    called(capsys, "report", out, "--html")
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(list(out.glob("*.png"))) >= 2
    report = json.loads((out / "report.json").read_text())
    assert f"{100 * report['accuracy']['mean']:.2f} % of the test images" in page
    assert all(f"<td>{name}</td>" in page for name in report["baselines"])


def test_a_folder_at_work_is_left_alone(finished, capsys):
    with locked(finished[0], "distilling"), pytest.raises(SystemExit) as caught:
        cli.main(["distill", "d3", f"--out={finished[0]}", *OPTIONS])
    assert caught.value.code == 75
    assert "another process is distilling in" in capsys.readouterr().err


def test_compiled_programs_are_kept(monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("D3JAX_CACHE_DIR", str(tmp_path))
    kept = []
    monkeypatch.setattr(jax.config, "update", lambda *change: kept.append(change))
    cli._keep_compiled(None)
    assert kept.pop() == ("jax_persistent_cache_min_compile_time_secs", 0.0)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")  # JAX itself reads it
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "3")
    cli._keep_compiled(None)
    assert kept == [("jax_compilation_cache_dir", str(tmp_path / "compiled"))]


def test_show(finished, capsys, tmp_path):
    path = tmp_path / "one.safetensors"
    shutil.copy(finished[0] / "artifact.safetensors", path)
    text = called(capsys, "show", path)
    for word in ("parametrization", "latents", "decoder", f"{path.stat().st_size:,}", "float32"):
        assert word in text
    with Image.open(tmp_path / "one.png") as picture:
        picture.load()
    called(capsys, "show", path, "--picture", tmp_path / "two.png")
    assert (tmp_path / "two.png").exists()


def test_show_a_run_whose_folder_cannot_be_written(finished, capsys, monkeypatch):
    def read_only(path, data):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr("d3jax.host.files.write_bytes", read_only)
    text = called(capsys, "show", finished[0])
    assert "latents" in text
    assert "artifact.png cannot be written (Read-only file system); --picture FILE" in text
    assert "Read-only" in refused(capsys, "show", finished[0], "--picture", finished[0] / "b.png")


# Interrupted


def rows(out):
    try:
        return (out / "metrics.jsonl").read_text().count("\n")
    except FileNotFoundError:
        return 0


def wait_for_rows(process, out, number):
    deadline = time.monotonic() + 300
    while rows(out) < number:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.slow
def test_terminated_then_killed_then_resumed_equals_uninterrupted(finished, environment, tmp_path):
    whole, _ = finished
    out = tmp_path / "d3"
    # Another process's experts are found; a checkpoint each step makes steps slow enough to hit.
    command = [
        "distill", "d3", f"--out={out}", *OPTIONS, "--experts", whole / "experts", "--chunk=1",
        "--checkpoint-minutes=0",
    ]  # fmt: skip
    process = start(environment, *command)
    wait_for_rows(process, out, 5)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == UNFINISHED
    assert errors == (
        "d3jax: stopping after this chunk\n"
        "d3jax: interrupted, all is saved: resume with the same command\n"
    )
    reached = rows(out)
    assert 5 <= reached < 40
    assert not (out / "report.json").exists()

    process = start(environment, *command)
    wait_for_rows(process, out, reached + 5)
    process.kill()
    text, _ = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    assert f"resuming at outer step {reached}" in text
    assert "experts: found" in text
    assert reached < rows(out) < 40

    process = start(environment, *command)
    text, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "resuming at outer step" in text
    name = "artifact.safetensors"
    assert (out / name).read_bytes() == (whole / name).read_bytes()
    one, other = (json.loads((folder / "report.json").read_text()) for folder in (out, whole))
    assert one["accuracy"] == other["accuracy"]
    for baseline in one["baselines"]:
        assert one["baselines"][baseline]["accuracy"] == other["baselines"][baseline]["accuracy"]


# Experts alone


def test_experts_alone(capsys, tmp_path):
    command = ["experts", "--experts", tmp_path, "--network=mlp", "--width=4", "--train-limit=50",
               "--expert.count=1", "--expert.epochs=1", "--expert.augmentation"]  # fmt: skip
    assert "expert epochs 2/2" in called(capsys, *command)
    assert "found in" in called(capsys, *command)
    assert len(list(tmp_path.iterdir())) == 1


# Bad input


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--dataset=nonesuch"], "nonesuch"),
        (["--dataset=none/such.npz"], "such.npz"),
        (["--expert.epochs=2", "--max-start-epoch=3"], "give --expert.epochs 4, or"),
        (["--expert.epochs=9", "--mmd-epoch=10"], "give --expert.epochs 10, or"),
        (["--outer-steps=0"], "outer_steps"),
        (["--chunk=0"], "chunk"),
        (["--baseline-learning-rates", "0.1", "0"], "must be positive"),
        (["--train-limit=0"], "train_limit"),
        (["--train-limit=3"], "raise train_limit"),
        (["--seed=-1"], "seed"),
        (["--seed=2147483648"], "seed"),
        (["--latent-learning-rate=-1"], "latent_learning_rate"),
        (["--labels=learned", "--no-trajectory"], "only trajectory matching learns labels"),
        (["--network=resnet18"], "instance norm"),
        (["--latents-per-class=0"], "latents per class"),
        (["--latent-size=0"], "latent size"),
        (["--decoder-width=9"], "width"),
        (["--no-mmd", "--no-trajectory"], "learns nothing"),
        (["--inner-steps=0"], "inner_steps"),
        (["--expert-epochs=0"], "expert_epochs"),
        (["--mmd-samples=1"], "mmd_samples"),
        (["--student-learning-rate=0"], "student_learning_rate"),
        (["--expert.count=0"], "count"),
        (["--expert.learning-rate=-1"], "learning_rate"),
        (["--student.students=0"], "students"),
        (["--student.epochs=0"], "epochs"),
        (["--student.learning-rate=0"], "learning_rate"),
        (["--network=lenet"], "width"),
        (["--network=convnet", "--depth=9"], "depth"),
        (["--width=0"], "width"),
        (["--inner-batch-size=0"], "batch"),
        (["--mmd-epoch=-2"], "mmd_epoch"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_distill_with_bad_input(options, named, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(experts, "train", None)  # it is said before anything is trained
    out = tmp_path / "d3"
    assert named in refused(capsys, "distill", "d3", "--out", out, *OPTIONS, *options)
    assert not out.exists()


def test_a_refusal_for_want_of_disk_leaves_no_claim(capsys, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 0, 1000))
    out = tmp_path / "d3"
    assert "are free" in refused(capsys, "distill", "d3", "--out", out, *OPTIONS)
    assert not out.exists()


@pytest.mark.parametrize(("there", "made"), [(None, None), (None, "subset-1"), ("notes", None)])
def test_a_claim_is_taken_back_where_nothing_was_made(there, made, tmp_path):
    options, out = command("d3")(), tmp_path / "d3"
    if there is not None:
        (out / there).mkdir(parents=True)
    dataset = options.data.read(0)
    network = options.architecture.create(dataset.image_shape, dataset.num_classes)

    def refused_later():
        with folder.claim(out, options, dataset, network, Reporter()):
            if made is not None:
                (out / made).mkdir()
            raise InputError("too little disk")

    with pytest.raises(InputError, match="disk"):
        refused_later()
    assert (out / "config.yaml").exists() == (made is not None)
    assert out.exists() == (made is not None or there is not None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["destill"], "unknown command 'destill'; did you mean distill?"),
        (["distill", "mt"], "unknown method 'mt'; did you mean mtt?"),
        (["reticulate"], "unknown command 'reticulate'; known: distill, plan, "),
        (["distill", "d3", "--preset", "papre"], "d3 has no preset 'papre'; did you mean paper?"),
        (["plan", "mtt", "--preset=paper"], "mtt has no presets"),
        (["distill", "d3", "--dataset", "digit"], "; did you mean digits? Or prepare it with"),
        (["distill", "d3", "--dataset", "phots"], "; did you mean photos? Or prepare it with"),
    ],
)
def test_near_names(arguments, said, capsys, tmp_path, monkeypatch):
    (tmp_path / "data" / "tfds" / "photos").mkdir(parents=True)
    monkeypatch.setenv("D3JAX_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, *arguments)


@pytest.mark.parametrize("of", [lambda run: run, lambda run: run.method], ids=["distill", "plan"])
def test_a_preset_holds_where_no_flag_says_otherwise(of, request):
    name = request.node.callspec.id
    flags = ["--latent-learning-rate=2", "--preset", "paper", "--outer-steps", "7"]
    parsed = of(cli.parse([name, "d3", *flags])[1])
    assert parsed.d3 == dataclasses.replace(d3.PAPER, latent_learning_rate=2)
    assert parsed.outer_steps == 7
    assert parsed.expert.learning_rate == 0.01
    assert of(cli.parse([name, "d3"])[1]).d3 == d3.D3Options()
    with_keywords = api._options("d3", {"preset": "paper", "latent_learning_rate": 2.0})
    assert with_keywords.d3 == parsed.d3
    assert with_keywords.expert == parsed.expert


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"d3jax {metadata.version('d3jax')}\n"


def test_bad_input_to_a_process_of_its_own(environment, tmp_path):
    out = tmp_path / "d3"
    process = start(environment, "distill", "d3", f"--out={out}", "--dataset=nonesuch")
    text, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    assert text == ""
    assert errors.startswith("d3jax: error: ")
    assert errors.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    "arguments",
    [[], ["distill"], ["destill"], ["distill", "d4"], ["distill", "d3", "--nonesuch"],
     ["distill", "d3", "--outer-steps=many"], ["distill", "d3", "--network=transformer"],
     ["evaluate"], ["show"]],
    ids=" ".join,
)  # fmt: skip
def test_usage(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    assert captured.err
    assert not list(tmp_path.iterdir())


def test_help(capsys):
    for arguments in ([], ["distill"], ["distill", "d3"], ["evaluate"], ["show"], ["experts"]):
        with pytest.raises(SystemExit) as caught:
            cli.main([*arguments, "--help"])
        assert caught.value.code == 0
        captured = capsys.readouterr()
        assert "--help" in captured.out
        assert captured.err == ""
        if "d3" in arguments:
            first, _, rest = captured.out.partition("All flags")
            groups = [x for x in first.splitlines() if x.endswith(":") and not x.startswith(" ")]
            assert groups[1:] == ["data:", "method:", "size of the result:", "run:"]
            assert first.count("\n  --") == 18
            assert "--latent-size" in first
            assert "--student.momentum" in rest
            assert "(default: None)" not in captured.out
            assert captured.out.count("None}") == 1  # --unroll-clip, which is a number by default
            words = " ".join(captured.out.replace("│", " ").split())
            assert "(default: random kmeans kmeans_uint8 herding_uint8)" in words
            assert "--rank" not in captured.out


@pytest.mark.parametrize("width", [60, 80, 120])
def test_help_fits_the_terminal(width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    for arguments in ([], ["distill"], ["distill", "mtt", "--parametrization", "spectral"]):
        with pytest.raises(SystemExit):
            cli.main([*arguments, "--help"])
        text = capsys.readouterr().out
        assert max(map(len, text.splitlines())) <= width
    assert "--rank" in text
    assert "--latents-per-class" not in text


OUT_OF_MEMORY = jax.errors.JaxRuntimeError(
    "RESOURCE_EXHAUSTED: Out of memory allocating 26214400000 bytes."
)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 75, "No space left"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 75, "quota"),
        (ValueError("Failed to write 9 bytes: No space left on device"), 75, "No space left"),
        (files.DiskFull("runs/d3/checkpoints/10", 24_000_000), 75, "checkpoints/10 needs 24.0 MB"),
        (
            OUT_OF_MEMORY,
            71,
            "out of device memory: 26.2 GB are not free; smaller --mmd-samples, "
            "--mmd-classes, --inner-batch-size, --width, --expert.at-once, --student.students need "
            "less; `d3jax plan` says how much a run takes",
        ),
        (
            MemoryError("Unable to allocate 3.7 TiB for an array"),
            71,
            "memory: 3.7 TiB are not free",
        ),
        (PermissionError(errno.EACCES, "Permission denied"), 2, "Permission denied"),
        (ModuleNotFoundError("no", name="orbax.checkpoint"), 2, "needs the package orbax, which"),
    ],
)
def test_how_a_run_ends_that_the_machine_ends(error, code, said, capsys, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr("d3jax.run.run.load", fail)
    with pytest.raises(SystemExit) as caught:
        cli.main(["distill", "d3"])
    assert caught.value.code == code
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


@pytest.mark.parametrize("command", ["evaluate", "show"])
def test_artifact_that_cannot_be_used(command, finished, capsys, tmp_path):
    path = tmp_path / "a.safetensors"
    assert "there is no artifact" in refused(capsys, command, path)
    path.write_bytes((finished[0] / "artifact.safetensors").read_bytes()[:-1])
    assert "cut off" in refused(capsys, command, path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize(
    "options",
    [["--students=0"], ["--epochs=0"], ["--learning-rate=-1"], ["--dataset=nonesuch"],
     ["--network=convnet", "--depth=9"], ["--width=0"], ["--json=none/such/file.json"],
     ["--learning-rates", "0"], ["--learning-rate=1", "--learning-rates", "1"]],
    ids=" ".join,
)  # fmt: skip
def test_evaluate_with_bad_input(options, finished, capsys):
    refused(capsys, "evaluate", finished[0] / "artifact.safetensors", "--network=mlp", *options)


def test_show_where_no_picture_can_be_written(finished, capsys, tmp_path):
    refused(
        capsys, "show", finished[0] / "artifact.safetensors",
        "--picture", tmp_path / "none" / "such.png",
    )  # fmt: skip


@pytest.mark.parametrize(
    "protocol",
    [{"students": "five"}, {"students": None}, {"students": 1.5}, {"epochs": [3]},
     {"batch_size": "all"}, {"momentum": "a"}, {"decay": None}, {"learning_rate": "x"},
     {"augmentation": 5}, {"augmentation": ["fold"]}, {"augmentation": [[1]]},
     {"augmentation": "flip"}, {"weight_decay": {}}, {"with_means": "no"}, {"nonesuch": 1}],
    ids=repr,
)  # fmt: skip
def test_evaluate_with_a_lying_protocol(protocol, finished, capsys, tmp_path):
    made = artifact.load(finished[0] / "artifact.safetensors")
    header = {**made.header, "protocol": {**made.header["protocol"], **protocol}}
    path = tmp_path / "a.safetensors"
    artifact.save(made._replace(header=header), path)
    assert "protocol" in refused(capsys, "evaluate", path, "--network=mlp", "--width=4")


@pytest.mark.long
def test_experts_trained_alone_are_the_ones_that_distillation_finds(tmp_path):
    store = tmp_path / "store"
    (trained,) = train_experts(
        commands.Experts(
            architecture=config.Architecture(width=4),
            expert=experts.Options(count=1, epochs=2),
            experts=store,
        ),
        Reporter(),
    )
    options = command("d3")(
        architecture=config.Architecture(width=4),
        d3=d3.D3Options(inner_steps=1, mmd_samples=2, max_start_epoch=1),
        expert=experts.Options(count=1, epochs=2),
        student=evaluate.Protocol(students=1, epochs=1),
        outer_steps=1,
        baselines=(),
        experts=store,
        out=tmp_path / "run",
    )
    before = (trained / "complete.json").stat().st_mtime_ns
    jobs.run(options, Reporter())
    folders = [path for path in store.iterdir() if path.is_dir()]
    assert folders == [trained]
    assert (trained / "complete.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("imagenet_resized/64x64", "imagenet_resized/64x64"),
        ("digits", "digits"),
        ("some/where/mine.npz", "mine.npz"),
        ("/some/folder", "folder"),
    ],
)
def test_a_header_names_the_data_set_but_no_folder(given, stored):
    assert dataset_name(given) == stored


def test_more_images_than_a_class_has_are_refused_before_training(tmp_path):
    options = command("d3")(
        parametrization=config.Parametrization(decoder_width=128, latent_size=64),
        out=tmp_path / "run",
    )
    with pytest.raises(InputError, match="leave random and kmeans out"):
        jobs.run(options, Reporter())
    assert not (tmp_path / "run").exists()


def test_the_compilation_cache_can_be_turned_off(monkeypatch):
    kept = []
    monkeypatch.setattr(jax.config, "update", lambda *option: kept.append(option))
    cli._keep_compiled(cli.parse(["distill", "d3", "--no-compilation-cache"])[1])
    assert kept == [("jax_enable_compilation_cache", False)]

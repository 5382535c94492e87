"""Runs of the trajectory family on the embedded digits, in this process, as small as can be."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import yaml

from d3jax import artifact
from d3jax.evaluate import Protocol
from d3jax.experts import Options as ExpertOptions
from d3jax.host.progress import Reporter
from d3jax.methods.d3 import D3Options
from d3jax.methods.dd import DDOptions
from d3jax.methods.mtt import MTTOptions
from d3jax.methods.seqmatch import SeqMatchOptions
from d3jax.run import commands
from d3jax.run import judge as judging
from d3jax.run import options as config
from d3jax.run import run as jobs
from d3jax.run.options import Parametrization, command
from d3jax.types import InputError

SMALL = {
    "data": config.Data(train_limit=200, test_limit=50),
    "architecture": config.Architecture(width=4, depth=2),
    "expert": ExpertOptions(count=1, epochs=2, augmentation=()),
    "student": Protocol(students=2, epochs=4, augmentation=()),
    "outer_steps": 4,
    "baselines": (),
}
INNER = {"inner_steps": 2, "max_start_epoch": 1, "inner_augmentation": ("color",)}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("experts")


@pytest.fixture(scope="module")
def sequence(store, tmp_path_factory):
    """A finished SeqMatch run of two subsets, its report and its options."""
    options = command("seqmatch")(
        **SMALL,
        parametrization=Parametrization(images_per_class=3, labels="learned"),
        seqmatch=SeqMatchOptions(**INNER, subsets=2),
        experts=store,
        storage="float32",
        out=tmp_path_factory.mktemp("runs") / "sequence",
    )
    return options, jobs.run(options, Reporter())


@pytest.mark.long
def test_spectral_mtt_with_an_experts_labels(store, tmp_path):
    options = command("mtt")(
        **{**SMALL, "baselines": ("random_expert",)},
        mtt=MTTOptions(**INNER),
        parametrization=Parametrization(
            kind="spectral", spectra_per_class=1, transformations=2, rank=4, labels="expert"
        ),
        experts=store,
        out=tmp_path / "run",
    )
    report = jobs.run(options, Reporter())
    assert report["method"] == "mtt"
    # 10 spectra of 4 x 4, two transformations of 2 x 8 x 4 + 1, 20 labels of 10.
    assert report["floats"] == 10 * 16 + 2 * 65 + 20 * 10
    assert report["baselines"]["random_expert"]["floats"] == 10 * (64 + 10)
    assert (report["bytes"]["images"], report["bytes"]["latents"]) == (0, 2 * 160)
    assert (report["bytes"]["decoder"], report["bytes"]["labels"]) == (2 * 130, 2 * 200)
    made = artifact.load(tmp_path / "run" / "artifact.safetensors")
    labels = np.asarray(made.sample().targets)
    np.testing.assert_allclose(labels.sum(1), 1, rtol=2e-3)
    assert labels.max() < 1  # an expert's, not one-hot
    said = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert said["mtt"]["inner_batch_size"] == 20
    assert said["parametrization"]["latent_size"] is None


def test_a_sequence_and_its_artifact(sequence, tmp_path):
    options, report = sequence
    assert report["method"] == "seqmatch"
    assert report["accuracy"]["students"] == 2
    path = options.out / "artifact.safetensors"
    header = artifact.load(path).header
    assert header["sequence"]["subsets"] == 2
    assert len(set(header["sequence"]["learning_rates"])) == 2
    steps = [
        json.loads(x)["step"] for x in (options.out / "metrics.jsonl").read_text().split("\n")[:-1]
    ]
    assert steps == [1, 2, 3, 4]
    judged = judging.judge(
        path, commands.Judgement(test_limit=50, json=tmp_path / "judged.json"), Reporter()
    )
    assert judged["accuracy"] == report["accuracy"]


@pytest.mark.long
def test_an_interrupted_sequence_resumes_at_its_subset(sequence, tmp_path, capsys):
    options, report = sequence
    again = tmp_path / "again"
    shutil.copytree(options.out, again)
    for name in ("report.json", "rows.json", "artifact.safetensors", "metrics.jsonl"):
        (again / name).unlink()
    shutil.rmtree(again / "subset-2")
    first = (again / "subset-1" / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    resumed = jobs.run(dataclasses.replace(options, out=again), Reporter())
    assert (again / "subset-1" / "metrics.jsonl").read_bytes() == first
    assert "resuming at outer step 2" in capsys.readouterr().out
    assert resumed["accuracy"] == report["accuracy"]
    one, other = (artifact.load(out / "artifact.safetensors").theta for out in (options.out, again))
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"own": {"subsets": 4}}, "cannot be split into 4 subsets; give each class at least 4"),
        ({"own": {"subsets": 0}}, "subsets must be from 1 to the 4 outer steps, not 0"),
        ({"own": {"later_expert_epochs": 1}}, "raise --later-expert-epochs to 2"),
        ({"student": Protocol(epochs=1)}, "1 epochs of students are too few for 3 subsets"),
        ({"expert": ExpertOptions(epochs=1)}, "give --expert.epochs 2, or lower --max-start"),
        ({"expert": ExpertOptions(epochs=2, keep="last")}, "leave out --expert.keep last"),
    ],
)
def test_a_sequence_that_cannot_be_is_refused_before_training(options, message, tmp_path):
    options = {**SMALL, **options}
    run = command("seqmatch")(
        seqmatch=SeqMatchOptions(**INNER, **options.pop("own", {})),
        parametrization=Parametrization(images_per_class=3),
        out=tmp_path / "run",
        **options,
    )
    with pytest.raises(InputError, match=message):
        jobs.run(run, Reporter())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dd": DDOptions(adapt_from="digits")}, "--labels expert needs"),
        ({"parametrization": Parametrization(kind="gaussian", labels="expert")}, "needs --param"),
    ],
)
def test_dds_expert_labels_need_real_images(options, message, tmp_path):
    options = {"parametrization": Parametrization(labels="expert"), **options}
    run = command("dd")(**options, out=tmp_path / "run")
    with pytest.raises(InputError, match=message):
        jobs.run(run, Reporter())


@pytest.mark.long
def test_dd_on_spectra_with_an_experts_labels(tmp_path):
    options = command("dd")(
        data=SMALL["data"],
        architecture=config.Architecture(network="mlp", width=8),
        parametrization=Parametrization(kind="spectral", transformations=2, labels="expert"),
        dd=DDOptions(images=20, steps=2, passes=1, networks=2, real_batch=8, unseen=2),
        outer_steps=2,
        baselines=(),
        out=tmp_path / "run",
    )
    report = jobs.run(options, Reporter())
    assert report["method"] == "dd"
    assert report["bytes"]["labels"] == 2 * 20 * 10


KINDS = {
    "pixels": Parametrization(kind="pixels", images_per_class=2, start="noise"),
    "gaussian": Parametrization(kind="gaussian", latents_per_class=2),
    "spectral": Parametrization(kind="spectral", spectra_per_class=1, rank=4, start="noise"),
}


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["trajectory", "unrolled", "mmd"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_objective_lifts_every_parametrization(kind, objective, store, tmp_path):
    """A fresh student is 5 points better on what 300 outer steps made than on its start."""
    common = {
        "parametrization": KINDS[kind],
        "architecture": config.Architecture(network="convnet", width=16),
        "baselines": (),
        "experts": store,
        "out": tmp_path / "run",
    }
    students = Protocol(students=3, epochs=100)
    if objective == "unrolled":
        common["parametrization"] = dataclasses.replace(
            KINDS[kind], images_per_class=None, latents_per_class=None, spectra_per_class=None
        )
        each = 4 if kind == "spectral" else 2
        common["dd"] = DDOptions(
            images=10 * each, steps=1, passes=20, networks=1, real_batch=256, unseen=3
        )
        make = command("dd")
    else:
        common |= {"expert": ExpertOptions(count=2, epochs=10), "student": students}
        make = command("mtt")
        if objective == "mmd":
            make = command("d3")
            common["d3"] = dataclasses.replace(
                D3Options(), trajectory=False, student_learning_rate=0.03,
                latent_learning_rate=0.03,
            )  # fmt: skip
    start = jobs.run(make(**common | {"outer_steps": 1, "out": tmp_path / "start"}), Reporter())
    end = jobs.run(make(**common, outer_steps=300), Reporter())
    assert end["accuracy"]["mean"] > start["accuracy"]["mean"] + 0.05

"""`--network package.module:function`: a run with a network of one's own, and who may import it."""

import dataclasses
import json
import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from test_cli import called, no_folder_of_the_users, refused  # noqa: F401

from d3jax import artifact
from d3jax.experts.store import Snapshots
from d3jax.methods.dd import DDOptions
from d3jax.networks.own import identified, is_own
from d3jax.run import judge as judging
from d3jax.run import options as config
from d3jax.run.resolve import resolved, resolved_architecture
from d3jax.types import InputError

NETS = """
    from pathlib import Path

    import flax.linen as nn

    Path("imported").touch()


    class Small(nn.Module):
        num_classes: int

        @nn.compact
        def __call__(self, images):
            x = nn.Conv(4, (3, 3), strides=2)(images)
            x = nn.BatchNorm(use_running_average=False)(x)
            return nn.Dense(self.num_classes)(nn.relu(x).reshape(x.shape[0], -1))


    def small(image_shape, num_classes):
        return Small(num_classes)
"""
# 10 weights and biases of 4 features each; 4 x 4 x 4 features of 10 classes.
PARAMETERS = (9 + 1) * 4 + 2 * 4 + (64 + 1) * 10
RUN = [
    "distill", "mtt", "--network=nets.own:small", "--outer-steps=2", "--inner-steps=2",
    "--max-start-epoch=1", "--expert-epochs=1", "--expert.count=2", "--expert.epochs=1",
    "--student.students=2", "--student.epochs=2", "--train-limit=200", "--baselines",
    "--inner-augmentation", "--expert.augmentation", "--student.augmentation",
]  # fmt: skip


def write(folder, text=NETS):
    (folder / "nets").mkdir(exist_ok=True)
    (folder / "nets" / "own.py").write_text(textwrap.dedent(text))
    forget()


def forget():
    """As a process that has imported nothing."""
    for name in ("nets.own", "nets"):
        sys.modules.pop(name, None)


@pytest.fixture(autouse=True)
def nothing_stays_imported():
    yield
    forget()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder in which a run was, with its module; its output in `run`. Not to be changed."""
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("JAX_COMPILATION_CACHE_DIR", "set elsewhere")
        write(folder)
        from d3jax import cli

        cli.main([*RUN, "--out=run"])
    return folder


@pytest.fixture
def inside(finished, monkeypatch):
    """That folder as the current one, as a new process would find it; the artifact's path."""
    monkeypatch.chdir(finished)
    forget()
    (finished / "imported").unlink(missing_ok=True)
    return Path("run/artifact.safetensors")


def test_a_run_records_the_network_by_its_name_alone(finished):
    header = artifact.load(finished / "run" / "artifact.safetensors").header
    said = {name: value for name, value in header["architecture"].items() if value is not None}
    assert said == {"network": "nets.own:small"}
    report = json.loads((finished / "run" / "report.json").read_text())
    assert report["network"] == "nets.own:small"
    (store,) = (finished / "run" / "experts").iterdir()
    told = json.loads((store / "config.json").read_text())["network"]
    assert told["network"] == "nets.own:small"
    assert len(told["definition"]) == 16
    assert told["width"] is None
    claimed = yaml.safe_load((finished / "run" / "config.yaml").read_text())
    assert claimed["architecture"]["definition"] == told["definition"]
    assert Snapshots(store).shape == (2, 2, PARAMETERS)


def test_an_artifact_alone_imports_nothing(inside, capsys):
    error = refused(capsys, "evaluate", inside)
    assert "distilled with a network that is not d3jax's, nets.own:small; a file must not run" in (
        error
    )
    assert "say yourself --network nets.own:small, or another network" in error
    called(capsys, "show", inside)
    called(capsys, "evaluate", inside, "--network=mlp", "--students=1", "--epochs=1")
    assert not Path("imported").exists()


def test_evaluate_imports_what_the_user_names(inside, capsys, tmp_path):
    judged = tmp_path / "judged.json"
    called(capsys, "evaluate", inside, "--network=nets.own:small", "--json", judged)
    assert Path("imported").exists()
    found = json.loads(judged.read_text())
    expected = json.loads(Path("run/report.json").read_text())
    assert found["network"] == "nets.own:small"
    assert found["accuracy"] == expected["accuracy"]


def test_evaluate_where_the_module_is_not(inside, capsys, tmp_path, monkeypatch):
    path = inside.resolve()
    monkeypatch.chdir(tmp_path)
    error = refused(capsys, "evaluate", path, "--network=nets.own:small")
    assert "there is no module nets for the network nets.own:small" in error
    write(tmp_path, "def small(**_): raise RuntimeError('no weather')")
    error = refused(capsys, "evaluate", path, "--network=nets.own:small")
    assert "nets.own:small fails: RuntimeError: no weather" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--width=3", "--norm=none"], "takes no such options; leave out --width, --norm"),
        (["--initialization=xavier_normal"], "leave out --initialization"),
        (["--network=nets.own:large"], "the module nets.own has no function large"),
        (["--network=nets"], "unknown network 'nets'; known networks: convnet, "),
    ],
)
def test_options_that_do_not_go_with_it(options, message, inside, capsys):
    assert message in refused(capsys, *RUN, "--out=other", *options)
    assert not Path("other").exists()


def test_a_changed_network_does_not_go_on_in_the_folder_of_another(finished, capsys, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        (tmp_path / "run").mkdir()
        text = (finished / "run" / "config.yaml").read_text()
        (tmp_path / "run" / "config.yaml").write_text(text)
        write(tmp_path, NETS.replace("nn.relu", "nn.tanh"))
        error = refused(capsys, *RUN, "--out=run")
    assert "holds a run with architecture.definition = " in error


def test_nothing_is_filled_in(tmp_path):
    dataset = config.Data().read(0)
    own = config.Architecture("nets.own:small")
    assert resolved_architecture(own, dataset.image_shape) == own
    options = config.command("dd")(architecture=own)
    assert resolved(options, dataset).architecture == own
    stored = DDOptions(init="fixed", store_weights=True)
    options = dataclasses.replace(options, dd=stored)
    with pytest.raises(InputError, match="store_weights is for d3jax's networks"):
        resolved(options, dataset)


def test_a_file_that_names_code_is_never_the_one_who_asks_for_it(tmp_path):
    path = tmp_path / "a.safetensors"
    header = {
        "architecture": {"network": "nets.own:small", "width": 3},
        "parametrization": {"image_shape": [8, 8, 1]},
    }

    def stored(network):
        return judging.stored_architecture(header, config.Architecture(network), path)

    with pytest.raises(InputError, match="say yourself --network"):
        stored(None)
    assert stored("convnet").width == 32
    assert stored("nets.own:other") == config.Architecture("nets.own:other")
    with pytest.raises(InputError, match="leave out --width"):
        stored("nets.own:small").create((8, 8, 1), 10)


def test_which_networks_are_ones_own(tiny_network):
    assert is_own("a.b:c")
    assert not any(is_own(name) for name in ("convnet", "a.b", None, 3, [":"]))
    fields = {"network": "convnet", "width": 3}
    assert identified(fields, tiny_network, (8, 8, 1)) == fields

"""README and docs: their commands parse, their Python runs, their tables and plots are in step."""

import doctest
import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

import d3jax
from d3jax import cli
from d3jax.types import InputError
from experiments import overview

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
EXAMPLES = [path for path in sorted((ROOT / "d3jax").rglob("*.py")) if ">>>" in path.read_text()]


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def run(code, name, sizes=None):
    """Runs `code` with what is printed replaced by something small; returns its names."""
    for printed, small in (sizes or {}).items():
        assert printed in code, printed
        code = code.replace(printed, small)
    room: dict = {"__name__": name}
    exec(compile(code, name, "exec"), room)
    return room


def test_readme_is_short_and_promises_the_command_that_ci_runs():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    pattern = re.search(r"grep -m 1 '(.*)' README.md", (ROOT / ".ci" / "run").read_text())
    assert pattern is not None
    found = [line for line in lines if re.match(pattern[1], line)]
    assert len(found) == 1
    assert "pytest" in found[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_parse(page):
    for line in re.findall(r"(?m)^(?:    )?(d3jax .*)$", page.read_text()):
        cli.parse(shlex.split(line, comments=True)[1:])


def test_readme_shows_commands_and_files_that_there_are():
    text = (ROOT / "README.md").read_text()
    assert len(re.findall(r"(?m)^d3jax ", text)) > 5
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (ROOT / target).exists(), target


def test_readmes_first_python_prints_what_its_comments_say(capsys):
    run(blocks("README.md")[0], "README.md")
    assert capsys.readouterr().out.startswith("(5, 8, 3)\n")


@pytest.mark.long
def test_readmes_run_judgement_and_picture(tmp_path, monkeypatch, capsys):
    """As printed but for sizes."""
    monkeypatch.chdir(tmp_path)
    sizes = {
        "outer_steps=200,": "outer_steps=2, network='mlp', width=4,"
        " inner_steps=2, baselines=('random',), student=d3jax.Protocol(students=1, epochs=2),",
        'network="mlp", students=3': 'network="mlp", width=4, students=1',
        'load_data("digits")': 'load_data("digits", train_limit=200, test_limit=50)',
    }
    room = run(blocks("README.md")[1], "README.md", sizes)
    assert "'students': 1" in capsys.readouterr().out
    assert (tmp_path / "images.png").stat().st_size > 5000
    assert room["run"].report["baselines"]["random"]["accuracy"]["students"] == 1
    assert "<table>" in room["run"].report._repr_html_()
    assert "<td>mtt</td>" in room["run"].artifact._repr_html_()
    with pytest.raises(InputError, match="did you mean outer_steps"):
        d3jax.distill("mtt", outer_stps=3)
    with pytest.raises(InputError, match="train_limit says what to load"):
        d3jax.distill("mtt", room["dataset"], train_limit=3)


@pytest.mark.long
def test_quick_starts_run_by_hand():
    """As printed but for sizes."""
    sizes = {
        'load_data("digits")': 'load_data("digits", train_limit=200, test_limit=50)',
        "width=16, **shape)\nreal": "width=4, depth=1, **shape)\nreal",
        "count=2, epochs=10": "count=1, epochs=9",
        "D3Options(mmd_": "D3Options(inner_steps=2, mmd_samples=2, mmd_",
        "range(100)": "range(2)",
    }
    room = run(blocks("docs/quick-start.md")[2], "docs/quick-start.md", sizes)
    assert set(room["theta"]) == {"data", "decoder", "statistics"}


def test_a_network_of_your_own_is_as_the_page_prints_it(tmp_path, monkeypatch):
    own, wrapped = blocks("docs/own-network.md")
    (tmp_path / "mine.py").write_text(own)
    monkeypatch.syspath_prepend(tmp_path)
    network = run(wrapped, "docs/own-network.md")["network"]
    assert d3jax.networks.number_of_classes(network, (8, 8, 1)) == 10


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_in_docstrings(path):
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    found = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.attempted > 0
    assert found.failed == 0


def test_the_plots_show_todays_results():
    assert overview.stale_plots() == [], "run python -m experiments.tables"


def test_every_method_has_a_row_and_a_row_its_command():
    table = overview.methods_table()
    for name in d3jax.METHODS:
        if d3jax.METHODS[name].build.__module__.startswith("d3jax."):
            assert f"| `{name}` |" in table
    assert overview.command("cifar10_budgets", "d3, 2", 3) == (
        'python -m experiments.cifar10_budgets "d3, 2"'
    )
    assert overview.command("cifar10_budgets", "d3, 5", 1) == (
        'python -m experiments.cifar10_budgets "d3, 5" --seeds 0'
    )
    assert overview.command("seqmatch_mnist", "K = 1", 3) == (
        "python -m experiments.mnist_cifar10_seqmatch"
    )


def test_a_methods_line_is_that_of_the_first_experiment_that_has_it(monkeypatch):
    def row(method, size, dataset="mnist"):
        configuration = {"method": method, "data": {"dataset": dataset}, "parametrization": {}}
        return {"bytes": size, "configuration": configuration, "baselines": {}}

    files = {
        "new": [row("mtt", 30), row("mtt", 10), row("d3", 20, "digits")],
        "old": [row("mtt", 40), row("d3", 50)],
    }
    monkeypatch.setattr(overview.rows, "read", files.get)
    monkeypatch.setattr(overview.rows, "by_label", lambda found: found)
    lines = overview.lines(overview.World("MNIST", "mnist", ("new", "old")))
    found = {name: [(p.experiment, p.row["bytes"]) for p in line] for name, line in lines.items()}
    assert found == {"mtt": [("new", 10), ("new", 30)], "d3": [("old", 50)]}


def test_a_plot_has_the_best_row_of_a_size_and_the_table_methods_that_are_baselines(monkeypatch):
    def row(label, size, mean, **baselines):
        configuration = {"method": "mtt", "data": {"dataset": "mnist"}, "parametrization": {}}
        return {
            **{"label": label, "bytes": size, "accuracy": {"mean": mean, "sd": None}},
            **{"configuration": configuration, "baselines": baselines, "floats": size},
        }

    rded = {"bytes": 9, "accuracy": {"mean": 0.7, "sd": None}}
    found = [row("worse", 10, 0.25, rded=rded), row("best", 10, 0.5), row("large", 20, 0.375)]
    world = overview.World("MNIST", "mnist", ("all",))
    monkeypatch.setattr(overview, "WORLDS", (world,))
    monkeypatch.setattr(overview.rows, "read", {"all": found}.get)
    monkeypatch.setattr(overview.rows, "by_label", lambda found: found)
    _, methods = overview.accuracies()["MNIST"]
    assert methods == {"mtt": [(10, 50.0, 0.0), (20, 37.5, 0.0)]}
    (point,) = overview._as_baseline("rded", world)
    assert (point.row["bytes"], point.row["label"], point.row["accuracy"]["mean"]) == (
        9,
        "worse",
        0.7,
    )


@pytest.mark.parametrize(
    "path",
    [*sorted((ROOT / ".github").rglob("*.yml")), ROOT / "CITATION.cff",
     ROOT / ".pre-commit-config.yaml"],
    ids=lambda path: path.name,
)  # fmt: skip
def test_yaml_is_read(path):
    said = yaml.safe_load(path.read_text())
    assert isinstance(said, dict)
    if path.suffix == ".cff":
        assert said["version"] == d3jax.__version__


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_small_and_have_been_run(path):
    text = path.read_text()
    assert len(text) < 300_000
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert all("%pip" in "".join(cell["source"]) or cell["execution_count"] for cell in cells)
    assert not any(out["output_type"] == "error" for cell in cells for out in cell["outputs"])


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path, tmp_path, monkeypatch):
    """Their cells in this process."""
    if path.stem == "pytorch":
        pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    room: dict = {}
    for cell in json.loads(path.read_text())["cells"]:
        code = "".join(cell["source"])
        if cell["cell_type"] == "code" and not code.startswith("%pip"):
            exec(compile(code, path.name, "exec"), room)

"""What README and docs say of all experiments at once: two tables and two plots.

`python -m experiments.tables` writes them. A method's line on a data set is that of the first of
its experiments that has the method, so that a newer experiment, put first here, takes the place of
an older one. Experiments about something else (ablations, attacks, subtasks) are not among them.
"""

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image

from d3jax.methods.registry import METHODS
from d3jax.run.tables import markdown_table
from experiments import rows
from experiments.rows import percent

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs" / "pictures"
COLOURS = [f"C{number}" for number in range(10) if number != 7]  # grey is of real images
REAL = ("random", "kmeans", "herding", "random_uint8", "kmeans_uint8", "herding_uint8")


class World(NamedTuple):
    """A data set, and the experiments on it, the newest of a method first."""

    title: str
    dataset: str
    experiments: tuple[str, ...]


WORLDS = (
    World(
        "CIFAR-10",
        "cifar10",
        (
            "cifar10_budgets",
            "cifar10_matching",
            "seqmatch_cifar10",
            "cifar10_dd",
            "cifar10_statistics",
            "cifar10_frepo",
            "cifar10_mgdd",
        ),
    ),
    World(
        "MNIST",
        "mnist",
        (
            "mnist_budgets",
            "mnist_d3",
            "mnist_mtt",
            "seqmatch_mnist",
            "mnist_truncated",
            "mnist_frepo",
        ),
    ),
    World(
        "Tiny-ImageNet, 20 classes",
        "tiny_imagenet_20",
        ("tiny_imagenet_budgets", "tiny_imagenet_matching"),
    ),
    World("moved digits", "moved_digits", ("moved_digits_d3",)),
)


class Point(NamedTuple):
    """A row of an experiment, pooled over its seeds."""

    method: str
    name: str  # of its line
    experiment: str
    row: rows.Row


def lines(world: World) -> dict[str, list[Point]]:
    """Each method's rows on a data set, by the name of the method and what it is stored as."""
    found: dict[str, list[Point]] = {}
    for experiment in world.experiments:
        here: dict[str, list[Point]] = {}
        for row in rows.by_label(rows.read(experiment)):
            if row["configuration"]["data"]["dataset"] == world.dataset:
                method, name = _named(row["configuration"])
                here.setdefault(name, []).append(Point(method, name, experiment, row))
        for name, points in here.items():
            found.setdefault(name, sorted(points, key=lambda point: point.row["bytes"]))
    return found


def _named(configuration: dict[str, Any]) -> tuple[str, str]:
    method, stored = configuration["method"], configuration["parametrization"]
    usual = METHODS[method].parametrization
    kind = stored.get("kind") or usual  # older rows have none
    name = method if kind == usual else f"{method}, {kind}"
    rounding = stored.get("rounding") or "none"
    return method, name if rounding == "none" else f"{name}, {rounding}"


def baselines(world: World) -> dict[str, list[rows.Row]]:
    """Rows of real images by name, from the first experiment whose rows say what they take."""
    for experiment in world.experiments:
        found: dict[str, list[rows.Row]] = {}
        for row in rows.by_label(rows.read(experiment)):
            if row["configuration"]["data"]["dataset"] == world.dataset:
                for name, baseline in row["baselines"].items():
                    if name in REAL and baseline["bytes"] is not None:
                        found.setdefault(name, []).append(baseline)
        if found:
            return found
    return {}


def command(experiment: str, label: str, seeds: int) -> str:
    """The command that makes a row: that of the file whose docstring has the experiment's table."""
    for path in sorted((ROOT / "experiments").glob("*_*.py")):
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        if re.search(rf"\btable: {experiment}\b", text):
            takes_rows = f"-m experiments.{path.stem} [ROW ...]" in text
            row = f' "{label}"' if takes_rows else ""
            one = " --seeds 0" if seeds == 1 and "[--seeds" in text else ""
            return f"python -m experiments.{path.stem}{row}{one}"
    raise ValueError(f"no file of experiments/ has the table of {experiment}")


def methods_table() -> str:
    """A row for each method: its paper, the figure there, our best on the first data set it has."""
    header = ["method", "paper", "published", "here, test accuracy %", "made by"]
    table = []
    for name, spec in METHODS.items():
        if not spec.build.__module__.startswith("d3jax."):
            continue  # of another package, installed here by chance
        cells = ["none yet", ""]
        for world in WORLDS:
            own = [p for points in lines(world).values() for p in points if p.method == name]
            own = own or _as_baseline(name, world)
            if own:
                best = max(own, key=lambda point: point.row["accuracy"]["mean"])
                made = command(best.experiment, best.row["label"], len(best.row["seeds"]))
                role = "" if best.row["configuration"]["method"] == name else ", a baseline of it"
                cells = [_measured(world, best), f"`{made}`{role}"]
                break
        table.append([f"`{name}`", _linked(spec.paper), spec.figure, *cells])
    return markdown_table(header, table)


def _as_baseline(method: str, world: World) -> list[Point]:
    """A method's rows where it is a baseline of others, under the label of those."""
    found = []
    for points in lines(world).values():
        for point in points:
            if method in point.row["baselines"]:
                row = {**point.row, **point.row["baselines"][method]}
                found.append(Point(method, method, point.experiment, row))
    return found


def _measured(world: World, point: Point) -> str:
    row = point.row
    limit = row["configuration"]["data"]["train_limit"]
    of = f", {limit:,} training images" if limit else ""
    stored = point.name.removeprefix(point.method).removeprefix(", ")
    kind = f" ({stored})" if stored else ""
    return f"{world.title}{of}, {row['bytes']:,} bytes{kind}: {percent(row['accuracy'])}"


def _linked(paper: str) -> str:
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", paper)


def choice_table() -> str:
    """Accuracy, bytes and seconds of each method, data set by data set."""
    header = ["data", "method", "bytes", "test accuracy %", "CPU s, experts", "CPU s, outer steps",
              "s, a student"]  # fmt: skip
    table = []
    for world in WORLDS:
        for name, points in lines(world).items():
            for point in points:
                row = point.row
                exact = "distill_cpu_seconds" in row
                spent = row["distill_cpu_seconds"] if exact else row["cpu_seconds"]
                cells = [world.title, name, f"{row['bytes']:,}", percent(row["accuracy"])]
                cells += [f"{row['experts_cpu_seconds']:,.0f}"]
                cells += [("" if exact else "≤ ") + f"{spent:,.0f}", rows.seconds(row)]
                table.append(cells)
    return markdown_table(header, table)


TABLES = {"methods": methods_table, "choice": choice_table}


Values = list[tuple[int, float, float]]  # of a line: bytes, mean and sd in percent


def accuracies() -> dict[str, tuple[dict[str, Values], dict[str, Values]]]:
    """Lines of real images of each data set, and those of methods: the best row at each size."""

    def value(row: rows.Row) -> tuple[int, float, float]:
        accuracy = row["accuracy"]
        return row["bytes"], 100 * accuracy["mean"], 100 * (accuracy["sd"] or 0.0)

    def best(points: list[Point]) -> Values:
        # Of one size are rows of as many floats: headers differ by some bytes.
        ascending = sorted((point.row for point in points), key=lambda row: row["accuracy"]["mean"])
        return sorted({row["floats"]: value(row) for row in ascending}.values())

    return {
        world.title: (
            {name: sorted(map(value, found)) for name, found in baselines(world).items()},
            {name: best(points) for name, points in lines(world).items()},
        )
        for world in WORLDS
    }


def plot_accuracies(found: dict[str, tuple[dict[str, Values], dict[str, Values]]]) -> Figure:
    """Accuracy against bytes of every method and of real images, a panel for each data set."""
    figure = Figure(figsize=(9, 6.6), layout="constrained", dpi=100)
    names = list(dict.fromkeys(name for _, methods in found.values() for name in methods))
    legend: dict[str, Any] = {}
    for axes, (title, (real, methods)) in zip(figure.subplots(2, 2).ravel(), found.items()):
        for name, values in real.items():
            marker = "xv+1dP"[REAL.index(name)]
            drawn = _line(axes, values, color="0.55", linestyle="--", marker=marker)
            legend[name.replace("_uint8", ", uint8")] = drawn
        for name, values in methods.items():
            place = names.index(name)
            marker = "osD^<>*ph"[place % 9]
            legend[name] = _line(axes, values, color=COLOURS[place % 9], marker=marker)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set(xscale="log", xlabel="kB stored", ylabel="test accuracy, %")
        sizes = [
            values[i][0] for lines in (real, methods) for values in lines.values() for i in (0, -1)
        ]
        axes.set_xlim(min(sizes) / 1.5, 1.5 * max(sizes))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(lambda size, _: f"{size / 1000:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    ordered = [*names, *(name for name in legend if name not in names)]
    figure.legend(
        [legend[name] for name in ordered], ordered,
        loc="outside right upper", fontsize=8, frameon=False,
    )  # fmt: skip
    return figure


def _line(axes: Axes, values: Values, **style: Any) -> Any:
    size, mean, spread = zip(*values)
    return axes.errorbar(size, mean, spread, capsize=2, markersize=5, linewidth=1, **style)


def seconds() -> list[tuple[str, float, float]]:
    """Works of the benchmark `peers`: CPU seconds of ours, and of PyTorch's."""
    measured = json.loads((ROOT / "benchmarks" / "results" / "peers.json").read_text())
    return [(row["work"], row["ours_cpu_s"], row["peer_cpu_s"]) for row in measured]


def plot_seconds(found: list[tuple[str, float, float]]) -> Figure:
    """How long the same work takes, ours against PyTorch's."""
    figure = Figure(figsize=(9, 0.8 + 0.3 * len(found)), layout="constrained", dpi=100)
    axes = figure.add_subplot()
    for place, (_, ours, theirs) in enumerate(found):
        axes.barh(place, ours / theirs, color="#1f4e8c", height=0.65)
        told = f"{ours:.2f} s against {theirs:.2f} s"
        axes.text(ours / theirs + 0.01, place, told, va="center", fontsize=8)
    axes.axvline(1, color="0.5")
    axes.set_yticks(range(len(found)), [work for work, _, _ in found], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("CPU seconds of d3jax / those of PyTorch (eager), one core; less is faster")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


PLOTS: dict[str, tuple[Callable[[], Any], Callable[[Any], Figure]]] = {
    "accuracy_bytes": (accuracies, plot_accuracies),
    "speed": (seconds, plot_seconds),
}


def draw() -> None:
    """Writes docs/pictures/NAME.png; a file keeps the numbers that it shows."""
    for name, (numbers, plot) in PLOTS.items():
        found = numbers()
        plot(found).savefig(PICTURES / f"{name}.png", metadata={"numbers": json.dumps(found)})


def stale_plots() -> list[str]:
    """The plots whose files show other numbers than there are now."""

    def shown(path: Path) -> Any:
        if not path.exists():
            return None
        with Image.open(path) as image:
            return json.loads(image.info["numbers"])

    return [
        name
        for name, (numbers, _) in PLOTS.items()
        if shown(PICTURES / f"{name}.png") != json.loads(json.dumps(numbers()))
    ]

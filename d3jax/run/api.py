"""What a notebook or a script calls: a run, a judgement and a picture, without files or flags."""

import dataclasses
import difflib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from matplotlib.figure import Figure

from d3jax import artifact
from d3jax.artifact import Artifact
from d3jax.data import Dataset
from d3jax.host.progress import Reporter
from d3jax.methods.registry import METHODS
from d3jax.run import judge as judging
from d3jax.run import show as showing
from d3jax.run import tables
from d3jax.run.commands import Judgement
from d3jax.run.options import Architecture, Data, Parametrization, command, with_preset
from d3jax.run.run import run as run_options
from d3jax.types import InputError


class Report(dict[str, Any]):
    """A run's report: accuracy, baselines, bytes and seconds; a notebook shows it as a table."""

    def _repr_html_(self) -> str:
        return tables.html_table(tables.accuracy_rows(self))


class Distilled(NamedTuple):
    """What a run has made."""

    artifact: Artifact
    report: Report


def distill(
    method: str,
    dataset: Dataset | str = "digits",
    *,
    out: str | Path | None = None,
    verbose: bool = False,
    **options: Any,
) -> Distilled:
    """Distills a data set, judges the result by fresh students, and compares it with baselines.

    Args:
      method: the name of a registered method: "d3", "mtt", "seqmatch", "dd" ...
      dataset: a `Dataset`, or the name of one as `load_data` takes it.
      out: the run's folder, in which a killed run resumes; None: nothing is left on disk.
      verbose: print progress.
      options: the command line's flags with underscores: `outer_steps=500`, `inner_steps=20`,
        `width=64`, `images_per_class=10`; the groups `expert=experts.Options(...)` and
        `student=evaluate.Protocol(...)` whole.

    Raises:
      InputError: an unknown method or option, or options that do not fit together.
    """
    if options.get("dry_run"):
        raise InputError("dry_run makes nothing; d3jax.run.plan.plan says what a run would take")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run" if out is None else Path(out)
        if isinstance(dataset, Dataset):
            loading = sorted(({f.name for f in dataclasses.fields(Data)} - {"zca"}) & set(options))
            if loading:
                raise InputError(
                    f"{loading[0]} says what to load, but the data set is given; give it to "
                    f"load_data instead"
                )
            given, options = dataset, {**options, "dataset": dataset.name}
        else:
            given, options = None, {**options, "dataset": dataset}
        run = _options(method, {**options, "out": folder})
        report = run_options(run, _reporter(verbose), given)
        made = artifact.load(folder / "artifact.safetensors")
    return Distilled(made, Report(report))


def evaluate(
    made: Artifact | str | Path,
    dataset: Dataset | str | None = None,
    *,
    network: str | None = None,
    networks: Sequence[str] = (),
    learning_rates: Sequence[float] = (),
    scores: bool = False,
    students: int | None = None,
    seed: int = 0,
    verbose: bool = False,
    **architecture: Any,
) -> Report:
    """Trains fresh students on an artifact alone, and tests them once, after the last epoch.

    Args:
      made: the artifact, or its file, or another project's (`artifact.exchange.read`).
      dataset: whose test images; default the data set that the artifact names.
      network: the students' architecture; default the artifact's, with `architecture`'s changes
        (`width`, `depth`, `norm` ...).
      networks: several, one after another, instead; the report's `networks` are theirs.
      learning_rates: students train at the best of these and the artifact's, on other images.
      scores: those of `evaluate.scores` too, in the report's `scores`.
      students: how many; default as the artifact says.
      seed: of the students.
      verbose: print progress.

    Raises:
      InputError: the artifact, the data set or the network cannot be used, or do not fit.
    """
    name = dataset.name if isinstance(dataset, Dataset) else dataset
    options = Judgement(
        dataset=name,
        architecture=Architecture(network=cast(Any, network), **architecture),
        networks=",".join(networks) or None,
        learning_rates=tuple(learning_rates),
        scores=scores,
        students=students,
        seed=seed,
    )
    given = dataset if isinstance(dataset, Dataset) else None
    found = judging.judge(
        made if isinstance(made, Artifact) else Path(made), options, _reporter(verbose), given
    )
    return Report(found)


def show(made: Artifact | str | Path, *, seed: int = 0) -> Figure:
    """A picture of an artifact's images: a row for each class; a notebook displays it.

    Raises:
      InputError: there is no such artifact, or it cannot be used.
    """
    found = made if isinstance(made, Artifact) else artifact.load(Path(made))
    return showing.decoded_figure(found, seed)


def _reporter(verbose: bool) -> Reporter:
    reporter = Reporter()
    reporter.console.quiet = not verbose
    return reporter


def _options(method: str, given: dict[str, Any]) -> Any:
    """The run that the keywords say; each belongs to the group that has a field of its name."""
    kind = command(method)
    own = METHODS[method]
    groups: dict[str, type] = {
        "data": Data,
        "architecture": Architecture,
        "parametrization": Parametrization,
        own.name: own.options,
    }
    top = {field.name for field in dataclasses.fields(kind)} - set(groups)
    fields = {name: {f.name for f in dataclasses.fields(g)} for name, g in groups.items()}
    changes: dict[str, dict[str, Any]] = {name: {} for name in groups}
    base = with_preset(method, given.pop("preset", None)) or kind()
    chosen: dict[str, Any] = {}
    for name, value in given.items():
        value = tuple(value) if isinstance(value, list) else value
        name = "kind" if name == "parametrization" and isinstance(value, str) else name
        if name in groups or name in top:
            chosen[name] = value
            continue
        group = next((group for group in groups if name in fields[group]), None)
        if group is None:
            known = top | set(groups) | {n for names in fields.values() for n in names}
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; see d3jax distill {method} --help"
            raise InputError(f"{method} has no option {name!r}{hint}")
        changes[group][name] = value
    for group, values in changes.items():
        if values:
            chosen[group] = dataclasses.replace(chosen.get(group, getattr(base, group)), **values)
    return dataclasses.replace(base, **chosen)

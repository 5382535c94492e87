"""Runs configurations of the main job over seeds, and keeps what they print in results/*.json.

A run's folder is `runs/EXPERIMENT/LABEL-SEED`; a run that was interrupted goes on where it was, one
that is finished is read, and one of other options is refused. `results/EXPERIMENT.json` gets a row
for each run: configuration, seed, mean and standard deviation over its students (a table's are
between seeds, see `rows.pooled`), hardware, date and commit.
"""

import argparse
import dataclasses
import datetime
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from d3jax.data import Dataset
from d3jax.host.exits import UNFINISHED
from d3jax.host.files import write_json
from d3jax.host.progress import Interrupted, Reporter
from d3jax.run import commands
from d3jax.run import judge as judging
from d3jax.run import options as config
from d3jax.run import run as jobs
from experiments import rows
from experiments.provenance import COMMIT, hardware


def run(
    experiment: str,
    configurations: Mapping[str, config.Run],
    seeds: tuple[int, ...],
    *,
    judgements: Mapping[str, Mapping[str, Any]] | None = None,
    labels: list[str] | None = None,
    runs: str | None = None,
    derived: Mapping[str, Callable[[config.Run, Reporter], Path]] | None = None,
    dataset: Dataset | None = None,
) -> None:
    """Runs every configuration for every seed, and writes results/EXPERIMENT.json after each run.

    Args:
      experiment: the name of the results.
      configurations: by label; their `out`, `experts` and `seed` are set here.
      seeds: of data split, experts, distillation and students.
      judgements: judge the artifact again, with these fields of `commands.Judgement`; by name.
      labels: the order of the results' rows, where they are more than are run now.
      runs: the experiment whose folder of runs is shared; default its own.
      derived: judge another artifact too, which is made from a finished run's; by name.
      dataset: the data of all, in place of what each configuration would load.

    Exits with 75 when it is interrupted: run it again.
    """
    reporter = Reporter()
    for seed in seeds:
        for label, options in configurations.items():
            out = folder(runs or experiment, label, seed)
            options = dataclasses.replace(options, out=out, experts=Path("runs/experts"), seed=seed)
            if isinstance(options, config.Studied):  # a table's rows are all judged alike
                options = dataclasses.replace(options, baseline_students=options.student.students)
            reporter.say(f"== {experiment}: {label}, seed {seed}")
            _run(options, reporter, dataset)
            for name, fields in (judgements or {}).items():
                path = out / f"{name}.json"
                if not path.exists():
                    judged = commands.Judgement(seed=seed, json=path, **fields)
                    judging.judge(out / "artifact.safetensors", judged, reporter)
            for name, make in (derived or {}).items():
                path = out / f"{name}.json"
                if not path.exists():
                    judged = commands.Judgement(seed=seed, json=path)
                    judging.judge(make(options, reporter), judged, reporter)
            row = _row(label, seed, out, [*(judgements or {}), *(derived or {})])
            rows.write(experiment, [row], labels or list(configurations))


def arguments(known: Iterable[str], seeds: tuple[int, ...]) -> tuple[list[str], tuple[int, ...]]:
    """What the command line asks for: rows of `known` (default all), and `--seeds 0,1,2`."""
    known = list(known)
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {known}; default all")
    default = ",".join(map(str, seeds))
    parser.add_argument("--seeds", default=default, help=f"default {default}")
    said = parser.parse_args()
    for row in said.rows:
        if row not in known:
            parser.error(f"{row!r} is not one of {known}")
    try:
        return said.rows or known, tuple(int(seed) for seed in said.seeds.split(","))
    except ValueError:
        parser.error(f"seeds are numbers with commas between, not {said.seeds!r}")


def folder(runs: str, label: str, seed: int) -> Path:
    """Where a run is, by the experiment that its folder is of."""
    return Path("runs") / runs / f"{label.replace(',', '').replace(' ', '-')}-{seed}"


def _run(options: config.Run, reporter: Reporter, dataset: Dataset | None) -> None:
    """One run, unless it is finished; OUT/record.json says when, where and at which commits."""
    path = options.out / "record.json"
    finished = (options.out / "report.json").exists()
    try:
        jobs.run(options, reporter, dataset)
    except Interrupted:
        print("interrupted: run the same command again", file=sys.stderr)
        raise SystemExit(UNFINISHED) from None
    finally:
        if options.out.exists() and not finished:
            before = json.loads(path.read_text()) if path.exists() else {"commits": []}
            record = {
                "date": datetime.date.today().isoformat(),
                "hardware": hardware(),
                "commits": sorted({*before["commits"], COMMIT}),
            }
            write_json(path, {**before, **record})


def _row(label: str, seed: int, folder: Path, judgements: Iterable[str]) -> rows.Row:
    """What the results hold of one finished run."""
    report = json.loads((folder / "report.json").read_text())
    record = json.loads((folder / "record.json").read_text())
    configuration = yaml.safe_load((folder / "config.yaml").read_text())
    for name in ("out", "experts", "seed", "images"):
        del configuration[name]
    del configuration["data"]["data_dir"]
    configuration.get("mgdd", {}).pop("generator", None)  # a run of the same seed
    row = {
        "label": label,
        "seeds": [seed],
        "accuracy": _accuracy(report["accuracy"]),
        "floats": report["floats"],
        "bytes": report["bytes"]["total"],
        "seconds": report["seconds"],
        **_cpu_seconds(report, record),
        "baselines": {name: _baseline(row) for name, row in report["baselines"].items()},
        "hardware": record["hardware"],
        "date": record["date"],
        "commits": record["commits"],
        "configuration": configuration,
    }
    # What only some methods report: accuracies before the distilled steps, and an attack's.
    if "before" in report:
        row["before"] = _accuracy(report["before"])
    if "attack" in report:
        names = ("flipped_before", "flipped_after", "others_before", "others_after")
        row["attack"] = {name: _accuracy(report["attack"][name]) for name in names}
    for name in judgements:
        judged = json.loads((folder / f"{name}.json").read_text())
        for network, reached in judged.get("networks", {name: judged}).items():
            row[f"accuracy_{network}"] = _accuracy(reached["accuracy"])
    return row


def _cpu_seconds(report: dict[str, Any], record: dict[str, Any]) -> dict[str, float]:
    if "cpu_seconds" in report:
        spent = report["cpu_seconds"]
        return {"experts_cpu_seconds": spent["experts"], "distill_cpu_seconds": spent["distill"]}
    # Of before reports had it: the whole run's, students and baselines too.
    return {name: record[name] for name in ("experts_cpu_seconds", "cpu_seconds")}


def _accuracy(accuracy: dict[str, Any]) -> dict[str, Any]:
    kept = {name: accuracy[name] for name in ("mean", "sd", "students")}
    return {**kept, "per_seed": [accuracy["mean"]]}


def _baseline(row: dict[str, Any]) -> dict[str, Any]:
    kept = {
        "accuracy": _accuracy(row["accuracy"]),
        "floats": row["floats"],
        "bytes": row["bytes"],
        "learning_rates": [row["learning_rate"]],
    }
    if "nearest_neighbours" in row:
        value = row["nearest_neighbours"]["accuracy"]
        kept["nearest_neighbours"] = {"mean": value, "sd": 0.0, "students": 1, "per_seed": [value]}
    return kept

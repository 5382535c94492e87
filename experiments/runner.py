"""Runs configurations of the main job over seeds, and keeps what they print in results/*.json.

A run's folder is `runs/EXPERIMENT/LABEL-SEED`; a run that was interrupted goes on where it was, and
one that is finished is read. `results/EXPERIMENT.json` gets a row for each run: configuration,
seed, mean and standard deviation over its students, hardware, date and commit.
"""

import argparse
import dataclasses
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from d3jax import config, experts, jobs, judging
from d3jax.files import write_json
from d3jax.progress import UNFINISHED, Interrupted, Reporter
from experiments import rows


def hardware() -> str:
    """The machine, in words."""
    import jax

    accelerators = {device.device_kind for device in jax.devices() if device.platform != "cpu"}
    if accelerators:
        return ", ".join(sorted(accelerators))
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    name = names[0] if names else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} core{'s' if cores != 1 else ''} of {name}"


def commit() -> str:
    """The commit that is checked out, with a + where the working tree differs."""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--", "d3jax"], capture_output=True, text=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed else "")


COMMIT = commit()  # of the code that this process has loaded


def run(
    experiment: str,
    configurations: Mapping[str, config.Distillation],
    seeds: tuple[int, ...],
    *,
    judgements: Mapping[str, Mapping[str, Any]] | None = None,
    labels: list[str] | None = None,
    runs: str | None = None,
    derived: Mapping[str, Callable[[config.Distillation, Reporter], Path]] | None = None,
) -> None:
    """Runs every configuration for every seed, and writes results/EXPERIMENT.json after each run.

    Args:
      experiment: the name of the results.
      configurations: by label; their `out`, `experts` and `seed` are set here.
      seeds: of data split, experts, distillation and students.
      judgements: judge the artifact again, with these fields of `config.Judgement`; by name.
      labels: the order of the results' rows, where they are more than are run now.
      runs: the experiment whose folder of runs is shared; default its own.
      derived: judge another artifact too, which is made from a finished run's; by name.

    Exits with 75 when it is interrupted: run it again.
    """
    reporter = Reporter()
    root = Path("runs") / (runs or experiment)
    for seed in seeds:
        for label, options in configurations.items():
            out = _folder(root, label, seed)
            options = dataclasses.replace(options, out=out, experts=Path("runs/experts"), seed=seed)
            reporter.say(f"== {experiment}: {label}, seed {seed}")
            if not (out / "report.json").exists():
                _run(options, reporter)
            for name, fields in (judgements or {}).items():
                path = out / f"{name}.json"
                if not path.exists():
                    judged = config.Judgement(seed=seed, json=path, **fields)
                    judging.judge(out / "artifact.safetensors", judged, reporter)
            for name, make in (derived or {}).items():
                path = out / f"{name}.json"
                if not path.exists():
                    judged = config.Judgement(seed=seed, json=path)
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


def _folder(root: Path, label: str, seed: int) -> Path:
    return root / f"{label.replace(',', '').replace(' ', '-')}-{seed}"


def _run(options: config.Distillation, reporter: Reporter) -> None:
    """One run; OUT/record.json says when, where, at which commits and in how many CPU seconds."""
    path = options.out / "record.json"
    try:
        # Beforehand, so that a row's CPU seconds are the same whoever needs the experts first.
        spent = _experts(options, reporter) if isinstance(options, config.Matching) else 0.0
        cpu = time.process_time()
        try:
            jobs.run(options, reporter)
        finally:
            before = {"cpu_seconds": 0.0, "commits": []}
            if path.exists():
                before = json.loads(path.read_text())
            record = {
                "date": datetime.date.today().isoformat(),
                "hardware": hardware(),
                "commits": sorted({*before["commits"], COMMIT}),
                "cpu_seconds": before["cpu_seconds"] + time.process_time() - cpu,
                "experts_cpu_seconds": spent,
            }
            if options.out.exists():
                write_json(path, record)
    except Interrupted:
        print("interrupted: run the same command again", file=sys.stderr)
        raise SystemExit(UNFINISHED) from None


def _experts(options: config.Matching, reporter: Reporter) -> float:
    """Trains the experts, if they are not there yet; the CPU seconds that they took."""
    store = options.experts or options.out / "experts"
    stage = config.Experts(
        options.data,
        options.architecture,
        options.expert,
        store,
        options.subtasks if isinstance(options, config.Divided) else None,
        options.seed,
    )
    paths = jobs.train_experts(stage, reporter)
    return sum(experts.training_seconds(path, "cpu_seconds") for path in paths)


def _row(label: str, seed: int, folder: Path, judgements: Iterable[str]) -> rows.Row:
    """What the results hold of one finished run."""
    report = json.loads((folder / "report.json").read_text())
    record = json.loads((folder / "record.json").read_text())
    configuration = yaml.safe_load((folder / "config.yaml").read_text())
    for name in ("out", "experts", "seed", "images"):
        del configuration[name]
    del configuration["data"]["data_dir"]
    row = {
        "label": label,
        "seeds": [seed],
        "accuracy": _accuracy(report["accuracy"]),
        "floats": report["floats"],
        "bytes": report["bytes"]["total"],
        "seconds": report["seconds"],
        "cpu_seconds": record["cpu_seconds"],
        "experts_cpu_seconds": record["experts_cpu_seconds"],
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
        row[f"accuracy_{name}"] = _accuracy(judged["accuracy"])
    return row


def _accuracy(accuracy: dict[str, Any]) -> dict[str, Any]:
    kept = {name: accuracy[name] for name in ("mean", "sd", "students")}
    return {**kept, "per_seed": [accuracy["mean"]]}


def _baseline(row: dict[str, Any]) -> dict[str, Any]:
    kept = {
        "accuracy": _accuracy(row["accuracy"]),
        "floats": row["floats"],
        "learning_rates": [row["learning_rate"]],
    }
    if "nearest_neighbours" in row:
        value = row["nearest_neighbours"]["accuracy"]
        kept["nearest_neighbours"] = {"mean": value, "sd": 0.0, "students": 1, "per_seed": [value]}
    return kept

"""Runs configurations of the main job over seeds, and keeps what they print in results/*.json.

A run's folder is `runs/EXPERIMENT/LABEL-SEED`; a run that was interrupted goes on where it was, and
one that is finished is read. `results/EXPERIMENT.json` holds a row for each label: configuration,
seeds, mean and standard deviation over all students of all seeds, hardware, date and commit.
"""

import dataclasses
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from d3jax import config, experts, jobs, judging
from d3jax.files import write_json
from d3jax.progress import UNFINISHED, Interrupted, Reporter

RESULTS = Path(__file__).parent / "results"


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
    return f"{os.cpu_count()} cores of {name}"


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


Distillation = config.DistillD3 | config.DistillDD
COMMIT = commit()  # of the code that this process has loaded


def run(
    experiment: str,
    configurations: Mapping[str, Distillation],
    seeds: tuple[int, ...],
    *,
    judgements: Mapping[str, Mapping[str, Any]] | None = None,
    labels: list[str] | None = None,
    runs: str | None = None,
) -> None:
    """Runs every configuration for every seed, and writes results/EXPERIMENT.json after each run.

    Args:
      experiment: the name of the results.
      configurations: by label; their `out`, `experts` and `seed` are set here.
      seeds: of data split, experts, distillation and students.
      judgements: judge the artifact again, with these fields of `config.Judgement`; by name.
      labels: rows of the results, where they are more than are run now.
      runs: the experiment whose folder of runs is shared; default its own.

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
            _collect(experiment, labels or list(configurations), seeds, root, judgements or {})


def _folder(root: Path, label: str, seed: int) -> Path:
    return root / f"{label.replace(',', '').replace(' ', '-')}-{seed}"


def _run(options: Distillation, reporter: Reporter) -> None:
    """One run; OUT/record.json says when, where, at which commits and in how many CPU seconds."""
    path = options.out / "record.json"
    try:
        # Beforehand, so that a row's CPU seconds are the same whoever needs the experts first.
        spent = _experts(options, reporter) if isinstance(options, config.DistillD3) else 0.0
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


def _experts(options: config.DistillD3, reporter: Reporter) -> float:
    """Trains the experts, if they are not there yet; the CPU seconds that they took."""
    store = options.experts or options.out / "experts"
    stage = config.Experts(options.data, options.architecture, options.expert, store, options.seed)
    return experts.training_seconds(jobs.train_experts(stage, reporter), "cpu_seconds")


def _collect(
    experiment: str,
    labels: list[str],
    seeds: tuple[int, ...],
    root: Path,
    judgements: Iterable[str],
) -> None:
    rows = []
    for label in labels:
        folders = [(seed, _folder(root, label, seed)) for seed in seeds]
        folders = [(seed, path) for seed, path in folders if (path / "report.json").exists()]
        if not folders:
            continue
        reports = [json.loads((path / "report.json").read_text()) for _, path in folders]
        records = [json.loads((path / "record.json").read_text()) for _, path in folders]
        configuration = yaml.safe_load((folders[0][1] / "config.yaml").read_text())
        for name in ("out", "experts", "seed", "images"):
            del configuration[name]
        del configuration["data"]["data_dir"]
        row = {
            "label": label,
            "seeds": [seed for seed, _ in folders],
            "accuracy": _pooled([report["accuracy"] for report in reports]),
            "floats": reports[0]["floats"],
            "bytes": reports[0]["bytes"]["total"],
            "seconds": {
                name: float(np.mean([report["seconds"][name] for report in reports]))
                for name in reports[0]["seconds"]
            },
            **{
                name: float(np.mean([record[name] for record in records]))
                for name in ("cpu_seconds", "experts_cpu_seconds")
            },
            **_more(reports),
            "baselines": {
                name: {
                    "accuracy": _pooled([r["baselines"][name]["accuracy"] for r in reports]),
                    "floats": reports[0]["baselines"][name]["floats"],
                    "learning_rates": [r["baselines"][name]["learning_rate"] for r in reports],
                    **_neighbours([r["baselines"][name] for r in reports]),
                }
                for name in reports[0]["baselines"]
            },
            "hardware": records[0]["hardware"],
            "date": records[-1]["date"],
            "commits": sorted({commit for record in records for commit in record["commits"]}),
            "configuration": configuration,
        }
        for name in judgements:
            files = [path / f"{name}.json" for _, path in folders]
            if all(file.exists() for file in files):
                judged = [json.loads(file.read_text())["accuracy"] for file in files]
                row[f"accuracy_{name}"] = _pooled(judged)
        rows.append(row)
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / f"{experiment}.json", {"experiment": experiment, "rows": rows})


def _more(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """What only some methods report: accuracies before the distilled steps, and an attack's."""
    found = {}
    if "before" in reports[0]:
        found["before"] = _pooled([report["before"] for report in reports])
    if "attack" in reports[0]:
        names = ("flipped_before", "flipped_after", "others_before", "others_after")
        found["attack"] = {n: _pooled([r["attack"][n] for r in reports]) for n in names}
    return found


def _neighbours(rows: list[dict[str, Any]]) -> dict[str, Any]:
    if "nearest_neighbours" not in rows[0]:
        return {}
    values = [row["nearest_neighbours"]["accuracy"] for row in rows]
    return {"nearest_neighbours": _pooled([{"mean": v, "per_student": [v]} for v in values])}


def _pooled(accuracies: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and sample standard deviation over all students of all seeds, and over seeds' means."""
    students = [value for accuracy in accuracies for value in accuracy["per_student"]]
    means = [accuracy["mean"] for accuracy in accuracies]
    return {
        "mean": float(np.mean(students)),
        "sd": float(np.std(students, ddof=1)) if len(students) > 1 else 0.0,
        "sd_over_seeds": float(np.std(means, ddof=1)) if len(means) > 1 else 0.0,
        "students": len(students),
        "per_seed": means,
    }

"""The result of a run: a row for the artifact and one for each baseline, and the report of all.

A row is printed and kept in OUT/rows.json as soon as it is known, and not judged again, by whatever
command that judges alike. Options that only say how to judge may differ between the commands of one
folder: their rows come to those that are there.
"""

import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.filesize import decimal

from d3jax import artifact
from d3jax.artifact import Artifact
from d3jax.data.sources import dataset_name
from d3jax.distill import metrics
from d3jax.evaluate import baselines, comparison
from d3jax.experts.store import fingerprint
from d3jax.host import clocks, compilation, files
from d3jax.host.clocks import Spent
from d3jax.host.progress import Reporter
from d3jax.keys import Stage, stage_key
from d3jax.run import machine, pictures, show, tables, taught
from d3jax.run.effort import students_of_baselines
from d3jax.run.folder import configuration
from d3jax.run.job import Job
from d3jax.run.judges import Judge, judge_of
from d3jax.run.options import JUDGING, Run, Studied
from d3jax.types import HeldOut

Report = dict[str, Any]
Row = dict[str, Any]
ROWS = "rows.json"


class Rows:
    """The rows of one artifact's judgements, as a file has them."""

    def __init__(self, path: Path, made: Artifact, options: Run, reporter: Reporter):
        self._path, self._reporter = path, reporter
        arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(made.theta)]
        self._by = {**judging(configuration(options)), "artifact": fingerprint(*arrays)}
        self._all: list[Row] = files.read_json(path) if path.exists() else []

    def known(self) -> dict[str, Row]:
        """Those that were judged as these options say, by name."""
        return {row["name"]: row["row"] for row in self._all if row["by"] == self._by}

    def first(self, name: str) -> Row | None:
        """The first of that name, however it was judged."""
        mine = (row for row in self._all if row["by"]["artifact"] == self._by["artifact"])
        return next((row["row"] for row in mine if row["name"] == name), None)

    def others(self) -> list[Row]:
        """Those that were judged otherwise."""
        return [row for row in self._all if row["by"] != self._by]

    def add(self, name: str, row: Row) -> Row:
        """Keeps and prints a row; as it is read from the file."""
        kept = [each for each in self._all if (each["name"], each["by"]) != (name, self._by)]
        files.write_json(self._path, [*kept, {"name": name, "by": self._by, "row": row}])
        self._all = files.read_json(self._path)
        self._reporter.say(tables.row_line({"name": name, **row}))
        return self.known()[name]


def judging(configuration: dict[str, Any]) -> dict[str, Any]:
    """What of a configuration says how to judge."""
    return {name: configuration[name] for name in JUDGING if name in configuration}


def answers(report: Report, options: Run) -> bool:
    """Whether a report has all rows that the options ask for."""
    alike = judging(report["configuration"]) == judging(configuration(options))
    return alike and set(options.baselines) <= set(report["baselines"])


def save(job: Job, made: Artifact) -> Artifact:
    """Writes the artifact and the pictures of a run; returns what was written."""
    out = job.options.out
    artifact.save(made, out / artifact.NAME)
    made = artifact.load(out / artifact.NAME)
    pictures.curves(out / "curves.png", metrics.read(out / metrics.METRICS))
    key = stage_key(job.options.seed, Stage.STUDENTS)
    show.decoded_picture(out / "images.png", made, job.world.normalization, key)
    return made


def judged(job: Job, made: Artifact, spent: Spent, reporter: Reporter) -> Report:
    """Judges the artifact that a run has written, compares it, and writes the report.

    spent: on experts and, as `compile`, on compiling the outer step.
    """
    options, world = job.options, job.world
    dataset, normalization = world.dataset, world.normalization
    rows = Rows(options.out / ROWS, made, options, reporter)
    students, lent = None, None
    if taught.has_teacher(options, dataset):
        lent = taught.lent(job, made, reporter)
    if isinstance(options, Studied):
        taught.check_views(made, options.student)
        size = baselines.stored(made.theta, labels=lent is None or not lent.soft)
        students = students_of_baselines(options, size, dataset)
        if lent is not None and lent.soft:
            reporter.say(taught.as_told(options, made))
    judge = judge_of(made, world.network, options, job.trained_on, students, reporter)
    choosing = comparison.choosing(dataset, normalization, options.seed)
    test = dataset.held_out(normalization)
    own = _own_row(job, made, judge, choosing, test, rows)
    if options.baselines:
        reporter.say(_announced(options, students))
    known = {n: row for n, row in rows.known().items() if row.get("asked_students") == students}
    for name, row in comparison.compare(
        options.baselines, options.baseline_learning_rates, made, dataset, normalization,
        choosing, test, judge.best, options.seed, reporter,
        known=known, score=judge.score, neighbours=judge.score is not None, lent=lent,
        labels=taught.of_baselines(job, reporter),
    ):  # fmt: skip
        rows.add(name, {**row, "asked_students": students})
    finished = _report(job, made, spent, own, rows)
    files.write_json(options.out / "report.json", finished)
    reporter.console.print(tables.accuracy_table(finished))
    reporter.say(_told(finished))
    reporter.say(f"written to {options.out}")
    return finished


def _own_row(
    job: Job, made: Artifact, judge: Judge, choosing: HeldOut, test: HeldOut, rows: Rows
) -> Row:
    """The artifact's own row. Its file keeps the learning rate that its first judgement chose."""
    name, header = job.spec.name, made.header
    before = rows.first(name)
    if before is not None and "learning_rates" in before:
        header["student_learning_rate"] = before["learning_rates"]["learned"]
    own = rows.known().get(name)
    if own is None:
        begun = time.monotonic()
        reached, more = judge.reached(made, choosing, test)
        row = {
            "accuracy": reached.summary(),
            **more,
            "learning_rate": reached.learning_rate,
            "seconds": reached.seconds,
            "judging_seconds": time.monotonic() - begun,
        }
        own = rows.add(name, row)
    first = rows.first(name)
    assert first is not None
    if "learning_rates" in first:
        header["student_learning_rate"] = first["learning_rate"]
        artifact.save(made, job.options.out / artifact.NAME)
    return own


def _report(job: Job, made: Artifact, spent: Spent, own: Row, rows: Rows) -> Report:
    options = job.options
    steps = metrics.read(options.out / metrics.METRICS)[-1]
    known = {name: row for name, row in rows.known().items() if name != job.spec.name}
    ordered = {name: known[name] for name in (*options.baselines, *known)}
    seconds = {
        "experts": spent["seconds"],
        "compile": spent.get("compile", 0.0),
        "distill": float(steps["seconds"]),
        "students": own["judging_seconds"],
        "baselines": sum(row["judging_seconds"] for row in known.values()),
    }
    apart = ("seconds", "judging_seconds", "learning_rate")
    return {
        "method": job.spec.name,
        "dataset": dataset_name(options.data.dataset),
        "network": options.architecture.network,
        **{name: value for name, value in own.items() if name not in apart},
        "baselines": ordered,
        "other_judgements": rows.others(),
        **made.ledger,
        "seconds": {**seconds, "total": sum(seconds.values()), "student": own["seconds"]},
        "cpu_seconds": {
            "experts": spent["cpu_seconds"],
            "distill": clocks.of(steps)["cpu_seconds"],
        },
        "machine": {**machine.used(), "compile_seconds": compilation.seconds()},
        "seed": options.seed,
        "configuration": configuration(options),
        "versions": artifact.versions(),
    }


def _announced(options: Run, students: int | None) -> str:
    """What is said before the baselines begin."""
    named = ", ".join(options.baselines)
    said = f"baselines: {named}; --baselines alone leaves them out, here or when the run goes on"
    if isinstance(options, Studied) and (students or 0) < options.student.students:
        said += f"\nstudents of each: {students}"
        if options.baseline_students is None:
            said += ", since more would take longer than the distillation (see --baseline-students)"
    return said


def _told(finished: Report) -> str:
    """Where the time went, and on what."""
    seconds, used = finished["seconds"], finished["machine"]
    parts = ("experts", "compile", "distill", "students", "baselines", "total")
    spent = ", ".join(f"{name} {seconds[name]:.0f}" for name in parts)
    memory = f"{decimal(used['host_peak_bytes'])} of memory"
    if used["device_peak_bytes"] is not None:
        memory += f", {decimal(used['device_peak_bytes'])} of the device's"
    return f"seconds: {spent}; {used['devices']} x {used['device']}, at most {memory}"

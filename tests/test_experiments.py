"""Experiments: tables in step with results, the large recipes runnable."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from d3jax.host.progress import Reporter
from d3jax.run import run as jobs
from experiments import frontier, imagenet64_d3, pairs, rows, tables, tiny_imagenet_d3

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("path", tables.FILES, ids=lambda path: path.name)
def test_tables_are_rendered_from_the_results(path):
    text = path.read_text()
    assert tables.in_step(text) == text, "run python -m experiments.tables"


def _group(*values):
    return {
        "mean": np.mean(values),
        "sd": np.std(values, ddof=1) if len(values) > 1 else 0.0,
        "students": len(values),
        "per_seed": [np.mean(values)],
    }


def test_the_spread_is_that_between_seeds():
    """By hand: three seeds of means 0.5, 0.7 and 0.6, the first two of an older, pooled row."""
    seeds = ([0.4, 0.6], [0.69, 0.71], [0.57, 0.63])
    older = {**_group(*seeds[0], *seeds[1]), "per_seed": [0.5, 0.7]}
    pooled = rows.pooled([older, _group(*seeds[2])])
    assert pooled["mean"] == pytest.approx(0.6)
    assert pooled["sd"] == pytest.approx(0.1)
    assert pooled["per_seed"] == pytest.approx([0.5, 0.7, 0.6])
    assert pooled["students"] == 6
    # Within seeds: the mean of variances 2 * 0.1^2, 2 * 0.01^2 and 2 * 0.03^2.
    assert pooled["students_sd"] == pytest.approx(np.sqrt((0.02 + 0.0002 + 0.0018) / 3))
    assert tables.percent(pooled, 3) == "60.0 ± 10.0"
    assert tables.percent(pooled, 4) == "60.0 ± 10.0 (3 seeds)"


def test_one_seed_has_no_spread_and_says_so():
    one = rows.pooled([_group(0.4, 0.6)])
    assert (one["mean"], one["sd"]) == (pytest.approx(0.5), None)
    assert one["students_sd"] == pytest.approx(np.sqrt(0.02))
    assert tables.percent(one) == "50.0 (1 seed)"
    assert tables.percent(one, 1) == "50.0"  # as the row's first accuracy says
    assert tables.percent(one, 3) == "50.0 (1 seed)"
    assert rows.pooled([_group(0.4)])["students_sd"] is None


def _row(label, seeds, *values, rate=1, **more):
    """A student a seed."""
    return {
        "label": label,
        "seeds": seeds,
        "accuracy": {**_group(*values), "per_seed": list(values)},
        "cpu_seconds": 10.0 * (1 + seeds[0]),
        "experts_cpu_seconds": 1.0,
        "baselines": {},
        "configuration": {"method": {"rate": rate, **more}},
    }


def test_results_keep_the_runs_of_other_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    rows.write("x", [_row("b", [0, 1], 0.5, 0.7), _row("a", [0], 0.2)], ["a", "b"])
    rows.write("x", [_row("b", [2], 0.9, new_field=3)], ["a", "b"])
    kept = rows.read("x")
    assert [(row["label"], row["seeds"]) for row in kept] == [("a", [0]), ("b", [0, 1]), ("b", [2])]
    pooled = rows.by_label(kept)[1]
    assert pooled["seeds"] == [0, 1, 2]
    assert pooled["accuracy"]["mean"] == pytest.approx(0.7)
    assert pooled["cpu_seconds"] == pytest.approx((2 * 10 + 30) / 3)
    rows.write("x", [_row("b", [1], 0.9)], ["a", "b"])  # stands for a seed of the pooled row
    assert [row["seeds"] for row in rows.read("x")] == [[0], [1], [2]]
    rows.write("x", [_row("b", [0], 0.1, rate=2)], ["a", "b"])  # another configuration
    assert [row["seeds"] for row in rows.read("x")] == [[0], [0]]


def test_differences_are_paired_by_seed():
    """By hand: dwa - sre2l is 0.1 and 0.3 in seeds 0 and 2; of seed 1 there is but one."""
    found = [
        _row("dwa", [0, 1], 0.5, 0.9), _row("dwa", [2], 0.7),
        _row("sre2l", [0], 0.4), _row("sre2l", [2], 0.4),
    ]  # fmt: skip
    for row, best in zip(found, (0.2, 0.3)):
        accuracy = {**_group(best), "per_seed": [best] * len(row["seeds"])}
        row["baselines"] = {"random": {"accuracy": accuracy}}
    known = pairs.by_seed(found)
    mean, error, seeds = pairs.paired(known["dwa"], known["sre2l"])
    assert (mean, error, seeds) == (pytest.approx(0.2), pytest.approx(0.1), 2)
    assert known["dwa: random"] == {0: 0.2, 1: 0.2, 2: 0.3}
    assert "| dwa - sre2l | all of DWA | +20.0 ± 10.0 | 2 |" in pairs.table(found)


def tiny(options, out, data):
    """A few steps of a recipe on small data of the same shape."""
    large = options.parametrization.decoder == "large"
    return dataclasses.replace(
        options,
        data=dataclasses.replace(options.data, dataset=str(data)),
        architecture=dataclasses.replace(options.architecture, width=4),
        parametrization=dataclasses.replace(
            options.parametrization,
            decoder_width=16,
            latent_size=64 if large else 8,
        ),
        d3=dataclasses.replace(
            options.d3,
            inner_steps=2,
            mmd_samples=2,
            max_start_epoch=1,
            mmd_classes=options.d3.mmd_classes and 1,  # subtasks have 3 or 4 classes here
        ),
        expert=dataclasses.replace(options.expert, count=1, epochs=2, batch_size=16),
        student=dataclasses.replace(options.student, students=1, epochs=2),
        outer_steps=2,
        baselines=("random",),
        out=out,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["small", "medium", "large", "tiny"])
def test_the_large_recipes_run(name, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "test"):
        labels = np.arange(64) % 16
        arrays[f"{split}_labels"] = labels
        arrays[f"{split}_images"] = rng.integers(0, 256, (64, 64, 64, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", **arrays)
    if name == "tiny":
        options = tiny_imagenet_d3.configuration("tiny_imagenet_20")
    else:
        options = imagenet64_d3.configurations([name])[name]
    report = jobs.run(tiny(options, tmp_path / "run", tmp_path / "data.npz"), Reporter())
    assert 0 <= report["accuracy"]["mean"] <= 1
    assert (report["bytes"]["labels"] > 0) == (options.parametrization.labels == "expert")


def test_the_points_of_a_plot_are_pooled_by_name_and_sorted_by_bytes():
    def row(label, size, accuracy, **baselines):
        own = {
            n: {"bytes": b, "accuracy": rows.pooled([_group(a)])} for n, (b, a) in baselines.items()
        }
        return {"label": label, "bytes": size, "accuracy": accuracy, "baselines": own}

    two = rows.pooled([_group(0.4), _group(0.6)])
    one = rows.pooled([_group(0.3)])
    found = frontier.points([row("d3, 5", 50, two, random_uint8=(49, 0.2)), row("d3, 1", 10, one)])
    assert found["d3"] == [
        (10, 30.0, 0.0),
        (50, 50.0, pytest.approx(100 * np.std([0.4, 0.6], ddof=1))),
    ]
    assert found["random, uint8"] == [(49, 20.0, 0.0)]
    frontier.picture(found)

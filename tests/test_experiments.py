"""Experiments: tables in step with results, README in step with CI, the large recipes runnable."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from d3jax import jobs
from d3jax.progress import Reporter
from experiments import imagenet64_d3, runner, tables, tiny_imagenet_d3

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("path", tables.FILES, ids=lambda path: path.name)
def test_tables_are_rendered_from_the_results(path):
    text = path.read_text()
    assert tables.in_step(text) == text, "run python -m experiments.tables"


def test_pooled_statistics():
    pooled = runner._pooled(
        [{"mean": 0.5, "per_student": [0.4, 0.6]}, {"mean": 0.7, "per_student": [0.7, 0.7]}]
    )
    assert pooled["mean"] == pytest.approx(0.6)
    assert pooled["sd"] == pytest.approx(np.sqrt((0.04 + 0.0 + 0.01 + 0.01) / 3))
    assert pooled["sd_over_seeds"] == pytest.approx(np.sqrt(0.02))
    assert pooled["students"] == 4


def test_readme_promises_the_command_that_ci_runs():
    pattern = re.search(r"grep -m 1 '(.*)' README.md", (ROOT / ".ci" / "run").read_text())
    assert pattern is not None
    lines = [line for line in (ROOT / "README.md").read_text().splitlines()]
    found = [line for line in lines if re.match(pattern[1], line)]
    assert len(found) == 1
    assert "pytest" in found[0]


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
        d3=dataclasses.replace(options.d3, inner_steps=2, mmd_samples=2, max_start_epoch=1),
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
    report = jobs.distill_d3(tiny(options, tmp_path / "run", tmp_path / "data.npz"), Reporter())
    assert 0 <= report["accuracy"]["mean"] <= 1
    assert (report["bytes"]["labels"] > 0) == (options.parametrization.labels == "expert")

"""The accelerator script: every kind of row at toy size, and what it does when time runs out."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import IMAGE_SHAPE, make_real

from benchmarks import accelerator
from benchmarks.accelerator.case import Case
from d3jax.experts import fresh_parameters
from d3jax.experts.epoch import epoch_function
from experiments import tables

ROOT = Path(__file__).parent.parent
WITHOUT = """
import runpy, sys
class Missing:
    names = {"tyro", "tensorflow_datasets", "array_record", "tensorstore", "orbax", "sklearn"}
    names |= {"torch"}  # it is there on a GPU's machine; here its rows would take half the time
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
sys.argv = ["benchmarks", *sys.argv[1:]]
runpy.run_module("benchmarks", run_name="__main__")
"""


@pytest.mark.long
def test_the_dry_run_measures_every_kind_of_row_without_the_packages_that_it_may_lack(
    tmp_path, capsys
):
    file = tmp_path / "dry.json"
    arguments = ["accelerator", "--dry", "--out", str(file)]
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT, *arguments], cwd=ROOT, text=True, capture_output=True
    )
    assert run.returncode == 0, run.stderr
    rows = json.loads(file.read_text())
    wrong = [row for row in rows if "skipped" in row or "failed" in row]
    assert all(row["section"] == "peers" for row in wrong), wrong
    assert all("torch" in row["failed"] for row in wrong), "only PyTorch may be missing"
    assert {row["section"] for row in rows} == set(accelerator.COLUMNS) - {"real"}
    by_name = {row["work"]: row for row in rows}
    for method in ("D3", "MTT", "DD"):
        losses = [
            by_name[f"{method}, 1 a class, T=2, {precision}"]["loss"]
            for precision in ("tensorfloat32", "float32", "bfloat16")
        ]
        np.testing.assert_allclose(losses, losses[0], atol=0.02)

    tables.main(["--accelerator", str(file)])
    page = capsys.readouterr().out
    assert page.count("## ") == len(accelerator.COLUMNS) - 1
    assert "| MTT, 1 a class, T=2, bfloat16 |" in page


def test_a_row_that_fails_or_does_not_fit_costs_no_other(tmp_path):
    def fail():
        raise RuntimeError("out of memory\nand a long trace")

    def stop():
        raise SystemExit("losses differ")

    cases = [
        Case("flags", "fails", fail, 1.0),
        Case("flags", "stops", stop, 1.0),
        Case("flags", "too long", lambda: {"steps_per_second": 1.0}, 1e4),
        Case("flags", "measured before", lambda: {}, 1e4),
        Case("flags", "good", lambda: {"steps_per_second": 2.0}, 1.0),
    ]
    before = {"section": "flags", "work": "measured before", "steps_per_second": 3.0}
    rows = {("flags", "measured before"): before}
    accelerator.measure(cases, rows, tmp_path / "rows.json", 1.0)
    found = {row["work"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    assert found["fails"]["failed"] == "RuntimeError: out of memory"
    assert found["stops"]["failed"] == "SystemExit: losses differ"
    assert found["too long"]["skipped"].startswith("not measured")
    assert found["measured before"] == before
    assert found["good"]["steps_per_second"] == 2.0
    _, body = accelerator.table([*found.values()], "flags")
    assert ["good", "", "2.0"] in body


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_experts_are_the_same_side_by_side_and_one_after_another(
    backend, tiny_network, monkeypatch
):
    """A GPU takes many images through one network after another; here both are computed."""
    real = make_real(tiny_network, 0, counts=(60, 50, 40))
    keys = jax.random.split(jax.random.key(0), 2)
    params = jax.vmap(fresh_parameters(tiny_network))(keys)
    alone = [
        jax.jit(epoch_function(tiny_network, (), 128, 0.1))(params[i, None], keys[i, None], real)[0]
        for i in range(2)
    ]
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    trained, losses = jax.jit(epoch_function(tiny_network, (), 128, 0.1))(params, keys, real)
    np.testing.assert_allclose(trained, jnp.concatenate(alone), rtol=1e-4, atol=1e-6)
    assert losses.shape == (2,)
    assert real.images.shape[1:] == IMAGE_SHAPE

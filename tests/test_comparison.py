"""d3jax compare: finished runs side by side."""

import json

import pytest
from PIL import Image

from d3jax import cli
from d3jax.host.progress import Reporter
from d3jax.run.compare import compare
from d3jax.types import InputError


def finished(folder, mean, size, **options):
    folder.mkdir()
    accuracy = {"mean": mean, "sd": 0.01, "students": 2}
    row = {"accuracy": {**accuracy, "mean": 0.5}, "bytes": 900, "floats": 400, "seconds": 1.0}
    report = {
        "method": "d3", "accuracy": accuracy, "floats": 10, "bytes": {"total": size},
        "seconds": {"student": 1.0}, "baselines": {"random": row},
        "configuration": {"seed": 0, "out": str(folder), "d3": options},
    }  # fmt: skip
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def test_what_differs_and_what_was_reached(tmp_path, capsys):
    one = finished(tmp_path / "one", 0.61, 1000, inner_steps=10, mmd=True)
    two = finished(tmp_path / "two", 0.67, 2000, inner_steps=20, mmd=True)
    picture = tmp_path / "picture.png"
    cli.main(["compare", str(one), str(two), "--picture", str(picture)])
    text = capsys.readouterr().out
    differs = [line for line in text.splitlines() if "inner_steps" in line]
    assert differs[0].split() == ["d3.inner_steps", "10", "20"]
    assert "d3.mmd" not in text
    assert "61.00" in text
    assert "67.00" in text
    with Image.open(picture) as plot:
        plot.load()
        assert min(plot.size) > 300
    rows = compare([one, two], picture, Reporter())
    # The baseline is the same in both.
    assert [row["name"] for row in rows] == ["one", "two", "random (one)"]


def test_runs_that_cannot_be_compared(tmp_path):
    one = finished(tmp_path / "one", 0.6, 1000)
    (tmp_path / "begun").mkdir()
    for runs, message in (
        ([one], "two finished runs"),
        ([one, tmp_path / "begun"], "no finished run in .*begun"),
    ):
        with pytest.raises(InputError, match=message):
            compare(runs, tmp_path / "picture.png", Reporter())
    with pytest.raises(InputError, match="is a folder; name a file in it"):
        compare([one, one], tmp_path, Reporter())
    with pytest.raises(InputError, match="there is no folder"):
        compare([one, one], tmp_path / "none" / "picture.png", Reporter())

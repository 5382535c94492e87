"""python -m benchmarks: what it says while it measures, and how long a quick one takes."""

import json
import sys
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure

from benchmarks import __main__ as benchmarks


def fake(clock, seconds):
    """A benchmark of three rows that take so long."""

    def case():
        clock.now += seconds
        return {"cpu_seconds": 0.1234}

    return SimpleNamespace(
        cases=lambda quick: dict.fromkeys(("a", "b", "c"), case),
        table=lambda rows: (["work", "CPU s", "MiB"], [[r["work"], "0.123", ""] for r in rows]),
        plot=lambda rows: Figure(),
    )


@pytest.mark.parametrize(("quick", "rows"), [(True, 2), (False, 3)])
def test_rows_are_counted_and_a_quick_benchmark_ends(quick, rows, tmp_path, monkeypatch, capsys):
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(benchmarks, "time", clock)
    out = tmp_path / "rows.json"
    measured = benchmarks.measure("fake", fake(clock, 50.0), out, quick, "")
    assert [row["work"] for row in measured] == ["a", "b", "c"][:rows]
    assert len(json.loads(out.read_text())) == rows
    text = capsys.readouterr().out
    assert text.index("fake 2/3: b ...\n") < text.index("  work: b; CPU s: 0.123\n")
    assert ("fake: 2 of 3 rows in 100 s; the others would take longer than 120 s" in text) == quick


def test_help_says_what_each_measures(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--help"])
    with pytest.raises(SystemExit) as caught:
        benchmarks.main()
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for name in benchmarks.NAMES:
        assert f"  {name} " in text
    assert "Temporary bytes of a compiled outer step against T" in text

import io
import math
import re
import struct
import sys

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from d3jax.run import pictures, stages, tables
from d3jax.types import InputError


def _text(table):
    console = Console(width=120, file=io.StringIO(), color_system=None)
    console.print(table)
    return console.file.getvalue()


def _pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("channels", [1, 3])
def test_picture_shows_every_image_enlarged_without_smoothing(tmp_path, channels):
    rows = np.zeros((2, 5, 8, 8, channels), np.uint8)
    rows[1, 4, :, :, 0] = 201  # one image of a colour that occurs nowhere else
    rows[1, 4, 0, 0] = 7
    title = "Two of $n$ classes" if channels == 3 else None
    pictures.picture(tmp_path / "images.png", rows, ["cat", "$1$"], title)
    pixels = _pixels(tmp_path / "images.png")
    assert pixels.shape[0] == 2 * 16 + 2 * 64 + 4 + (40 if title else 0)
    pixels = pixels[:, 60:]  # right of the names, whose letters are of every grey
    colour = [201] * 3 if channels == 1 else [201, 0, 0]
    assert (pixels == colour).all(-1).sum() == 63 * 8 * 8  # enlarged to 64 x 64
    found = np.argwhere((pixels == colour).all(-1))
    assert (found.max(0) - found.min(0) + 1).tolist() == [64, 64]
    assert found[:, 0].min() > 64  # it is the last one of the second row
    assert found[:, 1].min() > 4 * 64


def test_picture_draws_no_more_than_is_legible_and_says_so(tmp_path, monkeypatch):
    titles = []
    original = pictures._plain
    monkeypatch.setattr(pictures, "_plain", lambda text: titles.append(text) or original(text))
    rows = np.zeros((25, 50, 8, 8, 1), np.uint8)
    pictures.picture(tmp_path / "images.png", rows, [f"class {i}" for i in range(25)], title="Many")
    assert "Many (first 20 of 25 rows, first 40 of 50 columns)" in titles
    assert "class 19" in titles
    assert "class 20" not in titles
    height, width, _ = _pixels(tmp_path / "images.png").shape
    assert height > 20 * 40
    assert 40 * 40 < width < 2500


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        (np.zeros((1, 2, 8, 8, 3), np.float32), ["a"]),
        (np.zeros((2, 8, 8, 3), np.uint8), ["a", "b"]),
        (np.zeros((1, 2, 8, 8, 2), np.uint8), ["a"]),
        (np.zeros((1, 0, 8, 8, 1), np.uint8), ["a"]),
        (np.zeros((2, 2, 8, 8, 1), np.uint8), ["a"]),
    ],
)
def test_picture_refuses_what_does_not_fit(tmp_path, rows, names):
    with pytest.raises(InputError, match="a picture"):
        pictures.picture(tmp_path / "images.png", rows, names)
    assert not list(tmp_path.iterdir())


def _run(number):
    return [
        {"step": i, "seconds": 0.1, "loss": math.exp(-i), "distance": -1.0 if i % 2 else math.nan}
        | ({"accuracy": 0.5} if i % 10 == 0 else {})
        for i in range(number)
    ]


_BROKEN = {"loss": math.nan, "mmd_distance": None, "accuracy": math.inf}


@pytest.mark.parametrize(
    "metrics",
    [[], [{"step": 3, "seconds": 0.5, "loss": 2.0}], [{"step": 1} | _BROKEN] * 2, _run(100)],
    ids=["none", "one", "not-finite", "many"],
)
def test_curves_take_what_a_run_may_leave(tmp_path, metrics):
    pictures.curves(tmp_path / "curves.png", metrics)
    pixels = _pixels(tmp_path / "curves.png")
    names = {name for row in metrics for name in row} - {"step", "seconds", "cpu_seconds"}
    assert pixels.shape[1] == 420 * max(1, len(names))
    assert (pixels < 200).any()


def test_running_median_is_the_median_of_its_window():
    values = np.random.default_rng(0).normal(size=100)
    median = pictures._running_median(values)
    assert median[50] == np.median(values[48:53])
    assert median[0] == np.median(values[:3])
    assert median[99] == np.median(values[97:])


def test_comparison_table_shows_per_cents_floats_bytes_and_seconds():
    accuracy = {"mean": 0.91234, "sd": 0.0045, "students": 5}
    single = {"mean": 0.7, "sd": 0.0, "students": 1}
    known = {"floats": 61083, "bytes": 122166, "seconds": 3.2}
    unknown = {"floats": None, "bytes": None, "seconds": None}
    rows = [
        {"name": "D3", "accuracy": accuracy} | known,
        {"name": "random [real]", "accuracy": single} | unknown,
    ]
    lines = _text(tables.comparison_table(rows)).splitlines()
    (first,) = [line for line in lines if "D3" in line]
    cells = re.split("  +", first)
    assert cells == ["D3", "91.23", "0.45 (5)", "61,083", "122.2 kB", "3.20"]
    (second,) = [line for line in lines if "random [real]" in line]
    cells = re.split("  +", second)
    assert cells == ["random [real]", "70.00", "- (1)", "-", "-", "-"]
    assert lines[0].strip() == "Students of the stored data alone, one seed"
    assert "±" not in "".join(lines)  # that is between seeds, and this is one


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("width", [60, 80, 120])
def test_tables_fit_the_terminal(width, encoding):
    accuracy = {"mean": 0.7216, "sd": 0.0639, "students": 5}
    numbers = {"accuracy": accuracy, "floats": 62491, "bytes": 133386, "seconds": 12.0}
    rows = [{"name": "kmeans_uint8", **numbers, "note": "13 of 15 images per class"}]
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)  # an error where it cannot be shown
    console = Console(width=width, file=file, color_system=None)
    console.print(tables.comparison_table(rows))
    console.print(tables.ledger_table({"total": 133386, "latents": 133000, "other": 386}))
    lines = raw.getvalue().decode().splitlines()
    assert max(map(len, lines)) <= width
    rows = [re.split("  +", line.strip()) for line in lines]
    assert ["kmeans_uint8", "72.16", "6.39 (5)", "62,491", "133.4 kB", "12"] in rows
    assert ["latents", "133,000", "99.7 %"] in rows


@pytest.mark.parametrize("as_html", [False, True])
def test_comparison_table_says_what_a_baseline_in_bytes_is(as_html):
    known = {"accuracy": {"mean": 0.5, "sd": 0.1, "students": 2}, "floats": 8, "seconds": 1.0}
    rows = [{"name": "random", "bytes": 16, **known}]
    rows += [{"name": "kmeans_uint8", "bytes": 1234, "note": "4 of <5> images", **known}]

    def text(rows):
        return tables.html_table(rows) if as_html else _text(tables.comparison_table(rows))

    assert "a byte a pixel" not in text(rows[:1])
    assert "a byte a pixel" in text(rows)
    assert f"kmeans_uint8: 4 of {'&lt;5&gt;' if as_html else '<5>'} images" in text(rows)
    assert ("<td>1,234</td>" if as_html else "1.2 kB") in text(rows)


def test_ledger_table_shows_bytes_and_shares_of_the_total():
    ledger = {"total": 4000, "images": 0, "latents": 1000, "decoder": 3000, "labels": 0, "other": 0}
    lines = _text(tables.ledger_table(ledger)).splitlines()
    assert any(all(c in line for c in ("latents", "1,000", "25.0 %")) for line in lines)
    assert any(all(c in line for c in ("total", "4,000", "4.0 kB")) for line in lines)
    assert "total" in _text(tables.ledger_table({"total": 0, "images": 0}))


def test_markdown_table():
    text = tables.markdown_table(["method", "accuracy"], [["a|b", 1.5], ["c", 2]])
    assert text == "| method | accuracy |\n| --- | ---: |\n| a\\|b | 1.5 |\n| c | 2 |\n"
    with pytest.raises(InputError, match="2 columns"):
        tables.markdown_table(["a", "b"], [[1]])


def test_event_file_reads_back(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    with stages.observer(True, tmp_path) as observe:
        observe([{"step": 3, "loss": 0.5, "accuracy": 0.25}, {"step": 2**33, "loss": -1}])
    (path,) = (tmp_path / "events").iterdir()
    assert "tfevents" in path.name
    data, found = path.read_bytes(), []
    while data:  # a record: length u64, its checksum u32, the message, its checksum u32
        (length,) = struct.unpack_from("<Q", data)
        event = Event.FromString(data[12 : 12 + length])
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        data = data[16 + length :]
    assert found == [(3, "loss", 0.5), (3, "accuracy", 0.25), (2**33, "loss", -1.0)]
    assert "tensorflow" not in sys.modules


def test_without_the_extra_the_command_that_installs_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(InputError, match=r"pip install 'd3jax\[tensorboard\]'"):
        stages.check_tensorboard()

"""The page of a run, also as a browser shows it."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from test_cli import called, no_folder_of_the_users, refused  # noqa: F401

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
MAGENTA = (255, 0, 255)
REPORT = {
    "method": "d3",
    "dataset": "digits <b>",
    "network": "convnet",
    "accuracy": {"mean": 0.5, "sd": 0.0125, "students": 2, "per_student": [0.4875, 0.5125]},
    "baselines": {
        "random": {
            "accuracy": {"mean": 0.25, "sd": 0.01, "students": 2}, "floats": 640, "bytes": 2560,
            "seconds": 1.5,
        }
    },
    "bytes": {"total": 2000, "images": 0, "latents": 500, "decoder": 1400, "labels": 0,
              "other": 100},
    "floats": 950,
    "ipc_equivalent": {"float32": 0.78, "uint8": 3.125},
    "seconds": {"distill": 12.5, "total": 20.0, "student": 2.0},
    "machine": {"device": "cpu", "host_peak_bytes": 10**9, "device_peak_bytes": None},
    "seed": 7,
    "configuration": {"outer_steps": 40, "d3": {"inner_steps": 3}, "architecture": {"width": None}},
    "versions": {"d3jax": "0.1.0", "jax": "0.10.2"},
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "report.json").write_text(json.dumps(REPORT))
    (out / "metrics.jsonl").write_text('{"step": 40, "loss": 0.125, "mmd": null}\n')
    Image.new("RGB", (120, 50), MAGENTA).save(out / "images.png")
    return out


def test_a_page_has_all_of_a_run_and_needs_nothing_else(run, capsys):
    class Words(HTMLParser):
        rows: list[list[str]] = []  # noqa: RUF012

        def handle_starttag(self, tag, attrs):
            assert tag not in ("script", "link", "iframe")
            for name, value in attrs:
                assert name not in ("src", "href") or value.startswith("data:image/png;base64,")
            if tag == "tr":
                self.rows.append([])

        def handle_data(self, data):
            if self.rows and data.strip():
                self.rows[-1].append(data)

    called(capsys, "report", run, "--html")
    page = (run / "report.html").read_text()
    parser = Words()
    parser.feed(page)
    for row in (
        ["random", "25.00", "1.00 (2)", "640", "2,560", "1.50"],
        ["decoder", "1,400", "70.0 %"],
        ["loss", "0.125"],
        ["d3.inner_steps", "3"],
        ["jax", "0.10.2"],
    ):
        assert row in [found[: len(row)] for found in parser.rows], row
    assert "digits &lt;b&gt;, distilled by d3" in page
    assert "50.00 % of the test images (standard deviation 1.25)" in page
    assert not re.search(r"https?://", page)
    assert "d3" in called(capsys, "report", run)
    (run / "report.json").unlink()
    assert "no finished run" in refused(capsys, "report", run, "--html")


@pytest.mark.skipif(BROWSER is None, reason="no chromium here")
def test_a_browser_shows_it(run, capsys, tmp_path):
    called(capsys, "report", run, "--html")
    shot = tmp_path / "shot.png"
    subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         f"--user-data-dir={tmp_path / 'profile'}", "--window-size=900,1600",
         f"--screenshot={shot}", (run / "report.html").as_uri()],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    seen = np.asarray(Image.open(shot).convert("RGB")).reshape(-1, 3)
    assert (seen == MAGENTA).all(1).sum() == 120 * 50  # the picture, at its own size
    assert (seen.max(1) < 100).mean() > 0.005  # and text

"""One page of a finished run: `d3jax report`."""

import base64
import hashlib
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from d3jax import artifact
from d3jax.distill import metrics
from d3jax.host import files
from d3jax.host.progress import Reporter
from d3jax.run import tables
from d3jax.run.compare import options_of, read_report

_PICTURES = {
    "start.png": "Before the first outer step",
    "images.png": "The distilled data",
    "curves.png": "What each outer step measured",
}
_STYLE = """
:root { color-scheme: light }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 60rem;
       margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2rem }
table { border-collapse: collapse; display: block; overflow-x: auto }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #ddd;
         vertical-align: top }
caption { caption-side: bottom; text-align: left; color: #666; padding-top: .5rem }
img { max-width: 100%; height: auto }
code { overflow-wrap: anywhere }
"""


def report(out: Path, page: bool, reporter: Reporter) -> Path | None:
    """Runs `d3jax report`: prints a finished run's tables, or writes them as one HTML page.

    The page, OUT/report.html, needs nothing beside it: pictures and style are in it, and it runs no
    script. Returns its path.

    Raises:
      InputError: there is no finished run in the folder.
    """
    found = read_report(out)
    if not page:
        reporter.console.print(tables.accuracy_table(found))
        reporter.console.print(tables.ledger_table(found["bytes"]))
        return None
    path = out / "report.html"
    files.write_text(path, html_page(out, found))
    reporter.say(f"written to {path}")
    return path


def html_page(out: Path, found: Mapping[str, Any]) -> str:
    """A run's report as an HTML document."""
    title = html.escape(f"{found['dataset']}, distilled by {found['method']}")
    parts = [
        f"<h1>{title}</h1>",
        f"<p>{html.escape(_told(found))}</p>",
        *(_picture(out / name, said) for name, said in _PICTURES.items() if name != "curves.png"),
        "<h2>Accuracy</h2>",
        tables.html_table(tables.accuracy_rows(dict(found))),
        "<h2>Stored bytes</h2>",
        _ledger(found["bytes"]),
        _picture(out / "curves.png", _PICTURES["curves.png"]),
        _last_step(out),
        "<h2>Seconds</h2>",
        _table(("stage", "seconds"), [(n, f"{s:,.1f}") for n, s in found["seconds"].items()]),
        "<h2>Configuration</h2>",
        _table(("option", "value"), _configuration(found)),
        "<h2>Provenance</h2>",
        _table(("what", "value"), _provenance(out, found)),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body></html>\n"
    )


def _told(found: Mapping[str, Any]) -> str:
    """The result in a sentence."""
    own, ipc = found["accuracy"], found["ipc_equivalent"]
    several = own["students"] > 1
    spread = f" (standard deviation {100 * own['sd']:.2f})" if several else ""
    students = f"{own['students']} fresh students" if several else "A fresh student"
    return (
        f"{students} of {found['network']} trained on it alone reach{'' if several else 'es'} "
        f"{100 * own['mean']:.2f} % of the test images{spread}, after the last epoch. It takes "
        f"{found['bytes']['total']:,} bytes: as many as {ipc['float32']:.2f} images a class of "
        f"32-bit floats, or {ipc['uint8']:.2f} of a byte a value. One seed: {found['seed']}."
    )


def _picture(path: Path, said: str) -> str:
    """A picture in the page itself; nothing where the run has none."""
    if not path.is_file():
        return ""
    encoded = base64.b64encode(path.read_bytes()).decode()
    said = html.escape(said)
    return f'<h2>{said}</h2>\n<img alt="{said}" src="data:image/png;base64,{encoded}">'


def _ledger(ledger: Mapping[str, int]) -> str:
    total = ledger["total"]
    rows = [
        (part, f"{size:,}", f"{100 * size / total:.1f} %")
        for part, size in ledger.items()
        if size and part != "total"
    ]
    return _table(("part", "bytes", "share"), [*rows, ("total", f"{total:,}", decimal(total))])


def _last_step(out: Path) -> str:
    rows = metrics.read(out / metrics.METRICS)
    if not rows:
        return ""
    told = [(name, "-" if x is None else f"{x:.6g}") for name, x in rows[-1].items()]
    return f"<h2>After the last outer step</h2>\n{_table(('metric', 'value'), told)}"


def _configuration(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    options = options_of(found)
    return [(name, _written(value)) for name, value in options.items() if value is not None]


def _provenance(out: Path, found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What made it: versions, machine, and the artifact's hash."""
    rows = [(name, str(version)) for name, version in found["versions"].items()]
    rows += [(name.replace("_", " "), _written(x)) for name, x in found["machine"].items()]
    made = out / artifact.NAME
    if made.is_file():
        rows.append((f"{artifact.NAME}, SHA-256", hashlib.sha256(made.read_bytes()).hexdigest()))
    return rows


def _written(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:,.6g}" if isinstance(value, float) else str(value)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)

    body = "".join(f"<tr>{line(cells, 'td')}</tr>" for cells in rows)
    return f"<table><tr>{line(header, 'th')}</tr>{body}</table>"

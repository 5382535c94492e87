"""Pictures of what was distilled, and curves."""

import io
import math
import os
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from d3jax.distill import metrics
from d3jax.host import files
from d3jax.types import InputError

LARGEST_ROWS, LARGEST_COLUMNS = 20, 40  # of a picture: beyond, nothing is legible any more
LARGEST_WIDTH = 4000  # of a picture, in pixels, where that leaves at least ten columns

_INK, _FAINT, _LINE, _RAW = "#222222", "#8a8a8a", "#1f4e8c", "#9dbbe0"
_DPI = 100


class Picture(Figure):
    """A figure that a notebook displays without pyplot."""

    def _repr_png_(self) -> bytes:
        return _png(self)


def picture(
    path: str | os.PathLike[str],
    rows: np.ndarray,
    row_names: Sequence[str],
    title: str | None = None,
) -> None:
    """Write images as a PNG: what `drawn` draws."""
    files.write_bytes(path, _png(drawn(rows, row_names, title)))


def drawn(rows: np.ndarray, row_names: Sequence[str], title: str | None = None) -> Picture:
    """Images `rows` u8[R, n, H, W, C] as a figure, one row of n images per name in `row_names`.

    C is 1 (grey) or 3 (colour). Images are enlarged by a whole factor, without smoothing. Only the
    first 20 rows and 40 columns (10 of large images) are drawn, and the title then says so.

    Raises InputError where shapes, dtype or the number of names do not fit.
    """
    rows = np.asarray(rows)
    if rows.ndim != 5 or rows.dtype != np.uint8 or rows.shape[-1] not in (1, 3) or 0 in rows.shape:
        raise InputError(
            "a picture takes uint8 images of shape [rows, columns, height, width, 1 or 3], "
            f"not {rows.dtype}{list(rows.shape)}"
        )
    if len(row_names) != len(rows):
        raise InputError(f"a picture of {len(rows)} rows takes as many names, not {len(row_names)}")

    largest_columns = min(LARGEST_COLUMNS, max(10, LARGEST_WIDTH // rows.shape[3]))
    remarks = []
    if rows.shape[0] > LARGEST_ROWS:
        remarks.append(f"first {LARGEST_ROWS} of {rows.shape[0]} rows")
    if rows.shape[1] > largest_columns:
        remarks.append(f"first {largest_columns} of {rows.shape[1]} columns")
    rows = rows[:LARGEST_ROWS, :largest_columns]
    row_names = [_shortened(str(name)) for name in row_names[: len(rows)]]
    remark = f"({', '.join(remarks)})" if remarks else ""
    title = " ".join(part for part in (title, remark) if part)

    number_rows, number_columns, height, width, _ = rows.shape
    # Small images large enough to look at, many of them small enough for a page.
    factor = max(1, min(64 // height, 1600 // (number_columns * width)), 40 // height)
    gap = 4
    cell_height, cell_width = height * factor + gap, width * factor + gap
    mosaic = np.full(
        (number_rows * cell_height - gap, number_columns * cell_width - gap, 3), 255, "u1"
    )
    for r in range(number_rows):
        for c in range(number_columns):
            image = rows[r, c].repeat(factor, axis=0).repeat(factor, axis=1)
            top, left = r * cell_height, c * cell_width
            mosaic[top : top + height * factor, left : left + width * factor] = image

    # The figure is laid out in pixels, so that one pixel of the mosaic is one of the file.
    size = 12.0  # of the font, in points
    letter = 0.62 * size * _DPI / 72
    margin = 16
    left = margin + round(letter * max(map(len, row_names))) + 8
    top = margin + (round(2.4 * size * _DPI / 72) if title else 0)
    pixel_width = left + mosaic.shape[1] + margin
    if title:
        pixel_width = max(pixel_width, round(letter * len(title)) + 2 * margin)
    pixel_height = top + mosaic.shape[0] + margin
    figure = Picture(figsize=(pixel_width / _DPI, pixel_height / _DPI), dpi=_DPI, facecolor="white")
    figure.figimage(mosaic, xo=left, yo=margin, origin="upper")
    for r, name in enumerate(row_names):
        y = pixel_height - top - r * cell_height - height * factor / 2
        figure.text(
            (left - 8) / pixel_width, y / pixel_height, _plain(name),
            ha="right", va="center", fontsize=size, color=_INK,
        )  # fmt: skip
    if title:
        figure.text(
            margin / pixel_width, 1 - margin / pixel_height, _plain(title),
            ha="left", va="top", fontsize=size * 1.1, color=_INK,
        )  # fmt: skip
    return figure


def curves(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a PNG with one panel per metric over the outer steps.

    `rows` are those of metrics.jsonl, each {"step": int, name: number or None, ...}, clocks among
    them; a row may lack a name. Measured points are light, their running median dark. The axis is
    logarithmic for names that end in "loss" or "distance" and are positive throughout. What is not
    finite is left out, and counted in the panel's title.
    """
    names: list[str] = []
    for row in rows:
        names.extend(name for name in metrics.measured(row) if name not in names)

    columns = max(1, min(3, len(names)))
    panels = max(1, math.ceil(len(names) / columns))
    figure = Figure(figsize=(4.2 * columns, 2.9 * panels), dpi=_DPI, facecolor="white")
    figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    if not names:
        figure.text(0.5, 0.5, "no metrics yet", ha="center", va="center", color=_FAINT)
    for index, name in enumerate(names):
        present = [row for row in rows if name in row]
        steps = np.array([row["step"] for row in present], float)
        values = np.array(
            [math.nan if row[name] is None else float(row[name]) for row in present], float
        )
        _panel(figure.add_subplot(panels, columns, index + 1), name, steps, values)
    files.write_bytes(path, _png(figure))


def _panel(axes: Axes, name: str, steps: np.ndarray, values: np.ndarray) -> None:
    finite = np.isfinite(values)
    title = _plain(name)
    if not finite.all():
        title += f"  ({len(values) - finite.sum()} not finite)"
    steps, values = steps[finite], values[finite]
    axes.set_title(title, fontsize=11, color=_INK, loc="left")
    axes.set_xlabel("outer step", fontsize=9, color=_FAINT)
    axes.tick_params(which="both", labelsize=9, color=_FAINT, labelcolor=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    if not len(values):
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(0.5, 0.5, "nothing finite", ha="center", va="center", color=_FAINT,
                  transform=axes.transAxes)  # fmt: skip
        return
    if name.endswith(("loss", "distance")) and (values > 0).all():
        axes.set_yscale("log")
    few = len(values) <= 40
    axes.plot(
        steps, values, color=_RAW, linewidth=0.0 if few else 0.8,
        marker="o" if few else None, markersize=4,
    )  # fmt: skip
    if len(values) > 2:
        axes.plot(steps, _running_median(values), color=_LINE, linewidth=1.8)
    if steps.min() == steps.max():
        axes.set_xticks(steps[:1])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _running_median(values: np.ndarray) -> np.ndarray:
    """The median of a window of a twentieth of all points around each, cut off at both ends."""
    reach = len(values) // 40
    return np.array(
        [np.median(values[max(0, i - reach) : i + reach + 1]) for i in range(len(values))]
    )


def sizes(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a PNG of accuracies against bytes.

    Rows are as in `tables.comparison_table`; one with `baseline` is grey.
    """
    figure = Figure(figsize=(7, 4.5), dpi=_DPI, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    for row, marker in zip(rows, cycle("osD^v<>P*X")):
        accuracy, colour = row["accuracy"], _FAINT if row.get("baseline") else None
        axes.errorbar(
            int(row["bytes"]), 100 * accuracy["mean"], 100 * (accuracy["sd"] or 0),
            fmt=marker, color=colour, label=_plain(row["name"]),
        )  # fmt: skip
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.set_xscale("log")
    axes.set_xlabel("bytes stored", fontsize=9)
    axes.set_ylabel("test accuracy %, with the sd of students", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    files.write_bytes(path, _png(figure))


def _png(figure: Figure) -> bytes:
    # The Agg canvas by name: pyplot would keep global state, and may want a display.
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # matplotlib would read mathematics between two dollars


def _shortened(text: str, longest: int = 24) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"

"""Seconds and memory of an outer step as classes, image side, items and T grow; what `plan` says.

Methods with their defaults, but for pixels and latents per class, on random images: ConvNets of
width 32 (of DWA with batch norm), depth 3, 4 from 48 pixels on, 5 from 96; 100 images a class. The
base is 10 classes at 32x32, one item a class, T = 10 (of DD: so many steps of P = 3, which are its
items too); one quantity grows. Each point is a process of its own: first what `plan` says of it,
from three steps on 64 images, then the run's own step on its data for at least two seconds. Memory
is that of all arrays, and what the process takes besides while it steps, at most. Lines are least
squares over all points of a series; what a unit adds is their slope.
"""

import ctypes
import functools
import gc
import math
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from benchmarks.suite import Cases, Row, Table, elsewhere
from d3jax import distill
from d3jax.data import Dataset, Normalization
from d3jax.experts import Options as ExpertOptions
from d3jax.methods.d3 import D3Options
from d3jax.methods.dd import DDOptions
from d3jax.methods.mtt import MTTOptions
from d3jax.methods.registry import METHODS
from d3jax.networks import parameter_count
from d3jax.run.job import prepared
from d3jax.run.options import Architecture, Parametrization, Run, command
from d3jax.run.pieces import Piece, Prepared, pieces_of
from d3jax.types import Real

BASE = {"classes": 10, "side": 32, "items": 1, "T": 10}
SERIES: dict[str, dict[str, tuple[int, ...]]] = {
    "mtt": {"classes": (10, 30, 100), "side": (32, 64, 96), "items": (1, 4, 10), "T": (10, 20, 40)},
    "d3": {"classes": (10, 30, 100), "side": (32, 64), "items": (1, 4, 10), "T": (10, 20, 40)},
    "dd": {"classes": (10, 30, 100), "side": (32, 64), "T": (5, 10, 20)},
    "frepo": {"classes": (10, 30, 100, 300), "side": (32, 64, 96), "items": (1, 4, 10)},
    "dwa": {"classes": (10, 100, 1000), "side": (32, 64, 128), "items": (1, 4, 10)},
}
_SECONDS = 2.0  # of measured steps, at least
_EACH = 100  # images of a class


def options(method: str, classes: int, side: int, items: int, T: int) -> Run:
    """The run of a point."""
    norm: Any = METHODS[method].norm
    depth = 3 if side < 48 else 4 if side < 96 else 5
    stored = Parametrization(images_per_class=items)
    own: dict[str, Any] = {}
    if method == "mtt":
        own = {"mtt": MTTOptions(inner_steps=T)}
    if method == "dd":
        own, stored = {"dd": DDOptions(steps=T, networks=1)}, Parametrization()
    if method == "d3":
        stored = Parametrization(latents_per_class=items, latent_size=64, decoder_width=64)
        own = {"d3": D3Options(inner_steps=T, inner_batch_size=min(2, items) * classes)}
    if method in ("mtt", "d3"):
        own["expert"] = ExpertOptions(count=2, epochs=10)
    network = Architecture(network="convnet", width=32, depth=depth, norm=norm)
    return command(method)(architecture=network, parametrization=stored, baselines=(), **own)


def dataset(classes: int, side: int) -> Dataset:
    """Random images."""
    generator = np.random.default_rng(0)
    labels = np.arange(_EACH * classes, dtype=np.int32) % classes
    images = generator.integers(0, 256, (len(labels), side, side, 3), np.uint8)
    few = slice(0, classes)
    return Dataset.from_arrays(images, labels, images[few], labels[few])


def point(method: str, **quantities: int) -> Row:
    """A row: what `plan` says of a point, and what was measured."""
    sizes = {**BASE, **quantities}
    data = dataset(sizes["classes"], sizes["side"])
    run, pieces = pieces_of(options(method, **sizes), data)
    said = Prepared(pieces[0], run, data.image_shape)
    row: Row = {
        "planned_bytes": said.device_bytes(1),
        "planned_seconds": said.seconds_per_step(),
        "compile_seconds": said.compile_seconds,
    }
    del said
    job = prepared(run, data, Normalization.of(data.train_images))
    real = _real(job.world.real, pieces[0])
    program = distill.alone(job.method, jax.random.key(0), real, 10)
    state = program.start()
    compiled = program.function.lower(*program.arguments(state, 0)).compile()
    there = sum(array.nbytes for array in jax.live_arrays())
    before = _held()
    done, spent = 1, 0.0
    state = jax.block_until_ready(compiled(*program.arguments(state, done)).state)  # warm
    while spent < _SECONDS:
        begun = time.perf_counter()
        done += 2
        state = jax.block_until_ready(compiled(*program.arguments(state, done)).state)
        spent += time.perf_counter() - begun
    measured = {"seconds": spent / (done - 1), "bytes": there + _most() - before}
    return {**row, **measured, "steps": done - 1}


def _real(real: Real, piece: Piece) -> Real:
    """With the snapshots that distillation reads."""
    experts, epochs = piece.snapshots
    if not experts:
        return real
    params = jax.eval_shape(piece.network.init, jax.random.key(0))
    shape = (experts, epochs, parameter_count(params))
    generator = np.random.default_rng(0)
    walk = 0.05 * generator.standard_normal(shape, np.float32) / math.sqrt(epochs)
    return real._replace(trajectories=jnp.asarray(np.cumsum(walk, axis=1)))


def _held() -> int:
    """Bytes that this process holds, after it gave back what it could; `_most` begins here."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _most() -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.partition(f"{name}:")[2].split()[0])


@functools.cache  # the base is a point of every series
def _elsewhere(call: str) -> Row:
    return elsewhere(call)


def measure(method: str, quantity: str, value: int) -> Row:
    """One point, in a process of its own."""
    changed = {} if value == BASE[quantity] else {quantity: value}
    return {"value": value, **_elsewhere(f"growth.point({method!r}, **{changed})")}


def cases(quick: bool) -> Cases:
    """Every point; quick: the first two of each series."""
    return {
        f"{method}, {quantity} = {value}": functools.partial(measure, method, quantity, value)
        for method, series in SERIES.items()
        for quantity, values in series.items()
        for value in (values[:2] if quick else values)
    }


def table(rows: list[Row]) -> Table:
    """Measured, what `plan` says by what is measured, and lines through what is measured."""
    body = []
    for name, own in _series(rows).items():
        x = np.array([row["value"] for row in own], float)
        fitted = []
        for what in ("seconds", "bytes"):
            y = np.array([row[what] for row in own]) / (1 if what == "seconds" else 1e6)
            if len(own) < 3:
                fitted += ["", ""]
                continue
            slope, base = np.polyfit(x, y, 1)
            off = np.abs(slope * x + base - y).max() / y.max()
            fitted += [f"{slope:.2g}", f"{off:.0%}"]
        for number, row in enumerate(own):
            cells = [f"{name} = {row['value']}", f"{row['compile_seconds']:.0f}"]
            cells += [f"{row['seconds']:.3f}", f"{row['planned_seconds'] / row['seconds']:.2f}"]
            cells += [f"{row['bytes'] / 1e6:.0f}", f"{row['planned_bytes'] / row['bytes']:.2f}"]
            body.append(cells + (fitted if number == len(own) - 1 else [""] * 4))
    header = ["work", "compile s", "s a step", "planned / measured", "MB", "planned / measured",
              "s a unit", "off the line", "MB a unit", "off the line"]  # fmt: skip
    return header, body


def _series(rows: list[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["work"].rpartition(" = ")[0], []).append(row)
    return found


def plot(rows: list[Row]) -> Figure:
    """Seconds of a step by what grows, in units of the base; a panel for each method."""
    figure = Figure(figsize=(9, 5), layout="constrained", dpi=100)
    panels = dict(zip(SERIES, figure.subplots(2, 3, sharex=True, sharey=True).flat, strict=False))
    for name, own in _series(rows).items():
        method, quantity = name.split(", ")
        base, place = BASE[quantity], list(BASE).index(quantity)
        points = sorted((row["value"] / base, row["seconds"]) for row in own)
        panels[method].plot(*zip(*points), f"C{place}o-", markersize=4, label=quantity)
    for method, axes in panels.items():
        axes.set_title(method, loc="left", fontsize=10)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[-1].set_axis_off()
    figure.axes[-1].legend(*figure.axes[0].get_legend_handles_labels(), frameon=False)
    figure.supxlabel("times the base", fontsize=10)
    figure.supylabel("s a step", fontsize=10)
    return figure

"""Temporary bytes of a compiled outer step against T, images, networks and classes.

MTT and D3 on CIFAR-10's shape, ConvNet depth 3, width 32; DD on MNIST's, LeNet, S = 10, P = 3, 256
real images a network. One quantity of each row's method grows, the others stay at T = 10, 10 items,
one network, 10 classes. What a method keeps for every further unit is the slope of the straight
line through its points (least squares); the last column is how far, at most, a point is from it.
"""

from functools import partial
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from benchmarks.outer_steps import trajectory, unrolled
from benchmarks.suite import Cases, Row, Table, lines, temporary_bytes

SERIES: dict[str, tuple[Any, str, tuple[int, ...]]] = {
    "MTT, T": (trajectory, "inner_steps", (10, 20, 40, 80)),
    "MTT by TESLA's gradient, T": (
        partial(trajectory, gradient="tesla"), "inner_steps", (10, 20, 40, 80)
    ),
    "MTT, not rematerialized, T": (
        partial(trajectory, rematerialize=False), "inner_steps", (10, 20, 40)
    ),
    "MTT, images per class": (trajectory, "images_per_class", (1, 2, 4, 8)),
    "MTT, classes": (trajectory, "classes", (5, 10, 20, 40)),
    "D3, T": (partial(trajectory, "d3"), "inner_steps", (10, 20, 40)),
    "D3, classes": (partial(trajectory, "d3"), "classes", (5, 10, 20)),
    "DD, networks": (unrolled, "number_of_networks", (1, 2, 4, 8)),
    "DD, distilled steps": (unrolled, "steps", (5, 10, 20, 40)),
}  # fmt: skip


def measure(make: Any, quantity: str, value: int) -> Row:
    """One point."""
    method, real = make(**{quantity: value})
    key = jax.random.key(0)
    state = jax.eval_shape(method.init, key, real)
    compiled = jax.jit(method.step).lower(key, state, real).compile()
    return {"value": value, "temporary_bytes": temporary_bytes(compiled)}


def cases(quick: bool) -> Cases:
    """Every point; quick: the first two of each series."""
    return {
        f"{name} = {value}": partial(measure, make, quantity, value)
        for name, (make, quantity, values) in SERIES.items()
        for value in (values[:2] if quick else values)
    }


def _series(rows: list[Row]) -> dict[str, list[tuple[float, float]]]:
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        name = row["work"].rpartition(" = ")[0]
        found.setdefault(name, []).append((row["value"], row["temporary_bytes"] / 1e6))
    return found


def table(rows: list[Row]) -> Table:
    """Points, slope and distance from the line."""
    body = []
    for name, points in _series(rows).items():
        x, y = (np.array(column) for column in zip(*points, strict=True))
        fitted = ["", ""]
        if len(points) > 1:
            slope, base = np.polyfit(x, y, 1)
            fitted = [f"{slope:.2f}", f"{np.abs(slope * x + base - y).max():.1f}"]
        said = ", ".join(f"{value:.0f}: {megabytes:.1f}" for value, megabytes in points)
        body.append([name, said, *fitted])
    return ["what grows", "temporary MB", "MB a unit", "off the line, MB"], body


def plot(rows: list[Row]) -> Figure:
    """A line for each series."""
    return lines(_series(rows), "T, images per class, classes, networks or steps", "temporary MB")

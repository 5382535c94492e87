"""What the benchmarks share: cases and their rows, clocks, plots."""

import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

from experiments.provenance import COMMIT, hardware

Row = dict[str, Any]
Cases = dict[str, Callable[[], Row]]  # what each row's work is called, and how it is measured
Table = tuple[list[str], list[list[Any]]]  # header, rows


def compile_quickly() -> None:
    """Sets flags with which XLA compiles several times as fast, for code that hardly runs.

    To be called before JAX computes anything; processes that this one starts inherit them.
    """
    flags = ["--xla_backend_optimization_level=0"]
    if jax.__version__.startswith("0.10."):  # later ones end at a flag that they do not have
        flags += ["--xla_cpu_use_fusion_emitters=false"]
        flags += ["--xla_cpu_parallel_codegen_split_count=1"]
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags])


def stamp() -> Row:
    """Where and when a row was measured, and with what."""
    return {
        "hardware": hardware(),
        "date": datetime.date.today().isoformat(),
        "commit": COMMIT,
        "versions": {"jax": jax.__version__},
    }


def cpu_seconds(function: Callable[[], Any]) -> float:
    """CPU seconds, of all threads, of one call; wall seconds where the work is an accelerator's."""
    clock = time.process_time if jax.default_backend() == "cpu" else time.monotonic
    begun = clock()
    jax.block_until_ready(function())
    return clock() - begun


def product_rate() -> float:
    """FLOP/s of a float32 product of two 1024x1024 matrices, here and now; the best of five."""
    matrix = jnp.ones((1024, 1024), jnp.float32)
    product = jax.jit(jnp.matmul).lower(matrix, matrix).compile()
    product(matrix, matrix)
    return 2 * 1024**3 / min(cpu_seconds(lambda: product(matrix, matrix)) for _ in range(5))


def elsewhere(call: str, **environment: str) -> Row:
    """What `call`, of a function of a benchmark (`sharding.measure(...)`), returns in a new process
    with these variables set, by default on its CPU."""
    module = call.split(".")[0]
    code = f"import json; from benchmarks import {module}; print(json.dumps({call}))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        text=True,
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(run.stdout.splitlines()[-1])


def temporary_bytes(compiled: Any) -> int:
    """What a compiled function needs besides its arguments and results."""
    return compiled.memory_analysis().temp_size_in_bytes


def peers_table(rows: list[Row]) -> Table:
    """Seconds, ratios, memory, as far as they were measured."""
    header = ["work", "ours, CPU s", "PyTorch, CPU s", "ratio"]
    header += ["PyTorch compiled, CPU s", "ratio to that"]
    header += ["ours, MiB", "PyTorch, MiB", "of the product rate"]

    def number(row: Row, name: str, form: str) -> str:
        return format(row[name], form) if name in row else ""

    return header, [
        [
            row["work"],
            number(row, "ours_cpu_s", ".3f"),
            number(row, "peer_cpu_s", ".3f"),
            number(row, "ratio", ".2f"),
            number(row, "peer_compiled_cpu_s", ".3f")
            or ("failed" if "peer_compiled_error" in row else ""),
            number(row, "ratio_to_compiled", ".2f"),
            number(row, "ours_mib", ".0f"),
            number(row, "peer_mib", ".0f"),
            number(row, "product_share", ".0%"),
        ]
        for row in rows
    ]


def bars(names: Sequence[str], values: Sequence[float], what: str) -> Figure:
    """A horizontal bar for each name."""
    figure = Figure(figsize=(8, 0.6 + 0.28 * len(names)), layout="constrained", dpi=100)
    axes = figure.add_subplot()
    axes.barh(range(len(names)), values, color="#1f4e8c", height=0.7)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(what)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def lines(series: dict[str, list[tuple[float, float]]], across: str, up: str) -> Figure:
    """A line for each name; in logarithmic scales, where proportionality is a slope of one."""
    figure = Figure(figsize=(7, 4.5), layout="constrained", dpi=100)
    axes = figure.add_subplot()
    for name, points in series.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", markersize=4, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure

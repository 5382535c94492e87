"""Compile time against throughput of D3's, MTT's and DD's outer steps, choice by choice.

D3 and MTT: CIFAR-10's shape, ConvNet depth 3, width 32, 10 items, T = 10 (D3: the small decoder, 30
MMD samples a class). DD: MNIST's shape, LeNet, S = 10, P = 3, 256 real images. Each row changes one
choice of the first, `default`: the inner loop scanned, one step a turn, rematerialized,
convolutions by the backend's default, 10 outer steps a dispatch. Cold: compiled with an empty
cache, which it fills; warm: the same program again, from that cache, as a second run of a job has
it. Both count tracing and lowering too. A choice pays after so many outer steps that what each step
saves against the default has paid for what the compilation costs more. The loss of the first step
says that all rows compute the same.
"""

import tempfile
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache
from matplotlib.figure import Figure

from benchmarks.outer_steps import lowered_by, trajectory, unrolled
from benchmarks.suite import Cases, Row, Table, bars, cpu_seconds, temporary_bytes
from d3jax import distill

BUDGET = 4.0  # seconds of steady state to measure, about
CHOICES: dict[str, dict[str, Any]] = {
    "default": {},
    "two steps a turn": {"scan_unroll": 2},
    "fully unrolled": {"scan_unroll": 100},
    "not rematerialized": {"rematerialize": False},
    "convolution by patches": {"lowering": "patches"},
    "convolution by rows": {"lowering": "rows"},
    "lax.conv": {"lowering": "lax"},
    "lax.conv, fully unrolled": {"lowering": "lax", "scan_unroll": 100},
    "1 outer step a dispatch": {"chunk": 1},
    "100 outer steps a dispatch": {"chunk": 100},
}


def measure(make: Any, *, lowering: Any = None, chunk: int = 10, **options: Any) -> Row:
    """One row."""
    with lowered_by(lowering), tempfile.TemporaryDirectory() as cache:
        method, real = make(**options)
        key = jax.random.key(0)
        state = jax.jit(method.init)(key, real)
        with _CachedIn(cache):
            compiled, cold = compiled_chunk(method, chunk, key, state, real)
            jax.clear_caches()
            _, warm = compiled_chunk(method, chunk, key, state, real)

        def run(state: Any, steps: int) -> Any:
            return jax.block_until_ready(compiled(key, state, real, jnp.asarray(steps, jnp.int32)))

        begun = time.monotonic()
        first = run(state, 1)
        call = time.monotonic() - begun
        steps = max(1, min(chunk, int(BUDGET / call)))
        dispatches = max(1, min(100 // steps, int(BUDGET / call / steps)))
        state = [first.state]

        def steady() -> None:
            for _ in range(dispatches):
                state[0] = run(state[0], steps).state

        wall = time.monotonic()
        cpu = cpu_seconds(steady)
        wall = time.monotonic() - wall
    losses = [v for n, v in first.metrics.items() if n.rpartition("/")[2] in ("loss", "distance")]
    return {
        **{f"{name}_seconds": value for name, value in cold.items()},
        "cold_seconds": sum(cold.values()),
        "warm_seconds": sum(warm.values()),
        "first_call_seconds": call,
        "steps_per_second": steps * dispatches / wall,
        "cpu_seconds_per_step": cpu / steps / dispatches,
        "steps_measured": steps * dispatches,
        "temporary_bytes": temporary_bytes(compiled),
        "loss": float(losses[0][0]),
    }


def compiled_chunk(method: Any, chunk: int, *arguments: Any) -> tuple[Any, dict[str, float]]:
    """The chunk of outer steps, and what it took."""
    function = jax.jit(distill.chunk_function(method, chunk), donate_argnums=1)
    times = [time.monotonic()]
    traced = function.trace(*arguments, jnp.asarray(1, jnp.int32))
    times.append(time.monotonic())
    lowered = traced.lower()
    times.append(time.monotonic())
    compiled = lowered.compile()
    times.append(time.monotonic())
    return compiled, {
        name: after - before
        for name, before, after in zip(("trace", "lower", "compile"), times, times[1:])
    }


class _CachedIn:
    """The persistent compilation cache in a folder of its own."""

    def __init__(self, folder: str):
        self._new = {
            "jax_compilation_cache_dir": folder,
            "jax_persistent_cache_min_compile_time_secs": 0.0,
            "jax_persistent_cache_min_entry_size_bytes": -1,
        }

    def __enter__(self) -> None:
        self._old = {name: getattr(jax.config, name) for name in self._new}
        self._set(self._new)

    def __exit__(self, *_: object) -> None:
        self._set(self._old)

    def _set(self, options: dict[str, Any]) -> None:
        for name, value in options.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def cases(quick: bool) -> Cases:
    """Every method with every choice; quick: MTT alone."""
    methods = {
        "D3": partial(trajectory, "d3"),
        "MTT": partial(trajectory, "mtt"),
        "DD": unrolled,
    }
    found: Cases = {}
    for name, make in methods.items():
        if quick and name != "MTT":
            continue
        for choice, options in CHOICES.items():
            found[f"{name}, {choice}"] = partial(measure, make, **options)
        if name != "DD":
            found[f"{name}, T = 50"] = partial(measure, partial(make, inner_steps=50))
    return found


def _pays_after(row: Row, default: Row | None) -> str:
    if default is None or row["work"] == default["work"]:
        return ""
    saved = default["cpu_seconds_per_step"] - row["cpu_seconds_per_step"]
    more = row["cold_seconds"] - default["cold_seconds"]
    if saved <= 0:
        return "never" if more >= 0 else f"up to {more / saved:,.0f}"
    return "at once" if more <= 0 else f"{more / saved:,.0f}"


def table(rows: list[Row]) -> Table:
    """Seconds of compilation, of steps, and after how many of them a choice pays."""
    header = ["outer step", "trace s", "lower s", "compile s", "warm / cold s", "first call s"]
    header += ["CPU s a step", "steps/s", "pays after, steps", "temporary MB", "loss"]
    defaults = {r["work"].partition(",")[0]: r for r in rows if r["work"].endswith("default")}
    return header, [
        [
            row["work"],
            f"{row['trace_seconds']:.1f}",
            f"{row['lower_seconds']:.1f}",
            f"{row['compile_seconds']:.1f}",
            f"{row['warm_seconds']:.1f} / {row['cold_seconds']:.1f}",
            f"{row['first_call_seconds']:.2f}",
            f"{row['cpu_seconds_per_step']:.3f}",
            f"{row['steps_per_second']:.2f}",
            "" if "T =" in row["work"] else
            _pays_after(row, defaults.get(row["work"].partition(",")[0])),
            f"{row['temporary_bytes'] / 1e6:.0f}",
            f"{row['loss']:.4f}",
        ]
        for row in rows
    ]  # fmt: skip


def plot(rows: list[Row]) -> Figure:
    """Cold compile seconds against CPU seconds a step."""
    figure = bars([r["work"] for r in rows], [r["cold_seconds"] for r in rows], "seconds")
    axes = figure.axes[0]
    axes.barh(
        range(len(rows)),
        [r["cpu_seconds_per_step"] for r in rows],
        color="#c45a1b",
        height=0.35,
    )
    axes.set_xscale("log")
    axes.set_xlabel("seconds: compiling, cold (wide, blue); CPU, one outer step (narrow, orange)")
    return figure

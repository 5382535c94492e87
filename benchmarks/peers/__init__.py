"""The same work in PyTorch: same shapes, same arithmetic, losses compared.

Each row is one outer step's loss and (meta-)gradient, or an epoch of experts, or the training of
students: ours compiled and PyTorch's eager (`torch.compile` does not differentiate twice; where it
can, it is timed too), at the same inputs and weights, which must give the same loss to 1e-4 (on a
GPU to 1e-3), alternating in one process; CPU seconds of all threads, the least of several rounds.
Memory: ours is what the compiled program needs besides its arguments (temporary arrays and results,
as XLA allots them); PyTorch's by how much a second call, after all that a first sets up, raises the
peak of resident memory (Linux), in a process of its own. The rate of our products, without
recomputed ones and counted as plain convolutions have them (Winograd's tiles need fewer than half),
is compared with that of a product of two 1024x1024 matrices beside it. Needs the extra `torch`.

Where JAX computes on a GPU, PyTorch does too: seconds are those of the wall clock, PyTorch's memory
is the GPU's, and both compute in full float32, without TF32.
"""

import ctypes
import gc
import math
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import torch
from matplotlib.figure import Figure

from benchmarks.peers import d3, dd, experts, frepo, mtt, statistics, students
from benchmarks.peers.pair import Pair, device
from benchmarks.suite import (
    Cases,
    Row,
    Table,
    bars,
    cpu_seconds,
    peers_table,
    product_rate,
    stamp,
)

# New ones, of a process that has all of this imported.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload([__name__])
QUICK_SECONDS = 4.0  # of both, after which a quick row begins no other round
# Relative, between the two losses; a GPU's libraries sum in other orders.
TOLERANCE = {"cpu": 1e-4, "cuda": 1e-3}
WORKS: dict[str, Callable[[], Pair]] = {
    "DD, LeNet, S=1 P=3, 10 images, real batch 1024": lambda: dd.pair(1, 3, 1, 1024),
    "DD, LeNet, S=10 P=3, 4 networks, real batch 1024": lambda: dd.pair(10, 3, 4, 1024),
    "MTT, ConvNet width 32, T=10, 10 images": lambda: mtt.pair(32, 10, 1),
    "MTT, ConvNet width 128, T=10, 10 images": lambda: mtt.pair(128, 10, 1),
    "D3, ConvNet width 32, T=10, 30 MMD samples": lambda: d3.pair(32, 10, 30),
    "D3, ConvNet width 128, T=10, 30 MMD samples": lambda: d3.pair(128, 10, 30),
    "experts, ConvNet width 32, 4 at once, an epoch": lambda: experts.pair(32, 4, 10_000),
    "5 students, ConvNet width 32, 300 epochs, 20 images": lambda: students.pair(32, 5, 300, 20),
    "DWA, ConvNet width 32, 100 images": lambda: statistics.pair(32, 10),
    "DWA, ConvNet width 128, 100 images": lambda: statistics.pair(128, 10),
    "FRePo, ConvNet width 32, 10 images, real batch 1024": lambda: frepo.pair(32, 1, 1024),
    "FRePo, ConvNet width 128, 10 images, real batch 1024": lambda: frepo.pair(128, 1, 1024),
}
LONGER: dict[str, Callable[[], Pair]] = {
    "MTT, ConvNet width 32, T=10, 20 images": lambda: mtt.pair(32, 10, 2),
    "MTT, ConvNet width 32, T=30, 20 images": lambda: mtt.pair(32, 30, 2),
    "MTT, ConvNet width 128, T=10, 20 images": lambda: mtt.pair(128, 10, 2),
    "MTT, ConvNet width 128, T=30, 20 images": lambda: mtt.pair(128, 30, 2),
}
# The long ones' first part, which takes as long as the others: (pair, how many parts make a whole)
PARTS: dict[str, tuple[Callable[[], Pair], float]] = {
    "experts, ConvNet width 32, 4 at once, an epoch": (lambda: experts.pair(32, 4, 512), 19.5),
    "5 students, ConvNet width 32, 300 epochs, 20 images": (
        lambda: students.pair(32, 5, 10, 20), 30
    ),
}  # fmt: skip


def compared(
    make: Callable[[], Pair],
    rounds: int,
    scale: float = 1.0,
    enough: float = math.inf,
    torch_compile: bool = True,
    ready: Callable[[], object] = lambda: None,
) -> Row:
    """Losses, CPU seconds and bytes of both; seconds are multiplied by `scale`.

    At most so many rounds, and none begins after `enough` seconds. `ready` is called when all is
    compiled, before any clock starts.
    """
    pair = _made(make)
    # Both are warm after this.
    ours, theirs = pair.losses() if pair.losses else (pair.ours(), pair.peer())
    difference = abs(ours - theirs) / abs(theirs)
    if difference > TOLERANCE[device().type]:
        raise SystemExit(f"losses {ours} and {theirs} differ by {difference:.1e}, relative")
    ready()
    times: list[tuple[float, float]] = []
    while len(times) < rounds and sum(map(sum, times)) < enough:
        times.append((cpu_seconds(pair.ours), cpu_seconds(pair.peer)))
    mine, peer = (scale * min(column) for column in zip(*times, strict=True))
    memory = pair.compiled().memory_analysis()
    row = {
        "ours_cpu_s": mine,
        "peer_cpu_s": peer,
        "ratio": mine / peer,
        "ours_mib": (memory.temp_size_in_bytes + memory.output_size_in_bytes) / 2**20,
        "loss_difference": difference,
        "versions": {**stamp()["versions"], "torch": torch.__version__},
    }
    if pair.flops:
        row["product_share"] = scale * pair.flops / mine / product_rate()
    if torch_compile and pair.peer_compiled is not None:
        row |= _compiled(pair.peer_compiled, scale, rounds)
        if "peer_compiled_cpu_s" in row:
            row["ratio_to_compiled"] = mine / row["peer_compiled_cpu_s"]
    return row


def _made(make: Callable[[], Pair]) -> Pair:
    """A pair, both in full float32.

    Its many small programs (not `ours`) run once and are not worth optimizing.
    """
    if device().type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
        jax.config.update("jax_default_matmul_precision", "float32")
    try:
        jax.config.update("jax_disable_most_optimizations", True)
        return make()
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


def _compiled(function: Callable[[], Any], scale: float, rounds: int) -> Row:
    """CPU seconds of PyTorch's compiled form, and wall seconds that compiling it took."""
    begun = time.monotonic()
    try:
        function()
    except Exception as error:  # no compiler for what it generates, most often
        return {"peer_compiled_error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    compiling = time.monotonic() - begun
    seconds = scale * min(cpu_seconds(function) for _ in range(rounds))
    return {"peer_compiled_cpu_s": seconds, "peer_compiling_s": compiling}


def measure(work: str, quick: bool) -> Row:
    """One row."""
    make, scale = PARTS[work] if quick and work in PARTS else ({**WORKS, **LONGER}[work], 1.0)
    rounds = 2 if work in PARTS and not quick else 6
    enough = QUICK_SECONDS if quick else math.inf
    # Beside our compilation, which leaves most of a second core idle; over before a clock starts.
    with ProcessPoolExecutor(1, mp_context=_PROCESSES) as other:
        peak = other.submit(own_peak, work)
        row = compared(make, rounds, scale, enough, not quick, peak.result)
    return {**row, "peer_mib": peak.result() / 2**20}


def own_peak(work: str) -> int:
    """By how much a step of PyTorch's raises the peak of this process, which is new."""
    torch.set_num_threads(1)  # others would wait for it spinning, on the compiler's core
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the other process has most of a GPU's
    make = PARTS[work][0] if work in PARTS else {**WORKS, **LONGER}[work]
    peer = _made(make).peer
    peer()  # what is set up once is not counted
    gc.collect()
    if (peak := device_peak(peer)) is not None:
        return peak
    ctypes.CDLL(None).malloc_trim(0)  # memory that is free but still held would hide the need
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    peer()
    return _status("VmHWM") - before


def device_peak(peer: Callable[[], Any]) -> int | None:
    """By how much a call raises the peak of PyTorch's memory on a GPU; None without one."""
    if device().type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    peer()
    return torch.cuda.max_memory_allocated() - held


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(x.split()[1]) for x in lines if x.startswith(name))


def cases(quick: bool) -> Cases:
    """Every work; quick: those that issues name first, and a part of the long ones."""
    return {work: partial(measure, work, quick) for work in WORKS | ({} if quick else LONGER)}


def table(rows: list[Row]) -> Table:
    """Seconds, ratios, memory."""
    return peers_table(rows)


def plot(rows: list[Row]) -> Figure:
    """The ratios."""
    figure = bars([r["work"] for r in rows], [r["ratio"] for r in rows], "ours / PyTorch, CPU s")
    figure.axes[0].axvline(1.0, color="#8a8a8a", linewidth=1)
    return figure

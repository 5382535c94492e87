"""Runs the pairs, prints a table and writes their rows; see the package's docstring."""

import argparse
import ctypes
import datetime
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import torch

from benchmarks import peers
from benchmarks.peers import d3, dd, mtt
from benchmarks.peers.dd import Pair
from d3jax.files import write_json
from d3jax.report import markdown_table
from experiments.runner import commit, hardware

TOLERANCE = 1e-4  # relative, between the two losses
WORKS = {
    "DD, LeNet, S=1 P=3, 10 images, real batch 1024": lambda: dd.pair(1, 3, 1, 1024),
    "DD, LeNet, S=10 P=3, 4 networks, real batch 1024": lambda: dd.pair(10, 3, 4, 1024),
    "D3, ConvNet width 32, T=10, 30 MMD samples": lambda: d3.pair(32, 10, 30),
    "D3, ConvNet width 128, T=10, 30 MMD samples": lambda: d3.pair(128, 10, 30),
    "MTT, ConvNet width 32, T=10, 20 images": lambda: mtt.pair(32, 10, 2),
    "MTT, ConvNet width 32, T=30, 20 images": lambda: mtt.pair(32, 30, 2),
    "MTT, ConvNet width 128, T=10, 20 images": lambda: mtt.pair(128, 10, 2),
    "MTT, ConvNet width 128, T=30, 20 images": lambda: mtt.pair(128, 30, 2),
}


def cpu_seconds(function: Callable[[], float]) -> float:
    """CPU seconds of one call."""
    begun = time.process_time()
    function()
    return time.process_time() - begun


def our_bytes(pair: Pair) -> int:
    """What our compiled step needs besides its arguments."""
    memory = pair.lowered().compile().memory_analysis()
    return memory.temp_size_in_bytes + memory.output_size_in_bytes


def peer_bytes(work: str) -> int:
    """By how much a first step of PyTorch's raises the peak of a fresh process's memory."""
    command = [sys.executable, "-m", "benchmarks.peers", "--peak", work]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(out.splitlines()[-1])


def _peak(work: str) -> int:
    """As `peer_bytes`, of this process."""
    peer = WORKS[work]().peer
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # memory that is free but still held would hide the need
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    peer()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(x.split()[1]) for x in lines if x.startswith(name))


def measure(work: str, rounds: int) -> dict[str, Any]:
    """One row."""
    pair = WORKS[work]()
    ours, peer, _ = pair
    losses = ours(), peer()  # compiles, and warms caches
    difference = abs(losses[0] - losses[1]) / abs(losses[1])
    if difference > TOLERANCE:
        raise SystemExit(f"{work}: losses {losses} differ by {difference:.1e}, relative")
    times = [(cpu_seconds(ours), cpu_seconds(peer)) for _ in range(rounds)]
    mine, theirs = (min(column) for column in zip(*times, strict=True))
    return {
        "work": work,
        "ours_cpu_s": mine,
        "peer_cpu_s": theirs,
        "ratio": mine / theirs,
        "ours_mib": our_bytes(pair) / 2**20,
        "peer_mib": peer_bytes(work) / 2**20,
        "loss_difference": difference,
        "hardware": hardware(),
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "versions": {"jax": jax.__version__, "torch": torch.__version__},
    }


def main() -> None:
    """Measures every row."""
    parser = argparse.ArgumentParser("python -m benchmarks.peers", description=peers.__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--only", default="", help="only rows whose name holds this")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/peers.json"))
    parser.add_argument("--peak", metavar="WORK", help="PyTorch's memory alone")
    options = parser.parse_args()
    if options.peak:
        print(_peak(options.peak))
        return
    kept = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    found = {row["work"]: row for row in kept if row["work"] in WORKS}
    for work in WORKS:
        if options.only in work:
            row = found[work] = measure(work, 3 if options.quick else 10)
            write_json(options.out, {"rows": [found[work] for work in WORKS if work in found]})
            print(f"{work}: {row['ours_cpu_s']:.3f} / {row['peer_cpu_s']:.3f} s", flush=True)
    rows = [row for work, row in found.items() if options.only in work]
    print(
        markdown_table(
            ["work", "ours, CPU s", "PyTorch, CPU s", "ratio", "ours, MiB", "PyTorch, MiB"],
            [
                [
                    row["work"],
                    f"{row['ours_cpu_s']:.3f}",
                    f"{row['peer_cpu_s']:.3f}",
                    f"{row['ratio']:.2f}",
                    f"{row['ours_mib']:.0f}" if "ours_mib" in row else "",
                    f"{row['peer_mib']:.0f}" if "peer_mib" in row else "",
                ]
                for row in rows
            ],
        )
    )


if __name__ == "__main__":
    main()

"""Where figures come from: the machine, and the commit whose code measured them."""

import os
import platform
import subprocess
from pathlib import Path

_CODE = ("d3jax", "experiments/*.py", "benchmarks/*.py", "benchmarks/peers")


def hardware() -> str:
    """The machine, in words."""
    import jax

    accelerators = {device.device_kind for device in jax.devices() if device.platform != "cpu"}
    if accelerators:
        return ", ".join(sorted(accelerators))
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    name = names[0] if names else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} core{'s' if cores != 1 else ''} of {name}"


def commit() -> str:
    """The commit that is checked out, with a + where the code in the working tree differs."""
    if told := os.environ.get("D3JAX_COMMIT"):  # where this is a copy without its history
        return told
    root = Path(__file__).parent.parent
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            capture_output=True, text=True, check=True, cwd=root,
        ).stdout.strip()  # fmt: skip
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--", *_CODE],
            capture_output=True, text=True, cwd=root,
        ).stdout  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed else "")


COMMIT = commit()  # of the code that this process has loaded, whatever is checked out later

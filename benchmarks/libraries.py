"""MTT's outer step by the kernel libraries that XLA's CPU backend can hand parts of a program to.

CIFAR-10's shape, ConvNet depth 3, T = 10, 10 images. Each row is a process of its own under XLA
flags of its own: YNNPACK's products and reductions (XLA's default in jax 0.10), none, elementwise
work too, XLA's convolutions too, and oneDNN; and XLA's own kernels by LLVM alone, as it made them
before its fusion emitters. A flag that a row's XLA was built without does nothing, or ends the
process: the column of calls counts what went to YNNPACK and oneDNN in the compiled step. CPU
seconds of the compilation and an outer step, the least of some chunks.
"""

import subprocess
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

from benchmarks.outer_steps import lowered_by, trajectory
from benchmarks.suite import Cases, Row, Table, bars, cpu_seconds, elsewhere
from d3jax import distill
from d3jax.networks import convolution

KIND = "LIBRARY_FUSION_TYPE_"
YNNPACK = "--xla_cpu_experimental_ynn_fusion_type="
ONEDNN = "--xla_cpu_use_onednn=true --xla_cpu_experimental_onednn_fusion_type="
DEFAULT = f"{KIND}DOT,{KIND}REDUCE,{KIND}INDIVIDUAL_DOT"
CONVOLUTION = f"{KIND}INDIVIDUAL_CONVOLUTION"
FLAGS = {
    "XLA's default": "",
    "no YNNPACK": YNNPACK,
    "YNNPACK's elementwise too": f"{YNNPACK}{DEFAULT},{KIND}ELTWISE",
    "YNNPACK's convolutions too": f"{YNNPACK}{DEFAULT},{CONVOLUTION}",
    "oneDNN": f"{ONEDNN}{KIND}DOT,{CONVOLUTION}",
    "no fusion emitters": "--xla_cpu_use_fusion_emitters=false",
}


def measure(lowering: convolution.Lowering, width: int, quick: bool) -> Row:
    """CPU seconds of an outer step, and calls of libraries in it, under this process's flags."""
    with lowered_by(lowering):
        method, real = trajectory("mtt", width=width)
        key, steps = jax.random.key(0), jnp.asarray(1 if lowering == "lax" else 4, jnp.int32)
        state = jax.jit(method.init)(key, real)
        chunk = distill.chunk_function(method, int(steps))
        lowered = jax.jit(chunk).lower(key, state, real, steps)
        begun = time.process_time()
        compiled = lowered.compile()
        compiling = time.process_time() - begun

    def call() -> Any:
        return compiled(key, state, real, steps)

    call()
    text = compiled.as_text() or ""
    seconds = min(cpu_seconds(call) for _ in range(1 if quick else 6)) / int(steps)
    calls = text.count("__ynn_fusion") + text.count("__onednn")
    return {"compile_cpu_seconds": compiling, "cpu_seconds": seconds, "library_calls": calls}


def row(lowering: convolution.Lowering, width: int, quick: bool, flags: str) -> Row:
    """As `measure`, under these flags."""
    case: Row = {"lowering": lowering, "width": width, "xla_flags": flags}
    arguments = f"{lowering!r}, {width}, {quick}"
    try:
        return case | elsewhere(f"libraries.measure({arguments})", XLA_FLAGS=flags)
    except subprocess.CalledProcessError as error:  # XLA itself may end a process
        return case | {"failed": f"exit status {error.returncode}"}


def cases(quick: bool) -> Cases:
    """The default lowering at two widths, and XLA's own convolutions; quick: one width."""
    steps: list[tuple[convolution.Lowering, int]] = [
        ("winograd", 32),
        ("lax", 32),
        ("winograd", 128),
    ]
    return {
        f"{lowering}, width {width}, {name}": partial(row, lowering, width, quick, flags)
        for lowering, width in (steps[:1] if quick else steps)
        for name, flags in FLAGS.items()
    }


def table(rows: list[Row]) -> Table:
    """Seconds beside those of the default."""
    default = {
        (row["lowering"], row["width"]): row["cpu_seconds"] for row in rows if not row["xla_flags"]
    }

    def numbers(row: Row) -> list[Any]:
        if "failed" in row:
            return ["failed", "", "", ""]
        to = default.get((row["lowering"], row["width"]))  # not there where --only left it out
        share = "" if to is None else f"{row['cpu_seconds'] / to:.2f}"
        step, compiling = f"{row['cpu_seconds']:.3f}", f"{row['compile_cpu_seconds']:.1f}"
        return [step, share, row["library_calls"], compiling]

    header = ["outer step", "CPU s", "to the default", "library calls", "compile, CPU s"]
    return header, [[row["work"], *numbers(row)] for row in rows]


def plot(rows: list[Row]) -> Figure:
    """CPU seconds."""
    found = [row for row in rows if "failed" not in row]
    return bars(
        [row["work"] for row in found], [row["cpu_seconds"] for row in found], "CPU seconds"
    )

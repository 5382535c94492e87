"""What a row is, how large its work is, and the clock that all rows share."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from benchmarks.suite import Row


class Case(NamedTuple):
    """A row to be measured."""

    section: str
    work: str
    measure: Callable[[], Row]
    seconds: float  # that it may take on an H100, compilation included
    rank: int = 1  # rows of lower ranks come first


class Size(NamedTuple):
    """How large the measured work is."""

    width: int  # of the ConvNet
    image_shape: tuple[int, int, int]
    inner_steps: tuple[int, ...]  # T
    images_per_class: tuple[int, ...]
    samples: int  # of the MMD, a class
    networks: int  # of Dataset Distillation
    real_batch: int  # of its outer loss, for each network
    product: int  # side of the matrices that are multiplied
    experts: tuple[int, ...]  # at once
    expert_images: int
    students: tuple[int, ...]  # distilled images
    chunk: int  # outer steps a dispatch, at most
    steady: float  # seconds of steady state to measure, about
    distilling: float  # seconds of outer steps on real images
    student_epochs: int


FULL = Size(
    width=128,
    image_shape=(32, 32, 3),
    inner_steps=(10, 50),
    images_per_class=(1, 10),
    samples=30,
    networks=4,
    real_batch=256,
    product=8192,
    experts=(1, 4, 16),
    expert_images=5120,
    students=(20, 500),
    chunk=100,
    steady=1.5,
    distilling=120.0,
    student_epochs=300,
)
DRY = Size(
    width=4,
    image_shape=(4, 4, 3),
    inner_steps=(2,),
    images_per_class=(1,),
    samples=2,
    networks=2,
    real_batch=4,
    product=64,
    experts=(1, 2),
    expert_images=40,
    students=(20,),
    chunk=2,
    steady=0.0,
    distilling=0.1,
    student_epochs=2,
)
PRECISIONS = ("tensorfloat32", "float32", "bfloat16")
RATES: dict[str, float] = {}  # FLOP/s of products, as measured in this process


def seconds_of(function: Callable[[], Any], steady: float, most: int = 1000) -> float:
    """Wall seconds of one call once it is warm: the mean over about `steady` seconds of calls."""
    jax.block_until_ready(function())
    begun = time.monotonic()
    jax.block_until_ready(function())
    once = max(time.monotonic() - begun, 1e-6)
    calls = max(1, min(most, int(steady / once)))
    begun = time.monotonic()
    result = None
    for _ in range(calls):
        result = function()
    jax.block_until_ready(result)
    return (time.monotonic() - begun) / calls


def share(flops: float, seconds: float, precision: str = "tensorfloat32") -> Row:
    """The fraction of the product rate, where that was measured."""
    rate = RATES.get(precision)
    return {"product_share": flops / seconds / rate} if rate else {}


def mebibytes(compiled: Any) -> float:
    """A program's temporary arrays and results."""
    memory = compiled.memory_analysis()
    return (memory.temp_size_in_bytes + memory.output_size_in_bytes) / 2**20

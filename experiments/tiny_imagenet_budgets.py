"""Tiny-ImageNet: D3, pixels and spectra at equal bytes, and D3 in subtasks of 100 classes.

    D3JAX_DATA_DIR=... python -m experiments.tiny_imagenet_budgets [ROW ...] [--seeds 0,1,2]

Rows "20, NAME": 20 classes at 64x64, all 10 000 training images, ConvNet depth 4, 2 experts of 20
epochs at 0.1 (pixels and spectra: 10 at 0.01), 300 outer steps, MMD with 15 samples. Rows "100, NAME": 100 classes at 32x32, all 50 000
training images but for 2000 that choose learning rates, ConvNet depth 3, 2 experts of 10 epochs, 500
outer steps, MMD with 15 samples of 50 classes at a time; "100, d3, K subtasks" cuts the classes
into K ranges, each with experts, latents and a decoder of its own, at as many bytes in all. Width
32, one whole image a class in float16, 3 students.

table: tiny_imagenet_budgets (python -m experiments.tables)

Not measured here yet.

end of table
"""

import dataclasses
from typing import Any

from d3jax.evaluate import Protocol
from d3jax.experts import Options as ExpertOptions
from d3jax.methods.d3 import D3Options
from d3jax.methods.mtt import MTTOptions
from d3jax.run.options import Architecture, Data, Parametrization, command
from experiments import runner

replace = dataclasses.replace
D3 = command("d3")(
    data=Data(dataset="tiny_imagenet_20", validation=1000),
    architecture=Architecture(width=32),
    parametrization=Parametrization(budget=1),
    d3=D3Options(mmd_samples=15),
    expert=ExpertOptions(count=2, epochs=20, learning_rate=0.1),
    student=Protocol(students=3),
    outer_steps=300,
    baselines=("random", "random_uint8", "herding_uint8"),
)
PIXELS = command("mtt")(
    data=D3.data,
    architecture=D3.architecture,
    parametrization=Parametrization(kind="pixels", budget=1),
    expert=ExpertOptions(count=2),
    student=D3.student,
    outer_steps=300,
    baselines=(),
)
SPECTRA = replace(
    PIXELS,
    parametrization=Parametrization(kind="spectral", budget=1),
    mtt=MTTOptions(inner_batch_size=40),
)


def hundred(run: Any, **changes: Any) -> Any:
    """The same for 100 classes at 32x32."""
    data = Data(dataset="tiny_imagenet_100_32", validation=2000)
    expert = replace(run.expert, epochs=10)
    if "d3" in vars(run) and "subtasks" not in changes:
        changes["d3"] = replace(run.d3, mmd_classes=50)
    return replace(run, data=data, expert=expert, outer_steps=500, **changes)


ROWS = {
    "20, d3": D3,
    "20, pixels": PIXELS,
    "20, spectra": SPECTRA,
    "100, d3": hundred(D3),
    "100, d3, 2 subtasks": hundred(D3, subtasks="2", baselines=()),
    "100, d3, 5 subtasks": hundred(D3, subtasks="5", baselines=()),
    "100, pixels": hundred(PIXELS),
}

if __name__ == "__main__":
    chosen, seeds = runner.arguments(ROWS, (0, 1, 2))
    own = {row: ROWS[row] for row in chosen}
    runner.run("tiny_imagenet_budgets", own, seeds=seeds, labels=list(ROWS))

"""A generator that is trained once and adapted in seconds, beside FRePo's pixels: CIFAR-10.

    D3JAX_DATA_DIR=... python -m experiments.cifar10_mgdd [ROW ...] [--seeds 0,1,2]

Generators (width 8) are meta-trained on 20 000 images of the 100 classes of Tiny-ImageNet at 32
pixels, on tasks of 10 classes and 1 to 10 images of each: jointly, by Reptile and by first-order
MAML, with as many gradients each. Then they take so many Adam steps on CIFAR-10, as does a fresh
one (`scratch`). 10 000 images of the copy decoded from JPEG files, whitened (ZCA) in all rows;
ConvNet depth 3, width 32, without norm. Labels are solved, FRePo's are learned, and students meet
both by squared error. The baselines are real images with one-hot labels (by cross entropy), and
with solved ones: the floor. Rows of the generators' own data are judged on Tiny-ImageNet.

Accuracy against seconds, at 10 images per class:

table: cifar10_mgdd (python -m experiments.tables)

| run | floats | bytes | test accuracy % | random | random, solved | sd of students | seeds x students | CPU s, experts | CPU s, outer steps | s, a student |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| meta, reptile | 327,619 | 660,302 | 0.8 (1 seed) |  |  |  | 1 x 1 | 0 | 379 | 43 |
| scratch, 20 | 308,200 | 618,040 | 32.4 (1 seed) | 26.4 | 36.9 | 2.8 | 1 x 3 | 0 | 8 | 14 |
| reptile, 100 | 318,619 | 640,902 | 31.4 (1 seed) |  |  | 1.2 | 1 x 3 | 0 | 38 | 41 |

sd of students: of the run's, within a seed. s, a student: wall seconds of training, by those that train at once. 1 core of AMD EPYC; 2026-11-28; commits a85b64f, a85b64f+. +: with changes that were committed later. Baselines' students train at the best of several learning rates (chosen: 0.03, 0.1), those of distilled data at the best of those and the learned one.

end of table

One generator, adapted once (100 steps from Reptile's, at 1 to 10 images per class), makes any number
of images; FRePo runs for each. Its rows here take no steps: seconds are those of the row above.

table: cifar10_mgdd_sizes (python -m experiments.tables)

Not measured here yet.

end of table

The same generator on other data, grey digits at 28 and 16 pixels, at 10 images per class:

table: cifar10_mgdd_targets (python -m experiments.tables)

Not measured here yet.

end of table

To reach: what FRePo reaches, in at most 1/22 of its seconds. A generator's seconds do not count its
meta-training, which has rows of its own.
"""

import dataclasses
from pathlib import Path
from typing import Any

from d3jax.evaluate import Protocol
from d3jax.methods.frepo import FRePoOptions
from d3jax.methods.mgdd import MGDDOptions
from d3jax.run.options import Architecture, Data, Parametrization, command
from experiments import runner
from experiments.cifar10_frepo import DATA

SIZES = (1, 2, 5, 10, 20, 50)
STEPS = (20, 100, 300)
STUDENTS = Protocol(steps=300, students=3)
RATES = (0.03, 0.1, 0.3)  # of 0.01 to 0.1 the last was best by squared error
GENERATOR = Parametrization(images_per_class=10, generator_width=8)
MGDD = command("mgdd")(
    data=DATA,
    architecture=Architecture(width=32),
    parametrization=GENERATOR,
    mgdd=MGDDOptions(real_batch=256),
    student=STUDENTS,
    baselines=(),
    baseline_learning_rates=RATES,
)
META = dataclasses.replace(
    MGDD,
    data=Data(dataset="tiny_imagenet_100_32", train_limit=20_000, test_limit=1000, zca=True),
    parametrization=dataclasses.replace(GENERATOR, images_per_class=1, store="generator"),
    student=dataclasses.replace(STUDENTS, students=1),
)
GRADIENTS = {"joint": 1, "reptile": 5, "maml": 6}  # of an outer step
FREPO = command("frepo")(
    data=DATA,
    architecture=MGDD.architecture,
    parametrization=Parametrization(images_per_class=10),
    frepo=FRePoOptions(real_batch=256, data_learning_rate=3e-3),
    student=STUDENTS,
    baselines=(),
    baseline_learning_rates=RATES,
)


def rows(seed: int, gradients: int = 1000) -> dict[str, dict[str, Any]]:
    """Every configuration of a seed by its label, of each table."""
    replace, found = dataclasses.replace, {}

    def of(label: str) -> Path:
        return runner.folder("cifar10_mgdd", label, seed)

    for kind, each in GRADIENTS.items():
        own = replace(MGDD.mgdd, meta=kind, classes=10, most=10, inner_steps=5)
        found[f"meta, {kind}"] = replace(META, mgdd=own, outer_steps=gradients // each)
    for steps in STEPS:
        baselines = ("random", "random_solved") if steps == min(STEPS) else ()
        found[f"scratch, {steps}"] = replace(MGDD, outer_steps=steps, baselines=baselines)
        for kind in GRADIENTS:
            if kind == "reptile" or steps == 100:
                own = replace(MGDD.mgdd, generator=of(f"meta, {kind}"))
                stored = replace(GENERATOR, store="generator" if steps == 100 else "images")
                found[f"{kind}, {steps}"] = replace(
                    MGDD, mgdd=own, parametrization=stored, outer_steps=steps
                )
        found[f"frepo, {steps}"] = replace(FREPO, outer_steps=steps)
    found["frepo, 2000"] = replace(FREPO, outer_steps=2000)
    still = replace(MGDD.mgdd, generator=of("reptile, 100"), generator_learning_rate=0.0, most=1)
    sizes = {}
    for number in SIZES:
        sizes[f"generated, {number}"] = replace(
            MGDD,
            mgdd=still,
            parametrization=replace(GENERATOR, images_per_class=number),
            baselines=("random_solved",),
        )
        sizes[f"frepo 300, {number}"] = replace(
            FREPO, parametrization=Parametrization(images_per_class=number), outer_steps=300
        )
    targets = {}
    for name in ("mnist", "usps"):
        data = replace(DATA, dataset=name, validation=1000)
        own = replace(MGDD.mgdd, generator=of("meta, reptile"))
        adapted = replace(MGDD, data=data, outer_steps=100)
        targets[f"{name}, scratch, 100"] = replace(adapted, baselines=("random", "random_solved"))
        targets[f"{name}, reptile, 100"] = replace(adapted, mgdd=own)
        targets[f"{name}, frepo, 2000"] = replace(FREPO, data=data, outer_steps=2000)
    return {"cifar10_mgdd": found, "cifar10_mgdd_sizes": sizes, "cifar10_mgdd_targets": targets}


if __name__ == "__main__":
    known = [label for own in rows(0).values() for label in own]
    chosen, seeds = runner.arguments(known, (0, 1, 2))
    for seed in seeds:
        for name, own in rows(seed).items():
            few = {row: own[row] for row in chosen if row in own}
            runner.run(name, few, seeds=(seed,), labels=list(own), runs="cifar10_mgdd")

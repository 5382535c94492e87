"""CIFAR-10: what of DWA helps over SRe2L, and whether optimizing helps over real images at all.

    D3JAX_DATA_DIR=... python -m experiments.cifar10_statistics [ROW ...] [--seeds 0,1,2]

All 50 000 training images of the copy decoded from JPEG files (not to be compared with published
figures), ConvNet depth 3, width 32, batch norm; one teacher a seed (20 epochs, SGD 0.1, momentum,
cosine, crop and flip), 10 images a class, 1000 outer steps. The arms, all under that teacher:

    sre2l                  starts from noise, variances weigh 1, no adjustment
    real start             the same from real images
    variance weight        besides, variances weigh 11
    random direction       besides, the teacher is moved by 0.015 in a random direction
    dwa                    by 0.015 in 12 steps that raise the start images' loss
    dwa, radius 0.15, 1.5  further
    dwa, rate 0.03         d3jax's default: an eighth of the authors' learning rate of images,
                           which `cifar10_statistics_rates.py` has chosen on training images

Beside the row `dwa` stand as many random real images and RDED's crops, with the same labels, and
random ones with hard labels. Where labels come from, and what they take, is
`cifar10_statistics_labels.py`.

Students of all arms, and of all baselines: 2000 steps of 50, AdamW at 0.001 with a cosine, crop,
flip and mixup, KL at temperature 20 with the teacher's label of each view; population statistics of
the distilled images; the last epoch. Nothing of it is chosen on test images. Arms of a seed share
teacher, start images, views and the students' initial weights, so that differences are paired:

    python -m experiments.pairs cifar10_statistics

The row `dwa` trains the baselines too. How long a teacher, the outer steps and a student take stands in
the table below. An arm takes about 12 minutes on a core that is left alone, a teacher 20.

table: cifar10_statistics (python -m experiments.tables)

| run | floats | bytes | test accuracy % | random | rded | random, hard | sd of students | seeds x students | CPU s, experts | CPU s, outer steps | s, a student |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| sre2l | 332,106 | 666,260 | 28.1 (1 seed) |  |  |  | 0.9 | 1 x 5 | 1,111 | 68 | 409 |
| real start | 332,106 | 666,260 | 33.4 (1 seed) |  |  |  | 1.9 | 1 x 5 | 1,111 | 78 | 188 |
| variance weight | 332,106 | 666,260 | 31.2 (1 seed) |  |  |  | 2.5 | 1 x 5 | 1,111 | 81 | 204 |
| random direction | 332,106 | 666,260 | 31.1 (1 seed) |  |  |  | 1.8 | 1 x 5 | 1,111 | 122 | 548 |
| dwa | 332,106 | 666,260 | 30.4 (1 seed) | 50.2 | 53.0 | 34.1 | 2.6 | 1 x 5 | 1,111 | 124 | 195 |
| dwa, rate 0.03 | 332,106 | 666,260 | 49.2 (1 seed) |  |  |  | 0.9 | 1 x 5 | 1,111 | 127 | 184 |

sd of students: of the run's, within a seed. s, a student: wall seconds of training, by those that train at once. 1 core of AMD EPYC; 2026-11-27, 2026-11-28; commits 03980b1, 15e4672, 15e4672+, 9ba5fe1, b847edc. +: with changes that were committed later. Baselines' students train at the best of several learning rates (chosen: 0.001), those of distilled data at the best of those and the learned one.

end of table

Published, of ResNet-18 at 10 images a class: SRe2L 27.2, DWA 32.6, RDED 37.1 (each under its own
student's recipe, the first two after 400 steps).
"""

import dataclasses
from typing import Any

from d3jax import experts
from d3jax.evaluate import Protocol
from d3jax.methods.dwa import SRE2L, DWAOptions
from d3jax.run.options import Architecture, Data, Parametrization, command
from experiments import runner

replace = dataclasses.replace
PUBLISHED = DWAOptions(data_learning_rate=0.25)
STUDENTS = Protocol(
    steps=2000,
    batch_size=50,
    learning_rate=1e-3,
    optimizer="adamw",
    weight_decay=0.01,
    schedule="cosine",
    views="padded",
    mix="mixup",
    temperature=20.0,
)
DWA = command("dwa")(
    data=Data(dataset="cifar10"),
    architecture=Architecture(network="convnet", width=32, norm="batch"),
    parametrization=Parametrization(images_per_class=10, labels="teacher"),
    dwa=PUBLISHED,
    expert=replace(experts.TEACHER, epochs=20),
    student=STUDENTS,
    outer_steps=1000,
    baselines=("random", "rded", "random_hard"),
    baseline_learning_rates=(1e-3,),
)


def arm(own: DWAOptions, **stored: Any) -> Any:
    """The same under other options, its baselines left out: they would be the same again."""
    parametrization = replace(DWA.parametrization, **stored)
    return replace(DWA, dwa=own, parametrization=parametrization, baselines=())


ROWS = {
    "sre2l": arm(SRE2L, start="noise"),
    "real start": arm(SRE2L),
    "variance weight": arm(replace(PUBLISHED, adjustment_steps=0)),
    "random direction": arm(replace(PUBLISHED, adjustment="random")),
    "dwa": DWA,
    "dwa, radius 0.15": arm(replace(PUBLISHED, adjustment_radius=0.15)),
    "dwa, radius 1.5": arm(replace(PUBLISHED, adjustment_radius=1.5)),
    "dwa, rate 0.03": arm(DWAOptions(data_learning_rate=0.03)),
}
if __name__ == "__main__":
    chosen, seeds = runner.arguments(ROWS, (0, 1, 2))
    own = {row: ROWS[row] for row in chosen}
    runner.run("cifar10_statistics", own, seeds=seeds, labels=list(ROWS))

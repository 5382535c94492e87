"""Tiny-ImageNet, 100 classes at 32x32: statistics matching of pixels, and of Gaussians at equal bytes.

    D3JAX_DATA_DIR=... python -m experiments.tiny_imagenet_statistics [ROW ...] [--seeds 0,1,2]

All 50 000 training images, ConvNet depth 3, width 32, batch norm; one teacher a seed (20 epochs), 10
images a class, 500 outer steps under it: SRe2L, DWA, and DWA's objective with D3's parametrization,
Gaussians and a decoder, at the bytes of those pixels. DWA's learning rate is d3jax's. The pixels'
A(x) is rolls alone: the images are 32 pixels wide, as CIFAR's. Beside `dwa` stand random real images and RDED's crops with the same
labels, and random ones with hard labels.

Students: 2000 steps of 100 in all rows, however many items an epoch has; else as in
`cifar10_statistics.py`, with cutmix. The teacher is shipped in each artifact, and counted.
Differences, paired: `python -m experiments.pairs tiny_imagenet_statistics`.

table: tiny_imagenet_statistics (python -m experiments.tables)

Not measured here yet.

end of table
"""

import dataclasses

from d3jax.methods.dwa import SRE2L, DWAOptions
from d3jax.run.options import Data, Parametrization
from experiments import runner
from experiments.cifar10_statistics import DWA as CIFAR10

replace = dataclasses.replace
IMAGES = 10  # of each class
DWA = replace(
    CIFAR10,
    dwa=DWAOptions(),
    data=Data(dataset="tiny_imagenet_100_32"),
    student=replace(CIFAR10.student, students=3, batch_size=100, mix="cutmix"),
    outer_steps=500,
)
ROWS = {
    "sre2l": replace(
        DWA,
        dwa=SRE2L,
        parametrization=replace(DWA.parametrization, start="noise"),
        baselines=(),
    ),
    "dwa": DWA,
    "gaussian": replace(
        DWA,
        dwa=replace(DWA.dwa, data_learning_rate=0.01),
        parametrization=Parametrization(kind="gaussian", budget=IMAGES, labels="teacher"),
        baselines=(),
    ),
}

if __name__ == "__main__":
    chosen, seeds = runner.arguments(ROWS, (0, 1, 2))
    own = {row: ROWS[row] for row in chosen}
    runner.run("tiny_imagenet_statistics", own, seeds=seeds, labels=list(ROWS))

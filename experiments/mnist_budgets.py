"""Budgets on MNIST: D3, pixels and real images at equal bytes, 10 000 training images.

    D3JAX_DATA_DIR=... python -m experiments.mnist_budgets [ROW ...] [--seeds 0,1,2]

Budgets of 1, 3 and 10 whole images a class in float16, 15 680 bytes each, header and labels beside.
As `cifar10_budgets.py` is, on MNIST: ConvNet depth 3, width 32, 4 experts, 1000 outer steps. Students
train for 1000 epochs, not 300, in every row, at the best of several learning rates on 2000 training
images that are set aside (chosen in a trial on training images that were held back). Baselines are
uint8 images, the stronger ones at equal bytes. The row "students of 300 epochs" is of the protocol
before, until it is made again.

table: mnist_budgets (python -m experiments.tables)

| run | floats | bytes | test accuracy % | random | kmeans | herding | random, uint8 | kmeans, uint8 | herding, uint8 | sd of students | seeds x students | CPU s, experts | CPU s, outer steps | s, a student |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| d3, 3 | 22,820 | 49,472 | 96.2 (1 seed) |  |  |  | 90.2 | 90.6 | 94.6 | 0.2 | 1 x 5 | 627 | 972 | 59 |
| d3, 1, students of 300 epochs | 7,779 | 19,222 | 95.2 (1 seed) | 58.3 | 78.5 | 73.7 | 70.7 | 87.6 | 84.2 | 0.3 | 1 x 5 | 306 | 459 | 45 |

sd of students: of the run's, within a seed. s, a student: wall seconds of training, by those that train at once. 1 core of AMD EPYC; 2026-11-27; commits 2aea6ca, 70b59a6. uint8: a byte a pixel, for as many bytes as the row's arrays have; other baselines for as many floats. Baselines' students train at the best of several learning rates (chosen: 0.01, 0.03, 0.1), those of distilled data at the best of those and the learned one.

end of table

The plot of accuracy against bytes: `python -m experiments.frontier mnist_budgets`.
"""

from d3jax.run.options import Data
from experiments import runner
from experiments.ablations import changed
from experiments.cifar10_budgets import D3, PIXELS

BUDGETS = (1, 3, 10)
ROWS = {
    f"{name}, {images}": changed(
        run,
        data=Data(dataset="mnist", train_limit=10_000, validation=2000),
        parametrization={"budget": images},
        student={"epochs": 1000},
        baselines=baselines,
    )
    for images in BUDGETS
    for name, run, baselines in (
        ("d3", D3, ("random_uint8", "kmeans_uint8", "herding_uint8")),
        ("pixels", PIXELS, ()),
    )
}

if __name__ == "__main__":
    chosen, seeds = runner.arguments(ROWS, (0, 1, 2))
    own = {row: ROWS[row] for row in chosen}
    runner.run("mnist_budgets", own, seeds=seeds, labels=list(ROWS))  # type: ignore[arg-type]

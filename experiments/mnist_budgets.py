"""Budgets on MNIST: D3, pixels and real images at equal bytes, 10 000 training images.

    D3JAX_DATA_DIR=... python -m experiments.mnist_budgets [ROW ...] [--seeds 0,1,2]

Budgets of 1, 3 and 10 whole images a class in float16, 15 680 bytes each, header and labels beside.
As `cifar10_budgets.py` is, on MNIST: ConvNet depth 3, width 32, 4 experts, 1000 outer steps, students at the best of several learning rates on 2000 training images
that are set aside.

table: mnist_budgets (python -m experiments.tables)

Not measured here yet.

end of table

The plot of accuracy against bytes: `python -m experiments.frontier mnist_budgets`.
"""

import dataclasses

from d3jax.run.options import Data
from experiments import runner
from experiments.cifar10_budgets import D3, PIXELS

BUDGETS = (1, 3, 10)
ROWS = {
    f"{name}, {images}": dataclasses.replace(
        run,
        data=Data(dataset="mnist", train_limit=10_000, validation=2000),
        parametrization=dataclasses.replace(run.parametrization, budget=images),
    )
    for images in BUDGETS
    for name, run in (("d3", D3), ("pixels", PIXELS))
}

if __name__ == "__main__":
    chosen, seeds = runner.arguments(ROWS, (0, 1, 2))
    own = {row: ROWS[row] for row in chosen}
    runner.run("mnist_budgets", own, seeds=seeds, labels=list(ROWS))  # type: ignore[arg-type]

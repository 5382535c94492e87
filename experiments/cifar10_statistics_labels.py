"""CIFAR-10 by DWA: what a teacher's labels are worth, against the bytes that they take.

    D3JAX_DATA_DIR=... python -m experiments.cifar10_statistics_labels [ROW ...] [--seeds 0]

The row `dwa, rate 0.03` of `cifar10_statistics.py` at 2 and 10 images a class, with one label an item (mixed as
images are), one a view (2000 steps of 20 or 50), or the teacher shipped, which labels the same views.
Bytes are those of the whole file, labels and teacher included. The plot:

    python -m experiments.frontier cifar10_statistics_labels

table: cifar10_statistics_labels (python -m experiments.tables)

Not measured here yet.

end of table
"""

import dataclasses

from d3jax.methods.dwa import DWAOptions
from experiments import runner
from experiments.cifar10_statistics import DWA

KINDS = {"a label an item": "expert", "a label a view": "views", "teacher shipped": "teacher"}
ROWS = {
    f"{name}, {images}": dataclasses.replace(
        DWA,
        dwa=DWAOptions(),
        parametrization=dataclasses.replace(
            DWA.parametrization, labels=kind, images_per_class=images
        ),
        baselines=(),
    )
    for name, kind in KINDS.items()
    for images in (2, 10)
}

if __name__ == "__main__":
    chosen, seeds = runner.arguments(ROWS, (0,))
    own = {row: ROWS[row] for row in chosen}
    runner.run("cifar10_statistics_labels", own, seeds=seeds, labels=list(ROWS))

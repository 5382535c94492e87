"""FRePo at 1 and 10 images per class: MNIST, ConvNet width 32.

    D3JAX_DATA_DIR=... python -m experiments.mnist_frepo [ROW ...] [--seeds 0,1,2]

The world of `mnist_d3.py`: 10 000 training images. To reach: 93 and 97.5; the paper has 93.8 and
98.4 at width 128, 500 000 steps and all images, the best look on test images.

table: mnist_frepo (python -m experiments.tables)

Not measured here yet.

end of table
"""

import dataclasses

from d3jax.run.options import Parametrization
from experiments import runner
from experiments.cifar10_frepo import FREPO
from experiments.mnist_d3 import BASE

ROWS = {
    f"{images} image{'s' * (images > 1)} per class": dataclasses.replace(
        FREPO, data=BASE.data, parametrization=Parametrization(images_per_class=images)
    )
    for images in (1, 10)
}

if __name__ == "__main__":
    chosen, seeds = runner.arguments(ROWS, (0, 1, 2))
    runner.run("mnist_frepo", {row: ROWS[row] for row in chosen}, seeds=seeds, labels=list(ROWS))

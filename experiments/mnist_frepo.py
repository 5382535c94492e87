"""FRePo at 1 and 10 images per class: MNIST, ConvNet width 32.

    D3JAX_DATA_DIR=... python -m experiments.mnist_frepo [ROW ...] [--seeds 0,1,2]

The world of `mnist_d3.py`: 10 000 training images. To reach: 93 and 97.5; the paper has 93.8 and
98.4 at width 128, 500 000 steps and all images, the best look on test images.

table: mnist_frepo (python -m experiments.tables)

| run | floats | bytes | test accuracy % | random | kmeans | random, solved | sd of students | seeds x students | CPU s, experts | CPU s, outer steps | s, a student |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| 1 image per class | 7,940 | 17,224 | 81.7 (1 seed) | 63.9 | 82.3 | 74.1 | 1.4 | 1 x 5 | 0 | 209 | 3.2 |
| 10 images per class | 79,400 | 160,144 | 96.1 (1 seed) | 84.4 | 88.8 | 94.3 | 0.3 | 1 x 5 | 0 | 663 | 380 |

sd of students: of the run's, within a seed. s, a student: wall seconds of training, by those that train at once. 1 core of AMD EPYC; 2026-11-28; commits 656c948, 944395b. Baselines' students train at the best of several learning rates (chosen: 0.03, 0.1), those of distilled data at the best of those and the learned one.

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

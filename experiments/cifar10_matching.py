"""Pixels, Gaussians with a decoder and spectra at 61 440 floats: CIFAR-10, trajectory matching.

    D3JAX_DATA_DIR=... python -m experiments.cifar10_matching [ROW ...] [--seeds 0,1,2]

The world of `cifar10_d3.py`: 10 000 images of the copy decoded from JPEG files, ConvNet depth 3,
width 32, 4 experts of 10 epochs for each seed (the same for all rows), 1000 outer steps of 10 inner
steps, M = 2, start epochs below 8; 5 students of 300 epochs. MTT has 2 images per class; D3 is that
file's `faster` row; 28 images per class are 7 spectra of rank 16 under 4 transformations each,
20 of them drawn for an inner step. MTT's learning rates are d3jax's defaults.

Yardstick, measured before in a PyTorch loop, one seed, on the first 2000 test images: MTT 36.4, D3
34.0 (standard deviation of 3 students 0.8 and 0.5). Other networks' students (a ResNet-18 of width 16) are those of the artifact's protocol and
learning rate, judged on the same 2000. A student of the 280 spectral images takes some 22 times as
long as one of 20 images.

table: cifar10_matching (python -m experiments.tables)

| run | floats | bytes | test accuracy % | alexcifarnet | mlp | on the first 2000 | resnet18 | random | kmeans | class_mean | sd of students | seeds x students | CPU s, experts | CPU s, outer steps | s, a student |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| mtt | 61,440 | 124,176 | 35.8 ± 0.6 | 32.0 ± 0.2 | 28.4 ± 1.1 | 36.6 ± 0.9 | 30.4 ± 0.6 | 17.2 ± 2.7 | 26.7 ± 0.6 | 22.1 ± 0.3 | 0.8 | 3 x 5 | 292 | ≤ 453 | 4.1 |
| d3 | 62,491 | 128,966 | 36.3 ± 0.5 | 36.8 ± 1.0 | 33.3 ± 0.3 | 36.9 ± 0.4 | 24.0 ± 0.3 |  |  |  | 0.7 | 3 x 5 | 292 | 576 | 1.9 |
| spectral | 57,892 | 117,376 | 40.0 ± 0.5 |  |  | 40.9 ± 0.3 |  |  |  |  | 0.5 | 3 x 5 | 260 | 380 | 89 |

±: between seeds, students averaged. sd of students: of the run's, within a seed. s, a student: wall seconds of training, by those that train at once. 1 core of AMD EPYC; 2026-11-22; commits 02c079b, 33a9786, 54e4afd, afe94f4, cb576ce. ≤: the whole run's CPU seconds: compilation, students, baselines and source networks too. Baselines' students train at the best of several learning rates (chosen: 0.01, 0.03), those of distilled data at the learned one.

end of table
"""

import dataclasses

from d3jax.evaluate import Protocol
from d3jax.methods import mtt
from d3jax.run.options import Architecture, Matching, Parametrization, command
from experiments import runner
from experiments.cifar10_d3 import FASTER, PAPER

MTT = command("mtt")(
    data=PAPER.data,
    architecture=PAPER.architecture,
    parametrization=Parametrization(kind="pixels", images_per_class=2),
    mtt=mtt.MTTOptions(max_start_epoch=8),
    student=Protocol(students=5),
    outer_steps=1000,
)
ROWS: dict[str, Matching] = {
    "mtt": MTT,
    "d3": dataclasses.replace(FASTER, student=MTT.student),
    "spectral": dataclasses.replace(
        MTT,
        parametrization=Parametrization(
            kind="spectral", spectra_per_class=7, transformations=4, rank=16
        ),
        mtt=dataclasses.replace(MTT.mtt, inner_batch_size=20),
        baselines=(),
    ),
}
OTHERS = {
    "alexcifarnet": Architecture(network="alexcifarnet"),
    "resnet18": Architecture(network="resnet18", width=16),
    "mlp": Architecture(network="mlp"),
}
FIRST = {"on_the_first_2000": {"test_limit": 2000}}
ON_OTHERS = {name: {"architecture": other, "test_limit": 2000} for name, other in OTHERS.items()}

if __name__ == "__main__":
    chosen, seeds = runner.arguments(ROWS, (0, 1, 2))
    for row in chosen:
        runner.run(
            "cifar10_matching",
            {row: ROWS[row]},  # type: ignore[arg-type]
            seeds=seeds,
            # A student of 280 images takes 22 times as long: that row has no other networks.
            judgements=FIRST if row == "spectral" else {**FIRST, **ON_OTHERS},
            labels=list(ROWS),
        )

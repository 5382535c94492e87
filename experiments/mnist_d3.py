"""D3 on MNIST, 10 000 training images: accuracy against stored floats, and the ablations.

    D3JAX_DATA_DIR=... python -m experiments.mnist_d3 [budgets] [ablations] [--seeds 0,1,2]

ConvNet width 32, 4 experts of 10 epochs, 500 outer steps, test accuracy after the last epoch on all
10 000 test images. Floats of 1, 3 and 10 images per class are 7840, 23 520 and 78 400; baselines
have whole images at no fewer floats (class means one a class), and the same student protocol but
for the learning rate: the best of 0.01, 0.03 and 0.1 on 2000 validation images, where D3 learns its
own. k-means with one centre is the class mean. D3's learning rates, d3jax's defaults, were chosen
on the embedded digits' validation split. Deviations from the paper: Adam for the latents, larger
rates and a cosine schedule, which learn faster; valid pixels as the decoder's range; inner steps on
10 items, drawn by permutations.

table: mnist_d3 (python -m experiments.tables)

| run | floats | bytes | test accuracy % | random | kmeans | class_mean | sd of students | seeds x students | CPU s, experts | CPU s, outer steps | s, a student |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| 1 image per class | 7,523 | 18,686 | 93.1 (1 seed) | 58.3 | 80.9 | 80.9 | 0.2 | 1 x 5 | 447 | ≤ 851 | 15 |
| 3 images per class | 23,109 | 49,898 | 94.7 ± 0.1 | 80.8 ± 3.5 | 89.5 ± 0.3 | 80.1 ± 1.2 | 0.3 | 3 x 5 | 338 | ≤ 1,060 | 87 |
| 10 images per class | 77,705 | 159,170 | 95.3 (1 seed) | 92.5 | 92.0 | 80.9 | 0.3 | 1 x 5 | 447 | ≤ 2,198 | 57 |

±: between seeds, students averaged. sd of students: of the run's, within a seed. s, a student: wall seconds of training, by those that train at once. 2 cores of AMD EPYC; 2026-11-21; commits 7f664ab, 8e05cf0, fbfc2ae. ≤: the whole run's CPU seconds: compilation, students, baselines and source networks too. Baselines' students train at the best of several learning rates (chosen: 0.01, 0.03, 0.1), those of distilled data at the learned one.

end of table

The ablations, at 3 images per class:

table: mnist_d3_ablations (python -m experiments.tables)

| run | floats | bytes | test accuracy % | random | kmeans | class_mean | sd of students | seeds x students | CPU s, experts | CPU s, outer steps | s, a student |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| 3 images per class | 23,109 | 49,898 | 94.7 ± 0.1 | 80.8 ± 3.5 | 89.5 ± 0.3 | 80.1 ± 1.2 | 0.3 | 3 x 5 | 338 | ≤ 1,060 | 87 |
| mean only | 23,109 | 49,938 | 95.0 ± 0.3 |  |  |  | 0.3 | 3 x 5 | 338 | ≤ 609 | 47 |
| no MMD | 23,109 | 49,938 | 83.2 ± 6.2 |  |  |  | 1.1 | 3 x 5 | 338 | ≤ 422 | 41 |
| no trajectory matching | 23,109 | 49,938 | 94.0 ± 0.2 |  |  |  | 0.4 | 3 x 5 | 338 | ≤ 410 | 49 |
| MMD features of epoch 2 | 23,109 | 49,938 | 94.0 ± 0.4 |  |  |  | 0.2 | 3 x 5 | 338 | ≤ 608 | 51 |

±: between seeds, students averaged. sd of students: of the run's, within a seed. s, a student: wall seconds of training, by those that train at once. 2 cores of AMD EPYC; 2026-11-21; commits 7f664ab, c229a62, fbfc2ae. ≤: the whole run's CPU seconds: compilation, students, baselines and source networks too. Baselines' students train at the best of several learning rates (chosen: 0.01, 0.03, 0.1), those of distilled data at the learned one.

end of table
"""

import dataclasses

from d3jax.methods.d3 import D3Options
from d3jax.run.options import Architecture, Data, Parametrization, command
from experiments import runner

BASE = command("d3")(
    data=Data(dataset="mnist", train_limit=10_000, validation=2000),
    architecture=Architecture(width=32),
    d3=D3Options(inner_batch_size=10),
    outer_steps=500,
)
PARAMETRIZATIONS = {
    "1 image per class": Parametrization(latents_per_class=4, latent_size=32, decoder_width=16),
    "3 images per class": Parametrization(latents_per_class=12, latent_size=32, decoder_width=32),
    "10 images per class": Parametrization(latents_per_class=13, latent_size=64, decoder_width=64),
}
BUDGETS = {
    label: dataclasses.replace(BASE, parametrization=parametrization)
    for label, parametrization in PARAMETRIZATIONS.items()
}

_THREE = dataclasses.replace(BUDGETS["3 images per class"], baselines=())
ABLATIONS = {
    "3 images per class": BUDGETS["3 images per class"],  # the same runs: the method in full
    "mean only": dataclasses.replace(
        _THREE, parametrization=dataclasses.replace(_THREE.parametrization, variance="none")
    ),
    "no MMD": dataclasses.replace(_THREE, d3=dataclasses.replace(_THREE.d3, mmd=False)),
    "no trajectory matching": dataclasses.replace(
        _THREE, d3=dataclasses.replace(_THREE.d3, trajectory=False)
    ),
    "MMD features of epoch 2": dataclasses.replace(
        _THREE, d3=dataclasses.replace(_THREE.d3, mmd_epoch=2)
    ),
}

if __name__ == "__main__":
    chosen, seeds = runner.arguments(("budgets", "ablations"), (0, 1, 2))
    if "budgets" in chosen:
        runner.run("mnist_d3", BUDGETS, seeds=seeds)
    if "ablations" in chosen:
        runner.run("mnist_d3_ablations", ABLATIONS, seeds=seeds, runs="mnist_d3")

"""D3 on CIFAR-10, 10 000 training images, at about 2 float images per class.

    D3JAX_DATA_DIR=... python -m experiments.cifar10_d3 [ROW ...] [--seeds 0,1,2]

ConvNet depth 3, width 32; 4 experts of 10 epochs for each seed; small decoder k=64, z=64, one
latent per class; 1000 outer steps of 10 inner steps, M = 2, start epochs below 8, 30 MMD samples;
students as the yardstick's (300 epochs, SGD, siamese augmentation, learned learning rate), tested
after the last epoch. CIFAR-10 here is the copy decoded from JPEG files: not to be compared with
published figures. Baselines have 3 whole images per class (92 160 floats; class means one).

Yardsticks measured before with the authors' modules in a PyTorch loop, first 2000 test images: D3
34.0, matching trajectories on pixels (MTT, 2 real images per class) 36.4; 3 students of one seed,
which differ by 0.5 and 0.8 (standard deviation).

`paper` has the paper's optimizers; `faster` d3jax's defaults (Adam for the latents, larger rates,
cosine schedule), which were chosen on the digits' validation split. The decoder spans valid pixels
in both, where the paper's spans (-1, 1) in normalized units.

table: cifar10_d3 (python -m experiments.tables)

| run | floats | bytes | test accuracy % | on the first 2000 | random | kmeans | class_mean | sd of students | seeds x students | CPU s, experts | CPU s, outer steps | s, a student |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| paper | 62,491 | 128,910 | 35.1 ± 0.5 | 35.7 ± 0.7 | 22.3 ± 0.7 | 27.4 ± 0.7 | 22.1 ± 0.5 | 1.0 | 3 x 3 | 416 | ≤ 984 | 5.1 |
| faster | 62,491 | 128,950 | 36.4 ± 0.6 | 36.6 ± 1.0 |  |  |  | 0.4 | 3 x 3 | 292 | ≤ 889 | 2.8 |
| faster, augmentation inside | 62,491 | 128,950 | 36.3 (1 seed) | 36.8 |  |  |  | 0.6 | 1 x 3 | 292 | ≤ 904 | 3.9 |
| faster, 2000 steps | 62,491 | 128,950 | 36.9 ± 0.5 | 37.9 ± 0.2 |  |  |  | 0.5 | 2 x 3 | 291 | ≤ 1,681 | 3.8 |

±: between seeds, students averaged. sd of students: of the run's, within a seed. s, a student: wall seconds of training, by those that train at once. 2 cores of AMD EPYC; 2026-11-21; commits 787c610, fbfc2ae. ≤: the whole run's CPU seconds: compilation, students, baselines and source networks too. Baselines' students train at the best of several learning rates (chosen: 0.01, 0.03), those of distilled data at the learned one.

end of table
"""

import dataclasses

from d3jax.data.augment import STRATEGIES
from d3jax.evaluate import Protocol
from d3jax.experts import Options as Experts
from d3jax.methods import d3
from d3jax.run.options import Architecture, Data, Parametrization, command
from experiments import runner

PAPER = command("d3")(
    data=Data(dataset="cifar10", train_limit=10_000, validation=2000),
    architecture=Architecture(width=32),
    parametrization=Parametrization(latents_per_class=1, latent_size=64, decoder_width=64),
    d3=d3.PAPER,
    expert=Experts(learning_rate=0.01),
    student=Protocol(students=3),
    outer_steps=1000,
)
FASTER = dataclasses.replace(PAPER, d3=d3.D3Options(), baselines=())  # the same as above
CONFIGURATIONS = {
    "paper": PAPER,
    "faster": FASTER,
    "faster, augmentation inside": dataclasses.replace(
        FASTER, d3=d3.D3Options(inner_augmentation=STRATEGIES)
    ),
    "faster, 2000 steps": dataclasses.replace(FASTER, outer_steps=2000),
}

if __name__ == "__main__":
    chosen, seeds = runner.arguments(CONFIGURATIONS, (0, 1, 2))
    runner.run(
        "cifar10_d3",
        {label: CONFIGURATIONS[label] for label in chosen},
        seeds=seeds,
        judgements={"on_the_first_2000": {"test_limit": 2000}},
        labels=list(CONFIGURATIONS),
    )

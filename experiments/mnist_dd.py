"""Dataset Distillation on MNIST: fixed and random initialization, soft labels, adaptation, attack.

    D3JAX_DATA_DIR=... python -m experiments.mnist_dd [ROW ...] [time] [transfer] [--seeds 0]

LeNet with Xavier-normal weights; 58 000 training images (the attack: 10 000), 2000 of the training
split set aside to choose the baselines' learning rates; test accuracy on all 10 000 test images
right after the distilled steps. `mnist to usps` has a ConvNet of depth 2 and width 32, as a LeNet
leaves one pixel of 16x16, 6791 training images, 500 set aside, and USPS's 2007 test images. Random initialization
and pretrained networks: mean over 200 networks that distillation has not seen (60 of USPS, 100
attacked), and in a column of its own their standard deviation; a fixed initialization is one
network. Baselines go through as many steps on whole real images at no fewer floats, with one learning rate; best_random is the
best of 20 random draws.

Rows of a fixed initialization, where a step is cheap, take 60 000 of them on 64 real images, with
larger first inner rates, images at 0.06 (0.04 and labels at 0.02 with soft labels), larger rates of
the inner rates and a limit of their meta-gradient. Random initialization takes 1500 steps, with soft
labels at a lower rate, adaptation and attack 500; the attack is one step on 10 images a class. The
rest are d3jax's defaults. All these were chosen on training batches.
The paper takes about 23 600 steps of 1024 images. Each run writes its images per step before and
after and its curves; those of `fixed, 10 images, soft labels` are pictures/mnist_dd_soft_labels_*.png.
Networks to adapt are 400 of 5 epochs on USPS, 120 of 2 on
MNIST (half of them unseen); those to attack 200 of 5 epochs on 10 000 images of MNIST.

The paper's figures, +- between networks (Wang et al., arXiv 1811.10959; soft labels: Sucholutsky
and Schonlau, arXiv 1910.02551): fixed, 10 images 12.9 -> 93.8; random, 100 images 79.5 +- 8.1; fixed, soft labels, 10
images 96, 5 images 92; USPS -> MNIST, 100 images 67.5 +- 3.9 -> 92.7 +- 1.4; attack 0 -> 1, 100
images, 71.4 +- 29.6 % of class 0 flipped.

Short of the paper: 5 images with soft labels (91.1 for 92), and USPS -> MNIST (92.0 for 92.7, less
than networks differ). Both learned from a sixth of the paper's real images or fewer, the
latter from 200 source networks for 2000. For the 5 images larger and smaller rates of images, labels
and inner rates, and other limits of the meta-gradient, ended lower on training batches. Short of
what was aimed at: a standard deviation of 3 between networks for `random, 100 images` (3.1).

SVHN is not at hand here and has no row; where it is, save it in grey as an .npz file of
images and labels (as `sources.read_npz` reads it) and run `d3jax distill dd --dataset mnist
--adapt-from svhn_grey.npz --outer-steps 500`.

table: mnist_dd (python -m experiments.tables)

| run | floats | bytes | test accuracy % | before the steps | flipped; other classes | random | best_random | kmeans | class_mean | sd of students | seeds x students | CPU s, experts | CPU s, outer steps | s, a student |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| fixed, 10 images | 7,840 | 32,808 | 94.7 (1 seed) | 10.5 |  | 22.9 (kNN 46.6) | 31.6 (kNN 52.1) | 22.6 (kNN 82.0) | 22.6 (kNN 82.0) |  | 1 x 1 | 0 | ≤ 1,092 | 0.0 |
| random, 100 images | 78,400 | 158,736 | 84.8 (1 seed) | 10.2 |  | 57.5 (kNN 73.0) | 59.9 (kNN 74.0) | 60.9 (kNN 92.3) | 26.0 (kNN 82.0) | 3.1 | 1 x 200 | 0 | ≤ 2,218 | 0.1 |
| fixed, 10 images, soft labels | 7,940 | 33,288 | 96.0 (1 seed) | 10.5 |  | 28.7 (kNN 46.1) | 34.9 (kNN 56.6) | 28.1 (kNN 86.1) | 22.6 (kNN 82.0) |  | 1 x 1 | 0 | ≤ 984 | 0.0 |
| fixed, 5 images, soft labels | 3,970 | 17,408 | 91.1 (1 seed) | 10.5 |  | 22.9 (kNN 46.6) | 31.6 (kNN 52.1) | 22.6 (kNN 82.0) | 22.6 (kNN 82.0) |  | 1 x 1 | 0 | ≤ 780 | 0.0 |
| random, 100 images, soft labels | 79,400 | 160,808 | 85.8 (1 seed) | 10.2 |  | 58.5 (kNN 72.1) | 57.0 (kNN 71.6) | 61.0 (kNN 92.6) | 26.0 (kNN 82.0) | 4.9 | 1 x 200 | 0 | ≤ 651 | 0.0 |
| usps to mnist, 100 images | 78,400 | 159,000 | 92.0 (1 seed) | 49.0 |  | 82.6 (kNN 73.0) | 83.2 (kNN 70.2) | 87.7 (kNN 92.3) | 70.6 (kNN 82.0) | 1.2 | 1 x 200 |  | ≤ 2,307 | 0.1 |
| mnist to usps, 100 images | 25,600 | 53,392 | 95.1 (1 seed) | 77.6 |  | 89.7 (kNN 79.0) | 90.9 (kNN 78.8) | 90.5 (kNN 91.2) | 84.5 (kNN 81.3) | 0.4 | 1 x 60 |  | ≤ 2,476 | 0.1 |
| attack 0 to 1, 100 images | 78,400 | 158,384 | 84.2 (1 seed) | 97.1 | 80.0 (sd of networks 21.7); 93.2 (sd of networks 4.1) |  |  |  |  | 3.9 | 1 x 100 |  | ≤ 1,638 | 0.0 |

sd of students: of the run's, within a seed. s, a student: wall seconds of training, by those that train at once. 1 core of AMD EPYC, 2 cores of AMD EPYC; 2026-11-21, 2026-11-22; commits 41699dc, 62c74c5, a7c6b1b. ≤: the whole run's CPU seconds: compilation, students, baselines and source networks too. Baselines' students train at the best of several learning rates (chosen: 0.01, 0.03, 0.1, 0.3), those of distilled data at the learned one.

end of table

Accuracy of the first row against CPU seconds (`time`): runs of fewer outer steps, each with its own
cosine schedule.

table: mnist_dd_time (python -m experiments.tables)

| run | floats | bytes | test accuracy % | before the steps | random | best_random | kmeans | class_mean | sd of students | seeds x students | CPU s, experts | CPU s, outer steps | s, a student |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| fixed, 10 images, 600 steps | 7,840 | 32,808 | 75.8 (1 seed) | 10.5 |  |  |  |  |  | 1 x 1 | 0 | ≤ 34 | 0.0 |
| fixed, 10 images, 2000 steps | 7,840 | 32,808 | 88.7 (1 seed) | 10.5 |  |  |  |  |  | 1 x 1 | 0 | ≤ 58 | 0.0 |
| fixed, 10 images, 6000 steps | 7,840 | 32,808 | 91.2 (1 seed) | 10.5 |  |  |  |  |  | 1 x 1 | 0 | ≤ 120 | 0.0 |
| fixed, 10 images | 7,840 | 32,808 | 94.7 (1 seed) | 10.5 | 22.9 (kNN 46.6) | 31.6 (kNN 52.1) | 22.6 (kNN 82.0) | 22.6 (kNN 82.0) |  | 1 x 1 | 0 | ≤ 1,092 | 0.0 |

s, a student: wall seconds of training, by those that train at once. 1 core of AMD EPYC; 2026-11-21; commits 62c74c5, a7c6b1b. ≤: the whole run's CPU seconds: compilation, students, baselines and source networks too. Baselines' students train at the best of several learning rates (chosen: 0.1, 0.3), those of distilled data at the learned one.

end of table

What the images of `random, 100 images, soft labels`, learned with LeNet, do for other networks (`transfer`):
their own steps and learning rates on 50 unseen networks, and ordinary students (5 of 300 epochs,
augmented), which free labels, large as they may grow, make diverge where nothing is normalized.

table: mnist_dd_transfer (python -m experiments.tables)

| run | floats | bytes | test accuracy % | before the steps | convnet | mlp | ordinary convnet | ordinary lenet | ordinary mlp | random | best_random | kmeans | class_mean | sd of students | seeds x students | CPU s, experts | CPU s, outer steps | s, a student |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| random, 100 images, soft labels | 79,400 | 160,808 | 85.8 (1 seed) | 10.2 | 89.2 | 77.4 | 78.9 | 8.9 | 9.3 | 58.5 (kNN 72.1) | 57.0 (kNN 71.6) | 61.0 (kNN 92.6) | 26.0 (kNN 82.0) | 4.9 | 1 x 200 | 0 | ≤ 651 | 0.0 |

sd of students: of the run's, within a seed. s, a student: wall seconds of training, by those that train at once. 1 core of AMD EPYC; 2026-11-21; commits a7c6b1b. ≤: the whole run's CPU seconds: compilation, students, baselines and source networks too. Baselines' students train at the best of several learning rates (chosen: 0.03, 0.1), those of distilled data at the learned one.

end of table
"""

import dataclasses

from d3jax.methods.dd import DDOptions
from d3jax.run.options import Architecture, Data, Parametrization, command
from experiments import runner

MNIST = Data(dataset="mnist", validation=2000)
LEARNED = Parametrization(labels="learned")
FIXED = command("dd")(
    data=MNIST,
    dd=DDOptions(
        init="fixed",
        steps=1,
        passes=3,
        real_batch=64,
        inner_learning_rate=0.3,
        data_learning_rate=0.06,
        learning_rate_learning_rate=0.03,
        learning_rate_clip=0.03,
    ),
    outer_steps=60_000,
    storage="float32",
)
SOFT = dataclasses.replace(
    FIXED,
    dd=dataclasses.replace(
        FIXED.dd,
        data_learning_rate=0.04,
        label_learning_rate=0.02,
        learning_rate_learning_rate=0.1,
        learning_rate_clip=0.03,
    ),
)
RANDOM = command("dd")(data=MNIST, dd=DDOptions(init="random"), outer_steps=1500)
ROWS = {
    "fixed, 10 images": FIXED,
    "random, 100 images": RANDOM,
    "fixed, 10 images, soft labels": dataclasses.replace(SOFT, parametrization=LEARNED),
    "fixed, 5 images, soft labels": dataclasses.replace(
        SOFT, parametrization=LEARNED, dd=dataclasses.replace(SOFT.dd, images=5)
    ),
    "random, 100 images, soft labels": dataclasses.replace(
        RANDOM,
        dd=DDOptions(init="random", label_learning_rate=0.005),  # at 0.03 networks diverge
        parametrization=LEARNED,
    ),
    "usps to mnist, 100 images": dataclasses.replace(
        RANDOM, dd=dataclasses.replace(RANDOM.dd, adapt_from="usps"), outer_steps=500
    ),
    "mnist to usps, 100 images": dataclasses.replace(
        RANDOM,
        data=Data(dataset="usps", validation=500),
        dd=dataclasses.replace(
            RANDOM.dd,
            adapt_from="mnist",
            source=dataclasses.replace(RANDOM.dd.source, count=120, epochs=2),
            unseen=60,
        ),
        outer_steps=500,
    ),
    "attack 0 to 1, 100 images": dataclasses.replace(
        RANDOM,
        data=Data(dataset="mnist", train_limit=10_000, validation=2000),
        dd=DDOptions(
            steps=1,
            passes=1,
            images_per_step=10,
            attack="0:1",
            source=dataclasses.replace(RANDOM.dd.source, count=200),
            unseen=100,
        ),
        outer_steps=500,
        baselines=(),
    ),
}

FULL = "fixed, 10 images"
TIME = {
    **{
        f"{FULL}, {steps} steps": dataclasses.replace(FIXED, outer_steps=steps, baselines=())
        for steps in (600, 2000, 6000)
    },
    FULL: FIXED,
}
OTHERS = {"convnet": Architecture(network="convnet", width=32), "mlp": Architecture(network="mlp")}
TRANSFER = {
    **{name: {"architecture": other, "students": 50} for name, other in OTHERS.items()},
    "ordinary_lenet": {"ordinary": True},
    **{f"ordinary_{n}": {"architecture": other, "ordinary": True} for n, other in OTHERS.items()},
}

if __name__ == "__main__":
    chosen, seeds = runner.arguments((*ROWS, "time", "transfer"), (0,))
    rows = {row: ROWS[row] for row in chosen if row in ROWS}
    runner.run("mnist_dd", rows, seeds=seeds, labels=list(ROWS))
    if "time" in chosen:
        runner.run("mnist_dd_time", TIME, seeds=seeds, runs="mnist_dd")
    if "transfer" in chosen:
        label = "random, 100 images, soft labels"
        runner.run(
            "mnist_dd_transfer",
            {label: ROWS[label]},
            seeds=seeds,
            judgements=TRANSFER,
            runs="mnist_dd",
        )

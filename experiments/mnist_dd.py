"""Dataset Distillation on MNIST: fixed and random initialization, soft labels, adaptation, attack.

    D3JAX_DATA_DIR=... python -m experiments.mnist_dd [ROW ...]

LeNet with Xavier-normal weights; 58 000 training images, 2000 of the training split set aside to
choose the baselines' learning rates; test accuracy on all 10 000 test images right after the
distilled steps. Random initialization and pretrained networks: mean and standard deviation over 200
networks that distillation has not seen; a fixed initialization is one network. Baselines go through
as many steps on whole real images at no fewer floats, with one learning rate; best_random is the
best of 20 random draws.

The paper's figures (Wang et al., arXiv 1811.10959; soft labels: Sucholutsky and Schonlau, arXiv
1910.02551): fixed, 10 images 12.9 -> 93.8; random, 100 images 79.5 +- 8.1; fixed, soft labels, 10
images 96, 5 images 92; USPS -> MNIST, 100 images 67.5 +- 3.9 -> 92.7 +- 1.4; attack 0 -> 1, 100
images, 71.4 +- 29.6 % of class 0 flipped.

SVHN is not at hand here: prepare it (`d3jax prepare svhn_cropped`) and run the row `usps to mnist`
with `--adapt-from svhn_cropped` and grey images.

table: mnist_dd (python -m experiments.tables)

Not measured here yet.

end of table
"""

import dataclasses
import sys

from d3jax.config import Data, DistillDD, Images
from d3jax.methods.dd import Options
from experiments import runner

MNIST = Data(dataset="mnist", validation=2000)
FIXED = DistillDD(
    data=MNIST, dd=Options(init="fixed", steps=1, passes=3), outer_steps=1500, storage="float32"
)
RANDOM = DistillDD(data=MNIST, dd=Options(init="random"), outer_steps=1500)
ROWS = {
    "fixed, 10 images": FIXED,
    "random, 100 images": RANDOM,
    "fixed, 10 images, soft labels": dataclasses.replace(FIXED, distilled=Images(soft_labels=True)),
    "fixed, 5 images, soft labels": dataclasses.replace(
        FIXED, distilled=Images(images=5, soft_labels=True)
    ),
    "random, 100 images, soft labels": dataclasses.replace(
        RANDOM, distilled=Images(soft_labels=True)
    ),
    "usps to mnist, 100 images": dataclasses.replace(RANDOM, adapt_from="usps", outer_steps=500),
    "mnist to usps, 100 images": dataclasses.replace(
        RANDOM, data=Data(dataset="usps", validation=500), adapt_from="mnist", outer_steps=500
    ),
    "attack 0 to 1, 100 images": dataclasses.replace(
        RANDOM,
        dd=Options(steps=1, passes=1),
        distilled=Images(images_per_step=10),
        attack="0:1",
        outer_steps=500,
        baselines=(),
    ),
}

if __name__ == "__main__":
    chosen = sys.argv[1:] or list(ROWS)
    unknown = set(chosen) - set(ROWS)
    if unknown:
        raise SystemExit(f"{sorted(unknown)} are not among {list(ROWS)}")
    runner.run("mnist_dd", {row: ROWS[row] for row in chosen}, seeds=(0,), labels=list(ROWS))

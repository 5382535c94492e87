"""Dataset Distillation on CIFAR-10 (the JPEG copy): AlexCifarNet, fixed initialization, 100 images.

    D3JAX_DATA_DIR=... python -m experiments.cifar10_dd

10 steps of one image per class, 3 passes; 49 000 training images, 256 of them an outer step. The
paper has 8.8 -> 54.0 (Wang et al., arXiv 1811.10959) after about 19 500 outer steps; here are 1000,
81 minutes of one core. The images before and after and the curves, as the run writes them, are in
pictures/cifar10_dd_*.png: accuracy on training batches rises to the end, but slower and slower.
Rates were chosen on training batches: with images at 0.05, d3jax's default, accuracy stops rising
after 100 outer steps and falls after 300, probably since steps of that size walk at random and the
inner rates rise into divergence; images at 0.01, the paper's, are slower in the first 120.

table: cifar10_dd (python -m experiments.tables)

| run | floats | bytes | test accuracy % | before the steps | random | best_random | kmeans | class_mean | sd of students | seeds x students | CPU s, experts | CPU s, outer steps | s, a student |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| fixed, 100 images | 307,200 | 1,230,992 | 46.3 (1 seed) | 10.5 | 20.0 (kNN 18.0) | 21.2 (kNN 17.5) | 24.1 (kNN 30.7) | 13.0 (kNN 27.7) |  | 1 x 1 | 0 | 4,873 | 1.0 |

s, a student: wall seconds of training, by those that train at once. 1 core of AMD EPYC; 2026-11-22; commits 02c079b, 2678809. Baselines' students train at the best of several learning rates (chosen: 0.01, 0.03), those of distilled data at the learned one.

end of table
"""

from d3jax.methods.dd import DDOptions
from d3jax.run.options import Data, command
from experiments import runner

FIXED = command("dd")(
    data=Data(dataset="cifar10", validation=1000),
    dd=DDOptions(
        init="fixed",
        real_batch=256,
        inner_learning_rate=0.02,
        data_learning_rate=0.02,
        learning_rate_learning_rate=0.002,
    ),
    outer_steps=1000,
    storage="float32",
)

if __name__ == "__main__":
    runner.run("cifar10_dd", {"fixed, 100 images": FIXED}, seeds=(0,))

"""D3 on ImageNet-1K at 64x64, the paper's three budgets (arXiv 2403.00999).

Prepare the data once with `d3jax prepare imagenet_resized/64x64`, then

    python -m experiments.imagenet64_d3 [small medium large]

Not run at full size here. Expert snapshots (31 GB) stay on disk, and the MMD takes 50 classes at a
time, so that one accelerator of 80 GB should hold a subtask of all 1000 classes: 16 GB of images,
and by estimate 20 GB of activations. The paper's figures (ConvNet,
ResNet-18 test accuracy, %): small 11.5, 9.7; medium 17.4, 16.0; large 20.3, 18.5, with subtasks of
200, 500 and 200 classes. One subtask of all classes runs here; decomposition has its own issue.
`tests/test_experiments.py` runs a few steps of each setting on small data of the same shape.

A figure measured here: none yet.
"""

import dataclasses
import sys

from d3jax.config import Architecture, Data, DistillD3, Parametrization
from d3jax.evaluate import Protocol
from d3jax.experts import Options as ExpertOptions
from d3jax.methods.d3 import Options
from experiments import runner

# The paper learns the rate itself, with the rates in comments; on the logarithm they are divided
# by the first value's square.
SETTINGS = {
    "small": DistillD3(
        parametrization=Parametrization(
            latents_per_class=1,
            latent_size=64,
            decoder="small",
            decoder_width=256,
            output="normalized",
            labels="expert",
        ),
        d3=Options(
            max_start_epoch=27,
            mmd_samples=30,
            latent_optimizer="sgd",
            schedule="constant",
            latent_learning_rate=3e-4,
            decoder_learning_rate=3e-4,
            student_learning_rate=0.01,
            learning_rate_learning_rate=1e-6 / 0.01**2,
        ),
        expert=ExpertOptions(count=100, epochs=30),
        student=Protocol(epochs=1000, learning_rate=0.05),
        outer_steps=10_000,
    ),
    "medium": DistillD3(
        parametrization=Parametrization(
            latents_per_class=2,
            latent_size=2048,
            decoder="medium",
            output="normalized",
            labels="expert",
        ),
        d3=Options(
            max_start_epoch=10,
            mmd_samples=12,
            inner_batch_size=250,
            latent_optimizer="sgd",
            schedule="constant",
            latent_learning_rate=5e-3,
            decoder_learning_rate=8e-5,
            student_learning_rate=0.015,
            learning_rate_learning_rate=5e-6 / 0.015**2,
        ),
        expert=ExpertOptions(count=100, epochs=12),
        student=Protocol(epochs=1000, learning_rate=0.02),
        outer_steps=10_000,
    ),
    "large": DistillD3(
        parametrization=Parametrization(
            latents_per_class=10,
            latent_size=4096,
            decoder="large",
            output="normalized",
            labels="expert",
        ),
        d3=Options(
            max_start_epoch=27,
            mmd_samples=20,
            inner_batch_size=250,
            latent_optimizer="sgd",
            schedule="constant",
            latent_learning_rate=5e-3,
            decoder_learning_rate=8e-5,
            student_learning_rate=0.008,
            learning_rate_learning_rate=1e-6 / 0.008**2,
        ),
        expert=ExpertOptions(count=100, epochs=30),
        student=Protocol(epochs=1000, learning_rate=0.005),
        outer_steps=8000,
    ),
}
DATA = Data(dataset="imagenet_resized/64x64")
NETWORK = Architecture(width=128, depth=4)


def configurations(names: list[str]) -> dict[str, DistillD3]:
    """The settings by name; all of them where none is named."""
    chosen = {name: SETTINGS[name] for name in names or SETTINGS}
    return {
        name: dataclasses.replace(
            setting,
            data=DATA,
            architecture=NETWORK,
            d3=dataclasses.replace(setting.d3, mmd_classes=50),
            snapshots="disk",
        )
        for name, setting in chosen.items()
    }


if __name__ == "__main__":
    runner.run("imagenet64_d3", configurations(sys.argv[1:]), seeds=(0,))

"""D3 on Tiny-ImageNet at 64x64: all 200 classes, or the 20 of `tiny_imagenet_20.npz`.

All 200 classes, where TFDS or an image folder has them and an accelerator is at hand:

    python -m experiments.tiny_imagenet_d3 path/to/tiny-imagenet-200

The 20 classes, with D3JAX_DATA_DIR naming the folder above data/:

    python -m experiments.tiny_imagenet_d3 tiny_imagenet_20

The setting is that of an earlier measurement on the 20 classes: small decoder k=128, z=64, one latent per
class, 250 outer steps with 15 MMD samples, 2 experts of 8 epochs, ConvNet depth 4, width 32. The
authors' modules in a PyTorch loop reached 18.5 % there (one seed).
`tests/test_experiments.py` runs a few steps on small data of the same shape.
"""

import dataclasses
import sys
from typing import Any

from d3jax.evaluate import Protocol
from d3jax.experts import Options as ExpertOptions
from d3jax.methods.d3 import PAPER
from d3jax.run.options import Architecture, Data, Parametrization, command
from experiments import runner


def configuration(dataset: str) -> Any:
    """The yardstick's setting on `dataset`."""
    return command("d3")(
        data=Data(dataset=dataset),
        architecture=Architecture(width=32, depth=4),
        parametrization=Parametrization(latent_size=64, decoder_width=128),
        d3=dataclasses.replace(PAPER, max_start_epoch=6, mmd_samples=15),
        expert=ExpertOptions(count=2, epochs=8, learning_rate=0.01),
        student=Protocol(students=3),
        outer_steps=250,
    )


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else "tiny_imagenet_20"
    runner.run("tiny_imagenet_d3", {"d3": configuration(name)}, seeds=(0,))
